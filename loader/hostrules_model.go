package loader

import (
	"net/netip"
	"slices"
	"strings"
)

// The rules of the host's own firewall, as far as they matter here: which of them
// would accept, drop or translate the packets of flows that are ours as well. They are
// read from several tools into one form, and walked through with what is known of such
// packets. What is not understood stays unknown, and is told as "may".

// hostMatch is how many of the packets that are asked about meet a condition.
type hostMatch int

// In this order the smaller one is what several conditions have together.
const (
	matchNone hostMatch = iota
	matchUnknown
	matchSome
	matchAll
)

func (m hostMatch) not() hostMatch {
	switch m {
	case matchNone:
		return matchAll
	case matchAll:
		return matchNone
	}
	return m
}

// hostSpan are addresses from first to last.
type hostSpan struct{ first, last netip.Addr }

func spanOf(p netip.Prefix) hostSpan {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		if ones := p.Bits() - 8*i; ones < 8 {
			b[i] |= 0xff >> max(ones, 0)
		}
	}
	last, _ := netip.AddrFromSlice(b)
	return hostSpan{p.Masked().Addr(), last}
}

func spansOf(list []netip.Prefix) (spans []hostSpan) {
	for _, p := range list {
		spans = append(spans, spanOf(p))
	}
	return spans
}

func (s hostSpan) sameFamily(o hostSpan) bool { return s.first.Is4() == o.first.Is4() }

func (s hostSpan) covers(o hostSpan) bool {
	return s.sameFamily(o) && s.first.Compare(o.first) <= 0 && s.last.Compare(o.last) >= 0
}

func (s hostSpan) meets(o hostSpan) bool {
	return s.sameFamily(o) && s.first.Compare(o.last) <= 0 && s.last.Compare(o.first) >= 0
}

// hostPacket is what is known of packets. What is left out may be anything.
type hostPacket struct {
	v6       bool
	in, out  string
	src, dst []hostSpan
	except   []hostSpan // of the destinations, that are not asked about
	proto    string     // "tcp", "udp", "icmp", "ipv6-icmp" or a number
	dports   PortRange
	state    string // of the connection: "new" or "established"
	local    bool   // the destination is this host itself
}

// hostField is what a condition looks at.
type hostField int

const (
	fieldUnknown hostField = iota
	fieldIn
	fieldOut
	fieldSrc
	fieldDst
	fieldProto
	fieldSport
	fieldDport
	fieldFamily  // "ip", "ip6"
	fieldState   // of the connection
	fieldStatus  // of the connection: "dnat", "snat", ...
	fieldSrcType // "local", ...
	fieldDstType
)

// hostCond is one condition of a rule: the field is one of the values.
type hostCond struct {
	field hostField
	words []string // interfaces (* at the end for any), protocols, states
	spans []hostSpan
	ports []PortRange
	not   bool
}

func (c *hostCond) match(p *hostPacket) hostMatch {
	m := c.plain(p)
	if c.not {
		return m.not()
	}
	return m
}

func (c *hostCond) plain(p *hostPacket) hostMatch {
	switch c.field {
	case fieldIn:
		return c.device(p.in)
	case fieldOut:
		return c.device(p.out)
	case fieldSrc:
		return c.address(p.v6, p.src, nil)
	case fieldDst:
		return c.address(p.v6, p.dst, p.except)
	case fieldProto:
		if p.proto == "" {
			return matchSome
		}
		return c.word(p.proto)
	case fieldSport:
		return c.port(PortRange{})
	case fieldDport:
		return c.port(p.dports)
	case fieldFamily:
		if p.v6 {
			return c.word("ip6")
		}
		return c.word("ip")
	case fieldState:
		if slices.Contains(c.words, p.state) {
			return matchAll
		}
		if p.state == "established" && slices.Contains(c.words, "related") {
			return matchSome // errors about it
		}
		return matchNone
	case fieldStatus:
		return c.status(p)
	case fieldSrcType:
		return c.local(false)
	case fieldDstType:
		return c.local(p.local)
	}
	return matchUnknown
}

func (c *hostCond) word(is string) hostMatch {
	if slices.Contains(c.words, is) {
		return matchAll
	}
	return matchNone
}

func (c *hostCond) device(name string) hostMatch {
	if name == "" {
		return matchSome
	}
	for _, w := range c.words {
		if stem, any := strings.CutSuffix(w, "*"); w == name || any && strings.HasPrefix(name, stem) {
			return matchAll
		}
	}
	return matchNone
}

