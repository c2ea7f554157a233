package e2e

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// What the recipe's commands stand for: the configuration of the README, but
// for what the recipe has no word for.
const importedRecipe = `zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3]}
  dmz: {interfaces: [eth2]}
  mgmt: {interfaces: [eth4]}
nat:
  masquerade:
    - {from: internal, to: external}
    - {from: mgmt, to: external}
  forwards:
    - {name: tcp-3389, in: external, proto: tcp, port: 3389, to: "192.168.3.3:3389"}
mirrors:
  - name: ids
    zones: [internal]
    targets:
      - {via: 192.168.4.2}
`

// recipeTEE copies what the servers send and get to the sensor.
var recipeTEE = []string{
	"mangle PREROUTING%s -i eth3 -j TEE --gateway 192.168.4.2",
	"mangle FORWARD%s -d 192.168.3.0/24 -j TEE --gateway 192.168.4.2",
}

// withoutComments is the configuration of a file without what is said around it.
func withoutComments(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// undoCommands are those of an imported file that take the host's rules away.
func undoCommands(text string) (commands []string) {
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(line, "#   "); ok {
			commands = append(commands, strings.TrimSpace(command))
		}
	}
	return commands
}

// recipeWorks is the recipe's own check: the sensor sees a server's ping to the
// outside both ways, each packet once, the outside sees the gateway only, and 3389
// leads to the second server.
func (g *gateway) recipeWorks() {
	g.t.Helper()
	server, outside := g.Servers[0], g.Outside[0]
	echoAll(g.t, server, outside.Addr, 1, 56) // resolves whom copies are sent to
	sensor, err := g.Sensor.Capture("eth0", lab.Incoming)
	if err != nil {
		g.t.Fatal(err)
	}
	far, err := outside.Capture("eth0", lab.Incoming)
	if err != nil {
		g.t.Fatal(err)
	}
	echoAll(g.t, server, outside.Addr, 3, 56)
	echoTCP(g.t, g.Servers[1], g.Servers[1].Addr.String()+":3389")
	gw := g.Gateway.Interface("eth0").Addr.Addr()
	talkTCP(g.t, outside, netip.AddrPortFrom(gw, 3389).String(), 2000)

	pings := func(frames []lab.Frame) (out, in []lab.Frame) {
		isPing := func(f lab.Frame) bool { return f.Payload()[9] == 1 }
		return lab.Select(ipBetween(frames, server.Addr, outside.Addr), isPing), lab.Select(ipBetween(frames, outside.Addr, server.Addr), isPing)
	}
	rdp := func(frames []lab.Frame) bool {
		return len(ipBetween(frames, outside.Addr, g.Servers[1].Addr)) > 2 && len(ipBetween(frames, g.Servers[1].Addr, outside.Addr)) > 2
	}
	frames, err := sensor.WaitFor(func(frames []lab.Frame) bool {
		out, in := pings(frames)
		return len(out) >= 3 && len(in) >= 3 && rdp(frames)
	}, gateWait)
	if out, in := pings(frames); err != nil || len(out) != 3 || len(in) != 3 {
		g.t.Errorf("the sensor saw %d pings and %d replies of 3, %v", len(out), len(in), err)
	}
	frames, err = far.WaitFor(func(frames []lab.Frame) bool { return len(ipBetween(frames, gw, outside.Addr)) >= 3 }, gateWait)
	if m := len(ipBetween(frames, server.Addr, outside.Addr)); err != nil || m > 0 {
		g.t.Errorf("the outside saw %d packets of the server with its own address, %v", m, err)
	}
}

