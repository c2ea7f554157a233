package model

import (
	"net/netip"
	"slices"
)

// create adds a session and gives it its first packet.
func (s *step) create(n *session, in, out Tuple, p *datagram) *half {
	n.created = s.now
	n.halves = [2]*half{{session: n, side: inside, key: in}, {session: n, side: outside, key: out}}
	s.sessions[in], s.sessions[out] = n.halves[inside], n.halves[outside]
	n.host = in.Src
	if s.hosts[n.host] == nil {
		s.hosts[n.host] = &host{}
	}
	s.hosts[n.host].flows++
	if n.binding != nil {
		n.binding.sessions++
		n.remote = remoteKey{n.binding.outside, out.Src}
		s.remotes[n.remote]++
	}
	h := n.halves[n.initiator]
	s.apply(h, p)
	return h
}

// free says whether both keys of a session to be made are. What lies there
// flushed is taken until it is swept.
func (s *step) free(in, out Tuple) bool {
	return in != out && s.taken(in) == nil && s.taken(out) == nil
}

func (s *step) taken(t Tuple) *half {
	if h := s.sessions[t]; h != nil && h.flushed {
		return h
	}
	return s.lookup(s.now, t)
}

// busy: a key is taken, by a flow that is on its way out or by another one that
// would become the same packets. The sender tries again.
func (s *step) busy() (*result, error) {
	return drop("drop_busy", "drop_no_port", "drop_table_full", "drop_no_flow"), nil
}

// figures count the flows that limits are about.
type figures struct{ flows, fresh, ofHost, forwarded int }

// figures: the program may count some as fresh that have been answered since it
// looked last, and those that were ended and not swept. With most they are counted.
func (s *step) figures(inside netip.Addr, most bool) (n figures) {
	for _, h := range s.sessions {
		if h.side == outside || h.flushed && !most {
			continue
		}
		n.flows++
		if h.host == inside && (most || h.origin != Forwarded && h.origin != ByMapping) {
			n.ofHost++
		}
		if h.settled || h.answered && !most {
			continue
		}
		n.fresh++
		if h.origin == Forwarded || h.origin == ByMapping {
			n.forwarded++
		}
	}
	return n
}

func (l Limits) reached(n figures, forwarded bool) bool {
	at := func(limit, n int) bool { return limit > 0 && n >= limit }
	return at(l.Flows, n.flows) || at(l.Fresh, n.fresh) || at(l.PerHost, n.ofHost) || forwarded && at(l.Forwarded, n.forwarded)
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
	// Something may have gone to make room, and only what was never answered.
	s.noteEvicted()
	if s.did.Reason == "drop_table_full" {
		return drop("drop_table_full"), nil
	}
	n := s.figures(inside, false)
	if forwarded { // these have a share of their own
		n.ofHost = 0
	}
	if s.did.Verdict != Drop && limits.reached(n, forwarded) {
		return nil, differ("a flow was made beyond the limits %+v: there are %+v", limits, n)
	}
	return nil, nil
}

// noteEvicted ends the flows that the program has ended to make room.
func (m *Model) noteEvicted() {
	if m.Evicted == nil {
		return
	}
	for t, h := range m.sessions {
		if h.side == outside && !h.answered && !h.flushed && m.Evicted(t) {
			h.flushed, h.evicted = true, true
		}
	}
}

// newOutbound makes a flow of a packet that leaves by an external interface.
func (s *step) newOutbound(from, zone *Zone, out int, p *datagram) (*result, error) {
	n := &session{initiator: inside, left: true, inZone: from.Name, outZone: zone.Name, origin: Allowed}
	if r := s.maySetOut(n, p); r != nil {
		return r, nil
	}
	if r, err := s.room(p.tuple.Src, false); r != nil || err != nil {
		return r, err
	}
	in, back := p.tuple, p.tuple.Turned()
	if rule := s.findMasquerade(from.Name, zone.Name, p.tuple); rule != nil {
		if n.origin == Allowed {
			n.origin = Masqueraded
		}
		mapped, r, err := s.mapped(rule, zone.Name, out, p)
		if r != nil || err != nil {
			return r, err
		}
		n.binding = mapped.binding
		back.Dst, back.Dport = mapped.addr, mapped.port
	}
	if !s.free(in, back) {
		s.undo(n.binding)
		return s.busy()
	}
	s.create(n, in, back, p)
	if err := s.firstOutbound(in, p); err != nil {
		return nil, err
	}
	return pass(p.frame, "pass_new_flow"), nil
}

// maySetOut: a SYN begins a TCP flow, and for a while after a cut-over other
// segments from inside do. An answer to a query never begins one.
func (s *step) maySetOut(n *session, p *datagram) *result {
	if !p.asks() {
		return drop("drop_no_flow")
	}
	if p.begins() {
		return nil
	}
	if !s.cfg.Adopt || p.flags&(syn|rst|ack) != ack {
		return drop("drop_no_flow")
	}
	n.origin, n.adopted = Adopted, true
	return nil
}

