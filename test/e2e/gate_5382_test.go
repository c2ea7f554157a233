package e2e

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/gateclock"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

func rows5382() []rfcRow {
	return []rfcRow{
		{id: "5382-1", try: sameMappingTCP},
		{id: "5382-2", try: everySequence},
		{id: "5382-3", try: filtering(pkt.ProtoTCP)},
		{id: "5382-4", try: silentSYN},
		{id: "5382-5", own: true, try: lifeOfTCP},
		{id: "5382-7", try: noOverload(pkt.ProtoTCP)},
		{id: "5382-8", try: hairpinTCP},
		{id: "5382-9", try: errorsOfTCP},
	}
}

// REQ-1: endpoint-independent mapping for TCP.
func sameMappingTCP(g *gate) {
	g.families(func(g *gate, v6 bool) {
		from := netip.AddrPortFrom(addrOf(g.in[0], v6), 4001)
		var seen []netip.AddrPort
		for _, h := range []*lab.Host{g.out[0], g.out[0], g.out[1]} {
			at, accepted := g.listen(h, netip.AddrPortFrom(addrOf(h, v6), 0))
			c, err := g.dial(g.in[0], from, at)
			if err != nil {
				g.t.Fatal(err)
			}
			far := g.take(accepted)
			g.converse(c, far)
			seen = append(seen, far.RemoteAddr().(*net.TCPAddr).AddrPort())
		}
		sameFrom(g.t, "TCP", seen...)
	})
}

// REQ-2: every sequence that TCP knows.
func everySequence(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		g.t.Run("half closed", func(t *testing.T) {
			g := g.with(t)
			s := g.connect(in, 5000, out, 9000, v6)
			s.talk()
			s.outward(pkt.ACK|pkt.FIN, "")
			for range 3 {
				s.inward(pkt.ACK|pkt.PSH, g.text())
				s.outward(pkt.ACK, "")
			}
			s.inward(pkt.ACK|pkt.FIN, "")
			s.outward(pkt.ACK, "")
		})
		g.t.Run("simultaneous open", func(t *testing.T) {
			g := g.with(t)
			s := g.newStream(in, 5001, out, 9001, v6)
			s.outward(pkt.SYN, "")
			s.ouSeq--
			s.inward(pkt.SYN, "") // crossed: acknowledges nothing yet
			s.inSeq--
			s.outward(pkt.SYN|pkt.ACK, "")
			s.ouSeq--
			s.inward(pkt.SYN|pkt.ACK, "")
			s.talk()
			s.shut()
		})
		g.t.Run("simultaneous close", func(t *testing.T) {
			g := g.with(t)
			s := g.connect(in, 5002, out, 9002, v6)
			one, two := s.sendOut(pkt.ACK|pkt.FIN, ""), s.sendIn(pkt.ACK|pkt.FIN, "")
			out.want("FIN", sameSegment(one))
			in.want("FIN", sameSegment(two))
			s.outward(pkt.ACK, "")
			s.inward(pkt.ACK, "")
		})
		g.t.Run("SYN with data, sent twice", func(t *testing.T) {
			g := g.with(t)
			s := g.newStream(in, 5003, out, 9003, v6)
			text := g.text()
			s.outward(pkt.SYN, text)
			s.inSeq -= uint32(len(text)) + 1
			s.outward(pkt.SYN, text)
			s.inward(pkt.SYN|pkt.ACK, g.text())
			s.outward(pkt.ACK, "")
			s.talk()
		})
		g.t.Run("same ports again", func(t *testing.T) {
			g := g.with(t)
			for range 3 {
				s := g.connect(in, 5004, out, 9004, v6)
				s.talk()
				s.shut()
			}
		})
		g.t.Run("refused", func(t *testing.T) {
			g := g.with(t)
			s := g.newStream(in, 5005, out, 9005, v6)
			s.outward(pkt.SYN, "")
			s.inward(pkt.RST|pkt.ACK, "")
			s = g.connect(in, 5005, out, 9005, v6)
			s.talk()
		})
	})
}

// REQ-4: a SYN that nobody has asked for is not answered for six seconds at least,
// so that the connection which the inside opens meanwhile comes about.
func silentSYN(g *gate) {
	in, mapped, out := g.station(atInside, 0), g.station(atInside, 1), g.station(atOutside, 0)
	other := g.station(atOutside, 1)
	ext := g.mapAny(pkt.ProtoTCP, mapped, 5000, other, 9000, false)
	// To a mapping that does not admit it, being a bit early, and to ports of each
	// kind that nobody has.
	for i, to := range []netip.AddrPort{ext, netip.AddrPortFrom(ext.Addr(), 65535), netip.AddrPortFrom(ext.Addr(), 40000), netip.AddrPortFrom(ext.Addr(), 500)} {
		out.tcp(uint16(9100+i), to, pkt.SYN, 5, 0, "")
	}
	g.fence(out, in)
	crossed := g.newStream(mapped, 5000, out, 9100, false)
	crossed.outward(pkt.SYN, "")
	if crossed.ext != ext {
		g.t.Errorf("the mapping was %s and is %s", ext, crossed.ext)
	}
	crossed.ouSeq = 5
	crossed.inSeq--
	crossed.inward(pkt.SYN, "")
	out.quietFor(6*time.Second, "an answer to its SYN", func(p *pkt.Parsed) bool {
		return p.Proto == pkt.ProtoTCP && p.Flags&pkt.RST != 0 || p.Error()
	})
}

