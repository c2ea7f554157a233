package main

import (
	"net/netip"
	"slices"

	"tapgate/loader"
)

// direction remembers what was copied to a target: what came in, what went out.
func (b *builder) direction(mirror string, target loader.Target, r hostRule) {
	if b.copied == nil {
		b.copied = map[string][2]bool{}
	}
	key := "mirror " + mirror + ", " + target.String()
	d := b.copied[key]
	in := len(r.out) == 0 && len(r.dst) == 0 || len(r.src) > 0
	if zone, _ := b.zonesOf(r.in); len(zone) > 0 && zone[0].Role == loader.RoleExternal {
		in = false
	}
	d[0], d[1] = d[0] || in, d[1] || !in || len(r.in)+len(r.src) == 0
	b.copied[key] = d
}

// oneWay tells of mirrors that had one direction only, and puts together those that
// have the same targets.
func (b *builder) oneWay() {
	for key, d := range b.copied {
		if d[0] != d[1] {
			b.note("%s: only one direction was copied; now both are", key)
		}
	}
	var all []loader.Mirror
	for _, m := range b.cfg.Mirrors {
		at := slices.IndexFunc(all, func(o loader.Mirror) bool {
			return slices.EqualFunc(o.Targets, m.Targets, func(a, b loader.Target) bool { return a.String() == b.String() })
		})
		if at < 0 {
			all = append(all, m)
		} else {
			all[at].Zones = append(all[at].Zones, m.Zones...)
		}
	}
	b.cfg.Mirrors = all
}

// policies takes over what the forward chains say of flows between zones.
func (b *builder) policies() {
	b.oneWay()
	unclear := false // a rule that accepts was not understood
	ends := false    // a rule for everything came
	for _, r := range b.rules {
		if r.hook == "forward" && r.dnatted && r.action == "accept" && len(b.nat.Forwards) > 0 && b.dropsForward {
			b.note("the host accepts forwarded ports by conntrack's dnat state, which ours do not have; tapgate check names the rules to add (%s)", r.text)
		}
		if r.hook != "forward" || r.underWay || ends || r.action != "accept" && r.action != "drop" && r.action != "return" {
			continue
		}
		if r.action == "return" {
			if r.conditional() {
				b.note("not taken over, an exception from the rules behind it: %s", r.text)
			}
			continue
		}
		if len(r.rest)+len(r.notDst) > 0 {
			b.note("still the host's own business: %s", r.text)
			unclear = unclear || r.action == "accept"
			continue
		}
		if !r.conditional() {
			ends = true
			b.dropsForward = r.action == "drop"
			continue
		}
		b.addPolicies(r)
	}
	if b.dropsForward && !unclear {
		b.addDrops()
	}
	b.trim()
}

// endpoints are the zones that one side of a rule is about.
func (b *builder) endpoints(interfaces []string, networks []netip.Prefix) (zones []*loader.Zone, left []netip.Prefix) {
	if len(interfaces) > 0 {
		zones, _ = b.zonesOf(interfaces)
	} else if len(b.links) > 0 && len(networks) > 0 {
		for _, p := range networks {
			if z := b.zone(b.owner(p)); z != nil && !slices.Contains(zones, z) {
				zones = append(zones, z)
			}
		}
	}
	if zones == nil && len(interfaces) == 0 {
		// Isolation of the dmz and of mgmt is not opened by a rule that does not name them.
		zones = b.withRole(loader.RoleExternal, loader.RoleInternal)
	}
	return zones, networks
}

// others are the networks of a rule that do not just say "the whole zone".
func (b *builder) others(z *loader.Zone, networks []netip.Prefix) (left []netip.Prefix) {
	for _, p := range networks {
		if all, _ := b.within(z, p); all {
			return nil
		}
		left = append(left, p)
	}
	return left
}

