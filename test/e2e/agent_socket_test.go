package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"tapgate/test/lab"
)

// Metrics at a unix socket are for root and the members of a group, also where the agent
// may not change owners; a socket that a killed agent has left is replaced, one that is in
// use is not, and none is left behind.
func TestAgentSocket(t *testing.T) {
	t.Parallel()
	g := newGate(t, metricsConfig)
	// t.TempDir, and maybe $TMPDIR, are root's alone.
	dir, err := os.MkdirTemp("/tmp", "tapgate-socket-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody, readers = 65534, 54321
	socket := filepath.Join(dir, "metrics.sock")
	listen := []string{"--listen", "unix:" + socket}
	forGroup := append(listen, "--listen-group", strconv.Itoa(readers))

	// reads asks as nobody of a group, or as root.
	reads := func(uid, gid int) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), gateWait)
		defer cancel()
		out, err := exec.CommandContext(ctx, "setpriv", "--reuid", strconv.Itoa(uid), "--regid", strconv.Itoa(gid), "--clear-groups",
			"curl", "-sS", "--unix-socket", socket, "http://localhost/metrics").CombinedOutput()
		return string(out), err
	}
	check := func(who string, uid, gid int, may bool) {
		t.Helper()
		out, err := reads(uid, gid)
		if may && (err != nil || !strings.Contains(out, "\ntapgate_attached 1\n")) {
			t.Errorf("%s reads: %v\n%.300s", who, err, out)
		}
		var exit *exec.ExitError
		if !may && (!errors.As(err, &exit) || exit.ExitCode() != 7 || strings.Contains(out, "tapgate_attached")) { // 7: could not connect
			t.Errorf("%s must not read: %v\n%.300s", who, err, out)
		}
	}
	is := func(mode fs.FileMode, gid uint32) {
		t.Helper()
		st, err := os.Lstat(socket)
		if err != nil {
			t.Fatal(err)
		}
		owner := st.Sys().(*syscall.Stat_t)
		if st.Mode() != fs.ModeSocket|mode || owner.Uid != 0 || owner.Gid != gid {
			t.Errorf("the socket is %v of %d:%d", st.Mode(), owner.Uid, owner.Gid)
		}
	}

	a := g.agent(nil, forGroup...)
	is(0o660, readers)
	check("a member", nobody, readers, true)
	check("who is none", nobody, nobody, false)
	check("root", 0, 0, true)
	ctx, cancel := context.WithTimeout(context.Background(), 2*gateWait)
	defer cancel()
	second := g.Gateway.Command(ctx, g.program(), append([]string{"agent", "--bpffs", g.bpffs}, listen...)...)
	if out, err := second.CombinedOutput(); second.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "somebody listens there already") {
		t.Errorf("a second agent: %v\n%s", err, out)
	}
	check("a member, after the second agent", nobody, readers, true)

	a.kill()
	is(0o660, readers)
	a = g.agent(nil, listen...)
	is(0o600, 0)
	check("a member of a group that is not asked for", nobody, readers, false)
	check("root", 0, 0, true)
	a.end()
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket after the end of the agent: %v", err)
	}

	// As under the unit, whose capabilities do not make a process a member.
	bound := func(groups ...string) *lab.Cmd {
		args := append([]string{"setpriv", "--bounding-set", "-all,+bpf,+net_admin,+perfmon,+sys_admin"}, groups...)
		return g.Gateway.Command(ctx, args[0], append(append(args[1:], g.program(), "agent", "--bpffs", g.bpffs), forGroup...)...)
	}
	if out, err := bound("--clear-groups").CombinedOutput(); err == nil || !strings.Contains(string(out), "SupplementaryGroups=") {
		t.Errorf("where it cannot join the group: %v\n%s", err, out)
	}
	unit := bound("--groups", strconv.Itoa(readers))
	if err := unit.Start(); err != nil {
		t.Fatal(err)
	}
	retry(t, func() error {
		if _, err := reads(nobody, readers); err != nil {
			return fmt.Errorf("a member reads: %w", err)
		}
		return nil
	})
	is(0o660, readers)
	if err := unit.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := unit.Wait(); err != nil {
		t.Errorf("the agent of the unit: %v", err)
	}
}
