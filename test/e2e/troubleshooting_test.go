package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tapgate/test/lab"
)

// patient is a gateway with something wrong, where the page's commands are typed.
type patient struct {
	*gate
	file  string                   // stands for /etc/tapgate/tapgate.yaml
	units string                   // a root folder that systemctl asks about
	path  string                   // where tapgate is found, bound to this gateway
	ssh   func(line string) result // how the user is at the gateway, if not at its console
}

// The gateway that the page speaks of.
const troubleConfig = example + `nat:
  masquerade:
    - {from: internal, to: external}
  forwards:
    - {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.2:3389"}
`

// Every cause on the troubleshooting page is made, and what the page tells to type is
// typed: the answers must be those of the page, and what it tells to do must help.
func TestTroubleshooting(t *testing.T) {
	t.Parallel()
	causes, symptoms := readPage(t, troubleshootingPage)
	tried := map[string]bool{}
	for _, c := range causes {
		_, made := ailments[c.name]
		switch {
		case tried[c.name]:
			t.Errorf("%q is on the page twice", c.name)
		case !made:
			t.Errorf("%q is on the page, and no trouble of that name is made here", c.name)
		case len(c.commands) == 0:
			t.Errorf("%q has nothing to type", c.name)
		}
		tried[c.name] = true
	}
	for name := range ailments {
		if !tried[name] {
			t.Errorf("%q is made here, and the page does not tell of it", name)
		}
	}
	for _, s := range symptoms {
		if !strings.HasPrefix(s, "See also") && !hasCause(causes, s) {
			t.Errorf("%q has no cause on the page", s)
		}
	}
	for _, c := range causes {
		made, ok := ailments[c.name]
		if !ok {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, made.labs...)
			made.make(p)
			for _, command := range c.commands {
				p.try(command)
			}
		})
	}
}

// ailments are all causes on the page, by their headings.
var ailments = func() map[string]ailment {
	all := map[string]ailment{}
	for _, list := range []map[string]ailment{tapAilments, gatewayAilments, forwardAilments, stateAilments} {
		maps.Copy(all, list)
	}
	return all
}()

// ailment brings a trouble about.
type ailment struct {
	make func(*patient)
	labs []lab.Option
}

func hasCause(causes []*pageCause, symptom string) bool {
	for _, c := range causes {
		if c.symptom == symptom {
			return true
		}
	}
	return false
}

func newPatient(t *testing.T, opts ...lab.Option) *patient {
	t.Helper()
	g := newGateLab(t, append([]lab.Option{lab.Servers(1), lab.Outside(1)}, opts...)...)
	p := &patient{gate: g, file: filepath.Join(g.Dir, "tapgate.yaml"), units: filepath.Join(g.Dir, "root"), path: filepath.Join(g.Dir, "bin")}
	script := fmt.Sprintf("#!/bin/sh\nexec %q \"$@\" --netns %s --bpffs %s\n", absolute(t, binary), g.Gateway.Name, g.bpffs)
	p.write(filepath.Join(p.path, "tapgate"), script)
	if err := os.Chmod(filepath.Join(p.path, "tapgate"), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

func (p *patient) write(file, text string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// use writes the configuration file and puts it in force.
func (p *patient) use(config string) {
	p.t.Helper()
	p.write(p.file, config)
	p.apply(config)
}

func (p *patient) hosts() map[string]*lab.Host {
	return map[string]*lab.Host{"": p.Gateway, "server": p.Servers[0], "outside": p.Outside[0], "sensor": p.Sensor, "mgmt": p.Mgmt}
}

// typed runs a line of shell at a host, as its user types it, but that paths lead into
// folders of the test.
func (p *patient) typed(host, line string) (output string, err error) {
	p.t.Helper()
	h := p.hosts()[host]
	if h == nil {
		p.t.Fatalf("no host %q", host)
	}
	line = strings.NewReplacer("/etc/tapgate/tapgate.yaml", p.file, "systemctl ", "systemctl --root="+p.units+" ").Replace(line)
	if host == "" && p.ssh != nil {
		r := p.ssh(line)
		if r.code != 0 {
			err = fmt.Errorf("exit code %d", r.code)
		}
		return r.stdout + r.stderr, err
	}
	ctx, cancel := context.WithTimeout(p.Context(), gateWait)
	defer cancel()
	cmd := h.Command(ctx, "bash", "-c", line)
	cmd.Env = append(os.Environ(), "PATH="+p.path+":"+os.Getenv("PATH"), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return strings.ReplaceAll(string(out), p.file, "/etc/tapgate/tapgate.yaml"), err
}

// do is for what brings the trouble about: it has to work.
func (p *patient) do(host string, lines ...string) {
	p.t.Helper()
	for _, line := range lines {
		if out, err := p.typed(host, line); err != nil {
			p.t.Fatalf("%s$ %s: %v\n%s", host, line, err, out)
		}
	}
}

// try types a command of the page until it is answered as the page says: counters and
// neighbours need their time.
func (p *patient) try(c pageCommand) {
	p.t.Helper()
	var out, lack string
	var err error
	for end := time.Now().Add(gateWait); ; time.Sleep(100 * time.Millisecond) {
		out, err = p.typed(c.host, c.text)
		if lack = c.unanswered(out); lack == "" && (err == nil || len(c.wants) > 0) {
			p.t.Logf("%s\n%s", c, out)
			return
		}
		if time.Now().After(end) || lack == "" {
			break
		}
	}
	if lack == "" {
		p.t.Fatalf("%s\n%v:\n%s", c, err, out)
	}
	p.t.Fatalf("%s\nthe page says it answers\n\t%s\nand it answers (%v)\n%s", c, lack, err, out)
}

// runs starts a line of shell at a host that goes on until the test ends.
func (p *patient) runs(host, line string) {
	p.t.Helper()
	cmd := p.hosts()[host].Command(p.Context(), "bash", "-c", "exec "+line)
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
}

// pings has the server ping the outside all the time.
func (p *patient) pings() { p.runs("server", "ping -q -i 0.1 203.0.113.8") }

// listens has a host answer connections to a port with what they say.
func (p *patient) listens(host string, port uint16) {
	p.t.Helper()
	h := p.hosts()[host]
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go echo(c)
			}
		}
	}()
}

func echo(c net.Conn) {
	defer c.Close()
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		if err == nil {
			_, err = c.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// needs fails the test where a tool that the page names is missing.
func (p *patient) needs(tools ...string) {
	p.t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			p.t.Fatalf("%v: scripts/deps.sh installs it", err)
		}
	}
}
