package e2e

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

var loopMAC = net.HardwareAddr{2, 0, 0x5e, 0, 0x53, 9}

// stacked is a dmz interface whose copies come past a tapped one.
type stacked struct {
	name     string
	features []string
	tapped   string // the other tapped interface, beside eth3
	dmz      string
	before   []string // commands of ip in the gateway
	after    []string // commands in the gateway, once all is in force
	arrived  func(f lab.Frame) bool
	outer    int                                  // bytes of a tunnel's headers
	where    func(g *gateway) (*lab.Host, string) // they arrive
}

func toLoopMAC(f lab.Frame) bool { return bytes.Equal(f.Data[:6], loopMAC) }

func inVXLAN(f lab.Frame) bool {
	p := f.Payload()
	kind, _ := f.EtherType()
	return kind == 0x0800 && len(p) > 50 && p[9] == 17 && p[22] == 4789>>8 && p[23] == 4789&0xff && bytes.Equal(p[36:42], loopMAC)
}

func atSecond(g *gateway) (*lab.Host, string) { return g.Second, "eth0" }

var loops = []stacked{
	{
		name: "bridge", features: []string{"bridge"}, tapped: "eth5", dmz: "br9",
		before:  []string{"link add br9 type bridge mcast_snooping 0", "link set br9 up"},
		after:   []string{"ip link set eth5 master br9"},
		arrived: toLoopMAC, where: atSecond,
	},
	{
		// With queues in between, which write over cb.
		name: "macvlan on a bridge", features: []string{"bridge", "macvlan", "tbf"}, tapped: "eth5", dmz: "mv9",
		before: []string{"link add br9 type bridge mcast_snooping 0", "link set br9 up",
			"link add link br9 name mv9 type macvlan mode bridge", "link set mv9 up"},
		after: []string{"ip link set eth5 master br9",
			"tc qdisc add dev mv9 root tbf rate 1gbit burst 100k limit 10m",
			"tc qdisc add dev br9 root tbf rate 1gbit burst 100k limit 10m",
			"tc qdisc add dev eth5 root tbf rate 1gbit burst 100k limit 10m"},
		arrived: toLoopMAC, where: atSecond,
	},
	{
		name: "vxlan", features: []string{"vxlan"}, tapped: "eth5", dmz: "vx9",
		before: []string{"link add vx9 mtu 1500 type vxlan id 9 remote 192.168.9.9 dstport 4789", "link set vx9 up"},
		after: []string{"ip link set eth5 mtu 1600",
			"ip route add 192.168.9.9 via 192.168.6.2 dev eth5"},
		arrived: inVXLAN, outer: 50, where: atSecond,
	},
	{
		name: "both ends of a veth", features: []string{"veth"}, tapped: "v9b", dmz: "v9a",
		before:  []string{"link add v9a type veth peer name v9b", "link set v9a up", "link set v9b up"},
		arrived: toLoopMAC, where: func(g *gateway) (*lab.Host, string) { return g.Gateway, "v9b" },
	},
}

// A copy is never copied, whatever an admin stacks on what, before or after.
func TestSafetyLoops(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		for _, s := range loops {
			t.Run(s.name, func(t *testing.T) {
				for _, f := range s.features {
					kernels.Require(t, f)
				}
				g := newGateway(t, lab.SecondInternal())
				g.kind = kind
				s.run(g)
			})
		}
	})
}

// breakLoop ends copies that multiply, before they take the machine's memory.
func (s stacked) breakLoop(g *gateway, p *production, capture *lab.Capture) {
	done, ended := make(chan struct{}), make(chan struct{})
	g.t.Cleanup(func() { close(done); <-ended })
	go func() {
		defer close(ended)
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			sent := int(p.up.arrived.Load() + p.down.arrived.Load())
			if n := len(capture.Frames()); n > 50*1000+4*sent {
				g.t.Errorf("copies are copied: of %d packets %d arrived", sent, n)
				if err := g.Gateway.SetUp(s.dmz, false); err != nil {
					g.t.Error(err)
				}
				_, _ = capture.Stop()
				return
			}
		}
	}()
}

