package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// report makes one and unpacks it, by the names of its files.
func (g *gateway) report(flags ...string) map[string]string {
	g.t.Helper()
	file := filepath.Join(g.t.TempDir(), "report.tar.gz")
	g.must(append([]string{"report", "-o", file}, flags...)...)
	text, err := os.ReadFile(file)
	if err != nil {
		g.t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(text))
	if err != nil {
		g.t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			g.t.Fatal(err)
		}
		part, err := io.ReadAll(r)
		if err != nil {
			g.t.Fatal(err)
		}
		files[filepath.Base(h.Name)] = string(part)
	}
}

// mayFail are parts that a machine may not be able to tell: without journald, or BPF
// settings of this kernel.
var mayFail = []string{"journal.txt", "dmesg.txt"}

func TestReport(t *testing.T) {
	t.Parallel()
	g := newGate(t, lockoutNAT+"policies:\n  - {from: mgmt, to: external, action: accept} # of Anna\n")
	const rule = "table ip secretive { chain post { type nat hook postrouting priority 200; oifname \"eth9\" masquerade comment \"of-the-boss\"; }; }"
	if out, err := g.Gateway.Command(g.Context(), "nft", rule).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	g.exchange()
	before := g.list()
	files := g.report("--dmesg")
	if d := before.difference(g.list()); d != "" {
		t.Errorf("a report changes something:\n%s", d)
	}
	for name, want := range map[string][]string{
		"README.txt":  {"IP and MAC addresses as they are"},
		"version.txt": {"layout"}, "system.txt": {"Linux version", "MemTotal"},
		"check.txt":  {"netfilter_defrag", "the configuration can be put in force", "gateway"},
		"status.txt": {"eth3", "ids"}, "status.json": {`"serial": 1`}, "config.yaml": {lockoutNAT, "# of Anna"},
		"rules.txt": {"internal-external", "policy-1"}, "flows.json": {`"icmp": `, `"masquerade": `},
		"bpf.json":    {`"tg_sessions"`, `"kind": "program"`, `"kind": "link"`, `"interface": "eth3"`, "tapgate_tap_in", "tapgate_dmz_out"},
		"sysctls.txt": {"net/ipv4/ip_forward = 1", "net/ipv4/conf/eth3/rp_filter = "}, "links.txt": {"eth3", "link/ether"},
		"addresses.txt": {"192.168.3.1/24", "2001:db8:3::1/64"}, "routes.txt": {"192.168.3.0/24"}, "routes6.txt": {"2001:db8:3::/64"},
		"ip-rules.txt": {"lookup main"}, "ip-rules6.txt": {"lookup main"}, "neighbours.txt": {"192.168.3."}, "qdiscs.txt": {"eth3"},
		"firewall.txt": {"nft ip secretive post: type nat hook postrouting priority 200 policy accept"},
	} {
		for _, w := range want {
			if !strings.Contains(files[name], w) {
				t.Errorf("%s lacks %q:\n%s", name, w, files[name])
			}
		}
	}
	for name, text := range files {
		if strings.Contains(text, "failed: ") && !slices.Contains(mayFail, name) {
			t.Errorf("%s:\n%s", name, text)
		}
		if strings.Contains(text, "of-the-boss") {
			t.Errorf("%s has a comment of a rule:\n%s", name, text)
		}
		if strings.Contains(text, g.in[0].Addr.String()+":") && name != "journal.txt" {
			t.Errorf("%s tells of single flows:\n%s", name, text)
		}
	}
}

// No address that this machine has, knows or was told is in an anonymous report, and
// one address is the same in all its parts.
func TestReportAnonymous(t *testing.T) {
	t.Parallel()
	g := newGate(t, lockoutNAT+"  forwards: [{name: web, in: external, proto: tcp, port: 80, to: \"192.168.3.2:80\"}]\n"+
		"policies:\n  - {from: mgmt, to: external, sources: [192.168.5.2, 10.77.0.0/16], action: accept} # of Anna, 10.66.6.6\n")
	g.exchange()
	plain, files := g.report(), g.report("--anonymize")
	address := regexp.MustCompile(`[0-9A-Fa-f:.]*[0-9A-Fa-f]+[:.][0-9A-Fa-f:.]*`)
	known := map[string]bool{}
	for _, name := range []string{"addresses.txt", "routes.txt", "routes6.txt", "neighbours.txt", "config.yaml", "links.txt", "status.json"} {
		for _, a := range address.FindAllString(plain[name], -1) {
			a = strings.Trim(a, ":")
			addr, err := netip.ParseAddr(a)
			mac := strings.Count(a, ":") == 5 && len(a) == 17
			if mac && a != "ff:ff:ff:ff:ff:ff" && a != "00:00:00:00:00:00" || err == nil && !addr.IsLoopback() && !addr.IsUnspecified() && !addr.IsMulticast() {
				known[a] = true
			}
		}
	}
	if len(known) < 30 || !known["192.168.3.1"] || !known["2001:db8:3::1"] || !known[g.Gateway.Interface("eth3").MAC.String()] {
		t.Fatalf("addresses that are known: %v", known)
	}
	for name, text := range files {
		if !slices.Contains(mayFail, name) && plain[name] == "" {
			t.Errorf("%s is only in the anonymous one", name)
		}
		if strings.Contains(text, "Anna") {
			t.Errorf("%s has a comment of the configuration: %s", name, text)
		}
		for _, a := range address.FindAllString(text, -1) {
			a = strings.Trim(a, ":")
			// Those of the laboratory may be among those that are made up.
			if known[a] && !strings.HasPrefix(a, "2001:db8::") && !strings.HasPrefix(a, "02:00:00:") && !strings.HasPrefix(a, "fe80::") {
				t.Errorf("%s has %s:\n%s", name, a, text)
				break
			}
		}
	}
	// eth3's address, as the kernel and as status tell it.
	found := regexp.MustCompile(`inet (198\.18\.[0-9.]+)/24 .* eth0`).FindStringSubmatch(files["addresses.txt"])
	if found == nil || !strings.Contains(files["status.json"], `"`+found[1]+`"`) {
		t.Errorf("eth0's address is not the same everywhere: %q\n%s\n%s", found, files["addresses.txt"], files["status.json"])
	}
}

func TestReportWithoutGateway(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	files := g.report()
	for name, want := range map[string]string{
		"status.txt": "not attached here", "config.yaml": "not attached here", "flows.json": "not attached here", "check.txt": "features", "addresses.txt": "192.168.3.1/24",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q:\n%s", name, want, files[name])
		}
	}
}
