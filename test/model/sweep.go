package model

// The end of flows and mappings.

// remove ends a session. Its mapping keeps the port for a while (RFC 6888 REQ-8).
func (m *Model) remove(now int64, s *session) {
	for _, h := range s.halves {
		delete(m.sessions, h.key)
	}
	if b := s.binding; b != nil {
		b.sessions--
		if s.evicted {
			b.ended = now
		}
		if m.remotes[s.remote]--; m.remotes[s.remote] <= 0 {
			delete(m.remotes, s.remote)
		}
		if b.sessions == 0 {
			b.since = now
			b.unanswered = b.ended == now
		}
	}
	if h := m.hosts[s.host]; h != nil {
		if h.flows--; h.flows == 0 {
			delete(m.hosts, s.host)
		}
	}
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
	clear(m.strays)
	for _, h := range m.sessions {
		if h.side == inside && (h.flushed || h.dying && now >= h.deadline(m.cfg.Timers)) {
			m.remove(now, h.session)
		}
	}
	for e, b := range m.bindings {
		if !e.Outside && m.due(now, b) && (m.Unbound == nil || m.Unbound(b.inside, b.outside)) {
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
