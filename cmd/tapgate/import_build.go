package main

import (
	"fmt"
	"net/netip"
	"slices"

	"tapgate/loader"
)

// build makes the configuration that does what was read.
func (im *imported) build() loader.Config {
	b := &builder{imported: im}
	b.findRoles()
	b.makeZones()
	for _, r := range b.rules {
		switch {
		case r.underWay:
		case r.action == "tee":
			b.mirror(r)
		case r.hook == "prerouting" && r.action == "dnat":
			b.forward(r)
		case r.hook == "postrouting" && (r.action == "masquerade" || r.action == "snat"):
			b.masquerade(r)
		case r.hook == "postrouting" && (r.action == "accept" || r.action == "return"):
			b.exclude(r)
		case r.clamp:
			b.nat.ClampMSS = true
			b.done(r)
		case r.action == "REDIRECT", r.action == "NETMAP", r.action == "TPROXY", r.action == "redirect", r.action == "fwd":
			b.lost(r, "it has no counterpart")
		}
	}
	b.policies()
	if len(b.nat.Masquerades) > 0 || len(b.nat.Forwards) > 0 {
		b.cfg.NAT = &b.nat
	}
	if b.cfg.NAT == nil && len(b.cfg.Mirrors) > 0 {
		b.cfg.Policies = nil // else it were a gateway
		b.note("nothing is translated here: the configuration only taps, and forwarding stays the host's business")
	}
	return b.cfg
}

// done writes down how a rule goes that the configuration replaces.
func (b *builder) done(r hostRule) {
	if r.undo != "" && !slices.Contains(b.undone, r.undo) {
		b.undone = append(b.undone, r.undo)
	}
}

func (b *builder) lost(r hostRule, why string) { b.note("not taken over, %s: %s", why, r.text) }

// plain says that a rule has no matches but those we know, and tells those that it has.
func (b *builder) plain(r hostRule) bool {
	if len(r.rest) > 0 {
		b.lost(r, fmt.Sprintf("%q has no counterpart", r.rest[0]))
		return false
	}
	return true
}

// masquerade takes over a rule that translates sources.
func (b *builder) masquerade(r hostRule) {
	if !b.plain(r) {
		return
	}
	if len(r.ports) > 0 || len(r.dst) > 0 || len(r.protos) > 0 && !slices.Contains(r.protos, "tcp") {
		b.lost(r, "it is for some protocols, ports or destinations only")
		return
	}
	to, _ := b.zonesOf(r.out)
	if len(r.out) == 0 {
		to = b.withRole(loader.RoleExternal)
	}
	to = slices.DeleteFunc(to, func(z *loader.Zone) bool { return z.Role != loader.RoleExternal })
	if len(to) == 0 {
		b.lost(r, "no external interface is known for it")
		return
	}
	from := b.withRole(loader.RoleInternal, loader.RoleMgmt)
	if len(r.in) > 0 {
		from, _ = b.zonesOf(r.in)
	}
	if len(r.src) > 0 {
		from = b.zonesFor(r.src)
	}
	if len(from) == 0 {
		b.lost(r, "no internal network is known for it")
		return
	}
	for _, f := range from {
		for _, t := range to {
			b.addMasquerade(r, f, t)
		}
	}
	b.done(r)
	for _, p := range r.notDst {
		b.addExclude(p)
	}
}

func (b *builder) addMasquerade(r hostRule, from, to *loader.Zone) {
	if from.Role == loader.RoleExternal || from.Role == loader.RoleDMZ {
		return
	}
	m := loader.Masquerade{From: from.Name, To: to.Name, Addresses: r.pool}
	everything := slices.ContainsFunc(b.nat.Masquerades, func(o loader.Masquerade) bool {
		return o.From == m.From && o.To == m.To && len(o.Sources) == 0
	})
	for _, p := range r.src {
		all, some := b.within(from, p)
		switch {
		case all && (p.Addr().Is4() || everything): // a rule without sources is for IPv4 in any case
		case some || len(b.links) == 0:
			m.Sources = append(m.Sources, p)
		}
	}
	// A rule of iptables is IPv4 or IPv6; an nft one of both translates what there is.
	m.IPv6 = slices.ContainsFunc(m.Sources, func(p netip.Prefix) bool { return p.Addr().Is6() })
	m.IPv6 = m.IPv6 || r.ipv6 && len(r.pool) == 0 && slices.ContainsFunc(b.links, func(l hostLink) bool {
		return slices.Contains(to.Interfaces, l.name) && slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
	})
	if r.toPorts.First > 0 {
		m.Ports = []loader.PortRange{r.toPorts}
	}
	for i := range b.nat.Masquerades {
		o := &b.nat.Masquerades[i]
		if o.From != m.From || o.To != m.To {
			continue
		}
		switch {
		case len(o.Sources) == 0 && !(m.IPv6 && !o.IPv6):
			return // it takes all already
		case slices.Equal(o.Sources, m.Sources) && slices.Equal(o.Addresses, m.Addresses):
			o.IPv6 = o.IPv6 || m.IPv6
			return
		}
	}
	base := m.From + "-" + m.To
	if n := slices.IndexFunc(b.nat.Masquerades, func(o loader.Masquerade) bool { return o.From == m.From && o.To == m.To }); n >= 0 {
		m.Name = unique(base, func(s string) bool {
			return s == base || slices.ContainsFunc(b.nat.Masquerades, func(o loader.Masquerade) bool { return o.Name == s })
		})
	}
	b.nat.Masquerades = append(b.nat.Masquerades, m)
}

