package loader

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// memoryMaps finds the longest prefix in a ruleset, as the kernel's trie does.
type memoryMaps struct {
	*ruleset
	ours map[netip.Addr]tapgateTgOurAddr
}

func (m memoryMaps) rule(key tapgateTgRuleKey) (*tapgateTgRule, error) {
	for ; key.Prefixlen > 0; key.Prefixlen-- {
		key = maskedKey(key)
		if r, ok := m.rules[key]; ok {
			return &r, nil
		}
	}
	return nil, nil
}

func (m memoryMaps) set(number uint32) (*tapgateTgPolicySet, error) {
	if s, ok := m.sets[number]; ok {
		return &s, nil
	}
	return nil, nil
}

func (m memoryMaps) our(a netip.Addr) (*tapgateTgOurAddr, error) {
	if o, ok := m.ours[a]; ok {
		return &o, nil
	}
	return nil, nil
}

// maskedKey clears what stands behind a key's length.
func maskedKey(k tapgateTgRuleKey) tapgateTgRuleKey {
	raw := append([]byte{k.Kind, k.A, k.B, k.Proto}, k.Addr[:]...)
	port := bigEndian(k.Port)
	raw = append(raw, byte(port>>8), byte(port))
	for i := range raw {
		switch left := int(k.Prefixlen) - i*8; {
		case left <= 0:
			raw[i] = 0
		case left < 8:
			raw[i] &= 0xff << (8 - left)
		}
	}
	out := tapgateTgRuleKey{Prefixlen: k.Prefixlen, Kind: raw[0], A: raw[1], B: raw[2], Proto: raw[3], Addr: [16]byte(raw[4:20])}
	out.Port = bigEndian(uint16(raw[20])<<8 | uint16(raw[21]))
	return out
}

// Zones of these tests, by number.
var ruleZones = []Zone{
	{}, {Name: "wan", Role: RoleExternal}, {Name: "wan2", Role: RoleExternal}, {Name: "lan", Role: RoleInternal},
	{Name: "lab", Role: RoleInternal}, {Name: "mgmt", Role: RoleMgmt}, {Name: "dmz", Role: RoleDMZ},
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		if !strings.Contains(s, "/") {
			a := netip.MustParseAddr(s)
			s = netip.PrefixFrom(a, a.BitLen()).String()
		}
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// ruleTestInput has rules numbered 100 (forwards), 200 and 300 (policies) on, as they come.
func ruleTestInput(nat *NAT, policies ...Policy) ruleInput {
	in := ruleInput{
		zones: map[string]uint8{}, roles: map[string]Role{}, nat: nat, policies: policies,
		inside: map[string][]netip.Prefix{
			"lan": prefixes("192.168.3.1/24", "10.3.0.0/16", "2001:db8:3::1/64", "fe80::1/64"),
			"lab": prefixes("192.168.4.1/24", "10.3.7.0/24", "2001:db8:4::1/64"),
		},
		defaultPorts: [2]PortRange{{1024, 32767}, {61000, 65535}},
	}
	for i, z := range ruleZones[1:] {
		in.zones[z.Name], in.roles[z.Name] = uint8(i+1), z.Role
	}
	numbers := func(first int) func(string) uint32 {
		known := map[string]uint32{}
		return func(name string) uint32 {
			if _, ok := known[name]; !ok {
				known[name] = uint32(first + len(known))
			}
			return known[name]
		}
	}
	in.forwardNumber, in.masqueradeNumber, in.policyNumber = numbers(100), numbers(200), numbers(300)
	return in
}

// wantProblems: every *ConfigError of err, as "path: part of the text".
func wantProblems(t *testing.T, err error, want ...string) {
	t.Helper()
	var got []*ConfigError
	var walk func(error)
	walk = func(err error) {
		var c *ConfigError
		if many, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range many.Unwrap() {
				walk(e)
			}
		} else if errors.As(err, &c) {
			got = append(got, c)
		} else if err != nil {
			t.Errorf("not a ConfigError: %v", err)
		}
	}
	walk(err)
	ok := len(got) == len(want)
	for i := 0; ok && i < len(want); i++ {
		path, text, _ := strings.Cut(want[i], ": ")
		ok = got[i].Path == path && strings.Contains(got[i].Err, text)
	}
	if !ok {
		t.Errorf("problems:\n%v\nwant:\n%s", err, strings.Join(want, "\n"))
	}
}

