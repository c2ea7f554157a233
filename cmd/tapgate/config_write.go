package main

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"tapgate/loader"
)

// formatConfig writes a configuration as parseConfig reads it. Comments of a
// text it was read from are not known here and so lost.
func formatConfig(cfg loader.Config) string {
	var b strings.Builder
	if len(cfg.Zones) > 0 {
		b.WriteString("zones:\n")
	}
	for _, z := range cfg.Zones {
		b.WriteString("  " + scalar(z.Name) + ": {")
		if string(z.Role) != z.Name {
			b.WriteString("role: " + scalar(string(z.Role)) + ", ")
		}
		b.WriteString("interfaces: " + scalars(z.Interfaces))
		if len(z.Prefixes) > 0 {
			b.WriteString(", prefixes: " + scalars(prefixTexts(z.Prefixes)))
		}
		b.WriteString("}\n")
	}
	if cfg.NAT != nil {
		b.WriteString(natYAML(*cfg.NAT))
	}
	if cfg.Forwarding != "" && cfg.Forwarding != loader.ForwardingFast {
		b.WriteString("forwarding: " + scalar(cfg.Forwarding) + "\n")
	}
	if len(cfg.Policies) > 0 {
		b.WriteString("policies:\n")
	}
	for _, p := range cfg.Policies {
		b.WriteString("  - " + policyYAML(p) + "\n")
	}
	if len(cfg.Mirrors) > 0 {
		b.WriteString("mirrors:\n")
	}
	for _, m := range cfg.Mirrors {
		b.WriteString("  - " + strings.Join(mirrorLines(m), "\n    ") + "\n")
	}
	return b.String()
}

// mirrorLines is a mirror as an item of a list.
func mirrorLines(m loader.Mirror) []string {
	lines := []string{"name: " + scalar(m.Name), "zones: " + scalars(m.Zones), "targets:"}
	for _, t := range m.Targets {
		lines = append(lines, "  - {"+targetYAML(t)+"}")
	}
	return lines
}

// mirrorYAML is a mirror in one line.
func mirrorYAML(m loader.Mirror) string {
	var targets []string
	for _, t := range m.Targets {
		targets = append(targets, "{"+targetYAML(t)+"}")
	}
	y := flowMapping{"name: " + scalar(m.Name), "zones: " + scalars(m.Zones), "targets: [" + strings.Join(targets, ", ") + "]"}
	return y.String()
}

func targetYAML(t loader.Target) string {
	switch {
	case t.Via.IsValid():
		return "via: " + scalar(t.Via.String())
	case t.MAC != nil:
		return "l2: " + scalar(t.L2) + ", mac: " + scalar(t.MAC.String())
	default:
		return "l2: " + scalar(t.L2)
	}
}

// plainScalar is text that YAML reads as itself, in a flow mapping as well.
var plainScalar = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_.-]*|[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+(/[0-9]+)?)$`)

// yamlWords are plain text that some YAML reader takes for something else.
var yamlWords = []string{"null", "true", "false", "yes", "no", "on", "off", "y", "n"}

func scalar(s string) string {
	if plainScalar.MatchString(s) && !slices.Contains(yamlWords, strings.ToLower(s)) {
		return s
	}
	quoted, _ := json.Marshal(s) // a JSON string is a YAML string
	return string(quoted)
}

func scalars(all []string) string {
	quoted := make([]string, len(all))
	for i, s := range all {
		quoted[i] = scalar(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
