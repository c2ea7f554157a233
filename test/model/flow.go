package model

import (
	"net/netip"
)

// Endpoint is an address and port of one side, in the scope of an external zone.
type Endpoint struct {
	Addr    netip.Addr
	Port    uint16
	Proto   uint8
	Outside bool // which side's endpoint this is
	Scope   string
}

// Which half of a session.
const (
	inside  = 0
	outside = 1
)

// What TCP flags a half has seen, as TG_SAW_*.
const (
	sawSYN = 1
	sawFIN = 2
	sawRST = 4
	sawACK = 8
)

// Where flows come from, as enum tg_origin.
const (
	Allowed = iota
	Masqueraded
	Forwarded
	Hairpinned
	ByMapping
	Adopted
)

// half is one direction of a session.
type half struct {
	*session
	side    int
	key     Tuple // of packets as this half's sender sends them
	last    int64 // when it was last heard of
	reset   int64 // TCP: of the last RST
	packets uint64
	bytes   uint64
	saw     uint8
	// for the fast path
	stacked int64 // when a packet last took the stack that was due to
	from    int   // the interface by which the stack let packets through; 0: none yet
	whole   int   // how long these were at most, from the IP header on
}

func (h *half) other() *half { return h.halves[1-h.side] }

// session is a flow.
type session struct {
	halves    [2]*half
	origin    int
	initiator int  // which half began
	left      bool // seen to leave on the other side
	adopted   bool
	flushed   bool
	dying     bool
	evicted   bool
	answered  bool
	unsure    bool       // whether the program looked while it was answered
	settled   bool       // answered, and known to be so since a sweep
	host      netip.Addr // whose account it is on
	binding   *binding   // of its inside endpoint
	remote    remoteKey
	inZone    string
	outZone   string
}

// translated says whether its packets become others.
func (s *session) translated() bool { return s.halves[0].key != s.halves[1].key.Turned() }

// answer notes whether the flow counts as answered: both sides have been heard, and
// of TCP the handshake is complete, since a server answers every SYN of a flood.
func (s *session) answer() {
	if s.initiatorHalf().key.Proto == TCP {
		s.answered = s.answered || s.established()
		return
	}
	s.answered = s.answered || s.halves[1-s.initiator].packets > 0
}

func (s *session) initiatorHalf() *half { return s.halves[s.initiator] }

// last is when the flow was kept alive. What comes from outside through a mapping
// alone does not (RFC 7857, section 4).
func (s *session) last() int64 {
	in := s.halves[inside].last
	if s.origin == ByMapping {
		return in // the outside does not keep it
	}
	return max(in, s.halves[outside].last)
}

// deadline is when the flow is over if nothing more is heard of it: the first moment
// after its timer.
func (s *session) deadline(t Timers) int64 { return s.end(t) + 1 }

func (s *session) end(t Timers) int64 {
	a, b := s.halves[s.initiator], s.halves[1-s.initiator]
	idle := t.Other
	if !s.left {
		return s.last() + int64(t.Provisional)
	}
	switch a.key.Proto {
	case TCP:
		return s.tcpDeadline(t)
	case UDP, UDPLite:
		idle = t.UDPUnanswered
		if b.packets > 0 {
			idle = t.UDP
		}
	case ICMP, ICMPv6:
		idle = t.ICMP
	}
	return s.last() + int64(idle)
}

// tcpDeadline: RFC 5382 REQ-5, and RFC 7857 section 2.
func (s *session) tcpDeadline(t Timers) int64 {
	a, b := s.halves[s.initiator], s.halves[1-s.initiator]
	idle := t.TCPOpening
	switch {
	case a.saw&b.saw&sawFIN != 0:
		idle = t.TCPClosing
	case s.established():
		idle = t.TCPEstablished
	}
	end := s.last() + int64(idle)
	if r := max(a.reset, b.reset); r != 0 && r >= s.last() {
		// Four minutes without data after an RST; data makes the flow live again.
		end = r + int64(t.TCPClosing)
	}
	return end
}

// established: the three-way handshake is complete. Of a flow that was taken over
// in the middle an ACK stands for the SYN that nobody saw.
func (s *session) established() bool {
	a, b := s.halves[s.initiator], s.halves[1-s.initiator]
	return a.saw&sawSYN != 0 && b.saw&sawSYN != 0 && a.saw&sawACK != 0
}

// closing: both sides have ended it, or one has reset it and nothing came since. A
// SYN begins it anew.
func (s *session) closing() bool {
	a, b := s.halves[0], s.halves[1]
	r := max(a.reset, b.reset)
	return a.saw&b.saw&sawFIN != 0 || r != 0 && r >= max(a.last, b.last)
}

// binding is a mapping: an inside endpoint and its outside endpoint.
type binding struct {
	inside, outside Endpoint
	eif             bool
	sessions        int
	since           int64 // when the last session went
	unanswered      bool  // that one, or one of the same moment, was ended to make room
	ended           int64 // when one was
}

type remoteKey struct {
	outside Endpoint
	remote  netip.Addr
}

type host struct{ flows int }

type pairKey struct {
	inside netip.Addr
	rule   string
}

// touch notes a packet of the half.
func (h *half) touch(now int64, p *datagram) {
	h.dying = false
	h.packets++
	h.bytes += uint64(len(p.frame))
	defer h.answer()
	if p.kind != ports || p.tuple.Proto != TCP {
		h.last = now
		return
	}
	if p.flags&rst != 0 {
		// An RST ends, and does not keep alive.
		// The first since there was data of either side.
		if h.reset == 0 || h.reset <= max(h.last, h.other().last) {
			h.reset = now
		}
		h.saw |= sawRST
		return
	}
	h.last = now
	if p.flags&syn != 0 {
		h.saw |= sawSYN
	} else if p.flags&ack != 0 {
		h.saw |= sawACK
	}
	if h.adopted && p.flags&ack != 0 {
		h.saw |= sawSYN | sawACK
	}
	if p.flags&fin != 0 {
		h.saw |= sawFIN
	}
}

// restart makes a closing flow a new one: its initiator's ports are in use again.
func (h *half) restart() {
	for _, x := range h.halves {
		x.saw, x.reset = 0, 0
	}
	h.unsure = h.unsure || h.answered && !h.settled
	h.answered = h.settled
	h.initiator = h.side
}

// lookup finds the half whose packets have this tuple.
func (m *Model) lookup(now int64, t Tuple) *half {
	h := m.sessions[t]
	if h == nil {
		return nil
	}
	if !m.Keep && now >= h.deadline(m.cfg.Timers) {
		m.remove(now, h.session)
		return nil
	}
	return h
}

// mapping finds a binding by either endpoint.
func (m *Model) mapping(now int64, e Endpoint) *binding {
	b := m.bindings[e]
	if b == nil {
		return nil
	}
	if m.Keep {
		return b
	}
	for _, h := range m.sessions {
		if h.side == inside && h.binding == b {
			m.lookup(now, h.key)
		}
	}
	if m.due(now, b) {
		m.unbind(b)
		return nil
	}
	return b
}
