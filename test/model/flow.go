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
}

func (h *half) other() *half { return h.halves[1-h.side] }

// session is a flow.
type session struct {
	halves    [2]*half
	origin    int
	initiator int // which half began
	created   int64
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
		return max(in, s.created)
	}
	return max(in, s.halves[outside].last)
}

// deadline is when the flow ends if nothing more is heard of it.
func (s *session) deadline(t Timers) int64 {
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
	unanswered      bool  // that one was ended to make room
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

// remove ends a session. Its mapping keeps the port for a while (RFC 6888 REQ-8).
func (m *Model) remove(now int64, s *session) {
	for _, h := range s.halves {
		delete(m.sessions, h.key)
	}
	if b := s.binding; b != nil {
		b.sessions--
		if m.remotes[s.remote]--; m.remotes[s.remote] <= 0 {
			delete(m.remotes, s.remote)
		}
		if b.sessions == 0 {
			b.since = now
			b.unanswered = s.evicted
		}
	}
	if h := m.hosts[s.host]; h != nil {
		if h.flows--; h.flows == 0 {
			delete(m.hosts, s.host)
		}
	}
}

// mapping finds a binding by either endpoint.
func (m *Model) mapping(now int64, e Endpoint) *binding {
	b := m.bindings[e]
	if b == nil {
		return nil
	}
	if m.Keep {
		if m.due(now, b) && m.Unbound != nil && m.Unbound(b.outside) {
			m.unbind(b)
			return nil
		}
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

// due says whether a mapping has kept its port long enough.
func (m *Model) due(now int64, b *binding) bool {
	return b.sessions == 0 && (b.unanswered || m.cfg.ours(b.outside.Addr) == nil || now >= b.since+int64(m.cfg.Timers.Linger))
}

func (m *Model) unbind(b *binding) {
	delete(m.bindings, b.inside)
	delete(m.bindings, b.outside)
}

// Expire marks what has expired, as the first look of a sweep does. A packet
// undoes that.
func (m *Model) Expire(now int64) {
	for _, h := range m.sessions {
		if h.settled = h.settled || h.answered; h.settled {
			h.unsure = false
		}
		h.dying = h.dying || now >= h.deadline(m.cfg.Timers)
	}
}

// Sweep takes away what was marked, or flushed, before and has not been used since.
func (m *Model) Sweep(now int64) {
	for _, h := range m.sessions {
		if h.side == inside && (h.flushed || h.dying && now >= h.deadline(m.cfg.Timers)) {
			m.remove(now, h.session)
		}
	}
	for e, b := range m.bindings {
		if !e.Outside && m.due(now, b) && (m.Unbound == nil || m.Unbound(b.outside)) {
			m.unbind(b)
		}
	}
}

// NextEnd is the first moment after now at which something expires; 0 if
// nothing does.
func (m *Model) NextEnd(now int64) int64 {
	next := int64(0)
	note := func(end int64) {
		if end > now && (next == 0 || end < next) {
			next = end
		}
	}
	for _, h := range m.sessions {
		note(h.deadline(m.cfg.Timers))
	}
	for _, b := range m.bindings {
		if b.sessions == 0 {
			note(b.since + int64(m.cfg.Timers.Linger))
		}
	}
	return next
}

// Flush takes flows out of use, as "flows flush" does. They are gone with the
// next Sweep.
func (m *Model) Flush(which func(in, out Tuple) bool) (n int) {
	for _, h := range m.sessions {
		if h.side == inside && !h.flushed && which(h.key, h.other().key) {
			h.flushed = true
			n++
		}
	}
	return n
}

// Flow is what can be compared of a session.
type Flow struct {
	Inside, Outside Tuple
	Origin          int
	Packets, Bytes  [2]uint64
	Saw             [2]uint8
	Last, Reset     [2]int64
	Left, Bound     bool
	Answered        bool
	Settled         bool // answered, and known to be so since a sweep
	Unsure          bool // whether the program looked while it was answered
	Flushed         bool
	Deadline        int64
}

// Flows lists the sessions by the outside half's key.
func (m *Model) Flows() map[Tuple]Flow {
	m.noteEvicted()
	all := make(map[Tuple]Flow, len(m.sessions)/2)
	for _, h := range m.sessions {
		if h.side != inside {
			continue
		}
		o := h.other()
		all[o.key] = Flow{
			Inside: h.key, Outside: o.key, Origin: h.origin,
			Packets: [2]uint64{h.packets, o.packets}, Bytes: [2]uint64{h.bytes, o.bytes},
			Saw: [2]uint8{h.saw, o.saw}, Last: [2]int64{h.last, o.last}, Reset: [2]int64{h.reset, o.reset},
			Left: h.left, Bound: h.binding != nil, Answered: h.answered, Settled: h.settled, Unsure: h.unsure, Flushed: h.flushed,
			Deadline: h.deadline(m.cfg.Timers),
		}
	}
	return all
}

// Mapping is what can be compared of a binding.
type Mapping struct {
	Inside, Outside Endpoint
	Sessions        int
	EIF             bool
	Since           int64
}

// Mappings lists the bindings by outside endpoint.
func (m *Model) Mappings() map[Endpoint]Mapping {
	all := make(map[Endpoint]Mapping, len(m.bindings)/2)
	for e, b := range m.bindings {
		if e.Outside {
			all[e] = Mapping{Inside: b.inside, Outside: b.outside, Sessions: b.sessions, EIF: b.eif, Since: b.since}
		}
	}
	return all
}

// Permitted lists how many flows permit each remote at an outside endpoint.
func (m *Model) Permitted() map[Endpoint]map[netip.Addr]int {
	all := map[Endpoint]map[netip.Addr]int{}
	for k, n := range m.remotes {
		if all[k.outside] == nil {
			all[k.outside] = map[netip.Addr]int{}
		}
		all[k.outside][k.remote] = n
	}
	return all
}
