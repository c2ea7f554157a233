package loader

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// nftRuleset is what "nft -j list ruleset" prints.
type nftRuleset struct {
	Objects []struct {
		Table *struct{ Family, Name string }
		Chain *struct {
			Family, Table, Name, Type, Hook, Policy string
		}
		Set  *nftSet
		Map  *nftSet
		Rule *struct {
			Family, Table, Chain string
			Handle               int
			Expr                 []map[string]json.RawMessage
		}
	} `json:"nftables"`
}

type nftSet struct {
	Family, Table, Name string
	Elem                []json.RawMessage
}

// nftWords are one word or several.
type nftWords []string

func (w *nftWords) UnmarshalJSON(text []byte) error {
	var one string
	if json.Unmarshal(text, &one) == nil {
		*w = nftWords{one}
		return nil
	}
	return json.Unmarshal(text, (*[]string)(w))
}

// nftReader makes hostTables of a ruleset.
type nftReader struct {
	tables []*hostTable
	sets   map[[3]string][]json.RawMessage // by family, table, name
}

// parseNft reads the JSON of nft. Tables of bridges and devices are left out, as no
// packet that is routed has to come through them, and those that sleep: "ip NAME".
func parseNft(text []byte, asleep []string) ([]*hostTable, error) {
	var all nftRuleset
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("read what nft printed: %w", err)
	}
	r := &nftReader{sets: map[[3]string][]json.RawMessage{}}
	for _, o := range all.Objects {
		switch {
		case o.Table != nil:
			if t := o.Table; slices.Contains([]string{"ip", "ip6", "inet"}, t.Family) && !slices.Contains(asleep, t.Family+" "+t.Name) {
				r.tables = append(r.tables, newHostTable("nft", t.Family, t.Name))
			}
		case o.Set != nil:
			r.sets[[3]string{o.Set.Family, o.Set.Table, o.Set.Name}] = o.Set.Elem
		case o.Map != nil:
			r.sets[[3]string{o.Map.Family, o.Map.Table, o.Map.Name}] = o.Map.Elem
		case o.Chain != nil:
			if t := r.table(o.Chain.Family, o.Chain.Table); t != nil {
				c := t.chain(o.Chain.Name)
				c.hook, c.kind, c.drops = o.Chain.Hook, o.Chain.Type, o.Chain.Policy == "drop"
				if c.drops {
					c.policy.verdict = hostDrop
				}
			}
		}
	}
	for _, o := range all.Objects {
		if o.Rule == nil {
			continue
		}
		t := r.table(o.Rule.Family, o.Rule.Table)
		if t == nil {
			continue
		}
		c := t.chain(o.Rule.Chain)
		rule := hostRule{chain: c, handle: o.Rule.Handle}
		for _, e := range o.Rule.Expr {
			for name, body := range e {
				c.rules = append(c.rules, r.expression(&rule, name, body)...)
			}
		}
		c.rules = append(c.rules, &rule)
	}
	return r.tables, nil
}

func (r *nftReader) table(family, name string) *hostTable {
	for _, t := range r.tables {
		if t.family == family && t.name == name {
			return t
		}
	}
	return nil
}

// What changes or counts a packet and lets the rule go on.
var nftPassing = []string{
	"counter", "log", "mangle", "notrack", "ct helper", "ct timeout", "ct expectation", "dup", "set", "map", "flow", "secmark",
	"synproxy", "meter", "last", "comment",
}

// expression adds to a rule what one of its parts says. A map of verdicts makes rules
// of its own.
func (r *nftReader) expression(rule *hostRule, name string, body json.RawMessage) []*hostRule {
	switch name {
	case "match":
		rule.conds = append(rule.conds, r.match(rule.chain.table, body)...)
	case "accept", "drop", "return", "reject", "queue", "masquerade", "snat", "dnat", "redirect", "jump", "goto", "continue":
		rule.verdict, rule.target = nftVerdict(name, body)
		rule.reject = name == "reject"
	case "vmap":
		return r.verdictMap(rule, body)
	case "xt":
		var xt struct{ Type, Name string }
		if json.Unmarshal(body, &xt) == nil && xt.Type == "match" && xt.Name == "comment" {
			break
		}
		if xt.Type == "target" {
			rule.verdict = xtVerdict(xt.Name)
			rule.reject = xt.Name == "REJECT"
			break
		}
		rule.conds = append(rule.conds, hostCond{})
	default:
		if !slices.Contains(nftPassing, name) { // limit, quota and what is yet to come
			rule.conds = append(rule.conds, hostCond{})
		}
	}
	return nil
}

