package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// floodConfig has a table that the floods below would fill in two seconds.
func floodConfig(maxFlows int) string {
	return gateZones + fmt.Sprintf(`
nat:
  max_flows: %d
  masquerade:
    - {from: internal, to: external}
  forwards:
    - {name: web, in: external, proto: tcp, port: 80, to: "192.168.3.3:80"}
`, maxFlows)
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
			if err := f.from.Send(f.frame(rng)); err != nil {
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
// from many addresses, and datagrams to ports of the gateway that nobody has.
func newFloods(g *gate) []*flood {
	scanner, world := g.station(atInside, 0), g.station(atOutside, 1)
	forged := func(rng *rand.Rand, l4 ...pkt.Layer) []byte {
		all := append([]pkt.Layer{pkt.Ether(world.MAC, world.Gateway), pkt.IPv4(anywhere(rng), g.outside(false))}, l4...)
		return pkt.Frame(all...)
	}
	return []*flood{
		{name: "scan", from: scanner, frame: func(rng *rand.Rand) []byte {
			return scanner.frame(anywhere(rng), pkt.Segment(anyPort(rng), anyPort(rng), pkt.SYN, rng.Uint32(), 0, 1460))
		}},
		{name: "scan UDP", from: scanner, frame: func(rng *rand.Rand) []byte {
			return scanner.frame(anywhere(rng), pkt.UDP(anyPort(rng), anyPort(rng)), gopacket.Payload("scan"))
		}},
		{name: "SYN flood", from: world, frame: func(rng *rand.Rand) []byte {
			return forged(rng, pkt.Segment(anyPort(rng), 80, pkt.SYN, rng.Uint32(), 0, 1460))
		}},
		{name: "UDP flood", from: world, frame: func(rng *rand.Rand) []byte {
			return forged(rng, pkt.UDP(anyPort(rng), anyPort(rng)), gopacket.Payload("flood"))
		}},
	}
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
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // the other side finds what is missing
			}()
		}
	}()
	return l
}

// stressFlood floods for a time and requires that the new connections of others,
// from inside, from the server that is knocked at, and through the very forward,
// succeed throughout.
func stressFlood(t *testing.T, maxFlows, rate int, d time.Duration) {
	g := newGateLab(t)
	g.ip(g.Gateway, "route add default via "+g.out[0].Addr.String())
	g.apply(floodConfig(maxFlows))
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
	floods := newFloods(g)
	for _, f := range floods {
		stopped.Go(func() {
			if err := f.run(rate, stop); err != nil {
				t.Error(err)
			}
		})
	}
	stopped.Go(func() { n.keep("from inside", g.in[0], outside, stop) })
	stopped.Go(func() { n.keep("from the server of the forward", g.in[1], outside, stop) })
	stopped.Go(func() { n.keep("through the forward", g.out[0], front, stop) })
	time.Sleep(d)
	close(stop)
	stopped.Wait()

	for _, f := range floods {
		t.Logf("%s: %d packets", f.name, f.sent.Load())
	}
	t.Logf("in %v: %v connections, the slowest took %v; %s; %s", d, n.made, n.longest, g.readTable().size(), g.drops())
	for what, failed := range n.failed {
		t.Errorf("%d connections %s failed:\n%s", len(failed), what, strings.Join(failed[:min(len(failed), 5)], "\n"))
	}
	for _, what := range []string{"from inside", "from the server of the forward", "through the forward"} {
		if n.made[what] < 5 {
			t.Errorf("only %d connections %s", n.made[what], what)
		}
	}
	for _, c := range old {
		g.converse(c, c)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	out := g.station(atOutside, 0)
	g.answerUDP(out, 9000, g.mapUDP(neighbour, 5000, out, 9000, false), neighbour, 5000)
	server.Close() // which still answered the flood, again and again
	g.fenceBoth(floods[0].from, floods[3].from, neighbour)
	g.consistent()

	// The timers over, new flows alone clean it: no command of ours runs.
	g.timersOver()
	port := uint16(0)
	eventually(t, func() string {
		for range 500 {
			port++
			neighbour.raw(neighbour.opener(pkt.ProtoUDP, 1024+port%60_000, out.at(false, 9000), "broom"))
		}
		if left := g.readTable().halvesBeside(neighbour.Addr); left > 0 {
			return fmt.Sprintf("%d new flows, and %d halves of others are left", port, left)
		}
		return ""
	})
	g.empty()
}

// A scan by one server, a SYN flood on a forward and datagrams to any port, each at
// 5,000 packets a second, with nothing of ours running: the new connections of others
// succeed, old ones live, and the table is clean once the timers are over.
func TestStressFlood(t *testing.T) { stressFlood(t, 65536, 5000, 3*time.Second) }

// The same with a table that is full after a moment, and on every kernel.
func TestStressFloodShort(t *testing.T) { stressFlood(t, 8192, 1000, 3*time.Second) }
