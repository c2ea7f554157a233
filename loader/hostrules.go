package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Kinds of what the host's own firewall does to flows of ours.
const (
	// HostMasquerades: it translates the sources of flows that we translate.
	HostMasquerades = "masquerades"
	// HostMasqueradesOthers: it does so for others that leave by the same interface.
	HostMasqueradesOthers = "masquerades_others"
	// HostDrops: it lets new flows not through that we would.
	HostDrops = "drops"
	// HostRedirects: it has a rule for a port that we forward.
	HostRedirects = "redirects"
	// HostUnseen: there are rules that could not be read.
	HostUnseen = "unseen"
)

// HostRule is what the host's own firewall does to flows of a configuration.
type HostRule struct {
	Kind     string   `json:"kind"`
	By       string   `json:"by,omitempty"`    // firewalld, Docker, ufw, nft, iptables, ...
	Where    string   `json:"where,omitempty"` // table and chain
	Rule     string   `json:"rule,omitempty"`
	Certain  bool     `json:"certain"`  // false: it depends on what cannot be known here
	Concerns []string `json:"concerns"` // "forward rdp", "internal to external"
	Says     string   `json:"says"`
	Commands []string `json:"commands"` // that remove the rule, or add the one that it lacks

	masquerade int // number of ours that it meets
	device     string
}

// hostSteps bounds how many rules are looked at in all.
const hostSteps = 5_000_000

// hostFinder holds a configuration against the host's rules.
type hostFinder struct {
	res   *resolved
	rules *hostRuleset
	steps int
	found []HostRule
	// Of firewalld, that commands make already.
	policies []string
}

// hostFindings says what the rules of the host do to the flows of a gateway. It is
// called in its namespace.
func (r *resolved) hostFindings() []HostRule {
	if r.gateway == nil {
		return nil
	}
	return r.hold(readHostRules())
}

func (r *resolved) hold(rules *hostRuleset) []HostRule {
	f := &hostFinder{res: r, rules: rules, steps: hostSteps}
	f.findSources()
	f.findDrops()
	f.findRedirects()
	if f.steps < 0 {
		rules.unread("the host has too many rules to be followed for every forward: what is told of them is not all")
	}
	for _, u := range rules.unseen {
		f.found = append(f.found, HostRule{Kind: HostUnseen, Concerns: []string{}, Commands: []string{}, Says: u})
	}
	return f.found
}

// heldAgainstHost looks at the host's rules when a configuration is put in force, or
// rules are added to it.
func (g *Gateway) heldAgainstHost(res *resolved) (warnings []string, err error) {
	if res.gateway == nil || !g.asked && !res.gateway.newRules(&g.active) {
		return nil, nil
	}
	found := res.hostFindings()
	if !g.opt.Force && !g.opt.CutOver {
		if err := hostRefusal(found, &g.active); err != nil {
			return nil, err
		}
	}
	return hostWarnings(found), nil
}

// heldAgainstHost tells what the host's rules do, and whether apply would refuse.
func (r *Report) heldAgainstHost(opt Options, res *resolved) error {
	if res.gateway == nil {
		return nil
	}
	r.Gateway.HostRules = append([]HostRule{}, res.hostFindings()...)
	if opt.Force {
		return nil
	}
	var active record
	if g, err := Open(opt, ReadOnly); err == nil { // else nothing is in force, as far as one can see
		active = g.active
		_ = g.Close()
	}
	return hostRefusal(r.Gateway.HostRules, &active)
}

// hostRefusal is the error of those rules that stand against putting the configuration in
// force, unless the generation in force translates on that interface already.
func hostRefusal(found []HostRule, active *record) error {
	var errs []error
	for _, h := range found {
		if h.Kind == HostMasquerades && h.Certain && !active.translates(h.device) {
			errs = append(errs, configErrorf(fmt.Sprintf("nat.masquerade[%d]", h.masquerade),
				"%s; or, to take over its open connections without a gap, \"apply --cut-over\" first and remove it right after", h.text(true)))
		}
	}
	return errors.Join(errs...)
}

