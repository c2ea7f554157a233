package e2e

import (
	"bytes"
	bin "encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"

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
