package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tapgate/loader"
	pkt "tapgate/test/packet"
)

// rule is what all lists of rules say of each.
type rule struct {
	Name, Last string
	Flows      uint64
}

// rules reads a list of rules.
func (g *gate) rules(kind string) map[string]rule {
	g.t.Helper()
	var list []rule
	r := g.must(kind, "list", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		g.t.Fatalf("%s list: %v\n%s", kind, err, r)
	}
	all := map[string]rule{}
	for _, r := range list {
		all[r.Name] = r
	}
	return all
}

// flowsBy is "flows --json" with a filter.
func (g *gate) flowsBy(filter ...string) (flows []loader.Flow) {
	g.t.Helper()
	r := g.must(append([]string{"flows", "--json"}, filter...)...)
	if err := json.Unmarshal([]byte(r.stdout), &flows); err != nil {
		g.t.Fatalf("flows: %v\n%s", err, r)
	}
	return flows
}

// says requires that a command says these on both outputs together.
func (g *gate) says(r result, want ...string) {
	g.t.Helper()
	for _, w := range want {
		if !strings.Contains(r.stdout+r.stderr, w) {
			g.t.Errorf("it does not say %q: %s", w, r)
		}
	}
}

// A forward and a masquerade rule come and go by commands while flows are open:
// what a rule admitted goes on until it is flushed.
func TestCommandsOfRules(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateZones+"nat: {}\n")
	in, out := g.pair()
	front := netip.AddrPortFrom(g.outside(false), 8080)
	forward := []string{"forward", "add", "web", "--in", "external", "--proto", "tcp", "--port", "8080", "--to", in.at(false, 80).String()}

	g.says(g.must(forward...), "+ forward web: tcp 8080 of zone external to "+in.at(false, 80).String())
	g.says(g.must(forward...), `already so: forward "web" is `)
	through := g.accept(out, 5000, front, in, 80)
	through.talk()
	if r := g.rules("forward")["web"]; r.Flows != 1 || r.Last == "" {
		t.Errorf("the forward after one flow: %+v", r)
	}
	flows := g.flowsBy("--port", "8080", "--proto", "tcp", "--zone", "external", "--addr", out.Addr.String())
	if len(flows) != 1 || flows[0].Rule != "web" || flows[0].Origin != "forward" || flows[0].State != "established" ||
		flows[0].Inside != in.at(false, 80).String() || flows[0].Outside != front.String() || flows[0].Remote != out.at(false, 5000).String() {
		t.Errorf("flows through the forward: %+v", flows)
	}
	if flows := g.flowsBy("--port", "8081"); len(flows) != 0 {
		t.Errorf("flows of another port: %+v", flows)
	}

	g.says(g.must("forward", "del", "web"), "- forward web: ", "its flows go on (1); to end them: tapgate forward del web --flush")
	through.talk()
	refused := out.tcp(5001, front, pkt.SYN, 1, 0, "")
	g.refused(sameSegment(refused), out, in)
	if all := g.rules("forward"); len(all) != 0 {
		t.Errorf("forwards after del: %v", all)
	}
	g.says(g.must("forward", "del", "web", "--flush"), `already so: there is no forward "web"`, "1 flow of forward web flushed")
	g.refused(sameSegment(through.sendIn(pkt.ACK|pkt.PSH, g.text())), out, in)
	g.says(g.must("forward", "del", "web", "--flush"), "0 flows of forward web flushed")

	g.must("masquerade", "add", "--from", "internal", "--to", "external", "--ports", "20000-20999")
	a, b := g.connect(in, 6000, out, 80, false), g.connect(in, 6001, out, 80, false)
	for _, s := range []*stream{a, b} {
		s.talk()
		if port := s.ext.Port(); s.ext.Addr() != g.outside(false) || port < 20000 || port > 20999 {
			t.Errorf("translated to %s", s.ext)
		}
	}
	if r := g.rules("masquerade")["internal-external"]; r.Flows != 2 {
		t.Errorf("the masquerade rule after two flows: %+v", r)
	}
	g.says(g.must("masquerade", "del", "internal-external"), "its flows go on (2)")
	a.talk()
	g.says(g.must("flows", "flush", "--port", "6000"), "1 flow flushed")
	g.refused(sameSegment(a.sendIn(pkt.ACK|pkt.PSH, g.text())), out, in)
	b.talk()
	g.says(g.must("masquerade", "del", "internal-external", "--flush"), "1 flow of masquerade rule internal-external flushed")
	g.refused(sameSegment(b.sendIn(pkt.ACK|pkt.PSH, g.text())), out, in)
	g.says(g.must("flows"), "no flows")
	g.says(g.must("flows", "flush", "--all"), "already so: no such flows")
	// Without any rule it is still a gateway, not a router.
	if s := g.status(); s.Gateway == nil {
		t.Error("the last rule took the gateway along")
	}
}

