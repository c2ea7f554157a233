package model

import (
	"net/netip"
	"slices"
)

// Outside addresses and ports: which of them a flow may have.

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
func (s *step) mapped(rule *Masquerade, zone string, out int, p *datagram, back Tuple) (*outsideEndpoint, *result, error) {
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
		r, err := s.noPort(rule, zone, p, back, addrs)
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
	if p.tuple.Proto == UDP && wide(rule.Ports) {
		s.Parity[(e.Port^p.tuple.Sport)&1]++
	}
	return nil
}

// wide says whether chance finds a free port of either parity.
func wide(all []Ports) bool {
	n := 0
	for _, r := range all {
		n += int(r.Last) - int(r.First) + 1
	}
	return n >= 2000
}

func (s *step) inClass(rule *Masquerade, p *datagram, port uint16) bool {
	if p.tuple.Sport < 1024 {
		return port < 1024 && port > 0
	}
	return port >= 1024 && anyHas(rule.Ports, port)
}

// noPort says whether a program may refuse a flow whose answers would have the tuple
// back, but for address and port of ours. Of several addresses it has one for each
// host, and which is not known if none was seen yet.
func (s *step) noPort(rule *Masquerade, zone string, p *datagram, back Tuple, addrs []netip.Addr) (*result, error) {
	all, clash := len(addrs) > 0, false
	for _, back.Dst = range addrs {
		free, taken := s.freePort(rule, zone, p, back)
		all, clash = all && free, clash || taken
	}
	// Halves of flows that could not be made are in the way for a moment, and so are
	// hairpins that have outlived the mapping that was asked: the sender tries again.
	if all && !(s.did.Reason == "drop_busy" && (clash || len(s.strays) > 0)) {
		return nil, differ("%s, though all of %v have a port free; %+v", s.did.Reason, addrs, s.figures(p.tuple.Src, true))
	}
	return s.busy()
}

// freePort says whether there is a port for a flow at an address, and whether there is
// one that nobody has but whose flow exists.
func (s *step) freePort(rule *Masquerade, zone string, p *datagram, back Tuple) (free, clash bool) {
	if p.unmapped() {
		return s.free(p.tuple, back) && !s.own[back.Turned()], false
	}
	for port := 1; port < 65536; port++ {
		back.Dport = uint16(port)
		e := Endpoint{back.Dst, back.Dport, p.tuple.Proto, true, zone}
		if p.kind != query && !s.inClass(rule, p, back.Dport) || s.bindings[e] != nil || s.forwards(zone, e) {
			continue
		}
		if s.free(p.tuple, back) {
			free = true
		} else {
			clash = true
		}
	}
	return free, clash
}
