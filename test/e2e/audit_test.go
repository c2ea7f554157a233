package e2e

import (
	"context"
	bin "encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapgate/test/lab"
)

// auditPlaces are where records go: what the machine itself has there is hidden, so
// that tests write into nobody's journal.
type auditPlaces struct {
	g       *gateway
	journal string // socket that stands for journald's, if any
	syslog  string // for /dev/log, if any
}

// script makes the places and then runs its arguments. Names of network namespaces stay.
func (p *auditPlaces) script() string {
	p.g.t.Helper()
	text := `set -e
mount --rbind /run/netns /mnt
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/systemd/journal
mount --rbind /mnt /run/netns
mount -t tmpfs tmpfs /dev
mknod -m 666 /dev/null c 1 3
`
	for _, b := range [][2]string{{p.journal, "/run/systemd/journal/socket"}, {p.syslog, "/dev/log"}} {
		if b[0] != "" {
			text += fmt.Sprintf("touch %[2]s\nmount --bind %[1]s %[2]s\n", b[0], b[1])
		}
	}
	name := filepath.Join(p.g.t.TempDir(), "audited")
	inner := name + "-inner"
	for file, text := range map[string]string{
		inner: "#!/bin/sh\n" + text + "exec \"$@\"\n",
		name:  "#!/bin/sh\nexec unshare --mount --propagation private " + inner + " \"$@\"\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o700); err != nil {
			p.g.t.Fatal(err)
		}
	}
	return name
}

// run runs a command of tapgate there.
func (p *auditPlaces) run(stdin string, args ...string) result {
	p.g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := p.g.command(ctx, args...)
	cmd.Args = append([]string{p.script()}, cmd.Args...)
	cmd.Path = cmd.Args[0]
	cmd.Env = append(os.Environ(), "SUDO_USER=anna")
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		p.g.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// inbox is a datagram socket that keeps what comes.
func inbox(t *testing.T) (path string, next func() string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "socket")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return path, func() string {
		t.Helper()
		buf := make([]byte, 1<<20)
		_ = c.SetReadDeadline(time.Now().Add(gateWait))
		n, _, err := c.ReadFromUnix(buf)
		if err != nil {
			t.Fatalf("no record has come: %v", err)
		}
		return string(buf[:n])
	}
}

// nativeFields reads the journal's own protocol: NAME=VALUE, or NAME and a length where
// the value has lines.
func nativeFields(t *testing.T, datagram string) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for datagram != "" {
		line, rest, _ := strings.Cut(datagram, "\n")
		name, value, plain := strings.Cut(line, "=")
		if !plain {
			n := bin.LittleEndian.Uint64([]byte(rest))
			value, rest = rest[8:8+n], rest[8+n+1:]
		}
		fields[name], datagram = value, rest
	}
	return fields
}

func TestAuditToJournal(t *testing.T) {
	g := newGateway(t)
	p := &auditPlaces{g: g}
	var next func() string
	p.journal, next = inbox(t)
	p.syslog, _ = inbox(t) // gets nothing, as long as there is a journal

	if r := p.run(example, "apply", "-f", "-"); r.code != 0 {
		t.Fatal(r)
	}
	f := nativeFields(t, next())
	for name, want := range map[string]string{
		"TAPGATE_COMMAND": "apply", "SYSLOG_IDENTIFIER": "tapgate", "PRIORITY": "5", "TAPGATE_RESULT": "done", "TAPGATE_EXIT_CODE": "0",
		"TAPGATE_SERIAL": "1", "TAPGATE_NETNS": g.Gateway.Name, "TAPGATE_UID": "0", "TAPGATE_SUDO_USER": "anna",
	} {
		if f[name] != want {
			t.Errorf("%s is %q, want %q: %q", name, f[name], want, f)
		}
	}
	if !strings.Contains(f["TAPGATE_CHANGES"], "eth3") || strings.Count(f["TAPGATE_CHANGES"], "\n") < 3 ||
		!strings.HasPrefix(f["TAPGATE_COMMAND_LINE"], "tapgate apply -f - --netns ") || !strings.HasPrefix(f["MESSAGE"], "apply: ") {
		t.Errorf("apply left %q", f)
	}

	for _, c := range []struct {
		args, command, result, serial, changes, err string
	}{
		{"status", "", "", "", "", ""},
		{"mirror add rec --zone internal --l2 eth2", "mirror add", "done", "2", "rec", ""},
		{"mirror add other --zone internal --l2 eth9", "mirror add", "failed", "", "", `no interface "eth9"`},
		{"forward add rdp --in external --proto tcp --port 3389 --to 192.168.3.2:3389", "forward add", "done", "3", "rdp", ""},
		{"flows flush --all", "flows flush", "done", "", "", ""},
		{"forward del rdp --flush", "forward del", "done", "4", "rdp", ""},
		{"rollback", "rollback", "done", "5", "rdp", ""},
		{"confirm", "confirm", "done", "", "", ""},
		{"upgrade", "upgrade", "done", "", "", ""},
		{"detach", "detach", "done", "", "detached from eth3", ""},
		{"detach", "detach", "done", "", "", ""},
		{"mirror del rec", "mirror del", "failed", "", "", "not attached here"},
	} {
		p.run("", strings.Fields(c.args)...)
		if c.command == "" {
			continue // the next record is of the next command
		}
		f := nativeFields(t, next())
		if f["TAPGATE_COMMAND"] != c.command || f["TAPGATE_RESULT"] != c.result || f["TAPGATE_SERIAL"] != c.serial ||
			!strings.Contains(f["TAPGATE_CHANGES"], c.changes) || !strings.Contains(f["TAPGATE_ERROR"], c.err) ||
			!strings.HasPrefix(f["TAPGATE_COMMAND_LINE"], "tapgate "+c.args) {
			t.Errorf("%s left %q", c.args, f)
		}
	}
}

