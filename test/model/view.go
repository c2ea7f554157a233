package model

import (
	"net/netip"
)

// What can be compared.

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
	Due             bool // it may be gone
}

// Mappings lists the bindings by outside endpoint.
func (m *Model) Mappings(now int64) map[Endpoint]Mapping {
	all := make(map[Endpoint]Mapping, len(m.bindings)/2)
	for e, b := range m.bindings {
		if e.Outside {
			all[e] = Mapping{Inside: b.inside, Outside: b.outside, Sessions: b.sessions, EIF: b.eif, Since: b.since, Due: m.due(now, b)}
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
