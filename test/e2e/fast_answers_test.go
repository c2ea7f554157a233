package e2e

import (
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// wayAge is more than a way of the fast path is used without another look at routes
// and neighbours.
const wayAge = 150 * time.Millisecond

// answers notes what a gateway does with packets of flows that it knows: what arrives
// where, and what senders are told.
type answers struct {
	g   *gate
	d   *dialogue
	log []string
}

// Packets that a router has to look at twice, of flows on the fast path: what is too
// big for the way, at the end of its life, odd or broken, and ways that end. What
// arrives and what the sender is told is what it is by the kernel's forwarding, to
// the bit.
func TestFastAnswers(t *testing.T) {
	t.Parallel()
	awaitUptime(t)
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		var gates []*gate
		for _, forwarding := range []string{"", forwardKernel} {
			g := newGateLab(t, lab.NoSensor())
			g.kind, g.forwarding = kind, forwarding
			for _, name := range []string{"net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"} {
				if err := g.Gateway.Sysctl(name, "0"); err != nil {
					t.Fatal(err)
				}
			}
			g.apply(fastHosts)
			gates = append(gates, g)
		}
		for _, v6 := range []bool{false, true} {
			for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
				t.Run(fmt.Sprintf("IPv6 %v, protocol %d", v6, proto), func(t *testing.T) {
					var logs [2][]string
					for i, g := range gates {
						logs[i] = g.with(t).answers(proto, v6)
					}
					for i, line := range logs[0] {
						if i >= len(logs[1]) || line != logs[1][i] {
							t.Errorf("fast:   %s\nkernel: %s", line, logs[1][min(i, len(logs[1])-1)])
						}
					}
					if len(logs[0]) < 40 || len(logs[0]) != len(logs[1]) {
						t.Errorf("%d and %d lines", len(logs[0]), len(logs[1]))
					}
					if testing.Verbose() {
						t.Log(strings.Join(logs[1], "\n"))
					}
				})
			}
		}
	})
}

func (g *gate) answers(proto uint8, v6 bool) []string {
	g.t.Helper()
	in, out := g.pair()
	in.lax, out.lax = true, true
	d := g.newDialogue(proto, in, 5000, out, 9000, v6)
	d.open()
	d.takesFast()
	a := &answers{g: g, d: d}
	a.ordinary()
	a.odd()
	a.ways(func(ifname string) { g.narrowRoute(ifname, fmt.Sprintf(" mtu lock %d", narrow)) }, "locked MTU of a route")
	// Of another MTU the stack knows alone: it is asked every ten seconds.
	a.ways(func(ifname string) {
		g.narrowRoute(ifname, fmt.Sprintf(" mtu %d", narrow))
		g.pass(stackEvery+time.Second, in.ip(v6))
	}, "MTU of a route")
	a.learned()
	a.ends()
	return a.log
}

// tell sends frames of a direction and notes what comes of it.
func (a *answers) tell(what string, way int, frames ...[]byte) {
	a.g.t.Helper()
	d := a.d
	from, _, _, _, _, _ := d.ends(way)
	at := [2]int{len(d.in.Frames()), len(d.out.Frames())}
	for _, f := range frames {
		if err := from.Send(f); err != nil {
			a.g.t.Fatal(err)
		}
	}
	a.g.fence(d.in, d.out, d.in, d.out)
	line := fmt.Sprintf("%s, direction %d:", what, way)
	for i, p := range []*peer{d.in, d.out} {
		for _, f := range p.Frames()[at[i]:] {
			if s := a.describe(f); s != "" {
				line += fmt.Sprintf(" %s got %s;", []string{"inside", "outside"}[i], s)
			}
		}
	}
	a.log = append(a.log, line)
}

// describe is a packet but for what differs from one gateway to another: the ids of
// IPv4, and the outside port.
func (a *answers) describe(f lab.Frame) string {
	if kind, _ := f.EtherType(); kind == 0x0806 {
		return ""
	}
	p, err := pkt.Parse(f.Data)
	if err != nil {
		return fmt.Sprintf("%v of %d bytes", err, len(f.Data))
	}
	return a.packet(p)
}

