package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
)

// demoLeftovers lists namespaces, folders and mounts of demos of that process.
func demoLeftovers(t *testing.T, pid int) []string {
	t.Helper()
	stem := fmt.Sprintf("tgdemo-%d-", pid)
	var all []string
	for _, dir := range []string{"/run/netns", os.TempDir()} {
		found, err := filepath.Glob(filepath.Join(dir, stem+"*"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, stem) {
			all = append(all, line)
		}
	}
	return all
}

func TestDemo(t *testing.T) {
	for _, kind := range []string{"auto", "clsact"} {
		var out, talk bytes.Buffer
		err := run(&env{stdin: strings.NewReader(""), stdout: &out, stderr: &talk}, []string{"demo", "--attach-kind", kind})
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", kind, err, &out, &talk)
		}
		text := out.String()
		_, text, _ = strings.Cut(text, "The sensor saw")
		sensor, rest, _ := strings.Cut(text, "The host outside saw")
		outside, rest, _ := strings.Cut(rest, "The host outside connects")
		forward, rest, _ := strings.Cut(rest, "$ tapgate flows")
		flows, rest, _ := strings.Cut(rest, "The sensor pings")
		escape, rest, _ := strings.Cut(rest, "$ tapgate status")
		for _, c := range []struct {
			where, text, want string
			times             int
		}{
			{"sensor", sensor, "IP 192.168.3.2 > 203.0.113.8: ICMP echo request", demoPings},
			{"sensor", sensor, "IP 203.0.113.8 > 192.168.3.2: ICMP echo reply", demoPings},
			{"sensor", sensor, " > ", 2 * demoPings},
			{"outside", outside, "IP 203.0.113.1 > 203.0.113.8: ICMP echo request", demoPings},
			{"outside", outside, "IP 203.0.113.8 > 203.0.113.1: ICMP echo reply", demoPings},
			{"outside", outside, "192.168.", 0},
			{"forward", forward, " to 203.0.113.1:3389 and asks ", 1},
			{"forward", forward, "192.168.3.2:3389 met 203.0.113.8:", 1},
			{"flows", flows, "icmp 192.168.3.2:", 1},
			{"flows", flows, " > 203.0.113.8 ", 1},
			{"flows", flows, "tcp 192.168.3.2:3389 < 203.0.113.8:", 1},
			{"flows", flows, "as 203.0.113.1:3389\n", 1},
			{"flows", flows, "established", 1},
			{"escape", escape, "None of it arrived: the gateway dropped ", 1},
			{"counters", rest, "copied", 1},
			{"end", rest, "ended 2 translated flows", 1},
			{"counters", rest, map[string]string{"auto": "eth3", "clsact": "clsact"}[kind], 1},
			{"end", rest, "$ tapgate detach", 1},
		} {
			if n := strings.Count(c.text, c.want); n != c.times && (c.where != "counters" || n == 0) {
				t.Errorf("%s: %s: %q %d times, want %d:\n%s", kind, c.where, c.want, n, c.times, &out)
			}
		}
		if left := demoLeftovers(t, os.Getpid()); left != nil {
			t.Errorf("%s: left behind: %v", kind, left)
		}
	}
}

