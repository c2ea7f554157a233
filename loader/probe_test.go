package loader

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// The kernels of the matrix that run this have all of the needed features, and
// root is what the other tests ask for as well.
func TestProbeFeatures(t *testing.T) {
	before, err := os.Readlink(threadNetns)
	if err != nil {
		t.Fatal(err)
	}
	fs := ProbeFeatures()
	if err := missing(fs); err != nil {
		t.Error(err)
	}
	for _, f := range fs {
		t.Logf("%-15s %-5s have=%-5v needed=%-5v %s", f.Name, f.Since, f.Have, f.Needed, f.Err)
		if f.Have == (f.Err != "") {
			t.Errorf("%s: have=%v, error %q", f.Name, f.Have, f.Err)
		}
		if f.Since == "" || f.Use == "" {
			t.Errorf("%s: not described", f.Name)
		}
	}
	after, err := os.Readlink(threadNetns)
	if err != nil || after != before {
		t.Errorf("network namespace after the probes: %s, before: %s (%v)", after, before, err)
	}
}

func TestMissingFeatures(t *testing.T) {
	fs := []Feature{
		{Name: "tcx", Since: "6.6"},
		{Name: "spin_lock", Since: "5.1", Use: "locks", Needed: true, Err: "not supported"},
		{Name: "btf", Since: "4.18", Needed: true, Have: true},
	}
	err := missing(fs)
	if err == nil || !strings.Contains(err.Error(), "spin_lock (since 5.1, locks): not supported") {
		t.Errorf("error %v does not name the feature", err)
	}
	if err != nil && (strings.Contains(err.Error(), "tcx") || strings.Contains(err.Error(), "btf")) {
		t.Errorf("error %v names what is there or not needed", err)
	}
	if err := missing(fs[2:]); err != nil {
		t.Errorf("nothing is missing, but: %v", err)
	}
}

func TestCheck(t *testing.T) {
	resolveNetns(t, gatewayLinks+"tuntap add dev tun0 mode tun\nlink set eth2 mtu 1280\nlink set peer2 down\n")
	name := fmt.Sprintf("tgres-%d-%d", os.Getpid(), resolveSpaces)
	state := func() string {
		return resolveRun(t, "", "ip", "-n", name, "-d", "address") + resolveRun(t, "", "tc", "-n", name, "qdisc") +
			resolveRun(t, "", "ip", "netns", "exec", name, "sysctl", "net.ipv4.conf", "net.ipv6.conf")
	}
	before := state()
	cfg := gatewayConfig()
	r, err := Check(Options{Netns: name}, &cfg)
	part := `|the MTU of "eth2" is 1280`
	checkProblems(t, err, []string{"mirrors[0].targets[0].via" + part, "mirrors[0].targets[1].l2" + part})
	if !slices.Equal(r.Problems, messages(err)) {
		t.Errorf("problems %q, error %v", r.Problems, err)
	}
	if len(r.Features) == 0 || r.Kernel == "" {
		t.Errorf("report without kernel or features: %+v", r)
	}
	byName := map[string]InterfaceReport{}
	for _, i := range r.Interfaces {
		byName[i.Name] = i
	}
	eth2 := byName["eth2"]
	if !eth2.Up || eth2.Carrier || eth2.MTU != 1280 || eth2.MAC != "02:00:00:00:00:02" || eth2.Type != "veth" ||
		eth2.Zone != "dmz" || !eth2.Tapable || !slices.Contains(eth2.Addresses, "192.168.4.1/24") {
		t.Errorf("eth2: %+v", eth2)
	}
	for _, bad := range []string{"lo", "tun0"} {
		if i := byName[bad]; i.Tapable || i.Why == "" {
			t.Errorf("%s: %+v", bad, i)
		}
	}

	forced, err := Check(Options{Netns: name, Force: true}, &cfg)
	if err != nil {
		t.Fatalf("with force: %v", err)
	}
	for _, part := range []string{"skipped as too_big", "no carrier"} {
		if !slices.ContainsFunc(forced.Warnings, func(w string) bool { return strings.Contains(w, part) }) {
			t.Errorf("warnings %q lack %q", forced.Warnings, part)
		}
	}
	if bare, err := Check(Options{Netns: name}, nil); err != nil || len(bare.Problems) != 0 || len(bare.Interfaces) != len(r.Interfaces) {
		t.Errorf("without a configuration: %+v, %v", bare, err)
	}
	if text, err := json.Marshal(forced); err != nil || !strings.Contains(string(text), `"problems":[]`) {
		t.Errorf("as JSON: %s %v", text, err)
	}
	if after := state(); after != before {
		t.Errorf("the check changed something; before:\n%s\nafter:\n%s", before, after)
	}

	// A problem that is not the configuration's is no ConfigError.
	var ce *ConfigError
	if _, err := Check(Options{Netns: name + "-not"}, nil); err == nil || errors.As(err, &ce) {
		t.Errorf("missing namespace: %v", err)
	}
}
