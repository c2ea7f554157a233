package main

import (
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"tapgate/loader"
)

const exampleConfig = `# the networks of the example
zones:
  external: {interfaces: [eth0]}
  app: {interfaces: [eth3, eth5.10], role: internal}
  dmz:
    interfaces:
      - eth2
  mgmt:     {interfaces: [eth4]}
mirrors:
  - name: ids
    zones: [app]
    targets:
      - {via: 192.168.4.2}
      - via: 2001:db8:4::2
      - {l2: eth2, mac: 02:00:5E:00:53:01}
  - name: record
    zones: [app]
    targets: [{l2: eth2}]
`

func exampleZones() ([]loader.Zone, []loader.Mirror) {
	mac := net.HardwareAddr{2, 0, 0x5e, 0, 0x53, 1}
	return []loader.Zone{
			{Name: "external", Role: loader.RoleExternal, Interfaces: []string{"eth0"}},
			{Name: "app", Role: loader.RoleInternal, Interfaces: []string{"eth3", "eth5.10"}},
			{Name: "dmz", Role: loader.RoleDMZ, Interfaces: []string{"eth2"}},
			{Name: "mgmt", Role: loader.RoleMgmt, Interfaces: []string{"eth4"}},
		}, []loader.Mirror{
			{Name: "ids", Zones: []string{"app"}, Targets: []loader.Target{
				{Via: netip.MustParseAddr("192.168.4.2")},
				{Via: netip.MustParseAddr("2001:db8:4::2")},
				{L2: "eth2", MAC: mac},
			}},
			{Name: "record", Zones: []string{"app"}, Targets: []loader.Target{{L2: "eth2"}}},
		}
}

func mustParse(t *testing.T, text string) *document {
	t.Helper()
	d, err := parseConfig("f", []byte(text))
	if err != nil {
		t.Fatalf("parse: %v\n%s", err, text)
	}
	return d
}

func TestParseConfig(t *testing.T) {
	zones, mirrors := exampleZones()
	for name, text := range map[string]string{
		"as written":      exampleConfig,
		"Windows lines":   strings.ReplaceAll(exampleConfig, "\n", "\r\n"),
		"byte order mark": "\ufeff" + exampleConfig,
		"document marker": "---\n" + exampleConfig,
		"with an anchor":  strings.Replace(strings.Replace(exampleConfig, "zones: [app]", "zones: &z [app]", 1), "zones: [app]", "zones: *z", 1),
	} {
		d := mustParse(t, text)
		if !reflect.DeepEqual(d.Zones, zones) {
			t.Errorf("%s: zones\n got %+v\nwant %+v", name, d.Zones, zones)
		}
		if !reflect.DeepEqual(d.Mirrors, mirrors) {
			t.Errorf("%s: mirrors\n got %+v\nwant %+v", name, d.Mirrors, mirrors)
		}
		if d.Source != strings.TrimPrefix(text, "\ufeff") {
			t.Errorf("%s: the source is not the text", name)
		}
	}
}

func TestParseConfigSmall(t *testing.T) {
	d := mustParse(t, "zones: {dmz: {interfaces: [10, 1e3]}}\nmirrors:\n")
	if got := d.Zones[0].Interfaces; !reflect.DeepEqual(got, []string{"10", "1e3"}) {
		t.Errorf("names that look like numbers: %q", got)
	}
	if len(d.Mirrors) != 0 {
		t.Errorf("mirrors of nothing: %v", d.Mirrors)
	}
	d = mustParse(t, "zones: {}\nmirrors: [{name: a, zones: [z], targets: [{via: '::ffff:192.0.2.1'}]}]")
	if got := d.Mirrors[0].Targets[0].Via.String(); got != "192.0.2.1" {
		t.Errorf("an IPv4 address in IPv6 form: %s", got)
	}
}

type configMistake struct{ name, text, want string }

