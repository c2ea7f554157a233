package loader

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// insides are the sources that hosts of internal zones may use.
func (b *ruleBuilder) insides() {
	for name, prefixes := range b.inside {
		number := b.zones[name]
		for _, p := range prefixes {
			b.out.rules[addrKey(tapgateTgRuleKindTG_RULE_INSIDE, number, 0, p)] = tapgateTgRule{Number: uint32(number)}
		}
	}
}

func (b *ruleBuilder) masquerades() {
	names := map[string]bool{}
	for i, m := range b.nat.Masquerades {
		path := fmt.Sprintf("nat.masquerade[%d]", i)
		name := masqueradeName(m)
		b.checkRuleName(path+".name", "masquerade", name, m.Name == "", names)
		from, okFrom := b.zone(path+".from", m.From, RoleInternal, RoleMgmt)
		to, okTo := b.zone(path+".to", m.To, RoleExternal)
		if !okFrom || !okTo {
			continue
		}
		if b.roles[m.From] == RoleMgmt && !b.accepted(m.From, m.To) {
			b.warn("masquerade %q has nothing to do: mgmt zones reach others by policies only, and none accepts from %q to %q", name, m.From, m.To)
		}
		r := tapgateTgRule{Number: b.checkNumber(path, name, b.masqueradeNumber(name)), Forwarded: b.forwarded(m.To)}
		if m.EndpointIndependent {
			r.Flags |= masqEIF
		}
		if b.nat.ClampMSS {
			r.Flags |= masqClampMSS
		}
		b.masqueradePorts(path+".ports", m, &r)
		b.masqueradeSources(path, name, m, from, to, r)
	}
}

// forwarded has bit p%64 for each outside port p of a zone's forwards: a port that is
// chosen for a flow is looked for among them only where its bit is set.
func (b *ruleBuilder) forwarded(zone string) (bits uint64) {
	for _, f := range b.nat.Forwards {
		for p := uint32(f.Ports.First); f.In == zone && p <= uint32(f.Ports.Last) && bits != math.MaxUint64; p++ {
			bits |= 1 << (p % 64)
		}
	}
	return bits
}

// accepted says whether a policy lets anything pass between two zones.
func (b *ruleBuilder) accepted(from, to string) bool {
	return slices.ContainsFunc(b.policies, func(p Policy) bool { return p.From == from && p.To == to && p.Accept })
}

func (b *ruleBuilder) masqueradePorts(path string, m Masquerade, r *tapgateTgRule) {
	ports := m.Ports
	if len(ports) == 0 {
		for _, p := range b.defaultPorts {
			if p.First > 0 && p.Last >= p.First {
				ports = append(ports, p)
			}
		}
		if len(ports) == 0 {
			b.fail(path, "the host's ip_local_port_range leaves no ports for translation: narrow it, or give ports")
		}
	}
	if len(ports) > len(r.Lo) {
		b.fail(path, "%d ranges of ports; %d are possible", len(ports), len(r.Lo))
		return
	}
	for i, p := range ports {
		if !b.checkRange(fmt.Sprintf("%s[%d]", path, i), p) {
			continue
		}
		if i > 0 && p.First <= ports[0].Last && p.Last >= ports[0].First {
			b.fail(fmt.Sprintf("%s[%d]", path, i), "ports %s overlap %s of the same rule", p, ports[0])
		}
		r.Lo[i], r.Hi[i] = p.First, p.Last
	}
}

// masqueradeSources enters a rule for each network that it translates, with the
// addresses of that network's family. IPv4 is always translated, IPv6 by option.
func (b *ruleBuilder) masqueradeSources(path, name string, m Masquerade, from, to uint8, r tapgateTgRule) {
	pools := b.expand(path+".addresses", m.Addresses)
	ipv6 := m.IPv6 || len(pools[6]) > 0
	sources := b.checkPrefixes(path+".sources", m.Sources)
	if len(m.Sources) == 0 {
		sources = []netip.Prefix{anyIPv4}
		if ipv6 {
			sources = append(sources, anyIPv6)
		}
	}
	for i, p := range sources {
		at := fmt.Sprintf("%s.sources[%d]", path, i)
		family := familyOf(p.Addr())
		if family == 6 && !ipv6 {
			b.fail(at, "%s is IPv6, which this rule does not translate: add \"ipv6: true\" or IPv6 addresses", p)
			continue
		}
		if len(m.Sources) == 0 {
			at = path
		}
		entry := r
		b.usePool(path+".addresses", pools[family], &entry)
		key := addrKey(tapgateTgRuleKindTG_RULE_MASQUERADE, from, to, p)
		if owner, taken := b.owners[key]; taken && owner != name {
			b.fail(at, "masquerade %q translates sources of %s from %q to %q already: give one of them other sources", owner, p, m.From, m.To)
			continue
		}
		b.owners[key] = name
		b.out.rules[key] = entry
	}
}

// expand lists the single addresses of a pool, by family.
func (b *ruleBuilder) expand(path string, prefixes []netip.Prefix) map[uint8][]netip.Addr {
	pools := map[uint8][]netip.Addr{}
	count := 0
	for i, p := range b.checkPrefixes(path, prefixes) {
		at := fmt.Sprintf("%s[%d]", path, i)
		first := p.Addr()
		if first.IsUnspecified() || first.IsMulticast() || first.IsLoopback() || first.IsLinkLocalUnicast() {
			b.fail(at, "%s cannot be an outside address: give addresses that the outside routes here", p)
			continue
		}
		if host := first.BitLen() - p.Bits(); host > 12 || count+1<<host > limitPool {
			b.fail(at, "with %s there are more than %d addresses", p, limitPool)
			continue
		}
		for a := first; p.Contains(a); a = a.Next() {
			family := familyOf(a)
			if !slices.Contains(pools[family], a) {
				pools[family] = append(pools[family], a)
				count++
			}
		}
	}
	return pools
}

// usePool gives a rule its outside addresses. Rules with the same ones share them.
func (b *ruleBuilder) usePool(path string, addresses []netip.Addr, r *tapgateTgRule) {
	if len(addresses) == 0 {
		r.Flags |= masqOwnAddr
		return
	}
	content := fmt.Sprint(addresses)
	first, known := b.pools[content]
	if !known {
		first = uint32(len(b.out.pool))
		if len(b.out.pool)+len(addresses) > limitPool {
			b.fail(path, "with these there are more than %d outside addresses over all rules", limitPool)
			return
		}
		b.pools[content] = first
		b.out.pool = append(b.out.pool, addresses...)
	}
	r.Pool, r.PoolCount = first, uint32(len(addresses))
}

func (b *ruleBuilder) excludes() {
	for _, p := range b.checkPrefixes("nat.exclude", b.nat.Exclude) {
		b.out.rules[addrKey(tapgateTgRuleKindTG_RULE_EXCLUDE, 0, 0, p)] = tapgateTgRule{}
	}
}
