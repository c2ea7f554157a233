package e2e

import (
	"context"
	bin "encoding/binary"
	"net/netip"
	"time"

	"github.com/gopacket/gopacket"

	pkt "tapgate/test/packet"
)

func rows5508() []rfcRow {
	return []rfcRow{
		{id: "5508-1", try: queries},
		{id: "5508-2+7857-ICMP-timeout", try: lifeOfQuery},
		{id: "5508-3", try: badErrors},
		{id: "5508-4", try: errorsIn},
		{id: "5508-5", own: true, try: errorsOut},
		{id: "5508-6", try: errorsRefreshNothing},
		{id: "5508-7+7857-ICMP-hairpin", try: hairpinErrors},
		{id: "5508-8+6888-11", own: true, try: exhaustion},
		{id: "5508-10", try: traceroute},
		{id: "5508-11", try: otherICMP},
	}
}

// REQ-1: queries; 1a: the id outside does not depend on the destination.
func queries(g *gate) {
	g.families(func(g *gate, v6 bool) {
		for i, h := range g.in {
			ctx, cancel := context.WithTimeout(g.Context(), gateWait)
			n, err := h.Ping(ctx, addrOf(g.out[i], v6), 3)
			cancel()
			if err != nil || n != 3 {
				g.t.Fatalf("%d of 3 pings answered, %v", n, err)
			}
		}
		a, b := g.station(atInside, 0), g.station(atInside, 1)
		x, y := g.station(atOutside, 0), g.station(atOutside, 1)
		ext, idA := g.mapQuery(a, 77, x, v6)
		_, again := g.mapQuery(a, 77, y, v6)
		_, idB := g.mapQuery(b, 77, x, v6)
		if idA == idB {
			g.t.Errorf("two hosts share the id %d", idA)
		}
		if idA != again {
			g.t.Errorf("one host has the ids %d and %d", idA, again)
		}
		g.answerQuery(x, ext, idA, a, 77)
		g.answerQuery(y, ext, again, a, 77)
		g.answerQuery(x, ext, idB, b, 77)
	})
}

// REQ-2: a query lives for a minute.
func lifeOfQuery(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		ext, id := g.mapQuery(in, 77, out, v6)
		g.pass(59*time.Second, in.ip(v6))
		g.answerQuery(out, ext, id, in, 77)
		name := "icmp"
		if v6 {
			name = "icmpv6"
		}
		g.expiresAtLeast(g.flowOf(name, in.at(v6, 77), out.at(v6, 0)), 60*time.Second)
		g.pass(61*time.Second, in.ip(v6))
		g.expire(in.ip(v6))
		text := g.text()
		out.query(true, id, ext, text)
		g.refused(func(p *pkt.Parsed) bool { return string(p.Payload) == text }, out, in)
	})
}

// REQ-3: errors with a wrong checksum of their own, or of the quoted IP header, are
// dropped; quoted options are passed over, the quoted transport checksum is not
// looked at, and extensions (RFC 4884) belong to the sum.
func badErrors(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		in.lax = true
		text := g.text()
		sent := in.udp(5000, out.at(v6, 9000), text)
		got := out.wantText(text)
		kind, code := unreachable(v6)
		build := func(change func(quote []byte) []byte) []byte {
			quote := change(append([]byte{}, got.IP...))
			return out.frame(got.Src.Addr(), pkt.Control(v6, kind, code, 0, quote)...)
		}
		same := func(q []byte) []byte { return q }
		isError := func(p *pkt.Parsed) bool { return p.Error() && p.Inner.Dst == out.at(v6, 9000) }

		frame := build(same)
		frame[14+got.L4+2] ^= 0x55 // its own checksum
		out.raw(frame)
		if !v6 {
			out.raw(build(func(q []byte) []byte { q[10] ^= 0x55; return q }))
		}
		g.refused(isError, out, in)

		for what, change := range map[string]func([]byte) []byte{
			"8 bytes":              func(q []byte) []byte { return q[:got.L4+8] },
			"wrong quoted UDP sum": func(q []byte) []byte { q[got.L4+6] ^= 0x55; return q },
			"extensions": func(q []byte) []byte {
				q = append(q, make([]byte, 128-len(q)%128)...)
				return append(q, 0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4)
			},
		} {
			out.raw(build(change))
			told := in.wantError(kind, code)
			if told.Inner.Src != in.at(v6, 5000) || told.Inner.Dst != out.at(v6, 9000) {
				g.t.Errorf("%s: told %s", what, told)
			}
			if what == "8 bytes" {
				g.aboutOwn(told, sent)
			}
		}
		if v6 {
			return
		}
		out.raw(build(func(q []byte) []byte { // two words of NOP, as if a router had put them there
			q = append(q[:20:20], append([]byte{1, 1, 1, 1, 1, 1, 1, 0}, q[20:]...)...)
			q[0] = 0x47
			q[3] += 8
			q[10], q[11] = 0, 0
			bin.BigEndian.PutUint16(q[10:], ^sum(0, q[:28]))
			return q
		}))
		if told := in.wantError(kind, code); told.Inner.Src != in.at(v6, 5000) || told.Inner.L4 != 28 {
			g.t.Errorf("with options: told %s", told)
		}
	})
}