// configMistakes are wrong files, and what is said of them.
func configMistakes() []configMistake {
	zone := "zones:\n  internal: {interfaces: [eth3]}\n"
	return []configMistake{
		{"empty", "", "f: empty; it needs at least zones:"},
		{"only comments", "# nothing\n", "f: empty; it needs at least zones:"},
		{"only a byte order mark", "\ufeff", "f: empty; it needs at least zones:"},
		{"a mistake after a byte order mark", "\ufeffzone: {}\n", `f:1:1: unknown key "zone"; did you mean "zones"?`},
		{"not a mapping", "eth0\n", `f:1:1: expected zones:, mirrors: and so on, got "eth0"`},
		{"a list", "- eth0\n", "f:1:1: expected zones:, mirrors: and so on, got a list"},
		{"bad syntax", "zones:\n  internal: {interfaces: [eth3}\n", "f:2:31: "},
		{"tab", "zones:\n\tdmz: {}\n", "f:2:1: found character '\t' that cannot start any token; indent with spaces, not tabs"},
		{"duplicate key", zone + zone, `f:3:1: mapping key "zones" already defined at [1:1]`},
		{"duplicate zone", zone + "  internal: {interfaces: [eth4]}\n", `f:3:3: mapping key "internal" already defined at [2:3]`},
		{"second document", zone + "---\n" + zone, "f:4:1: a second document: the configuration must be one"},
		{"not UTF-8", "zones: \xff\n", "f: not UTF-8 text"},
		{"too large", zone + strings.Repeat("#", maxConfig), "f: larger than 4194304 bytes"},
		{"unknown key", "zone:\n  a: b\n", `f:1:1: unknown key "zone"; did you mean "zones"?`},
		{"unknown far key", zone + "frobnicate: 1\n", `f:3:1: unknown key "frobnicate"; known: zones, nat, forwarding, policies, mirrors`},
		{"unknown zone key", "zones:\n  dmz: {interface: [eth2]}\n", `f:2:9: unknown key "interface" in a zone; did you mean "interfaces"?`},
		{"unknown mirror key", "mirrors:\n  - name: a\n    target: []\n", `f:3:5: unknown key "target" in a mirror; did you mean "targets"?`},
		{"unknown target key", "mirrors:\n  - {name: a, targets: [{vai: 192.0.2.1}]}\n", `f:2:26: unknown key "vai" in a target; did you mean "via"?`},
		{"later target", "mirrors: [{name: a, targets: [{vxlan: 192.0.2.1}]}]", "f:1:32: vxlan: not in this version of tapgate, which has via and l2"},
		{"role", "zones:\n  app: {role: intern, interfaces: [eth3]}\n", `f:2:15: unknown role "intern"; did you mean "internal"?`},
		{"no role", "zones:\n  app: {interfaces: [eth3]}\n", `f:2:3: zone "app": its name is not a role, so say which it has: role: external | internal | dmz | mgmt`},
		{"role is nothing", "zones:\n  app: {role: , interfaces: [eth3]}\n", "f:2:9: expected a role: external, internal, dmz, mgmt, got nothing"},
		{"interfaces not a list", "zones:\n  dmz: {interfaces: eth2}\n", `f:2:21: expected a list of interfaces, as [eth0], got "eth2"`},
		{"zone not a mapping", "zones:\n  dmz: [eth2]\n", "f:2:8: expected {interfaces: [NAME, ...]}, got a list"},
		{"interface not a name", "zones:\n  dmz: {interfaces: [true, {a: b}, null]}\n",
			"f:2:22: expected the name of an interface, got true (to mean the text, quote it)\n" +
				"f:2:28: expected the name of an interface, got a mapping\n" +
				"f:2:36: expected the name of an interface, got nothing"},
		{"mirrors not a list", "mirrors:\n  ids: {}\n", "f:2:3: expected a list of mirrors, got a mapping"},
		{"mirror without name", "mirrors:\n  - zones: [a]\n", "f:2:5: a mirror without name"},
		{"not an address", "mirrors:\n  - name: a\n    targets:\n      - via: 192.168.4.256\n", `f:4:14: via: "192.168.4.256" is not an IP address`},
		{"not a MAC", "mirrors: [{name: a, targets: [{l2: e, mac: 02-00}]}]", `f:1:44: mac: "02-00" is not a MAC address of 6 bytes`},
		{"a MAC of 8 bytes", "mirrors: [{name: a, targets: [{l2: e, mac: '02:00:00:00:00:00:00:01'}]}]", `f:1:44: mac: "02:00:00:00:00:00:00:01" is not a MAC address of 6 bytes`},
		{"via and l2", "mirrors: [{name: a, targets: [{via: 192.0.2.1, l2: e}]}]", "f:1:31: a target is either via: ADDR or l2: INTERFACE"},
		{"empty target", "mirrors:\n  - name: a\n    targets:\n      - {}\n", "f:4:9: a target is either via: ADDR or l2: INTERFACE"},
		{"MAC with via", "mirrors: [{name: a, targets: [{via: 192.0.2.1, mac: 02:00:00:00:00:01}]}]", "f:1:31: mac goes with l2; via finds the MAC by itself"},
		{"merge key", "zones:\n  dmz: &d {interfaces: [a]}\n  mgmt: {<<: *d}\n", `f:3:10: "<<" is not supported: write the keys out`},
		{"unknown alias", "zones:\n  dmz: *d\n", "f:2:8: expected {interfaces: [NAME, ...]}, got an unknown alias *d"},
		{"several", "zones:\n  app: {}\nmirror: []\n",
			`f:2:3: zone "app": its name is not a role, so say which it has: role: external | internal | dmz | mgmt` + "\n" +
				`f:3:1: unknown key "mirror"; did you mean "mirrors"?`},
	}
}