func TestRulesRefused(t *testing.T) {
	fw := func(change func(*Forward)) *NAT {
		f := Forward{
			Name: "rdp", In: "wan", Proto: "tcp", Ports: PortRange{3389, 3389}, To: netip.MustParseAddr("192.168.3.3"), ToPort: 3389,
		}
		change(&f)
		return &NAT{Forwards: []Forward{f}}
	}
	two := func(change func(*Forward)) *NAT {
		n := fw(func(f *Forward) { f.Ports = PortRange{7000, 7009} })
		f := n.Forwards[0]
		f.Name = "other"
		change(&f)
		n.Forwards = append(n.Forwards, f)
		return n
	}
	masq := func(m ...Masquerade) *NAT { return &NAT{Masquerades: m} }
	for name, c := range map[string]struct {
		nat      *NAT
		policies []Policy
		want     []string
	}{
		"forward in an unknown zone":   {fw(func(f *Forward) { f.In = "wam" }), nil, []string{`nat.forwards[0].in: no zone "wam"; there are: dmz, lab, lan, mgmt, wan, wan2`}},
		"forward in an internal zone":  {fw(func(f *Forward) { f.In = "lan" }), nil, []string{`nat.forwards[0].in: zone "lan" has the role internal; here it must be external`}},
		"forward without a name":       {fw(func(f *Forward) { f.Name = "" }), nil, []string{"nat.forwards[0].name: forward without a name"}},
		"forward with a bad name":      {fw(func(f *Forward) { f.Name = "R D" }), nil, []string{"nat.forwards[0].name: forward name"}},
		"forward of ICMP":              {fw(func(f *Forward) { f.Proto = "icmp" }), nil, []string{"nat.forwards[0].proto: protocol"}},
		"forward of port 0":            {fw(func(f *Forward) { f.Ports = PortRange{0, 5} }), nil, []string{"nat.forwards[0].port: port 0"}},
		"forward of a range backwards": {fw(func(f *Forward) { f.Ports = PortRange{9, 5} }), nil, []string{"nat.forwards[0].port: range 9-5"}},
		"forward to port 0":            {fw(func(f *Forward) { f.ToPort = 0 }), nil, []string{"nat.forwards[0].to: no port"}},
		"forward beyond 65535":         {fw(func(f *Forward) { f.Ports.Last = 3400; f.ToPort = 65530 }), nil, []string{"nat.forwards[0].to: ports 3389-3400 become 65530-65541"}},
		"forward to nobody":            {fw(func(f *Forward) { f.To = netip.Addr{} }), nil, []string{"nat.forwards[0].to: no inside address"}},
		"forward to the outside":       {fw(func(f *Forward) { f.To = netip.MustParseAddr("203.0.113.9") }), nil, []string{"nat.forwards[0].to: 203.0.113.9 is in no internal zone (lab 192.168.4.0/24 10.3.7.0/24 2001:db8:4::/64, lan "}},
		"forward to a link":            {fw(func(f *Forward) { f.To = netip.MustParseAddr("fe80::5") }), nil, []string{"nat.forwards[0].to: fe80::5 cannot be forwarded to"}},
		"forward of another version": {fw(func(f *Forward) { f.Address = netip.MustParseAddr("2001:db8::5") }), nil,
			[]string{"nat.forwards[0].address: 2001:db8::5 and 192.168.3.3 are not of one IP version"}},
		"forward of an inside address": {fw(func(f *Forward) { f.Address = netip.MustParseAddr("192.168.4.1") }), nil, []string{`nat.forwards[0].address: 192.168.4.1 belongs to internal zone "lab"`}},
		"forward with wrong sources": {fw(func(f *Forward) { f.Sources = prefixes("198.51.100.7/24", "2001:db8::/32") }), nil,
			[]string{"nat.forwards[0].sources[1]: 2001:db8::/32 is not of the IP version", "nat.forwards[0].sources[0]: 198.51.100.7/24 has bits behind its length: write 198.51.100.0/24"}},
		"forward with a huge limit": {fw(func(f *Forward) { f.Rate, f.RateHost = 1<<30, 1<<30 }), nil, []string{"nat.forwards[0].limit.rate: 1073741824", "nat.forwards[0].limit.per_remote: 107"}},

		"two forwards of a name":       {two(func(f *Forward) { f.Name = "rdp"; f.Proto = "udp" }), nil, []string{`nat.forwards[1].name: there are two forwards named "rdp"`}},
		"two forwards of ports":        {two(func(*Forward) {}), nil, []string{`nat.forwards[1].port: forward "other" has tcp 7000-7009, which forward "rdp" has too (7000-7009)`}},
		"two forwards that overlap":    {two(func(f *Forward) { f.Ports = PortRange{7005, 7010} }), nil, []string{`nat.forwards[1].port: forward "other" has tcp 7005-7010`}},
		"a forward within another":     {two(func(f *Forward) { f.Ports = PortRange{7005, 7009} }), nil, nil},
		"forwards in two zones":        {two(func(f *Forward) { f.In = "wan2" }), nil, nil},
		"forwards of two addresses":    {two(func(f *Forward) { f.Address = netip.MustParseAddr("203.0.113.1") }), nil, nil},
		"forwards of two IP versions":  {two(func(f *Forward) { f.To = netip.MustParseAddr("2001:db8:3::9") }), nil, nil},
		"masquerade from the outside":  {masq(Masquerade{From: "wan", To: "wan"}), nil, []string{`nat.masquerade[0].from: zone "wan" has the role external; here it must be internal or mgmt`}},
		"masquerade to the inside":     {masq(Masquerade{From: "lan", To: "lan"}), nil, []string{`nat.masquerade[0].to: zone "lan" has the role internal; here it must be external`}},
		"masquerade without zones":     {masq(Masquerade{Name: "m"}), nil, []string{"nat.masquerade[0].from: no zone given", "nat.masquerade[0].to: no zone given"}},
		"two masquerades":              {masq(Masquerade{From: "lan", To: "wan"}, Masquerade{From: "lan", To: "wan"}), nil, []string{`nat.masquerade[1].name: there are two masquerades named "lan-wan"`}},
		"two masquerades of a network": {masq(Masquerade{Name: "a", From: "lan", To: "wan", Sources: prefixes("10.3.0.0/16")}, Masquerade{Name: "b", From: "lan", To: "wan", Sources: prefixes("10.3.0.0/16")}), nil, []string{`nat.masquerade[1].sources[0]: masquerade "a" translates sources of 10.3.0.0/16 from "lan" to "wan" already`}},
		"a masquerade within another":  {masq(Masquerade{Name: "a", From: "lan", To: "wan"}, Masquerade{Name: "b", From: "lan", To: "wan", Sources: prefixes("10.3.0.0/16")}), nil, nil},
		"masquerade with three ranges": {masq(Masquerade{From: "lan", To: "wan", Ports: []PortRange{{1, 2}, {3, 4}, {5, 6}}}), nil, []string{"nat.masquerade[0].ports: 3 ranges"}},
		"masquerade with bad ranges":   {masq(Masquerade{From: "lan", To: "wan", Ports: []PortRange{{1000, 2000}, {2000, 3000}}}), nil, []string{"nat.masquerade[0].ports[1]: ports 2000-3000 overlap 1000-2000"}},
		"masquerade of IPv6 by chance": {masq(Masquerade{From: "lan", To: "wan", Sources: prefixes("2001:db8:3::/64")}), nil, []string{"nat.masquerade[0].sources[0]: 2001:db8:3::/64 is IPv6"}},
		"masquerade with a huge pool":  {masq(Masquerade{From: "lan", To: "wan", Addresses: prefixes("203.0.113.1", "10.0.0.0/8")}), nil, []string{"nat.masquerade[0].addresses[1]: with 10.0.0.0/8 there are more than 4096"}},
		"masquerade with huge pools": {masq(Masquerade{From: "lan", To: "wan", Addresses: prefixes("10.0.0.0/20")}, Masquerade{From: "lab", To: "wan", Addresses: prefixes("10.0.0.0/20")}, Masquerade{From: "mgmt", To: "wan", Addresses: prefixes("203.0.113.1")}),
			nil, []string{"nat.masquerade[2].addresses: with these there are more than 4096"}},
		"masquerade to multicast": {masq(Masquerade{From: "lan", To: "wan", Addresses: prefixes("224.0.0.1")}), nil, []string{"nat.masquerade[0].addresses[0]: 224.0.0.1/32 cannot be"}},
		"exclude with host bits":  {&NAT{Exclude: prefixes("10.1.2.3/8")}, nil, []string{"nat.exclude[0]: 10.1.2.3/8 has bits behind its length: write 10.0.0.0/8 for the network, or 10.1.2.3/32"}},
		"exclude of nothing":      {&NAT{Exclude: []netip.Prefix{{}}}, nil, []string{"nat.exclude[0]: not a network"}},

		"policy from the dmz":          {nil, []Policy{{From: "dmz", To: "lan"}}, []string{`policies[0].from: zone "dmz" has the role dmz; here it must be external or internal or mgmt`}},
		"policy to nowhere":            {nil, []Policy{{From: "lan", To: "mars"}}, []string{`policies[0].to: no zone "mars"`}},
		"policy with ports alone":      {nil, []Policy{{From: "lan", To: "wan", Ports: []PortRange{{80, 80}}}}, []string{"policies[0].ports: ports go with proto tcp or udp"}},
		"policy with ports of ICMP":    {nil, []Policy{{From: "lan", To: "wan", Proto: "icmp", Ports: []PortRange{{80, 80}}}}, []string{"policies[0].ports: ports go with proto tcp or udp"}},
		"policy with bad ports":        {nil, []Policy{{From: "lan", To: "wan", Proto: "udp", Ports: []PortRange{{80, 80}, {9, 8}}}}, []string{"policies[0].ports[1]: range 9-8"}},
		"policy of a strange protocol": {nil, []Policy{{From: "lan", To: "wan", Proto: "256"}}, []string{`policies[0].proto: protocol "256"`}},
		"policy that logs accepted":    {nil, []Policy{{From: "lan", To: "wan", Accept: true, Log: true}}, []string{"policies[0].log: only what is dropped is logged"}},
		"policy of two IP versions":    {nil, []Policy{{From: "lan", To: "wan", Sources: prefixes("10.0.0.0/8"), Destinations: prefixes("2001:db8::/32")}}, []string{"policies[0]: no packet can match"}},
		"policy of ICMPv6 over IPv4":   {nil, []Policy{{From: "lan", To: "wan", Proto: "icmpv6", Sources: prefixes("10.0.0.0/8")}}, []string{"policies[0]: no packet can match"}},
		"two policies of a name":       {nil, []Policy{{Name: "policy-2", From: "lan", To: "wan"}, {From: "lan", To: "wan"}}, []string{`policies[1].name: there are two policies named "policy-2"`}},
		"too many policies":            {nil, make([]Policy, limitPolicies+1), []string{"policies: 2049 policies are more than the 2048"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := buildRules(ruleTestInput(c.nat, c.policies...))
			wantProblems(t, err, c.want...)
		})
	}
}

