package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
)

// gatewayConfig has one rule of each kind, in the form that is written.
const gatewayConfig = `zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3]}
  mgmt: {interfaces: [eth4]}
nat:
  masquerade:
    - {from: internal, to: external}
    - {name: pool, from: mgmt, to: external, addresses: [203.0.113.10]}
  max_flows: 1000
  forwards:
    - {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.3:3389"}
policies:
  - {from: mgmt, to: external, action: accept}
`

const tapConfig = `zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3]}
  mgmt: {interfaces: [eth4]}
`

func TestRuleUsage(t *testing.T) {
	forward := "forward add rdp --in external --proto tcp --port 3389 --to 192.168.3.3:3389 "
	masquerade := "masquerade add --from internal --to external "
	var b strings.Builder
	for _, args := range []string{
		"forward",
		"forward ad",
		"forward list x",
		"forward add",
		"forward add ''",
		"forward add a b",
		"forward add rdp",
		"forward add rdp --in external --proto tcp --port 3389",
		"forward add rdp --in external --proto icmp --port 3389 --to 192.168.3.3:3389",
		"forward add rdp --in external --proto tcp --port rdp --to 192.168.3.3:3389",
		"forward add rdp --in external --proto tcp --port 0 --to 192.168.3.3:3389",
		"forward add rdp --in external --proto tcp --port 9-8 --to 192.168.3.3:3389",
		"forward add rdp --in external --proto tcp --port 3389 --to 192.168.3.3",
		"forward add rdp --in external --proto tcp --port 3389-3399 --to 192.168.3.3:3389",
		forward + "--address eth0",
		forward + "--source 192.0.2.1/24",
		forward + "--source=",
		forward + "--rate 0",
		forward + "--rate-per-remote few",
		forward + "--limit 5",
		"forward del",
		"forward del a b",
		"forward del --flush",
		"masquerade",
		"masquerade add",
		"masquerade add a b --from internal --to external",
		"masquerade add --from internal",
		masquerade + "--address 203.0.113.300",
		masquerade + "--address=",
		masquerade + "--source 10.0.0.0/33",
		masquerade + "--ports 1-2,3-4,5-6",
		masquerade + "--ports 65536",
		masquerade + "--filtering endpoint",
		"masquerade del",
		"policy",
		"policy add",
		"policy list x",
		"flows x",
		"flows flsh",
		"flows --addr 192.168.3",
		"flows --addr 192.168.3.1/24",
		"flows --port 0",
		"flows --port http",
		"flows --proto tpc",
		"flows --zone=",
		"flows --limit 0",
		"flows --limit -1",
		"flows --all",
		"flows flush",
		"flows flush x",
		"flows flush --all --port 80",
		"flows flush --port 65536",
		"explain",
		"explain 192.168.3.2 203.0.113.8",
		"explain 192.168.3.2 203.0.113.8 tcp",
		"explain 192.168.3.2 203.0.113.8 tcp 443 80",
		"explain server 203.0.113.8 tcp 443",
		"explain 192.168.3.2 203.0.113 tcp 443",
		"explain 192.168.3.2 2001:db8::8 tcp 443",
		"explain fe80::1%eth3 2001:db8::8 tcp 443",
		"explain 192.168.3.2 203.0.113.8 http 443",
		"explain 192.168.3.2 203.0.113.8 udp dns",
		"explain 192.168.3.2 203.0.113.8 icmp 8",
		"explain 192.168.3.2 203.0.113.8 tcp 443 --sport 0",
		"agent x",
		"agent --lock-timeout 0s",
	} {
		f := &fake{result: done, source: gatewayConfig, status: &loader.Status{}}
		words := strings.Fields(args)
		for i := range words {
			words[i] = strings.Trim(words[i], "'")
		}
		got := call(f, "", words...)
		if got.code != exitUsage || got.stdout != "" || len(f.calls) > 0 {
			t.Errorf("%s: exit %d, loader calls %v, stdout %q: %s", args, got.code, f.calls, got.stdout, got.errs)
		}
		fmt.Fprintf(&b, "$ tapgate %s\n%s\n", args, got.errs)
	}
	golden(t, "usage-nat.txt", b.String())
}

