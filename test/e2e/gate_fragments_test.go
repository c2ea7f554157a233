package e2e

import (
	"bytes"
	bin "encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"

	"tapgate/test/kernels"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// datagram is a fragmented packet to be.
type datagram struct {
	frame []byte // whole
	id    uint32
	size  int // bytes of a fragment
}

// cut makes the fragments' frames.
func (d datagram) cut(t *testing.T) [][]byte { return fragments(t, d.frame, d.id, d.size) }

// ttl is that of its fragments.
func (d datagram) ttl(t *testing.T) uint8 {
	t.Helper()
	p, err := pkt.Parse(d.frame)
	if err != nil {
		t.Fatal(err)
	}
	return p.TTL
}

// fragOrders are the orders that fragments may come in, but for the natural one.
var fragOrders = []struct {
	name string
	of   func(n int) []int
}{
	{"reversed", func(n int) []int { o := inOrder(n); slices.Reverse(o); return o }},
	{"last first", func(n int) []int { return append([]int{n - 1}, inOrder(n-1)...) }},
	{"first last", func(n int) []int { return append(inOrder(n)[1:], 0) }},
	{"shuffled", rand.Perm},
	{"each twice", func(n int) (o []int) {
		for _, i := range rand.Perm(n) {
			o = append(o, i, i)
		}
		return o
	}},
}

func inOrder(n int) []int {
	o := make([]int, n)
	for i := range o {
		o[i] = i
	}
	return o
}

// sendCut sends fragments in an order.
func (p *peer) sendCut(all [][]byte, order []int) {
	p.g.t.Helper()
	for _, i := range order {
		if err := p.Send(all[i]); err != nil {
			p.g.t.Fatal(err)
		}
	}
}

// wholes puts together what has come, by what tells datagrams apart, as strictly as
// it can be done: bytes that come twice must be the same.
func wholes(frames []lab.Frame) (all []*pkt.Parsed, broken []string) {
	type key struct {
		src, dst netip.Addr
		id       uint32
		proto    uint8
	}
	type pile struct {
		body []byte
		have []bool
		end  int
		head []byte // IP header of the first one
	}
	piles := map[key]*pile{}
	for _, f := range frames {
		p, err := pkt.Parse(f.Data)
		if err != nil {
			continue
		}
		if !p.More && p.Offset == 0 {
			all = append(all, p)
			continue
		}
		for _, bad := range p.Bad {
			broken = append(broken, "a fragment's "+bad)
		}
		k := key{p.Src.Addr(), p.Dst.Addr(), p.ID, p.Proto}
		q := piles[k]
		if q == nil {
			q = &pile{end: -1}
			piles[k] = q
		}
		part := p.IP[p.L4:]
		if p.Offset == 0 {
			q.head = p.IP[:p.L4]
		}
		if !p.More {
			q.end = p.Offset + len(part)
		}
		for len(q.body) < p.Offset+len(part) {
			q.body, q.have = append(q.body, 0), append(q.have, false)
		}
		for i, b := range part {
			if at := p.Offset + i; q.have[at] && q.body[at] != b {
				broken = append(broken, fmt.Sprintf("byte %d of %v came twice and differs", at, k))
			}
			q.body[p.Offset+i], q.have[p.Offset+i] = b, true
		}
		if q.head == nil || q.end != len(q.body) || slices.Contains(q.have, false) {
			continue
		}
		// One may come with the same id after it.
		delete(piles, k)
		frame := append(make([]byte, 12, 14+len(q.head)+len(q.body)), 0x08, 0)
		if k.src.Is4() {
			frame = append(append(frame, q.head...), q.body...)
			bin.BigEndian.PutUint16(frame[16:], uint16(len(frame)-14))
			bin.BigEndian.PutUint16(frame[20:], 0)
			bin.BigEndian.PutUint16(frame[24:], 0)
			bin.BigEndian.PutUint16(frame[24:], ^sum(0, frame[14:14+len(q.head)]))
		} else {
			frame[12], frame[13] = 0x86, 0xdd
			frame = append(append(frame, q.head[:40]...), q.body...)
			frame[20] = k.proto
			bin.BigEndian.PutUint16(frame[18:], uint16(len(q.body)))
		}
		if p, err = pkt.Parse(frame); err == nil {
			p.ID = k.id
			all = append(all, p)
		}
	}
	return all, broken
}

// wantWhole waits until fragments with that payload have come, p.next being the
// first of them at most, and says what they make together.
func (p *peer) wantWhole(what string, payload []byte) *pkt.Parsed {
	p.g.t.Helper()
	var found *pkt.Parsed
	frames, err := p.WaitFor(func(frames []lab.Frame) bool {
		all, _ := wholes(frames[p.next:])
		for _, got := range all {
			if bytes.Equal(got.Payload, payload) {
				found = got
				return true
			}
		}
		return false
	}, gateWait)
	all, broken := wholes(frames[p.next:])
	if err != nil {
		p.g.t.Fatalf("%s: %s waits for %d bytes in fragments, and has %d whole packets: %v; it got:\n%s",
			what, p.Addr, len(payload), len(all), err, strings.Join(brieflyAll(frames), "\n"))
	}
	if len(broken)+len(found.Bad) > 0 {
		p.g.t.Errorf("%s: %s has %v %v", what, p.Addr, broken, found.Bad)
	}
	return found
}

// big is a payload that no other packet has.
func (g *gate) big(size int) []byte {
	b := noise(size)
	copy(b, g.text())
	return b
}

// cutUDP is a datagram by UDP.
func (p *peer) cutUDP(from uint16, to netip.AddrPort, payload []byte) datagram {
	p.g.t.Helper()
	return p.datagram(p.frame(to.Addr(), pkt.UDP(from, to.Port()), gopacket.Payload(payload)))
}

// datagram has a random id, and fragments of a random size.
func (p *peer) datagram(frame []byte) datagram {
	return datagram{frame: frame, id: uint32(rand.IntN(1 << 16)), size: 8 * (64 + rand.IntN(110))}
}

// fragExchange is what crosses the gateway both ways. v6 is known to its maker.
type fragExchange struct {
	name string
	// out makes a datagram from inside, and back one to where it arrived from.
	out  func(payload []byte) datagram
	back func(payload []byte, to *pkt.Parsed) datagram
}

// fragExchanges are UDP, ICMP queries and TCP between two stations. A TCP
// connection is opened before.
func fragExchanges(in, out *peer, v6 bool) []fragExchange {
	g := in.g
	s := g.connect(in, 5100, out, 9100, v6)
	return []fragExchange{
		{"UDP",
			func(b []byte) datagram { return in.cutUDP(5000, out.at(v6, 9000), b) },
			func(b []byte, to *pkt.Parsed) datagram { return out.cutUDP(9000, to.Src, b) },
		},
		{"echo",
			func(b []byte) datagram {
				return in.datagram(in.frame(out.ip(v6), pkt.Query(v6, false, 77, 1, string(b))...))
			},
			func(b []byte, to *pkt.Parsed) datagram {
				return out.datagram(out.frame(to.Src.Addr(), pkt.Query(v6, true, to.Echo, 1, string(b))...))
			},
		},
		{"TCP",
			func(b []byte) datagram {
				d := in.datagram(in.frame(s.b.Addr(), pkt.Segment(s.a.Port(), s.b.Port(), pkt.ACK, s.inSeq, s.ouSeq, 0), gopacket.Payload(b)))
				s.inSeq += uint32(len(b))
				return d
			},
			func(b []byte, _ *pkt.Parsed) datagram {
				d := out.datagram(out.frame(s.ext.Addr(), pkt.Segment(s.b.Port(), s.ext.Port(), pkt.ACK, s.ouSeq, s.inSeq, 0), gopacket.Payload(b)))
				s.ouSeq += uint32(len(b))
				return d
			},
		},
	}
}

// REQ-14 of RFC 4787 in order, which every kernel can; both ways, for each protocol.
func TestGateFragmentsShortInOrder(t *testing.T) {
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		for _, x := range fragExchanges(in, out, v6) {
			for range 4 {
				x.across(g, in, out, "in order", inOrder, inOrder)
			}
		}
	})
}

