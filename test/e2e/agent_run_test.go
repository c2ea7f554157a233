package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// The log of translations has each start and end, with the endpoints that both sides
// saw, and what is there when it begins; SIGHUP opens the file anew.
func TestAgentFlowLog(t *testing.T) {
	t.Parallel()
	g := newGate(t, metricsConfig)
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	early := g.mapUDP(in, 5000, out, 53, false)

	file := filepath.Join(g.Dir, "flows.json")
	a := g.agent(nil, "--listen", "", "--log-flows", file)
	// find waits for a line about a translation.
	find := func(file, event string, outside netip.AddrPort) (found loader.TranslationEvent) {
		t.Helper()
		retry(t, func() error {
			for _, e := range jsonLines[loader.TranslationEvent](t, file) {
				if e.Event == event && e.Outside == outside.String() {
					found = e
					return nil
				}
			}
			return fmt.Errorf("no line says %s of %s", event, outside)
		})
		return found
	}
	present := find(file, "present", early)
	before := time.Now()
	s := g.connect(in, 6000, out, 80, false)
	s.talk()
	start := find(file, "start", s.ext)
	if start.Proto != "tcp" || start.Inside != s.a.String() || start.Remote != s.b.String() || start.InsideZone != "internal" ||
		start.OutsideZone != "external" || start.Origin != "masquerade" || start.Rule != "all" || start.TranslationTotals != nil ||
		start.Time.Before(before.Add(-time.Second)) || start.Time.After(time.Now()) || start.Time.Sub(start.Started).Abs() > 20*time.Millisecond {
		t.Errorf("start: %+v", start)
	}
	if !present.Started.Before(start.Started) || present.Proto != "udp" || present.Inside != in.at(false, 5000).String() {
		t.Errorf("present: %+v", present)
	}
	forwarded := g.accept(out, 7000, netip.AddrPortFrom(g.outside(false), 4000), g.stationAt(g.in[0], 2), 4000)
	if f := find(file, "start", forwarded.ext); f.Origin != "forward" || f.Rule != "web" || f.Inside != forwarded.a.String() || f.Remote != forwarded.b.String() {
		t.Errorf("forward: %+v", f)
	}

	old := file + ".1"
	if err := os.Rename(file, old); err != nil {
		t.Fatal(err)
	}
	a.signal(syscall.SIGHUP)
	a.says("msg=reloading")
	retry(t, func() error { _, err := os.Stat(file); return err })
	g.must("flows", "flush", "--addr", s.a.Addr().String(), "--port", strconv.Itoa(int(s.a.Port())))
	end := find(file, "end", s.ext)
	if end.TranslationTotals == nil || !end.Started.Equal(start.Started) || end.PacketsOut != 3 || end.PacketsIn != 2 || end.BytesOut == 0 || end.BytesIn == 0 ||
		end.Last.Before(end.Started) || end.Time.Before(end.Last) || end.Rule != "all" {
		t.Errorf("end: %+v %+v", end, end.TranslationTotals)
	}
	for _, e := range jsonLines[loader.TranslationEvent](t, old) {
		if e.Event == "end" {
			t.Errorf("before its end: %+v", e)
		}
	}
	g.must("detach")
	find(file, "end", early)
	a.end()
	lines := jsonLines[loader.TranslationEvent](t, file)
	if last := lines[len(lines)-1]; last.Event != "stop" {
		t.Errorf("the last line: %+v", last)
	}
	if first := jsonLines[loader.TranslationEvent](t, old)[0]; first.Event != "begin" {
		t.Errorf("the first line: %+v", first)
	}
}

