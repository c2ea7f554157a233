package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"

	"tapgate/loader"
)

// gatewayText shows what the gateway does beside copying; nothing if it only taps.
func gatewayText(gw *loader.GatewayStatus, verbose bool) string {
	if gw == nil {
		return ""
	}
	pairs := outsidePairs(gw.Outside)
	add := func(name, format string, args ...any) { pairs = append(pairs, name, fmt.Sprintf(format, args...)) }
	followed := "no: no agent runs, and the addresses are those of the last apply"
	if gw.Followed {
		followed = "yes, by the agent"
	}
	add("followed", "%s", followed)
	for i, line := range strings.Split(text.WrapSoft(forwardingText(gw.Forwarding), 80), "\n") {
		add(first("forwarding", i), "%s", strings.TrimSpace(line))
	}
	add("flows", "%d of %d, of %s with %s", gw.Flows, gw.MaxFlows, counted(gw.Hosts, "host"), counted(int(gw.Bindings), "mapping"))
	if gw.Memory > 0 {
		add("memory", "%s for flows, taken at once (preallocate)", size(gw.Memory))
	}
	add("unanswered", "%d of %d, by forwards %d", gw.Fresh, gw.MaxFresh, gw.Forwarded)
	add("ever", "%d created, %d expired", gw.Created, gw.Expired)
	var refused []string
	for _, why := range slices.Sorted(maps.Keys(gw.Refused)) {
		refused = append(refused, fmt.Sprintf("%s %d", why, gw.Refused[why]))
	}
	add("refused", "%s", strings.Join(refused, ", "))
	add("rules", "%s, %s, %s", counted(len(gw.Masquerades), "masquerade rule"), counted(len(gw.Forwards), "forward"), policiesText(len(gw.Policies)))
	if gw.Adopting > 0 {
		add("adopting", "TCP flows from inside that began earlier, for another %s", span(seconds(gw.Adopting)))
	}
	parts := []string{section("gateway", pairs)}
	if verbose {
		parts = append(parts, ruleTable(gw))
	}
	return joinParts(parts)
}

// forwardingText is the mode, and why it is not the other one.
func forwardingText(f loader.ForwardingStatus) string { return printable(f.String()) }

func policiesText(n int) string {
	if n == 1 {
		return "1 policy"
	}
	return fmt.Sprintf("%d policies", n)
}

// section is facts under a title.
func section(title string, pairs []string) string {
	return title + "\n" + indented(strings.TrimSuffix(facts(pairs...), "\n"))
}

// first is a name for the first of several facts.
func first(name string, i int) string {
	if i > 0 {
		return ""
	}
	return name
}

func outsidePairs(list []loader.OutsideStatus) (pairs []string) {
	for i, o := range list {
		pairs = append(pairs, first("outside", i), fmt.Sprintf("%s (%s): %s", o.Interface, o.Zone, outsideText(o)))
	}
	return pairs
}

func outsideText(o loader.OutsideStatus) string {
	var all []string
	for _, a := range []string{o.IPv4, o.IPv6} {
		if a != "" {
			all = append(all, a)
		}
	}
	if all == nil {
		return "no address"
	}
	return strings.Join(all, ", ")
}

// ruleTable says of every rule how many flows it decided on.
func ruleTable(gw *loader.GatewayStatus) string {
	var rows [][]string
	for _, list := range []struct {
		kind  string
		rules []loader.RuleStatus
	}{{"masquerade", gw.Masquerades}, {"forward", gw.Forwards}, {"policy", gw.Policies}} {
		for _, r := range list.rules {
			rows = append(rows, append([]string{list.kind, r.Name}, hits(r).cells()...))
		}
	}
	if rows == nil {
		return ""
	}
	return columns("rules", []string{"kind", "name", ">flows", "last"}, rows)
}

func hits(r loader.RuleStatus) ruleHits { return ruleHits{Flows: r.Flows, Last: r.Last} }

// hitsOf finds what rules did by their names.
func hitsOf(rules []loader.RuleStatus) map[string]ruleHits {
	all := make(map[string]ruleHits, len(rules))
	for _, r := range rules {
		all[r.Name] = hits(r)
	}
	return all
}
