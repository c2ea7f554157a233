package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapgate/test/kernels"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

func rows4787() []rfcRow {
	return []rfcRow{
		{id: "4787-1", try: sameMapping},
		{id: "4787-2+6888-2+6888-3", own: true, try: pairedPool},
		{id: "4787-3", try: noOverload(pkt.ProtoUDP)},
		{id: "4787-3a", try: portClass},
		{id: "4787-4+7857-parity", try: parity},
		{id: "4787-5", try: lifeOfUDP},
		{id: "4787-6", try: refreshUDP},
		{id: "4787-7", own: true, try: overlapTold},
		{id: "4787-8+6888-7+7857-EIF", try: filtering(pkt.ProtoUDP)},
		{id: "4787-9", try: hairpinUDP},
		{id: "4787-10+5382-6", try: noALG},
		{id: "4787-11", own: true, try: sameUnderLoad},
		{id: "4787-12+5382-10", try: errorsKillNothing},
		{id: "4787-13", own: true, try: tooBig},
		{id: "4787-14", try: fragmentsAnyOrder},
	}
}

// REQ-1: one inside endpoint has one outside endpoint, whatever the destination.
func sameMapping(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in := g.udpSocket(g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 0))
		var seen []netip.AddrPort
		for i, h := range []*lab.Host{g.out[0], g.out[0], g.out[1]} {
			out := g.udpSocket(h, netip.AddrPortFrom(addrOf(h, v6), 0))
			to := out.LocalAddr().(*net.UDPAddr).AddrPort()
			text := g.text()
			g.sendTo(in, to, text)
			from := g.receive(out, text)
			seen = append(seen, from)
			text = g.text()
			g.sendTo(out, from, text)
			if back := g.receive(in, text); back != to {
				g.t.Errorf("the answer of remote %d came from %s, not %s", i, back, to)
			}
		}
		// A second address of the same host outside.
		sender, third := g.station(atInside, 0), []*peer{g.station(atOutside, 0), g.station(atOutside, 0), g.station(atOutside, 1)}
		var of []netip.AddrPort
		for i, out := range third {
			of = append(of, g.mapUDP(sender, 5000, out, uint16(7000+i), v6))
		}
		sameFrom(g.t, "socket", seen...)
		sameFrom(g.t, "station", of...)
		if seen[0].Addr() != g.outside(v6) || of[0].Addr() != g.outside(v6) {
			g.t.Errorf("came from %s and %s, not from the gateway", seen[0], of[0])
		}
	})
}

// mapAny maps an endpoint by UDP or a TCP SYN.
func (g *gate) mapAny(proto uint8, in *peer, port uint16, out *peer, outPort uint16, v6 bool) netip.AddrPort {
	g.t.Helper()
	if proto == pkt.ProtoUDP {
		return g.mapUDP(in, port, out, outPort, v6)
	}
	s := g.newStream(in, port, out, outPort, v6)
	s.outward(pkt.SYN, "")
	return s.ext
}

// REQ-3, and RFC 5382 REQ-7: two inside endpoints never share an outside one.
func noOverload(proto uint8) func(*gate) {
	return func(g *gate) {
		g.families(func(g *gate, v6 bool) {
			a, b := g.station(atInside, 0), g.station(atInside, 1)
			out := g.station(atOutside, 0)
			owner := map[netip.AddrPort]string{}
			for _, in := range []*peer{a, b} {
				for i := range uint16(20) {
					ext := g.mapAny(proto, in, 5000+i, out, 9000, v6)
					if was, taken := owner[ext]; taken {
						g.t.Errorf("%s is the outside endpoint of %s and of %s", ext, was, in.at(v6, 5000+i))
					}
					owner[ext] = in.at(v6, 5000+i).String()
				}
			}
			if proto != pkt.ProtoUDP {
				return
			}
			for _, in := range []*peer{a, b} {
				g.answerUDP(out, 9000, g.mapUDP(in, 5000, out, 9000, v6), in, 5000)
			}
		})
	}
}

// REQ-3a: ports below 1024 stay below, others stay above.
func portClass(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
			for _, port := range []uint16{1, 500, 1023, 1024, 5000, 65535} {
				if ext := g.mapAny(proto, in, port, out, 9000, v6); (ext.Port() < 1024) != (port < 1024) {
					g.t.Errorf("protocol %d: port %d became %d", proto, port, ext.Port())
				}
			}
		}
	})
}

// REQ-4, recommended: even ports stay even, odd ones odd, as long as there are any.
func parity(g *gate) {
	in, out := g.pair()
	for port := range uint16(20) {
		if ext := g.mapUDP(in, 5000+port, out, 9000, false); ext.Port()%2 != port%2 {
			g.t.Errorf("port %d became %d", 5000+port, ext.Port())
		}
	}
}

