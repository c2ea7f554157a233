package loader

import (
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ruleInput is what the rules of a generation are made from: the configuration,
// and what is known of this machine and of the numbers in the maps.
type ruleInput struct {
	zones  map[string]uint8          // numbers, of all zones; 0 is no zone's
	roles  map[string]Role           // of all zones
	inside map[string][]netip.Prefix // of internal zones: what their hosts may use as sources
	nat    *NAT                      // may be nil
	// policies in the order of the configuration.
	policies []Policy
	// defaultPorts are for masquerades without ports. Ranges with Last 0 or below First are none.
	defaultPorts [2]PortRange
	// Numbers of hit counters, each below limitCounted and given once.
	forwardNumber, masqueradeNumber, policyNumber func(name string) uint32
}

// ruleset is the content of a generation's maps tg_rules, tg_sets and tg_pools.
type ruleset struct {
	rules    map[tapgateTgRuleKey]tapgateTgRule
	sets     map[uint32]tapgateTgPolicySet
	pool     []netip.Addr
	warnings []string
}

// Of headers/abi_gate.h.
const (
	limitRules    = 65536
	limitPool     = 4096
	limitPolicies = 2048
	limitSets     = 8192
	limitCounted  = 16384
	limitLists    = 65535

	setAccept  = 0
	setLog     = 1
	setNumbers = 2
	setFirst   = setNumbers + limitPolicies/setNumbersEach
	// setNumbersEach numbers of hit counters stand in a set.
	setNumbersEach = limitPolicies / 64 * 4

	masqEIF      = 1
	masqOwnAddr  = 2
	masqClampMSS = 4

	bitsZones = 24 // of a rule's key: up to and with kind, a and b
	bitsProto = 32
	bitsAddr  = 160
	bitsPort  = 176

	protoTCP = unix.IPPROTO_TCP
	protoUDP = unix.IPPROTO_UDP
)

// limitRate is a thousand times what one rule will ever admit.
const limitRate = 1_000_000

// buildRules lays out the rules of a configuration. All its problems are
// *ConfigError, joined. It knows nothing of the kernel.
func buildRules(in ruleInput) (*ruleset, error) {
	b := &ruleBuilder{
		ruleInput: in,
		out: ruleset{
			rules: map[tapgateTgRuleKey]tapgateTgRule{},
			sets:  map[uint32]tapgateTgPolicySet{},
		},
		owners: map[tapgateTgRuleKey]string{}, lists: map[string]uint32{}, pools: map[string]uint32{},
	}
	b.insides()
	if b.nat != nil {
		b.masquerades()
		b.excludes()
		b.forwards()
	}
	b.policySets()
	if n := len(b.out.rules); n > limitRules {
		b.fail("", "the rules take %d entries, and there is room for %d: port ranges that begin and end at multiples of a power of two take fewer", n, limitRules)
	}
	if len(b.errs) > 0 {
		return nil, errors.Join(b.errs...)
	}
	return &b.out, nil
}

type ruleBuilder struct {
	ruleInput
	out    ruleset
	owners map[tapgateTgRuleKey]string // what a key came from, where two may meet
	lists  map[string]uint32           // source lists by content
	pools  map[string]uint32           // index of the first address, by content
	errs   []error
}

func (b *ruleBuilder) fail(path, format string, args ...any) {
	if path == "" {
		path = "nat"
		if b.nat == nil {
			path = "policies"
		}
	}
	b.errs = append(b.errs, configErrorf(path, format, args...))
}

func (b *ruleBuilder) warn(format string, args ...any) {
	b.out.warnings = append(b.out.warnings, fmt.Sprintf(format, args...))
}

// masqueradeName and policyName are what unnamed rules are called.
func masqueradeName(m Masquerade) string {
	if m.Name == "" {
		return m.From + "-" + m.To
	}
	return m.Name
}

func policyName(i int, p Policy) string {
	if p.Name == "" {
		return fmt.Sprintf("policy-%d", i+1)
	}
	return p.Name
}

// familyOf is 4 or 6, as in the keys. Addresses are IPv6 or IPv4-mapped there,
// and the family beside them keeps ::/0 from meaning IPv4.
func familyOf(a netip.Addr) uint8 {
	if a.Unmap().Is4() {
		return 4
	}
	return 6
}

func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// addrKey is a key for the addresses of p. kind, a and b say which.
func addrKey(kind tapgateTgRuleKind, a, b uint8, p netip.Prefix) tapgateTgRuleKey {
	p = unmapPrefix(p).Masked()
	length := p.Bits()
	if p.Addr().Is4() {
		length += 96
	}
	return tapgateTgRuleKey{
		Prefixlen: bitsProto + uint32(length), Kind: uint8(kind), A: a, B: b, Proto: familyOf(p.Addr()), Addr: p.Addr().As16(),
	}
}

// All addresses of a family.
var (
	anyIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	anyIPv6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// bigEndian is a port as it stands in a key: network byte order, read as what the machine has.
func bigEndian(port uint16) uint16 { return bits.ReverseBytes16(port) }

// portPrefix is a block of ports that share their first bits.
type portPrefix struct {
	port uint16
	bits int
}

// portPrefixes splits a range into the fewest blocks.
func portPrefixes(r PortRange) (list []portPrefix) {
	for first, last := uint32(r.First), uint32(r.Last); first <= last; {
		size := uint32(1) << 16
		if first != 0 {
			size = first & -first
		}
		for first+size-1 > last {
			size /= 2
		}
		list = append(list, portPrefix{uint16(first), 16 - bits.TrailingZeros32(size)})
		first += size
	}
	return list
}

func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// checkRange says whether r is a range of ports.
func (b *ruleBuilder) checkRange(path string, r PortRange) bool {
	switch {
	case r.First == 0:
		b.fail(path, "port 0 is nobody's: ports are 1 to 65535")
	case r.Last < r.First:
		b.fail(path, "range %d-%d ends before it begins", r.First, r.Last)
	default:
		return true
	}
	return false
}

// checkPrefixes gives prefixes as they go into keys, without those that are wrong.
func (b *ruleBuilder) checkPrefixes(path string, list []netip.Prefix) (good []netip.Prefix) {
	for i, p := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		switch p = unmapPrefix(p); {
		case !p.IsValid():
			b.fail(at, "not a network: write an address with the length of its prefix, as 203.0.113.0/24")
		case p != p.Masked():
			b.fail(at, "%s has bits behind its length: write %s for the network, or %s for the one address",
				p, p.Masked(), netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
		case p.Addr().Is4In6():
			b.fail(at, "%s is an IPv4 address in an IPv6 one: write it as IPv4", p)
		case !slices.Contains(good, p):
			good = append(good, p)
		}
	}
	return good
}

// checkRuleName: names become arguments of commands, and labels. One made up of
// the zones' names may be longer.
func (b *ruleBuilder) checkRuleName(path, kind, name string, derived bool, taken map[string]bool) {
	switch {
	case name == "":
		b.fail(path, "%s without a name", kind)
	case !derived && !goodName.MatchString(name):
		b.fail(path, "%s name %q: use a-z, 0-9, _ and -, a letter first, 32 characters at most", kind, name)
	case taken[name]:
		b.fail(path, "there are two %s named %q; names are unique, so give this one another", plural(kind), name)
	}
	taken[name] = true
}

func plural(kind string) string {
	if stem, ok := strings.CutSuffix(kind, "y"); ok {
		return stem + "ies"
	}
	return kind + "s"
}

// checkNumber holds a hit counter's number against the map's size.
func (b *ruleBuilder) checkNumber(path, name string, number uint32) uint32 {
	if number >= limitCounted {
		b.fail(path, "no counter left for %q: %d forwards, masquerades and policies are the limit", name, limitCounted)
	}
	return number
}

// zone finds a zone of a rule by name. roles are those that it may have.
func (b *ruleBuilder) zone(path, name string, roles ...Role) (number uint8, ok bool) {
	number, ok = b.zones[name]
	switch {
	case !ok && name == "":
		b.fail(path, "no zone given; there are: %s", b.zoneNames())
	case !ok:
		b.fail(path, "no zone %q; there are: %s", name, b.zoneNames())
	case !slices.Contains(roles, b.roles[name]):
		var want []string
		for _, r := range roles {
			want = append(want, string(r))
		}
		b.fail(path, "zone %q has the role %s; here it must be %s", name, b.roles[name], strings.Join(want, " or "))
		ok = false
	}
	return number, ok
}

func (b *ruleBuilder) zoneNames() string {
	return strings.Join(slices.Sorted(maps.Keys(b.zones)), ", ")
}
