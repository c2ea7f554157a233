package loader

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// policySet holds policies by their place in the configuration.
type policySet [limitPolicies / 64]uint64

func (s *policySet) add(policy int) { s[policy/64] |= 1 << (policy % 64) }
func (s *policySet) join(o policySet) { // what either holds
	for i := range s {
		s[i] |= o[i]
	}
}

// policySets lays out the policies: for each thing that they ask of a packet,
// the set of those that it satisfies. The packet's policy is the first that is in all
// of the sets. The trie gives one entry, the longest, so each holds what the shorter ones hold.
func (b *ruleBuilder) policySets() {
	if len(b.policies) > limitPolicies {
		b.fail("policies", "%d policies are more than the %d that are possible", len(b.policies), limitPolicies)
		return
	}
	before := len(b.errs)
	names := map[string]bool{}
	var list []policy
	for i, p := range b.policies {
		list = append(list, b.policy(i, p, names))
	}
	if len(b.errs) > before || len(list) == 0 {
		return
	}
	s := setWriter{ruleBuilder: b, known: map[policySet]uint32{}}
	s.verdicts(list)
	s.pairs(list)
	s.protocols(list)
	s.addresses(tapgateTgRuleKindTG_RULE_POLICY_SRC, list, func(p policy) []netip.Prefix { return p.Sources })
	s.addresses(tapgateTgRuleKindTG_RULE_POLICY_DST, list, func(p policy) []netip.Prefix { return p.Destinations })
	s.ports(list)
	if n := setFirst + len(s.known); n > limitSets {
		b.fail("policies", "the policies take %d sets, and there is room for %d: let them share networks and ranges of ports", n, limitSets)
	}
}

// policy is a Policy as it goes into the maps.
type policy struct {
	Policy
	number   uint32
	from, to uint8
	proto    uint8
	anyProto bool
}

func (b *ruleBuilder) policy(i int, p Policy, names map[string]bool) policy {
	path := fmt.Sprintf("policies[%d]", i)
	name := policyName(i, p)
	b.checkRuleName(path+".name", "policy", name, p.Name == "", names)
	out := policy{Policy: p, anyProto: p.Proto == ""}
	// Whatever comes from a dmz is dropped where it comes in, and nothing is routed there.
	reachable := []Role{RoleExternal, RoleInternal, RoleMgmt}
	out.from, _ = b.zone(path+".from", p.From, reachable...)
	out.to, _ = b.zone(path+".to", p.To, reachable...)
	out.number = b.checkNumber(path, name, b.policyNumber(name))
	out.Sources = b.checkPrefixes(path+".sources", p.Sources)
	out.Destinations = b.checkPrefixes(path+".destinations", p.Destinations)

	if !out.anyProto {
		number, ok := protoNumber(p.Proto)
		if !ok {
			b.fail(path+".proto", "protocol %q: it is tcp, udp, icmp, icmpv6 or a number up to 255", p.Proto)
		}
		out.proto = number
	}
	if len(p.Ports) > 0 && !hasPorts(out) {
		b.fail(path+".ports", "ports go with proto tcp or udp: write one policy for each")
	}
	for j, r := range p.Ports {
		b.checkRange(fmt.Sprintf("%s.ports[%d]", path, j), r)
	}
	if p.Accept && p.Log {
		b.fail(path+".log", "only what is dropped is logged: leave log out, or let the policy drop")
	}
	if !out.possible() {
		b.fail(path, "no packet can match: its networks and protocol are not of one IP version")
	}
	return out
}

func protoNumber(name string) (uint8, bool) {
	switch name {
	case "tcp":
		return protoTCP, true
	case "udp":
		return protoUDP, true
	case "icmp":
		return unix.IPPROTO_ICMP, true
	case "icmpv6":
		return unix.IPPROTO_ICMPV6, true
	}
	number, err := strconv.ParseUint(name, 10, 8)
	return uint8(number), err == nil
}

func hasPorts(p policy) bool {
	return !p.anyProto && (p.proto == protoTCP || p.proto == protoUDP)
}

// possible says whether there is an IP version that all of the policy's conditions allow.
func (p policy) possible() bool {
	for _, family := range []uint8{4, 6} {
		among := func(list []netip.Prefix) bool {
			return len(list) == 0 || slices.ContainsFunc(list, func(n netip.Prefix) bool { return familyOf(n.Addr()) == family })
		}
		wrong := uint8(unix.IPPROTO_ICMPV6)
		if family == 6 {
			wrong = unix.IPPROTO_ICMP
		}
		if among(p.Sources) && among(p.Destinations) && (p.anyProto || p.proto != wrong) {
			return true
		}
	}
	return false
}

// setWriter enters sets. Equal ones are one.
type setWriter struct {
	*ruleBuilder
	known map[policySet]uint32
}

// enter makes a rule that leads to a set; an empty set needs none.
func (s *setWriter) enter(key tapgateTgRuleKey, set policySet) {
	if set == (policySet{}) {
		return
	}
	number, ok := s.known[set]
	if !ok {
		number = uint32(setFirst + len(s.known))
		s.known[set] = number
		s.out.sets[number] = tapgateTgPolicySet{Bits: set}
	}
	s.out.rules[key] = tapgateTgRule{Number: number}
}