func nftVerdict(name string, body json.RawMessage) (v hostVerdict, target string) {
	switch name {
	case "accept":
		return hostAccept, ""
	case "drop", "reject":
		return hostDrop, ""
	case "return":
		return hostReturn, ""
	case "masquerade", "snat":
		return hostSource, ""
	case "dnat", "redirect":
		return hostDestination, ""
	case "queue":
		return hostUnknown, ""
	case "continue":
		return hostNothing, ""
	}
	var to struct{ Target string }
	_ = json.Unmarshal(body, &to) // an empty target leads nowhere
	if name == "goto" {
		return hostGoto, to.Target
	}
	return hostJump, to.Target
}

// verdictMap makes a rule of each element.
func (r *nftReader) verdictMap(rule *hostRule, body json.RawMessage) (rules []*hostRule) {
	var vmap struct{ Key, Data json.RawMessage }
	if json.Unmarshal(body, &vmap) != nil {
		return nil
	}
	for _, e := range r.elements(rule.chain.table, vmap.Data) {
		var pair []json.RawMessage
		var verdict map[string]json.RawMessage
		if json.Unmarshal(e, &pair) != nil || len(pair) != 2 || json.Unmarshal(pair[1], &verdict) != nil {
			continue
		}
		one := &hostRule{chain: rule.chain, handle: rule.handle}
		one.conds = append(slices.Clone(rule.conds), r.condition(vmap.Key, []json.RawMessage{pair[0]}, false)...)
		for name, body := range verdict {
			one.verdict, one.target = nftVerdict(name, body)
		}
		rules = append(rules, one)
	}
	return rules
}

// match reads a comparison.
func (r *nftReader) match(t *hostTable, body json.RawMessage) []hostCond {
	var m struct {
		Op          string
		Left, Right json.RawMessage
	}
	if json.Unmarshal(body, &m) != nil || !slices.Contains([]string{"==", "!=", "in"}, m.Op) {
		return []hostCond{{}}
	}
	return r.condition(m.Left, r.elements(t, m.Right), m.Op == "!=")
}

// elements are the single values of a value, a list, a set, or the name of one.
func (r *nftReader) elements(t *hostTable, value json.RawMessage) []json.RawMessage {
	var name string
	if json.Unmarshal(value, &name) == nil {
		if set, is := strings.CutPrefix(name, "@"); is {
			return r.sets[[3]string{t.family, t.name, set}]
		}
	}
	var list []json.RawMessage
	if json.Unmarshal(value, &list) == nil {
		return list
	}
	var set struct{ Set json.RawMessage }
	if json.Unmarshal(value, &set) == nil && set.Set != nil {
		return r.elements(t, set.Set)
	}
	return []json.RawMessage{value}
}

// nftLeft is what can stand on the left of a comparison.
type nftLeft struct {
	Meta *struct{ Key string }
	CT   *struct{ Key, Dir string }
	Fib  *struct {
		Result string
		Flags  nftWords
	}
	Payload *struct{ Protocol, Field string }
}

// condition compares a field with values; where either is not understood it is an
// unknown one.
func (r *nftReader) condition(left json.RawMessage, values []json.RawMessage, not bool) []hostCond {
	var l nftLeft
	if json.Unmarshal(left, &l) != nil {
		return []hostCond{{}}
	}
	c := hostCond{field: l.field(), not: not}
	conds := []hostCond{}
	if p := l.Payload; p != nil {
		switch p.Protocol {
		case "ip":
			conds = append(conds, hostCond{field: fieldFamily, words: []string{"ip"}})
		case "ip6":
			conds = append(conds, hostCond{field: fieldFamily, words: []string{"ip6"}})
		case "th":
		default: // the header is there
			conds = append(conds, hostCond{field: fieldProto, words: []string{protoWord(p.Protocol)}})
		}
	}
	for _, v := range values {
		if !c.add(v) {
			c = hostCond{}
			break
		}
	}
	return append(conds, c)
}