func TestExplain(t *testing.T) {
	for args, want := range map[string]loader.Query{
		"192.168.3.2 203.0.113.8 TCP 443":                      {Src: addr("192.168.3.2"), Dst: addr("203.0.113.8"), Proto: "tcp", Port: 443},
		"::ffff:192.168.3.2 203.0.113.8 udp 53 --sport 1000":   {Src: addr("192.168.3.2"), Dst: addr("203.0.113.8"), Proto: "udp", Port: 53, Sport: 1000},
		"2001:db8:3::2 2001:db8:113::8 icmpv6 --from internal": {Src: addr("2001:db8:3::2"), Dst: addr("2001:db8:113::8"), Proto: "icmpv6", From: "internal"},
		"192.168.3.2 203.0.113.8 gre":                          {Src: addr("192.168.3.2"), Dst: addr("203.0.113.8"), Proto: "gre"},
		"192.168.3.2 203.0.113.8 132 5000":                     {Src: addr("192.168.3.2"), Dst: addr("203.0.113.8"), Proto: "132", Port: 5000},
		"192.168.3.2 203.0.113.8 icmp 0":                       {Src: addr("192.168.3.2"), Dst: addr("203.0.113.8"), Proto: "icmp"},
	} {
		f := &fake{source: gatewayConfig, explanation: exampleExplanation()}
		got := call(f, "", append([]string{"explain"}, strings.Fields(args)...)...)
		if got.code != 0 || got.errs != "" || f.query != want || f.opened != loader.ReadOnly || f.closed != 1 {
			t.Errorf("%s: %+v, query %+v", args, got, f.query)
		}
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// Zones are held against the configuration in force before anything is done.
func TestUnknownZones(t *testing.T) {
	for args, want := range map[string]string{
		"forward add a --in extrnal --proto tcp --port 1 --to 192.0.2.1:1": `--in: no zone "extrnal"; did you mean "external"?`,
		"masquerade add --from internal --to wan":                          `--to: no zone "wan"; known: external, internal, mgmt`,
		"masquerade add --from lan --to external":                          `--from: no zone "lan"; known: external, internal, mgmt`,
		"flows --zone nowhere":                                             `--zone: no zone "nowhere"; known: external, internal, mgmt`,
		"flows flush --zone intern":                                        `--zone: no zone "intern"; did you mean "internal"?`,
		"explain 192.0.2.1 192.0.2.2 icmp --from in":                       `--from: no zone "in"; known: external, internal, mgmt`,
	} {
		f := &fake{source: gatewayConfig}
		if got := call(f, "", strings.Fields(args)...); got.errs != want || got.code != exitUsage || f.closed != 1 || f.gatewayCfg != nil {
			t.Errorf("%s: %+v, want %s", args, got, want)
		}
	}
}

func TestRuleCommands(t *testing.T) {
	with := func(after, line string) string {
		return "# a comment\n" + strings.Replace(gatewayConfig, after+"\n", after+"\n"+line+"\n", 1)
	}
	without := func(line string) string { return "# a comment\n" + strings.Replace(gatewayConfig, line+"\n", "", 1) }
	const (
		rdp      = `    - {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.3:3389"}`
		internal = `    - {from: internal, to: external}`
		pool     = `    - {name: pool, from: mgmt, to: external, addresses: [203.0.113.10]}`
	)
	for _, c := range []struct {
		args string
		want string // the configuration put in force; "" if none
		note string
		errs string
	}{
		{
			args: "forward add web --in external --proto tcp --port 8080-8089 --to 192.168.3.2:80-89 --address 203.0.113.1" +
				" --source 198.51.100.0/24,192.0.2.7 --source 2001:db8::/32 --rate 100 --rate-per-remote 5",
			want: with(rdp, `    - {name: web, in: external, address: 203.0.113.1, proto: tcp, port: "8080-8089", to: "192.168.3.2:80-89", `+
				`sources: [198.51.100.0/24, 192.0.2.7, "2001:db8::/32"], limit: {rate: 100, per_remote: 5}}`),
		},
		{
			args: "forward add web6 --in external --proto udp --port 80 --to [2001:db8:3::2]:80",
			want: with(rdp, `    - {name: web6, in: external, proto: udp, port: 80, to: "[2001:db8:3::2]:80"}`),
		},
		{
			args: "forward add rdp --in external --proto tcp --port 3389 --to 192.168.3.3:3389",
			note: `tapgate: already so: forward "rdp" is {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.3:3389"}`,
		},
		{
			args: "forward add rdp --in external --proto tcp --port 3389 --to 192.168.3.2:3389",
			errs: `forward "rdp" is there already, as {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.3:3389"}; ` +
				"take another name, or delete it first (its flows stay)",
		},
		{args: "forward del rdp", want: without(rdp)},
		{args: "forward del nope", note: `tapgate: already so: there is no forward "nope"`},
		{
			args: "masquerade add --from mgmt --to external --address 203.0.113.16/30,2001:db8::1 --ports 1024-32767,61000-65535" +
				" --filtering endpoint-independent --source 192.168.5.2 --ipv6",
			want: with(pool, `    - {from: mgmt, to: external, sources: [192.168.5.2], addresses: [203.0.113.16/30, "2001:db8::1"], `+
				`ports: ["1024-32767", "61000-65535"], filtering: endpoint-independent, ipv6: true}`),
		},
		{
			args: "masquerade add new --from mgmt --to external --filtering address-dependent",
			want: with(pool, `    - {name: new, from: mgmt, to: external}`),
		},
		{
			args: "masquerade add --from internal --to external",
			note: `tapgate: already so: masquerade rule "internal-external" is {name: internal-external, from: internal, to: external}`,
		},
		{
			args: "masquerade add internal-external --from internal --to external",
			note: `tapgate: already so: masquerade rule "internal-external" is {name: internal-external, from: internal, to: external}`,
		},
		{
			args: "masquerade add --from internal --to external --ipv6",
			errs: `masquerade rule "internal-external" is there already, as {name: internal-external, from: internal, to: external}; ` +
				"take another name, or delete it first (its flows stay)",
		},
		{args: "masquerade del internal-external", want: without(internal)},
		{args: "masquerade del pool", want: without(pool)},
		{args: "masquerade del nope", note: `tapgate: already so: there is no masquerade rule "nope"`},
	} {
		f := &fake{source: "# a comment\n" + gatewayConfig, result: done}
		got := call(f, "", strings.Fields(c.args)...)
		applied := ""
		if f.gatewayCfg != nil {
			applied = f.gatewayCfg.Source
			// What goes to the kernel is what the text says.
			if fromText := mustParse(t, applied).Config; formatConfig(fromText) != formatConfig(*f.gatewayCfg) {
				t.Errorf("%s: text and config differ:\n%+v\n%+v", c.args, *f.gatewayCfg, fromText)
			}
		}
		code := exitDone
		if c.errs != "" {
			code = exitUsage
		}
		if applied != c.want || strings.TrimSpace(got.stderr) != c.note || got.errs != c.errs || got.code != code {
			t.Errorf("%s: %+v\nput in force\n%s\nwant\n%s", c.args, got, applied, c.want)
		}
		if f.opened != loader.ReadWrite || f.closed != 1 {
			t.Errorf("%s: mode %v, closed %d times", c.args, f.opened, f.closed)
		}
		// To delete, the rest of the configuration need not fit any more.
		if reduced := slices.Contains(f.calls, "reduce"); reduced != (c.want != "" && strings.Contains(c.args, " del ")) {
			t.Errorf("%s: calls %v", c.args, f.calls)
		}
	}
}

// A first rule makes a gateway of a tap, which nobody should meet unwarned.
func TestFirstRuleWarns(t *testing.T) {
	for _, args := range []string{
		"masquerade add --from internal --to external", "forward add a --in external --proto tcp --port 1 --to 192.168.3.2:1",
	} {
		f := &fake{source: tapConfig, result: done}
		got := call(f, "", strings.Fields(args)...)
		if got.code != 0 || !strings.Contains(got.stderr, "warning: the configuration in force only tapped") ||
			!strings.Contains(got.stderr, "from external and mgmt nothing passes") || f.gatewayCfg.NAT == nil {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

// The last rule of a gateway leaves a gateway: it does not open what was closed.
func TestLastRuleKeepsTheGateway(t *testing.T) {
	f := &fake{source: tapConfig + "nat:\n  masquerade:\n    - {from: internal, to: external}\n", result: done}
	got := call(f, "", "masquerade", "del", "internal-external")
	if got.code != 0 || f.gatewayCfg == nil || f.gatewayCfg.Source != tapConfig+"nat:\n  masquerade:\n" || f.gatewayCfg.NAT == nil {
		t.Errorf("%+v, config %+v", got, f.gatewayCfg)
	}
}

func TestRuleDelAndItsFlows(t *testing.T) {
	flows := []loader.Flow{
		{Origin: "forward", Rule: "rdp"}, {Origin: "masquerade", Rule: "rdp"}, {Origin: "forward", Rule: "rdp"}, {Origin: "masquerade", Rule: "pool"},
	}
	for _, c := range []struct{ args, stdout, stderr, calls string }{
		{
			"forward del rdp", "attached to eth3\n",
			"tapgate: its flows go on (2); to end them: tapgate forward del rdp --flush\n", "open reduce flows",
		},
		{"forward del rdp --flush", "attached to eth3\n2 flows of forward rdp flushed\n", "", "open reduce flush"},
		{"masquerade del pool --flush", "attached to eth3\n1 flow of masquerade rule pool flushed\n", "", "open reduce flush"},
		{"masquerade del internal-external", "attached to eth3\n", "", "open reduce flows"},
		// What an earlier del left can still be ended.
		{
			"masquerade del rdp --flush", "1 flow of masquerade rule rdp flushed\n",
			"tapgate: already so: there is no masquerade rule \"rdp\"\n", "open flush",
		},
		{"forward del nope", "", "tapgate: already so: there is no forward \"nope\"\n", "open"},
	} {
		f := &fake{source: gatewayConfig, result: done, flows: flows}
		got := call(f, "", strings.Fields(c.args)...)
		if got != (outcome{stdout: c.stdout, stderr: c.stderr}) || strings.Join(f.calls, " ") != c.calls {
			t.Errorf("%s: %+v, calls %v", c.args, got, f.calls)
		}
	}
	// Nothing is flushed where the rule is still in force.
	f := &fake{source: gatewayConfig, applyErr: errors.New("broken"), flows: flows}
	if got := call(f, "", "forward", "del", "rdp", "--flush"); got.code != exitFailed || slices.Contains(f.calls, "flush") {
		t.Errorf("%+v, calls %v", got, f.calls)
	}
}

// What the loader says of a new rule names the flag that it came from.
func TestRuleErrors(t *testing.T) {
	at := func(paths ...string) error {
		var all []error
		for i, p := range paths {
			all = append(all, &loader.ConfigError{Path: p, Err: fmt.Sprint("e", i)})
		}
		return errors.Join(all...)
	}
	f := &fake{source: gatewayConfig, applyErr: at(
		"nat.forwards[1].in", "nat.forwards[1].to", "nat.forwards[1].port", "nat.forwards[1].sources[0]", "nat.forwards[1].limit.rate",
		"nat.forwards[1].limit.per_remote", "nat.forwards[1].name", "nat.forwards[1]", "nat.forwards[0].port", "nat.forwards[11].to", "nat",
	)}
	got := call(f, "", strings.Fields("forward add x --in external --proto tcp --port 1 --to 192.168.3.2:1")...)
	want := "--in: e0\n--to: e1\n--port: e2\n--source: e3\n--rate: e4\n--rate-per-remote: e5\ne6\nforward x: e7\n" +
		"applied configuration: nat.forwards[0].port: e8\napplied configuration: nat.forwards[11].to: e9\napplied configuration: nat: e10"
	if got.errs != want || got.code != exitUsage || f.closed != 1 {
		t.Errorf("got\n%s\nwant\n%s", got.errs, want)
	}
	f = &fake{source: gatewayConfig, applyErr: at(
		"nat.masquerade[2].from", "nat.masquerade[2].addresses[0]", "nat.masquerade[2].ports[1]", "nat.masquerade[2]", "nat.masquerade[1].to",
	)}
	got = call(f, "", strings.Fields("masquerade add --from mgmt --to external")...)
	want = "--from: e0\n--address: e1\n--ports: e2\nmasquerade rule mgmt-external: e3\napplied configuration: nat.masquerade[1].to: e4"
	if got.errs != want {
		t.Errorf("got\n%s\nwant\n%s", got.errs, want)
	}
}

func TestRuleCompletion(t *testing.T) {
	for args, want := range map[string]string{
		"forward del ":                        "rdp :4",
		"forward del x":                       ":4",
		"forward add x --in ":                 "external :4",
		"forward add x --proto u":             "udp :4",
		"masquerade del ":                     "internal-external pool :4",
		"masquerade del pool ":                ":4",
		"masquerade add --from ":              "internal mgmt :4",
		"masquerade add --to ":                "external :4",
		"masquerade add --filtering e":        "endpoint-independent :4",
		"masquerade add ":                     ":4",
		"flows --zone ":                       "external internal mgmt :4",
		"flows flush --zone m":                "mgmt :4",
		"flows --proto i":                     "icmp icmpv6 :4",
		"explain 192.0.2.1 192.0.2.2 t":       "tcp :4",
		"explain 192.0.2.1 192.0.2.2 tcp ":    ":4",
		"explain 192.0.2.1 ":                  ":4",
		"explain 1 2 tcp 80 --from in":        "internal :4",
		"mirror add x --zone internal,":       "internal,external internal,mgmt :4",
		"forward add x --in external --to 1 ": ":4",
	} {
		f := &fake{source: gatewayConfig}
		got := call(f, "", append([]string{"__completeNoDesc"}, strings.Split(args, " ")...)...)
		if words := strings.Join(strings.Fields(got.stdout), " "); words != want || got.code != 0 || got.errs != "" {
			t.Errorf("%q: %q, want %q: %+v", args, words, want, got)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 400 * time.Millisecond: "0s", 119 * time.Second: "119s", 120 * time.Second: "2m", 7440 * time.Second: "124m",
		3 * time.Hour: "3h", 71 * time.Hour: "71h", 72 * time.Hour: "3d", 1000 * time.Hour: "41d",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestShort(t *testing.T) {
	networks := []string{"192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "10.0.0.0/8"}
	for n, want := range []string{
		"", "192.0.2.0/24", "192.0.2.0/24, 198.51.100.0/24", "192.0.2.0/24, 198.51.100.0/24, +1", "192.0.2.0/24, 198.51.100.0/24, +2",
	} {
		if got := short(networks[:n]); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