// systemd hears that the agent is ready, works, reloads and stops.
func TestAgentTellsSystemd(t *testing.T) {
	t.Parallel()
	g := newGate(t, metricsConfig)
	for _, name := range []string{filepath.Join(g.Dir, "notify"), "@" + filepath.Base(g.Dir) + "-notify"} {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(name, "@") { // abstract names belong to network namespaces
			c.Close()
			err = g.Gateway.Do(func() (err error) {
				c, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(4 * gateWait)); err != nil {
			t.Fatal(err)
		}
		hear := func(what string) {
			t.Helper()
			buf := make([]byte, 4096)
			for {
				n, err := c.Read(buf)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if strings.HasPrefix(string(buf[:n]), what) {
					return
				}
			}
		}
		a := g.agent([]string{"NOTIFY_SOCKET=" + name}, "--listen", "")
		hear("READY=1")
		hear("WATCHDOG=1")
		a.signal(syscall.SIGHUP)
		hear("RELOADING=1\nMONOTONIC_USEC=")
		hear("READY=1")
		hear("WATCHDOG=1") // with the look that SIGHUP asks for, or the next one
		a.end()
		hear("STOPPING=1")
	}
}

// The agent has the capabilities that it needs and no others, in all its threads,
// and does its work with them.
func TestAgentCapabilities(t *testing.T) {
	t.Parallel()
	g := newGate(t, metricsConfig)
	a := g.agent(nil, "--listen", "", "--measure-programs", "--log-flows", filepath.Join(g.Dir, "flows.json"))
	const want = 1<<unix.CAP_BPF | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_PERFMON | 1<<unix.CAP_SYS_ADMIN
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", a.cmd.Process.Pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads %v, %v", threads, err)
	}
	for _, file := range threads {
		raw, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			name, value, _ := strings.Cut(line, ":")
			switch name {
			case "CapPrm", "CapEff", "CapBnd":
				if have, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err != nil || have != want {
					t.Errorf("%s: %s", file, line)
				}
			}
		}
	}
	// Another address outside, and a program that was taken away, are its business.
	ip := func(args string) {
		t.Helper()
		if out, err := g.Gateway.Command(context.Background(), "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	ip("addr del 203.0.113.1/24 dev eth0")
	ip("addr add 203.0.113.77/24 dev eth0")
	retry(t, func() error {
		if out := g.status().Gateway.Outside[0]; out.IPv4 != "203.0.113.77" {
			return fmt.Errorf("outside is %+v", out)
		}
		return nil
	})
	serial := g.status().Serial
	ip("link add eth0b type veth peer name eth0c")
	ip("link del eth3")
	ip("link set eth0b name eth3 up")
	ip("addr add 192.168.3.1/24 dev eth3")
	retry(t, func() error {
		if s := g.status(); s.Serial == serial || len(s.Members) == 0 {
			return fmt.Errorf("not applied again: %q", s.Problems)
		}
		return nil
	})
	a.end()
}

// An address that is taken keeps no agent from its work, unless it was asked for.
func TestAgentListens(t *testing.T) {
	t.Parallel()
	g := newGate(t, metricsConfig)
	client := g.client()
	other := g.agent(nil)
	get(t, client, agentMetrics)
	if err := other.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		out, err := g.Gateway.Command(ctx, binary, append([]string{"agent", "--bpffs", g.bpffs}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err == nil || !strings.Contains(out, "serves no metrics") || !strings.Contains(out, "another agent follows here already") {
		t.Errorf("a second agent: %v\n%s", err, out)
	}
	if out, err := run("--listen", "127.0.0.1:9435"); err == nil || !strings.Contains(out, "tapgate: listen at 127.0.0.1:9435: ") {
		t.Errorf("asked for an address that is taken: %v\n%s", err, out)
	}
	if err := other.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	other.end()
	for _, c := range []struct{ args, want string }{
		{"--listen 127.0.0.1", "--listen \"127.0.0.1\": must be ADDR:PORT"},
		{"--log-flows /nonexistent/flows", "log of translations: open /nonexistent/flows"},
	} {
		if out, err := run(strings.Fields(c.args)...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v\n%s", c.args, err, out)
		}
	}
}