func TestAuditToSyslog(t *testing.T) {
	g := newGateway(t)
	p := &auditPlaces{g: g}
	var next func() string
	p.syslog, next = inbox(t)
	if r := p.run(example, "apply", "-f", "-"); r.code != 0 {
		t.Fatal(r)
	}
	got := next()
	// <85> is authpriv.notice.
	for _, part := range []string{"<85>", " tapgate[", "]: apply: ", " command=apply ", " result=done ", "serial=1", "netns=" + g.Gateway.Name, "sudo_user=anna"} {
		if !strings.Contains(got, part) {
			t.Errorf("lacks %q: %q", part, got)
		}
	}
	if r := p.run("zones: {}\n", "apply", "-f", "-"); r.code == 0 {
		t.Fatal(r)
	}
	if got := next(); !strings.Contains(got, "<84>") || !strings.Contains(got, "apply failed (") || !strings.Contains(got, "result=failed exit_code=2") {
		t.Errorf("a failed change: %q", got)
	}
}

// Neither a machine without any log nor a journal that hangs keeps a change from being made.
func TestAuditNowhere(t *testing.T) {
	g := newGateway(t)
	p := &auditPlaces{g: g}
	if r := p.run(example, "apply", "-f", "-"); r.code != 0 || strings.Contains(r.stderr, "log") {
		t.Error(r)
	}
	var full string
	full, _ = inbox(t)
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: full, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for err == nil { // until the next one would wait
		_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = c.Write([]byte("MESSAGE=x\n"))
	}
	p.journal = full
	if r := p.run("", "mirror", "add", "rec", "--zone", "internal", "--l2", "eth2"); r.code != 0 {
		t.Error(r)
	}
	g.must("detach")
}

// The record tells from where the admin came, by SSH into the gateway and through sudo.
func TestAuditSSHPeer(t *testing.T) {
	g := newGateway(t, lab.RoutedOutside())
	s := g.sshd()
	p := &auditPlaces{g: g}
	var next func() string
	p.journal, next = inbox(t)
	if r := s.run(g.Mgmt, "192.168.5.1", "env -i "+p.script()+" "+binary+" apply -f - --bpffs "+g.bpffs); r.code != 0 {
		t.Fatal(r)
	}
	f := nativeFields(t, next())
	if !strings.HasPrefix(f["TAPGATE_SSH_PEER"], "192.168.5.2:") || !strings.Contains(f["MESSAGE"], "by SSH from 192.168.5.2:") || f["TAPGATE_NETNS"] != "" {
		t.Errorf("%q", f)
	}
	g.must("detach")
}

// A real journald takes it, and journalctl finds it by its fields.
func TestAuditRealJournald(t *testing.T) {
	g := newGateway(t)
	p := &auditPlaces{g: g}
	const journald = `mkdir -p /run/log/journal /run/systemd/journald.conf.d
mount -t tmpfs tmpfs /var/log
echo 3d1219c7c4c5404aaa1f6d2a48adfda4 >/run/machine-id
[ -s /etc/machine-id ] || mount --bind /run/machine-id /etc/machine-id
printf '[Journal]\nStorage=volatile\nAudit=\nReadKMsg=no\n' >/run/systemd/journald.conf.d/test.conf
/lib/systemd/systemd-journald &
daemon=$!
until [ -S /run/systemd/journal/socket ]; do sleep 0.05; done
"$@" >&2
n=0
until journalctl -q -D /run/log/journal -t tapgate -o json TAPGATE_COMMAND=apply | tee /run/found | grep -q apply || [ $n = 100 ]; do sleep 0.1; n=$((n+1)); done
cat /run/found
kill $daemon
wait $daemon || true
`
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := g.command(ctx, "apply", "-f", "-")
	cmd.Args = append([]string{p.script(), "sh", "-ec", journald, "sh"}, cmd.Args...)
	cmd.Path = cmd.Args[0]
	cmd.Stdin = strings.NewReader(example)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s %s", err, out, &stderr)
	}
	var entry map[string]any
	if err := json.Unmarshal(out, &entry); err != nil {
		t.Fatalf("%v: %q %s", err, out, &stderr)
	}
	for name, want := range map[string]string{"TAPGATE_COMMAND": "apply", "TAPGATE_RESULT": "done", "PRIORITY": "5", "_UID": "0", "SYSLOG_IDENTIFIER": "tapgate"} {
		if entry[name] != want {
			t.Errorf("%s is %v, want %s: %s", name, entry[name], want, out)
		}
	}
	if text, _ := entry["TAPGATE_CHANGES"].(string); !strings.Contains(text, "eth3") {
		t.Errorf("changes: %q", text)
	}
	g.must("detach")
}

// What an agent changes by itself is on record as well.
func TestAuditOfAgent(t *testing.T) {
	g := newGateway(t)
	p := &auditPlaces{g: g}
	var next func() string
	p.journal, next = inbox(t)
	g.apply(example + "nat: {masquerade: [{from: internal, to: external}]}\n")
	cmd := g.command(g.Context(), "agent", "--listen", "")
	cmd.Args = append([]string{p.script()}, cmd.Args...)
	cmd.Path = cmd.Args[0]
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if out, err := exec.Command("ip", "-n", g.Gateway.Name, "address", "add", "203.0.113.77/24", "dev", "eth0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f := nativeFields(t, next())
	if f["TAPGATE_COMMAND"] != "agent" || !strings.Contains(f["TAPGATE_CHANGES"], "203.0.113.77") || !slices.Contains([]string{"5"}, f["PRIORITY"]) {
		t.Errorf("%q", f)
	}
}
