package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tapgate/loader"
)

// nftObject is one of the things that "nft -j list ruleset" lists.
type nftObject struct {
	Chain *struct {
		Family, Table, Name, Type, Hook, Policy string
		Dev                                     any
	}
	Rule *struct {
		Family, Table, Chain string
		Handle               int
		Expr                 []map[string]any
	}
	Set *nftSet
}

type nftSet struct {
	Family, Table, Name string
	Elem                []any
}

// nftTable is a table as it is read.
type nftTable struct {
	chains map[string]*hostChain
	hooks  []string // chains that hooks begin with, in the order of the list
	sets   map[string][]any
	xt     bool // rules in it are iptables'
}

// parseNft reads what "nft -j list ruleset" wrote.
func (im *imported) parseNft(file, text string) error {
	var list struct{ Nftables []nftObject }
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		if strings.HasPrefix(strings.TrimSpace(text), "table ") || strings.HasPrefix(strings.TrimSpace(text), "#!") {
			return &configError{file, `this is the text of nft; give its JSON: nft -j list ruleset`}
		}
		return &configError{file, fmt.Sprintf(`not what "nft -j list ruleset" writes: %v`, err)}
	}
	if list.Nftables == nil {
		return &configError{file, `no "nftables" in it; this reads what "nft -j list ruleset" writes`}
	}
	tables := map[string]*nftTable{}
	var order []string
	table := func(family, name string) *nftTable {
		key := family + " " + name
		if tables[key] == nil {
			tables[key] = &nftTable{chains: map[string]*hostChain{}, sets: map[string][]any{}}
			order = append(order, key)
		}
		return tables[key]
	}
	for _, o := range list.Nftables {
		switch {
		case o.Chain != nil:
			t := table(o.Chain.Family, o.Chain.Table)
			t.chains[o.Chain.Name] = &hostChain{hook: o.Chain.Hook, kind: o.Chain.Type, policy: o.Chain.Policy}
			if o.Chain.Hook != "" {
				t.hooks = append(t.hooks, o.Chain.Name)
			}
		case o.Set != nil:
			table(o.Set.Family, o.Set.Table).sets[o.Set.Name] = o.Set.Elem
		}
	}
	counts := map[*nftTable]int{}
	for _, o := range list.Nftables {
		if o.Rule == nil {
			continue
		}
		t := table(o.Rule.Family, o.Rule.Table)
		counts[t]++
		chain := t.chains[o.Rule.Chain]
		if chain == nil {
			continue
		}
		where := fmt.Sprintf("%s %s %s", o.Rule.Family, o.Rule.Table, o.Rule.Chain)
		for _, r := range t.rules(o.Rule.Expr, o.Rule.Family) {
			r.text = fmt.Sprintf("nft rule %s handle %d", where, o.Rule.Handle)
			r.undo = fmt.Sprintf("nft delete rule %s handle %d", where, o.Rule.Handle)
			chain.rules = append(chain.rules, r)
		}
	}
	count := 0
	for _, key := range order {
		t := tables[key]
		switch {
		case strings.HasSuffix(key, " firewalld"):
			im.note("table %s is firewalld's: run \"tapgate import\" beside it, or with --firewalld DIR", key)
			continue
		case t.xt || t.ofIptables(key):
			if !im.iptablesRead && counts[t] > 0 {
				im.note("table %s is iptables', and nft does not show all of it: import it with --iptables-save", key)
			}
			continue
		}
		count += counts[t]
		for _, name := range t.hooks {
			c := t.chains[name]
			im.addChain(t.chains, name, c.kind == "filter" && c.hook == "forward" && c.policy == "drop")
		}
	}
	im.found(file, count)
	return nil
}

// ofIptables says whether a table is what iptables makes of its own.
func (t *nftTable) ofIptables(key string) bool {
	family, name, _ := strings.Cut(key, " ")
	return (family == "ip" || family == "ip6") && slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, name) &&
		slices.ContainsFunc(t.hooks, func(chain string) bool { return chain == strings.ToUpper(chain) })
}

// rules makes one rule of ours, or several of one with a map of verdicts.
func (t *nftTable) rules(exprs []map[string]any, family string) []chainRule {
	all := []chainRule{{hostRule: hostRule{ipv6: family != "ip"}}}
	each := func(f func(*chainRule)) {
		for i := range all {
			f(&all[i])
		}
	}
	for _, e := range exprs {
		for kind, v := range e {
			arg, _ := v.(map[string]any)
			switch kind {
			case "match":
				each(func(r *chainRule) { t.match(r, arg) })
			case "vmap":
				var split []chainRule
				data := asMap(arg["data"])["set"]
				for _, pair := range asList(data) {
					entry := asList(pair)
					if len(entry) != 2 {
						continue
					}
					for _, r := range all {
						r.rest, r.in, r.out = slices.Clone(r.rest), slices.Clone(r.in), slices.Clone(r.out)
						t.match(&r, map[string]any{"op": "==", "left": arg["key"], "right": entry[0]})
						for verdict, to := range asMap(entry[1]) {
							t.statement(&r, verdict, to)
						}
						split = append(split, r)
					}
				}
				if split == nil {
					each(func(r *chainRule) { r.rest = append(r.rest, "vmap") })
					continue
				}
				all = split
			default:
				each(func(r *chainRule) { t.statement(r, kind, v) })
			}
		}
	}
	return all
}

