package model

import (
	"net/netip"
)

// Room in the table: the limits, and what the program does when they are reached.

// gone says whether the program has no such flow any more.
func (m *Model) gone(s *session) bool {
	if m.Evicted == nil {
		return false
	}
	_, gone := m.Evicted(s.halves[inside].key, s.halves[outside].key)
	return gone
}

// figures count the flows that limits are about; fresh are those that inside hosts began.
type figures struct{ flows, fresh, ofHost, freshOfHost, forwarded int }

// figures: the program may count some as fresh that have been answered since it
// looked last, and those that were ended and not swept. With most they are counted.
func (s *step) figures(inside netip.Addr, most bool) (n figures) {
	if most {
		k := len(s.strays)
		n = figures{k, k, k, k, k}
	}
	for _, h := range s.sessions {
		over := h.flushed || s.now >= h.deadline(s.cfg.Timers)
		if h.side == outside || over && !most {
			continue
		}
		n.flows++
		own := h.host == inside && (most || h.origin != Forwarded && h.origin != ByMapping)
		if own {
			n.ofHost++
		}
		if h.settled || (h.answered || h.unsure) && !most {
			continue
		}
		if own {
			n.freshOfHost++
		}
		if h.origin == Forwarded || h.origin == ByMapping {
			n.forwarded++
		} else {
			n.fresh++
		}
	}
	return n
}

// reached: what forwards admit has a share of the unanswered flows for itself, and the
// inside hosts have the rest.
func (l Limits) reached(n figures, forwarded bool) bool {
	at := func(limit, n int) bool { return limit > 0 && n >= limit }
	if at(l.Flows, n.flows) {
		return true
	}
	if forwarded {
		return at(l.Forwarded, n.forwarded)
	}
	return at(l.Fresh-l.Forwarded, n.fresh) || at(l.PerHost, n.ofHost) || at(l.FreshHost, n.freshOfHost)
}

// room says whether the limits let a flow be made. nil, nil: yes, and the
// program made it.
func (s *step) room(inside netip.Addr, forwarded bool) (*result, error) {
	limits, most := s.cfg.Limits, s.figures(inside, true)
	if !limits.reached(most, forwarded) {
		if s.did.Reason == "drop_table_full" {
			return nil, differ("refused for want of room with %+v; the limits are %+v", most, limits)
		}
		return nil, nil
	}
	if s.did.Reason == "drop_table_full" {
		return drop("drop_table_full"), nil
	}
	n := s.figures(inside, false)
	if forwarded { // these have a share of their own
		n.ofHost, n.freshOfHost = 0, 0
	}
	if s.did.Verdict != Drop && limits.reached(n, forwarded) {
		return nil, differ("a flow was made beyond the limits %+v: there are %+v", limits, n)
	}
	return nil, nil
}

// ended follows the program, which has ended flows that nobody has answered to make
// room for this one.
func (s *step) ended() (err error) {
	s.made, err = s.endEarly(s.now)
	n := s.figures(parse(s.frame).tuple.Src, true)
	s.full = s.cfg.Limits.reached(n, true) || s.cfg.Limits.reached(n, false)
	return err
}

func (m *Model) endEarly(now int64) (n int, err error) {
	if m.Evicted == nil {
		return 0, nil
	}
	for t, h := range m.sessions {
		if h.side == inside {
			continue
		}
		ended, gone := m.Evicted(h.other().key, t)
		over := h.flushed || now >= h.deadline(m.cfg.Timers)
		switch {
		case gone && !over:
			return n, differ("the flow %v has gone before its time", t)
		case ended && !over && h.answered:
			return n, differ("the flow %v was ended to make room, and had been answered", t)
		case ended && !gone && !h.flushed:
			h.flushed, h.evicted = true, true
			n++
		}
	}
	return n, nil
}

// forget follows the program after it has taken what is over out of its table.
func (m *Model) forget(now int64) {
	if m.Evicted == nil {
		return
	}
	for _, h := range m.sessions {
		if h.side == outside && (h.flushed || now >= h.deadline(m.cfg.Timers)) && m.gone(h.session) {
			m.remove(now, h.session)
		}
	}
}

// release follows the program after it has let go of mappings.
func (m *Model) release(now int64) {
	if m.Unbound == nil {
		return
	}
	for e, b := range m.bindings {
		if !e.Outside && m.due(now, b) && m.Unbound(b.inside, b.outside) {
			m.unbind(b)
		}
	}
}

// Tidy follows the program after a sweep.
func (m *Model) Tidy(now int64) error {
	if _, err := m.endEarly(now); err != nil {
		return err
	}
	m.forget(now)
	m.release(now)
	return nil
}