// undo takes back a mapping that was made for a flow that could not be.
func (s *step) undo(b *binding) {
	if b != nil && b.sessions == 0 && b.since == s.now {
		s.unbind(b)
	}
}

type outsideEndpoint struct {
	addr    netip.Addr
	port    uint16
	binding *binding // nil for protocols without ports
}

// mapped finds or makes the outside endpoint of a packet's source: the same for
// every destination (RFC 4787 REQ-1), of nobody else (REQ-3), the same address
// for all of a host (REQ-2), and below 1024 what is below 1024 (REQ-3a).
func (s *step) mapped(rule *Masquerade, zone string, out int, p *datagram) (*outsideEndpoint, *result, error) {
	t := p.tuple
	inner := Endpoint{t.Src, t.Sport, t.Proto, false, zone}
	addrs := s.addresses(rule, out, t.Src.Is4())
	if !p.unmapped() {
		b := s.mapping(s.now, inner)
		// One of an address that is not ours any more goes when nobody uses it.
		if b != nil && b.sessions == 0 && s.cfg.ours(b.outside.Addr) == nil {
			s.unbind(b)
			b = nil
		}
		if b != nil {
			return &outsideEndpoint{b.outside.Addr, b.outside.Port, b}, nil, nil
		}
	}
	pair := pairKey{t.Src, rule.Name}
	if a, ok := s.paired[pair]; ok && slices.Contains(addrs, a) {
		addrs = []netip.Addr{a}
	}
	if s.did.Verdict == Drop {
		r, err := s.noPort(rule, zone, p, addrs)
		return nil, r, err
	}
	addr, _, port, _ := endpointsOf(s.did.Frame)
	if !slices.Contains(addrs, addr) {
		return nil, nil, differ("the outside address is %s, which is none of %v", addr, addrs)
	}
	if p.unmapped() {
		s.paired[pair] = addr
		return &outsideEndpoint{addr: addr, port: t.Sport}, nil, nil
	}
	outer := Endpoint{addr, port, t.Proto, true, zone}
	if err := s.mayHave(rule, zone, p, outer); err != nil {
		return nil, nil, err
	}
	s.paired[pair] = addr
	b := &binding{inside: inner, outside: outer, eif: rule.EIF, since: s.now}
	s.bindings[inner], s.bindings[outer] = b, b
	return &outsideEndpoint{addr, port, b}, nil, nil
}

// mayHave says whether an outside endpoint may be given to a packet's source.
func (s *step) mayHave(rule *Masquerade, zone string, p *datagram, e Endpoint) error {
	if b := s.mapping(s.now, e); b != nil {
		return differ("the outside port %s:%d is that of %s:%d already", e.Addr, e.Port, b.inside.Addr, b.inside.Port)
	}
	if s.forwards(zone, e) {
		return differ("the outside port %s:%d belongs to a forward", e.Addr, e.Port)
	}
	if p.kind == query {
		if e.Port == 0 { // the port of who is asked
			return differ("an outside id of 0")
		}
		return nil
	}
	if !s.inClass(rule, p, e.Port) {
		return differ("the outside port %d is not one for the inside port %d: %+v", e.Port, p.tuple.Sport, rule.Ports)
	}
	return nil
}

func (s *step) inClass(rule *Masquerade, p *datagram, port uint16) bool {
	if p.tuple.Sport < 1024 {
		return port < 1024 && port > 0
	}
	return port >= 1024 && anyHas(rule.Ports, port)
}

// noPort says whether a program may refuse a flow for want of a port.
func (s *step) noPort(rule *Masquerade, zone string, p *datagram, addrs []netip.Addr) (*result, error) {
	if p.unmapped() {
		for _, a := range addrs {
			back := p.tuple.Turned()
			if back.Dst = a; s.free(p.tuple, back) && !s.own[back.Turned()] {
				return nil, differ("%s, though %s is free towards %s; %+v", s.did.Reason, a, back.Src, s.figures(p.tuple.Src, true))
			}
		}
		return s.busy()
	}
	for _, a := range addrs {
		for port := 1; port < 65536; port++ {
			n := uint16(port)
			e := Endpoint{a, n, p.tuple.Proto, true, zone}
			if p.kind != query && !s.inClass(rule, p, n) || s.forwards(zone, e) || s.mapping(s.now, e) != nil {
				continue
			}
			back := p.tuple.Turned()
			back.Dst, back.Dport = a, n
			if !s.free(p.tuple, back) {
				continue
			}
			return nil, differ("%s, though %s:%d is free", s.did.Reason, a, port)
		}
	}
	return s.busy()
}

