package e2e

import (
	"net/netip"
	"testing"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// The tap with NAT in force: the sensor sees each packet of an inside host once, with
// inside addresses, before translation and after its reverse; of forwards as well.
func TestGateSensorSeesInside(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateForward)
	server, in, out := g.stationAt(g.in[1], 200), g.station(atInside, 0), g.station(atOutside, 0)
	echoAll(t, g.in[0], g.out[0].Addr, 1, 56) // resolves whom copies are sent to
	g.resolved()
	capture, err := g.Sensor.Capture("eth0", lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	want := map[[2]netip.Addr]int{}
	for _, v6 := range []bool{false, true} {
		ext := g.mapUDP(in, 5000, out, 9000, v6)
		g.answerUDP(out, 9000, ext, in, 5000)
		s := g.connect(in, 5000, out, 9000, v6)
		s.talk()
		addr, id := g.mapQuery(in, 77, out, v6)
		g.answerQuery(out, addr, id, in, 77)
		want[[2]netip.Addr{in.ip(v6), out.ip(v6)}] = 1 + 3 + 1
		want[[2]netip.Addr{out.ip(v6), in.ip(v6)}] = 1 + 2 + 1
		g.accept(out, 9001, netip.AddrPortFrom(g.outside(v6), 4000), server, 4001).talk()
		want[[2]netip.Addr{server.ip(v6), out.ip(v6)}] = 2
		want[[2]netip.Addr{out.ip(v6), server.ip(v6)}] = 3
	}
	sum := 0
	for _, n := range want {
		sum += n
	}
	ours := func(frames []lab.Frame) []lab.Frame {
		return lab.Select(frames, func(f lab.Frame) bool {
			src, dst, ok := addresses(f)
			return ok && (src == out.ip(src.Is6()) || dst == out.ip(dst.Is6()))
		})
	}
	frames, err := capture.WaitFor(func(frames []lab.Frame) bool { return len(ours(frames)) >= sum }, gateWait)
	if err != nil {
		t.Error(err)
	}
	got := map[[2]netip.Addr]int{}
	for _, f := range ours(frames) {
		p, err := pkt.Parse(f.Data)
		if err != nil || len(p.Bad) > 0 {
			t.Errorf("the sensor saw %s, %v", p, err)
			continue
		}
		got[[2]netip.Addr{p.Src.Addr(), p.Dst.Addr()}]++
		for _, v6 := range []bool{false, true} {
			if p.Src.Addr() == g.outside(v6) || p.Dst.Addr() == g.outside(v6) {
				t.Errorf("the sensor saw the outside address: %s", p)
			}
		}
	}
	for pair, n := range want {
		if got[pair] != n {
			t.Errorf("%s to %s: the sensor saw %d packets of %d", pair[0], pair[1], got[pair], n)
		}
	}
	g.checkLedgers()
}
