package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"tapgate/test/lab"
)

// What cannot go back by itself is refused, and changes nothing.
func TestConfirmRefused(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateServers, lab.SecondInternal())
	before := g.status().Serial
	masquerade := func(zones, from, to string) string {
		return zones + "nat: {masquerade: [{from: " + from + ", to: " + to + "}]}\n"
	}
	const dmz = "zones: {external: {interfaces: [eth0]}, internal: {interfaces: [eth3]}, dmz: {interfaces: [eth2, eth4]}}\n"
	const named = "zones: {wan: {role: external, interfaces: [eth0]}, internal: {interfaces: [eth3]}, dmz: {interfaces: [eth2]}}\n"
	for _, c := range []struct {
		config, flags, want string
		code                int
	}{
		{gateServers, "--confirm 1s", "a time from 5s to 1h", 2},
		{gateServers, "--confirm 2h", "a time from 5s to 1h", 2},
		{gateServers, "--confirm soon", "confirm", 2},
		{gateServers, "--confirm 60s --cut-over", "cut-over", 2},
		{masquerade(dmz, "internal", "external"), "--confirm 60s", `"eth4" is in a zone of role mgmt now and would be of role dmz`, 2},
		{masquerade(named, "internal", "wan"), "--confirm 60s", `203.0.113.1 is in zone "external" now and would be in zone "wan"`, 2},
	} {
		r := g.tapgateIn(c.config, append([]string{"apply", "-f", "-"}, words(c.flags)...)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: want exit code %d and %q: %s", c.flags, c.code, c.want, r)
		}
		if r := g.tapgateIn(c.config, append([]string{"apply", "--dry-run", "-f", "-"}, words(c.flags)...)...); r.code != c.code {
			t.Errorf("%s --dry-run: %s", c.flags, r)
		}
	}
	if s := g.status(); s.Serial != before || len(s.Problems) > 0 || s.Pending != nil {
		t.Errorf("refused, and changed: %+v", s)
	}
	g.apply(masquerade(named, "internal", "wan")) // without, it may be
}

// A dry run says what would change, and changes nothing: with nothing in force, and with
// something.
func TestConfirmDryRun(t *testing.T) {
	t.Parallel()
	g := newGateLab(t)
	before, files := g.list(), tree(t, g.bpffs)
	r := g.tapgateIn(gateServers, "apply", "-f", "-", "--dry-run")
	g.says(r, "+ interface eth3: zone internal (internal), index ", "+ mirror ids via 192.168.4.2: of internal, by eth2", "+ forward rdp: tcp 3389", "nothing was changed")
	if r.code != 0 {
		t.Errorf("dry run: %s", r)
	}
	g.unchanged(before, "afterwards")
	if now := tree(t, g.bpffs); len(now) != len(files) {
		t.Errorf("a dry run leaves %v", now)
	}

	g.apply(gateServers)
	serial := g.status().Serial
	other := strings.ReplaceAll(gateServers, `port: 3389, to: "192.168.3.200:3389"`, `port: 3390, to: "192.168.3.200:3389"`)
	other = strings.ReplaceAll(other, "    - {via: 192.168.4.2}\n", "    - {l2: eth2}\n")
	const one, two = "policies:\n  - {name: a, from: mgmt, to: external, action: accept}\n", "  - {name: b, from: mgmt, to: internal, action: accept}\n"
	r = g.tapgateIn(other+one, "apply", "-f", "-", "--dry-run")
	g.says(r, "~ forward rdp: tcp 3389 of zone external to 192.168.3.200:3389 -> tcp 3390 of zone external to 192.168.3.200:3389",
		"- mirror ids via 192.168.4.2: ", "+ mirror ids l2 eth2: ", "+ policy a: accept mgmt to external")
	if lines := strings.Count(r.stdout, "\n"); r.code != 0 || lines != 4 {
		t.Errorf("%d changes, want 4: %s", lines, r)
	}
	if s := g.status(); s.Serial != serial || len(s.Problems) > 0 {
		t.Errorf("a dry run changes: %+v", s)
	}
	if r = g.tapgateIn(gateServers, "apply", "-f", "-", "--dry-run"); r.code != 0 || r.stdout != "" || !strings.Contains(r.stderr, "nothing would change") {
		t.Errorf("the same: %s", r)
	}
	var plan struct {
		Changes []struct{ Change, What, Before, After string }
	}
	r = g.tapgateIn(gateServers+one, "apply", "-f", "-", "--dry-run", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &plan); err != nil || len(plan.Changes) != 1 || plan.Changes[0].What != "policy a" || plan.Changes[0].Change != "added" {
		t.Errorf("%v: %s", err, r)
	}
	// What comes first decides.
	g.apply(gateServers + one + two)
	r = g.tapgateIn(gateServers+"policies:\n"+two+strings.TrimPrefix(one, "policies:\n"), "apply", "-f", "-")
	if r.code != 0 || r.stdout != "~ order of policies: a, b -> b, a\n" {
		t.Errorf("another order: %s", r)
	}
}