// The recipe's rules by iptables: what import writes of them does the same when they
// are gone, taken away by the commands that it names.
func TestImportIptables(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	g := newGateway(t, lab.Servers(2))
	rules := []string{
		"iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE",
		"iptables -t nat -A PREROUTING -i eth0 -p tcp --dport 3389 -j DNAT --to-destination 192.168.3.3:3389",
		"iptables -P FORWARD DROP",
		"iptables -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED,DNAT -j ACCEPT",
		"iptables -A FORWARD -i eth3 -o eth0 -j ACCEPT",
		"iptables -A FORWARD -i eth0 -d 192.168.3.3 -p tcp --dport 3389 -j ACCEPT",
		"iptables -A FORWARD -i eth4 -o eth0 -p tcp -m multiport --dports 80,443 -j ACCEPT",
	}
	for _, tee := range recipeTEE {
		table, rule, _ := strings.Cut(strings.Replace(tee, "%s", "", 1), " ")
		rules = append(rules, "iptables -t "+table+" -A "+rule)
	}
	tool(t, g.Gateway, "sh", "-ec", strings.Join(rules, "\n"))
	want := strings.Replace(importedRecipe, "mirrors:", "policies:\n  - {from: mgmt, to: external, proto: tcp, ports: [80, 443], action: accept}\nmirrors:", 1)
	config := g.must("import").stdout
	if got := withoutComments(config); got != want {
		t.Errorf("imported:\n%s\nwant:\n%s", got, want)
	}
	// The same of what iptables-save and nft tell, in files.
	if r := g.tapgateIn(tool(t, g.Gateway, "iptables-save"), "import", "--iptables-save", "-"); withoutComments(r.stdout) != want {
		t.Errorf("of iptables-save: %s", r)
	}
	if r := g.tapgateIn(tool(t, g.Gateway, "nft", "list", "ruleset"), "import", "--nft", "-"); r.code != 2 || !strings.Contains(r.stderr, "nft -j list ruleset") {
		t.Errorf("of nft's text: %s", r)
	}
	// As the file says.
	if r := g.tapgateIn(config, "apply", "--cut-over", "-f", "-"); r.code != 0 {
		t.Fatalf("tapgate apply --cut-over: %s", r)
	}
	undo := undoCommands(config)
	if len(undo) != 4 {
		t.Errorf("the rules that do it are taken away by %q", undo)
	}
	tool(t, g.Gateway, "sh", "-ec", strings.Join(undo, "\n"))
	if left := tool(t, g.Gateway, "iptables-save"); strings.Contains(left, "TEE") || strings.Contains(left, "MASQUERADE") || strings.Contains(left, "DNAT --to") {
		t.Errorf("still there after the commands:\n%s", left)
	}
	g.recipeWorks()
}

// The same as rules of nft: dup instead of TEE, and sets.
func TestImportNft(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	g := newGateway(t, lab.Servers(2))
	nft(t, g, `table ip gw {
		chain pre { type nat hook prerouting priority dstnat
			iifname "eth0" tcp dport { 3389 } dnat to 192.168.3.3:3389
		}
		chain post { type nat hook postrouting priority srcnat
			oifname "eth0" ip saddr { 192.168.3.0/24, 192.168.5.0/24 } masquerade
		}
		chain tee { type filter hook prerouting priority mangle
			iifname "eth3" dup to 192.168.4.2 device "eth2"
		}
		chain teeforward { type filter hook forward priority mangle
			ip daddr 192.168.3.0/24 counter dup to 192.168.4.2 device "eth2"
		}
		chain forwarded { type filter hook forward priority filter; policy drop
			ct state vmap { established : accept, related : accept, invalid : drop }
			ct status dnat accept
			iifname "eth0" ip daddr 192.168.3.3 tcp dport 3389 accept
			iifname vmap { "eth3" : jump inside, "eth4" : jump updates }
		}
		chain inside { oifname "eth0" accept
		}
		chain updates { oifname "eth0" tcp dport { 80, 443 } accept
		}
	}`)
	want := strings.Replace(importedRecipe, "mirrors:", "policies:\n  - {from: mgmt, to: external, proto: tcp, ports: [80, 443], action: accept}\nmirrors:", 1)
	config := g.must("import").stdout
	if got := withoutComments(config); got != want {
		t.Errorf("imported:\n%s\nwant:\n%s", got, want)
	}
	if !strings.Contains(config, "dnat state") {
		t.Errorf("it does not say that the host's rules accept forwards by their state:\n%s", config)
	}
	tool(t, g.Gateway, "sh", "-ec", strings.Join(undoCommands(config), "\n"))
	if left := tool(t, g.Gateway, "nft", "list", "ruleset"); strings.Contains(left, "masquerade") || strings.Contains(left, "dup to") || strings.Contains(left, "dnat to") {
		t.Errorf("still there after the commands:\n%s", left)
	}
	g.apply(config)
	g.recipeWorks()
}

