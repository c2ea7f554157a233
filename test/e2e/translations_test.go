package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tapgate/loader"
)

// toldNews is what FollowTranslations has told.
type toldNews struct {
	g    *gate
	stop func()

	mu     sync.Mutex
	events []loader.TranslationEvent
	looks  int // at the gateway, which are over
	lost   uint64
	errs   []error
}

// translations follows them, until stop or the end of the test.
func (g *gate) translations() *toldNews {
	g.t.Helper()
	n := &toldNews{g: g}
	ctx, cancel := context.WithCancel(context.Background())
	began, ended := make(chan struct{}), make(chan struct{})
	var first sync.Once
	go func() {
		defer close(ended)
		opt := loader.Options{Netns: g.Gateway.Name, BPFFS: g.bpffs, LockTimeout: gateWait}
		loader.FollowTranslations(ctx, opt, func(news loader.TranslationNews) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.events = append(n.events, news.Events...)
			n.lost += news.LostStarts + news.LostEnds
			first.Do(func() { close(began) })
		}, func(err error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.looks++
			if err != nil {
				n.errs = append(n.errs, err)
			}
		})
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
		if err := errors.Join(n.errs...); err != nil || n.lost > 0 {
			g.t.Errorf("%d are lost, %v", n.lost, err)
		}
	})
	g.t.Cleanup(n.stop)
	<-began
	return n
}

// of are the events of an outside endpoint so far.
func (n *toldNews) of(outside string) (events []loader.TranslationEvent, names string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for _, e := range n.events {
		if e.Outside == outside {
			events, all = append(events, e), append(all, e.Event)
		}
	}
	return events, strings.Join(all, " ")
}

// wait is of once the events are these.
func (n *toldNews) wait(outside, want string) []loader.TranslationEvent {
	n.g.t.Helper()
	var events []loader.TranslationEvent
	retry(n.g.t, func() (err error) {
		var names string
		if events, names = n.of(outside); names != want {
			err = fmt.Errorf("told of %s: %q, want %q", outside, names, want)
		}
		return err
	})
	return events
}

// look waits until the gateway was looked at as it is now.
func (n *toldNews) look() {
	n.g.t.Helper()
	done := func() int {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.looks
	}
	from := done()
	retry(n.g.t, func() error {
		if done() < from+2 { // one may be under way
			return errors.New("nobody has looked")
		}
		return nil
	})
}

func (g *gate) flushPort(of netip.AddrPort) {
	g.t.Helper()
	g.must("flows", "flush", "--addr", of.Addr().String(), "--port", strconv.Itoa(int(of.Port())))
}

// A translation that takes all endpoints of one that has just ended is another one;
// one that goes on is told once, also when a new connection has the ports of one that
// has ended; what is not translated never; and all end with the gateway.
func TestTranslationsTold(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateZones+"nat:\n  exclude: [203.0.113.9/32]\n  masquerade:\n    - {from: internal, to: external}\n")
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	early := g.mapUDP(in, 4999, out, 53, false)
	n := g.translations()
	if present := n.wait(early.String(), "present"); present[0].Inside != in.at(false, 4999).String() || present[0].TranslationTotals != nil {
		t.Errorf("%+v", present)
	}
	plain := g.udpSocket(g.in[0], netip.AddrPortFrom(g.in[0].Addr, 0))
	g.sendTo(plain, netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), 9), "not translated")

	ext := g.mapUDP(in, 5000, out, 53, false)
	g.answerUDP(out, 53, ext, in, 5000)
	n.wait(ext.String(), "start")
	g.flushPort(in.at(false, 5000))
	if again := g.mapUDP(in, 5000, out, 53, false); again != ext {
		t.Fatalf("the endpoint is another one: %s, before %s", again, ext)
	}
	events := n.wait(ext.String(), "start end start")
	if end := events[1]; end.PacketsOut != 1 || end.PacketsIn != 1 || !end.Started.Equal(events[0].Started) || !events[2].Time.After(events[0].Time) {
		t.Errorf("the end is of the one that was there: %+v %+v", end, end.TranslationTotals)
	}
	g.flushPort(in.at(false, 5000))
	if end := n.wait(ext.String(), "start end start end")[3]; end.PacketsOut != 1 || end.PacketsIn != 0 || end.BytesIn != 0 || end.BytesOut == 0 {
		t.Errorf("another one in its place: %+v", end.TranslationTotals)
	}

	s := g.connect(in, 6000, out, 80, false)
	s.talk()
	s.shut()
	time.Sleep(50 * time.Millisecond) // so that their beginnings differ
	if again := g.connect(in, 6000, out, 80, false); again.ext != s.ext {
		t.Fatalf("the endpoint is another one: %s, before %s", again.ext, s.ext)
	}
	g.flushPort(in.at(false, 6000))
	if events := n.wait(s.ext.String(), "start end"); !events[1].Started.Equal(events[0].Started) || events[1].PacketsOut != 7 || events[1].PacketsIn != 5 {
		t.Errorf("two connections: %+v", events[1].TranslationTotals)
	}

	last := g.mapUDP(in, 5002, out, 53, false)
	n.wait(last.String(), "start")
	g.must("detach")
	if end := n.wait(last.String(), "start end")[1]; end.PacketsOut != 1 || end.InsideZone != "internal" || end.OutsideZone != "external" || end.Origin != "masquerade" {
		t.Errorf("without the gateway: %+v %+v", end, end.TranslationTotals)
	}
	n.wait(early.String(), "present end")
	n.stop()
	for _, e := range n.events {
		if strings.HasPrefix(e.Remote, "203.0.113.9:") {
			t.Errorf("not translated: %+v", e)
		}
	}
}

