package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The snippet for logrotate does with a real agent's file what it says: the old lines
// go aside, and the agent writes on into a new file.
func TestAgentLogrotate(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	dir := t.TempDir()
	log := filepath.Join(dir, "flows.json")
	a := g.agent(nil, "--listen", "", "--log-flows", log)
	const snippet = "../../scripts/monitoring/logrotate"
	text, err := os.ReadFile(snippet)
	if err != nil {
		t.Fatal(err)
	}
	conf := string(text)
	for old, now := range map[string]string{
		"/var/log/tapgate/flows.json":                       log,
		"systemctl kill --signal=HUP tapgate-agent.service": fmt.Sprintf("kill -HUP %d", a.cmd.Process.Pid),
	} {
		if !strings.Contains(conf, old) {
			t.Fatalf("%s has no %q", snippet, old)
		}
		conf = strings.ReplaceAll(conf, old, now)
	}
	file := g.file("logrotate", conf)
	if err := os.Chmod(file, 0o644); err != nil { // it takes no file that others could have written
		t.Fatal(err)
	}
	if err := os.WriteFile(log, []byte("{\"event\":\"before\"}\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("logrotate", "--force", "--state", filepath.Join(dir, "state"), file).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Fatalf("logrotate: %v\n%s", err, out)
	}
	if old, err := os.ReadFile(log + ".1"); err != nil || !strings.Contains(string(old), "before") {
		t.Errorf("what was written before: %q, %v", old, err)
	}
	inHost(t, g.in[0], "ping", "-c1", g.out[0].Addr.String())
	eventually(t, func() string {
		now, err := os.ReadFile(log)
		if err != nil || !strings.Contains(string(now), `"icmp"`) || strings.Contains(string(now), "before") {
			return fmt.Sprintf("the new file has %q, %v", now, err)
		}
		return ""
	})
	info, err := os.Stat(log)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the new file: %v, %v", info, err)
	}
}
