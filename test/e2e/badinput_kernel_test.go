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

// injected makes system calls of tapgate fail as if the kernel refused them.
func injected(calls, fault string) []string {
	return []string{"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + calls, "-e", "inject=" + calls + ":" + fault}
}

// A kernel without what tapgate needs: told by name, and nothing is left.
func TestBadInputKernelLacksAFeature(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("needs strace, to play a kernel that knows no bpf: ", err)
	}
	g := newGateway(t, lab.RoutedOutside())
	before := g.list()
	r := g.without(injected("bpf", "error=EINVAL"), "apply", "-f", "-")
	for _, want := range []string{"this kernel lacks what tapgate needs: ", "sched_cls (since 4.1", "clone_redirect (since 4.2", "array_of_maps", "btf", "spin_lock"} {
		if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, want) {
			t.Errorf("apply on a kernel without bpf: want exit code 1 and %q: %s", want, r)
		}
	}
	r = g.without(injected("bpf", "error=EINVAL"), "check")
	if r.code != 1 || !strings.Contains(r.stdout, "NO, needed") || !strings.Contains(r.stderr, "this kernel lacks") {
		t.Errorf("check on a kernel without bpf: %s", r)
	}
	g.unchanged(before, "a kernel without bpf")

	nowhere := filepath.Join(g.Dir, "nowhere")
	words := append(injected("mount", "error=EPERM"), binary)
	words = append(append(words, attachSpace...), "--netns", g.Gateway.Name, "--bpffs", nowhere)
	if r := g.end(exec.Command(words[0], words[1:]...)); r.code != 1 || !strings.Contains(r.stderr, "mount the BPF filesystem on "+nowhere) {
		t.Errorf("a BPF filesystem that cannot be mounted: %s", r)
	}
	g.unchanged(before, "a BPF filesystem that cannot be mounted")
}

// Whichever system call of a change fails: the change is done all the same, or
// refused with a message and undone. A sample of the calls, from the last one on.
func TestBadInputAnyCallFails(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("needs strace, to let system calls fail: ", err)
	}
	g := newGateway(t, lab.RoutedOutside())
	bare := g.list()
	for _, calls := range []string{"bpf", "mkdirat", "renameat", "ioctl", "sendto"} {
		n := g.countCalls(calls)
		if n == 0 {
			t.Fatalf("apply makes no call of %s: the test tests nothing", calls)
		}
		step := max(1, n/5)
		for at := n; at > 0; at -= step {
			what := fmt.Sprintf("%s, call %d of %d, fails", calls, at, n)
			r := g.without(injected(calls, fmt.Sprintf("error=ENOSPC:when=%d", at)), "apply", "-f", "-")
			switch {
			case r.code == 0:
				g.wantProblems()
				g.must("detach")
			case r.code != 1 && r.code != 2 || r.stderr == "" || strings.Contains(r.stderr, "panic"):
				t.Errorf("%s: %s", what, r)
			}
			if strings.Count(r.stderr, "no space left on device") > 1 {
				// strace counts the calls of each thread: undoing it has failed, too.
				g.must("detach", "--force")
			}
			before := g.tapgate("status").code
			if before != 3 {
				t.Errorf("%s: status is %d: %s", what, before, r)
			}
			if d := bare.difference(g.list()); d != "" {
				t.Errorf("%s: half done:\n%s%s", what, d, r)
				g.tapgate("detach", "--force")
			}
		}
	}
}

// countCalls says how many system calls of a name an apply makes.
func (g *gateway) countCalls(name string) int {
	g.t.Helper()
	log := filepath.Join(g.Dir, "strace.log")
	r := g.without([]string{"strace", "-f", "-qq", "-o", log, "-e", "trace=" + name, "-e", "signal=none"}, "apply", "-f", "-")
	if r.code != 0 {
		g.t.Fatal(r)
	}
	g.must("detach")
	text, err := os.ReadFile(log)
	if err != nil {
		g.t.Fatal(err)
	}
	return strings.Count(string(text), name+"(")
}