// across sends a datagram out and one back, each in its order.
func (x fragExchange) across(g *gate, in, out *peer, name string, there, back func(int) []int) {
	g.t.Helper()
	sizes := []int{2000, 3333, 5000, 8000}
	payload := g.big(sizes[rand.IntN(len(sizes))])
	in.next, out.next = len(in.Frames()), len(out.Frames())
	d := x.out(payload)
	all := d.cut(g.t)
	in.sendCut(all, there(len(all)))
	got := out.wantWhole(x.name+" out, "+name, payload)
	if got.Src.Addr() != g.outside(got.Src.Addr().Is6()) || got.TTL != d.ttl(g.t)-1 {
		g.t.Errorf("%s out, %s: it came from %s with TTL %d", x.name, name, got.Src, got.TTL)
	}
	payload = g.big(sizes[rand.IntN(len(sizes))])
	d = x.back(payload, got)
	all = d.cut(g.t)
	out.sendCut(all, back(len(all)))
	got = in.wantWhole(x.name+" in, "+name, payload)
	if got.Dst.Addr() != in.ip(got.Dst.Addr().Is6()) || got.TTL != d.ttl(g.t)-1 {
		g.t.Errorf("%s in, %s: it came to %s with TTL %d", x.name, name, got.Dst, got.TTL)
	}
}

