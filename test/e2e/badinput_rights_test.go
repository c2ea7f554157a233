package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tapgate/test/lab"
)

// without runs tapgate behind a program that takes something from it.
func (g *gateway) without(before []string, args ...string) result {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := g.command(ctx, args...)
	words := append(before, cmd.Args...)
	cmd = exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Stdin = strings.NewReader(example)
	return g.end(cmd)
}

// readableBinary is the binary where other users can run it.
func readableBinary(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tapgate-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tapgate")
	if err := os.WriteFile(path, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBadInputWithoutRoot(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	copied := readableBinary(t)
	run := func(words ...string) result { return g.end(exec.Command(words[0], words[1:]...)) }
	nobody := []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", copied}
	for _, attached := range []bool{false, true} {
		if attached {
			g.apply(example)
		}
		before := g.list()
		where := []string{"--netns", g.Gateway.Name, "--bpffs", g.bpffs}
		for _, args := range [][]string{{"status"}, {"detach"}, {"check"}, {"mirror", "list"}, attachSpace, {"apply", "-f", "/dev/null"}} {
			r := run(append(append(nobody[:len(nobody):len(nobody)], args...), where...)...)
			if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, "needs root") ||
				!strings.Contains(r.stderr, "missing here: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN; try sudo") {
				t.Errorf("%q as nobody: %s", args, r)
			}
		}
		if r := run(append(nobody[:len(nobody):len(nobody)], "demo")...); r.code != 1 || !strings.Contains(r.stderr, "needs root") {
			t.Errorf("demo as nobody: %s", r)
		}
		if r := run(append(nobody[:len(nobody):len(nobody)], "version")...); r.code != 0 {
			t.Errorf("version as nobody: %s", r)
		}
		// Root by name in a user namespace: the kernel says no.
		if r := run(append([]string{"unshare", "-Ur", copied}, append(attachSpace, where...)...)...); r.code != 1 || r.stderr == "" || strings.Contains(r.stderr, "panic") {
			t.Errorf("attach as root of a user namespace: %s", r)
		} else {
			t.Logf("root of a user namespace is told: %s", r.stderr)
		}
		// A single right that is missing is named.
		r := g.without([]string{"setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"}, "apply", "-f", "-")
		if r.code != 1 || !strings.Contains(r.stderr, "missing here: CAP_NET_ADMIN;") {
			t.Errorf("apply without CAP_NET_ADMIN: %s", r)
		}
		if d := before.difference(g.list()); d != "" {
			t.Errorf("attached %v: refused, and yet changed:\n%s", attached, d)
		}
	}
}

// locked holds the lock of the state until the function returned is called.
func (g *gateway) locked(how string) (pid int, release func()) {
	g.t.Helper()
	cmd := exec.Command("flock", how, g.stateDir(), "sh", "-c", "echo held; read end")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		g.t.Fatalf("flock says %q, %v", line, err)
	}
	return cmd.Process.Pid, func() {
		in.Close()
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait() // "read" fails at the end of its input
	}
}

func TestBadInputSecondInstance(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	g.apply(example)
	g.resolved()
	before := g.list()
	pid, release := g.locked("-x")
	busy := func(args ...string) {
		t.Helper()
		r := g.tapgateIn(example, append(args, "--lock-timeout", "50ms")...)
		for _, want := range []string{"another tapgate is at work", fmt.Sprintf("pid %d (flock -x ", pid), g.stateDir(), "waited 50ms"} {
			if r.code != 4 || r.stdout != "" || !strings.Contains(r.stderr, want) {
				t.Errorf("%q beside a writer: want exit code 4 and %q: %s", args, want, r)
			}
		}
	}
	busy("status")
	busy("mirror", "list")
	busy("apply", "-f", "-")
	busy("mirror", "del", "ids")
	busy("detach")
	busy("detach", "--force")
	if r := g.tapgateIn(example, "check", "-f", "-"); r.code != 0 {
		t.Errorf("check needs no lock: %s", r)
	}
	release()

	pid, release = g.locked("-s")
	if r := g.tapgate("status", "--lock-timeout", "50ms"); r.code != 0 {
		t.Errorf("status beside a reader: %s", r)
	}
	r := g.tapgate("mirror", "del", "ids", "--lock-timeout", "50ms")
	if want := fmt.Sprintf("pid %d (flock -s ", pid); r.code != 4 || !strings.Contains(r.stderr, want) {
		t.Errorf("a writer beside a reader: want exit code 4 and %q: %s", want, r)
	}
	// Who waits long enough is served.
	waiting := make(chan result)
	go func() { waiting <- g.tapgate("mirror", "add", "more", "--zone", "internal", "--l2", "eth2") }()
	release()
	if r := <-waiting; r.code != 0 {
		t.Errorf("a writer that waits: %s", r)
	}
	g.must("mirror", "del", "more")
	if d := before.difference(g.list()); d != "" {
		t.Errorf("not as before:\n%s", d)
	}
}

// Readers beside a writer see what was or what is, whole, and never fail.
func TestBadInputReadersBesideAWriter(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	g.apply(example)
	stop, done := make(chan struct{}), make(chan error, 2)
	for range 2 {
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				cmd := g.command(g.Context(), "mirror", "list", "--json")
				out, err := cmd.Output()
				if err != nil || !strings.Contains(string(out), `"ids"`) {
					done <- fmt.Errorf("mirror list: %w: %s", err, out)
					return
				}
			}
		}()
	}
	for i := range 15 {
		g.must("mirror", "add", "m"+strconv.Itoa(i), "--zone", "internal", "--l2", "eth2", "--lock-timeout", "30s")
		g.must("mirror", "del", "m"+strconv.Itoa(i), "--lock-timeout", "30s")
	}
	close(stop)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