func (b *builder) addPolicies(r hostRule) {
	from, src := b.endpoints(r.in, r.src)
	to, dst := b.endpoints(r.out, r.dst)
	for _, f := range from {
		for _, t := range to {
			accept := r.action == "accept"
			switch {
			case f == t && (len(r.in) == 0 || len(r.out) == 0):
				continue
			case f.Role == loader.RoleDMZ || t.Role == loader.RoleDMZ:
				if accept && (len(r.in) > 0 && len(r.out) > 0) {
					b.note("not taken over, nothing is routed to or from the dmz: %s", r.text)
				}
				continue
			case f.Role == loader.RoleMgmt && len(r.out) == 0 && accept:
				b.note("not taken over: %s; nothing passes between %s and others here unless policies: name it, as {from: %s, to: ZONE, action: accept}",
					r.text, f.Name, f.Name)
				continue
			case f.Role == loader.RoleExternal && accept && b.admitsForward(r):
				continue
			}
			p := loader.Policy{From: f.Name, To: t.Name, Accept: accept, Sources: b.others(f, src), Destinations: b.others(t, dst)}
			protos := r.protos
			if len(protos) == 0 {
				protos = []string{""}
			}
			for _, proto := range protos {
				p.Proto = proto
				p.Ports = r.ports
				if proto != "" && parsePolicyProto(proto) != nil {
					b.lost(r, "its protocol is not understood")
					continue
				}
				if !slices.ContainsFunc(b.cfg.Policies, func(o loader.Policy) bool { return policyYAML(o) == policyYAML(p) }) {
					b.cfg.Policies = append(b.cfg.Policies, p)
				}
			}
		}
	}
}

// admitsForward says that a rule only lets the flows of a forward in.
func (b *builder) admitsForward(r hostRule) bool {
	return slices.ContainsFunc(b.nat.Forwards, func(f loader.Forward) bool {
		return len(r.dst) == 1 && r.dst[0] == host(f.To) && slices.Contains(r.protos, f.Proto) &&
			slices.ContainsFunc(r.ports, func(p loader.PortRange) bool { return p.First <= f.ToPort && f.ToPort <= p.Last })
	})
}

// unconditional says that a policy is about all flows between its zones.
func unconditional(p loader.Policy) bool {
	return p.Proto == "" && len(p.Sources)+len(p.Destinations)+len(p.Ports) == 0
}

// addDrops ends what the host does not forward and our zones would let pass.
func (b *builder) addDrops() {
	for _, f := range b.withRole(loader.RoleInternal) {
		for _, t := range b.withRole(loader.RoleExternal, loader.RoleInternal) {
			decided := slices.ContainsFunc(b.cfg.Policies, func(p loader.Policy) bool {
				return p.From == f.Name && p.To == t.Name && unconditional(p)
			})
			if f != t && !decided {
				b.cfg.Policies = append(b.cfg.Policies, loader.Policy{From: f.Name, To: t.Name})
			}
		}
	}
}

// trim takes away policies that say what happens without them.
func (b *builder) trim() {
	role := func(name string) loader.Role {
		for _, z := range b.cfg.Zones {
			if z.Name == name {
				return z.Role
			}
		}
		return ""
	}
	type pair struct{ from, to string }
	decided := map[pair]bool{} // by a later policy that stays
	var kept []loader.Policy
	for i := len(b.cfg.Policies) - 1; i >= 0; i-- {
		p := b.cfg.Policies[i]
		at := pair{p.From, p.To}
		passes := role(p.From) == loader.RoleInternal && (role(p.To) == loader.RoleInternal || role(p.To) == loader.RoleExternal)
		if !decided[at] && p.Accept == passes {
			continue
		}
		if unconditional(p) {
			// Nothing behind it is ever asked.
			kept = slices.DeleteFunc(kept, func(o loader.Policy) bool { return o.From == p.From && o.To == p.To })
			if p.Accept == passes {
				decided[at] = false
				continue
			}
		}
		decided[at] = true
		kept = append(kept, p)
	}
	slices.Reverse(kept)
	b.cfg.Policies = kept
}