// Out of order on the way out, every kernel can as well: later fragments have the paired
// address, and an id that the first one gets as well.
func TestGateFragmentsShortOut(t *testing.T) {
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		for _, x := range fragExchanges(in, out, v6) {
			for _, o := range fragOrders {
				x.across(g, in, out, o.name, o.of, inOrder)
			}
		}
	})
}

// REQ-14 of RFC 4787 out of order, both ways.
func TestGateFragmentsShortOutOfOrder(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	g := newGate(t, gateBoth)
	if s := g.status(); s.Gateway == nil || !s.Gateway.Reorders {
		t.Fatalf("status: %+v", s.Gateway)
	}
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		for _, x := range fragExchanges(in, out, v6) {
			for _, o := range fragOrders {
				for range 4 {
					x.across(g, in, out, o.name, o.of, o.of)
				}
			}
		}
	})
}

// A network interface may give first fragments to one CPU and later ones to
// another: whichever is faster, the datagram arrives.
func TestGateFragmentsRace(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	const rounds = 2000
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		ext := g.mapUDP(in, 5000, out, 9000, v6)
		for name, way := range map[string]struct {
			host     *lab.Host
			from, to *peer
			make     func(b []byte) datagram
		}{
			"in":  {g.out[0], out, in, func(b []byte) datagram { return out.cutUDP(9000, ext, b) }},
			"out": {g.in[0], in, out, func(b []byte) datagram { return in.cutUDP(5000, out.at(v6, 9000), b) }},
		} {
			before := len(way.to.Frames())
			var parts [2][][]byte
			for i := range rounds {
				d := way.make(g.big(200))
				d.id, d.size = uint32(i), 104
				for n, f := range d.cut(g.t) {
					parts[n] = append(parts[n], f)
				}
			}
			var turn atomic.Int64
			errs := make(chan error, 2)
			for cpu := range parts {
				go func() {
					errs <- onCPU(cpu, func() error {
						s, err := way.host.Sender("eth0")
						if err != nil {
							return err
						}
						defer s.Close()
						for i, f := range parts[cpu] {
							// Both begin each round at the same time.
							for turn.Add(1); turn.Load() < int64(2*i+2); {
							}
							if err := s.Send(f); err != nil {
								return err
							}
						}
						return nil
					})
				}()
			}
			for range parts {
				if err := <-errs; err != nil {
					g.t.Fatal(err)
				}
			}
			g.fence(way.from)
			count := func(frames []lab.Frame) (n int) {
				all, _ := wholes(frames[before:])
				for _, p := range all {
					if len(p.Payload) == 200 {
						n++
					}
				}
				return n
			}
			if frames, err := way.to.WaitFor(func(frames []lab.Frame) bool { return count(frames) >= rounds }, gateWait); err != nil {
				g.t.Errorf("%s: %d of %d datagrams arrived", name, count(frames), rounds)
			}
		}
	})
}

