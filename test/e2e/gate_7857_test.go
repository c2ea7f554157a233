package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"tapgate/loader"
	pkt "tapgate/test/packet"
)

func rows7857() []rfcRow {
	return []rfcRow{
		{id: "7857-tracking", own: true, try: stateByState},
		{id: "7857-RST", own: true, try: resetEndsSlowly},
		{id: "7857-overlap+7857-EIM", own: true, try: portsOfTwo},
		{id: "7857-EIF-refresh", try: inboundOfEIF},
		{id: "7857-errors", try: answersRefreshNothing},
		{id: "7857-IP-ID", try: noSharedID},
	}
}

// The states of TCP, each with its timer.
func stateByState(g *gate) {
	g = g.fresh(gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		flow := func(s *stream) loader.Flow {
			g.t.Helper()
			return g.flowOf("tcp", s.a, s.b)
		}
		var states []string
		near := func(s *stream, what string, want time.Duration) {
			g.t.Helper()
			f := flow(s)
			states = append(states, f.State)
			if left := time.Duration(f.ExpiresIn * float64(time.Second)); left > want || left < want-gateWait {
				g.t.Errorf("%s (%s): expires in %v, want %v", what, f.State, left, want)
			}
		}
		s := g.newStream(in, 5000, out, 9000, v6)
		s.outward(pkt.SYN, "")
		near(s, "SYN", 240*time.Second)
		s.inward(pkt.SYN|pkt.ACK, "")
		near(s, "SYN ACK", 240*time.Second)
		s.outward(pkt.ACK, "")
		near(s, "ACK", 7440*time.Second)
		s.outward(pkt.ACK|pkt.FIN, "")
		near(s, "one FIN", 7440*time.Second)
		s.inward(pkt.ACK|pkt.FIN, "")
		near(s, "both FINs", 240*time.Second)
		s.outward(pkt.ACK, "")
		near(s, "the last ACK", 240*time.Second)
		if n := len(slices.Compact(slices.Sorted(slices.Values(states)))); n < 3 {
			g.t.Errorf("the states were %q: three at least", states)
		}
		// After a SYN from outside through a mapping, as well.
		s = g.newStream(in, 5000, out, 9002, v6)
		s.ext = g.mapAny(pkt.ProtoTCP, in, 5000, out, 9001, v6)
		s.inward(pkt.SYN, "")
		near(s, "SYN from outside", 240*time.Second)
		s.outward(pkt.SYN|pkt.ACK, "")
		s.inward(pkt.ACK, "")
		near(s, "established from outside", 7440*time.Second)
	})
	g.families(func(g *gate, v6 bool) { g.endByState(v6) })
}

// endByState has time pass for connections in each state, and sees which have ended:
// what was told before is what the data plane does.
func (g *gate) endByState(v6 bool) {
	in, out := g.pair()
	syn, ack, fin := uint8(pkt.SYN), uint8(pkt.ACK), uint8(pkt.ACK|pkt.FIN)
	ways := []struct {
		name  string
		steps []uint8 // from inside and from outside in turn; 0 is none
		ends  bool    // within 240 s
	}{
		{"SYN", []uint8{syn}, true},
		{"SYN ACK", []uint8{syn, syn | ack}, true},
		{"established", []uint8{syn, syn | ack, ack}, false},
		{"one FIN", []uint8{syn, syn | ack, fin}, false},
		{"FIN from outside", []uint8{syn, syn | ack, ack, fin}, false},
		{"both FINs", []uint8{syn, syn | ack, fin, fin}, true},
		{"the last ACK", []uint8{syn, syn | ack, fin, fin, ack, 0}, true},
		{"RST", []uint8{syn, syn | ack, ack, pkt.RST}, true},
		{"RST ACK", []uint8{syn, pkt.RST | pkt.ACK}, true},
	}
	for i, way := range ways {
		s := g.newStream(in, 5000+uint16(i), out, 9000, v6)
		for j, flags := range way.steps {
			if flags == 0 {
				continue
			}
			if j%2 == 0 {
				s.outward(flags, "")
			} else {
				s.inward(flags, "")
			}
		}
	}
	alive := func(i int) bool {
		a := in.at(v6, 5000+uint16(i)).String()
		return slices.ContainsFunc(g.flows(in.ip(v6)), func(f loader.Flow) bool { return f.Inside == a })
	}
	g.pass(200*time.Second, in.ip(v6))
	g.expire(in.ip(v6))
	for i, way := range ways {
		if !alive(i) {
			g.t.Errorf("%s: ended within 200 s", way.name)
		}
	}
	g.pass(40*time.Second, in.ip(v6))
	g.expire(in.ip(v6))
	for i, way := range ways {
		if alive(i) == way.ends {
			g.t.Errorf("%s: alive after 240 s: %v", way.name, alive(i))
		}
	}
}

// An RST is passed on; the flow lives for four minutes more, and for
// as long as ever if data shows that the RST was not meant.
func resetEndsSlowly(g *gate) {
	g = g.fresh(gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		left := func(s *stream) time.Duration {
			g.t.Helper()
			return time.Duration(g.flowOf("tcp", s.a, s.b).ExpiresIn * float64(time.Second))
		}
		for _, outward := range []bool{true, false} {
			s := g.connect(in, 5000, out, 9000, v6)
			s.talk()
			if outward {
				s.outward(pkt.RST, "")
			} else {
				s.inward(pkt.RST, "")
			}
			if d := left(s); d > 240*time.Second || d < 240*time.Second-gateWait {
				g.t.Errorf("expires in %v after an RST, want 240 s", d)
			}
			g.pass(200*time.Second, in.ip(v6))
			s.talk()
			if d := left(s); d < 7440*time.Second-gateWait {
				g.t.Errorf("expires in %v after data behind an RST, want 7440 s", d)
			}
			s.outward(pkt.RST, "")
			g.pass(241*time.Second, in.ip(v6))
			g.expire(in.ip(v6))
			if slices.ContainsFunc(g.flows(in.ip(v6)), func(f loader.Flow) bool { return f.Proto == "tcp" }) {
				g.t.Error("a flow lives for more than four minutes after an RST")
			}
		}
	})
}