// verdicts are what policies do, and under which number they are counted.
func (s *setWriter) verdicts(list []policy) {
	var accept, log policySet
	for i, p := range list {
		if p.Accept {
			accept.add(i)
		}
		if p.Log {
			log.add(i)
		}
		at := uint32(setNumbers + i/setNumbersEach)
		numbers := s.out.sets[at]
		numbers.Bits[i%setNumbersEach/4] |= uint64(p.number) << (i % 4 * 16)
		s.out.sets[at] = numbers
	}
	s.out.sets[setAccept] = tapgateTgPolicySet{Bits: accept}
	s.out.sets[setLog] = tapgateTgPolicySet{Bits: log}
}

func (s *setWriter) pairs(list []policy) {
	sets := map[tapgateTgRuleKey]policySet{}
	for i, p := range list {
		key := tapgateTgRuleKey{Prefixlen: bitsZones, Kind: uint8(tapgateTgRuleKindTG_RULE_POLICY_PAIR), A: p.from, B: p.to}
		set := sets[key]
		set.add(i)
		sets[key] = set
	}
	for key, set := range sets {
		s.enter(key, set)
	}
}

func (s *setWriter) protocols(list []policy) {
	var every policySet
	sets := map[uint8]*policySet{}
	for i, p := range list {
		switch {
		case p.anyProto:
			every.add(i)
		case sets[p.proto] == nil:
			sets[p.proto] = &policySet{}
			fallthrough
		default:
			sets[p.proto].add(i)
		}
	}
	key := tapgateTgRuleKey{Prefixlen: bitsZones, Kind: uint8(tapgateTgRuleKindTG_RULE_POLICY_PROTO)}
	s.enter(key, every)
	for proto, set := range sets {
		set.join(every)
		key.Prefixlen, key.Proto = bitsProto, proto
		s.enter(key, *set)
	}
}

func (s *setWriter) addresses(kind tapgateTgRuleKind, list []policy, of func(policy) []netip.Prefix) {
	for _, all := range []netip.Prefix{anyIPv4, anyIPv6} {
		sets := map[netip.Prefix]*policySet{all: {}}
		for i, p := range list {
			networks := of(p)
			if len(networks) == 0 {
				sets[all].add(i)
			}
			for _, n := range networks {
				if familyOf(n.Addr()) != familyOf(all.Addr()) {
					continue
				}
				if sets[n] == nil {
					sets[n] = &policySet{}
				}
				sets[n].add(i)
			}
		}
		var networks []netip.Prefix
		for n := range sets {
			networks = append(networks, n)
		}
		slices.SortFunc(networks, netip.Prefix.Compare) // a network before those in it
		var around []netip.Prefix
		for _, n := range networks {
			for len(around) > 0 && !around[len(around)-1].Contains(n.Addr()) {
				around = around[:len(around)-1]
			}
			if len(around) > 0 {
				sets[n].join(*sets[around[len(around)-1]])
			}
			around = append(around, n)
			s.enter(addrKey(kind, 0, 0, n), *sets[n])
		}
	}
}

// ports cuts the ports where any range begins or ends.
func (s *setWriter) ports(list []policy) {
	var every policySet
	for i, p := range list {
		if len(p.Ports) == 0 {
			every.add(i)
		}
	}
	key := tapgateTgRuleKey{Prefixlen: bitsZones, Kind: uint8(tapgateTgRuleKindTG_RULE_POLICY_PORT)}
	s.enter(key, every)
	for _, proto := range []uint8{protoTCP, protoUDP} {
		changes := map[int][]int{} // port -> policies that begin or end there
		for i, p := range list {
			if p.proto != proto {
				continue
			}
			for _, r := range mergeRanges(p.Ports) {
				changes[int(r.First)] = append(changes[int(r.First)], i)
				changes[int(r.Last)+1] = append(changes[int(r.Last)+1], i)
			}
		}
		key.Proto = proto
		s.portSets(key, every, changes)
	}
}

func (s *setWriter) portSets(key tapgateTgRuleKey, every policySet, changes map[int][]int) {
	var cuts []int
	for port := range changes {
		cuts = append(cuts, port)
	}
	slices.Sort(cuts)
	var now policySet
	for i, cut := range cuts {
		for _, policy := range changes[cut] {
			now[policy/64] ^= 1 << (policy % 64)
		}
		if now == (policySet{}) {
			continue // also behind the last one
		}
		set := every
		set.join(now)
		for _, p := range portPrefixes(PortRange{uint16(cut), uint16(cuts[i+1] - 1)}) {
			key.Prefixlen, key.Port = uint32(bitsAddr+p.bits), bigEndian(p.port)
			s.enter(key, set)
		}
	}
}

// mergeRanges gives ranges that neither overlap nor touch.
func mergeRanges(ranges []PortRange) (merged []PortRange) {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(x, y PortRange) int { return int(x.First) - int(y.First) })
	for _, r := range sorted {
		if n := len(merged); n > 0 && int(r.First) <= int(merged[n-1].Last)+1 {
			merged[n-1].Last = max(merged[n-1].Last, r.Last)
			continue
		}
		merged = append(merged, r)
	}
	return merged
}