// onCPU runs f on one CPU, modulo those there are.
func onCPU(cpu int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	one.Set(cpu % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return errors.Join(f(), unix.SchedSetaffinity(0, &before))
}

// The gateway's own traffic in fragments, in any order.
func TestGateFragmentsOfTheGateway(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		_, out := g.pair()
		c := g.udpSocket(g.Gateway, netip.AddrPortFrom(g.outside(v6), 0))
		own := netip.AddrPortFrom(g.outside(v6), uint16(c.LocalAddr().(*net.UDPAddr).Port))
		orders := []func(int) []int{inOrder}
		for _, o := range fragOrders {
			orders = append(orders, o.of)
		}
		for _, order := range orders {
			payload := g.big(5000)
			all := out.cutUDP(9000, own, payload).cut(g.t)
			out.sendCut(all, order(len(all)))
			g.receive(c, string(payload))
			g.sendTo(c, out.at(v6, 9000), string(payload))
			if got := out.wantWhole("from the gateway", payload); got.Src != own {
				g.t.Errorf("it came from %s", got.Src)
			}
		}
	})
}

// A flow may begin with fragments out of order, through a forward, too.
func TestGateFragmentsForward(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	g := newGateLab(t)
	server := g.station(atInside, 0)
	g.apply(gateZones + fmt.Sprintf(`
nat:
  masquerade:
    - {from: internal, to: external}
  forwards:
    - {name: dns, in: external, proto: udp, port: 53, to: "%s:5353"}
`, server.Addr))
	for _, o := range fragOrders {
		out := g.station(atOutside, 0)
		payload := g.big(4000)
		all := out.cutUDP(9000, netip.AddrPortFrom(g.outside(false), 53), payload).cut(t)
		out.sendCut(all, o.of(len(all)))
		got := server.wantWhole(o.name, payload)
		if got.Dst != server.at(false, 5353) || got.Src != out.at(false, 9000) {
			t.Errorf("it came as %s", got)
		}
		payload = g.big(4000)
		all = server.cutUDP(5353, got.Src, payload).cut(t)
		server.sendCut(all, o.of(len(all)))
		if got := out.wantWhole("answer, "+o.name, payload); got.Src.Port() != 53 {
			t.Errorf("the answer came as %s", got)
		}
	}
}

// RFC 6864 5.3.1: hosts that use the same ids at the same time, their fragments
// mixed in any order: each datagram arrives as it was sent.
func TestGateFragmentsSameID(t *testing.T) {
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in := []*peer{g.station(atInside, 0), g.station(atInside, 1), g.station(atInside, 0)}
		out := g.station(atOutside, 0)
		for round := range 20 {
			type part struct {
				from  *peer
				frame []byte
			}
			out.next = len(out.Frames())
			var mixed []part
			var payloads [][]byte
			for _, p := range in {
				payload := g.big(3000)
				d := p.cutUDP(5000, out.at(v6, 9000), payload)
				d.id, d.size = 4711+uint32(round/2), 512
				for _, f := range d.cut(g.t) {
					mixed = append(mixed, part{p, f})
				}
				payloads = append(payloads, payload)
			}
			rand.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
			for _, m := range mixed {
				if err := m.from.Send(m.frame); err != nil {
					g.t.Fatal(err)
				}
			}
			ids := map[uint32]bool{}
			for _, payload := range payloads {
				ids[out.wantWhole("mixed", payload).ID] = true
			}
			if len(ids) != len(in) {
				g.t.Fatalf("round %d: %d datagrams of one address under way at once have the ids %v", round, len(in), ids)
			}
		}
	})
}

