package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tapgate/test/lab"
)

// A BPF filesystem that is not mounted is, and goes with the last gateway on it.
func TestHygieneMountsTheBPFFilesystem(t *testing.T) {
	g := newGateway(t, lab.RoutedOutside())
	other := newSpace(t, true)
	g.bpffs = filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() { _ = unix.Unmount(g.bpffs, unix.MNT_DETACH) }) // not there unless the test failed
	if err := os.Mkdir(g.bpffs, 0o755); err != nil {
		t.Fatal(err)
	}
	before := g.list()
	mounted := func(want bool, when string) {
		t.Helper()
		if mounts := mountsUnder(t, g.bpffs); (mounts != "") != want || strings.Count(mounts, "\n") > 1 {
			t.Errorf("%s: mounts are %q", when, mounts)
		}
	}
	if r := g.tapgate("status"); r.code != 3 {
		t.Errorf("status: %s", r)
	}
	mounted(false, "after status")
	if r := g.tapgateIn(strings.Replace(example, "eth3", "eth9", 1), "apply", "-f", "-"); r.code != 2 {
		t.Errorf("apply of a bad config: %s", r)
	}
	mounted(false, "after a bad apply")
	g.apply(example)
	mounted(true, "after apply")
	if r := g.tapgateAt(other.name, attachSpace...); r.code != 0 {
		t.Error(r)
	}
	g.apply(example)
	mounted(true, "after another apply")
	g.must("detach")
	mounted(true, "while another gateway is on it")
	if r := g.tapgateAt(other.name, "detach"); r.code != 0 {
		t.Error(r)
	}
	mounted(false, "after the last detach")
	g.unchanged(before, "after the last detach")

	// A mount of somebody else stays, also when it is empty.
	if err := unix.Mount("theirs", g.bpffs, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	g.apply(example)
	g.must("detach")
	mounted(true, "of somebody else, after detach")
}

// inside runs tapgate in the gateway's namespace, behind other words.
func (g *gateway) inside(before []string, args ...string) result {
	g.t.Helper()
	words := append(append(before[:len(before):len(before)], binary), args...)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdin = strings.NewReader(example)
	return g.end(cmd)
}

// A bpffs mounted under "ip netns exec" would vanish with it; run that way,
// tapgate says so and does nothing. With one that lasts all works from inside.
func TestHygieneInsideTheNamespace(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	g.exchange()
	before := g.list()
	exec := []string{"ip", "netns", "exec", g.Gateway.Name}
	r := g.inside(exec, "apply", "-f", "-")
	for _, want := range []string{"mount the BPF filesystem on /sys/fs/bpf", `as under "ip netns exec"`, "--netns NAME", "--bpffs DIR"} {
		if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, want) {
			t.Errorf("apply under ip netns exec: want exit code 1 and %q: %s", want, r)
		}
	}
	if r := g.inside(exec, "status"); r.code != 3 {
		t.Errorf("status under ip netns exec: %s", r)
	}
	g.unchanged(before, "apply under ip netns exec")

	for what, words := range map[string][]string{
		"ip netns exec":             exec,
		"nsenter":                   {"nsenter", "--net=" + g.Gateway.Path()},
		"a private mount namespace": {"nsenter", "--net=" + g.Gateway.Path(), "unshare", "-m", "--propagation", "private"},
	} {
		if r := g.inside(words, "apply", "-f", "-", "--bpffs", g.bpffs); r.code != 0 {
			t.Errorf("apply by %s: %s", what, r)
		}
		g.wantProblems() // seen from outside
		if r := g.inside(words, "status", "--bpffs", g.bpffs); r.code != 0 || !strings.Contains(r.stdout, "eth3") {
			t.Errorf("status by %s: %s", what, r)
		}
		if r := g.inside(words, "detach", "--bpffs", g.bpffs); r.code != 0 {
			t.Errorf("detach by %s: %s", what, r)
		}
		g.unchanged(before, "detach by "+what)
	}
}
