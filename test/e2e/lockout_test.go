package e2e

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"

	"tapgate/test/lab"
)

// sshSession is an admin who applies a file on the gateway, and then goes on working.
type sshSession struct {
	s     *sshd
	cmd   *lab.Cmd
	stdin io.WriteCloser
	lines chan string
}

// session logs in, from an address if one is given, and runs a command line of which
// each line of input comes back afterwards.
func (s *sshd) session(from *lab.Host, bind, to, line string) *sshSession {
	s.g.t.Helper()
	ctx, cancel := context.WithCancel(s.g.Context())
	cmd := s.command(ctx, from, to, line+"; cat")
	if bind != "" {
		cmd.Args = append([]string{cmd.Args[0], "-b", bind}, cmd.Args[1:]...)
	}
	in, out := io.Pipe()
	cmd.Stdout = out
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		s.g.t.Fatal(err)
	}
	a := &sshSession{s: s, cmd: cmd, stdin: stdin, lines: make(chan string, 100)}
	go func() {
		for lines := bufio.NewScanner(in); lines.Scan(); {
			a.lines <- lines.Text()
		}
	}()
	s.g.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
		out.Close()
	})
	return a
}

// says waits for a line with all of these.
func (a *sshSession) says(want ...string) bool {
	for deadline := time.After(gateWait); ; {
		select {
		case line := <-a.lines:
			if !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(line, w) }) {
				return true
			}
		case <-deadline:
			return false
		}
	}
}

// cut says whether nothing comes back any more.
func (a *sshSession) cut() bool {
	if _, err := io.WriteString(a.stdin, "are you there?\n"); err != nil {
		return true
	}
	for deadline := time.After(3 * time.Second); ; {
		select {
		case line := <-a.lines:
			if strings.Contains(line, "are you there?") {
				return false
			}
		case <-deadline:
			return true
		}
	}
}

const lockoutNAT = gateZones + `nat:
  masquerade: [{from: internal, to: external}]
`

// lockout is a way to lose the SSH connection in use, or what looks like one.
type lockout struct {
	name     string
	bind, to string // the two ends of the connection
	from     func(g *gateway) *lab.Host
	config   string
	refused  string   // "" if it is none
	place    string   // line and column
	mended   string   // a config that is not refused, if any
	goesOn   bool     // a forced apply leaves the connection
	setup    []string // "ip" in the gateway, and after "server: " there
}

func (g *gateway) outer() *lab.Host  { return g.Outside[0] }
func (g *gateway) server() *lab.Host { return g.Servers[0] }
func (g *gateway) mgmt() *lab.Host   { return g.Mgmt }