// address compares with a list of addresses, nil for any; without those of except.
func (c *hostCond) address(v6 bool, list, except []hostSpan) hostMatch {
	meets, covers := false, len(list) > 0
	for _, s := range list {
		meets = meets || slices.ContainsFunc(c.spans, s.meets)
		covers = covers && slices.ContainsFunc(c.spans, func(o hostSpan) bool { return o.covers(s) })
	}
	if len(list) == 0 {
		for _, o := range c.spans {
			left := !slices.ContainsFunc(except, func(e hostSpan) bool { return e.covers(o) })
			meets = meets || o.first.Is6() == v6 && left
			covers = covers || o.first.Is6() == v6 && o.first.IsUnspecified() && !o.last.Next().IsValid()
		}
	}
	switch {
	case covers:
		return matchAll
	case meets:
		return matchSome
	}
	return matchNone
}

func (c *hostCond) port(asked PortRange) hostMatch {
	if asked.Last == 0 {
		asked = PortRange{1, 65535}
	}
	m := matchNone
	for _, r := range c.ports {
		if r.First <= asked.First && asked.Last <= r.Last {
			return matchAll
		}
		if r.First <= asked.Last && asked.First <= r.Last {
			m = matchSome
		}
	}
	return m
}

// status: what tapgate has translated is not translated for connection tracking.
func (c *hostCond) status(p *hostPacket) hostMatch {
	m := matchNone
	for _, w := range c.words {
		switch w {
		case "dnat", "snat":
		case "confirmed", "seen-reply", "assured":
			if p.state == "established" {
				m = max(m, matchSome)
			}
		default:
			return matchUnknown
		}
	}
	return m
}

func (c *hostCond) local(is bool) hostMatch {
	if !slices.Equal(c.words, []string{"local"}) {
		return matchUnknown
	}
	if is {
		return matchAll
	}
	return matchNone
}

// hostVerdict is what a rule does with the packets that it matches.
type hostVerdict int

const (
	hostNothing hostVerdict = iota
	hostAccept
	hostDrop // or reject
	hostReturn
	hostJump
	hostGoto
	hostSource      // masquerade, SNAT
	hostDestination // DNAT, redirect
	hostUnknown     // a queue of a program: any of these
)

// hostRule is one rule of a chain.
type hostRule struct {
	chain   *hostChain
	conds   []hostCond
	verdict hostVerdict
	target  string // of a jump
	reject  bool
	text    string // as the host's tool prints it, where that is known
	quoted  string // of iptables: what follows -A, for a shell
	handle  int    // of nft
}

// match is how many of the packets meet all conditions.
func (r *hostRule) match(p *hostPacket) hostMatch {
	m := matchAll
	for i := range r.conds {
		if m = min(m, r.conds[i].match(p)); m == matchNone {
			break
		}
	}
	return m
}

// hostChain is a chain of a table; a base chain has a hook.
type hostChain struct {
	table  *hostTable
	name   string
	hook   string // "forward", "prerouting", "postrouting"; "" for those that are jumped to
	kind   string // "filter", "nat"
	drops  bool   // the policy of a base chain
	rules  []*hostRule
	policy *hostRule // stands for it
}

// hostTable holds chains that may jump to each other.
type hostTable struct {
	tool   string // "nft", or the iptables command that changes it: "ip6tables-legacy"
	family string // "ip", "ip6", "inet"
	name   string
	chains map[string]*hostChain
	order  []*hostChain
}

func newHostTable(tool, family, name string) *hostTable {
	return &hostTable{tool: tool, family: family, name: name, chains: map[string]*hostChain{}}
}

// chain returns the chain of that name, a new one if there is none.
func (t *hostTable) chain(name string) *hostChain {
	c := t.chains[name]
	if c == nil {
		c = &hostChain{table: t, name: name}
		c.policy = &hostRule{chain: c, verdict: hostAccept}
		t.chains[name] = c
		t.order = append(t.order, c)
	}
	return c
}

// sees says whether packets of the family come through the table.
func (t *hostTable) sees(v6 bool) bool {
	return t.family == "inet" || (t.family == "ip6") == v6
}

// base are the base chains of all tables at a hook.
func baseChains(tables []*hostTable, kind, hook string, v6 bool) (list []*hostChain) {
	for _, t := range tables {
		for _, c := range t.order {
			if c.hook == hook && c.kind == kind && t.sees(v6) {
				list = append(list, c)
			}
		}
	}
	return list
}