func (a *answers) packet(p *pkt.Parsed) string {
	end := func(e netip.AddrPort) string {
		if e == a.d.front {
			return "FRONT"
		}
		return e.String()
	}
	tos := p.IP[1]
	s := fmt.Sprintf("%s > %s proto %d ttl %d tos %#x df %v", end(p.Src), end(p.Dst), p.Proto, p.TTL, tos, p.DontFrag)
	if p.More || p.Offset > 0 {
		s += fmt.Sprintf(" fragment at %d more %v", p.Offset, p.More)
	}
	if p.Proto == pkt.ProtoTCP && p.Offset == 0 {
		s += fmt.Sprintf(" flags %#x seq %d ack %d", p.Flags, p.Seq, p.Ack)
	}
	if p.Inner != nil {
		return s + fmt.Sprintf(" type %d code %d rest %d about %s bad %v", p.Type, p.Code, p.Rest, a.packet(p.Inner), p.Bad)
	}
	data := p.Payload
	if p.Proto == pkt.ProtoTCP && p.Offset == 0 && len(p.IP) >= p.L4+20 {
		data = p.IP[p.L4+20:] // also of a header whose length is wrong
	}
	return s + fmt.Sprintf(" %d bytes %08x bad %v", len(data), crc32.ChecksumIEEE(data), p.Bad)
}

// data is a packet of the conversation with data, which arrives or not.
func (a *answers) data(way, size int, change ...func([]byte) []byte) []byte {
	flags := uint8(0)
	if a.d.proto == pkt.ProtoTCP {
		flags = pkt.ACK | pkt.PSH
	}
	f := a.d.frame(way, flags, noise(size))
	if f[12] == 0x08 {
		f[20] &^= 0x40
		fixHeader(f)
	}
	for _, c := range change {
		f = c(f)
	}
	return f
}

// l4 is where a frame's transport header begins.
func l4(f []byte) int {
	if f[12] == 0x86 {
		return 14 + 40
	}
	return 14 + 20
}

func set(at int, v byte) func([]byte) []byte {
	return func(f []byte) []byte { f[at] = v; return f }
}

func hops(n byte) func([]byte) []byte {
	return func(f []byte) []byte {
		if f[12] == 0x86 {
			f[21] = n
			return f
		}
		f[22] = n
		fixHeader(f)
		return f
	}
}

func dscp(f []byte) []byte {
	if f[12] == 0x86 {
		f[14], f[15] = 0x6b, 0x90
		return f
	}
	f[15] = 0xb9
	fixHeader(f)
	return f
}

// ordinary are packets of all sizes and ages.
func (a *answers) ordinary() {
	a.g.t.Helper()
	l4len := 8
	if a.d.proto == pkt.ProtoTCP {
		l4len = 20
	}
	full := 1500 - l4len - 20
	if a.d.a.Addr().Is6() {
		full -= 20
	}
	for _, way := range []int{wayOut, wayIn} {
		for _, size := range []int{0, 1, 1000, full} {
			a.tell(fmt.Sprintf("%d bytes", size), way, a.data(way, size))
			a.tell(fmt.Sprintf("%d bytes, DF", size), way, a.data(way, size, dontFragment))
		}
		for _, n := range []byte{255, 2, 1} {
			a.tell(fmt.Sprintf("hops %d", n), way, a.data(way, 100, hops(n)))
		}
		a.tell("DSCP", way, a.data(way, 100, dscp))
		f := a.data(way, 2500)
		a.tell("fragments", way, fragments(a.g.t, f, 77, 1440)...)
	}
	// A router behind tells of a packet's end, or of a narrow way.
	for _, about := range [][2]uint8{{11, 0}, {3, 4}, {3, 1}} {
		if a.d.a.Addr().Is6() {
			about = map[[2]uint8][2]uint8{{11, 0}: {3, 0}, {3, 4}: {2, 0}, {3, 1}: {1, 3}}[about]
		}
		f := a.data(wayOut, 300)
		a.d.arrives(wayOut, f)
		got := a.d.got[wayOut][len(a.d.got[wayOut])-1]
		quote := got.IP[:min(len(got.IP), got.L4+100)]
		a.tell(fmt.Sprintf("a router says %d", about), wayIn, a.d.out.frame(a.d.front.Addr(), pkt.Control(a.d.a.Addr().Is6(), about[0], about[1], 1280, quote)...))
	}
}