// REQ-5: a mapping lives for two minutes, and five once it was answered; then it ends.
func lifeOfUDP(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		ext := g.mapUDP(in, 5000, out, 9000, v6)
		g.expiresAtLeast(g.flowOf("udp", in.at(v6, 5000), out.at(v6, 9000)), 120*time.Second)
		g.pass(119*time.Second, in.ip(v6))
		g.answerUDP(out, 9000, ext, in, 5000)
		g.expiresAtLeast(g.flowOf("udp", in.at(v6, 5000), out.at(v6, 9000)), 300*time.Second)
		g.pass(299*time.Second, in.ip(v6))
		g.answerUDP(out, 9000, ext, in, 5000)
		g.pass(301*time.Second, in.ip(v6))
		g.expire(in.ip(v6))
		g.refusedUDP(out, 9000, ext, in)
	})
}

// REQ-6: what goes out keeps the mapping alive.
func refreshUDP(g *gate) {
	in, out := g.pair()
	ext := g.mapUDP(in, 5000, out, 9000, false)
	g.answerUDP(out, 9000, ext, in, 5000)
	for range 3 {
		g.pass(290*time.Second, in.Addr)
		if again := g.mapUDP(in, 5000, out, 9000, false); again != ext {
			g.t.Errorf("the mapping was %s and is %s", ext, again)
		}
	}
	g.pass(290*time.Second, in.Addr)
	g.answerUDP(out, 9000, ext, in, 5000)
}

// REQ-8, and RFC 5382 REQ-3: address-dependent filtering, or endpoint-independent
// where the configuration says so.
func filtering(proto uint8) func(*gate) {
	return func(g *gate) {
		g.families(func(g *gate, v6 bool) {
			for _, where := range []int{atInside, atOpen} {
				in, known, stranger := g.station(where, 0), g.station(atOutside, 0), g.station(atOutside, 1)
				ext := g.mapAny(proto, in, 5000, known, 9000, v6)
				try := func(out *peer, port uint16, may bool) {
					g.t.Helper()
					if proto == pkt.ProtoUDP && may {
						g.answerUDP(out, port, ext, in, 5000)
						return
					} else if proto == pkt.ProtoUDP {
						g.refusedUDP(out, port, ext, in)
						return
					}
					s := g.newStream(in, 5000, out, port, v6)
					s.ext = ext
					if may {
						s.inward(pkt.SYN, "")
						s.outward(pkt.SYN|pkt.ACK, "")
						s.talk()
						return
					}
					is := sameSegment(s.sendIn(pkt.SYN, ""))
					g.refused(func(p *pkt.Parsed) bool { return p.Src == s.b && is(p) }, out, in)
				}
				try(known, 9001, true)
				try(stranger, 9000, where == atOpen)
			}
		})
	}
}

// REQ-9: hosts inside reach each other by their outside endpoints, and see each
// other's outside endpoints (9a).
func hairpinUDP(g *gate) {
	g.families(func(g *gate, v6 bool) {
		a, b, out := g.station(atInside, 0), g.station(atInside, 1), g.station(atOutside, 0)
		extA, extB := g.mapUDP(a, 5000, out, 9000, v6), g.mapUDP(b, 5001, out, 9000, v6)
		text := g.text()
		b.udp(5001, extA, text)
		if got := a.wantText(text); got.Src != extB || got.Dst != a.at(v6, 5000) {
			g.t.Errorf("arrived as %s, want it from %s", got, extB)
		}
		text = g.text()
		sent := a.udp(5000, extB, text)
		got := b.wantText(text)
		if got.Src != extA || got.Dst != b.at(v6, 5001) {
			g.t.Errorf("arrived as %s, want it from %s", got, extA)
		}
		if got.TTL != sent.TTL-1 {
			g.t.Errorf("TTL %d became %d", sent.TTL, got.TTL)
		}
		// From an endpoint that had no mapping, and to oneself.
		open := g.station(atOpen, 1)
		extO := g.mapUDP(open, 5002, out, 9000, v6)
		for _, from := range []*peer{a, open} {
			text = g.text()
			from.udp(5003, extO, text)
			if got := open.wantText(text); got.Src.Addr() != g.outside(v6) || got.Dst != open.at(v6, 5002) {
				g.t.Errorf("arrived as %s", got)
			}
		}
		// By sockets, whose checksums are left to the hardware.
		x, y := g.udpSocket(g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 0)), g.udpSocket(g.in[1], netip.AddrPortFrom(addrOf(g.in[1], v6), 0))
		extX, extY := g.mapSocket(x, out, v6), g.mapSocket(y, out, v6)
		for _, size := range []int{10, 1400, 4000} {
			text := g.text() + strings.Repeat("x", size)
			g.sendTo(y, extX, text)
			if from := g.receive(x, text); from != extY {
				g.t.Errorf("came from %s, not from %s", from, extY)
			}
			g.sendTo(x, extY, text)
			if from := g.receive(y, text); from != extX {
				g.t.Errorf("came from %s, not from %s", from, extX)
			}
		}
	})
}

