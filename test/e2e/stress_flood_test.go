package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// floodPlan is how much a test floods, and until when.
type floodPlan struct {
	maxFlows int
	ports    string // of the masquerade
	rate     int    // packets a second of each flood, as far as the machine gets
	many     bool   // the scan comes from many hosts
	d        time.Duration
	// reached says what the floods have not used up yet: they go on until it is
	// nothing, and for d at least.
	reached func(*floodMarks) string
}

func (p floodPlan) config() string {
	return gateZones + fmt.Sprintf(`
nat:
  max_flows: %d
  masquerade:
    - {from: internal, to: external, ports: "%s"}
  forwards:
    - {name: web, in: external, proto: tcp, port: 80, to: "192.168.3.3:80"}
`, p.maxFlows, p.ports)
}

// floodMarks are the most that was seen in the accounts.
type floodMarks struct {
	plan                                   floodPlan
	fresh, forwarded, leaving, ports, host int
}

func (m *floodMarks) String() string {
	return fmt.Sprintf("at most %d fresh flows, %d of forwards, %d leaving; %d bindings; %d flows of one host", m.fresh, m.forwarded, m.leaving, m.ports, m.host)
}

// look takes note of the accounts, which changes nothing.
func (m *floodMarks) look(g *gate) {
	g.t.Helper()
	a := g.readAccount()
	for name, most := range map[string]*int{"fresh": &m.fresh, "forwarded": &m.forwarded, "leaving": &m.leaving, "bindings": &m.ports} {
		*most = max(*most, int(a.number(name)))
	}
	hosts, err := readElements(filepath.Join(g.stateDir(), "maps", "tg_hosts"), "tg_host")
	if err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // hosts come and go
		g.t.Fatal(err)
	}
	for _, h := range hosts {
		m.host = max(m.host, int(h.number("flows")))
	}
}

// shares are used up: that of the scanner, and that of the forward.
func (m *floodMarks) shares() string {
	if host, forwarded := m.plan.maxFlows/10, m.plan.maxFlows/8; m.host < host || m.forwarded < forwarded {
		return fmt.Sprintf("the host's share is %d, and the forwards' is %d", host, forwarded)
	}
	return ""
}

// quarter of a range of 4,000 ports is what one host may have of unanswered flows.
func (m *floodMarks) quarter() string {
	if m.host < 1000 {
		return "a quarter of the ports is 1000"
	}
	return ""
}

// half of the table may be flows that nobody has answered, an eighth of it forwards'.
func (m *floodMarks) half() string {
	if most := m.plan.maxFlows * 3 / 8; m.fresh < most {
		return fmt.Sprintf("hosts may have %d that nobody answers", most)
	}
	return ""
}

// flood sends frames at a rate, as far as the machine gets.
type flood struct {
	name  string
	frame func(*rand.Rand) []byte
	from  *peer
	sent  atomic.Int64
}

func (f *flood) run(rate int, stop <-chan struct{}) error {
	rng := rand.New(rand.NewPCG(1, uint64(len(f.name))))
	begin := time.Now()
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(2 * time.Millisecond):
		}
		due := int64(time.Since(begin).Seconds() * float64(rate))
		// What is late is not made up for: the others shall have the machine, too.
		for n := min(due-f.sent.Load(), int64(rate)/50); n > 0; n-- {
			err := f.from.Send(f.frame(rng))
			if errors.Is(err, unix.ENOBUFS) {
				break // the machine takes no more now
			}
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			f.sent.Add(1)
		}
		if late := due - f.sent.Load(); late > 0 {
			begin = begin.Add(time.Duration(float64(late) / float64(rate) * float64(time.Second)))
		}
	}
}

// anywhere is a random address behind the gateway's default route.
func anywhere(rng *rand.Rand) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(rng.Uint32()), byte(rng.Uint32())})
}

func anyPort(rng *rand.Rand) uint16 { return uint16(1 + rng.UintN(65535)) }

