package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tapgate/test/lab"
)

// badInput is a command that must be refused.
type badInput struct {
	name   string
	setUp  []string      // "ip" commands in the gateway, before the listing
	config func() string // for "apply -f -"
	args   []string      // else the command line
	code   int           // exit code
	want   []string      // all in the message
}

func edit(pairs ...string) func() string {
	return func() string { return strings.NewReplacer(pairs...).Replace(example) }
}

// target is example with another target.
func target(text string) func() string { return edit("{via: 192.168.4.2}", text) }

// with is example and more behind it.
func with(more string) func() string { return func() string { return example + more } }

// forwards is example with forwards named f0, f1 and so on.
func forwards(list ...string) func() string {
	text := "nat:\n  forwards:\n"
	for i, f := range list {
		text += fmt.Sprintf("    - {name: f%d, %s}\n", i, f)
	}
	return with(text)
}

var badInputs = []badInput{
	{name: "missing interface", config: edit("eth3", "eth9"), code: 2,
		want: []string{"stdin:4:27: ", `no interface "eth9"; there are: `, "eth3", "renamed or in another network namespace?"}},
	{name: "interface in two zones", config: edit("[eth4]", "[eth4, eth3]"), code: 2,
		want: []string{"stdin:6:33: ", `"eth3" is already in zone "internal"`}},
	{name: "interface twice in a zone", config: edit("[eth4]", "[eth4, eth4]"), code: 2, want: []string{"stdin:6:33: ", `interface "eth4" is listed twice`}},
	{name: "loopback", config: edit("eth3", "lo"), code: 2, want: []string{"stdin:4:27: ", "loopback"}},
	{name: "sensor on a tapped interface", config: target("{via: 192.168.3.2}"), code: 2,
		want: []string{"stdin:11:15: ", "192.168.3.2 is on no dmz network", `on that of "eth3", which is in zone "internal"`}},
	{name: "sensor by l2 on a tapped interface", config: target("{l2: eth3}"), code: 2,
		want: []string{"stdin:11:14: ", `"eth3" is in zone "internal" (role internal)`}},
	{name: "tapping the dmz", config: edit("zones: [internal]", "zones: [dmz]"), code: 2, want: []string{"stdin:9:13: ", "a mirror of it would copy the copies"}},
	{name: "sensor is the gateway itself", config: target("{via: 192.168.4.1}"), code: 2, want: []string{"this machine's own address"}},
	{name: "sensor is a broadcast address", config: target("{via: 192.168.4.255}"), code: 2, want: []string{"not the address of one machine"}},
	{name: "sensor beyond a router", config: target("{via: 198.51.100.9}"), code: 2, want: []string{"on no dmz network (eth2 192.168.4.0/24"}},
	{name: "bad address", config: target("{via: 192.168.4.256}"), code: 2, want: []string{"stdin:11:15: ", "192.168.4.256"}},
	{name: "bad MAC", config: target(`{l2: eth2, mac: "02:00:00"}`), code: 2, want: []string{"stdin:11:", "mac"}},
	{name: "MAC of nobody", config: target(`{l2: eth2, mac: "00:00:00:00:00:00"}`), code: 2, want: []string{"stdin:11:25: ", "00:00:00:00:00:00 is nobody's"}},
	{name: "two kinds of target", config: target("{via: 192.168.4.2, l2: eth2}"), code: 2, want: []string{"stdin:11:9: ", "either via: ADDR or l2: INTERFACE"}},
	{name: "unknown key", config: edit("targets:", "tragets:"), code: 2, want: []string{"stdin:10:5: ", `unknown key "tragets"`, "targets"}},
	{name: "unknown key at the top", config: edit("mirrors:", "mirors:"), code: 2, want: []string{"stdin:7:1: ", `unknown key "mirors"`}},
	{name: "not YAML", config: edit("{interfaces: [eth3]}", "{interfaces: [eth3"), code: 2, want: []string{"stdin:"}},
	{name: "unknown zone", config: edit("zones: [internal]", "zones: [interal]"), code: 2, want: []string{"stdin:9:13: ", `no zone "interal"; there are: `}},
	{name: "unknown role", config: edit("{interfaces: [eth4]}", "{role: guest, interfaces: [eth4]}"), code: 2, want: []string{"stdin:6:20: ", `unknown role "guest"`}},
	{name: "no dmz", config: edit("  dmz:      {interfaces: [eth2]}\n", ""), code: 2, want: []string{"no zone has the role dmz"}},
	{name: "empty", config: func() string { return "" }, code: 2, want: []string{"stdin: empty; it needs at least zones:"}},
	{name: "policy for no zone", config: with("policies:\n  - {from: internal, to: wan, action: drop}\n"), code: 2,
		want: []string{"stdin:13:26: ", `no zone "wan"; there are: `}},
	{name: "masquerade within a zone", config: with("nat:\n  masquerade:\n    - {from: internal, to: internal}\n"), code: 2, want: []string{"stdin:14:"}},
	{name: "masquerade from outside", config: with("nat:\n  masquerade:\n    - {from: external, to: internal}\n"), code: 2, want: []string{"stdin:14:14: ", `"external" has the role external`}},
	{name: "forward in an internal zone", config: forwards("in: internal, proto: tcp, port: 80, to: '192.168.3.2:80'"), code: 2,
		want: []string{"stdin:14:22: ", `"internal" has the role internal`}},
	{name: "forward to nobody inside", config: forwards("in: external, proto: tcp, port: 80, to: '192.168.9.2:80'"), code: 2,
		want: []string{"stdin:14:58: ", "192.168.9.2"}},
	{name: "two forwards of one port", config: forwards("in: external, proto: tcp, port: 80, to: '192.168.3.2:80'", "in: external, proto: tcp, port: 80, to: '192.168.3.2:81'"), code: 2,
		want: []string{"stdin:15:", `"f0"`, `"f1"`}},
	{name: "two forwards of one name", config: forwards("in: external, proto: tcp, port: 80, to: '192.168.3.2:80'}\n    - {name: f0, in: external, proto: tcp, port: 81, to: '192.168.3.2:81'"), code: 2,
		want: []string{"stdin:15:14: ", `"f0"`}},
	{name: "timeout below the RFC's", config: with("nat:\n  timeouts: {udp: 5s}\n"), code: 2, want: []string{"stdin:13:19: ", "RFC 4787"}},
	{name: "unknown key of nat", config: with("nat:\n  forward: []\n"), code: 2, want: []string{"stdin:13:3: ", `unknown key "forward" in nat; did you mean "forwards"?`}},
	{name: "several mistakes at once", config: edit("eth3", "eth9", "192.168.4.2", "192.168.4.1"), code: 2,
		want: []string{`no interface "eth9"`, "this machine's own address"}},
	{name: "stacked macvlan", setUp: []string{"link add top0 link eth3 type macvlan"}, config: edit("[eth3]", "[eth3, top0]"), code: 2,
		want: []string{"stdin:4:33: ", `"top0" (macvlan) is stacked on "eth3" of zone "internal"`}},
	{name: "stacked vxlan", setUp: []string{"link add vx0 type vxlan id 7 dev eth3 dstport 4789 remote 192.168.3.2"}, config: edit("[eth4]", "[eth4, vx0]"), code: 2,
		want: []string{"stdin:6:33: ", `"vx0" (vxlan) is stacked on "eth3" of zone "internal"`}},
	{name: "sensor behind a macvlan of a tapped interface", setUp: []string{"link add top0 link eth3 type macvlan", "addr add 192.168.8.1/24 dev top0"},
		config: edit("[eth2]", "[top0]", "192.168.4.2", "192.168.8.2"), code: 2, want: []string{`"top0" (macvlan) is stacked on "eth3" of zone "internal"`}},
	{name: "bridge and its port", setUp: []string{"link add br0 type bridge", "link add p0 type veth peer name p1", "link set p0 master br0"},
		config: edit("[eth3]", "[br0, p0]"), code: 2, want: []string{"stdin:4:32: ", `"p0" is a port of bridge "br0", where its packets are routed: take "br0" instead`}},
	{name: "sensor's MTU too small", setUp: []string{"link set eth2 mtu 1280"}, config: edit(), code: 2,
		want: []string{"stdin:11:15: ", `the MTU of "eth2" is 1280`, `"eth3" have up to 1500`, "--force"}},
	{name: "no sensor MTU for jumbo frames", setUp: []string{"link set eth3 mtu 9000"}, config: edit(), code: 2,
		want: []string{`the MTU of "eth2" is 1500`, "up to 9000"}},

	{name: "attach with a bad sensor", args: []string{"attach", "--internal", "eth3", "--dmz", "eth2", "--sensor", "192.168.4"}, code: 2, want: []string{"--sensor: ", "192.168.4"}},
	{name: "attach with a missing interface", args: []string{"attach", "--internal", "eth9", "--dmz", "eth2", "--sensor", "192.168.4.2"}, code: 2, want: []string{"--internal: ", `no interface "eth9"`}},
	{name: "attach without sensor", args: []string{"attach", "--internal", "eth3", "--dmz", "eth2"}, code: 2, want: []string{"--sensor is missing"}},
	{name: "attach of one interface twice", args: []string{"attach", "--internal", "eth3", "--dmz", "eth3", "--sensor", "192.168.4.2"}, code: 2, want: []string{"--dmz: ", "already in zone"}},
	{name: "attach of one interface twice in a zone", args: []string{"attach", "--internal", "eth3,eth3", "--dmz", "eth2", "--sensor", "192.168.4.2"}, code: 2, want: []string{`--internal: interface "eth3" is listed twice`}},
	{name: "file without -f", args: []string{"apply", "a.yaml"}, code: 2, want: []string{"did you mean -f a.yaml?"}},
	{name: "completion of an unknown shell", args: []string{"completion", "foo"}, code: 2, want: []string{`"foo"`, "bash"}},
	{name: "unknown command", args: []string{"attatch"}, code: 2, want: []string{"attatch"}},
	{name: "unknown flag", args: []string{"detach", "--forse"}, code: 2, want: []string{"--forse"}},
	{name: "missing file", args: []string{"apply", "-f", "/nonexistent.yaml"}, code: 2, want: []string{"/nonexistent.yaml: ", "no such file"}},
	{name: "folder as file", args: []string{"apply", "-f", "/"}, code: 2, want: []string{"/: "}},
	{name: "two commands' worth of arguments", args: []string{"detach", "now"}, code: 2, want: []string{"now"}},
}

