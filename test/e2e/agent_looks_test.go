package e2e

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"tapgate/loader"
)

// looked is one look at translations.
func (g *gate) looked(seen *loader.Translations) (events []loader.TranslationEvent) {
	g.t.Helper()
	g.opened(func(gw *loader.Gateway) (err error) {
		events, err = gw.Translations(seen)
		return err
	})
	return events
}

func eventNames(events []loader.TranslationEvent, outside netip.AddrPort) string {
	var names []string
	for _, e := range events {
		if e.Outside == outside.String() {
			names = append(names, e.Event)
		}
	}
	return strings.Join(names, " ")
}

// A translation that ends, and another one that takes all its endpoints before the
// next look, are two; one that goes on is told once; what is not translated never.
func TestTranslationsBetweenLooks(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateZones+"nat:\n  exclude: [203.0.113.9/32]\n  masquerade:\n    - {from: internal, to: external}\n")
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	seen := loader.NewTranslations()
	if events := g.looked(seen); len(events) > 0 {
		t.Errorf("without a flow: %+v", events)
	}
	plain := g.udpSocket(g.in[0], netip.AddrPortFrom(g.in[0].Addr, 0))
	g.sendTo(plain, netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), 9), "not translated")
	ext := g.mapUDP(in, 5000, out, 53, false)
	if got := eventNames(g.looked(seen), ext); got != "start" {
		t.Errorf("a new one: %q", got)
	}
	g.answerUDP(out, 53, ext, in, 5000)
	if events := g.looked(seen); len(events) > 0 {
		t.Errorf("one that goes on: %+v", events)
	}
	flush := func() {
		g.must("flows", "flush", "--addr", in.Addr.String(), "--port", strconv.Itoa(5000))
	}
	flush()
	if again := g.mapUDP(in, 5000, out, 53, false); again != ext {
		t.Fatalf("the endpoint is another one: %s, before %s", again, ext)
	}
	events := g.looked(seen)
	if got := eventNames(events, ext); got != "start end" && got != "end start" {
		t.Errorf("another one in its place: %q", got)
	}
	for _, e := range events {
		if e.Event == "end" && (e.PacketsOut != 1 || e.PacketsIn != 1) {
			t.Errorf("the end is of the one that was there: %+v %+v", e, e.TranslationTotals)
		}
	}
	flush()
	g.mapUDP(in, 5001, out, 53, false)
	if got := eventNames(g.looked(seen), ext); got != "end" {
		t.Errorf("one that is gone: %q", got)
	}
	left := seen.Gone()
	if len(left) != 1 || left[0].Event != "end" || left[0].Inside != in.at(false, 5001).String() || left[0].InsideZone != "internal" || len(seen.Gone()) != 0 {
		t.Errorf("without the gateway: %+v", left)
	}
}

// The heaviest flows are those since the look before, or since they began.
func TestHeaviestFlows(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	send := func(port uint16, times, size int) {
		for range times {
			text := g.text() + strings.Repeat("x", size)
			in.udp(port, out.at(false, 53), text)
			out.wantText(text)
		}
	}
	meter := loader.NewFlowMeter()
	look := func(n int, order loader.FlowOrder) (rates []loader.FlowRate, ports string) {
		t.Helper()
		g.opened(func(gw *loader.Gateway) (err error) {
			rates, err = gw.HeaviestFlows(meter, n, order)
			return err
		})
		for _, r := range rates {
			_, port, _ := strings.Cut(r.Inside, ":")
			ports += port + " "
		}
		return rates, ports
	}
	send(5001, 9, 1000)
	send(5002, 1, 1)
	if rates, ports := look(5, loader.ByBytes); ports != "5001 5002 " || rates[0].ByteRate != 0 || rates[0].Packets != 9 {
		t.Errorf("the first look: %s %+v", ports, rates)
	}
	send(5002, 5, 1)
	send(5003, 1, 1200)
	if rates, ports := look(5, loader.ByBytes); ports != "5003 5002 " || rates[0].ByteRate <= 1200 || rates[0].PacketRate*4 < rates[1].PacketRate/2 {
		t.Errorf("by bytes: %s %+v", ports, rates)
	}
	send(5002, 5, 1)
	send(5003, 1, 1200)
	if rates, ports := look(1, loader.ByPackets); ports != "5002 " || rates[0].PacketRate == 0 || rates[0].Packets != 11 {
		t.Errorf("by packets, the first: %s %+v", ports, rates)
	}
	if _, ports := look(5, loader.ByTotalBytes); ports != "5001 5003 5002 " {
		t.Errorf("by all bytes: %s", ports)
	}
	if _, ports := look(5, loader.ByTotalPackets); ports != "5002 5001 5003 " {
		t.Errorf("by all packets: %s", ports)
	}
	if _, ports := look(5, loader.ByBytes); ports != "" {
		t.Errorf("nothing since: %s", ports)
	}
}
