package e2e

import (
	"net/netip"
	"slices"
	"testing"

	pkt "tapgate/test/packet"
)

// mapUDP sends a datagram out and returns from where it came.
func (g *gate) mapUDP(in *peer, port uint16, out *peer, outPort uint16, v6 bool) netip.AddrPort {
	g.t.Helper()
	text := g.text()
	in.udp(port, out.at(v6, outPort), text)
	got := out.wantText(text)
	if got.Proto != pkt.ProtoUDP || got.Dst != out.at(v6, outPort) {
		g.t.Fatalf("%s arrived as %s", text, got)
	}
	return got.Src
}

// answerUDP sends one back to where it came from and requires that it arrives.
func (g *gate) answerUDP(out *peer, outPort uint16, to netip.AddrPort, in *peer, port uint16) {
	g.t.Helper()
	v6 := to.Addr().Is6()
	text := g.text()
	sent := out.udp(outPort, to, text)
	got := in.wantText(text)
	if got.Src != out.at(v6, outPort) || got.Dst != in.at(v6, port) {
		g.t.Errorf("%s arrived as %s, want it from %s to %s", sent, got, out.at(v6, outPort), in.at(v6, port))
	}
	if got.TTL != sent.TTL-1 {
		g.t.Errorf("TTL %d became %d", sent.TTL, got.TTL)
	}
}

// refusedUDP sends a datagram that must not arrive at any of the peers.
func (g *gate) refusedUDP(out *peer, outPort uint16, to netip.AddrPort, in ...*peer) {
	g.t.Helper()
	text := g.text()
	out.udp(outPort, to, text)
	g.refused(func(p *pkt.Parsed) bool { return string(p.Payload) == text }, out, in...)
}

// refused fails if what was sent by out before arrives.
func (g *gate) refused(is func(*pkt.Parsed) bool, out *peer, in ...*peer) {
	g.t.Helper()
	for _, p := range in {
		p.never(is, out)
	}
}

// fence waits until what the first ones have sent before has gone where it goes,
// and until those named last have taken note of what came.
func (g *gate) fence(all ...*peer) {
	g.t.Helper()
	for _, p := range all {
		p.knock()
	}
}

// mapQuery sends an echo request out and returns the id with which it arrived.
func (g *gate) mapQuery(in *peer, id uint16, out *peer, v6 bool) (outside netip.Addr, outID uint16) {
	g.t.Helper()
	text := g.text()
	in.query(false, id, out.ip(v6), text)
	got := out.wantText(text)
	return got.Src.Addr(), got.Echo
}

// answerQuery sends the reply and requires that it arrives.
func (g *gate) answerQuery(out *peer, outside netip.Addr, outID uint16, in *peer, id uint16) {
	g.t.Helper()
	text := g.text()
	out.query(true, outID, outside, text)
	got := in.wantText(text)
	if got.Echo != id || got.Dst.Addr() != in.ip(outside.Is6()) || got.Src.Addr() != out.ip(outside.Is6()) {
		g.t.Errorf("reply arrived as %s, want id %d", got, id)
	}
}

// stream is a TCP connection between two stations. Each side has its sequence numbers.
type stream struct {
	g            *gate
	in, out      *peer
	a, b, ext    netip.AddrPort // inside, remote, and inside as seen by the remote
	inSeq, ouSeq uint32
}

// newStream is a connection before its first segment.
func (g *gate) newStream(in *peer, port uint16, out *peer, outPort uint16, v6 bool) *stream {
	n := uint32(g.texts.Add(1)) << 12
	return &stream{g: g, in: in, out: out, a: in.at(v6, port), b: out.at(v6, outPort), inSeq: n, ouSeq: n + 1<<31}
}

// connect opens one from inside.
func (g *gate) connect(in *peer, port uint16, out *peer, outPort uint16, v6 bool) *stream {
	g.t.Helper()
	s := g.newStream(in, port, out, outPort, v6)
	s.outward(pkt.SYN, "")
	s.inward(pkt.SYN|pkt.ACK, "")
	s.outward(pkt.ACK, "")
	return s
}

// accept opens one from outside, to an endpoint that is forwarded to in and its port.
func (g *gate) accept(out *peer, outPort uint16, front netip.AddrPort, in *peer, port uint16) *stream {
	g.t.Helper()
	s := g.newStream(in, port, out, outPort, front.Addr().Is6())
	s.ext = front
	s.inward(pkt.SYN, "")
	s.outward(pkt.SYN|pkt.ACK, "")
	s.inward(pkt.ACK, "")
	return s
}

func length(flags uint8, text string) uint32 {
	n := uint32(len(text))
	if flags&(pkt.SYN|pkt.FIN) != 0 {
		n++
	}
	return n
}

// sendOut sends the next segment from inside.
func (s *stream) sendOut(flags uint8, text string) *pkt.Parsed {
	s.g.t.Helper()
	sent := s.in.tcp(s.a.Port(), s.b, flags, s.inSeq, s.ouSeq, text)
	s.inSeq += length(flags, text)
	return sent
}

// sendIn sends the next segment from the remote.
func (s *stream) sendIn(flags uint8, text string) *pkt.Parsed {
	s.g.t.Helper()
	sent := s.out.tcp(s.b.Port(), s.ext, flags, s.ouSeq, s.inSeq, text)
	s.ouSeq += length(flags, text)
	return sent
}

func sameSegment(sent *pkt.Parsed) func(*pkt.Parsed) bool {
	return func(got *pkt.Parsed) bool {
		return got.Proto == pkt.ProtoTCP && got.Flags == sent.Flags && got.Seq == sent.Seq &&
			got.Ack == sent.Ack && string(got.Payload) == string(sent.Payload)
	}
}

// outward is sendOut and requires that it arrives, from the same endpoint as ever.
func (s *stream) outward(flags uint8, text string) *pkt.Parsed {
	s.g.t.Helper()
	sent := s.sendOut(flags, text)
	is := sameSegment(sent)
	got := s.out.want(sent.String(), func(p *pkt.Parsed) bool { return p.Dst == s.b && is(p) })
	if !s.ext.IsValid() {
		s.ext = got.Src
	}
	if got.Src != s.ext {
		s.g.t.Errorf("%s arrived from %s, before from %s", sent, got.Src, s.ext)
	}
	return got
}

// inward is sendIn and requires that it arrives.
func (s *stream) inward(flags uint8, text string) *pkt.Parsed {
	s.g.t.Helper()
	sent := s.sendIn(flags, text)
	is := sameSegment(sent)
	return s.in.want(sent.String(), func(p *pkt.Parsed) bool { return p.Dst == s.a && p.Src == s.b && is(p) })
}

// talk has data go both ways.
func (s *stream) talk() {
	s.g.t.Helper()
	s.outward(pkt.ACK|pkt.PSH, s.g.text())
	s.inward(pkt.ACK|pkt.PSH, s.g.text())
}

// shut ends it in order, from inside.
func (s *stream) shut() {
	s.g.t.Helper()
	s.outward(pkt.ACK|pkt.FIN, "")
	s.inward(pkt.ACK, "")
	s.inward(pkt.ACK|pkt.FIN, "")
	s.outward(pkt.ACK, "")
}

// sameFrom fails unless all are one endpoint.
func sameFrom(t *testing.T, what string, seen ...netip.AddrPort) {
	t.Helper()
	if len(slices.Compact(slices.Clone(seen))) != 1 {
		t.Errorf("%s: one inside endpoint came from %v", what, seen)
	}
}