// refused runs one bad input and fails unless it is told as wanted and nothing changed.
func (g *gateway) refused(b badInput) {
	g.t.Helper()
	for _, line := range b.setUp {
		g.ip(g.Gateway, line)
	}
	before := g.list()
	var r result
	if b.config != nil {
		r = g.tapgateIn(b.config(), "apply", "-f", "-")
	} else {
		r = g.tapgate(b.args...)
	}
	if r.code != b.code || r.stdout != "" {
		g.t.Errorf("%s: want exit code %d and nothing on stdout: %s", b.name, b.code, r)
	}
	for _, want := range b.want {
		if !strings.Contains(r.stderr, want) {
			g.t.Errorf("%s: the message does not say %q: %s", b.name, want, r)
		}
	}
	if !strings.HasPrefix(r.stderr, "tapgate: ") {
		g.t.Errorf("%s: the message does not say whose it is: %s", b.name, r)
	}
	if d := before.difference(g.list()); d != "" {
		g.t.Errorf("%s: refused, and yet changed:\n%s", b.name, d)
	}
	// Undone in the other order, so that the next one meets the lab as it was.
	for i := len(b.setUp) - 1; i >= 0; i-- {
		words := strings.Fields(b.setUp[i])
		switch {
		case words[0] == "link" && words[1] == "add":
			g.ip(g.Gateway, "link del "+words[2])
		case words[0] == "link" && words[3] == "mtu":
			g.ip(g.Gateway, "link set "+words[2]+" mtu 1500")
		}
	}
}