func TestRulesWithoutPorts(t *testing.T) {
	in := ruleTestInput(&NAT{Masquerades: []Masquerade{{From: "lan", To: "wan"}}})
	in.defaultPorts = [2]PortRange{{1024, 1023}, {}}
	_, err := buildRules(in)
	wantProblems(t, err, "nat.masquerade[0].ports: the host's ip_local_port_range leaves no ports")
}

func TestRulesCounterNumbers(t *testing.T) {
	in := ruleTestInput(&NAT{Masquerades: []Masquerade{{From: "lan", To: "wan"}}})
	in.masqueradeNumber = func(string) uint32 { return limitCounted }
	_, err := buildRules(in)
	wantProblems(t, err, `nat.masquerade[0]: no counter left for "lan-wan"`)
}

func TestRulesWarnings(t *testing.T) {
	in := ruleTestInput(&NAT{Masquerades: []Masquerade{{From: "mgmt", To: "wan"}}})
	if r, err := buildRules(in); err != nil || len(r.warnings) != 1 || !strings.Contains(r.warnings[0], `"mgmt-wan" has nothing to do`) {
		t.Errorf("warnings %v, error %v", r, err)
	}
	in.policies = []Policy{{From: "mgmt", To: "wan", Accept: true}}
	if r, err := buildRules(in); err != nil || len(r.warnings) != 0 {
		t.Errorf("warnings %v, error %v", r.warnings, err)
	}
}

