package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tapgate/loader"
)

// Changes of a configuration, as commands make them.
type alteration func(t *testing.T, cfg *loader.Config)

func addingForward(name string) alteration {
	return func(t *testing.T, cfg *loader.Config) {
		t.Helper()
		one := loader.PortRange{First: 80, Last: 80}
		if note, err := addForward(cfg, loader.Forward{Name: name, In: "external", Proto: "tcp", Ports: one, To: netip.MustParseAddr("192.168.3.2"), ToPort: 80}); note != "" || err != nil {
			t.Fatal(note, err)
		}
	}
}

func addingMirror(name string, zones ...string) alteration {
	return func(t *testing.T, cfg *loader.Config) {
		t.Helper()
		if note, err := addMirror(cfg, name, zones, loader.Target{L2: "eth2"}); note != "" || err != nil {
			t.Fatal(note, err)
		}
	}
}

func deleting(del func(*loader.Config, string) (string, error), names ...string) alteration {
	return func(t *testing.T, cfg *loader.Config) {
		t.Helper()
		for _, name := range names {
			if note, err := del(cfg, name); note != "" || err != nil {
				t.Fatal(note, err)
			}
		}
	}
}

func delWholeMirror(cfg *loader.Config, name string) (string, error) {
	return delMirror(cfg, name, nil)
}

func delL2(cfg *loader.Config, name string) (string, error) {
	return delMirror(cfg, name, &loader.Target{L2: "eth2"})
}

const (
	zonesText = "zones:\n  external: {interfaces: [eth0]}\n  internal: {interfaces: [eth3]}\n  dmz: {interfaces: [eth2]}\n"
	newItem   = `{name: new, in: external, proto: tcp, port: 80, to: "192.168.3.2:80"}`
	forwardA  = `{name: a, in: external, proto: tcp, port: 1, to: "192.168.3.2:1"}`
	forwardB  = `{name: b, in: external, proto: tcp, port: 2, to: "192.168.3.2:2"}`
)