// Nothing that overlaps gets an inside host to take what was not sent; and what
// comes after it arrives.
func TestGateFragmentsOverlap(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		ext := g.mapUDP(in, 5000, out, 9000, v6)
		d := out.cutUDP(9000, ext, g.big(3000))
		d.size = 512
		all := d.cut(g.t)
		other := out.cutUDP(9000, ext, g.big(3000))
		other.id, other.size = d.id, 768 // overlaps the one before by 256 bytes
		evil := other.cut(g.t)
		out.sendCut([][]byte{all[5], all[4], evil[2], all[3], all[2], all[1], all[0]}, inOrder(7))
		g.fence(out)
		good := g.big(3000)
		all = out.cutUDP(9000, ext, good).cut(g.t)
		slices.Reverse(all)
		out.sendCut(all, inOrder(len(all)))
		in.wantWhole("after fragments that overlap", good)
		whole, broken := wholes(in.Frames())
		for _, got := range whole {
			if len(got.Payload) == 3000 && !bytes.Equal(got.Payload, good) {
				g.t.Errorf("a datagram whose parts overlap arrived: %s", got)
			}
		}
		if len(broken) > 0 {
			g.t.Error(broken)
		}
	})
}

// REQ-14a of RFC 4787: floods of fragments from one side or the other take nothing
// from datagrams of others, in order or not.
func TestGateFragmentsFlood(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	const flood = 10_000
	g := newGate(t, gateBoth)
	for _, f := range []struct {
		name    string
		inside  bool // the flood comes from there
		part    func(all [][]byte) []byte
		mapping bool // and is for a flow
		waits   bool // for others that never come
	}{
		{"first fragments of a flow", false, func(all [][]byte) []byte { return all[0] }, true, false},
		{"first fragments of none", false, func(all [][]byte) []byte { return all[0] }, false, false},
		{"later fragments", false, func(all [][]byte) []byte { return all[1] }, true, true},
		{"first fragments from inside", true, func(all [][]byte) []byte { return all[0] }, true, false},
		{"later fragments from inside", true, func(all [][]byte) []byte { return all[1] }, true, false},
	} {
		t.Run(f.name, func(t *testing.T) {
			g := g.with(t)
			in, out := g.pair()
			bad := g.station(atOutside, 1)
			if f.inside {
				bad = g.station(atInside, 1)
			}
			ext := g.mapUDP(in, 5000, out, 9000, false)
			target := out.at(false, 9000)
			if !f.inside {
				target = netip.AddrPortFrom(ext.Addr(), 7)
				if f.mapping {
					in.udp(5000, bad.at(false, 9000), "let it in")
					bad.wantText("let it in")
					target = ext
				}
			}
			d := bad.cutUDP(9000, target, noise(1000))
			d.size = 512
			before := g.strays()
			x := fragExchange{"UDP",
				func(b []byte) datagram { return in.cutUDP(5000, out.at(false, 9000), b) },
				func(b []byte, to *pkt.Parsed) datagram { return out.cutUDP(9000, to.Src, b) },
			}
			for n := range flood {
				d.id = uint32(n)
				if err := bad.Send(f.part(d.cut(t))); err != nil {
					t.Fatal(err)
				}
				if n%500 == 0 {
					x.across(g, in, out, "in order", inOrder, inOrder)
					x.across(g, in, out, "reversed", fragOrders[0].of, fragOrders[0].of)
				}
			}
			x.across(g, in, out, "shuffled", rand.Perm, rand.Perm)
			if dropped := g.strays() - before; f.waits && dropped < flood/2 {
				t.Errorf("%d of %d later fragments without a first one were refused", dropped, flood)
			}
		})
	}
}