// REQ-5: idle connections live for 7440 s, half-open and closed ones for 240 s.
func lifeOfTCP(g *gate) {
	g = g.fresh(gateBoth)
	in, out := g.pair()
	flow := func(port uint16) loader.Flow {
		g.t.Helper()
		return g.flowOf("tcp", in.at(false, port), out.at(false, 9000))
	}
	half := g.newStream(in, 5000, out, 9000, false)
	half.outward(pkt.SYN, "")
	g.expiresAtLeast(flow(5000), 240*time.Second)
	s := g.connect(in, 5001, out, 9000, false)
	s.talk()
	g.expiresAtLeast(flow(5001), 7440*time.Second)
	ended := g.connect(in, 5002, out, 9000, false)
	ended.shut()
	g.expiresAtLeast(flow(5002), 240*time.Second)
	// The timer that runs out is the one that was told.
	const established = 200 * time.Second
	g.clock(func(c *gateclock.Clock) error { return c.SetTimer(gateclock.TCPEstablished, established) })
	g.pass(established-20*time.Second, in.Addr)
	s.talk()
	half.inward(pkt.SYN|pkt.ACK, "")
	half.outward(pkt.ACK, "")
	half.talk()
	g.pass(established+time.Second, in.Addr)
	g.expire(in.Addr)
	g.refused(sameSegment(s.sendIn(pkt.ACK|pkt.PSH, g.text())), out, in)
	// And it can be configured, not below the floor.
	longer := gateBoth + "  timeouts: {tcp_established: 3h, tcp_opening: 300s, tcp_closing: 300s, udp: 400s, udp_unanswered: 200s, icmp: 90s}\n"
	g.apply(longer)
	s = g.connect(in, 5003, out, 9000, false)
	g.expiresAtLeast(flow(5003), 3*time.Hour)
	if r := g.tapgateIn(gateBoth+"  timeouts: {tcp_established: 7439s}\n", "apply", "-f", "-"); r.code != 2 {
		g.t.Errorf("a timer below that of the RFC: %s", r)
	}
	s.talk()
}

// expire has what has run out leave the table: two rounds, a second apart.
func (g *gate) expire(hosts ...netip.Addr) {
	g.t.Helper()
	g.sweep()
	g.pass(2*time.Second, hosts...)
	g.sweep()
}

// REQ-8: hairpinning for TCP.
func hairpinTCP(g *gate) {
	g.families(func(g *gate, v6 bool) {
		a, b, out := g.station(atInside, 0), g.station(atOpen, 1), g.station(atOutside, 0)
		extB := g.mapAny(pkt.ProtoTCP, b, 5001, out, 9000, v6)
		sent := a.tcp(5000, extB, pkt.SYN, 1, 0, "")
		syn := b.want("SYN", func(p *pkt.Parsed) bool { return p.Proto == pkt.ProtoTCP && p.Flags == pkt.SYN })
		if syn.Src.Addr() != g.outside(v6) || syn.Dst != b.at(v6, 5001) || syn.Seq != sent.Seq {
			g.t.Errorf("arrived as %s", syn)
		}
		b.tcp(5001, syn.Src, pkt.SYN|pkt.ACK, 7, 2, "")
		if got := a.want("SYN ACK", func(p *pkt.Parsed) bool { return p.Flags == pkt.SYN|pkt.ACK }); got.Src != extB || got.Dst != a.at(v6, 5000) {
			g.t.Errorf("answered as %s", got)
		}
		text := g.text()
		a.tcp(5000, extB, pkt.ACK|pkt.PSH, 2, 8, text)
		b.wantText(text)
		text = g.text()
		b.tcp(5001, syn.Src, pkt.ACK|pkt.PSH, 8, 2, text)
		a.wantText(text)
		if ext := g.mapAny(pkt.ProtoTCP, a, 5000, out, 9000, v6); ext != syn.Src {
			g.t.Errorf("the host inside saw %s, hosts outside see %s", syn.Src, ext)
		}
	})
}

// REQ-9: errors about TCP segments are translated, both ways.
func errorsOfTCP(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out, router := g.station(atInside, 0), g.station(atOutside, 0), g.station(atOutside, 1)
		s := g.connect(in, 5000, out, 9000, v6)
		sent := s.sendOut(pkt.ACK|pkt.PSH, g.text())
		got := out.want(sent.String(), sameSegment(sent))
		kind, code := tooBigKind(v6)
		router.complain(s.ext.Addr(), kind, code, 1280, got, 20)
		told := in.wantError(kind, code)
		g.aboutOwn(told, sent)
		if told.Rest != 1280 {
			g.t.Errorf("the way takes %d, not 1280", told.Rest)
		}
		sent = s.sendIn(pkt.ACK|pkt.PSH, g.text())
		got = in.want(sent.String(), sameSegment(sent))
		in.complain(out.ip(v6), kind, code, 1290, got, 8)
		told = out.wantError(kind, code)
		g.aboutOwn(told, sent)
		if told.Rest != 1290 || told.Src.Addr() != g.outside(v6) {
			g.t.Errorf("told %s", told)
		}
		s.talk()
	})
}
