package e2e

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
)

// hostWall is a gateway whose host has a firewall of its own.
type hostWall struct {
	*gate
	// shell runs a line in the gateway's namespace.
	shell func(line string) (string, error)
}

const hostWallConfig = gateZones + `
nat:
  masquerade:
    - {from: internal, to: external}
  forwards:
    - {name: echo, in: external, proto: tcp, port: 3389, to: "192.168.3.3:3389"}
`

// newHostWall builds the networks and a host firewall by a script.
func newHostWall(t *testing.T, script string) *hostWall {
	t.Helper()
	w := &hostWall{gate: newGateLab(t)}
	w.shell = func(line string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		out, err := w.Gateway.Command(ctx, "sh", "-ec", line).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	w.run(script)
	return w
}

// newFirewalldWall is a hostWall with a firewalld and the recipe's zones.
func newFirewalldWall(t *testing.T, settings ...string) *hostWall {
	t.Helper()
	w := &hostWall{gate: newGateLab(t)}
	f, err := w.Gateway.StartFirewalld(settings...)
	if err != nil {
		t.Fatal(err)
	}
	w.shell = f.Shell
	w.run(`firewall-cmd --permanent --zone=external --change-interface=eth0
		firewall-cmd --permanent --zone=internal --change-interface=eth3
		firewall-cmd --permanent --zone=dmz --change-interface=eth2
		firewall-cmd --permanent --zone=trusted --change-interface=eth4
		firewall-cmd --permanent --zone=external --add-forward-port=port=3389:proto=tcp:toport=3389:toaddr=192.168.3.3
		firewall-cmd --reload`)
	return w
}

func (w *hostWall) run(script string) {
	w.t.Helper()
	if out, err := w.shell(script); err != nil {
		w.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// check returns what tapgate says of the host's rules.
func (w *hostWall) check(config string) (found []loader.HostRule, problems []string) {
	w.t.Helper()
	r := w.tapgateIn(config, "check", "-f", "-", "--json")
	var report loader.Report
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil || report.Gateway == nil {
		w.t.Fatalf("check --json: %v\n%s", err, r)
	}
	if (r.code != 0) != (len(report.Problems) > 0) {
		w.t.Errorf("check with the problems %q: %s", report.Problems, r)
	}
	return report.Gateway.HostRules, report.Problems
}

// kind are those of a kind, which all have commands.
func (w *hostWall) kind(found []loader.HostRule, kind string) (list []loader.HostRule) {
	w.t.Helper()
	for _, h := range found {
		if h.Kind != kind {
			continue
		}
		list = append(list, h)
		if len(h.Commands) == 0 && kind != loader.HostMasqueradesOthers {
			w.t.Errorf("no command: %+v", h)
		}
	}
	return list
}

// obey runs the commands of what was found, as a user copies them.
func (w *hostWall) obey(found []loader.HostRule) {
	w.t.Helper()
	for _, h := range found {
		for _, c := range h.Commands {
			w.t.Logf("run: %s", c)
			w.run(c)
		}
	}
}

// wall requires that these of "forward" and "out" do not pass, and the others do.
func (w *hostWall) wall(stopped ...string) {
	w.t.Helper()
	for _, way := range []struct {
		name   string
		from   *lab.Host
		to     netip.AddrPort
		server *lab.Host
		at     netip.AddrPort
	}{
		{"forward", w.out[0], netip.AddrPortFrom(w.outside(false), 3389), w.in[1], netip.AddrPortFrom(w.in[1].Addr, 3389)},
		{"out", w.in[0], netip.AddrPortFrom(w.out[0].Addr, 7007), w.out[0], netip.AddrPortFrom(w.out[0].Addr, 7007)},
	} {
		// What is dropped in silence must be waited for; it cannot come late.
		wait := gateWait
		if slices.Contains(stopped, way.name) {
			wait = time.Second
		}
		if passes := w.echoes(way.from, way.to, way.server, way.at, wait); passes == slices.Contains(stopped, way.name) {
			w.t.Errorf("%s passes: %v", way.name, passes)
		}
	}
}

// echoes says whether a connection is made and carries a word there and back.
func (w *hostWall) echoes(from *lab.Host, to netip.AddrPort, server *lab.Host, at netip.AddrPort, wait time.Duration) bool {
	w.t.Helper()
	var l net.Listener
	if err := server.Do(func() (err error) { l, err = net.Listen("tcp", at.String()); return err }); err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 16)
		n, _ := c.Read(buf) // the other end tells what is missing
		_, _ = c.Write(buf[:n])
		c.Close()
	}()
	var c net.Conn
	d := net.Dialer{Timeout: wait}
	if err := from.Do(func() (err error) { c, err = d.Dial("tcp", to.String()); return err }); err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(gateWait))
	_, _ = c.Write([]byte("word"))
	buf := make([]byte, 4)
	n, _ := c.Read(buf)
	return string(buf[:n]) == "word"
}

// refused requires that apply refuses a masquerade of the host and changes nothing,
// and returns what check says of it.
func (w *hostWall) refused(config string) []loader.HostRule {
	w.t.Helper()
	found, problems := w.check(config)
	masquerades := w.kind(found, loader.HostMasquerades)
	if len(masquerades) == 0 || len(problems) == 0 {
		w.t.Fatalf("the host's masquerade is not seen: %+v, problems %q", found, problems)
	}
	r := w.tapgateIn(config, "apply", "-f", "-")
	if r.code != 2 || !strings.Contains(r.stderr, "--cut-over") {
		w.t.Fatalf("apply beside a masquerade of the host: %s", r)
	}
	for _, h := range masquerades {
		if !h.Certain || !strings.Contains(r.stderr, strings.Join(h.Commands, " && ")) {
			w.t.Errorf("apply does not tell how to remove %+v:\n%s", h, r.stderr)
		}
	}
	if r := w.tapgate("status"); r.code != 3 {
		w.t.Fatalf("status after a refusal: %s", r)
	}
	return masquerades
}

// walledIn goes all the way: the masquerade is refused, its removal is what the command
// says, then what the host drops is told, is dropped indeed, and passes after the
// commands that were printed.
func (w *hostWall) walledIn(stopped ...string) {
	w.t.Helper()
	w.obey(w.refused(hostWallConfig))
	found, problems := w.check(hostWallConfig)
	if left := w.kind(found, loader.HostMasquerades); len(left) > 0 || len(problems) > 0 {
		w.t.Fatalf("after the command that removes it: %+v, problems %q", left, problems)
	}
	drops := w.kind(found, loader.HostDrops)
	r := w.tapgateIn(hostWallConfig, "apply", "-f", "-")
	if r.code != 0 {
		w.t.Fatalf("apply: %s", r)
	}
	for _, h := range drops {
		for _, c := range h.Commands {
			if !strings.Contains(r.stderr, c) {
				w.t.Errorf("apply does not print %q:\n%s", c, r.stderr)
			}
		}
	}
	w.wall(stopped...)
	for way, name := range map[string]string{"forward": "forward echo", "out": "internal to external"} {
		told := slices.ContainsFunc(drops, func(h loader.HostRule) bool { return h.Certain && slices.Contains(h.Concerns, name) })
		if told != slices.Contains(stopped, way) {
			w.t.Errorf("told of %s: %v: %+v", name, told, drops)
		}
	}
	w.obey(drops)
	w.wall()
	found, _ = w.check(hostWallConfig)
	if left := w.kind(found, loader.HostDrops); len(left) > 0 {
		w.t.Errorf("after the commands check says: %+v", left)
	}
}