// translates says whether flows that leave by an interface are translated.
func (r *record) translates(device string) bool {
	return r.Gateway != nil &&
		slices.ContainsFunc(r.Gateway.Outside, func(o outsideRecord) bool { return o.Interface == device }) &&
		slices.ContainsFunc(r.Gateway.Rules, func(rule ruleRecord) bool { return rule.Kind == kindMasquerade && !rule.Gone })
}

// newRules says whether a configuration has rules that are not in force yet.
func (g *resolvedGateway) newRules(active *record) bool {
	return slices.ContainsFunc(g.ruleNames(), func(n ruleRecord) bool {
		return active.Gateway == nil || !slices.ContainsFunc(active.Gateway.Rules, func(o ruleRecord) bool {
			return !o.Gone && o.Kind == n.Kind && o.Name == n.Name && o.Text == n.Text
		})
	})
}

// hostWarnings are the findings as warnings. What merely stands beside us is none.
func hostWarnings(found []HostRule) (lines []string) {
	for _, h := range found {
		if h.Kind != HostMasqueradesOthers {
			lines = append(lines, h.text(false))
		}
	}
	return lines
}

// mostCommands is how many commands a warning shows.
const mostCommands = 12

// text is the finding with its commands: in one line, or each in its own.
func (h HostRule) text(oneLine bool) string {
	commands := h.Commands
	if len(commands) == 0 {
		return h.Says
	}
	if oneLine {
		return h.Says + ": " + strings.Join(commands, " && ")
	}
	more := ""
	if len(commands) > mostCommands {
		more = fmt.Sprintf("\n  (and %d more: \"tapgate check\" has all)", len(commands)-mostCommands)
		commands = commands[:mostCommands]
	}
	return h.Says + ":\n  " + strings.Join(commands, "\n  ") + more
}

// hostQuestion is a flow of ours, as the host's rules see its first packet.
type hostQuestion struct {
	concerns string
	packet   hostPacket
	narrow   bool // a forward, or some ports: not all from one zone to another
}

// sources are the networks that hosts of a zone have, of one family.
func (f *hostFinder) sources(zone string, v6 bool) (list []netip.Prefix) {
	all := f.res.gateway.facts.Inside[zone]
	if f.res.gateway.roles[zone] != RoleInternal {
		for _, m := range f.members(zone) {
			for _, a := range m.addrs {
				if !a.Addr().IsLinkLocalUnicast() {
					all = append(all, a.Masked())
				}
			}
		}
	}
	for _, p := range all {
		if p.Addr().Is6() == v6 {
			list = append(list, p)
		}
	}
	return list
}

func (f *hostFinder) members(zone string) (list []*member) {
	for _, m := range f.res.members {
		if m.zone == zone {
			list = append(list, m)
		}
	}
	return list
}

// narrowed are those of the networks that lie in one of the others, or hold one.
func narrowed(all, only []netip.Prefix) (list []netip.Prefix) {
	if len(only) == 0 {
		return all
	}
	for _, a := range all {
		for _, o := range only {
			switch {
			case o.Overlaps(a) && o.Bits() <= a.Bits():
				list = append(list, a)
			case o.Overlaps(a):
				list = append(list, o)
			}
		}
	}
	return list
}