// What cuts off the admin who applies it is refused, and does cut him off when he
// insists. What looks similar is put in force, and he goes on.
func TestLockoutBySSH(t *testing.T) {
	t.Parallel()
	const (
		external = "203.0.113.1"
		far      = "10.9.0.7" // behind a router of the internal network
		tail     = "    - {name: web, in: external, proto: tcp, port: 80, to: \"192.168.3.2:80\"}\n"
	)
	forward := func(what string) string {
		return lockoutNAT + "  forwards:\n" + tail + "    - {name: jump, in: external, proto: tcp, to: \"192.168.3.2:22\", " + what + "}\n"
	}
	for _, c := range []lockout{
		{
			name: "a forward takes the port", from: (*gateway).outer, to: external, config: forward("port: 2222"), place: "16:",
			refused: `came to port 2222 of 203.0.113.1, which forward "jump" takes for itself: it would be cut off`,
			mended:  forward("port: 2223"),
		},
		{
			name: "a range of ports at this address", from: (*gateway).outer, to: external, place: "16:",
			config:  strings.Replace(forward("port: 2000-2999, address: 203.0.113.1"), ":22\"", ":2000-2999\"", 1),
			refused: `forward "jump" takes for itself`, mended: forward("port: 2222, address: 203.0.113.9"),
		},
		{
			name: "a forward for others only", from: (*gateway).outer, to: external, config: forward("port: 2222, sources: [198.51.100.0/24]"),
		},
		{
			name: "a forward of UDP", from: (*gateway).outer, to: external, config: strings.Replace(forward("port: 2222"), "proto: tcp, to", "proto: udp, to", 1),
		},
		{
			name: "a forward that only the outside meets", from: (*gateway).mgmt, to: "192.168.5.1", config: forward("port: 2222"),
		},
		{
			name: "from inside to the outside address", from: (*gateway).server, to: external, config: forward("port: 2222"), place: "16:",
			refused: "it goes on, but you could not log in there again", goesOn: true,
			mended: forward("port: 2222, sources: [198.51.100.0/24]"),
		},
		{
			name: "from inside to the inside address", from: (*gateway).server, to: "192.168.3.1", config: forward("port: 2222"),
		},
		{
			name: "a source that the zone does not have", from: (*gateway).server, bind: far, to: "192.168.3.1", config: lockoutNAT, place: "4:3: ",
			refused: `comes in on "eth3", and hosts of zone "internal" may use no sources but 192.168.3.0/24, 2001:db8:3::/64: it would be cut off; ` +
				`say what else is behind its routers, prefixes: [10.9.0.0/16], or --force`,
			mended: strings.Replace(lockoutNAT, "[eth3]}", "[eth3], prefixes: [10.9.0.0/16]}", 1),
		},
		{
			name: "a source on top of the interface", from: (*gateway).server, bind: "192.168.78.2", to: "192.168.78.1", config: lockoutNAT, place: "4:3: ",
			setup: []string{"link add link eth3 name above type macvlan mode bridge", "address add 192.168.78.1/24 dev above", "link set above up",
				"server: address add 192.168.78.2/24 dev eth0"},
			refused: "prefixes: [192.168.78.0/24], or --force",
			mended:  strings.Replace(lockoutNAT, "[eth3]}", "[eth3], prefixes: [192.168.78.0/24]}", 1),
		},
		{
			name: "any source, where it only taps", from: (*gateway).server, bind: far, to: "192.168.3.1", config: example,
		},
		{
			name: "policies do not judge the gateway's own", from: (*gateway).mgmt, to: "192.168.5.1",
			config: lockoutNAT + "policies:\n  - {from: mgmt, to: internal, action: drop}\n  - {from: mgmt, to: external, action: drop}\n",
		},
		{
			name: "the address is used for masquerade", from: (*gateway).outer, to: external,
			config: strings.Replace(lockoutNAT, "to: external}]", "to: external, addresses: [203.0.113.1], ports: 1024-65535}]", 1),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newGateway(t)
			s := g.sshd()
			g.ip(g.Servers[0], "address add "+far+"/32 dev lo")
			g.ip(g.Gateway, "route add 10.9.0.0/16 via "+g.Servers[0].Addr.String())
			for _, line := range c.setup {
				if there, ok := strings.CutPrefix(line, "server: "); ok {
					g.ip(g.Servers[0], there)
				} else {
					g.ip(g.Gateway, line)
				}
			}
			c.run(g, s)
		})
	}
}

func (c lockout) run(g *gateway, s *sshd) {
	t := g.t
	apply := func(config, flags string) string {
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		return binary + " apply -f " + file + " --bpffs " + g.bpffs + flags + " 2>&1; echo code $?"
	}
	session := func(line string) *sshSession { return s.session(c.from(g), c.bind, c.to, line) }
	good := c.config
	if c.refused != "" {
		good = c.mended
		session("echo in").says("in") // and so the kernel knows the way there
		before := g.list()
		for _, command := range []string{apply(c.config, ""), strings.Replace(apply(c.config, ""), " apply ", " check ", 1)} {
			if a := session(command); !a.says("yaml:"+c.place, c.refused) || !a.says("code 2") || a.cut() {
				t.Fatalf("%s: not refused, or cut off, or in other words", command)
			}
		}
		if d := before.difference(g.list()); d != "" {
			t.Errorf("refused, and yet changed:\n%s", d)
		}
	}
	if good != "" {
		if a := session(apply(good, "")); !a.says("code 0") || a.cut() {
			t.Errorf("is refused, or cut off:\n%s", good)
		}
		if a := session("echo in"); !a.says("in") {
			t.Errorf("cannot log in again with:\n%s", good)
		}
		g.must("detach")
	}
	if c.refused == "" {
		return
	}
	a := session(apply(c.config, " --force"))
	eventually(t, func() string {
		if r := g.tapgate("status"); r.code != 0 {
			return r.String()
		}
		return ""
	})
	if c.goesOn && !a.says("code 0") || a.cut() == c.goesOn {
		t.Errorf("with --force, cut off is %v", !c.goesOn)
	}
	g.must("detach")
}

