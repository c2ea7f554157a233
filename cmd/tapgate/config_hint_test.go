package main

import (
	"strings"
	"testing"
)

// Wrong files as people write them: each is told with its line, and with what they
// probably meant.
func TestConfigHints(t *testing.T) {
	const zones = "zones:\n  internal: {interfaces: [eth3]}\n  external: {interfaces: [eth0]}\n"
	target := func(via string) string {
		return zones + "mirrors: [{name: a, zones: [internal], targets: [{via: " + via + "}]}]\n"
	}
	for _, c := range []struct{ name, text, place, hint string }{
		{"UTF-16", "\xff\xfez\x00", "f: ", "not UTF-8 text but UTF-16: save it as UTF-8"},
		{"tab", zones + "\tdmz: {}\n", "f:4:", "indent with spaces, not tabs"},
		{"no space", strings.Replace(zones, "internal: ", "internal:", 1), "f:2:", "a space belongs after a colon"},
		{"no colon", "zones\n  dmz: {interfaces: [eth2]}\n", "f:1:1: ", "a colon belongs behind a key: zones:"},
		{"indentation", "zones:\n  dmz: {interfaces: [eth2]}\n mgmt: {interfaces: [eth4]}\n", "f:3:2: ", "indented alike"},
		{"no-break space", strings.Replace(zones, "  internal", "\u00a0 internal", 1), "f:3:", "(U+00A0)"},
		{"semicolon", zones + "; a comment\n", "f:4:1: ", "comments begin with #"},
		{"slashes", zones + "// a comment\n", "f:4:1: ", "comments begin with #"},
		{"template", strings.Replace(zones, "eth3", "{{ inside }}", 1), "f:2:", "a template that was not filled in"},
		{"variable", strings.Replace(zones, "eth3", "${INSIDE}", 1), "f:2:", "a template that was not filled in"},
		{"merge", zones + "<<<<<<< ours\nforwarding: fast\n=======\nforwarding: kernel\n>>>>>>> theirs\n", "f:", "marks of a merge"},
		{"TOML", "[zones]\nexternal = ['eth0']\n", "f:2:1: ", "sections in brackets are not YAML"},
		{"star", zones + "policies: [{from: *, to: external, action: accept}]\n", "f:4:", "quote what begins with *"},
		{"another alphabet", strings.Replace(zones, "internal", "intеrnal", 1), "f:2:3: ", `zone "int\u0435rnal": its name is not a role`},
		{"leading zeros", target("192.168.004.2"), "f:4:", "did you mean 192.168.4.2?"},
		{"address with length", target("192.168.4.2/24"), "f:4:", "did you mean 192.168.4.2? An address has no length"},
		{"address with port", target("192.168.4.2:80"), "f:4:", "did you mean 192.168.4.2? It has no port"},
		{"name for an address", target("sensor.local"), "f:4:", "names are not looked up"},
		{"ports in one text", zones + "policies: [{from: internal, to: external, proto: tcp, ports: '80,443', action: drop}]\n", "f:4:", "several are a list: [80, 443]"},
		{"networks in one text", zones + "nat: {exclude: [10.0.0.0/8 192.168.0.0/16]}\n", "f:4:", "several are a list: [10.0.0.0/8, 192.168.0.0/16]"},
		{"days", zones + "nat: {timeouts: {tcp_established: 2d}}\n", "f:4:", "did you mean 48h?"},
		{"two protocols", zones + "policies: [{from: internal, to: external, proto: [tcp, udp], action: drop}]\n", "f:4:", "expected one protocol"},
		{"a key without end", zones + strings.Repeat("x", 5000) + ": 1\n", "f:4:1: ", " ... "},
	} {
		_, err := parseConfig("f", []byte(c.text))
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		if got := err.Error(); !strings.HasPrefix(got, c.place) || !strings.Contains(got, c.hint) || len(got) > 2*messageLimit {
			t.Errorf("%s:\n got %s\nwant %s %s", c.name, got, c.place, c.hint)
		}
	}
	if _, err := parseConfig("f", []byte("%YAML 1.2\n---\n"+zones)); err != nil {
		t.Errorf("a directive: %v", err)
	}
	if listHint("8 - 9") != "" || addressHint("0xc0a80402") != "" || addressHint("") != "" {
		t.Error("hints that make no sense")
	}
}
