package loader

import (
	"fmt"
	"net/netip"
	"slices"
)

// questions are the flows that we let through, as the forward chains of the host see
// them: after our translation of destinations, and before that of sources.
func (f *hostFinder) questions() (list []hostQuestion) {
	g := f.res.gateway
	for _, from := range f.res.zones {
		for _, to := range f.res.zones {
			if from.Role != RoleInternal || to.Role != RoleExternal {
				continue
			}
			for _, q := range f.between(from.Name, to.Name) {
				q.concerns = from.Name + " to " + to.Name
				list = append(list, q)
				p := &q.packet
				p.in, p.out, p.src, p.state = p.out, p.in, nil, "established"
				q.concerns = "answers"
				list = append(list, q)
			}
		}
	}
	for i, p := range g.policies {
		if !p.Accept || g.roles[p.From] == RoleInternal && g.roles[p.To] == RoleExternal {
			continue
		}
		for _, q := range f.between(p.From, p.To) {
			q.concerns = "policy " + policyName(i, p)
			list = append(list, q.limited(p)...)
		}
	}
	for _, fw := range g.nat.Forwards {
		last := fw.Ports.Last - fw.Ports.First + fw.ToPort
		for _, in := range f.members(fw.In) {
			list = append(list, hostQuestion{
				concerns: "forward " + fw.Name, narrow: true,
				packet: hostPacket{
					v6: fw.To.Is6(), in: in.name, out: f.wayTo(fw.To), dst: []hostSpan{{fw.To, fw.To}}, proto: fw.Proto,
					dports: PortRange{fw.ToPort, last}, state: "new",
				},
			})
		}
	}
	return list
}

// between are questions about TCP from zone to zone, for each two interfaces.
func (f *hostFinder) between(from, to string) (list []hostQuestion) {
	for _, v6 := range []bool{false, true} {
		sources := f.sources(from, v6)
		if len(sources) == 0 {
			continue
		}
		for _, in := range f.members(from) {
			for _, out := range f.members(to) {
				q := hostQuestion{packet: hostPacket{v6: v6, in: in.name, out: out.name, proto: "tcp", state: "new"}}
				if f.res.gateway.roles[from] != RoleExternal { // whose hosts may be anywhere
					q.packet.src = spansOf(sources)
				}
				list = append(list, q)
			}
		}
	}
	return list
}

// limited are questions about the flows of a policy: for each of its destinations and
// ports.
func (q hostQuestion) limited(p Policy) (list []hostQuestion) {
	if len(p.Sources) > 0 {
		q.packet.src = spansOf(p.Sources)
	}
	if p.Proto != "" {
		q.packet.proto = protoWord(p.Proto)
	}
	q.narrow = p.Proto != "" || len(p.Destinations) > 0
	destinations, ports := spansOf(p.Destinations), p.Ports
	if len(destinations) == 0 {
		destinations = []hostSpan{{}}
	}
	if len(ports) == 0 {
		ports = []PortRange{{}}
	}
	for _, to := range destinations {
		for _, ports := range ports {
			one := q
			if to.first.IsValid() {
				one.packet.dst = []hostSpan{to}
			}
			one.packet.dports = ports
			if !one.empty() {
				list = append(list, one)
			}
		}
	}
	return list
}

// empty: addresses of the other family only.
func (q *hostQuestion) empty() bool {
	other := func(list []hostSpan) bool {
		return len(list) > 0 && !slices.ContainsFunc(list, func(s hostSpan) bool { return s.first.Is6() == q.packet.v6 })
	}
	return other(q.packet.src) || other(q.packet.dst)
}

// wayTo is the interface that leads to an inside address, "" if that is not plain.
func (f *hostFinder) wayTo(a netip.Addr) string {
	for _, m := range f.res.members {
		if slices.ContainsFunc(m.addrs, func(p netip.Prefix) bool { return p.Masked().Contains(a) }) {
			return m.name
		}
	}
	for zone, networks := range f.res.gateway.facts.Inside {
		if slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) }) {
			if m := f.members(zone); len(m) == 1 {
				return m[0].name
			}
		}
	}
	return ""
}

// hostAsked is a question whose packets a rule drops.
type hostAsked struct {
	hostQuestion
	base *hostChain
	hit  hostHit
}

// hostDropped are questions whose answers lie in one place: a chain, or firewalld.
type hostDropped struct {
	by    *hostChain
	asked []hostAsked
}

func (d *hostDropped) same(base *hostChain, hit hostHit) bool {
	if (d.asked[0].hit.hostMatch == matchUnknown) != (hit.hostMatch == matchUnknown) {
		return false
	}
	return d.by == base || d.by.table.firewalld() && base.table.firewalld()
}

// findDrops looks for forward chains that let flows not through which we let through.
// Flows that the host admits in part, as from some addresses, are its own decision.
func (f *hostFinder) findDrops() {
	var all []*hostDropped
	for _, q := range f.questions() {
		for _, c := range baseChains(f.rules.tables, "filter", "forward", q.packet.v6) {
			hits := c.walk(&q.packet, &f.steps)
			if f.steps < 0 {
				return
			}
			hit, dropped := finalDrop(hits)
			if !dropped {
				continue
			}
			i := slices.IndexFunc(all, func(d *hostDropped) bool { return d.same(c, hit) })
			if i < 0 {
				i = len(all)
				all = append(all, &hostDropped{by: c})
			}
			all[i].asked = append(all[i].asked, hostAsked{q, c, hit})
		}
	}
	for _, d := range all {
		f.found = append(f.found, f.dropped(d))
	}
}

// finalDrop is what drops the packets that no rule has accepted for certain.
func finalDrop(hits []hostHit) (last hostHit, dropped bool) {
	if len(hits) == 0 {
		return last, false
	}
	last = hits[len(hits)-1]
	for _, h := range hits[:len(hits)-1] {
		switch {
		case h.rule.verdict == hostAccept && h.hostMatch >= matchSome:
			return last, false
		case h.rule.verdict == hostAccept, h.rule.verdict == hostUnknown:
			last.hostMatch = matchUnknown
		}
	}
	return last, last.rule.verdict == hostDrop
}

func (f *hostFinder) dropped(d *hostDropped) HostRule {
	first := d.asked[0]
	h := f.describe(first.hit)
	h.Kind = HostDrops
	h.By = d.by.table.owner()
	does := "drops"
	seen := map[string]bool{}
	for _, a := range d.asked {
		if !seen[a.concerns] {
			h.Concerns = append(h.Concerns, a.concerns)
			seen[a.concerns] = true
		}
		if a.hit.rule.reject {
			does = "rejects"
		}
	}
	if !h.Certain {
		does = "may " + does[:len(does)-1]
	}
	h.Commands = f.permission(d)
	h.Says = fmt.Sprintf("%s %s new flows of %s (%s: %s)", h.By, does, someOf(h.Concerns), h.Where, h.Rule)
	if len(h.Commands) == 0 {
		h.Says += ": add a rule that accepts them"
	} else {
		h.Says += "; it lacks"
	}
	return h
}