// REQ-10, and RFC 5382 REQ-6: nothing is changed behind the transport header.
func noALG(g *gate) {
	in, out := g.pair()
	sip := "REGISTER sip:x SIP/2.0\r\nVia: SIP/2.0/UDP " + in.at(false, 5060).String() + "\r\nContact: <sip:a@" + in.at(false, 5060).String() + ">\r\n" + g.text()
	in.udp(5060, out.at(false, 5060), sip)
	out.wantText(sip)
	ftp := g.connect(in, 5000, out, 21, false)
	ftp.outward(pkt.ACK|pkt.PSH, fmt.Sprintf("PORT %s,19,137\r\n", strings.ReplaceAll(in.Addr.String(), ".", ",")))
	ftp.inward(pkt.ACK|pkt.PSH, "227 Entering Passive Mode (192,168,3,2,19,137)\r\n")
	ftp.talk()
}

// REQ-12, and RFC 5382 REQ-10: no ICMP message ends a mapping, whoever sends it.
func errorsKillNothing(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out, router := g.station(atInside, 0), g.station(atOutside, 0), g.station(atOutside, 1)
		ext := g.mapUDP(in, 5000, out, 9000, v6)
		tcp := g.connect(in, 5000, out, 9000, v6)
		_, id := g.mapQuery(in, 77, out, v6)
		about := in.udp(5000, out.at(v6, 9000), g.text())
		got := out.wantText(string(about.Payload))
		segment := tcp.outward(pkt.ACK|pkt.PSH, g.text())
		last := 40
		if v6 {
			last = 132
		}
		for kind := range last {
			if v6 && kind > 4 && kind < 128 {
				continue
			}
			for _, from := range []*peer{out, router} {
				for _, quoted := range []*pkt.Parsed{got, segment} {
					from.complain(ext.Addr(), uint8(kind), 0, 0, quoted, 8)
					from.complain(ext.Addr(), uint8(kind), 3, 1400, quoted, 8)
				}
			}
		}
		g.fence(out, router, in)
		g.answerUDP(out, 9000, ext, in, 5000)
		if again := g.mapUDP(in, 5000, out, 9000, v6); again != ext {
			g.t.Errorf("the mapping was %s and is %s", ext, again)
		}
		tcp.talk()
		g.answerQuery(out, ext.Addr(), id, in, 77)
		// 12a, 12b: what is forwarded is so whoever sent it.
		kind, code := unreachable(v6)
		router.complain(ext.Addr(), kind, code, 0, got, 8)
		in.want("an error of a router on the way", func(p *pkt.Parsed) bool {
			return p.Error() && p.Type == kind && p.Code == code && p.Src.Addr() == router.ip(v6)
		})
	})
}

// REQ-14: a datagram in pieces, in order and reversed, both ways. More of this is
// in gate_fragments_test.go, floods of fragments (14a) too.
func fragmentsAnyOrder(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in := g.udpSocket(g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 0))
		out := g.udpSocket(g.out[0], netip.AddrPortFrom(addrOf(g.out[0], v6), 0))
		for _, size := range []int{1473, 4000, 20000} {
			text := g.text() + strings.Repeat("x", size)
			g.sendTo(in, out.LocalAddr().(*net.UDPAddr).AddrPort(), text)
			from := g.receive(out, text)
			g.sendTo(out, from, text)
			g.receive(in, text)
		}
		g.t.Run("reversed", func(t *testing.T) {
			kernels.Require(t, "netfilter_defrag")
			g := g.with(t)
			in, out := g.pair()
			for _, x := range fragExchanges(in, out, v6) {
				x.across(g, in, out, "reversed", fragOrders[0].of, fragOrders[0].of)
			}
		})
	})
}

// REQ-7: where networks outside and inside overlap it is told.
func overlapTold(g *gate) {
	g = g.freshLab()
	g.ip(g.Gateway, "addr add 192.168.3.130/25 dev eth0")
	if r := g.tapgateIn(gateBoth, "apply", "-f", "-"); r.code != 0 || !strings.Contains(r.stderr, "overlaps") {
		g.t.Errorf("an outside network within the internal one: %s", r)
	}
}

// REQ-11: nothing of this changes under load.
func sameUnderLoad(g *gate) {
	g = g.fresh(gateBoth)
	in, out := g.pair()
	before := g.mapUDP(in, 5000, out, 9000, false)
	const hosts, each = 4, 5000
	for range hosts {
		crowd := g.station(atInside, 1)
		for port := range uint16(each) {
			crowd.udp(10_000+port, out.at(false, 9000+port%7), "crowd")
		}
		crowd.knock()
	}
	out.knock()
	seen := []netip.AddrPort{before}
	for port := range uint16(20) {
		seen = append(seen, g.mapUDP(in, 5000, out, 9000+port, false))
	}
	sameFrom(g.t, "under load", seen...)
	owner := map[netip.AddrPort]netip.AddrPort{}
	frames := out.Frames()
	for _, f := range frames {
		if got, err := pkt.Parse(f.Data); err == nil && string(got.Payload) == "crowd" {
			owner[got.Src] = got.Dst
		}
	}
	if len(owner) < hosts*each*99/100 {
		g.t.Errorf("%d inside endpoints had %d outside endpoints among %d frames", hosts*each, len(owner), len(frames))
	}
	noOverload(pkt.ProtoUDP)(g)
}