func TestPortPrefixes(t *testing.T) {
	for range 20000 {
		r := PortRange{uint16(rand.N(65536)), uint16(rand.N(65536))}
		if r.First > r.Last {
			r.First, r.Last = r.Last, r.First
		}
		list := portPrefixes(r)
		next := int(r.First)
		for _, p := range list {
			size := 1 << (16 - p.bits)
			if int(p.port) != next || next%size != 0 {
				t.Fatalf("%v: block %v where %d was to come", r, p, next)
			}
			next += size
		}
		if next != int(r.Last)+1 || len(list) > 30 {
			t.Fatalf("%v: %d blocks up to %d", r, len(list), next-1)
		}
	}
}

// Thousands of forwards take memory and time of their number.
func TestRulesMany(t *testing.T) {
	nat := &NAT{}
	for i := range 10000 {
		nat.Forwards = append(nat.Forwards, Forward{
			Name: fmt.Sprintf("f%d", i), In: "wan", Proto: "tcp", Ports: PortRange{uint16(i + 1), uint16(i + 1)},
			To: netip.AddrFrom4([4]byte{10, 3, byte(i >> 8), byte(i)}), ToPort: 80,
		})
	}
	r, err := buildRules(ruleTestInput(nat))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(r.rules); n != 10000+7 {
		t.Errorf("%d entries", n)
	}
}

