package e2e

import (
	"strings"
	"testing"

	"tapgate/loader"
)

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