func rewriteCases() map[string]struct {
	text   string // behind zonesText
	change alteration
	want   string // behind zonesText, or what the refusal says
	refuse bool
} {
	type c = struct {
		text   string
		change alteration
		want   string
		refuse bool
	}
	add, del := addingForward("new"), func(names ...string) alteration { return deleting(delForward, names...) }
	return map[string]c{
		"behind the last": {
			"nat:\n  forwards: # those from outside\n    - " + forwardA + "   # Bob's\n    # the end\n\n# policies\npolicies:\n", add,
			"nat:\n  forwards: # those from outside\n    - " + forwardA + "   # Bob's\n    - " + newItem + "\n    # the end\n\n# policies\npolicies:\n", false,
		},
		"no list": {
			"nat:\n    masquerade:\n        - {from: internal, to: external}\n\n# mirrors\nmirrors:\n", add,
			"nat:\n    masquerade:\n        - {from: internal, to: external}\n    forwards:\n      - " + newItem + "\n\n# mirrors\nmirrors:\n", false,
		},
		"no nat":               {"# the end\n\n", add, "# the end\nnat:\n  forwards:\n    - " + newItem + "\n\n", false},
		"no nat, no line end":  {"policies: []", add, "policies: []\nnat:\n  forwards:\n    - " + newItem + "\n", false},
		"the document's end":   {"...\n", add, "nat:\n  forwards:\n    - " + newItem + "\n...\n", false},
		"empty nat":            {"nat: # nothing\npolicies:\n", add, "nat: # nothing\n  forwards:\n    - " + newItem + "\npolicies:\n", false},
		"empty list":           {"nat:\n  forwards:\n  max_flows: 1000\n", add, "nat:\n  forwards:\n    - " + newItem + "\n  max_flows: 1000\n", false},
		"null":                 {"nat:\n  forwards: ~\n", add, "line 7: forwards is empty in a way that cannot be added to", true},
		"nat in one line":      {"nat: {clamp_mss: true }\n", add, "nat: {clamp_mss: true, forwards: [" + newItem + "] }\n", false},
		"empty nat, one line":  {"nat: {}\n", add, "nat: {forwards: [" + newItem + "]}\n", false},
		"list in one line":     {"nat: {forwards: [" + forwardA + "]}\n", add, "nat: {forwards: [" + forwardA + ", " + newItem + "]}\n", false},
		"empty list, one line": {"nat:\n  forwards: [ ]\n", add, "nat:\n  forwards: [" + newItem + " ]\n", false},
		"list in brackets": {
			"nat:\n  forwards: [\n    " + forwardA + ", # ä\n  ]\n", add,
			"nat:\n  forwards: [\n    " + forwardA + ", # ä\n   " + newItem + "]\n", false,
		},
		"list that is not set deeper": {
			"nat:\n  forwards:\n  - " + forwardA + "\n  masquerade:\n  - {from: internal, to: external}\n", add,
			"nat:\n  forwards:\n  - " + forwardA + "\n  - " + newItem + "\n  masquerade:\n  - {from: internal, to: external}\n", false,
		},
		"several lines each": {
			"nat:\n  forwards:\n    -\n      name: a\n      in: external\n      proto: tcp\n\n      port: 1\n# far left\n      to: 192.168.3.2:1\n", add,
			"nat:\n  forwards:\n    -\n      name: a\n      in: external\n      proto: tcp\n\n      port: 1\n# far left\n      to: 192.168.3.2:1\n    - " + newItem + "\n", false,
		},
		"anchor": {
			"nat: &n\n  forwards: &f\n    - &a " + forwardA + "\n", add,
			"nat: &n\n  forwards: &f\n    - &a " + forwardA + "\n    - " + newItem + "\n", false,
		},
		"anchor that is used": {
			"mirrors:\n  - {name: x, zones: [internal], targets: &t [{via: 192.168.4.2}]}\n  - {name: y, zones: [internal], targets: *t}\n",
			addingMirror("x"), "alias", true,
		},
		"alias": {
			"mirrors:\n  - {name: x, zones: [internal], targets: &t [{via: 192.168.4.2}]}\n  - {name: y, zones: [internal], targets: *t}\n",
			addingMirror("y"), "alias", true,
		},
		"other things differ": {
			"nat: {}\n", func(_ *testing.T, cfg *loader.Config) { cfg.Forwarding = loader.ForwardingKernel },
			"it differs in more than mirrors, forwards and masquerade rules", true,
		},

		"one goes": {
			"nat:\n  forwards:\n    - " + forwardA + "\n    - " + forwardB + " # b\nmirrors:\n", del("a"),
			"nat:\n  forwards:\n    - " + forwardB + " # b\nmirrors:\n", false,
		},
		"its comment stays": {
			"nat:\n  forwards:\n    # a is\n    # Bob's\n    - " + forwardA + "\n    # b is Ann's\n    - " + forwardB + "\n", del("a"),
			"nat:\n  forwards:\n    # a is\n    # Bob's\n    # b is Ann's\n    - " + forwardB + "\n", false,
		},
		"comment of both": {
			"nat:\n  forwards:\n    # Windows\n    - " + forwardA + "\n    - " + forwardB + "\n", del("a"),
			"nat:\n  forwards:\n    # Windows\n    - " + forwardB + "\n", false,
		},
		"the last of all": {
			"nat:\n  # in\n  forwards:\n    # a\n    - " + forwardA + "\n  max_flows: 1000\n", del("a"),
			"nat:\n  # in\n  forwards:\n    # a\n  max_flows: 1000\n", false,
		},
		"empty lines": {
			"nat:\n  forwards:\n\n    - " + forwardA + "\n\n    - " + forwardB + "\n\nmirrors:\n", del("b"),
			"nat:\n  forwards:\n\n    - " + forwardA + "\n\nmirrors:\n", false,
		},
		"from one line":           {"nat: {forwards: [" + forwardA + ", " + forwardB + "]}\n", del("a"), "nat: {forwards: [" + forwardB + "]}\n", false},
		"the last of one line":    {"nat: {forwards: [" + forwardA + ", " + forwardB + "]}\n", del("b"), "nat: {forwards: [" + forwardA + "]}\n", false},
		"all of one line":         {"nat: {forwards: [" + forwardA + ", " + forwardB + "]}\n", del("b", "a"), "nat: {forwards: []}\n", false},
		"comment within brackets": {"nat: {forwards: [" + forwardA + ", # Bob's\n  " + forwardB + "]}\n", del("a"), "a comment stands within the list", true},
		"two with an anchor of one": {
			"nat:\n  forwards:\n    - {name: a, in: &in external, proto: tcp, port: 1, to: \"192.168.3.2:1\"}\n    - {name: b, in: *in, proto: tcp, port: 2, to: \"192.168.3.2:2\"}\n",
			del("a"), "unknown alias", true,
		},
		"masquerade without a name": {
			"nat:\n  masquerade:\n    - from: internal # all\n      to: external\n    - {from: internal, to: external, name: b}\n", deleting(delMasquerade, "internal-external"),
			"nat:\n  masquerade:\n    - {from: internal, to: external, name: b}\n", false,
		},
		"mirror": {
			"mirrors:\n- name: ids # the IDS\n  zones: [internal]\n  targets:\n  - via: 192.168.4.2\n  # - via: 192.168.4.3\n# end\n", addingMirror("rec", "internal"),
			"mirrors:\n- name: ids # the IDS\n  zones: [internal]\n  targets:\n  - via: 192.168.4.2\n  # - via: 192.168.4.3\n- name: rec\n  zones: [internal]\n  targets:\n    - {l2: eth2}\n# end\n", false,
		},
		"target": {
			"mirrors:\n- name: ids # the IDS\n  zones: [internal]\n  targets:\n  - via: 192.168.4.2\n- {name: y, zones: [internal], targets: [{l2: eth2}]}\n", addingMirror("ids"),
			"mirrors:\n- name: ids # the IDS\n  zones: [internal]\n  targets:\n  - via: 192.168.4.2\n  - {l2: eth2}\n- {name: y, zones: [internal], targets: [{l2: eth2}]}\n", false,
		},
		"target goes": {
			"mirrors:\n- name: ids # the IDS\n  zones: [internal]\n  targets:\n  - l2: eth2\n  - {via: 192.168.4.2} # x\n", deleting(delL2, "ids"),
			"mirrors:\n- name: ids # the IDS\n  zones: [internal]\n  targets:\n  - {via: 192.168.4.2} # x\n", false,
		},
		"mirror goes": {
			"mirrors:\n  # recorder\n  - name: rec\n    zones:\n      - internal\n    targets: [{via: 192.168.4.2}]\n    # not now\n\n  # the IDS\n  - name: ids\n    zones: [internal]\n    targets: [{via: 192.168.4.2}]\n",
			deleting(delWholeMirror, "rec"),
			"mirrors:\n  # recorder\n\n  # the IDS\n  - name: ids\n    zones: [internal]\n    targets: [{via: 192.168.4.2}]\n", false,
		},
	}
}

