package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tapgate/test/lab"
)

// sshd is a real one in the gateway, with keys of its own.
type sshd struct {
	g   *gateway
	dir string
}

func (g *gateway) sshd() *sshd {
	g.t.Helper()
	s := &sshd{g, g.t.TempDir()}
	for _, name := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, name)).CombinedOutput(); err != nil {
			g.t.Fatalf("ssh-keygen (package openssh-client): %v: %s", err, out)
		}
	}
	config := fmt.Sprintf(`Port 2222
HostKey %[1]s/host
AuthorizedKeysFile %[1]s/user.pub
PidFile none
PermitRootLogin yes
StrictModes no
UsePAM no
UseDNS no
`, s.dir)
	if err := os.WriteFile(filepath.Join(s.dir, "config"), []byte(config), 0o600); err != nil {
		g.t.Fatal(err)
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // of its privilege separation
		g.t.Fatal(err)
	}
	daemon := g.Gateway.Command(g.Context(), "/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(s.dir, "config"))
	if err := daemon.Start(); err != nil {
		g.t.Fatalf("sshd (package openssh-server): %v", err)
	}
	g.t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait() // killed
	})
	eventually(g.t, func() string {
		if r := s.run(g.Mgmt, "192.168.5.1", "true"); r.code != 0 {
			return "no login: " + r.String()
		}
		return ""
	})
	return s
}

// command logs in from a host and runs a command line.
func (s *sshd) command(ctx context.Context, from *lab.Host, to, line string) *lab.Cmd {
	return from.Command(ctx, "ssh", "-q", "-F", "none", "-i", filepath.Join(s.dir, "user"), "-p", "2222", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", "root@"+to, line)
}

func (s *sshd) run(from *lab.Host, to, line string) result {
	s.g.t.Helper()
	ctx, cancel := context.WithTimeout(s.g.Context(), time.Minute)
	defer cancel()
	cmd := s.command(ctx, from, to, line)
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(example), &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		s.g.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// A remote admin who comes in by what would become the dmz is told so, and not
// cut off unless he insists; by the management network he may do anything.
func TestBadInputSSHConnectionCutOff(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	s := g.sshd()
	g.exchange()
	if r := s.run(g.Sensor, "192.168.4.1", "true"); r.code != 0 { // and so the kernel knows the sensor
		t.Fatal(r)
	}
	before := g.list()
	apply := binary + " apply -f - --bpffs " + g.bpffs
	const want = `your SSH connection from 192.168.4.2:`
	for what, line := range map[string]string{
		"plainly":                   apply,
		"by attach":                 binary + " attach --internal eth3 --dmz eth2 --sensor 192.168.4.2 --bpffs " + g.bpffs,
		"with a clean environment":  "env -i " + apply, // as sudo does
		"from a session of its own": "setsid -w sh -c '" + apply + "'",
		"with --netns":              apply + " --netns " + g.Gateway.Name,
		"check":                     binary + " check -f -",
	} {
		r := s.run(g.Sensor, "192.168.4.1", line)
		if r.code != 2 || strings.Count(r.stderr, want) != 1 || !strings.Contains(r.stderr, `comes in on "eth2", and zone "dmz" (role dmz) drops what comes in`) ||
			!strings.Contains(r.stderr, "--force") {
			t.Errorf("apply through the future dmz, %s: %s", what, r)
		}
		if what != "by attach" && !strings.Contains(r.stderr, "stdin:5:27: ") {
			t.Errorf("apply through the future dmz, %s: no line is named: %s", what, r)
		}
	}
	if d := before.difference(g.list()); d != "" {
		t.Errorf("refused, and yet changed:\n%s", d)
	}

	if r := s.run(g.Mgmt, "192.168.5.1", apply); r.code != 0 {
		t.Errorf("apply through mgmt: %s", r)
	}
	if r := s.run(g.Mgmt, "192.168.5.1", binary+" status --bpffs "+g.bpffs); r.code != 0 || !strings.Contains(r.stdout, "eth3") {
		t.Errorf("status through mgmt: %s", r)
	}
	if r := s.run(g.Servers[0], "192.168.3.1", binary+" detach --bpffs "+g.bpffs); r.code != 0 {
		t.Errorf("detach through a tapped interface: %s", r)
	}

	// Who insists is cut off, and the change is whole all the same.
	ctx, cancel := context.WithCancel(g.Context())
	defer cancel()
	cmd := s.command(ctx, g.Sensor, "192.168.4.1", apply+" --force")
	cmd.Stdin = strings.NewReader(example)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if r := g.tapgate("status"); r.code != 0 {
			return r.String()
		}
		return ""
	})
	cancel()
	_ = cmd.Wait() // killed: it would hang
	g.resolved()
	g.wantProblems()
	g.copies("applied by force")
	g.must("detach")
	g.unchanged(before, "after detach")
}