// newFloods are a server that scans the world, the world that knocks at a forward
// from many addresses, and datagrams to ports of the gateway that nobody has. With
// many, the server takes all addresses of its network from .64 on, and nobody knocks.
func newFloods(g *gate, many bool) []*flood {
	scanner, world := g.station(atInside, 0), g.station(atOutside, 1)
	forged := func(rng *rand.Rand, l4 ...pkt.Layer) []byte {
		all := append([]pkt.Layer{pkt.Ether(world.MAC, world.Gateway), pkt.IPv4(anywhere(rng), g.outside(false))}, l4...)
		return pkt.Frame(all...)
	}
	scan := func(rng *rand.Rand, l4 ...pkt.Layer) []byte {
		from := scanner.Addr
		if many {
			a := from.As4()
			a[3] = byte(64 + rng.UintN(190))
			from = netip.AddrFrom4(a)
		}
		all := append([]pkt.Layer{pkt.Ether(scanner.MAC, scanner.Gateway), pkt.IPv4(from, anywhere(rng))}, l4...)
		return pkt.Frame(all...)
	}
	all := []*flood{
		{name: "scan", from: scanner, frame: func(rng *rand.Rand) []byte {
			return scan(rng, pkt.Segment(anyPort(rng), anyPort(rng), pkt.SYN, rng.Uint32(), 0, 1460))
		}},
		{name: "scan UDP", from: scanner, frame: func(rng *rand.Rand) []byte {
			return scan(rng, pkt.UDP(anyPort(rng), anyPort(rng)), gopacket.Payload("scan"))
		}},
		{name: "SYN flood", from: world, frame: func(rng *rand.Rand) []byte {
			return forged(rng, pkt.Segment(anyPort(rng), 80, pkt.SYN, rng.Uint32(), 0, 1460))
		}},
		{name: "UDP flood", from: world, frame: func(rng *rand.Rand) []byte {
			return forged(rng, pkt.UDP(anyPort(rng), anyPort(rng)), gopacket.Payload("flood"))
		}},
	}
	if many {
		all = all[:2]
	}
	return all
}

// newcomers open one connection after the other, of several kinds at the same time.
type newcomers struct {
	g       *gate
	mu      sync.Mutex
	made    map[string]int
	longest time.Duration
	failed  map[string][]string
}

// keep opens connections until stop is closed.
func (n *newcomers) keep(name string, from *lab.Host, at netip.AddrPort, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		begin := time.Now()
		err := n.one(from, at)
		n.mu.Lock()
		n.made[name]++
		n.longest = max(n.longest, time.Since(begin))
		if err != nil {
			n.failed[name] = append(n.failed[name], fmt.Sprintf("number %d: %v", n.made[name], err))
		}
		n.mu.Unlock()
		time.Sleep(10 * time.Millisecond) // ended ones count on a host's share for minutes
	}
}

// one opens a connection to an echoing listener and has a word go there and back.
func (n *newcomers) one(from *lab.Host, at netip.AddrPort) error {
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: gateWait}).Dial("tcp4", at.String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(gateWait)); err != nil {
		return err
	}
	word := []byte("still there?")
	if _, err := c.Write(word); err != nil {
		return err
	}
	_, err = c.Read(word)
	return err
}

// echo serves a port of a host until it is closed.
func (g *gate) echo(h *lab.Host, port uint16) (l net.Listener) {
	g.t.Helper()
	err := h.Do(func() (err error) { l, err = net.Listen("tcp4", netip.AddrPortFrom(h.Addr, port).String()); return err })
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close() })
	go echoConnections(l)
	return l
}