// What is told of each kind of translation, from its start to its end.
func TestTranslationsKinds(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth+`  forwards:
    - {name: web, in: external, proto: tcp, port: 4000, to: "192.168.3.2:4001"}
`)
	n := g.translations()
	type want struct {
		outside string
		loader.TranslationEvent
	}
	wants := map[string]want{}
	expect := func(what, outside string, e loader.TranslationEvent) { wants[what] = want{outside, e} }
	masqueraded := loader.TranslationEvent{InsideZone: "internal", OutsideZone: "external", Origin: "masquerade", Rule: "internal-to-external"}
	of := func(base loader.TranslationEvent, proto, inside, remote string) loader.TranslationEvent {
		base.Proto, base.Inside, base.Remote = proto, inside, remote
		return base
	}
	for _, v6 := range []bool{false, true} {
		in, out := g.station(atInside, 0), g.station(atOutside, 0)
		name := map[bool]string{false: "4", true: "6"}[v6]
		expect("udp"+name, g.mapUDP(in, 5000, out, 53, v6).String(), of(masqueraded, "udp", in.at(v6, 5000).String(), out.at(v6, 53).String()))
		s := g.connect(in, 6000, out, 80, v6)
		expect("tcp"+name, s.ext.String(), of(masqueraded, "tcp", s.a.String(), s.b.String()))
		addr, id := g.mapQuery(in, 77, out, v6)
		proto := map[bool]string{false: "icmp", true: "icmpv6"}[v6]
		expect(proto, netip.AddrPortFrom(addr, id).String(), of(masqueraded, proto, in.at(v6, 77).String(), out.ip(v6).String()))
	}
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	f := g.accept(out, 7000, netip.AddrPortFrom(g.outside(false), 4000), g.stationAt(g.in[0], 2), 4001)
	forwarded := of(masqueraded, "tcp", f.a.String(), f.b.String())
	forwarded.Origin, forwarded.Rule = "forward", "web"
	expect("forward", f.ext.String(), forwarded)
	// A hairpin: to another one's outside endpoint.
	other := g.station(atInside, 1)
	there := g.mapUDP(other, 5500, out, 53, false)
	text := g.text()
	in.udp(5600, there, text)
	seen := other.wantText(text)
	hairpin := of(masqueraded, "udp", in.at(false, 5600).String(), other.at(false, 5500).String())
	hairpin.Origin, hairpin.Asked = "hairpin", there.String()
	expect("hairpin", seen.Src.String(), hairpin)

	for what, w := range wants {
		start := n.wait(w.outside, "start")[0]
		got := start
		w.TranslationEvent.Event, w.TranslationEvent.Outside = "start", w.outside
		w.TranslationEvent.Time, w.TranslationEvent.Started = got.Time, got.Started
		if w.Rule == "internal-to-external" {
			w.Rule = got.Rule // a name of the loader's making
		}
		if got != w.TranslationEvent || got.Rule == "" || got.Time.Sub(got.Started).Abs() > 20*time.Millisecond {
			t.Errorf("%s:\ngot  %+v\nwant %+v", what, got, w.TranslationEvent)
		}
	}
	g.must("flows", "flush", "--all")
	for what, w := range wants {
		events := n.wait(w.outside, "start end")
		end, start := events[1], events[0]
		if end.TranslationTotals == nil || end.PacketsOut+end.PacketsIn == 0 || end.Last.Before(start.Time) || end.Time.Before(end.Last) {
			t.Errorf("%s: %+v %+v", what, end, end.TranslationTotals)
		}
		end.Event, end.Time, end.TranslationTotals = "start", start.Time, nil
		if end != start {
			t.Errorf("%s: start and end differ:\n%+v\n%+v", what, start, end)
		}
	}
}

// On every kernel, with both ways to attach.
func TestShortTranslations(t *testing.T) {
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateLab(t)
		g.kind = kind
		g.apply(gateBoth)
		in, out := g.station(atInside, 0), g.station(atOutside, 0)
		n := g.translations()
		ext := g.mapUDP(in, 5000, out, 53, false)
		ext6 := g.mapUDP(in, 5000, out, 53, true)
		n.wait(ext.String(), "start")
		n.wait(ext6.String(), "start")
		g.must("flows", "flush", "--all")
		for _, ext := range []netip.AddrPort{ext, ext6} {
			if end := n.wait(ext.String(), "start end")[1]; end.PacketsOut != 1 || end.PacketsIn != 0 {
				t.Errorf("%+v %+v", end, end.TranslationTotals)
			}
		}
		n.stop()
		if err := g.hasRing(false); err != nil {
			t.Error(err)
		}
	})
}
