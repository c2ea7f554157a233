package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/kernels"
	pkt "tapgate/test/packet"
)

const liberal = "net/netfilter/nf_conntrack_tcp_be_liberal"

// gatewaySysctl reads a setting of the gateway's namespace.
func (g *gateway) gatewaySysctl(name string) (value string) {
	g.t.Helper()
	err := g.Gateway.Do(func() error {
		text, err := os.ReadFile("/proc/sys/" + name)
		value = strings.TrimSpace(string(text))
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return value
}

// tcpLink is a TCP connection through the gateway, by both of its ends.
type tcpLink struct {
	name           string
	near, far      net.Conn
	inside, remote netip.AddrPort
}

// linkFrom connects an inside host to one outside.
func (g *gate) linkFrom(v6 bool) *tcpLink {
	g.t.Helper()
	from, to := g.in[0], g.out[0]
	at, accepted := g.listen(to, netip.AddrPortFrom(addrOf(to, v6), 0))
	c, err := g.dial(from, netip.AddrPortFrom(addrOf(from, v6), 0), at)
	if err != nil {
		g.t.Fatal(err)
	}
	return &tcpLink{name: fmt.Sprintf("from inside, IPv6 %t", v6), near: c, far: g.take(accepted), inside: c.LocalAddr().(*net.TCPAddr).AddrPort(), remote: at}
}

// linkIn connects an outside host to a forward.
func (g *gate) linkIn(port, to uint16) *tcpLink {
	g.t.Helper()
	at, accepted := g.listen(g.in[0], netip.AddrPortFrom(g.in[0].Addr, to))
	c, err := g.dial(g.out[1], netip.AddrPortFrom(g.out[1].Addr, 0), netip.AddrPortFrom(g.outside(false), port))
	if err != nil {
		g.t.Fatal(err)
	}
	return &tcpLink{name: "through a forward", near: c, far: g.take(accepted), inside: at, remote: c.LocalAddr().(*net.TCPAddr).AddrPort()}
}

// carry has much go both ways.
func (l *tcpLink) carry(t *testing.T, when string, size int) {
	t.Helper()
	for _, way := range [][2]net.Conn{{l.near, l.far}, {l.far, l.near}} {
		sent, got := noise(size), make([]byte, size)
		wrote := make(chan error, 1)
		deadline := time.Now().Add(2 * gateWait)
		_, _ = way[0].SetDeadline(deadline), way[1].SetDeadline(deadline)
		go func() {
			_, err := way[0].Write(sent)
			wrote <- err
		}()
		_, err := io.ReadFull(way[1], got)
		if err = errors.Join(err, <-wrote); err != nil || !bytes.Equal(sent, got) {
			t.Fatalf("%s: the connection %s does not go on: %v", when, l.name, err)
		}
	}
}

// Connection tracking has not seen the windows of fast flows move. Where the host's
// rules drop what it takes for invalid, flows go on all the same: while they are
// fast, when the kernel forwards again and connection tracking is strict as before,
// and when tapgate is gone.
func TestForwardingTracked(t *testing.T) {
	t.Parallel()
	g := newGateLab(t)
	kernels.Require(t, "nft_masquerade")
	if err := g.Gateway.Sysctl(liberal, "0"); err != nil {
		t.Fatal(err)
	}
	nft(t, g.gateway, "table inet host { chain forward { type filter hook forward priority filter; ct state invalid counter drop; }; }")
	config := gateZones + `
nat:
  masquerade: [{from: internal, to: external}]
  forwards: [{name: web, in: external, proto: tcp, port: 4000, to: "192.168.3.2:4001"}]
`
	g.apply(config)
	if got := g.gatewaySysctl(liberal); got != "1" {
		t.Fatalf("be_liberal is %s with a fast path", got)
	}
	plain := g.linkFrom(true) // IPv6 is not translated
	links := []*tcpLink{g.linkFrom(false), g.linkIn(4000, 4001), plain}
	const much = 3_000_000 // more than all windows
	for _, l := range links {
		l.carry(t, "fast", much)
		f := g.flowOf("tcp", l.inside, l.remote)
		if !f.Fast {
			t.Errorf("%s: not fast: %+v", l.name, f)
		}
	}
	g.apply("forwarding: kernel\n" + config)
	if got := g.gatewaySysctl(liberal); got != "0" {
		t.Errorf("be_liberal is %s when the kernel forwards again", got)
	}
	for _, l := range links {
		l.carry(t, "by the kernel again", 300_000)
		if f := g.flowOf("tcp", l.inside, l.remote); f.Fast {
			t.Errorf("%s: still fast: %+v", l.name, f)
		}
	}
	g.apply(config)
	for _, l := range links {
		l.carry(t, "fast again", much)
	}
	g.must("detach")
	if got := g.gatewaySysctl(liberal); got != "0" {
		t.Errorf("be_liberal is %s after detach", got)
	}
	plain.carry(t, "without tapgate", 300_000)
}

// What people are told of the forwarding: by check, apply, status, flows and explain.
func TestForwardingTold(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	in, out := g.pair()
	s := g.connect(in, 5000, out, 9000, false)
	s.talk()
	s.talk()
	tool := func(args ...string) string {
		t.Helper()
		r := g.must(args...)
		return r.stdout
	}
	wants := func(what, text string, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if !strings.Contains(text, p) {
				t.Errorf("%s does not say %q:\n%s", what, p, text)
			}
		}
	}
	explain := func() (x loader.Explanation) {
		t.Helper()
		err := json.Unmarshal([]byte(tool("explain", in.ip(false).String(), out.ip(false).String(), "tcp", "9000", "--sport", "5000", "--json")), &x)
		if err != nil || x.Forwarding == nil {
			t.Fatalf("explain: %v: %+v", err, x)
		}
		return x
	}
	wants("status", tool("status"), "\n  forwarding  fast\n")
	wants("flows", tool("flows"), "  fast\n", " yes\n")
	if f := g.flowOf("tcp", s.a, s.b); !f.Fast || f.FromOutside {
		t.Errorf("flow %+v", f)
	}
	if x := explain(); !x.Forwarding.Fast || x.Flow == nil {
		t.Errorf("explain: %+v", x)
	}
	wants("explain", tool("explain", in.ip(false).String(), out.ip(false).String(), "udp", "53"), "forwarding  fast: once both sides have spoken")
	wants("explain", tool("explain", in.ip(false).String(), out.ip(false).String(), "icmp"), "forwarding  kernel: only TCP and UDP")

	inHost(t, g.Gateway, "ip", "rule", "add", "fwmark", "7", "lookup", "100", "pref", "900")
	const why = `kernel ("ip rule" has a rule (900) that asks for the mark 0x7)`
	r := g.tapgateIn(gateBoth, "check", "-f", "-")
	wants("check", r.stdout, "\n  forwarding  "+why+"\n")
	wants("status", tool("status"), "\n  forwarding  fast\n", "forwarding is fast, and that does not go with this machine any more: ")
	r = g.tapgateIn(gateBoth, "apply", "-f", "-")
	wants("apply", r.stdout+r.stderr, "~ forwarding: fast -> "+why)
	wants("status", tool("status"), "\n  forwarding  "+why+"\n")
	s.talk()
	if f := g.flowOf("tcp", s.a, s.b); f.Fast {
		t.Errorf("by the kernel, flow %+v", f)
	}
	if x := explain(); x.Forwarding.Fast || !strings.Contains(x.Forwarding.Why, "the mark 0x7") {
		t.Errorf("explain: %+v", x.Forwarding)
	}
	inHost(t, g.Gateway, "ip", "rule", "del", "pref", "900")
	wants("status", g.status().Gateway.Forwarding.Reason, "that is so no longer, apply again")
}

// An agent changes the forwarding by itself, and traffic goes on.
func TestForwardingAgent(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	a := g.agent(nil)
	in, out := g.pair()
	s := g.connect(in, 5000, out, 9000, false)
	s.talk()
	for range 2 {
		inHost(t, g.Gateway, "ip", "rule", "add", "fwmark", "7", "lookup", "100", "pref", "900")
		retry(t, func() error {
			if f := g.status().Gateway.Forwarding; f.Mode != loader.ForwardingKernel {
				return fmt.Errorf("forwarding %s", f)
			}
			return nil
		})
		s.talk()
		inHost(t, g.Gateway, "ip", "rule", "del", "pref", "900")
		retry(t, func() error {
			if f := g.status().Gateway.Forwarding; f.Mode != loader.ForwardingFast {
				return fmt.Errorf("forwarding %s", f)
			}
			return nil
		})
		s.talk()
	}
	a.says(`msg="forwarding has changed" before=fast now="kernel (`)
}

// The agent writes down what policies with "log: true" drop, also what was dropped
// before it began, and nothing else.
func TestDenyLog(t *testing.T) {
	t.Parallel()
	const policies = `policies:
  - {name: no-telnet, from: internal, to: external, proto: tcp, ports: [23], action: drop, log: true}
  - {name: quiet, from: internal, to: external, proto: tcp, ports: [24], action: drop}
`
	g := newGate(t, gateBoth+policies)
	in, out := g.pair()
	in.tcp(5000, netip.AddrPortFrom(out.ip(false), 23), pkt.SYN, 1, 0, "")
	in.tcp(5001, netip.AddrPortFrom(out.ip(false), 24), pkt.SYN, 1, 0, "")
	line := func(policy, proto string, v6 bool, from, to uint16) string {
		return fmt.Sprintf("level=INFO msg=denied policy=%s reason=drop_policy from=internal in=eth3 to=external out=eth0 proto=%s src=%s sport=%d dst=%s dport=%d\n",
			policy, proto, in.ip(v6), from, out.ip(v6), to)
	}
	retry(t, func() error { // what it is to find has been dropped
		if n := g.status().Gateway.Policies[1].Flows; n == 0 {
			return errors.New("not dropped yet")
		}
		return nil
	})
	a := g.agent(nil)
	a.says(line("no-telnet", "tcp", false, 5000, 23))
	in.tcp(5002, netip.AddrPortFrom(out.ip(true), 23), pkt.SYN, 1, 0, "")
	a.says(line("no-telnet", "tcp", true, 5002, 23))
	// A policy that is newer than what the agent has read.
	g.apply(gateBoth + policies + "  - {name: later, from: internal, to: external, proto: udp, ports: [53], action: drop, log: true}\n")
	in.udp(5003, netip.AddrPortFrom(out.ip(false), 53), "question")
	a.says(line("later", "udp", false, 5003, 53))
	if log := a.log.String(); strings.Contains(log, "quiet") || strings.Count(log, "msg=denied") != 3 {
		t.Errorf("the agent logs more than it should:\n%s", log)
	}
}