// aboutQuery is a packet of each kind from inside, as sent and as it arrived.
func (g *gate) aboutEach(in, out *peer, v6 bool) (all [][2]*pkt.Parsed) {
	g.t.Helper()
	text := g.text()
	sent := in.udp(5000, out.at(v6, 9000), text)
	all = append(all, [2]*pkt.Parsed{sent, out.wantText(text)})
	s := g.newStream(in, 5000, out, 9000, v6)
	sent = s.sendOut(pkt.SYN, "")
	all = append(all, [2]*pkt.Parsed{sent, out.want("SYN", sameSegment(sent))})
	text = g.text()
	sent = in.query(false, 77, out.ip(v6), text)
	return append(all, [2]*pkt.Parsed{sent, out.wantText(text)})
}

// errorKinds are the errors that are forwarded.
func errorKinds(v6 bool) [][2]uint8 {
	if v6 {
		return [][2]uint8{{1, 0}, {1, 1}, {1, 3}, {1, 4}, {2, 0}, {3, 0}, {3, 1}, {4, 0}, {4, 1}}
	}
	return [][2]uint8{{3, 0}, {3, 1}, {3, 2}, {3, 3}, {3, 4}, {3, 13}, {11, 0}, {11, 1}, {12, 0}}
}

// REQ-4: an error from outside reaches the host whose packet it is about, with
// that packet as the host has sent it; without a mapping it is dropped.
func errorsIn(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out, router := g.station(atInside, 0), g.station(atOutside, 0), g.station(atOutside, 1)
		for _, p := range g.aboutEach(in, out, v6) {
			sent, got := p[0], p[1]
			for _, k := range errorKinds(v6) {
				router.complain(got.Src.Addr(), k[0], k[1], 1280, got, 28)
				told := in.wantError(k[0], k[1])
				g.aboutOwn(told, sent)
				if told.Src.Addr() != router.ip(v6) || told.Rest != 1280 {
					g.t.Errorf("told %s, not by the router or not the same", told)
				}
			}
		}
		// About a packet that nobody has sent: another port, another remote.
		text := g.text()
		in.udp(5000, out.at(v6, 9000), text)
		got := out.wantText(text)
		for _, change := range []int{got.L4, got.L4 + 2} {
			quote := *got
			quote.IP = append([]byte{}, got.IP...)
			quote.IP[change+1] ^= 0x11
			router.complain(got.Src.Addr(), 3, 1, 666, &quote, 8)
			router.complain(got.Src.Addr(), 1, 1, 666, &quote, 8)
		}
		g.refused(func(p *pkt.Parsed) bool { return p.Error() && p.Rest == 666 }, router, in)
	})
}

// gateForward has a forward to the station .200 of each protocol, and IPv6's.
const gateForward = gateBoth + `
  forwards:
    - {name: udp, in: external, proto: udp, port: 4000, to: "192.168.3.200:4001"}
    - {name: tcp, in: external, proto: tcp, port: 4000, to: "192.168.3.200:4001"}
    - {name: udp6, in: external, proto: udp, port: 4000, to: "[2001:db8:3::c8]:4001"}
    - {name: tcp6, in: external, proto: tcp, port: 4000, to: "[2001:db8:3::c8]:4001"}
`

// REQ-5: an error from inside comes from the outside address and is about the
// packet as the remote has sent it, through mappings and through forwards.
func errorsOut(g *gate) {
	g = g.fresh(gateForward)
	server, out := g.stationAt(g.in[1], 200), g.station(atOutside, 0)
	g.families(func(g *gate, v6 bool) {
		in := g.station(atInside, 0)
		ext := g.mapUDP(in, 5000, out, 9000, v6)
		front := netip.AddrPortFrom(g.outside(v6), 4000)
		for _, way := range []struct {
			host *peer
			to   netip.AddrPort
		}{{in, ext}, {server, front}} {
			for _, k := range errorKinds(v6) {
				text := g.text()
				sent := out.udp(9000, way.to, text)
				got := way.host.wantText(text)
				way.host.complain(out.ip(v6), k[0], k[1], 1280, got, 28)
				told := out.wantError(k[0], k[1])
				g.aboutOwn(told, sent)
				if told.Src.Addr() != g.outside(v6) {
					g.t.Errorf("the error comes from %s", told.Src)
				}
			}
		}
		sent := out.tcp(9000, front, pkt.SYN, 5, 0, "")
		got := server.want("SYN", sameSegment(sent))
		kind, code := unreachable(v6)
		server.complain(out.ip(v6), kind, code, 0, got, 8)
		g.aboutOwn(out.want("an error about TCP", func(p *pkt.Parsed) bool { return p.Error() && p.Inner.Proto == pkt.ProtoTCP }), sent)
		// One from a router inside about a host behind it.
		text := g.text()
		sent = out.udp(9000, front, text)
		got = server.wantText(text)
		in.complain(out.ip(v6), kind, code, 99, got, 8)
		told := out.want("an error of a router inside", func(p *pkt.Parsed) bool { return p.Error() && p.Rest == 99 })
		g.aboutOwn(told, sent)
		if told.Src.Addr() != g.outside(v6) {
			g.t.Errorf("a router inside was seen outside: %s", told)
		}
	})
}