// What puts fragments in order goes with the gateway, comes again if somebody took
// it away, and a run that was killed anywhere leaves nothing that the next one
// does not mend.
func TestGateFragmentsLifecycle(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	g := newGateLab(t)
	g.apply(gateBoth)
	reversed := func() {
		t.Helper()
		in, out := g.pair()
		for _, x := range fragExchanges(in, out, false)[:1] {
			x.across(g, in, out, "reversed", fragOrders[0].of, fragOrders[0].of)
		}
	}
	reversed()
	g.ip(g.Gateway, "link del tg-frag0")
	s := g.status()
	if s.Gateway.Reorders || !slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, "tg-frag0 is gone") }) {
		t.Errorf("without its interface: %v, problems %q", s.Gateway.Reorders, s.Problems)
	}
	g.apply(gateBoth)
	reversed()

	// Only tapping: nothing of it.
	g.apply(gateZones)
	if names := g.interfaces(); slices.Contains(names, "tg-frag0") {
		t.Errorf("while only tapping there are %v", names)
	}
	if _, err := os.Stat(filepath.Join(g.stateDir(), "reassembly")); err == nil {
		t.Error("while only tapping there are pins")
	}
	g.apply(gateBoth)
	ids := bpfIDs{}
	ids.owned(t, g.bpffs)
	g.must("detach")
	ids.gone(t)
	if names := g.interfaces(); slices.Contains(names, "tg-frag0") {
		t.Errorf("after detach there are %v", names)
	}
}

// A stranger's interface of that name is left alone, and said.
func TestGateFragmentsNameTaken(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	g := newGateLab(t)
	g.ip(g.Gateway, "link add tg-frag0 type veth peer name other")
	config := filepath.Join(g.Dir, "gate.yaml")
	if err := os.WriteFile(config, []byte(gateBoth), 0o600); err != nil {
		t.Fatal(err)
	}
	r := g.tapgate("apply", "-f", config)
	if r.code == 0 || !strings.Contains(r.stderr, "tg-frag0") {
		t.Errorf("apply: %s", r)
	}
	if names := g.interfaces(); !slices.Contains(names, "tg-frag0") || !slices.Contains(names, "other") {
		t.Errorf("there are %v", names)
	}
	g.ip(g.Gateway, "link del tg-frag0")
	g.apply(gateBoth)
}

func TestGateFragmentsKilled(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	g := newGateLab(t)
	before := g.list()
	k := killer{g: g.gateway, empty: len(tree(t, g.bpffs)), rng: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0)), config: g.Dir + "/config.yaml"}
	if err := os.WriteFile(k.config, []byte(gateBoth), 0o600); err != nil {
		t.Fatal(err)
	}
	stands := func(g *gateway) string {
		if s := g.status(); s.Gateway == nil || !s.Gateway.Reorders || len(s.Problems) > 0 {
			return fmt.Sprintf("status: %+v, problems %q", s.Gateway, s.Problems)
		}
		return ""
	}
	k.command(killed{"apply -f CONFIG", []string{"detach"}, stands})
	k.command(killed{"detach", []string{"apply -f CONFIG"}, wantNothing})
	g.must("apply", "-f", k.config)
	ids := bpfIDs{}
	ids.owned(t, g.bpffs)
	g.must("detach")
	ids.gone(t)
	g.sameAs(before)
}

// strays is how many fragments from outside were refused.
func (g *gate) strays() uint64 {
	g.t.Helper()
	for _, m := range g.status().Members {
		if m.Interface == "eth0" {
			return m.Ingress.Reasons["drop_fragment"]
		}
	}
	return 0
}