// sizes are sent both ways, with DF and without.
func (a *answers) sizes(what string) {
	a.g.t.Helper()
	for _, way := range []int{wayOut, wayIn} {
		for _, size := range []int{900, 1300, 1400, 900} {
			a.tell(fmt.Sprintf("%s: %d bytes", what, size), way, a.data(way, size))
			a.tell(fmt.Sprintf("%s: %d bytes, DF", what, size), way, a.data(way, size, dontFragment))
		}
	}
}

// ways narrows the way on each side in turn.
func (a *answers) ways(narrowed func(ifname string), what string) {
	a.g.t.Helper()
	for _, ifname := range []string{"eth0", "eth3"} {
		narrowed(ifname)
		time.Sleep(wayAge)
		a.sizes(what + " " + ifname)
		a.g.narrowRoute(ifname, "")
		a.g.pass(stackEvery+time.Second, a.d.in.ip(a.d.a.Addr().Is6()))
		time.Sleep(wayAge)
		a.sizes("wide again " + ifname)
	}
}

// learned has the gateway itself learn that the way to the remote is narrow, and
// heed that for what it forwards, or not.
func (a *answers) learned() {
	g, d := a.g, a.d
	g.t.Helper()
	v6 := d.a.Addr().Is6()
	own := g.udpSocket(g.Gateway, netip.AddrPortFrom(g.outside(v6), 0))
	text := g.text() + string(noise(1300))
	g.sendTo(own, d.out.at(v6, 9999), text)
	got := d.out.wantText(text)
	kind, code := tooBigKind(v6)
	d.out.complain(got.Src.Addr(), kind, code, narrow, got, 8)
	eventually(g.t, func() string {
		if route := inHost(g.t, g.Gateway, "ip", "route", "get", d.b.Addr().String()); !strings.Contains(route, fmt.Sprintf("mtu %d", narrow)) {
			return "the gateway has learned nothing: " + route
		}
		return ""
	})
	for _, heed := range []string{"0", "1"} {
		if err := g.Gateway.Sysctl("net/ipv4/ip_forward_use_pmtu", heed); err != nil {
			g.t.Fatal(err)
		}
		g.pass(stackEvery+time.Second, d.in.ip(v6))
		time.Sleep(wayAge)
		a.sizes("learned, heeded " + heed)
	}
	if err := g.Gateway.Sysctl("net/ipv4/ip_forward_use_pmtu", "0"); err != nil {
		g.t.Fatal(err)
	}
	g.forget()
	time.Sleep(wayAge)
	a.sizes("forgotten")
}

// ends are ways that lead nowhere.
func (a *answers) ends() {
	g, d := a.g, a.d
	g.t.Helper()
	far := netip.PrefixFrom(d.b.Addr(), d.b.Addr().BitLen())
	for _, kind := range []string{"prohibit", "unreachable", "blackhole"} {
		g.ip(g.Gateway, fmt.Sprintf("route add %s %s", kind, far))
		time.Sleep(wayAge)
		a.tell(kind, wayOut, a.data(wayOut, 200))
		a.tell(kind, wayIn, a.data(wayIn, 200))
		g.ip(g.Gateway, fmt.Sprintf("route del %s %s", kind, far))
		time.Sleep(wayAge)
		a.tell("no "+kind, wayOut, a.data(wayOut, 200))
	}
	// A neighbour that does not answer.
	g.ip(g.Gateway, fmt.Sprintf("neigh del %s dev eth0", d.b.Addr()))
	time.Sleep(wayAge)
	sent := d.in.raw(a.data(wayOut, 200))
	kind, code := uint8(3), uint8(1)
	if sent.Src.Addr().Is6() {
		kind, code = 1, 3
	}
	a.log = append(a.log, "nobody there: inside got "+a.packet(d.in.wantError(kind, code)))
	g.ip(g.Gateway, fmt.Sprintf("neigh replace %s lladdr %s nud permanent dev eth0", d.b.Addr(), d.out.MAC))
	time.Sleep(wayAge)
	d.exchange(2)
}