// unique is a name, with a number if it is taken.
func unique(name string, taken func(string) bool) string {
	for n, s := 2, name; ; n++ {
		if !taken(s) {
			return s
		}
		s = fmt.Sprintf("%s-%d", name, n)
	}
}

// exclude takes over an exception from translation.
func (b *builder) exclude(r hostRule) {
	if len(r.dst) == 0 {
		return
	}
	if !b.plain(r) || len(r.ports) > 0 || len(r.protos) > 0 {
		return
	}
	for _, p := range r.dst {
		b.addExclude(p)
	}
}

func (b *builder) addExclude(p netip.Prefix) {
	if !slices.Contains(b.nat.Exclude, p) {
		b.nat.Exclude = append(b.nat.Exclude, p)
	}
}

// forward takes over a rule that translates destinations.
func (b *builder) forward(r hostRule) {
	if !b.plain(r) {
		return
	}
	in, _ := b.zonesOf(r.in)
	if len(r.in) == 0 {
		in = b.withRole(loader.RoleExternal)
	}
	outside := slices.DeleteFunc(slices.Clone(in), func(z *loader.Zone) bool { return z.Role != loader.RoleExternal })
	var address netip.Addr
	switch {
	case len(r.dst) == 1 && r.dst[0].IsSingleIP():
		address = r.dst[0].Addr()
	case len(r.dst) > 0:
		b.lost(r, "it is for several addresses: write one forward for each")
		return
	}
	switch {
	case !r.to.IsValid():
		b.lost(r, "its destination is not one address")
		return
	case len(outside) == 0 && len(in) > 0:
		b.note("not taken over: %s; inside hosts that ask the outside address are served without it (hairpin)", r.text)
		b.done(r)
		return
	case len(outside) == 0:
		b.lost(r, "no external interface is known for it")
		return
	case len(r.protos) == 0 || len(r.ports) == 0:
		b.lost(r, "a forward is of tcp or udp ports")
		return
	}
	for _, z := range outside {
		for _, proto := range r.protos {
			if parseForwardProto(proto) != nil {
				b.lost(r, "a forward is of tcp or udp ports")
				continue
			}
			for _, ports := range r.ports {
				b.addForward(r, loader.Forward{In: z.Name, Address: address, Proto: proto, Ports: ports, To: r.to, ToPort: ports.First, Sources: r.src})
			}
		}
	}
}

func (b *builder) addForward(r hostRule, f loader.Forward) {
	if r.toPorts.First > 0 {
		if portCount(r.toPorts) != portCount(f.Ports) {
			b.lost(r, "its ranges of ports have not the same size")
			return
		}
		f.ToPort = r.toPorts.First
	}
	for _, o := range b.nat.Forwards {
		if o.In == f.In && o.Proto == f.Proto && o.Address == f.Address && slices.Equal(o.Sources, f.Sources) &&
			o.Ports.First <= f.Ports.Last && f.Ports.First <= o.Ports.Last {
			if o.To != f.To || o.ToPort != f.ToPort {
				b.lost(r, "an earlier rule has its ports")
			}
			return
		}
	}
	f.Name = unique(f.Proto+"-"+portsText(f.Ports), func(s string) bool {
		return slices.ContainsFunc(b.nat.Forwards, func(o loader.Forward) bool { return o.Name == s })
	})
	if len(b.links) > 0 {
		if z := b.zone(b.owner(host(f.To))); z == nil || z.Role != loader.RoleInternal {
			b.note("forward %s leads to %s, which is in no network of an internal zone: name its network in prefixes: of a zone", f.Name, f.To)
		}
	}
	b.nat.Forwards = append(b.nat.Forwards, f)
	b.done(r)
}

// mirror takes over a rule that copies packets.
func (b *builder) mirror(r hostRule) {
	target := loader.Target{Via: r.to, L2: r.device}
	if !target.Via.IsValid() && target.L2 == "" {
		b.lost(r, "where its copies go is not understood")
		return
	}
	zones, whole := b.zonesOf(slices.Concat(r.in, r.out))
	networks := slices.Concat(r.src, r.dst)
	if len(zones) == 0 || zones[0].Role == loader.RoleExternal && len(networks) > 0 {
		zones = b.withRole(loader.RoleInternal)
		if len(networks) > 0 {
			zones = b.zonesFor(networks)
			for _, p := range networks {
				for _, z := range zones {
					all, some := b.within(z, p)
					whole = whole && (all || !some)
				}
			}
		}
	}
	zones = slices.DeleteFunc(zones, func(z *loader.Zone) bool { return z.Role == loader.RoleDMZ })
	if len(zones) == 0 {
		b.lost(r, "no internal zone is known for it")
		return
	}
	if len(r.rest) > 0 || len(r.ports) > 0 || len(r.protos) > 0 || !whole {
		b.note("copies were only of a part, and are of all packets of the zone now: %s", r.text)
	}
	for _, z := range zones {
		at := slices.IndexFunc(b.cfg.Mirrors, func(m loader.Mirror) bool { return slices.Equal(m.Zones, []string{z.Name}) })
		if at < 0 {
			name := unique("ids", func(s string) bool {
				return slices.ContainsFunc(b.cfg.Mirrors, func(m loader.Mirror) bool { return m.Name == s })
			})
			at = len(b.cfg.Mirrors)
			b.cfg.Mirrors = append(b.cfg.Mirrors, loader.Mirror{Name: name, Zones: []string{z.Name}})
		}
		m := &b.cfg.Mirrors[at]
		if !slices.ContainsFunc(m.Targets, func(t loader.Target) bool { return t.String() == target.String() }) {
			m.Targets = append(m.Targets, target)
		}
		b.direction(m.Name, target, r)
	}
	b.done(r)
}