// What is not asked for stays as it is written, to the letter.
func TestRewriteConfig(t *testing.T) {
	for name, c := range rewriteCases() {
		for _, style := range []string{"", "windows"} {
			dress := func(s string) string {
				if style == "windows" {
					return strings.ReplaceAll(s, "\n", "\r\n")
				}
				return s
			}
			text := dress("# mine\n" + zonesText + c.text)
			doc := mustParse(t, text)
			cfg := doc.Config
			c.change(t, &cfg)
			got, err := rewriteConfig(doc, cfg)
			switch {
			case c.refuse && (err == nil || style == "" && !strings.Contains(err.Error(), c.want)):
				t.Errorf("%s %s: %v, want %s\n%s", name, style, err, c.want, got)
			case c.refuse:
			case err != nil:
				t.Errorf("%s %s: %v", name, style, err)
			case got != dress("# mine\n"+zonesText+c.want):
				t.Errorf("%s %s: got\n%q\nwant\n%q", name, style, got, dress("# mine\n"+zonesText+c.want))
			}
		}
	}
}

// JSON stays JSON, or is not touched.
func TestRewriteJSON(t *testing.T) {
	const text = `{"zones": {"external": {"interfaces": ["eth0"]}, "dmz": {"interfaces": ["eth2"]}}, "nat": {"forwards": [{"name": "a", "in": "external", "proto": "tcp", "port": 1, "to": "192.168.3.2:1"}]}}`
	cfg := mustParse(t, text).Config
	deleting(delForward, "a")(t, &cfg)
	if got, err := rewriteConfig(mustParse(t, text), cfg); err != nil || got != text[:strings.Index(text, `{"name"`)]+"]}}" {
		t.Errorf("%s, %v", got, err)
	}
	addingForward("new")(t, &cfg)
	if got, err := rewriteConfig(mustParse(t, text), cfg); err == nil || !strings.Contains(err.Error(), "JSON") {
		t.Errorf("%s, %v", got, err)
	}
}

