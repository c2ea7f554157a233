package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"tapgate/loader"
)

// flowMapping is a YAML mapping on one line, in the order of its keys.
type flowMapping []string

// text adds a text, if there is one.
func (m *flowMapping) text(key, value string) {
	if value != "" {
		m.raw(key, scalar(value))
	}
}

// raw adds what is YAML already.
func (m *flowMapping) raw(key, value string) { *m = append(*m, key+": "+value) }

func (m *flowMapping) prefixes(key string, all []netip.Prefix) {
	if len(all) > 0 {
		m.raw(key, scalars(prefixTexts(all)))
	}
}

func (m *flowMapping) ports(key string, all []loader.PortRange) {
	if len(all) == 0 {
		return
	}
	texts := make([]string, len(all))
	for i, p := range all {
		texts[i] = portsYAML(p)
	}
	m.raw(key, "["+strings.Join(texts, ", ")+"]")
}

func (m *flowMapping) number(key string, n uint32) {
	if n > 0 {
		m.raw(key, strconv.FormatUint(uint64(n), 10))
	}
}

func (m *flowMapping) flag(key string, is bool) {
	if is {
		m.raw(key, "true")
	}
}

func (m flowMapping) String() string { return "{" + strings.Join(m, ", ") + "}" }

// portsYAML leaves single ports the numbers that people write.
func portsYAML(r loader.PortRange) string {
	if r.First == r.Last {
		return portsText(r)
	}
	return scalar(portsText(r))
}

func natYAML(n loader.NAT) string {
	var b strings.Builder
	line := func(key, value string) { fmt.Fprintf(&b, "  %s: %s\n", key, value) }
	if len(n.Masquerades) > 0 {
		b.WriteString("  masquerade:\n")
	}
	for _, m := range n.Masquerades {
		b.WriteString("    - " + masqueradeYAML(m) + "\n")
	}
	if len(n.Exclude) > 0 {
		line("exclude", scalars(prefixTexts(n.Exclude)))
	}
	if n.MaxFlows > 0 {
		line("max_flows", number(uint64(n.MaxFlows)))
	}
	if n.MaxFlowsPerHost > 0 {
		line("max_flows_per_host", number(uint64(n.MaxFlowsPerHost)))
	}
	if n.Preallocate {
		line("preallocate", "true")
	}
	if n.ClampMSS {
		line("clamp_mss", "true")
	}
	if n.KeepSysctls {
		line("sysctls", "keep")
	}
	var timeouts flowMapping
	for _, k := range timeoutKeys(&n.Timeouts) {
		if *k.value > 0 {
			timeouts.raw(k.name, timeoutText(*k.value))
		}
	}
	if len(timeouts) > 0 {
		line("timeouts", timeouts.String())
	}
	if len(n.Forwards) > 0 {
		b.WriteString("  forwards:\n")
	}
	for _, f := range n.Forwards {
		b.WriteString("    - " + forwardYAML(f) + "\n")
	}
	if b.Len() == 0 {
		return "nat: {}\n" // which makes a gateway as well
	}
	return "nat:\n" + b.String()
}

func masqueradeYAML(m loader.Masquerade) string {
	var y flowMapping
	y.text("name", m.Name)
	y.text("from", m.From)
	y.text("to", m.To)
	y.prefixes("sources", m.Sources)
	y.prefixes("addresses", m.Addresses)
	y.ports("ports", m.Ports)
	if m.EndpointIndependent {
		y.raw("filtering", endpointIndependent)
	}
	y.flag("ipv6", m.IPv6)
	return y.String()
}

func forwardYAML(f loader.Forward) string {
	var y, limit flowMapping
	y.text("name", f.Name)
	y.text("in", f.In)
	if f.Address.IsValid() {
		y.text("address", f.Address.String())
	}
	y.text("proto", f.Proto)
	y.raw("port", portsYAML(f.Ports))
	y.text("to", forwardTo(f))
	y.prefixes("sources", f.Sources)
	limit.number("rate", f.Rate)
	limit.number("per_remote", f.RateHost)
	if len(limit) > 0 {
		y.raw("limit", limit.String())
	}
	return y.String()
}

func policyYAML(p loader.Policy) string {
	var y flowMapping
	y.text("name", p.Name)
	y.text("from", p.From)
	y.text("to", p.To)
	y.text("proto", p.Proto)
	y.prefixes("sources", p.Sources)
	y.prefixes("destinations", p.Destinations)
	y.ports("ports", p.Ports)
	y.raw("action", actionText(p))
	y.flag("log", p.Log)
	return y.String()
}

func actionText(p loader.Policy) string {
	if p.Accept {
		return "accept"
	}
	return "drop"
}