func (l *nftLeft) field() hostField {
	switch {
	case l.Meta != nil:
		switch l.Meta.Key {
		case "iifname", "iif":
			return fieldIn
		case "oifname", "oif":
			return fieldOut
		case "l4proto":
			return fieldProto
		case "nfproto", "protocol":
			return fieldFamily
		}
	case l.CT != nil && l.CT.Dir == "":
		switch l.CT.Key {
		case "state":
			return fieldState
		case "status":
			return fieldStatus
		}
	case l.Fib != nil && l.Fib.Result == "type" && len(l.Fib.Flags) == 1:
		switch l.Fib.Flags[0] {
		case "saddr":
			return fieldSrcType
		case "daddr":
			return fieldDstType
		}
	case l.Payload != nil:
		switch l.Payload.Field {
		case "saddr":
			return fieldSrc
		case "daddr":
			return fieldDst
		case "protocol", "nexthdr":
			return fieldProto
		case "sport":
			return fieldSport
		case "dport":
			return fieldDport
		}
	}
	return fieldUnknown
}

// add takes in a value; false if it is not understood.
func (c *hostCond) add(value json.RawMessage) bool {
	var elem struct {
		Elem *struct{ Val json.RawMessage }
	} // with a counter or a time limit
	if json.Unmarshal(value, &elem) == nil && elem.Elem != nil {
		value = elem.Elem.Val
	}
	var complex struct {
		Prefix *struct {
			Addr netip.Addr
			Len  int
		}
		Range []json.RawMessage
	}
	if strings.HasPrefix(string(value), "{") {
		if json.Unmarshal(value, &complex) != nil {
			return false
		}
		switch {
		case complex.Prefix != nil:
			p, err := complex.Prefix.Addr.Prefix(complex.Prefix.Len)
			return err == nil && c.addSpan(spanOf(p))
		case len(complex.Range) == 2:
			return c.addRange(nftText(complex.Range[0]), nftText(complex.Range[1]))
		}
		return false
	}
	text := nftText(value)
	return c.addRange(text, text)
}

// nftText is a value without quotes: numbers are such.
func nftText(value json.RawMessage) string {
	var s string
	if json.Unmarshal(value, &s) == nil {
		return s
	}
	return string(value)
}

func (c *hostCond) addSpan(s hostSpan) bool {
	c.spans = append(c.spans, s)
	return c.field == fieldSrc || c.field == fieldDst
}

// addRange takes in what lies from one text to another, which are mostly the same.
func (c *hostCond) addRange(first, last string) bool {
	switch c.field {
	case fieldSrc, fieldDst:
		a, err := netip.ParseAddr(first)
		b, err2 := netip.ParseAddr(last)
		return err == nil && err2 == nil && c.addSpan(hostSpan{a, b})
	case fieldSport, fieldDport:
		a, ok := portNumber(first)
		b, ok2 := portNumber(last)
		c.ports = append(c.ports, PortRange{a, b})
		return ok && ok2
	case fieldFamily:
		c.words = append(c.words, strings.Replace(strings.TrimSuffix(first, "v4"), "ipv6", "ip6", 1))
		return first == last
	case fieldProto:
		c.words = append(c.words, protoWord(first))
		return first == last
	case fieldUnknown:
		return false
	}
	c.words = append(c.words, first)
	return first == last
}

// protoWord gives a protocol one name, whichever it was called by.
func protoWord(s string) string {
	switch s {
	case "6":
		return "tcp"
	case "17":
		return "udp"
	case "1":
		return "icmp"
	case "58", "icmpv6":
		return "ipv6-icmp"
	}
	return s
}

// portNumber reads a port, as a number: nft prints no names, iptables-save neither.
func portNumber(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil
}