func TestDemoUsage(t *testing.T) {
	e := &env{stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	if err := run(e, []string{"demo", "--netns", "/proc/self/ns/net"}); exitCode(err) != exitUsage {
		t.Errorf("--netns: %v", err)
	}
	e.missingCaps = func() []string { return []string{"CAP_NET_ADMIN"} }
	if err := run(e, []string{"demo"}); exitCode(err) != exitFailed || !strings.Contains(err.Error(), "root") {
		t.Errorf("without rights: %v", err)
	}
}

// deafBackend changes nothing and says all is well, or fails.
type deafBackend struct {
	backend
	err error
}

func (b deafBackend) Apply(loader.Options, loader.Config) (*loader.Result, error) {
	return &loader.Result{}, b.err
}
func (deafBackend) Detach(loader.Options) (*loader.Result, error)     { return &loader.Result{}, nil }
func (deafBackend) Open(loader.Options, loader.Mode) (gateway, error) { return deafGateway{}, nil }

type deafGateway struct{ gateway }

func (deafGateway) Status() (*loader.Status, error) { return &loader.Status{}, nil }
func (deafGateway) Source() string                  { return demoConfig }
func (deafGateway) File() loader.SourceFile         { return loader.SourceFile{} }
func (deafGateway) Close() error                    { return nil }

func TestDemoFailsWithoutCopies(t *testing.T) {
	var out, talk bytes.Buffer
	e := &env{stdin: strings.NewReader(""), stdout: &out, stderr: &talk, backend: deafBackend{}}
	err := run(e, []string{"demo"})
	if exitCode(err) != exitFailed {
		t.Fatalf("exit code %d: %v\n%s", exitCode(err), err, &out)
	}
	// Without a gateway that translates, nobody answers either.
	said := strings.Join(errorLines(err), "\n")
	for _, want := range []string{fmt.Sprintf("got 0 replies to %d pings", demoPings), "the sensor did not see, bit for bit: 192.168.3.2 > 203.0.113.8"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in what it says:\n%s", want, said)
		}
	}
	if left := demoLeftovers(t, os.Getpid()); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestJudge(t *testing.T) {
	host := func(a string) *lab.Host { return &lab.Host{Addr: netip.MustParseAddr(a)} }
	l := &lab.Lab{Servers: []*lab.Host{host("192.168.3.2")}, Outside: []*lab.Host{host("203.0.113.8")}, Gateway: host("203.0.113.1")}
	both := func(inside string) []ping {
		var all []ping
		for i := range 2 * demoPings {
			p := ping{src: netip.MustParseAddr(inside), dst: l.Outside[0].Addr, seq: i / 2, reply: i%2 == 1}
			if p.reply {
				p.src, p.dst = p.dst, p.src
			}
			p.packet = fmt.Append(nil, inside, i)
			all = append(all, p)
		}
		return all
	}
	for _, c := range []struct {
		name   string
		want   string // in the error; "" for none
		change func(replies *int, server, sensor, outside *[]ping)
	}{
		{"all well", "", func(*int, *[]ping, *[]ping, *[]ping) {}},
		{"reply lost", "2 replies", func(r *int, _, _, _ *[]ping) { *r = 2 }},
		{"one missing", "did not see", func(_ *int, _, s, _ *[]ping) { *s = (*s)[1:] }},
		{"one twice", "saw 2 times", func(_ *int, _, s, _ *[]ping) { *s = append(*s, (*s)[0]) }},
		{"a bit changed", "did not send", func(_ *int, _, s, _ *[]ping) { (*s)[3].packet = []byte("x") }},
		{"no NAT", "another address", func(_ *int, _, _, o *[]ping) { *o = both("192.168.3.2") }},
		{"copies after NAT", "did not see", func(_ *int, _, s, _ *[]ping) { *s = both("203.0.113.1") }},
		{"server not seen", "sent and received 0", func(_ *int, s, c, _ *[]ping) { *s, *c = nil, nil }},
		{"server has NAT address", "not its own", func(_ *int, s, c, _ *[]ping) { *s, *c = both("203.0.113.1"), both("203.0.113.1") }},
	} {
		replies, server, sensor, outside := demoPings, both("192.168.3.2"), both("192.168.3.2"), both("203.0.113.1")
		c.change(&replies, &server, &sensor, &outside)
		err := judge(replies, server, sensor, outside, l)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

const demoStopEnv = "TAPGATE_TEST_DEMO_STOP_AT"

// TestDemoProcess is not a test: it is the demo in a process of its own, which
// stands still when it has printed a given text until a signal comes.
func TestDemoProcess(t *testing.T) {
	at, ok := os.LookupEnv(demoStopEnv)
	if !ok {
		return
	}
	e := &env{stdin: os.Stdin, stdout: &stopper{at: at}, stderr: os.Stderr}
	err := run(e, []string{"demo"})
	for _, line := range errorLines(err) {
		fmt.Fprintln(os.Stderr, line)
	}
	os.Exit(exitCode(err))
}

type stopper struct{ at string }

func (s *stopper) Write(p []byte) (int, error) {
	if s.at != "" && bytes.Contains(p, []byte(s.at)) {
		s.at = ""
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		defer signal.Stop(signals)
		if n, err := os.Stdout.Write(p); err != nil {
			return n, err
		}
		<-signals
		return len(p), nil
	}
	return os.Stdout.Write(p)
}

// demoStoppedAt starts a demo and returns when it has printed that text.
func demoStoppedAt(t *testing.T, text string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestDemoProcess$")
	cmd.Env = append(os.Environ(), demoStopEnv+"="+text)
	var talk bytes.Buffer
	cmd.Stderr = &talk
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(said, []byte(text)) {
		n, err := out.Read(buf)
		said = append(said, buf[:n]...)
		if err != nil {
			_ = cmd.Wait()
			t.Fatalf("demo ended before %q: %s%s", text, said, &talk)
		}
	}
	return cmd, &talk
}

func TestDemoInterrupted(t *testing.T) {
	points := []string{
		"A gateway in", "$ tapgate apply", "The server pings", "The sensor saw", "The host outside connects", "$ tapgate flows",
		"The sensor pings", "$ tapgate status", "$ tapgate detach",
	}
	for i, at := range points {
		cmd, talk := demoStoppedAt(t, at)
		s := []os.Signal{syscall.SIGINT, syscall.SIGTERM}[i%2]
		if err := cmd.Process.Signal(s); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(talk.String(), "interrupted") {
			t.Errorf("%v at %q: exit code %d, %s", s, at, code, talk)
		}
		if left := demoLeftovers(t, cmd.Process.Pid); left != nil {
			t.Errorf("%v at %q: left behind: %v", s, at, left)
		}
	}
}

func TestDemoRemovesAKilledDemo(t *testing.T) {
	cmd, _ := demoStoppedAt(t, "The server pings")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if len(demoLeftovers(t, cmd.Process.Pid)) == 0 {
		t.Fatal("nothing left behind: the test tests nothing")
	}
	var talk bytes.Buffer
	e := &env{stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &talk, backend: deafBackend{err: errors.New("deaf")}}
	_ = run(e, []string{"demo"}) // fails: the backend is deaf
	if left := demoLeftovers(t, cmd.Process.Pid); left != nil {
		t.Errorf("left behind: %v", left)
	}
	if !slices.ContainsFunc(strings.Split(talk.String(), "\n"), func(s string) bool { return strings.Contains(s, "killed demo") }) {
		t.Errorf("says nothing of it: %s", &talk)
	}
}
