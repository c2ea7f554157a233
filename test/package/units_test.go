package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The units are such as systemd understands, and give away little: 4.0 of 10 at most
// by its own measure, of which most is what loading programs takes.
func TestUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Fatalf("%v: scripts/deps.sh installs it", err)
	}
	units, err := filepath.Glob(repository + "/scripts/systemd/*.service")
	if err != nil || len(units) != 2 {
		t.Fatalf("units: %v, %v", units, err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "tapgate")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, u := range units {
		text, err := os.ReadFile(u)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, filepath.Base(u))
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "/usr/sbin/tapgate", program)), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=40", file).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", u, err, out)
		}
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=no"}, files...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "tapgate") {
		t.Errorf("verify: %v\n%s", err, out)
	}
}

// At boot the host's firewall has its rules and the network its addresses before apply
// looks at them, and the agent finds something in force. Leaving a unit out is no error
// to systemd.
func TestUnitsOrder(t *testing.T) {
	for name, wanted := range map[string]string{
		"tapgate.service": "network-online.target systemd-networkd.service NetworkManager.service networking.service " +
			"firewalld.service nftables.service iptables.service ip6tables.service netfilter-persistent.service ufw.service docker.service",
		"tapgate-agent.service": "tapgate.service",
	} {
		text, err := os.ReadFile(filepath.Join(repository, "scripts/systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		after := map[string]bool{}
		for line := range strings.Lines(string(text)) {
			if list, ok := strings.CutPrefix(strings.TrimSpace(line), "After="); ok {
				for _, unit := range strings.Fields(list) {
					after[unit] = true
				}
			}
		}
		for _, unit := range strings.Fields(wanted) {
			if !after[unit] {
				t.Errorf("%s does not start after %s", name, unit)
			}
		}
	}
}