func TestConfigErrors(t *testing.T) {
	for _, c := range configMistakes() {
		_, err := parseConfig("f", []byte(c.text))
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		got := strings.Join(errorLines(err), "\n")
		if got != c.want && !(strings.HasSuffix(c.want, ": ") && strings.HasPrefix(got, c.want)) {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
		if code := exitCode(err); code != exitUsage {
			t.Errorf("%s: exit code %d", c.name, code)
		}
	}
}

func TestConfigPlaces(t *testing.T) {
	d := mustParse(t, exampleConfig)
	for path, want := range map[string]string{
		"zones":                         "f:2:1",
		"zones.external":                "f:3:3",
		"zones.external.interfaces[0]":  "f:3:27",
		"zones.app.interfaces[1]":       "f:4:28",
		"zones.app.role":                "f:4:44",
		"zones.external.role":           "f:3:3", // not in the file: its zone
		"zones.dmz.interfaces[0]":       "f:7:9",
		"zones.dmz.interfaces[7]":       "f:6:5",
		"mirrors":                       "f:9:1",
		"mirrors[0]":                    "f:10:5",
		"mirrors[0].name":               "f:10:11",
		"mirrors[0].zones[0]":           "f:11:13",
		"mirrors[0].targets[0].via":     "f:13:15",
		"mirrors[0].targets[1].via":     "f:14:14",
		"mirrors[0].targets[2].mac":     "f:15:25",
		"mirrors[1].targets[0].l2":      "f:18:20",
		"mirrors[1].targets[0].nothing": "f:18:15",
		"mirrors[5].name":               "f:9:1",
		"nat.masquerade[0]":             "f",
		"":                              "f",
	} {
		if got := d.place(path); got != want {
			t.Errorf("place of %q: %s, want %s", path, got, want)
		}
	}
}

func TestFormatConfig(t *testing.T) {
	first := mustParse(t, exampleConfig)
	text := formatConfig(first.Config)
	second := mustParse(t, text)
	first.Source, second.Source = "", ""
	if !reflect.DeepEqual(first.Config, second.Config) {
		t.Errorf("another configuration after writing and reading:\n got %+v\nwant %+v\n%s", second.Config, first.Config, text)
	}
	want := `zones:
  external: {interfaces: [eth0]}
  app: {role: internal, interfaces: [eth3, eth5.10]}
  dmz: {interfaces: [eth2]}
  mgmt: {interfaces: [eth4]}
mirrors:
  - name: ids
    zones: [app]
    targets:
      - {via: 192.168.4.2}
      - {via: "2001:db8:4::2"}
      - {l2: eth2, mac: "02:00:5e:00:53:01"}
  - name: record
    zones: [app]
    targets:
      - {l2: eth2}
`
	if text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

// FuzzConfig: no text may crash the reader, and what it takes must come back
// the same after writing.
func FuzzConfig(f *testing.F) {
	f.Add(exampleConfig)
	f.Add("zones: {on: {role: dmz, interfaces: ['a b', \"\\t\", 0x10, -]}}\nmirrors: [{name: '', targets: [{via: fe80::1%e}]}]")
	f.Add(natConfig)
	f.Add("nat:\npolicies: [{from: a, to: b, action: drop}]")
	f.Add("zones: &a {dmz: *a}\nmirrors: !!seq [*a]\n")
	f.Add("a: &x *x\n? b\n: |\n c\n...\n--- >-\n d")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseConfig("f", []byte(text))
		if err != nil {
			if len(errorLines(err)) == 0 {
				t.Fatal("an error that says nothing")
			}
			return
		}
		written := formatConfig(d.Config)
		if written == "" {
			return
		}
		again, err := parseConfig("f", []byte(written))
		if err != nil {
			t.Fatalf("%v in\n%s", err, written)
		}
		if formatConfig(again.Config) != written {
			t.Fatalf("got\n%s\nwant\n%s", formatConfig(again.Config), written)
		}
	})
}
