package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tapgate/loader"
)

// imported is what was read of a host.
type imported struct {
	from  []string // where it was read
	zones []importedZone
	rules []hostRule
	notes []string
	links []hostLink // of this machine; none where a file of another is read

	dropsForward bool   // what no rule admits is not forwarded
	defaultZone  string // of firewalld
	iptablesRead bool   // iptables' rules need not be looked for among nft's
	count        int    // of rules seen
	undone       []string
}

// importedZone is a zone of firewalld.
type importedZone struct {
	name       string
	interfaces []string
}

func (im *imported) note(format string, args ...any) {
	n := fmt.Sprintf(format, args...)
	if !slices.Contains(im.notes, n) {
		im.notes = append(im.notes, n)
	}
}

func (im *imported) found(from string, rules int) {
	if rules > 0 {
		im.from = append(im.from, from)
	}
	im.count += rules
}

// addChain adds the rules of a chain that a hook begins with. drops says that it
// ends what it does not accept.
func (im *imported) addChain(chains map[string]*hostChain, name string, drops bool) {
	rules := flatten(chains, name)
	if len(rules) == maxWalk {
		im.note("chain %s has more than %d rules: the others are not taken over", name, maxWalk)
	}
	im.rules = append(im.rules, rules...)
	im.dropsForward = im.dropsForward || drops
}

// builder makes a configuration of what was read.
type builder struct {
	*imported
	cfg   loader.Config
	roles map[string]loader.Role // of interfaces
	was   map[string]string      // firewalld's zone of an interface
	nat   loader.NAT
	// copied is, by mirror and target, whether what comes in and what goes out was copied.
	copied map[string][2]bool
}

// evidence gives an interface a role that rules show, unless there is a better one.
func (b *builder) evidence(role loader.Role, names ...string) {
	for _, n := range names {
		switch {
		case n == "" || n == "lo" || b.roles[n] != "":
		case len(b.links) > 0 && !slices.ContainsFunc(b.links, func(l hostLink) bool { return l.name == n }):
			b.note("there is no interface %s here, which rules name", n)
		default:
			b.roles[n] = role
		}
	}
}

// expand replaces names with a + or * at the end by the interfaces of this machine.
func (b *builder) expand(names []string) (all []string) {
	for _, n := range names {
		stem := strings.TrimRight(n, "+*")
		if stem == n {
			all = append(all, n)
			continue
		}
		for _, l := range b.links {
			if strings.HasPrefix(l.name, stem) {
				all = append(all, l.name)
			}
		}
		if len(b.links) == 0 {
			b.note("%s stands for interfaces that only the gateway itself knows: run the import there", n)
		}
	}
	return all
}

