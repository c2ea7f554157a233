package e2e

import (
	"bytes"
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
)

// outward and inward are the two senders of the cable before the server.
func outward(g *gateway) joint {
	s, gw, o := g.Servers[0], g.Gateway.Interface("eth3"), g.Outside[0]
	return joint{from: s.MAC, to: gw.MAC, src: s.Addr, dst: o.Addr, s6: s.Addr6, d6: o.Addr6}
}

func inward(g *gateway) joint {
	j := outward(g)
	return joint{from: j.to, to: j.from, src: j.dst, dst: j.src, s6: j.d6, d6: j.s6}
}

// requireSent fails unless the captured frames hold those in this order.
func requireSent(t *testing.T, captured []lab.Frame, sent [][]byte) {
	t.Helper()
	for _, f := range captured {
		if len(sent) > 0 && bytes.Equal(f.Data, sent[0]) {
			sent = sent[1:]
		}
	}
	if len(sent) > 0 {
		t.Errorf("%d frames were not replayed as written, the first: %s", len(sent), briefOf(sent))
	}
}

// T8 and all that sockets cannot say: LLDP, ARP, VLAN and QinQ tags, groups,
// broken headers, replayed by tcpreplay from both ends of the cable, before a
// sensor behind a next hop and one that gets frames as they are.
func TestT08ReplayedFrames(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		via := sensorView(g)
		whole := &sensorSide{host: g.Mgmt, from: wholeFrame}
		w := watchCable(g, "eth3", g.Servers[0], via, whole)
		g.apply(exactConfig("via: 192.168.4.2", "l2: eth4"))
		out, in := oddFrames(t, outward(g)), oddFrames(t, inward(g))
		// A gateway sends what the frame's headers say; 14 bytes are no packet to it.
		outFile, inFile := writePcap(g, "out.replay", out), writePcap(g, "in.replay", in)
		gotOut, gotIn := w.same(func() {
			for range 3 {
				tool(t, g.Servers[0], "tcpreplay", "-i", "eth0", "--topspeed", outFile)
				tool(t, g.Gateway, "tcpreplay", "-i", "eth3", "--topspeed", inFile)
			}
		})
		requireSent(t, gotOut, append(append(append([][]byte{}, out...), out...), out...))
		requireSent(t, gotIn, append(append(append([][]byte{}, in...), in...), in...))
		via.account(g, "ids", 0)
		whole.account(g, "ids", 1)
	})
}