// stressFlood floods for a time and requires that the new connections of others,
// from inside, from the server that is knocked at, and through the very forward,
// succeed throughout.
func stressFlood(t *testing.T, p floodPlan) {
	g := newGateLab(t)
	g.ip(g.Gateway, "route add default via "+g.out[0].Addr.String())
	g.apply(p.config())
	outside := netip.MustParseAddrPort(echoTCP(t, g.out[1], g.out[1].Addr.String()+":0"))
	server := g.echo(g.in[1], 80)
	front := netip.AddrPortFrom(g.outside(false), 80)
	neighbour := g.station(atInside, 0) // of the scanner

	// Connections that are there before, one of each kind.
	var old []net.Conn
	for _, way := range []struct {
		from *lab.Host
		at   netip.AddrPort
	}{{g.in[1], outside}, {g.out[0], front}} {
		c, err := g.dial(way.from, netip.AddrPortFrom(way.from.Addr, 0), way.at)
		if err != nil {
			t.Fatal(err)
		}
		old = append(old, c)
	}

	n := &newcomers{g: g, made: map[string]int{}, failed: map[string][]string{}}
	stop, stopped := make(chan struct{}), sync.WaitGroup{}
	floods := newFloods(g, p.many)
	for _, f := range floods {
		stopped.Go(func() {
			if err := f.run(p.rate, stop); err != nil {
				t.Error(err)
			}
		})
	}
	stopped.Go(func() { n.keep("from inside", g.in[0], outside, stop) })
	stopped.Go(func() { n.keep("from the server of the forward", g.in[1], outside, stop) })
	stopped.Go(func() { n.keep("through the forward", g.out[0], front, stop) })
	marks := &floodMarks{plan: p}
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		marks.look(g)
		missing := ""
		if p.reached != nil {
			missing = p.reached(marks)
		}
		if past := time.Since(begin); past >= p.d && missing == "" {
			break
		} else if past > p.d+2*time.Minute {
			t.Errorf("after %v there were %s; %s", past, marks, missing)
			break
		}
	}
	close(stop)
	stopped.Wait()

	for _, f := range floods {
		t.Logf("%s: %d packets", f.name, f.sent.Load())
	}
	t.Logf("in %v: %s; %v connections, the slowest took %v; refused %v; %s; %s", p.d, marks, n.made, n.longest, g.status().Gateway.Refused, g.readTable().size(), g.drops())
	for what, failed := range n.failed {
		t.Errorf("%d connections %s failed:\n%s", len(failed), what, strings.Join(failed[:min(len(failed), 5)], "\n"))
	}
	for _, what := range []string{"from inside", "from the server of the forward", "through the forward"} {
		if n.made[what] < 5 {
			t.Errorf("only %d connections %s", n.made[what], what)
		}
	}
	for _, c := range old {
		_ = c.SetDeadline(time.Now().Add(gateWait)) // those of the beginning are over
		g.converse(c, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	out := g.station(atOutside, 0)
	g.answerUDP(out, 9000, g.mapUDP(neighbour, 5000, out, 9000, false), neighbour, 5000)
	server.Close() // which still answered the flood, again and again
	g.fenceBoth(floods[0].from, floods[len(floods)-1].from, neighbour)
	g.consistent()
	g.swept(neighbour)
}

// A scan by one server, a SYN flood on a forward and datagrams to any port, each at
// 5,000 packets a second, with nothing of ours running: the new connections of others
// succeed, old ones live, and the table is clean once the timers are over. It goes on
// for some seconds after both shares are used up; TAPGATE_FLOOD_SECONDS says how long.
func TestStressFlood(t *testing.T) {
	d := time.Duration(envNumber(t, "TAPGATE_FLOOD_SECONDS", 8)) * time.Second
	stressFlood(t, floodPlan{maxFlows: 65536, ports: "1024-65535", rate: 5000, d: d, reached: (*floodMarks).shares})
}

// The scan comes from all addresses of the network: half of the table fills with flows
// that nobody answers, and the oldest of the heaviest hosts go first.
func TestStressFloodMany(t *testing.T) {
	d := time.Duration(envNumber(t, "TAPGATE_FLOOD_SECONDS", 6)) * time.Second
	stressFlood(t, floodPlan{maxFlows: 16384, ports: "1024-65535", rate: 1000, many: true, d: d, reached: (*floodMarks).half})
}

// The scanner's share of the table is larger than the range of ports: others find
// some all the same.
func TestStressFloodPorts(t *testing.T) {
	d := time.Duration(envNumber(t, "TAPGATE_FLOOD_SECONDS", 6)) * time.Second
	stressFlood(t, floodPlan{maxFlows: 65536, ports: "20000-23999", rate: 2000, d: d, reached: (*floodMarks).quarter})
}

// The same with a table that is full after a moment, and on every kernel.
func TestStressFloodShort(t *testing.T) {
	stressFlood(t, floodPlan{maxFlows: 8192, ports: "1024-65535", rate: 1000, d: 3 * time.Second, reached: (*floodMarks).shares})
}

// envNumber is a number that the environment may give.
func envNumber(t *testing.T, name string, otherwise int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
