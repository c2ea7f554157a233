package main

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"tapgate/loader"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file that people have looked at.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (go test ./cmd/tapgate -update writes it anew):\n got\n%s\nwant\n%s", name, got, want)
	}
}

func count(packets, bytes uint64) loader.Count { return loader.Count{Packets: packets, Bytes: bytes} }

func ledger(matched, copied, unresolved, tooBig uint64) loader.Ledger {
	return loader.Ledger{
		Matched: count(matched, matched*1000), Copied: count(copied, copied*1000),
		Skipped: map[string]loader.Count{
			"unresolved": count(unresolved, unresolved*1000), "too_big": count(tooBig, tooBig*1000),
			"clone_error": {}, "undelivered": {},
		},
		Refused: count(1, 1000),
	}
}

func exampleStatus() *loader.Status {
	via := loader.TargetStatus{
		Target: "via 192.168.4.2", Interface: "eth2",
		Ledger: ledger(1200300, 1200290, 7, 3), Ingress: ledger(600100, 600095, 4, 1), Egress: ledger(600200, 600195, 3, 2),
		Neighbour: &loader.NeighbourStatus{State: "reachable", MAC: "02:00:5e:00:53:02", Age: 3.25, Asks: 12, AsksRefused: 1, Changes: 1},
	}
	unresolved := via
	unresolved.Target = "via 2001:db8:4::2"
	unresolved.Neighbour = &loader.NeighbourStatus{State: "failed", Asks: 99}
	l2 := loader.TargetStatus{
		Target: "l2 eth2.100 mac 02:00:5e:00:53:01", Interface: "eth2.100",
		Ledger: ledger(5, 5, 0, 0), Ingress: ledger(2, 2, 0, 0), Egress: ledger(3, 3, 0, 0),
	}
	return &loader.Status{
		Netns: "4026531840", State: "/sys/fs/bpf/tapgate/4026531840", Layout: 1, Slot: 1, Serial: 7, Applied: "2026-11-22T12:00:00Z",
		Members: []loader.MemberStatus{
			{Interface: "eth0", Ifindex: 2, Zone: "external", Role: loader.RoleExternal},
			{
				Interface: "eth3", Ifindex: 5, Zone: "internal", Role: loader.RoleInternal, Attached: "tcx",
				Ingress: &loader.DirectionStatus{Seen: count(600100, 600100000), Reasons: map[string]uint64{"pass_tapped": 400000}},
				Egress:  &loader.DirectionStatus{Seen: count(600200, 600200000), Reasons: map[string]uint64{"pass_tapped": 400100}, Duplicates: 12},
			},
			{
				Interface: "eth2", Ifindex: 4, Zone: "dmz", Role: loader.RoleDMZ, Attached: "clsact",
				Ingress: &loader.DirectionStatus{Seen: count(40, 2400), Reasons: map[string]uint64{"drop_from_dmz": 28, "pass_neighbour_answer": 12}},
				Egress: &loader.DirectionStatus{Seen: count(1200302, 1200302000), Reasons: map[string]uint64{
					"pass_delivered": 1200290, "pass_asked": 12, "drop_copy_unresolved": 7}},
			},
		},
		Mirrors: []loader.MirrorStatus{
			{
				Name: "ids", Zones: []string{"internal", "app"},
				Ledger: ledger(1200300, 1200290, 7, 3), Ingress: ledger(600100, 600095, 4, 1), Egress: ledger(600200, 600195, 3, 2),
				Targets: []loader.TargetStatus{via, unresolved},
			},
			{
				Name: "record", Zones: []string{"internal"},
				Ledger: ledger(5, 5, 0, 0), Ingress: ledger(2, 2, 0, 0), Egress: ledger(3, 3, 0, 0),
				Targets: []loader.TargetStatus{l2, via},
			},
		},
		Links: []loader.LinkStatus{
			{Interface: "eth2", Up: true, Carrier: true, MTU: 1500, TxPackets: 1200302, TxDropped: 2, QdiscDrops: 5},
			{Interface: "eth2.100", Up: true, MTU: 9000},
		},
		Problems: []string{"via 2001:db8:4::2: the sensor does not answer", "eth2.100: no \x1b[31mcarrier"},
	}
}

