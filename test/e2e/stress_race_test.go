package e2e

import (
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// racePorts is how many outside ports each protocol and address has.
const racePorts = 64

var raceConfig = gateZones + fmt.Sprintf(`
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true, ports: "20000-%d"}
  forwards:
    - {name: race, in: external, proto: udp, port: 4000, to: "192.168.3.200:4000"}
    - {name: race6, in: external, proto: udp, port: 4000, to: "[2001:db8:3::c8]:4000"}
`, 20_000+racePorts-1)

// twoCPUs are two that this process may use, or one twice.
func twoCPUs(t *testing.T) (cpus [2]int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	n := 0
	for cpu := 0; n < 2 && cpu < 1024; cpu++ {
		if set.IsSet(cpu) {
			cpus[n] = cpu
			n++
		}
	}
	if n == 1 {
		cpus[1] = cpus[0]
		t.Logf("one CPU only: nothing can happen at the same time")
	}
	return cpus
}

// atOnce runs two senders, each on a CPU of its own: what they send is handled
// there, too. They begin at the same moment.
func atOnce(t *testing.T, one, two func() error) {
	t.Helper()
	cpus := twoCPUs(t)
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	for i, f := range []func() error{one, two} {
		ready.Add(1)
		done.Go(func() {
			runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
			var set unix.CPUSet
			set.Set(cpus[i])
			err := unix.SchedSetaffinity(0, &set)
			ready.Done()
			<-start
			if err == nil {
				err = f()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
}

// fenceBoth is fence for what was sent by atOnce: each CPU has a queue of its own.
func (g *gate) fenceBoth(all ...*peer) {
	g.t.Helper()
	for _, p := range all {
		gw := p.Addr.As4()
		gw[3] = 1
		knock := p.sendAll([][]byte{pkt.ARPRequest(p.MAC, p.Addr, netip.AddrFrom4(gw))})
		answers := func(frames []lab.Frame) int {
			return len(lab.Select(frames, func(f lab.Frame) bool { kind, _ := f.EtherType(); return kind == 0x0806 }))
		}
		before := answers(p.Frames())
		atOnce(g.t, knock, knock)
		if _, err := p.WaitFor(func(frames []lab.Frame) bool { return answers(frames) >= before+2 }, gateWait); err != nil {
			g.t.Fatalf("the gateway does not answer %s: %v", p.Addr, err)
		}
	}
}

// inStep has two peers send the same number of prepared frames, each pair at the
// same moment, so that the gateway handles both together.
func inStep(t *testing.T, one, two *peer, frames [2][][]byte) {
	t.Helper()
	var sent [2]atomic.Int64
	side := func(i int, p *peer) func() error {
		return func() error {
			defer sent[i].Store(math.MaxInt64) // the other does not wait for ever
			for n, f := range frames[i] {
				sent[i].Store(int64(n))
				for sent[1-i].Load() < int64(n) {
					// On one CPU the other has to get it.
					runtime.Gosched()
				}
				if err := p.Send(f); err != nil {
					return err
				}
			}
			return nil
		}
	}
	atOnce(t, side(0, one), side(1, two))
}

// sendAll sends prepared frames as fast as can be.
func (p *peer) sendAll(frames [][]byte) func() error {
	return func() error {
		for _, f := range frames {
			if err := p.Send(f); err != nil {
				return err
			}
		}
		return nil
	}
}

// opener is the first packet of a flow: a datagram, or a SYN with the text.
func (p *peer) opener(proto uint8, from uint16, to netip.AddrPort, text string) []byte {
	if proto == pkt.ProtoUDP {
		return p.frame(to.Addr(), pkt.UDP(from, to.Port()), gopacket.Payload(text))
	}
	return p.frame(to.Addr(), pkt.Segment(from, to.Port(), pkt.SYN, 1, 0, 0), gopacket.Payload(text))
}

// seenAs says from which endpoints the texts came that have arrived since the
// frames before. All of them, once the senders and then the peer itself were fenced.
func (p *peer) seenAs(before int) map[string][]netip.AddrPort {
	p.g.t.Helper()
	p.g.fence(p)
	seen := map[string][]netip.AddrPort{}
	for _, f := range p.Frames()[before:] {
		if got, err := pkt.Parse(f.Data); err == nil && len(got.Payload) > 0 {
			seen[string(got.Payload)] = append(seen[string(got.Payload)], got.Src)
		}
	}
	return seen
}

// Two CPUs claim outside ports at the same time, for hosts with equal source
// ports, until every port is taken: each goes to one of them, none is left over,
// and no claim is left half.
func TestStressClaims(t *testing.T) {
	g := newGate(t, raceConfig)
	a, b, out := g.station(atInside, 0), g.station(atInside, 1), g.station(atOutside, 0)
	const rounds = 4
	for round := range rounds {
		if round > 0 {
			g.apply(raceConfig) // the timers as they were
		}
		var frames [2][][]byte
		for port := range uint16(racePorts / 2) {
			for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
				for _, v6 := range []bool{false, true} {
					for i, p := range []*peer{a, b} {
						text := fmt.Sprintf("%d of %s proto %d", port, p.ip(v6), proto)
						frames[i] = append(frames[i], p.opener(proto, 5000+port, out.at(v6, 9000), text))
					}
				}
			}
		}
		before := len(out.Frames())
		inStep(t, a, b, frames)
		g.fenceBoth(a, b)
		seen := out.seenAs(before)
		if len(seen) != 4*racePorts {
			t.Errorf("%d ports, and %d of %d first packets arrived", racePorts, len(seen), 4*racePorts)
		}
		owners := map[string]string{}
		for text, from := range seen {
			key := text[len(text)-8:] + from[0].String() // with the protocol
			if was, twice := owners[key]; twice {
				t.Errorf("%q and %q came from %s", was, text, from[0])
			}
			owners[key] = text
		}
		table := g.consistent()
		if n := len(table.sessions); n != 2*4*racePorts {
			t.Errorf("%s, want %d flows", table.size(), 4*racePorts)
		}
		g.empty()
	}
}

// Two CPUs have packets of one inside endpoint at the same time: to several
// remotes, which makes one mapping, and twice the first packet of one flow, which
// makes one flow. From outside through a forward likewise.
func TestStressSameEndpoint(t *testing.T) {
	g := newGate(t, raceConfig)
	in, out, server := g.station(atInside, 0), g.station(atOutside, 0), g.stationAt(g.in[0], 200)
	const ports = racePorts / 2
	lost := 0
	g.families(func(g *gate, v6 bool) {
		g.apply(raceConfig)
		one, two, front := out.at(v6, 9000), out.at(v6, 9001), netip.AddrPortFrom(g.outside(v6), 4000)
		var frames [2][][]byte
		for port := range uint16(ports) {
			frames[0] = append(frames[0], in.opener(pkt.ProtoUDP, 5000+port, one, fmt.Sprint("first ", port)),
				in.opener(pkt.ProtoTCP, 5000+port, one, fmt.Sprint("same ", port)))
			frames[1] = append(frames[1], in.opener(pkt.ProtoUDP, 5000+port, two, fmt.Sprint("second ", port)),
				in.opener(pkt.ProtoTCP, 5000+port, one, fmt.Sprint("same ", port)))
		}
		before := len(out.Frames())
		inStep(g.t, in, in, frames)
		g.fenceBoth(in)
		seen := out.seenAs(before)
		for port := range ports {
			first, second, same := seen[fmt.Sprint("first ", port)], seen[fmt.Sprint("second ", port)], seen[fmt.Sprint("same ", port)]
			if len(first)+len(second) == 0 || len(same) == 0 {
				g.t.Errorf("port %d: of both datagrams and both SYNs arrived %v, %v and %v", port, first, second, same)
				continue
			}
			lost += 4 - len(first) - len(second) - len(same)
			sameFrom(g.t, "datagrams at the same time", slices.Concat(first, second)...)
			sameFrom(g.t, "SYNs at the same time", same...)
		}
		if n := len(g.consistent().sessions); n > 2*3*ports || n < 2*(3*ports-lost) {
			g.t.Errorf("%d halves of %d flows, %d first packets lost", n, 3*ports, lost)
		}

		frames = [2][][]byte{}
		for port := range uint16(ports) {
			for i := range frames {
				frames[i] = append(frames[i], out.opener(pkt.ProtoUDP, 7000+port, front, fmt.Sprint("forwarded ", port)))
			}
		}
		before = len(server.Frames())
		inStep(g.t, out, out, frames)
		g.fenceBoth(out)
		seen = server.seenAs(before)
		for port := range ports {
			n := len(seen[fmt.Sprint("forwarded ", port)])
			if n == 0 {
				g.t.Errorf("of both datagrams of port %d none was forwarded", 7000+port)
			}
			lost += 2 - n
		}
		if n := len(g.consistent().sessions); n > 2*4*ports || n < 2*(4*ports-lost) {
			g.t.Errorf("%d halves of %d flows, %d first packets lost", n, 4*ports, lost)
		}
		g.empty()
	})
	// One of two first packets may meet the other's flow or mapping half way.
	if lost > ports/4 {
		t.Errorf("of %d flows %d first packets were lost", 4*ports, lost)
	}
}
