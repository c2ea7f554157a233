package e2e

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"

	pkt "tapgate/test/packet"
)

// REQ-13 of RFC 4787: what is too big for the way is told with the size that fits (DF), or cut
// in order. Both ways, through mappings and forwards, by sockets as well.
func tooBig(g *gate) {
	const mtu = 1300
	g = g.fresh(gateForward + `
    - {name: sink, in: external, proto: tcp, port: 4005, to: "192.168.3.2:4005"}
    - {name: sink6, in: external, proto: tcp, port: 4005, to: "[2001:db8:3::2]:4005"}
`)
	size := func(ifname string, mtu int) {
		if err := g.Gateway.SetMTU(ifname, mtu); err != nil {
			g.t.Fatal(err)
		}
	}
	size("eth0", mtu)
	g.t.Run("outward", func(t *testing.T) {
		g.with(t).families(func(g *gate, v6 bool) {
			g.tooBigOut(v6, mtu)
			at, accepted := g.listen(g.out[0], netip.AddrPortFrom(addrOf(g.out[0], v6), 0))
			g.pour(g.in[0], at, accepted)
		})
	})
	size("eth0", 1500)
	size("eth3", mtu)
	g.t.Run("inward", func(t *testing.T) {
		server := g.with(t).stationAt(g.in[1], 200)
		g.with(t).families(func(g *gate, v6 bool) {
			in, out := g.pair()
			g.tooBigIn(in, 5000, out, g.mapUDP(in, 5000, out, 9000, v6), mtu)
			g.tooBigIn(server, 4001, out, netip.AddrPortFrom(g.outside(v6), 4000), mtu)
			_, accepted := g.listen(g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 4005))
			g.pour(g.out[0], netip.AddrPortFrom(g.outside(v6), 4005), accepted)
		})
	})
}

// tooBigKind is what a router says, and which type.
func tooBigKind(v6 bool) (kind, code uint8) {
	if v6 {
		return 2, 0
	}
	return 3, 4
}

// tooBigOut is about a datagram that is too big for the external interface.
func (g *gate) tooBigOut(v6 bool, mtu uint32) {
	g.t.Helper()
	in, out := g.pair()
	g.mapUDP(in, 5000, out, 9000, v6)
	sent := in.raw(dontFragment(in.frame(out.ip(v6), pkt.UDP(5000, 9000), pkt.Payload(1400))))
	told := in.wantError(tooBigKind(v6))
	g.aboutOwn(told, sent)
	if told.Rest != mtu {
		g.t.Errorf("the way takes %d, not %d", told.Rest, mtu)
	}
	if v6 {
		return
	}
	sent = in.send(out.ip(v6), pkt.UDP(5000, 9000), pkt.Payload(1400))
	one := out.want("a first fragment", func(p *pkt.Parsed) bool { return p.More })
	two := out.want("the rest", func(p *pkt.Parsed) bool { return p.Offset > 0 })
	if one.Offset != 0 || two.More || one.ID != two.ID || one.Src.Addr() != two.Src.Addr() || one.Src.Addr() != g.outside(false) {
		g.t.Errorf("came in pieces as %s, %s", one, two)
	}
	if whole := string(one.Payload) + string(two.Payload); whole != string(sent.Payload) {
		g.t.Errorf("%d bytes arrived changed, as %d", len(sent.Payload), len(whole))
	}
}

// tooBigIn is about one from outside that is too big for the internal interface:
// the gateway's own kernel answers about a packet that was translated before, and
// its sender has to know it again.
func (g *gate) tooBigIn(in *peer, port uint16, out *peer, ext netip.AddrPort, mtu uint32) {
	g.t.Helper()
	v6 := ext.Addr().Is6()
	sent := out.raw(dontFragment(out.frame(ext.Addr(), pkt.UDP(9000, ext.Port()), pkt.Payload(1400))))
	told := out.wantError(tooBigKind(v6))
	g.aboutOwn(told, sent)
	if told.Src.Addr() != g.outside(v6) || told.Rest != mtu {
		g.t.Errorf("told %s, want it from %s and %d", told, g.outside(v6), mtu)
	}
	g.answerUDP(out, 9000, ext, in, port)
	// And of one that has to travel no further.
	sent = out.raw(lastHop(out.frame(ext.Addr(), pkt.UDP(9000, ext.Port()), gopacket.Payload("at its end"))))
	kind := uint8(11)
	if v6 {
		kind = 3
	}
	g.aboutOwn(out.wantError(kind, 0), sent)
}

// aboutOwn fails unless an ICMP error is about a packet as its receiver has sent
// it: addresses, ports and checksums as they were, but for the hops.
func (g *gate) aboutOwn(got, sent *pkt.Parsed) {
	g.t.Helper()
	in := got.Inner
	if got.Dst.Addr() != sent.Src.Addr() {
		g.t.Errorf("%s, want it to %s, who has sent that", got, sent.Src.Addr())
	}
	if in.Src != sent.Src || in.Dst != sent.Dst || in.Proto != sent.Proto || in.ID != sent.ID {
		g.t.Errorf("%s is about another packet than %s", got, sent)
		return
	}
	a, b := in.IP[in.L4:], sent.IP[sent.L4:]
	if n := min(len(a), len(b)); n < 8 || string(a[:n]) != string(b[:n]) {
		g.t.Errorf("%s quotes % x\nwhat was sent: % x", got, a[:n], b[:n])
	}
}

// dontFragment sets DF; IPv6 has it anyway.
func dontFragment(frame []byte) []byte {
	if frame[12] == 0x08 {
		frame[20] |= 0x40
		fixHeader(frame)
	}
	return frame
}

// lastHop makes a packet that a router must not send on.
func lastHop(frame []byte) []byte {
	if frame[12] == 0x86 {
		frame[21] = 1
		return frame
	}
	frame[22] = 1
	fixHeader(frame)
	return frame
}

// fixHeader computes the checksum of a frame's IPv4 header anew.
func fixHeader(frame []byte) {
	h := frame[14 : 14+int(frame[14]&15)*4]
	h[10], h[11] = 0, 0
	s := ^sum(0, h)
	h[10], h[11] = byte(s>>8), byte(s)
}