// newForward makes a flow that a forward admits.
func (s *step) newForward(zone *Zone, f *Forward, p *datagram) (*result, error) {
	if !p.begins() {
		return drop("drop_no_flow"), nil
	}
	if s.denied(zone, s.cfg.zoneOfAddr(f.To), f, p) {
		return drop("drop_policy"), nil
	}
	if r := s.rate(f, p.tuple.Src); r != nil {
		return r, nil
	}
	if r, err := s.room(f.To, true); r != nil || err != nil {
		return r, err
	}
	t := p.tuple
	in := Tuple{Src: f.To, Sport: t.Dport - f.Ports.First + f.ToPort, Dst: t.Src, Dport: t.Sport, Proto: t.Proto}
	if !s.free(in, t) {
		return s.busy()
	}
	s.admitted = true
	s.create(&session{initiator: outside, origin: Forwarded, outZone: zone.Name}, in, t, p)
	s.firstInbound(t, p)
	return pass(p.frame, "pass_new_flow"), nil
}

// newByMapping makes a flow of a packet from outside to a mapping, if its
// filtering lets it (RFC 4787 REQ-8).
func (s *step) newByMapping(zone *Zone, b *binding, p *datagram) (*result, error) {
	t := p.tuple
	if p.kind == query { // an answer to no question: dropped, or left to the host, which drops it
		if s.did.Verdict == Drop {
			return drop("drop_unsolicited", "drop_no_flow"), nil
		}
		return s.alone(), nil
	}
	if !p.begins() || b.sessions == 0 && s.did.Verdict == Drop {
		return drop("drop_unsolicited", "drop_no_flow"), nil
	}
	if !b.eif && s.remotes[remoteKey{b.outside, t.Src}] == 0 {
		return drop("drop_unsolicited"), nil
	}
	if r, err := s.room(b.inside.Addr, true); r != nil || err != nil {
		return r, err
	}
	in := Tuple{Src: b.inside.Addr, Sport: b.inside.Port, Dst: t.Src, Dport: t.Sport, Proto: t.Proto}
	if !s.free(in, t) {
		return s.busy()
	}
	s.admitted = true
	s.create(&session{initiator: outside, origin: ByMapping, outZone: zone.Name, binding: b}, in, t, p)
	s.firstInbound(t, p)
	return pass(p.frame, "pass_new_flow"), nil
}

// newHairpin makes a flow between two inside hosts by an outside address. b is
// the mapping that is asked, nil for a forward. What filters the outside does not
// keep one inside host from another: the zones do, where it leaves.
func (s *step) newHairpin(zone *Zone, o *Ours, p *datagram, target Endpoint, b *binding) (*result, error) {
	t := p.tuple
	if b != nil && (p.kind == query || !p.begins()) {
		return drop("drop_unsolicited", "drop_no_flow", "drop_busy"), nil
	}
	if b != nil && b.sessions == 0 && s.did.Verdict == Drop { // a mapping that only keeps its port
		return drop("drop_unsolicited", "drop_no_flow", "drop_busy", "drop_no_port", "drop_table_full"), nil
	}
	// Who is not translated would get the answer from an address that it did not ask.
	rule := s.findMasquerade(zone.Name, o.Zone, t)
	if rule == nil {
		return s.alone(), nil
	}
	n := &session{initiator: inside, left: true, origin: Hairpinned, inZone: zone.Name, outZone: zone.Name}
	if r, err := s.room(t.Src, false); r != nil || err != nil {
		return r, err
	}
	back := Tuple{Src: target.Addr, Sport: target.Port, Dst: t.Src, Dport: t.Sport, Proto: t.Proto}
	mapped, r, err := s.mapped(rule, o.Zone, o.Ifindex, p)
	if r != nil || err != nil {
		return r, err
	}
	n.binding = mapped.binding
	back.Dst, back.Dport = mapped.addr, mapped.port
	if !s.free(t, back) {
		s.undo(n.binding)
		return s.busy()
	}
	s.create(n, t, back, p)
	return s.turnRound(p)
}

// newInward makes a flow between zones without translation, where answers would
// not pass by themselves.
func (s *step) newInward(from, zone *Zone, p *datagram) (*result, error) {
	// Between internal zones flows may be older than the policy that needs them.
	older := role(from) == Internal && role(zone) == Internal && s.did.Verdict == Pass
	if !older && (!p.begins() || !p.asks()) {
		return drop("drop_no_flow"), nil
	}
	t := p.tuple
	n := &session{initiator: inside, left: true, origin: Allowed, inZone: zone.Name}
	if !p.begins() {
		n.adopted, n.origin = true, Adopted
	}
	in, back := t, t.Turned()
	if from != nil {
		n.outZone = from.Name
	}
	if role(from) == External {
		n.initiator, in, back = outside, back, in
	}
	if r, err := s.room(in.Src, false); r != nil || err != nil {
		return r, err
	}
	if !s.free(in, back) {
		return s.busy()
	}
	s.create(n, in, back, p)
	return pass(p.frame, "pass_new_flow"), nil
}
