package model

import (
	"net/netip"
)

// The rules, by linear search: their meaning, not a way to do it fast.

// judge is what policies and the zones' defaults say to a new flow.
func (s *step) judge(from, to *Zone, p *datagram) string {
	t := p.tuple
	for _, q := range s.cfg.Policies {
		if from == nil || to == nil || q.From != from.Name || q.To != to.Name {
			continue
		}
		if q.Proto != 0 && q.Proto != t.Proto ||
			len(q.Sources) > 0 && !within(q.Sources, t.Src) ||
			len(q.Destinations) > 0 && !within(q.Destinations, t.Dst) {
			continue
		}
		if len(q.Ports) > 0 && (p.kind != ports || !anyHas(q.Ports, t.Dport)) {
			continue
		}
		if q.Accept {
			return ""
		}
		return "drop_policy"
	}
	if role(from) == Internal && (role(to) == Internal || role(to) == External) {
		return ""
	}
	return "drop_zone"
}

// denied says whether a policy drops what a forward would let in: it is asked about
// the endpoint inside.
func (s *step) denied(from, to *Zone, f *Forward, p *datagram) bool {
	direct := *p
	direct.tuple.Dst, direct.tuple.Dport = f.To, p.tuple.Dport-f.Ports.First+f.ToPort
	return s.judge(from, to, &direct) == "drop_policy"
}

func role(z *Zone) Role {
	if z == nil {
		return None
	}
	return z.Role
}

func anyHas(all []Ports, p uint16) bool {
	for _, r := range all {
		if r.has(p) {
			return true
		}
	}
	return false
}

// mayCome says whether an internal zone has the source.
func mayCome(z *Zone, src netip.Addr) bool {
	return src.IsUnspecified() || src.Is6() && src.IsLinkLocalUnicast() || within(z.Prefixes, src)
}

// findForward: the exact address first, then any address of ours in the zone. A
// remote outside of a rule's sources is as if the rule were not there.
func (s *step) findForward(zone string, t Tuple) *Forward {
	for _, exact := range []bool{true, false} {
		for i := range s.cfg.Forwards {
			f := &s.cfg.Forwards[i]
			if f.In != zone || f.Proto != t.Proto || !f.Ports.has(t.Dport) || f.Address.IsValid() != exact || f.To.Is4() != t.Dst.Is4() {
				continue
			}
			if exact && f.Address != t.Dst {
				continue
			}
			if o := s.cfg.ours(t.Dst); !exact && (o == nil || o.Zone != zone) {
				continue
			}
			if len(f.Sources) > 0 && !within(f.Sources, t.Src) {
				continue
			}
			return f
		}
	}
	return nil
}

// forwards says whether a port of ours is served by a forward.
func (s *step) forwards(zone string, e Endpoint) bool {
	for i := range s.cfg.Forwards {
		f := &s.cfg.Forwards[i]
		if f.In == zone && f.Proto == e.Proto && f.Ports.has(e.Port) && f.To.Is4() == e.Addr.Is4() && (!f.Address.IsValid() || f.Address == e.Addr) {
			return true
		}
	}
	return false
}

// findMasquerade: the rule with the longest source prefix.
func (s *step) findMasquerade(from, to string, t Tuple) *Masquerade {
	if within(s.cfg.Exclude, t.Dst) {
		return nil
	}
	var best *Masquerade
	bits := -1
	for i := range s.cfg.Masquerades {
		r := &s.cfg.Masquerades[i]
		if r.From != from || r.To != to || t.Src.Is6() && !r.IPv6 {
			continue
		}
		if len(r.Sources) == 0 && bits < 0 {
			best, bits = r, 0
		}
		for _, p := range r.Sources {
			if p.Contains(t.Src) && p.Bits() > bits {
				best, bits = r, p.Bits()
			}
		}
	}
	return best
}

// addresses are the outside addresses that a rule may use.
func (s *step) addresses(r *Masquerade, out int, v4 bool) []netip.Addr {
	var all []netip.Addr
	for _, a := range r.Addresses {
		if a.Is4() == v4 {
			all = append(all, a)
		}
	}
	if len(r.Addresses) > 0 {
		return all
	}
	own := s.cfg.Outside[out]
	if a := own[0]; v4 && a.IsValid() {
		return []netip.Addr{a}
	}
	if a := own[1]; !v4 && a.IsValid() {
		return []netip.Addr{a}
	}
	return nil
}
