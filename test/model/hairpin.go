package model

// hairpin is a packet from inside to an outside address of ours (RFC 4787 REQ-9).
func (s *step) hairpin(zone *Zone, o *Ours, p *datagram) (*result, error) {
	if p.kind == later {
		return s.alone(), nil
	}
	if p.ttl() <= 1 { // it must not go on; what is done instead is not laid down
		if s.did.Verdict == Drop {
			return drop(), nil
		}
		return s.alone(), nil
	}
	if p.kind == failure {
		if r := s.ending(p.flow()); r != nil {
			return r, nil
		}
		if s.lookupFlow(p) == nil {
			return s.alone(), nil
		}
		if !p.errorIsSound() {
			return drop("drop_malformed"), nil
		}
		s.errorOfFlow(p)
		return s.turnRound(p)
	}
	if r := s.ending(p.tuple); r != nil {
		return r, nil
	}
	if h := s.known(p, true); h != nil {
		return s.turnRound(p)
	}
	t := p.tuple
	var target Endpoint
	var b *binding
	if f := s.findForward(o.Zone, t); f != nil {
		if !p.begins() { // dropped, or left to the host, which refuses it
			if s.did.Verdict == Drop {
				return drop("drop_no_flow"), nil
			}
			return s.alone(), nil
		}
		if s.denied(zone, s.cfg.zoneOfAddr(f.To), f, p) {
			return drop("drop_policy"), nil
		}
		if r := s.rate(f, t.Src); r != nil {
			return r, nil
		}
		target = Endpoint{Addr: f.To, Port: t.Dport - f.Ports.First + f.ToPort, Proto: t.Proto}
	} else {
		b = s.mapping(s.now, Endpoint{t.Dst, t.Dport, t.Proto, true, o.Zone})
		if b == nil || p.unmapped() {
			return s.alone(), nil
		}
		target = b.inside
		direct := *p
		direct.tuple.Dst, direct.tuple.Dport = target.Addr, target.Port
		if why := s.judge(zone, s.cfg.zoneOfAddr(target.Addr), &direct); why != "" && s.did.Verdict == Drop {
			return drop(why, "drop_no_flow", "drop_busy", "drop_unsolicited"), nil
		} else if why != "" && p.begins() {
			return drop(why), nil
		}
		if !p.begins() && s.did.Verdict == Pass { // or left to the host, which refuses it
			return s.alone(), nil
		}
	}
	return s.newHairpin(zone, o, p, target, b)
}

func (s *step) turnRound(p *datagram) (*result, error) {
	p.age()
	return &result{Redirect, []string{"pass_hairpin", "pass_icmp_error", "pass_flow"}, p.frame}, nil
}

// newHairpin makes a flow between two inside hosts by an outside address. b is
// the mapping that is asked, nil for a forward. What filters the outside does not
// keep one inside host from another: the zones do, where it leaves.
func (s *step) newHairpin(zone *Zone, o *Ours, p *datagram, target Endpoint, b *binding) (*result, error) {
	t := p.tuple
	if b != nil && (p.kind == query || !p.begins()) {
		return drop("drop_unsolicited", "drop_no_flow", "drop_busy"), nil
	}
	// To itself: the two halves would have the same key. One of them may stay for a while.
	if b != nil && b.inside.Addr == t.Src && b.inside.Port == t.Sport && s.did.Verdict == Drop {
		if s.did.Reason == "drop_busy" {
			s.strays[t] = true
		}
		return drop("drop_busy", "drop_table_full", "drop_unsolicited", "drop_no_flow"), nil
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
	mapped, r, err := s.mapped(rule, o.Zone, o.Ifindex, p, back)
	if r != nil || err != nil {
		return r, err
	}
	n.binding = mapped.binding
	back.Dst, back.Dport = mapped.addr, mapped.port
	if !s.free(t, back) {
		s.undo(n.binding)
		return s.clash(t, back)
	}
	s.create(n, t, back, p)
	return s.turnRound(p)
}