// Any changes in any order lead to a text that says what it should, with all comments that
// stand by themselves.
func TestRewriteRandom(t *testing.T) {
	for seed := range uint64(60) {
		dice := rand.New(rand.NewPCG(seed, 1))
		text := "# first\n" + zonesText + "# second\nnat:\n  # third\n  forwards:\n    - " + forwardA + "\n    - " + forwardB + "\nmirrors: []\n# last\n"
		cfg := mustParse(t, text).Config
		for step := range 20 {
			names, mirrors := forwardNames(cfg), mirrorNames(cfg)
			switch n := dice.IntN(4); {
			case n == 0 && len(names) > 0:
				deleting(delForward, names[dice.IntN(len(names))])(t, &cfg)
			case n == 1 && len(mirrors) > 0:
				deleting(delWholeMirror, mirrors[dice.IntN(len(mirrors))])(t, &cfg)
			case n == 2:
				addingMirror(fmt.Sprint("m", step), "internal")(t, &cfg)
			default:
				addingForward(fmt.Sprint("f", step))(t, &cfg)
			}
			if dice.IntN(3) == 0 {
				continue // several at once
			}
			next, err := rewriteConfig(mustParse(t, text), cfg)
			if err != nil {
				t.Fatalf("seed %d, step %d: %v\n%s", seed, step, err, text)
			}
			if text = next; !sameMeaning(mustParse(t, text).Config, cfg) {
				t.Fatalf("seed %d, step %d: other meaning\n%s", seed, step, text)
			}
			for _, comment := range []string{"# first\n", "# second\n", "  # third\n", "# last\n"} {
				if strings.Count(text, comment) != 1 {
					t.Fatalf("seed %d, step %d: %q is lost\n%s", seed, step, comment, text)
				}
			}
		}
	}
}