// What is refused of a rule names the flag, and changes nothing.
func TestCommandsRefused(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateServers)
	before := g.status().Serial
	for _, c := range []struct{ args, want string }{
		{"forward add x --in internal --proto tcp --port 81 --to 192.168.3.2:80", "--in: "},
		{"forward add x --in external --proto tcp --port 81 --to 192.168.9.2:80", "--to: "},
		{"forward add x --in external --proto tcp --port 3389 --to 192.168.3.2:80", `"rdp"`},
		{"forward add X --in external --proto tcp --port 81 --to 192.168.3.2:80", `forward name "X": use a-z`},
		{"masquerade add --from external --to internal", "--from: "},
		{"masquerade add x --from mgmt --to dmz", "--to: "},
		{"masquerade add x --from mgmt --to external --address 203.0.113.0/8", "--address: "},
	} {
		r := g.tapgate(strings.Fields(c.args)...)
		if r.code != 2 || r.stdout != "" || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: want exit code 2 and %q: %s", c.args, c.want, r)
		}
	}
	if after := g.status().Serial; after != before {
		t.Errorf("refused, and yet changed: %d changes, before %d", after, before)
	}
}

// The agent logs to standard error, is the only one of its gateway, is told by
// status, and ends with 0 when asked to.
func TestCommandAgent(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateServers)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	agent := g.command(ctx, "agent")
	talk, err := agent.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	agent.Stdout = &stdout
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	following := make(chan struct{})
	var read sync.WaitGroup
	read.Go(func() {
		lines := bufio.NewScanner(io.TeeReader(talk, &stderr))
		for told := false; lines.Scan(); {
			if !told && strings.Contains(lines.Text(), "msg=following") {
				told = true
				close(following)
			}
		}
	})
	select {
	case <-following:
	case <-ctx.Done():
		t.Error("the agent does not say that it follows")
	}
	if s := g.status(); s.Gateway == nil || !s.Gateway.Followed {
		t.Errorf("status does not know of the agent: %+v", s.Gateway)
	}
	if r := g.tapgate("agent"); r.code != 4 {
		t.Errorf("a second agent: %s", r)
	}
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	read.Wait() // before Wait closes the pipe
	if err := agent.Wait(); err != nil || stdout.Len() > 0 {
		t.Errorf("the agent ended with %v\nstdout:\n%s\nstderr:\n%s", err, &stdout, &stderr)
	}
	if s := g.status(); s.Gateway == nil || s.Gateway.Followed {
		t.Errorf("status still knows of the agent: %+v", s.Gateway)
	}
}

// One command explains what another then counts.
func TestCommandExplain(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateServers)
	in, out := g.pair()
	check := g.tapgateIn(gateServers, "check", "-f", "-")
	g.says(check, "outside     eth0 (external): 203.0.113.1, 2001:db8:113::1", "net.ipv4.ip_forward = 1", "the configuration can be put in force")
	g.says(g.must("explain", in.Addr.String(), out.Addr.String(), "tcp", "80"), "internal-external", "ids copies it", "pass")
	g.says(g.must("explain", out.Addr.String(), g.outside(false).String(), "tcp", "3389"), "rdp", "192.168.3.200:3389", "pass")
	g.says(g.must("explain", out.Addr.String(), in.Addr.String(), "tcp", "3389"), "drop")
	var x loader.Explanation
	r := g.must("explain", out.Addr.String(), g.outside(false).String(), "udp", "7005", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &x); err != nil || x.Forward == nil || x.Forward.Name != "rtp" || x.Verdict != "pass" {
		t.Errorf("%v: %s", err, r)
	}
	if r := g.tapgate("explain", fmt.Sprint(in.Addr), fmt.Sprint(out.Addr6), "tcp", "80"); r.code != 2 {
		t.Errorf("two versions of IP: %s", r)
	}
}