// REQ-6: an error about a query neither ends it nor keeps it.
func errorsRefreshNothing(g *gate) {
	in, out := g.pair()
	text := g.text()
	in.query(false, 77, out.Addr, text)
	got := out.wantText(text)
	g.pass(40*time.Second, in.Addr)
	before := g.flowOf("icmp", in.at(false, 77), out.at(false, 0)).ExpiresIn
	out.complain(got.Src.Addr(), 3, 1, 0, got, 8)
	in.wantError(3, 1)
	if after := g.flowOf("icmp", in.at(false, 77), out.at(false, 0)).ExpiresIn; after > before {
		g.t.Errorf("expired in %v s, and after an error in %v s", before, after)
	}
	g.answerQuery(out, got.Src.Addr(), got.Echo, in, 77)
}

// REQ-7: errors about hairpinned packets.
func hairpinErrors(g *gate) {
	g.families(func(g *gate, v6 bool) {
		a, b, out := g.station(atInside, 0), g.station(atOpen, 1), g.station(atOutside, 0)
		extB := g.mapUDP(b, 5001, out, 9000, v6)
		text := g.text()
		sent := a.udp(5000, extB, text)
		got := b.wantText(text)
		kind, code := unreachable(v6)
		b.complain(got.Src.Addr(), kind, code, 0, got, 8)
		told := a.wantError(kind, code)
		g.aboutOwn(told, sent)
		if told.Src.Addr() != g.outside(v6) {
			g.t.Errorf("%s, want it from the outside address", told)
		}
		// The gateway answers for its own address.
		ctx, cancel := context.WithTimeout(g.Context(), gateWait)
		defer cancel()
		if n, err := g.in[0].Ping(ctx, g.outside(v6), 2); err != nil || n != 2 {
			g.t.Errorf("%d of 2 pings of the outside address answered, %v", n, err)
		}
	})
}

// REQ-10: traceroute by UDP and by ICMP: the gateway itself, and routers behind it.
func traceroute(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out, router := g.station(atInside, 0), g.station(atOutside, 0), g.station(atOutside, 1)
		kind := uint8(11)
		if v6 {
			kind = 3
		}
		for _, l := range [][]pkt.Layer{
			{pkt.UDP(5000, 33434), gopacket.Payload(g.text())},
			pkt.Query(v6, false, 77, 1, g.text()),
		} {
			sent := in.raw(lastHop(in.frame(out.ip(v6), l...)))
			told := in.wantError(kind, 0)
			g.aboutOwn(told, sent)
			if gw := g.Gateway.Interface("eth3"); told.Src.Addr() != gw.Addr.Addr() && told.Src.Addr() != gw.Addr6.Addr() {
				g.t.Errorf("the first hop is %s", told.Src)
			}
			text := string(sent.Payload)
			sent = in.send(out.ip(v6), l...)
			got := out.wantText(text)
			router.complain(got.Src.Addr(), kind, 0, 0, got, 28)
			told = in.wantError(kind, 0)
			g.aboutOwn(told, sent)
			if told.Src.Addr() != router.ip(v6) {
				g.t.Errorf("the second hop is %s", told.Src)
			}
		}
	})
}

// REQ-11: what is no query and no error of those is not forwarded.
func otherICMP(g *gate) {
	in, out := g.pair()
	text := g.text()
	in.udp(5000, out.at(false, 9000), text)
	got := out.wantText(text)
	for _, kind := range []uint8{4, 5, 9, 10} { // source quench, redirect, router discovery
		out.complain(got.Src.Addr(), kind, 0, 4711, got, 8)
	}
	g.refused(func(p *pkt.Parsed) bool { return p.Proto == pkt.ProtoICMP && p.Rest == 4711 }, out, in)
	in.complain(out.Addr, 5, 0, 4711, got, 8)
	out.never(func(p *pkt.Parsed) bool { return p.Proto == pkt.ProtoICMP && p.Rest == 4711 }, in)
}