// owner is the interface on whose network an address or network is.
func (b *builder) owner(p netip.Prefix) string {
	best, bits := "", -1
	for _, l := range b.links {
		for _, n := range slices.Concat(l.addrs, l.routes) {
			if n = n.Masked(); n.Bits() <= p.Bits() && n.Contains(p.Addr()) && n.Bits() > bits {
				best, bits = l.name, n.Bits()
			}
		}
	}
	return best
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// findRoles says what each interface is for. What rules show counts more than what
// a zone is called, and nobody's interface stays out.
func (b *builder) findRoles() {
	b.roles, b.was = map[string]loader.Role{}, map[string]string{}
	for _, z := range b.zones {
		for _, i := range z.interfaces {
			b.was[i] = z.name
		}
	}
	ruled := func(f func(r hostRule)) {
		for i := range b.rules {
			f(b.rules[i])
		}
	}
	translates := func(r hostRule) bool {
		return r.hook == "postrouting" && (r.action == "masquerade" || r.action == "snat")
	}
	for i := range b.rules {
		r := &b.rules[i]
		r.in, r.out = b.expand(r.in), b.expand(r.out)
	}
	// A bridge of containers or virtual machines is not the outside.
	ruled(func(r hostRule) {
		if translates(r) && len(r.rest) == 0 {
			b.evidence(loader.RoleExternal, r.out...)
		}
	})
	ruled(func(r hostRule) {
		if r.action == "tee" && r.to.IsValid() {
			b.evidence(loader.RoleDMZ, b.owner(host(r.to)))
		}
		if r.action == "tee" && r.device != "" {
			b.evidence(loader.RoleDMZ, r.device)
		}
	})
	ruled(func(r hostRule) {
		switch {
		case r.action == "tee":
			b.evidence(loader.RoleInternal, slices.Concat(r.in, r.out)...)
			for _, p := range slices.Concat(r.src, r.dst) {
				b.evidence(loader.RoleInternal, b.owner(p))
			}
		case r.action == "dnat" && r.to.IsValid():
			b.evidence(loader.RoleInternal, b.owner(host(r.to)))
		}
	})
	ruled(func(r hostRule) {
		if r.action == "dnat" {
			b.evidence(loader.RoleExternal, r.in...)
		}
		for _, l := range b.links {
			if l.def && translates(r) && len(r.rest) == 0 && len(r.out) == 0 {
				b.evidence(loader.RoleExternal, l.name)
			}
		}
	})
	for _, z := range b.zones {
		role := map[string]loader.Role{
			"external": loader.RoleExternal, "public": loader.RoleExternal, "dmz": loader.RoleDMZ,
			"internal": loader.RoleInternal, "home": loader.RoleInternal, "work": loader.RoleInternal,
		}[z.name]
		for _, i := range z.interfaces {
			if b.roles[i] == "" && role == "" && z.name != "trusted" {
				b.note("zone %s (%s): nothing says what it is for; as mgmt nothing passes between it and others", z.name, i)
			}
			b.evidence(cmp.Or(role, loader.RoleMgmt), i)
		}
	}
	if len(b.zones) == 0 {
		ruled(func(r hostRule) {
			if !translates(r) || len(r.rest) > 0 {
				return
			}
			for _, p := range r.src {
				if i := b.owner(p); !b.restricted(i) {
					b.evidence(loader.RoleInternal, i)
				}
			}
		})
	}
	// What is forwarded only by rules gets the strictest role, and these as policies.
	ruled(func(r hostRule) {
		if r.hook == "forward" && r.action == "accept" && !r.underWay && len(r.rest) == 0 && len(r.in) > 0 && len(r.out) > 0 {
			b.evidence(loader.RoleMgmt, slices.Concat(r.in, r.out)...)
		}
	})
}

// restricted says that the host forwards only some of what comes from an interface.
func (b *builder) restricted(iface string) bool {
	some := false
	for _, r := range b.rules {
		if r.hook != "forward" || r.action != "accept" || r.underWay || !slices.Contains(r.in, iface) {
			continue
		}
		if len(r.protos)+len(r.dst)+len(r.rest) == 0 {
			return false
		}
		some = true
	}
	return some && b.dropsForward
}

var roleOrder = []loader.Role{loader.RoleExternal, loader.RoleInternal, loader.RoleDMZ, loader.RoleMgmt}

// makeZones puts interfaces into zones: those that shared one in firewalld, or
// those of one role.
func (b *builder) makeZones() {
	for _, role := range roleOrder {
		var interfaces []string
		for i, r := range b.roles {
			if r == role {
				interfaces = append(interfaces, i)
			}
		}
		slices.Sort(interfaces)
		for _, i := range interfaces {
			name := b.zoneName(i, role)
			at := slices.IndexFunc(b.cfg.Zones, func(z loader.Zone) bool { return z.Name == name })
			if at < 0 {
				at = len(b.cfg.Zones)
				b.cfg.Zones = append(b.cfg.Zones, loader.Zone{Name: name, Role: role})
				if was := b.was[i]; was != "" && was != name {
					b.note("zone %s (%s) is firewalld's %s", name, i, was)
				}
			}
			z := &b.cfg.Zones[at]
			z.Interfaces = append(z.Interfaces, i)
			if role == loader.RoleInternal {
				z.Prefixes = append(z.Prefixes, b.behind(i)...)
			}
		}
	}
	for _, l := range b.links {
		if b.roles[l.name] == "" && l.up && len(l.addrs) > 0 {
			var texts []string
			for _, a := range l.addrs {
				texts = append(texts, a.String())
			}
			b.note("no rule says what %s (%s) is for: it is in no zone; the management network's is mgmt: {interfaces: [%s]}", l.name, strings.Join(texts, ", "), l.name)
		}
	}
}

// behind are the networks behind routers of an interface.
func (b *builder) behind(name string) []netip.Prefix {
	for _, l := range b.links {
		if l.name == name {
			return l.routes
		}
	}
	return nil
}

// apart says that internal interfaces differ: the host keeps them apart, or only some
// of them are copied.
func (b *builder) apart() bool {
	inside, tapped := 0, 0
	for i, role := range b.roles {
		if role != loader.RoleInternal {
			continue
		}
		inside++
		if slices.ContainsFunc(b.rules, func(r hostRule) bool {
			return r.action == "tee" && (slices.Contains(r.in, i) || slices.Contains(r.out, i) ||
				slices.ContainsFunc(slices.Concat(r.src, r.dst), func(p netip.Prefix) bool { return b.owner(p) == i }))
		}) {
			tapped++
		}
	}
	return inside > 1 && (b.dropsForward || tapped > 0 && tapped < inside)
}

// zoneName is firewalld's name where it can be ours too and has one role only.
func (b *builder) zoneName(iface string, role loader.Role) string {
	was := b.was[iface]
	if was == "" && role == loader.RoleInternal && b.apart() {
		was = iface
	}
	if was == "" || was == "trusted" && role == loader.RoleMgmt {
		return string(role)
	}
	for other, zone := range b.was {
		if zone == was && b.roles[other] != role {
			return string(role)
		}
	}
	if slices.Contains(roles, was) && was != string(role) {
		return was + "-zone" // its name would say another role
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, strings.ToLower(was))
	if name[0] < 'a' || name[0] > 'z' {
		name = "z" + name
	}
	return name[:min(len(name), 32)]
}

// zone is that of an interface.
func (b *builder) zone(iface string) *loader.Zone {
	for i := range b.cfg.Zones {
		if slices.Contains(b.cfg.Zones[i].Interfaces, iface) {
			return &b.cfg.Zones[i]
		}
	}
	return nil
}

// zonesOf are the zones of interfaces. whole is false where they are only some of a zone's.
func (b *builder) zonesOf(interfaces []string) (zones []*loader.Zone, whole bool) {
	whole = true
	for _, i := range interfaces {
		z := b.zone(i)
		if z == nil || slices.Contains(zones, z) {
			continue
		}
		zones = append(zones, z)
		for _, other := range z.Interfaces {
			whole = whole && slices.Contains(interfaces, other)
		}
	}
	return zones, whole
}

// withRole are the zones of these roles.
func (b *builder) withRole(want ...loader.Role) (zones []*loader.Zone) {
	for i := range b.cfg.Zones {
		if slices.Contains(want, b.cfg.Zones[i].Role) {
			zones = append(zones, &b.cfg.Zones[i])
		}
	}
	return zones
}

// within says whether a network is all that an interface of the zone has, and
// whether it belongs to the zone at all.
func (b *builder) within(z *loader.Zone, p netip.Prefix) (all, some bool) {
	var own []netip.Prefix
	for _, l := range b.links {
		if slices.Contains(z.Interfaces, l.name) {
			for _, n := range slices.Concat(l.addrs, l.routes) {
				if n.Addr().BitLen() == p.Addr().BitLen() {
					own = append(own, n.Masked())
				}
			}
		}
	}
	all = len(own) > 0
	for _, n := range own {
		some = some || n.Overlaps(p)
		all = all && p.Bits() <= n.Bits() && p.Contains(n.Addr())
	}
	return all, some
}

// zonesFor are the internal and mgmt zones that networks belong to. Where the
// addresses of interfaces are not known it is the only internal one.
func (b *builder) zonesFor(networks []netip.Prefix) []*loader.Zone {
	var zones []*loader.Zone
	candidates := b.withRole(loader.RoleInternal, loader.RoleMgmt)
	for _, z := range candidates {
		if slices.ContainsFunc(networks, func(p netip.Prefix) bool { _, some := b.within(z, p); return some }) {
			zones = append(zones, z)
		}
	}
	if inside := b.withRole(loader.RoleInternal); len(zones) == 0 && len(inside) == 1 {
		return inside
	}
	return zones
}
