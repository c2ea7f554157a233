package model

import "time"

// The fast path: packets of flows that the stack has let through in both directions
// go past it. A packet takes it if, and only if, nothing is unusual about it.

// stackEvery is how often a packet of each half must take the stack. The program counts
// that in coarse units, of 2^24 ns.
const (
	stackEvery = 10 * time.Second
	coarse     = 24 // bits
)

// stackDue says whether the next packet of the half must take the stack.
func (h *half) stackDue(now int64) bool {
	return now>>coarse-h.stacked>>coarse >= int64(stackEvery)>>coarse
}

// stack notes that the packet is on its way through the stack: that one came in that
// was due, and, at an egress hook, that it was let through.
func (s *step) stack(h *half, p *datagram) {
	if h.stackDue(s.now) {
		h.whole = 0
		h.stacked = s.now
	}
	if s.out != 0 && s.in != 0 {
		s.through(h, p)
	}
}

// through notes by which interface the half's packets come, and how long they may be.
func (s *step) through(h *half, p *datagram) {
	h.from = s.in
	h.whole = max(h.whole, len(p.frame)-etherLen)
}

// usual says whether a packet is one that may take the fast path.
func (p *datagram) usual() bool {
	l4 := p.l3 + 20
	if p.family == 6 {
		l4 = p.l3 + 40
	}
	if p.kind != ports || p.l4 != l4 || p.idAt != 0 && p.family == 6 || p.ttl() <= 1 {
		return false
	}
	if p.family == 4 && (p.u16(p.l3+6)&0x3fff != 0 || sum(p.frame[p.l3:p.l4], 0) != 0xffff) {
		return false
	}
	// The padding of a short frame, and no more behind the packet.
	if p.end < p.l4+8 || p.end < len(p.frame) && len(p.frame) > 64 {
		return false
	}
	switch p.tuple.Proto {
	case TCP:
		return p.flags&(syn|fin|rst) == 0 && p.flags&ack != 0
	case UDP:
		return p.u16(p.l4+6) != 0
	}
	return false
}

// fast handles a packet that goes past the stack. nil: it does not.
func (s *step) fast(p *datagram) *result {
	if !s.cfg.Fast || !p.usual() || [6]byte(p.frame) != s.cfg.MACs[s.in] {
		return nil
	}
	now := s.now
	if s.did.Now != 0 { // the program's clock ticks
		now = s.did.Now
	}
	h := s.sessions[p.tuple]
	if h == nil || h.flushed || h.dying || h.from != s.in || h.other().from == 0 || h.origin == Hairpinned || !h.spoken() || h.ending() {
		return nil
	}
	if h.stackDue(now) || p.end-p.l3 > h.whole {
		return nil
	}
	// What has expired may be known to be so, or not.
	if now >= h.deadline(s.cfg.Timers) && s.did.Reason != "pass_fast" {
		return nil
	}
	// The inside zone of what came in by a mapping need not be known.
	if h.origin == ByMapping && h.side == outside && s.did.Reason != "pass_fast" {
		return nil
	}
	to := h.other().key.Turned()
	way, ok := s.cfg.Way(to.Dst)
	if !ok {
		return nil
	}
	h.packets++
	h.bytes += uint64(len(p.frame))
	h.last = max(h.last, now)
	p.translate(to)
	p.age()
	copy(p.frame, way.To[:])
	copy(p.frame[6:], way.From[:])
	return &result{Redirect, []string{"pass_fast"}, p.frame}
}

// spoken: both sides have, as their protocol asks for.
func (s *session) spoken() bool {
	if s.initiatorHalf().key.Proto == TCP {
		return s.established()
	}
	return s.halves[0].packets > 0 && s.halves[1].packets > 0
}

// ending: TCP that is about to, and what has not been seen to leave.
func (s *session) ending() bool {
	a, b := s.halves[0], s.halves[1]
	r := max(a.reset, b.reset)
	return !s.left || a.key.Proto == TCP && (a.saw&b.saw&sawFIN != 0 || r != 0 && r >= s.last())
}
