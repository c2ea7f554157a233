package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"tapgate/test/kernels"
)

// From tapgate to the kernel's rules and back, with a while of only copying in between: nothing of the flows from before
// is in the way of what the kernel has translated meanwhile.
func TestStressCutOverTap(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	g := newGateLab(t)
	g.apply(cutOver)
	k := newTalk(t)
	k.addTCP(g, "TCP from inside", g.in[1], false, netip.MustParseAddrPort(echoTCP(t, g.out[0], g.out[0].Addr.String()+":0")))
	echoTCP(t, g.in[0], g.in[0].Addr.String()+":4000")
	k.addTCP(g, "TCP from outside", g.out[1], false, netip.AddrPortFrom(g.outside(false), 4000))
	k.addUDP(g, "UDP from inside", g.in[0], g.out[1], netip.AddrPortFrom(g.out[1].Addr, 5000), netip.AddrPortFrom(g.out[1].Addr, 5000))
	k.goOn("with tapgate")
	for range 2 {
		nft(t, g.gateway, recipe)
		g.apply(gateZones)
		k.goOn("only copying")
		if n := g.readAccount().number("flows"); n != 0 {
			t.Errorf("%d flows are left in the table though nothing is translated", n)
		}
		r := g.tapgateIn(cutOver, "apply", "-f", "-", "--cut-over")
		if r.code != 0 || !strings.Contains(r.stdout, "took over 3 connections") || strings.Contains(r.stderr, "could not be taken over") {
			t.Errorf("tapgate apply: %s", r)
		}
		inHost(t, g.Gateway, "nft", "delete", "table", "inet", "recipe")
		k.goOn("with tapgate again")
		for _, f := range g.flows(g.in[0].Addr) {
			if f.Proto == "tcp" && !f.FromOutside {
				t.Errorf("a connection from outside is shown as from inside: %+v", f)
			}
		}
	}
}