func (s stacked) run(g *gateway) {
	t := g.t
	for _, h := range []*lab.Host{g.Gateway, g.Second} {
		if h.Addr6.IsValid() { // else interfaces speak of themselves
			if err := h.Sysctl("net/ipv6/conf/all/disable_ipv6", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := newProduction(g)
	for _, command := range s.before {
		inHost(g.t, g.Gateway, "ip", words(command)...)
	}
	g.apply(fmt.Sprintf(`
zones:
  internal: {interfaces: [eth3, %s]}
  dmz:      {interfaces: [%s]}
mirrors:
  - name: ids
    zones: [internal]
    targets:
      - {l2: %s, mac: "%s"}
`, s.tapped, s.dmz, s.dmz, loopMAC))
	if s.name == "vxlan" {
		g.setMTU(g.Second, "eth0", 1600)
	}
	for _, command := range s.after {
		w := words(command)
		inHost(g.t, g.Gateway, w[0], w[1:]...)
	}
	host, ifname := s.where(g)
	capture, err := host.Capture(ifname, lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	s.breakLoop(g, p, capture)
	// Carriers, ports and neighbours take a moment.
	waitFor(t, "copies arrive at "+host.Name, func() bool {
		p.exchange(1)
		return len(lab.Select(capture.Frames(), s.arrived)) > 0
	})
	// What passed the tapped interfaces, as their programs count it before any
	// copy, and what the mirror says of the same packets.
	read := func(st *loader.Status) (eth3, other, matched loader.Count, sent uint64) {
		for _, m := range st.Members {
			n := loader.Count{Packets: m.Ingress.Seen.Packets + m.Egress.Seen.Packets, Bytes: m.Ingress.Seen.Bytes + m.Egress.Seen.Bytes}
			switch m.Interface {
			case "eth3":
				eth3 = n
			case s.tapped:
				other = n
			}
		}
		l := st.Mirrors[0].Ledger
		return eth3, other, l.Matched, l.Copied.Packets - l.Refused.Packets
	}
	// The cable to the server is the truth that both are held against, from a
	// moment at which nothing passed it.
	var cable *lab.Capture
	var start loader.Count
	waitFor(t, "the cable is quiet", func() bool {
		var err error
		before, _, _, _ := read(g.checkLedgers())
		if cable, err = g.Servers[0].Capture("eth0", lab.Both); err != nil {
			t.Fatal(err)
		}
		if start, _, _, _ = read(g.checkLedgers()); start == before && len(cable.Frames()) == 0 {
			return true
		}
		_, _ = cable.Stop()
		return false
	})
	seen := func() (eth3, other, matched loader.Count, sent uint64) {
		var passed, onCable, both loader.Count
		// Again: a packet may pass between two reads.
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			eth3, other, matched, sent = read(g.checkLedgers())
			passed = loader.Count{Packets: eth3.Packets - start.Packets, Bytes: eth3.Bytes - start.Bytes}
			onCable = loader.Count{}
			for _, f := range cable.Frames() {
				onCable.Packets++
				onCable.Bytes += uint64(len(f.Data))
			}
			both = loader.Count{Packets: eth3.Packets + other.Packets, Bytes: eth3.Bytes + other.Bytes}
			if passed == onCable && matched == both || time.Now().After(end) {
				break
			}
		}
		if passed != onCable {
			t.Errorf("the cable to the server saw %+v, and eth3 %+v", onCable, passed)
		}
		if matched != both {
			t.Errorf("eth3 saw %+v and %s %+v, and %+v matched", eth3, s.tapped, other, matched)
		}
		return eth3, other, matched, sent
	}
	// arrived counts copies of packets of production from that number on.
	arrived := func(from uint64) (n, twice int) {
		seen := map[string]bool{}
		for _, f := range lab.Select(capture.Frames(), s.arrived) {
			f.Data = f.Data[s.outer:]
			number, up, ok := streamNumber(f)
			if !ok || number < from {
				continue
			}
			if key := fmt.Sprint(number, up); seen[key] {
				twice++
			} else {
				seen[key] = true
				n++
			}
		}
		return n, twice
	}
	settle := func() {
		waitFor(t, "queues are empty", func() bool {
			n := 0
			for _, ifname := range []string{"mv9", "br9", "eth5"} {
				n += g.backlog(ifname)
			}
			return n == 0
		})
	}
	settle()
	_, other, matched, sent := seen()
	from := p.up.sent
	const n = 500
	p.exchange(n)
	settle()
	_, nowOther, nowMatched, nowSent := seen()
	if nowMatched.Packets-matched.Packets < 2*n {
		t.Errorf("of %d packets %d matched", 2*n, nowMatched.Packets-matched.Packets)
	}
	if nowOther.Packets-other.Packets > 10 {
		t.Errorf("%s saw %d packets, and there was nothing but copies", s.tapped, nowOther.Packets-other.Packets)
	}
	if nowSent-sent < 2*n {
		t.Errorf("of %d packets %d were copied", 2*n, nowSent-sent)
	}
	waitFor(t, "all copies arrive", func() bool { got, _ := arrived(from); return got >= 2*n })
	if got, twice := arrived(from); got != 2*n || twice > 0 {
		t.Errorf("of %d packets the copies of %d arrived, and %d of them again", 2*n, got, twice)
	}
	if s.name == "vxlan" {
		// The gateway asks for the tunnel's next hop from within the sending of a
		// copy, by a tapped interface: one tap within another.
		p.during(func() {
			for range 10 {
				inHost(g.t, g.Gateway, "ip", "neigh", "flush", "dev", "eth5")
				asked := nowOther.Packets
				waitFor(t, "a question passes "+s.tapped, func() bool {
					_, nowOther, _, _ = read(g.status())
					return nowOther.Packets > asked
				})
			}
		})
		settle()
		seen()
	}
	p.check()
}