func exampleGateway() *loader.GatewayStatus {
	return &loader.GatewayStatus{
		Flows: 1200, Fresh: 34, Forwarded: 5, MaxFlows: 262144, MaxFresh: 131072, MaxPerHost: 26214, Memory: 401234567, Bindings: 800, Hosts: 1,
		Created: 123456, Expired: 122256, Refused: map[string]uint64{"full": 0, "host": 12, "ports": 3, "rate": 4}, Adopting: 599.7,
		Forwarding: loader.ForwardingStatus{
			Mode: "kernel", Wanted: "fast", Reason: "another filter on \"eth3\" ingress: bpf \x1b[31mstranger, priority 49152; and more words than a line has room for",
		},
		Outside: []loader.OutsideStatus{
			{Interface: "eth0", Zone: "external", IPv4: "203.0.113.1", IPv6: "2001:db8:113::1"}, {Interface: "eth1", Zone: "external"},
		},
		Forwards: []loader.RuleStatus{
			{Name: "rdp", Rule: "tcp 3389 of zone external to 192.168.3.3:3389", Flows: 7, Last: "2026-11-22T11:59:48Z"}, {Name: "web6"},
		},
		Masquerades: []loader.RuleStatus{{Name: "internal-external", Flows: 123000, Last: "2026-11-22T12:00:00Z"}, {Name: "pool"}},
		Policies:    []loader.RuleStatus{{Name: "policy-1", Flows: 3, Last: "2026-11-20T11:00:00Z"}},
	}
}

func exampleExplanation() *loader.Explanation {
	return &loader.Explanation{
		Proto: "tcp", Src: "192.168.3.2", Dst: "203.0.113.8:443",
		From:       loader.ExplanationEnd{Zone: "internal", Role: loader.RoleInternal, Interface: "eth3"},
		To:         &loader.ExplanationEnd{Zone: "external", Role: loader.RoleExternal, Interface: "eth0"},
		Masquerade: &loader.ExplanationMasquerade{Name: "internal-external", Addresses: []string{"203.0.113.1"}, Ports: []string{"1024-32767", "61000-65535"}},
		Way:        &loader.ExplanationWay{Interface: "eth0"},
		Forwarding: &loader.ExplanationForwarding{Fast: true, Why: "once both sides have spoken"},
		Mirrors:    []loader.ExplanationMirror{{Name: "ids", Interface: "eth3", Direction: "ingress", Targets: []string{"via 192.168.4.2"}}},
		Verdict:    "pass", Reason: "pass_allowed", Why: "internal to external is allowed",
		Steps: []loader.ExplanationStep{
			{Step: "from", Text: "zone internal (internal), by interface eth3"},
			{Step: "masquerade", Text: "rule internal-external \x1b[1m: its source becomes 203.0.113.1, with a port of 1024-32767 or 61000-65535 that nobody has"},
			{Step: "forwarding", Text: "fast: once both sides have spoken"},
			{Step: "verdict", Text: "pass: internal to external is allowed"},
		},
	}
}

func exampleReport() *loader.Report {
	return &loader.Report{
		Kernel: "6.18.0",
		Features: []loader.Feature{
			{Name: "clone_redirect", Since: "4.2", Use: "copies packets", Have: true, Needed: true},
			{Name: "spin_lock", Since: "5.1", Use: "locks in map values", Needed: true, Err: "not supported"},
			{Name: "tcx", Since: "6.6", Use: "attaches without a qdisc"},
		},
		Interfaces: []loader.InterfaceReport{
			{Name: "lo", Ifindex: 1, Type: "loopback", Up: true, Carrier: true, MTU: 65536, Addresses: []string{"127.0.0.1/8"}, Why: "loopback"},
			{Name: "eth3", Ifindex: 5, Type: "veth", Up: true, Carrier: true, MTU: 1500, MAC: "02:00:5e:00:53:03",
				Addresses: []string{"192.168.3.1/24", "2001:db8:3::1/64"}, Zone: "internal", Tapable: true},
		},
		Problems: []string{}, Warnings: []string{"eth3: hardware offload"},
	}
}

