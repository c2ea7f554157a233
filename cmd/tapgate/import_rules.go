package main

import (
	"net/netip"
	"slices"
	"strings"

	"tapgate/loader"
)

// hostRule is a rule of the host's packet filter in terms that all of them share.
// A field that is empty matches everything.
type hostRule struct {
	text string // as the host has it, for people
	undo string // the command that takes it away; "" if there is none

	hook    string // prerouting, forward or postrouting; "ingress" of netdev tables
	in, out []string
	src     []netip.Prefix
	dst     []netip.Prefix
	notDst  []netip.Prefix
	protos  []string
	ports   []loader.PortRange // destination ports
	rest    []string           // matches that have no counterpart here
	// underWay: only for packets of flows that another rule has admitted.
	underWay bool
	dnatted  bool // of these, such that a forward of the host has admitted
	ipv6     bool // may match IPv6
	clamp    bool // the MSS of SYNs to what the way allows

	action  string // masquerade, snat, dnat, tee, accept, drop; others as they are called
	to      netip.Addr
	toPorts loader.PortRange
	pool    []netip.Prefix
	device  string // that copies leave by as they are
}

// conditional says that a rule is not for all packets.
func (r *hostRule) conditional() bool {
	return len(r.in)+len(r.out)+len(r.src)+len(r.dst)+len(r.notDst)+len(r.protos)+len(r.rest) > 0
}

// hostChain is a list of rules that others jump to, or that a hook begins with.
type hostChain struct {
	hook   string
	kind   string // nat or filter
	policy string
	rules  []chainRule
}

type chainRule struct {
	hostRule
	jump string // to a chain of the same table, instead of an action
}

// maxWalk bounds what nested chains unfold to.
const maxWalk = 20000

// flatten gives the rules of a chain and of those it jumps to, each with all that
// must match on the way there, in the order in which the kernel meets them.
func flatten(chains map[string]*hostChain, name string) []hostRule {
	var all []hostRule
	var walk func(name string, on hostRule, depth int)
	walk = func(name string, on hostRule, depth int) {
		c := chains[name]
		if c == nil || depth > 16 {
			return
		}
		for _, r := range c.rules {
			if len(all) >= maxWalk {
				return
			}
			both, possible := on.and(r.hostRule)
			switch {
			case !possible:
			case r.jump != "":
				walk(r.jump, both, depth+1)
			case r.action == "return" && depth > 0 && !r.conditional():
				return // what stands behind it is never met
			default:
				all = append(all, both)
			}
		}
	}
	walk(name, hostRule{hook: chains[name].hook, ipv6: true}, 0)
	return all
}

// and is the rule r where the matches of on hold as well; possible is false where
// no packet can match both.
func (on hostRule) and(r hostRule) (both hostRule, possible bool) {
	both, possible = r, true
	both.hook = on.hook
	meet := func(a, b []string) []string {
		if len(a) == 0 || len(b) == 0 {
			return slices.Concat(a, b)
		}
		common := slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
		possible = possible && len(common) > 0
		return common
	}
	both.in, both.out, both.protos = meet(on.in, r.in), meet(on.out, r.out), meet(on.protos, r.protos)
	overlap := func(a, b []netip.Prefix) []netip.Prefix {
		if len(a) == 0 || len(b) == 0 {
			return slices.Concat(a, b)
		}
		var common []netip.Prefix
		for _, p := range a {
			for _, q := range b {
				switch {
				case !p.Overlaps(q):
				case p.Bits() > q.Bits():
					common = append(common, p)
				default:
					common = append(common, q)
				}
			}
		}
		possible = possible && len(common) > 0
		return common
	}
	both.src, both.dst = overlap(on.src, r.src), overlap(on.dst, r.dst)
	both.notDst = slices.Concat(on.notDst, r.notDst)
	both.rest = slices.Concat(on.rest, r.rest)
	both.underWay, both.dnatted = on.underWay || r.underWay, on.dnatted || r.dnatted
	both.ipv6 = on.ipv6 && r.ipv6
	switch {
	case len(r.ports) == 0:
		both.ports = on.ports
	case len(on.ports) > 0 && !slices.Equal(on.ports, r.ports):
		both.rest = append(both.rest, "two matches of ports")
	}
	return both, possible
}

// addressRange turns "A", "A-B" or a network into networks.
func addressRange(s string) ([]netip.Prefix, bool) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		p, err := parsePrefix(s)
		return []netip.Prefix{p}, err == nil
	}
	a, errA := parseAddr(first)
	b, errB := parseAddr(last)
	if errA != nil || errB != nil || a.BitLen() != b.BitLen() || b.Less(a) {
		return nil, false
	}
	var all []netip.Prefix
	for a.IsValid() && !b.Less(a) && len(all) < 256 {
		// The largest network that begins at a and does not go beyond b.
		bits := a.BitLen()
		for bits > 0 {
			p := netip.PrefixFrom(a, bits-1)
			if p.Masked().Addr() != a || b.Less(lastOf(p)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(a, bits)
		all = append(all, p)
		a = lastOf(p).Next()
	}
	return all, !a.IsValid() || b.Less(a)
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
