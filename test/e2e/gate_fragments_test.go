package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"tapgate/test/kernels"
)

// REQ-14 of RFC 4787 in order, which every kernel can; both ways, for each protocol.
func TestGateFragmentsShortInOrder(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		for _, x := range fragExchanges(in, out, v6) {
			for range 4 {
				x.across(g, in, out, "in order", inOrder, inOrder)
			}
		}
	})
}

// Out of order on the way out, every kernel can as well: later fragments have the paired
// address, and an id that the first one gets as well.
func TestGateFragmentsShortOut(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		for _, x := range fragExchanges(in, out, v6) {
			for _, o := range fragOrders {
				x.across(g, in, out, o.name, o.of, inOrder)
			}
		}
	})
}

// REQ-14 of RFC 4787 out of order, both ways.
func TestGateFragmentsShortOutOfOrder(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	t.Parallel()
	g := newGate(t, gateBoth)
	if s := g.status(); s.Gateway == nil || !s.Gateway.Reorders {
		t.Fatalf("status: %+v", s.Gateway)
	}
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		for _, x := range fragExchanges(in, out, v6) {
			for _, o := range fragOrders {
				for range 4 {
					x.across(g, in, out, o.name, o.of, o.of)
				}
			}
		}
	})
}

// The gateway's own traffic in fragments, in any order.
func TestGateFragmentsOfTheGateway(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	t.Parallel()
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		_, out := g.pair()
		c := g.udpSocket(g.Gateway, netip.AddrPortFrom(g.outside(v6), 0))
		own := netip.AddrPortFrom(g.outside(v6), uint16(c.LocalAddr().(*net.UDPAddr).Port))
		orders := []func(int) []int{inOrder}
		for _, o := range fragOrders {
			orders = append(orders, o.of)
		}
		for _, order := range orders {
			payload := g.big(5000)
			all := out.cutUDP(9000, own, payload).cut(g.t)
			out.sendCut(all, order(len(all)))
			g.receive(c, string(payload))
			g.sendTo(c, out.at(v6, 9000), string(payload))
			if got := out.wantWhole("from the gateway", payload); got.Src != own {
				g.t.Errorf("it came from %s", got.Src)
			}
		}
	})
}

// A flow may begin with fragments out of order, through a forward, too.
func TestGateFragmentsForward(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	t.Parallel()
	g := newGateLab(t)
	server := g.station(atInside, 0)
	g.apply(gateZones + fmt.Sprintf(`
nat:
  masquerade:
    - {from: internal, to: external}
  forwards:
    - {name: dns, in: external, proto: udp, port: 53, to: "%s:5353"}
`, server.Addr))
	for _, o := range fragOrders {
		out := g.station(atOutside, 0)
		payload := g.big(4000)
		all := out.cutUDP(9000, netip.AddrPortFrom(g.outside(false), 53), payload).cut(t)
		out.sendCut(all, o.of(len(all)))
		got := server.wantWhole(o.name, payload)
		if got.Dst != server.at(false, 5353) || got.Src != out.at(false, 9000) {
			t.Errorf("it came as %s", got)
		}
		payload = g.big(4000)
		all = server.cutUDP(5353, got.Src, payload).cut(t)
		server.sendCut(all, o.of(len(all)))
		if got := out.wantWhole("answer, "+o.name, payload); got.Src.Port() != 53 {
			t.Errorf("the answer came as %s", got)
		}
	}
}

// RFC 6864 5.3.1: hosts that use the same ids at the same time, their fragments
// mixed in any order: each datagram arrives as it was sent.
func TestGateFragmentsSameID(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in := []*peer{g.station(atInside, 0), g.station(atInside, 1), g.station(atInside, 0)}
		out := g.station(atOutside, 0)
		for round := range 20 {
			type part struct {
				from  *peer
				frame []byte
			}
			out.next = len(out.Frames())
			var mixed []part
			var payloads [][]byte
			for _, p := range in {
				payload := g.big(3000)
				d := p.cutUDP(5000, out.at(v6, 9000), payload)
				d.id, d.size = 4711+uint32(round/2), 512
				for _, f := range d.cut(g.t) {
					mixed = append(mixed, part{p, f})
				}
				payloads = append(payloads, payload)
			}
			rand.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
			for _, m := range mixed {
				if err := m.from.Send(m.frame); err != nil {
					g.t.Fatal(err)
				}
			}
			ids := map[uint32]bool{}
			for _, payload := range payloads {
				ids[out.wantWhole("mixed", payload).ID] = true
			}
			if len(ids) != len(in) {
				g.t.Fatalf("round %d: %d datagrams of one address under way at once have the ids %v", round, len(in), ids)
			}
		}
	})
}

// Nothing that overlaps gets an inside host to take what was not sent; and what
// comes after it arrives.
func TestGateFragmentsOverlap(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	t.Parallel()
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		ext := g.mapUDP(in, 5000, out, 9000, v6)
		d := out.cutUDP(9000, ext, g.big(3000))
		d.size = 512
		all := d.cut(g.t)
		other := out.cutUDP(9000, ext, g.big(3000))
		other.id, other.size = d.id, 768 // overlaps the one before by 256 bytes
		evil := other.cut(g.t)
		out.sendCut([][]byte{all[5], all[4], evil[2], all[3], all[2], all[1], all[0]}, inOrder(7))
		g.fence(out)
		good := g.big(3000)
		all = out.cutUDP(9000, ext, good).cut(g.t)
		slices.Reverse(all)
		out.sendCut(all, inOrder(len(all)))
		in.wantWhole("after fragments that overlap", good)
		whole, broken := wholes(in.Frames())
		for _, got := range whole {
			if len(got.Payload) == 3000 && !bytes.Equal(got.Payload, good) {
				g.t.Errorf("a datagram whose parts overlap arrived: %s", got)
			}
		}
		if len(broken) > 0 {
			g.t.Error(broken)
		}
	})
}