// statement takes in what a rule does.
func (t *nftTable) statement(r *chainRule, kind string, v any) {
	arg := asMap(v)
	unknown := func() { r.rest = append(r.rest, kind) }
	switch kind {
	case "counter", "comment", "log":
	case "accept", "drop", "return", "masquerade":
		r.action = kind
		if port := arg["port"]; port != nil {
			r.toPorts, _ = nftPort(port)
		}
	case "reject":
		r.action = "drop"
	case "jump", "goto":
		r.jump, _ = arg["target"].(string)
	case "snat":
		r.action = kind
		var ok bool
		if r.pool, ok = t.prefixes(arg["addr"]); !ok {
			unknown()
		}
		if arg["port"] != nil {
			r.toPorts, _ = nftPort(arg["port"])
		}
	case "dnat", "dup", "fwd":
		r.action = map[string]string{"dnat": "dnat", "dup": "tee", "fwd": "fwd"}[kind]
		addr, _ := arg["addr"].(string)
		a, err := parseAddr(addr)
		r.to = a
		if dev, _ := arg["dev"].(string); kind == "dup" && err != nil && dev == "" {
			r.device, err = addr, nil // of a netdev table: the frame as it is
		}
		ok := true
		if arg["port"] != nil {
			r.toPorts, ok = nftPort(arg["port"])
		}
		if err != nil || !ok {
			unknown()
		}
	case "mangle":
		key := asMap(asMap(arg["key"])["tcp option"])
		if key["name"] == "maxseg" {
			r.action, r.clamp = "tcpmss", asMap(asMap(arg["value"])["rt"])["key"] == "mtu"
			return
		}
		unknown()
	case "xt":
		t.xt = true
	default:
		unknown()
	}
}

// match takes in what a rule is for.
func (t *nftTable) match(r *chainRule, m map[string]any) {
	left := asMap(m["left"])
	meta, _ := asMap(left["meta"])["key"].(string)
	payload := asMap(left["payload"])
	proto, _ := payload["protocol"].(string)
	field, _ := payload["field"].(string)
	ct, _ := asMap(left["ct"])["key"].(string)
	flags := asMap(left["&"]) != nil || left["&"] != nil
	what := strings.TrimSpace(strings.Join([]string{meta, proto, field, ct}, " "))
	names := t.texts(m["right"])
	ok := m["op"] == "==" || m["op"] == "in"
	switch {
	case field == "daddr" && m["op"] == "!=":
		var list []netip.Prefix
		list, ok = t.prefixes(m["right"])
		r.notDst = append(r.notDst, list...)
	case flags && m["op"] == "==" && slices.Contains(names, "syn"):
		ok = true // of SYNs, whose MSS is clamped
	case !ok:
	case meta == "iifname" || meta == "iif":
		r.in = names
	case meta == "oifname" || meta == "oif":
		r.out = names
	case meta == "l4proto" || field == "protocol" && proto == "ip" || field == "nexthdr" && proto == "ip6":
		r.protos = names
	case meta == "nfproto":
		if slices.Equal(names, []string{"ipv4"}) {
			r.ipv6 = false
		}
	case field == "saddr" || field == "daddr":
		var list []netip.Prefix
		list, ok = t.prefixes(m["right"])
		if proto == "ip" {
			r.ipv6 = false
		}
		if field == "saddr" {
			r.src = list
		} else {
			r.dst = list
		}
	case field == "dport":
		if proto != "th" {
			r.protos = []string{proto}
		}
		for _, v := range t.elements(m["right"]) {
			p, good := nftPort(v)
			r.ports, ok = append(r.ports, p), ok && good
		}
	case ct == "state":
		r.states(names)
	case ct == "status":
		r.underWay, r.dnatted = true, slices.Equal(names, []string{"dnat"})
		ok = r.dnatted
	default:
		ok = false
	}
	if !ok {
		r.rest = append(r.rest, strings.TrimSpace(what+" "+strings.Join(names, ",")))
	}
}

func asMap(v any) map[string]any { m, _ := v.(map[string]any); return m }
func asList(v any) []any         { l, _ := v.([]any); return l }

// elements are what a right side stands for: itself, or the elements of a set.
func (t *nftTable) elements(v any) []any {
	if name, ok := v.(string); ok && strings.HasPrefix(name, "@") {
		return t.sets[name[1:]]
	}
	if set, ok := asMap(v)["set"]; ok {
		return asList(set)
	}
	if list, ok := v.([]any); ok {
		return list
	}
	return []any{v}
}

func (t *nftTable) texts(v any) (all []string) {
	for _, e := range t.elements(v) {
		switch s := e.(type) {
		case string:
			all = append(all, s)
		case float64:
			all = append(all, fmt.Sprint(int64(s)))
		default:
			all = append(all, "...")
		}
	}
	return all
}

// prefixes are the networks of a right side; ok is false where there is more to it.
func (t *nftTable) prefixes(v any) (all []netip.Prefix, ok bool) {
	for _, e := range t.elements(v) {
		m := asMap(e)
		if elem, wrapped := m["elem"]; wrapped { // with a timeout or a comment
			m = asMap(elem)
			e = m["val"]
			m = asMap(e)
		}
		text, _ := e.(string)
		if p := asMap(m["prefix"]); p != nil {
			text = fmt.Sprintf("%v/%v", p["addr"], p["len"])
		}
		if ends := asList(m["range"]); len(ends) == 2 {
			text = fmt.Sprintf("%v-%v", ends[0], ends[1])
		}
		list, good := addressRange(text)
		if !good {
			return all, false
		}
		all = append(all, list...)
	}
	return all, len(all) > 0
}

func nftPort(v any) (loader.PortRange, bool) {
	text := fmt.Sprint(v)
	if ends := asList(asMap(v)["range"]); len(ends) == 2 {
		text = fmt.Sprintf("%v-%v", ends[0], ends[1])
	}
	p, err := parsePorts(text)
	return p, err == nil
}
