package model

// create adds a session and gives it its first packet.
func (s *step) create(n *session, in, out Tuple, p *datagram) *half {
	n.halves = [2]*half{{session: n, side: inside, key: in}, {session: n, side: outside, key: out}}
	delete(s.strays, out)
	s.sessions[in], s.sessions[out] = n.halves[inside], n.halves[outside]
	if n.origin == ByMapping {
		n.halves[inside].last = s.now
	}
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
	return in != out && s.taken(in) == nil && s.taken(out) == nil && !(s.strays[out] && s.did.Verdict == Drop)
}

func (s *step) taken(t Tuple) *half {
	h := s.sessions[t]
	if h == nil || !h.flushed && s.now < h.deadline(s.cfg.Timers) {
		return h
	}
	// It may have gone just before.
	if s.did.Tidied && s.gone(h.session) {
		s.remove(s.now, h.session)
		return nil
	}
	if h.flushed {
		return h
	}
	return s.lookup(s.now, t)
}

// busy: a key is taken, by a flow that is on its way out or by another one that
// would become the same packets. The sender tries again.
func (s *step) busy() (*result, error) {
	return drop("drop_busy", "drop_no_port", "drop_table_full", "drop_no_flow"), nil
}

// clash is busy, with keys that are known. If only the inside one is taken, the other half
// was made and stays for a while.
func (s *step) clash(in, out Tuple) (*result, error) {
	if s.did.Reason == "drop_busy" && s.taken(out) == nil {
		s.strays[out] = true
	}
	return s.busy()
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
		mapped, r, err := s.mapped(rule, zone.Name, out, p, back)
		if r != nil || err != nil {
			return r, err
		}
		n.binding = mapped.binding
		back.Dst, back.Dport = mapped.addr, mapped.port
	}
	if !s.free(in, back) {
		s.undo(n.binding)
		return s.clash(in, back)
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
		return s.clash(in, t)
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
		return s.clash(in, t)
	}
	s.admitted = true
	s.create(&session{initiator: outside, origin: ByMapping, outZone: zone.Name, binding: b}, in, t, p)
	s.firstInbound(t, p)
	return pass(p.frame, "pass_new_flow"), nil
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
		return s.clash(in, back)
	}
	s.create(n, in, back, p)
	return pass(p.frame, "pass_new_flow"), nil
}
