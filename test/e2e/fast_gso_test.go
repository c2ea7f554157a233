package e2e

import (
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
)

// Segments and checksums that hosts leave to hardware which is not there: they take
// the fast path as they are, the sensor gets what a wire would have carried, and the
// receiver's kernel finds nothing wrong.
func TestFastSegments(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newDirect(t)
		g.kind = kind
		g.withoutSACK()
		v := sensorView(g.gateway)
		w := watchLarge(g.gateway, "eth3", g.in[0], offload, v)
		w.finish = segmenter(t, 1500, gsoSize)
		g.apply(gateZones + "nat:\n  masquerade:\n    - {from: internal, to: external, ipv6: true}\n")
		before := g.counts()
		out, in := w.same(func() { bulk(t, g.in[0], g.out[0]) })
		if largest(out) < 10000 || largest(in) < 10000 {
			t.Errorf("largest frame %d out and %d in: no GSO, nothing shown", largest(out), largest(in))
		}
		g.mostlyFast(before)
		v.account(g.gateway, "ids", 0)
	})
}

// The same where the gateway puts received segments together (GRO).
func TestFastReceiveOffload(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newDirect(t)
		g.kind = kind
		g.withoutSACK()
		wholeChecksums(g.gateway)
		for _, ifname := range []string{"eth0", "eth3"} {
			tool(t, g.Gateway, "ethtool", "-K", ifname, "gro", "on", "rx-udp-gro-forwarding", "on")
		}
		if err := g.Gateway.SetTxChecksum("eth3", false); err != nil {
			t.Fatal(err)
		}
		v := sensorView(g.gateway)
		w := watchCable(g.gateway, "eth3", g.in[0], v)
		g.apply(gateZones + "nat:\n  masquerade:\n    - {from: internal, to: external, ipv6: true}\n")
		before := g.counts()
		out, in := w.same(func() { bulk(t, g.in[0], g.out[0]) })
		if largest(out) > 1514 || largest(in) > 1514 {
			t.Errorf("largest frame %d out and %d in: the server sees no wire", largest(out), largest(in))
		}
		g.mostlyFast(before)
		v.account(g.gateway, "ids", 0)
		for _, m := range g.status().Members {
			if m.Interface != "eth3" {
				continue
			}
			for name, d := range map[string]*loader.DirectionStatus{"ingress": m.Ingress, "egress": m.Egress} {
				if n := d.Reasons[passFast]; g.fastly() && n*2 > d.Seen.Packets {
					t.Errorf("%s: %d packets in %v buffers: no GRO, nothing shown", name, d.Seen.Packets, d.Reasons)
				}
			}
		}
	})
}

// withoutSACK has hosts send segments of one size: on a busy machine one may be sent
// again, and then they would be smaller by the option that says so.
func (g *gate) withoutSACK() {
	g.t.Helper()
	for _, h := range []*lab.Host{g.in[0], g.out[0]} {
		if err := h.Sysctl("net/ipv4/tcp_sack", "0"); err != nil {
			g.t.Fatal(err)
		}
	}
}

// mostlyFast requires that most of what has passed eth3 and eth0 since took the fast
// path, both ways: with connections that begin, end and send much in between.
func (g *gateway) mostlyFast(before map[string]buffers) {
	g.t.Helper()
	if g.forwarding == forwardKernel {
		return
	}
	after := g.counts()
	for _, place := range []string{"eth3 in", "eth0 out", "eth0 in", "eth3 out"} {
		fast, all := after[place].fast-before[place].fast, after[place].all-before[place].all
		if fast*2 < all || all == 0 {
			g.t.Errorf("%d of %d buffers took the fast path at %s", fast, all, place)
		}
	}
}
