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