func TestGolden(t *testing.T) {
	at, err := time.Parse(time.RFC3339, "2026-11-22T12:00:00Z")
	if err != nil {
		t.Fatal(err)
	}
	now = func() time.Time { return at }
	defer func() { now = time.Now }()
	for _, c := range []struct {
		file string
		args []string
	}{
		{"status.txt", []string{"status"}},
		{"status-v.txt", []string{"status", "-v"}},
		{"status.json", []string{"status", "--json"}},
		{"status.prom", []string{"status", "--metrics"}},
		{"mirrors.txt", []string{"mirror", "list"}},
		{"mirrors.json", []string{"mirror", "list", "--json"}},
		{"status-gateway.txt", []string{"status"}},
		{"status-gateway-v.txt", []string{"status", "-v"}},
		{"status-gateway.json", []string{"status", "--json"}},
		{"forwards.txt", []string{"forward", "list"}},
		{"forwards.json", []string{"forward", "list", "--json"}},
		{"masquerades.txt", []string{"masquerade", "list"}},
		{"masquerades.json", []string{"masquerade", "list", "--json"}},
		{"policies.txt", []string{"policy", "list"}},
		{"policies.json", []string{"policy", "list", "--json"}},
		{"explain.txt", []string{"explain", "192.168.3.2", "203.0.113.8", "tcp", "443"}},
		{"explain.json", []string{"explain", "192.168.3.2", "203.0.113.8", "tcp", "443", "--json"}},
		{"flows.txt", []string{"flows"}},
		{"flows.json", []string{"flows", "--json"}},
		{"check.txt", []string{"check"}},
		{"check-config.txt", []string{"check", "-f", "-"}},
		{"check-gateway.txt", []string{"check", "-f", "-"}},
		{"check-gateway.json", []string{"check", "-f", "-", "--json"}},
		{"check.json", []string{"check", "--json"}},
	} {
		f := &fake{status: exampleStatus(), report: exampleReport(), flows: exampleFlows(), explanation: exampleExplanation(), source: natConfig}
		if !strings.HasPrefix(c.file, "status") && !strings.HasPrefix(c.file, "mirror") || strings.Contains(c.file, "gateway") {
			f.status.Gateway = exampleGateway()
		}
		if strings.HasPrefix(c.file, "check-gateway") {
			f.report.Gateway = &loader.GatewayReport{
				Outside: exampleGateway().Outside, Ports: []string{"1024-32767", "61000-65535"}, MaxFlows: 262144, Memory: 401234567,
				Sysctls: []string{"net.ipv4.ip_forward = 1", "net.ipv6.conf.all.forwarding = 1"}, Forwarding: loader.ForwardingStatus{Mode: "fast", Wanted: "fast"},
				HostRules: []loader.HostRule{exampleHostRule},
			}
		}
		got := call(f, smallConfig, c.args...)
		if got.errs != "" || got.stderr != "" || f.opened != loader.ReadOnly {
			t.Errorf("%v: %+v", c.args, got)
		}
		golden(t, c.file, got.stdout)
		if !strings.HasSuffix(c.file, ".txt") {
			continue
		}
		for i, line := range strings.Split(got.stdout, "\n") {
			if n := utf8.RuneCountInString(line); n > 100 {
				t.Errorf("%s:%d: %d columns", c.file, i+1, n)
			}
			if strings.TrimRight(line, " ") != line || strings.ContainsRune(line, '\x1b') {
				t.Errorf("%s:%d: trailing blanks or escapes: %q", c.file, i+1, line)
			}
		}
	}
}

var exampleHostRule = loader.HostRule{
	Kind: loader.HostDrops, By: "nft", Where: "table inet filter, chain forward", Rule: "policy drop", Certain: true,
	Concerns: []string{"forward rdp", "internal to external"},
	Says:     "nft drops new flows of forward rdp, internal to external (table inet filter, chain forward: policy drop); it lacks",
	Commands: []string{
		"nft insert rule inet filter forward iifname eth0 ip daddr 192.168.3.3 tcp dport 3389 accept",
		"nft insert rule inet filter forward iifname eth3 oifname eth0 accept",
	},
}