// Commands that change what is in force are as careful as apply.
func TestLockoutByEdit(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	s := g.sshd()
	g.apply(lockoutNAT)
	bpffs := " --bpffs " + g.bpffs
	r := s.run(g.Outside[0], "203.0.113.1", binary+" forward add jump --in external --proto tcp --port 2222 --to 192.168.3.2:22"+bpffs)
	if r.code != 2 || !strings.HasPrefix(r.stderr, "tapgate: --port: your SSH connection from ") || !strings.Contains(r.stderr, `forward "jump" takes for itself: it would be cut off`) {
		t.Errorf("forward add: %s", r)
	}
	if r := s.run(g.Outside[0], "203.0.113.1", binary+" forward add jump --in external --proto tcp --port 2223 --to 192.168.3.2:22"+bpffs); r.code != 0 {
		t.Errorf("forward add of another port: %s", r)
	}
	if r := s.run(g.Mgmt, "192.168.5.1", binary+" forward add more --in external --proto tcp --port 2222 --to 192.168.3.2:22"+bpffs); r.code != 0 {
		t.Errorf("forward add by mgmt: %s", r)
	}
	g.must("detach")

	// Nor does rollback put in force again what would cut him off.
	g.apply(lockoutNAT + "  forwards: [{name: jump, in: external, proto: tcp, port: 2222, to: \"192.168.3.2:22\"}]\n")
	g.apply(lockoutNAT)
	r = s.run(g.Outside[0], "203.0.113.1", binary+" rollback"+bpffs)
	if r.code != 2 || !strings.Contains(r.stderr, "previous configuration:14:") || !strings.Contains(r.stderr, `forward "jump" takes for itself: it would be cut off`) {
		t.Errorf("rollback: %s", r)
	}
	if r := s.run(g.Mgmt, "192.168.5.1", binary+" rollback"+bpffs); r.code != 0 {
		t.Errorf("rollback by mgmt: %s", r)
	}
	g.must("detach")

	// The first rule of NAT makes a gateway of what tapped: from then on sources are held against zones.
	g.ip(g.Servers[0], "address add 10.9.0.7/32 dev lo")
	g.ip(g.Gateway, "route add 10.9.0.0/16 via "+g.Servers[0].Addr.String())
	g.apply(example)
	a := s.session(g.Servers[0], "10.9.0.7", "192.168.3.1", binary+" masquerade add --from internal --to external"+bpffs+" 2>&1; echo code $?")
	if !a.says("prefixes: [10.9.0.0/16], or --force") || !a.says("code 2") || a.cut() {
		t.Error("masquerade add: not refused")
	}
	g.must("detach")
}

// The kernel forgets the routes of router advertisements when IPv6 forwarding is
// switched on, and with them the way to the admin.
func TestLockoutByRouterAdvertisement(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	s := g.sshd()
	const admin = "2001:db8:77::7"
	g.ip(g.Mgmt, "address add "+admin+"/128 dev lo")
	g.inGateway("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.eth4.accept_ra=1")
	to := g.Gateway.Interface("eth4").Addr6.Addr().String()
	advertise := func() {
		t.Helper()
		eventually(t, func() string {
			if err := g.Mgmt.Do(func() error { return sendAdvertisement("eth0") }); err != nil {
				return err.Error()
			}
			if out := g.inGateway("ip", "-6", "route", "show", "default"); !strings.Contains(out, "proto ra") {
				return "no route: " + out
			}
			return ""
		})
	}
	advertise()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(lockoutNAT), 0o600); err != nil {
		t.Fatal(err)
	}
	apply := binary + " apply -f " + file + " --bpffs " + g.bpffs
	a := s.session(g.Mgmt, admin, to, apply+" 2>&1; echo code $?")
	if !a.says(`comes by a route that "eth4" has from router advertisements`) || !a.says("code 2") || a.cut() {
		t.Fatal("not refused")
	}
	a = s.session(g.Mgmt, admin, to, apply+" --force 2>&1; echo code $?")
	eventually(t, func() string {
		if r := g.tapgate("status"); r.code != 0 {
			return r.String()
		}
		return ""
	})
	if !a.cut() {
		t.Error("goes on: nothing would have to be refused")
	}
	g.must("detach")

	g.inGateway("sysctl", "-qw", "net/ipv6/conf/eth4/accept_ra=2") // as the text says
	advertise()
	a = s.session(g.Mgmt, admin, to, apply+" 2>&1; echo code $?")
	if !a.says("code 0") || a.cut() {
		t.Error("refused, or cut off, though the route stays")
	}
	g.must("detach")
}

// sendAdvertisement sends what makes us the default router of the link.
func sendAdvertisement(ifname string) error {
	link, err := net.InterfaceByName(ifname)
	if err != nil {
		return err
	}
	own, err := link.Addrs()
	if err != nil {
		return err
	}
	source := ""
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			source = p.Addr().String()
		}
	}
	// By number: package net remembers the numbers of names for a minute, of whichever namespace.
	zone := strconv.Itoa(link.Index)
	c, err := icmp.ListenPacket("ip6:ipv6-icmp", source+"%"+zone)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.IPv6PacketConn().SetMulticastHopLimit(255); err != nil {
		return err
	}
	// RFC 4861 section 4.2: hop limit 64, no flags, router for 1800 s.
	body := []byte{64, 0, 1800 >> 8, 1800 & 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	m := icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: body}}
	text, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	_, err = c.WriteTo(text, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: zone})
	return err
}