// An endpoint-independent mapping has no port for a second inside
// endpoint, also towards other destinations.
func portsOfTwo(g *gate) {
	g = g.fewPorts(1)
	a, b := g.station(atInside, 0), g.station(atInside, 1)
	x, y := g.station(atOutside, 0), g.station(atOutside, 1)
	ext := g.mapUDP(a, 5000, x, 9000, false)
	sent := b.udp(5000, y.at(false, 9000), "another destination")
	g.aboutOwn(b.wantError(prohibited(false)), sent)
	sameFrom(g.t, "UDP", ext, g.mapUDP(a, 5000, y, 9001, false))
}

// Where everybody may send in, that alone keeps no mapping.
func inboundOfEIF(g *gate) {
	in, known, stranger := g.station(atOpen, 0), g.station(atOutside, 0), g.station(atOutside, 1)
	ext := g.mapUDP(in, 5000, known, 9000, false)
	g.pass(100*time.Second, in.Addr)
	g.answerUDP(stranger, 9001, ext, in, 5000)
	for range 3 {
		g.pass(100*time.Second, in.Addr)
		stranger.udp(9001, ext, "keeps it alive?")
		stranger.knock()
	}
	g.expire(in.Addr)
	g.refusedUDP(stranger, 9001, ext, in)
}

// What an inside host answers to packets nobody wanted, an ICMP error or
// an RST, keeps no mapping alive for the sender.
func answersRefreshNothing(g *gate) {
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		text := g.text()
		in.udp(5000, out.at(v6, 9000), text)
		ext := out.wantText(text).Src
		g.pass(60*time.Second, in.ip(v6))
		before := g.flowOf("udp", in.at(v6, 5000), out.at(v6, 9000)).ExpiresIn
		// An error about a packet of long ago.
		quote := &pkt.Parsed{IP: pkt.Frame(pkt.Ether(in.MAC, in.Gateway), header(out.ip(v6), in.ip(v6)), pkt.UDP(9000, 5000), gopacket.Payload("old"))[14:], L4: 20}
		if v6 {
			quote.L4 = 40
		}
		kind, code := unreachable(v6)
		in.complain(out.ip(v6), kind, code, 0, quote, 8)
		out.wantError(kind, code)
		if after := g.flowOf("udp", in.at(v6, 5000), out.at(v6, 9000)).ExpiresIn; after > before {
			g.t.Errorf("expired in %v s, and after an error of the host's own in %v s", before, after)
		}
		g.answerUDP(out, 9000, ext, in, 5000)

		s := g.connect(in, 5001, out, 9001, v6)
		s.outward(pkt.RST, "")
		g.pass(200*time.Second, in.ip(v6))
		old := g.flowOf("tcp", s.a, s.b).ExpiresIn
		s.inward(pkt.SYN, "")
		s.outward(pkt.RST|pkt.ACK, "")
		if d := time.Duration(g.flowOf("tcp", s.a, s.b).ExpiresIn * float64(time.Second)); d > 240*time.Second {
			g.t.Errorf("expired in %v s, and in %v after a SYN that was answered by RST", old, d)
		}
	})
}

func header(src, dst netip.Addr) pkt.Layer {
	if src.Is6() {
		return pkt.IPv6(src, dst)
	}
	return pkt.IPv4(src, dst)
}

// Two hosts that use one IP id at once are not mixed up by
// who puts their fragments together.
func noSharedID(g *gate) {
	in, out := [2]*peer{g.station(atInside, 0), g.station(atInside, 1)}, g.station(atOutside, 0)
	var pieces [2][2][]byte
	for i, p := range in {
		whole := pkt.Frame(pkt.Ether(p.MAC, p.Gateway), pkt.IPv4(p.Addr, out.Addr), pkt.UDP(5000, 9000), gopacket.Payload(strings.Repeat(string(rune('a'+i)), 40)))[34:]
		for j, part := range [][]byte{whole[:24], whole[24:]} {
			ip := pkt.IPv4(p.Addr, out.Addr)
			ip.Id, ip.Protocol, ip.FragOffset = 4711, layers.IPProtocolUDP, uint16(3*j)
			if j == 0 {
				ip.Flags = layers.IPv4MoreFragments
			}
			pieces[i][j] = pkt.Frame(pkt.Ether(p.MAC, p.Gateway), ip, gopacket.Payload(part))
		}
	}
	for j := range 2 {
		for i, p := range in {
			p.raw(pieces[i][j])
		}
	}
	ids := map[uint32]byte{}
	for range 4 {
		got := out.want("fragments", func(p *pkt.Parsed) bool { return p.More || p.Offset > 0 })
		letter := got.Payload[len(got.Payload)-1]
		if was, known := ids[got.ID]; known && was != letter {
			g.t.Errorf("two hosts' fragments have the id %d", got.ID)
		}
		ids[got.ID] = letter
		if got.Src.Addr() != g.outside(false) {
			g.t.Errorf("a fragment came as %s", got)
		}
	}
	if len(ids) != 2 {
		g.t.Errorf("fragments of two datagrams have the ids %v", ids)
	}
}