// Nothing is left half done where nothing was attached.
func TestBadInputWhereNothingIsAttached(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	for _, b := range badInputs {
		g.refused(b)
	}
	for _, b := range []badInput{
		{name: "mirror add", args: []string{"mirror", "add", "m", "--zone", "internal", "--via", "192.168.4.2"}, code: 3, want: []string{"not attached", "tapgate apply"}},
		{name: "mirror del", args: []string{"mirror", "del", "m"}, code: 3, want: []string{"not attached"}},
		{name: "mirror list", args: []string{"mirror", "list"}, code: 3, want: []string{"not attached"}},
		{name: "status", args: []string{"status"}, code: 3, want: []string{"not attached", g.bpffs}},
		{name: "status --json", args: []string{"status", "--json"}, code: 3, want: []string{"not attached"}},
	} {
		g.refused(b)
	}
}

// What is in force stays in force.
func TestBadInputWhereAConfigIsInForce(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	g.apply(example)
	g.resolved()
	applied := g.status()
	for _, b := range badInputs {
		g.refused(b)
	}
	for _, b := range []badInput{
		{name: "mirror add of a missing zone", args: []string{"mirror", "add", "m", "--zone", "outer", "--via", "192.168.4.2"}, code: 2, want: []string{"--zone", `no zone "outer"`}},
		{name: "mirror add with a sensor elsewhere", args: []string{"mirror", "add", "m", "--zone", "internal", "--via", "192.168.3.9"}, code: 2, want: []string{"--via", "on no dmz network"}},
		{name: "mirror add of other zones", args: []string{"mirror", "add", "ids", "--zone", "mgmt", "--l2", "eth2"}, code: 2, want: []string{"copies zones internal, not mgmt"}},
		{name: "mirror add with a bad name", args: []string{"mirror", "add", "IDS", "--zone", "internal", "--l2", "eth2"}, code: 2, want: []string{`tapgate: mirror name "IDS": use`}},
		{name: "mirror add without a name", args: []string{"mirror", "add", "", "--zone", "internal", "--l2", "eth2"}, code: 2, want: []string{"which mirror?"}},
		{name: "mirror del of the last target", args: []string{"mirror", "del", "ids", "--via", "192.168.4.2"}, code: 2, want: []string{"last target"}},
	} {
		g.refused(b)
	}
	now := g.status()
	if now.Serial != applied.Serial || now.Applied != applied.Applied || now.Slot != applied.Slot {
		t.Errorf("commands that were refused changed what is in force: %+v, before %+v", now, applied)
	}
	g.wantProblems()
	g.copies("after all that")
	g.must("detach")
	g.nothingLeft()
}