func TestRulesTooMany(t *testing.T) {
	nat := &NAT{}
	for i := range 2300 { // 30 blocks each
		nat.Forwards = append(nat.Forwards, Forward{
			Name: fmt.Sprintf("f%d", i), In: "wan", Address: netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), Proto: "tcp",
			Ports: PortRange{1, 65534}, To: netip.MustParseAddr("192.168.3.3"), ToPort: 1,
		})
	}
	_, err := buildRules(ruleTestInput(nat))
	wantProblems(t, err, "nat: the rules take 69007 entries, and there is room for 65536")
}

// Pools are shared by rules with the same addresses, and split by family.
func TestRulesPools(t *testing.T) {
	list := prefixes("203.0.113.8/30", "203.0.113.9", "2001:db8:ff::/127")
	r, err := buildRules(ruleTestInput(&NAT{Masquerades: []Masquerade{
		{From: "lan", To: "wan", Addresses: list}, {From: "lab", To: "wan", Addresses: list}, {From: "lab", To: "wan2", IPv6: true},
	}}))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"203.0.113.8", "203.0.113.9", "203.0.113.10", "203.0.113.11", "2001:db8:ff::", "2001:db8:ff::1"}
	var got []string
	for _, a := range r.pool {
		got = append(got, a.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("pool %v, want %v", got, want)
	}
	m := memoryMaps{ruleset: r}
	for _, c := range []struct {
		from, to    uint8
		src         string
		pool, count uint32
		own         bool
	}{
		{3, 1, "192.168.3.3", 0, 4, false}, {4, 1, "192.168.4.3", 0, 4, false}, {3, 1, "2001:db8:3::3", 4, 2, false},
		{4, 2, "192.168.4.3", 0, 0, true}, {4, 2, "2001:db8:4::3", 0, 0, true},
	} {
		rule, _, _ := findMasquerade(m, c.from, c.to, endpoints{src: netip.MustParseAddr(c.src), dst: netip.MustParseAddr("192.0.2.1")})
		if rule == nil || rule.Pool != c.pool || rule.PoolCount != c.count || rule.Flags&masqOwnAddr != 0 != c.own {
			t.Errorf("%+v: rule %+v", c, rule)
		}
	}
}