// JSON is the loader's struct, whole.
func TestStatusJSONIsTheStruct(t *testing.T) {
	got := call(&fake{status: exampleStatus()}, "", "status", "--json")
	var back loader.Status
	if err := json.Unmarshal([]byte(got.stdout), &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&back, exampleStatus()) {
		t.Errorf("got %+v", back)
	}
}

func TestNothingToList(t *testing.T) {
	if got := call(&fake{status: &loader.Status{}}, "", "mirror", "list", "--json"); got != (outcome{stdout: "[]\n"}) {
		t.Errorf("no mirrors in JSON: %+v", got)
	}
	got := call(&fake{status: &loader.Status{}}, "", "mirror", "list")
	if got != (outcome{stderr: "tapgate: no mirrors; see tapgate mirror add --help\n"}) {
		t.Errorf("no mirrors: %+v", got)
	}
	got = call(&fake{status: &loader.Status{}}, "", "status", "--json")
	if strings.Contains(got.stdout, "null") {
		t.Errorf("null for an empty list: %s", got.stdout)
	}
}

// Problems of the configuration get their line, once, and are in the JSON too.
func TestCheckProblems(t *testing.T) {
	bad := &loader.ConfigError{Path: "zones.internal.interfaces[0]", Err: "no such interface"}
	newFake := func() *fake {
		r := exampleReport()
		r.Problems = []string{bad.Error(), "the kernel is odd"}
		return &fake{report: r, err: bad}
	}
	const line = "stdin:2:27: no such interface"
	got := call(newFake(), smallConfig, "check", "-f", "-")
	if got.errs != line || got.code != exitUsage {
		t.Errorf("%+v", got)
	}
	if strings.Contains(got.stdout, "no such interface") || !strings.Contains(got.stdout, "problems\n  the kernel is odd\n") ||
		strings.Contains(got.stdout, "can be put in force") {
		t.Errorf("stdout:\n%s", got.stdout)
	}
	got = call(newFake(), smallConfig, "check", "-f", "-", "--json")
	var r loader.Report
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil {
		t.Fatal(err)
	}
	if want := []string{"the kernel is odd", line}; !reflect.DeepEqual(r.Problems, want) || got.code != exitUsage {
		t.Errorf("exit %d, problems %q, want %q", got.code, r.Problems, want)
	}
}

func TestVersion(t *testing.T) {
	v := versionOf(&debug.BuildInfo{
		GoVersion: "go1.26.8", Main: debug.Module{Path: "tapgate", Version: "v0.1.0"},
		Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.time", Value: "2026-11-22T12:00:00Z"}, {Key: "vcs.modified", Value: "true"}},
	})
	want := "tapgate     v0.1.0\nrevision    abc 2026-11-22T12:00:00Z modified\ngo          go1.26.8\nlayout      4\n"
	if got := v.text(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for value, want := range map[string]bool{"true": true, "false": false} {
		v := versionOf(&debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.modified", Value: value}}})
		if v.Modified == nil || *v.Modified != want {
			t.Errorf("modified %s: %v", value, v.Modified)
		}
	}
	unknown, err := json.Marshal(versionOf(&debug.BuildInfo{}))
	if err != nil || strings.Contains(string(unknown), "modified") {
		t.Errorf("without information on the revision: %s, %v", unknown, err)
	}
	if got := call(&fake{}, "", "version", "--json"); got.code != 0 || !strings.Contains(got.stdout, `"layout": 4`) {
		t.Errorf("%+v", got)
	}
}

// The layout that version tells is that of the headers, and so is what upgrade knows of
// the programs.
func TestLayout(t *testing.T) {
	abi, err := os.ReadFile("../../headers/abi.h")
	if err != nil {
		t.Fatal(err)
	}
	for name, number := range map[string]int{"LAYOUT": loader.Layout, "HANDOVER": loader.Handover} {
		if want := "\n#define TG_" + name + " " + strconv.Itoa(number) + "\n"; !strings.Contains(string(abi), want) {
			t.Errorf("headers/abi.h has no %q", want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 9949: "9.9 kB", 9951: "10 kB", 12345: "12 kB", 999499: "999 kB",
		999500: "1.0 MB", 1234567890: "1.2 GB", 1 << 63: "9.2 EB", 1<<64 - 1: "18 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