// Copying can be ended also where the rest of the configuration could not be
// applied any more.
func TestBadInputToDeleteIsNotRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change []string // "ip" commands in the gateway
		want   string   // why nothing can be added
	}{
		{"interface renamed", []string{"link set eth4 down", "link set eth4 name eth9"}, `no interface "eth4"`},
		{"MTU of the sensor's interface", []string{"link set eth2 mtu 1280"}, `the MTU of "eth2" is 1280`},
		{"address removed", []string{"addr flush dev eth2"}, "192.168.4.2 is on no dmz network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGateway(t, lab.RoutedOutside())
			g.apply(example)
			g.must("mirror", "add", "more", "--zone", "internal", "--l2", "eth2")
			g.must("mirror", "add", "more", "--via", "192.168.4.2")
			for _, line := range c.change {
				g.ip(g.Gateway, line)
			}
			if r := g.tapgate("mirror", "add", "last", "--zone", "internal", "--l2", "eth2", "--mac", "02:00:00:00:00:07"); r.code != 2 || !strings.Contains(r.stderr, c.want) {
				t.Errorf("mirror add: want exit code 2 and %q: %s", c.want, r)
			}
			for _, step := range []struct{ args, left string }{
				{"more --via 192.168.4.2", "ids more"}, {"more", "ids"}, {"ids", ""},
			} {
				g.must(append([]string{"mirror", "del"}, strings.Fields(step.args)...)...)
				r := g.end(exec.Command(binary, "__completeNoDesc", "mirror", "del", "--netns", g.Gateway.Name, "--bpffs", g.bpffs, ""))
				if got := strings.Fields(strings.TrimSuffix(r.stdout, ":4\n")); strings.Join(got, " ") != step.left {
					t.Errorf("after mirror del %s there are %q, not %s: %s", step.args, got, step.left, r)
				}
			}
			g.must("detach")
			g.nothingLeft()
		})
	}
}

// What is warned of for several targets is said once.
func TestBadInputForcedWarnsOnce(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	g.ip(g.Gateway, "link set eth2 mtu 1280")
	if r := g.tapgateIn(example, "apply", "-f", "-", "--force"); r.code != 0 || strings.Count(r.stderr, "skipped as too_big") != 1 {
		t.Errorf("apply --force: %s", r)
	}
	r := g.tapgate("mirror", "add", "more", "--zone", "internal", "--l2", "eth2", "--force")
	if r.code != 0 || strings.Count(r.stderr, "skipped as too_big") != 1 {
		t.Errorf("mirror add --force: %s", r)
	}
}

// Mistakes about where: the namespace and the BPF filesystem.
func TestBadInputOfPlaces(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := g.list()
	for _, c := range []struct {
		netns, bpffs string
		code         int
		want         string
	}{
		{g.Gateway.Name + "x", g.bpffs, 2, "did you mean"},
		{"/nonexistent", g.bpffs, 2, "--netns /nonexistent: no such file"},
		{file, g.bpffs, 2, "is not a network namespace"},
		{"/proc/self/ns/mnt", g.bpffs, 2, "is not a network namespace"},
		{"", g.bpffs, 2, "--netns: must not be empty"},
		{g.Gateway.Name, file, 1, file},
		{g.Gateway.Name, "/proc/nonexistent", 1, "/proc/nonexistent"},
	} {
		cmd := g.command(g.Context(), attachSpace...)
		cmd.Args = append(cmd.Args, "--netns", c.netns, "--bpffs", c.bpffs)
		if r := g.end(cmd); r.code != c.code || !strings.Contains(r.stderr, c.want) {
			t.Errorf("--netns %s --bpffs %s: want exit code %d and %q: %s", c.netns, c.bpffs, c.code, c.want, r)
		}
	}
	if d := before.difference(g.list()); d != "" {
		t.Errorf("refused, and yet changed:\n%s", d)
	}
}
