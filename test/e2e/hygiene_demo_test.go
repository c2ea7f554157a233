package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// demoRemains lists what a demo of that process left: namespaces, folders, mounts.
func demoRemains(t *testing.T, pid int) (all []string) {
	t.Helper()
	stem := fmt.Sprintf("tgdemo-%d-", pid)
	for _, dir := range []string{"/run/netns", os.TempDir()} {
		found, err := filepath.Glob(filepath.Join(dir, stem+"*"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if mounts := mountsUnder(t, filepath.Join(os.TempDir(), stem)); mounts != "" {
		all = append(all, mounts)
	}
	return all
}

// demo starts the demo as a user does, and stops it with a signal after a while.
func demo(t *testing.T, after time.Duration, signal os.Signal) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(binary, "demo")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var timer *time.Timer
	if signal != nil {
		timer = time.AfterFunc(after, func() { _ = cmd.Process.Signal(signal) })
	}
	_ = cmd.Wait() // the code is looked at
	if timer != nil {
		timer.Stop()
	}
	return cmd, out.String()
}

// The demo shows what it promises and leaves nothing, also when it is cut short.
// cmd/tapgate tests it at chosen steps; here the program is, at any moment.
func TestHygieneDemo(t *testing.T) {
	begin := time.Now()
	cmd, out := demo(t, 0, nil)
	whole := time.Since(begin)
	_, sensor, _ := strings.Cut(out, "The sensor saw")
	sensor, _, _ = strings.Cut(sensor, "The host outside saw")
	if cmd.ProcessState.ExitCode() != 0 || !strings.Contains(sensor, "192.168.3.2 > 203.0.113.8: ICMP echo request") ||
		!strings.Contains(sensor, "203.0.113.8 > 192.168.3.2: ICMP echo reply") {
		t.Fatalf("demo: exit code %d\n%s", cmd.ProcessState.ExitCode(), out)
	}
	if left := demoRemains(t, cmd.Process.Pid); left != nil {
		t.Errorf("left behind: %q", left)
	}
	const moments = 6
	for i := range moments {
		after := whole * time.Duration(i) / moments
		cmd, out := demo(t, after, os.Interrupt)
		// One that ends before the signal, or before it listens to it, is fine as well.
		if left := demoRemains(t, cmd.Process.Pid); left != nil && cmd.ProcessState.Exited() {
			t.Errorf("interrupted after %v: left behind: %q\n%s", after, left, out)
		}
		if code := cmd.ProcessState.ExitCode(); code > 1 {
			t.Errorf("interrupted after %v: exit code %d\n%s", after, code, out)
		}
		cmd, _ = demo(t, after, syscall.SIGKILL)
		again, out := demo(t, 0, nil)
		if again.ProcessState.ExitCode() != 0 {
			t.Errorf("after a demo that was killed: exit code %d\n%s", again.ProcessState.ExitCode(), out)
		}
		for _, pid := range []int{cmd.Process.Pid, again.Process.Pid} {
			if left := demoRemains(t, pid); left != nil {
				t.Errorf("killed after %v and run again: left behind: %q", after, left)
			}
		}
	}
}