// The recipe's own commands, given to a real firewalld: imported from its files and
// from the running one, which is then stopped.
func TestImportFirewalld(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"firewalld", "firewall-cmd", "dbus-daemon"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%v: scripts/deps.sh installs it", err)
		}
	}
	g := newGateway(t, lab.Servers(2))
	f, err := g.Gateway.StartFirewalld()
	if err != nil {
		t.Fatal(err)
	}
	commands := [][]string{
		{"--permanent", "--zone=external", "--add-masquerade"},
		{"--permanent", "--zone=external", "--change-interface=eth0"},
		{"--permanent", "--zone=internal", "--change-interface=eth3"},
		{"--permanent", "--zone=dmz", "--change-interface=eth2"},
		{"--permanent", "--zone=trusted", "--change-interface=eth4"},
		{"--permanent", "--zone=external", "--add-forward-port=port=3389:proto=tcp:toport=3389:toaddr=192.168.3.3"},
	}
	for _, tee := range recipeTEE {
		commands = append(commands, append([]string{"--permanent", "--direct", "--add-rule", "ipv4"}, strings.Fields(strings.Replace(tee, "%s", " 0", 1))...))
	}
	for _, c := range append(commands, []string{"--reload"}) {
		out, err := f.FirewallCmd(c...)
		if err != nil && !strings.Contains(out, "ALREADY_ENABLED") { // external masquerades by itself
			t.Fatal(err)
		}
	}
	config := g.must("import", "--firewalld", f.Config).stdout
	if got := withoutComments(config); got != importedRecipe {
		t.Errorf("imported from its files:\n%s\nwant:\n%s", got, importedRecipe)
	}
	running, err := f.Shell(binary + " import 2>/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if got := withoutComments(running + "\n"); got != importedRecipe {
		t.Errorf("imported from the running one:\n%s\nwant:\n%s", got, importedRecipe)
	}
	for _, c := range undoCommands(config) {
		if out, err := f.Shell(c); err != nil {
			t.Errorf("%s: %v", c, errors.Join(err, errors.New(out)))
		}
	}
	left, err := f.Shell("firewall-cmd --direct --get-all-rules; firewall-cmd --zone=external --list-all")
	if err != nil || strings.Contains(left, "TEE") || strings.Contains(left, "toaddr") || strings.Contains(left, "masquerade: yes") {
		t.Errorf("still there after the commands: %v\n%s", err, left)
	}
	if err := f.Stop(); err != nil {
		t.Fatal(err)
	}
	g.apply(config)
	g.recipeWorks()
}

// What cannot be read, or says nothing, is told with what to do.
func TestImportRefused(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for _, c := range []struct {
		args  []string
		stdin string
		code  int
		want  string
	}{
		{[]string{"import"}, "", 1, "nothing to import"},
		{[]string{"import", "--firewalld", "/nonexistent"}, "", 2, "not a folder"},
		{[]string{"import", "--iptables-save", "/nonexistent"}, "", 2, "no such file"},
		{[]string{"import", "--iptables-save", "-"}, "hello", 2, "stdin:1: "},
		{[]string{"import", "--iptables-save", "-"}, "*nat\n-A NOWHERE -j ACCEPT\n", 2, "stdin:2: "},
		{[]string{"import", "--nft", "-"}, "{", 2, "nft -j list ruleset"},
		{[]string{"import", "--nft", "-", "--iptables-save", "-"}, "", 2, "only one of them"},
	} {
		if r := g.tapgateIn(c.stdin, c.args...); r.code != c.code || r.stdout != "" || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%v: want exit code %d and %q: %s", c.args, c.code, c.want, r)
		}
	}
}