func TestSameMeaning(t *testing.T) {
	const text = zonesText + "nat:\n  masquerade:\n    - {from: internal, to: external, addresses: [203.0.113.1, 203.0.113.2]}\n  forwards:\n    - " + forwardA + "\n    - " + forwardB +
		"\nmirrors:\n  - {name: x, zones: [internal], targets: [{via: 192.168.4.2}, {l2: eth2}]}\npolicies:\n  - {from: internal, to: external, action: accept}\n  - {from: external, to: internal, action: drop}\n"
	a := mustParse(t, text).Config
	for _, c := range []struct {
		name, from, to string
		same           bool
	}{
		{"comment", "nat:", "nat: # x", true},
		{"order of forwards", forwardA + "\n    - " + forwardB, forwardB + "\n    - " + forwardA, true},
		{"order of targets", "{via: 192.168.4.2}, {l2: eth2}", "{l2: eth2}, {via: 192.168.4.2}", true},
		{"order of zones", "  internal: {interfaces: [eth3]}\n  dmz: {interfaces: [eth2]}\n", "  dmz: {interfaces: [eth2]}\n  internal: {interfaces: [eth3]}\n", true},
		{"a name that it has", "{from: internal, to: external, add", "{name: internal-external, from: internal, to: external, add", true},
		{"what is the default", "nat:", "forwarding: fast\nnat:", true},
		{"a name that it has not", "{from: internal, to: external, add", "{name: other, from: internal, to: external, add", false},
		{"order of addresses", "203.0.113.1, 203.0.113.2", "203.0.113.2, 203.0.113.1", false},
		{"order of policies", "{from: internal, to: external, action: accept}\n  - {from: external, to: internal, action: drop}", "{from: external, to: internal, action: drop}\n  - {from: internal, to: external, action: accept}", false},
		{"a zone's interface", "[eth3]", "[eth4]", false},
		{"a forward's port", "port: 1,", "port: 3,", false},
		{"a target", "{l2: eth2}", "{l2: eth2, mac: \"02:00:00:00:00:01\"}", false},
		{"an option", "nat:\n", "nat:\n  clamp_mss: true\n", false},
	} {
		other := strings.Replace(text, c.from, c.to, 1)
		if other == text {
			t.Fatalf("%s: nothing changed", c.name)
		}
		if b := mustParse(t, other).Config; sameMeaning(a, b) != c.same {
			t.Errorf("%s: the same is %v", c.name, !c.same)
		}
	}
	// What is compared is not put in order itself.
	if names := forwardNames(a); !slices.Equal(names, []string{"a", "b"}) || a.Zones[0].Name != "external" {
		t.Error("the configuration was changed")
	}
}

// Whatever a text holds, either it says what it should afterwards, or it is refused.
func TestRewriteOddTexts(t *testing.T) {
	base := zonesText + "nat: # x\n  forwards:\n    - " + forwardA + "\n    # y\n    - name: b\n      in: external\n      proto: tcp\n      port: 2\n      to: \"192.168.3.2:2\"\n" +
		"  masquerade: [{from: internal, to: external}]\nmirrors: []\n"
	odd := []string{"\r", "\r\n", "\n", " ", "\t", "\u2028", "\u0085", "\f", "ä", "#", "'", "\"", "&a ", "*a", "!!x ", "|", ">", "---\n", "...\n", "{", "}", "[", "]", ",", ":", "-", "- ", "? ", "~"}
	done, refused := 0, 0
	for seed := range uint64(12000) {
		dice := rand.New(rand.NewPCG(seed, 2))
		text := base
		for range 1 + dice.IntN(3) {
			at := dice.IntN(len(text) + 1)
			text = text[:at] + odd[dice.IntN(len(odd))] + text[at:]
		}
		doc, err := parseConfig("", []byte(text))
		if err != nil {
			continue
		}
		cfg := doc.Config
		switch names := forwardNames(cfg); {
		case seed%4 == 0 && len(names) > 0:
			deleting(delForward, names[dice.IntN(len(names))])(t, &cfg)
		case seed%4 == 1 && len(masqueradesOf(cfg)) > 0:
			deleting(delMasquerade, masqueradeNames(cfg)[0])(t, &cfg)
		case seed%4 == 2:
			addingMirror("new", "internal")(t, &cfg)
		default:
			addingForward("new")(t, &cfg)
		}
		next, err := rewriteConfig(doc, cfg)
		if err != nil {
			refused++
			continue
		}
		done++
		if !sameMeaning(mustParse(t, next).Config, cfg) {
			t.Errorf("seed %d: %q became %q", seed, text, next)
		}
	}
	if done < 500 || refused > done/4 {
		t.Errorf("%d done, %d refused", done, refused)
	}
	t.Logf("%d done, %d refused", done, refused)
}