// translates says whether a masquerade rule translates a family.
func (m Masquerade) translates(v6 bool) bool {
	if len(m.Addresses) == 0 {
		return !v6 || m.IPv6
	}
	return slices.ContainsFunc(m.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
}

// findSources looks for rules that translate the sources of flows that we translate.
func (f *hostFinder) findSources() {
	nat := &f.res.gateway.nat
	seen := map[*hostRule]bool{}
	for i, m := range nat.Masquerades {
		for _, v6 := range []bool{false, true} {
			sources := narrowed(f.sources(m.From, v6), m.Sources)
			if !m.translates(v6) || len(sources) == 0 {
				continue
			}
			for _, in := range f.members(m.From) {
				for _, out := range f.members(m.To) {
					p := &hostPacket{v6: v6, in: in.name, out: out.name, src: spansOf(sources), except: spansOf(nat.Exclude), state: "new"}
					f.findSource(i, p, HostMasquerades, seen)
				}
			}
		}
	}
	for i, m := range nat.Masquerades {
		for _, out := range f.members(m.To) {
			f.findSource(i, &hostPacket{out: out.name, state: "new"}, HostMasqueradesOthers, seen)
		}
	}
}

func (f *hostFinder) findSource(number int, p *hostPacket, kind string, seen map[*hostRule]bool) {
	for _, c := range baseChains(f.rules.tables, "nat", "postrouting", p.v6) {
		for _, hit := range c.walk(p, &f.steps) {
			if hit.rule.verdict != hostSource || seen[hit.rule] {
				continue
			}
			seen[hit.rule] = true
			h := f.describe(hit)
			h.Kind, h.masquerade, h.device = kind, number, p.out
			h.Concerns = []string{"masquerade " + masqueradeName(f.res.gateway.nat.Masquerades[number])}
			does := "may translate"
			if h.Certain {
				does = "translates"
			}
			if kind == HostMasqueradesOthers {
				h.Says = fmt.Sprintf("%s translates other flows that leave by %q (%s): tapgate leaves those alone", h.By, p.out, h.Rule)
			} else {
				h.Commands = f.removal(hit.rule)
				h.Says = fmt.Sprintf("%s %s what leaves by %q as well (%s: %s); two must not: remove it", h.By, does, p.out, h.Where, h.Rule)
			}
			f.found = append(f.found, h)
		}
	}
}

// describe says which rule it is.
func (f *hostFinder) describe(hit hostHit) HostRule {
	r := hit.rule
	h := HostRule{
		By: r.chain.table.owner(), Certain: hit.hostMatch != matchUnknown, Rule: f.textOf(r), Commands: []string{},
		Where: fmt.Sprintf("table %s %s, chain %s", r.chain.table.family, r.chain.table.name, r.chain.name),
	}
	return h
}

// textOf is the rule as its tool prints it, as far as that is known.
func (f *hostFinder) textOf(r *hostRule) string {
	switch {
	case r == r.chain.policy && r.verdict == hostDrop:
		return "policy drop"
	case r == r.chain.policy:
		return "policy accept"
	case r.text == "" && r.chain.table.tool == "nft":
		if r.text = nftRuleText(r); r.text == "" {
			r.text = fmt.Sprintf("handle %d", r.handle)
		}
	}
	return r.text
}

// findRedirects looks for rules that lead ports elsewhere that we forward.
func (f *hostFinder) findRedirects() {
	at := map[*hostRule]int{}
	for _, fw := range f.res.gateway.nat.Forwards {
		v6 := fw.To.Is6()
		last := fw.Ports.Last - fw.Ports.First + fw.ToPort
		for _, in := range f.members(fw.In) {
			asked := &hostPacket{v6: v6, in: in.name, proto: fw.Proto, dports: fw.Ports, state: "new", local: true}
			if fw.Address.IsValid() {
				asked.dst = []hostSpan{{fw.Address, fw.Address}}
			}
			led := &hostPacket{v6: v6, in: in.name, proto: fw.Proto, dports: PortRange{fw.ToPort, last}, state: "new", dst: []hostSpan{{fw.To, fw.To}}}
			for _, p := range []*hostPacket{asked, led} {
				for _, c := range baseChains(f.rules.tables, "nat", "prerouting", v6) {
					for _, hit := range c.walk(p, &f.steps) {
						if hit.rule.verdict != hostDestination || hit.hostMatch == matchUnknown {
							continue
						}
						f.addRedirect(at, hit, fw.Name)
					}
				}
			}
		}
	}
}

func (f *hostFinder) addRedirect(at map[*hostRule]int, hit hostHit, name string) {
	i, known := at[hit.rule]
	if !known {
		h := f.describe(hit)
		h.Kind, h.Commands = HostRedirects, f.removal(hit.rule)
		i = len(f.found)
		at[hit.rule] = i
		f.found = append(f.found, h)
	}
	h := &f.found[i]
	if c := "forward " + name; !slices.Contains(h.Concerns, c) {
		h.Concerns = append(h.Concerns, c)
	}
	h.Says = fmt.Sprintf("%s redirects ports of %s as well (%s: %s); tapgate comes first: remove it", h.By, someOf(h.Concerns), h.Where, h.Rule)
}

// someOf lists what is concerned, not all where it is much.
func someOf(list []string) string {
	const most = 5
	if len(list) <= most {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
}
