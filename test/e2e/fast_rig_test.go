package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

const (
	forwardFast, forwardKernel = "fast", "kernel"
	// passFast is what programs count where a packet took the fast path, in and out.
	passFast = "pass_fast"
	// stackEvery: so often one packet of each direction takes the stack all the same.
	stackEvery = 10 * time.Second
)

// newDirect are networks whose cables have no switch in between: a link's state at
// one end is seen at the other, and what a host writes into a packet's scratch area
// arrives.
func newDirect(t *testing.T, opts ...lab.Option) *gate {
	t.Helper()
	return newGateLab(t, append([]lab.Option{lab.Servers(1), lab.Outside(1)}, opts...)...)
}

// fastly says whether packets of this gateway are to take the fast path.
func (g *gate) fastly() bool { return g.forwarding != forwardKernel }

// forwards requires that status tells how known flows are forwarded, as it was asked for.
func (g *gate) forwards() {
	g.t.Helper()
	want := forwardFast
	if !g.fastly() {
		want = forwardKernel
	}
	if f := g.status().Gateway.Forwarding; f.Mode != want {
		g.t.Errorf("status says of forwarding %+v, want %s", f, want)
	}
}

// buffers counts what a program has seen at an interface, in socket buffers.
type buffers struct{ fast, all uint64 }

// counts are those of every place: "eth3 in", "eth0 out".
func (g *gateway) counts() map[string]buffers {
	g.t.Helper()
	all := map[string]buffers{}
	for _, m := range g.status().Members {
		for way, d := range map[string]*loader.DirectionStatus{"in": m.Ingress, "out": m.Egress} {
			if d == nil {
				continue
			}
			b := buffers{fast: d.Reasons[passFast]}
			for _, n := range d.Reasons {
				b.all += n
			}
			all[m.Interface+" "+way] = b
		}
	}
	return all
}

// fastSince is how many took the fast path at a place since it was counted.
func (g *gateway) fastSince(before map[string]buffers, place string) int {
	g.t.Helper()
	return int(g.counts()[place].fast - before[place].fast)
}

// Directions of a conversation.
const (
	wayOut = iota
	wayIn
)

// dialogue is a conversation of two stations, packet by packet: each must arrive as it
// has to be, by whichever path.
type dialogue struct {
	g       *gate
	proto   uint8
	in, out *peer
	a, b    netip.AddrPort // the inside endpoint, and the remote one
	front   netip.AddrPort // a as the remote knows it; found out by the first packet
	eth     [2]string      // interfaces of the gateway: inside, external
	seq     [2]uint32      // TCP: of the inside and of the remote
	said    int
	padded  bool // as links do it
	sent    [2][]*pkt.Parsed
	got     [2][]*pkt.Parsed
	bytes   [2]uint64 // of the frames that were sent
}

// newDialogue is one before its first packet, by eth3 and eth0.
func (g *gate) newDialogue(proto uint8, in *peer, port uint16, out *peer, outPort uint16, v6 bool) *dialogue {
	n := uint32(g.texts.Add(1)) << 14
	return &dialogue{
		g: g, proto: proto, in: in, out: out, a: in.at(v6, port), b: out.at(v6, outPort),
		eth: [2]string{"eth3", "eth0"}, seq: [2]uint32{n, n + 1<<31},
	}
}

// open says what both sides must have said before: what the stack has to see.
func (d *dialogue) open() *dialogue {
	d.g.t.Helper()
	first, second := wayOut, wayIn
	if d.front.IsValid() { // a forward
		first, second = wayIn, wayOut
	}
	if d.proto == pkt.ProtoTCP {
		d.say(first, pkt.SYN, nil)
		d.say(second, pkt.SYN|pkt.ACK, nil)
		d.say(first, pkt.ACK, nil)
		return d
	}
	d.say(first, 0, d.payload(20))
	d.say(second, 0, d.payload(20))
	return d
}

// payload is one that no other packet has, of at least 12 bytes.
func (d *dialogue) payload(size int) []byte {
	b := noise(max(size, 12))
	copy(b, fmt.Sprintf("%012x", d.g.texts.Add(1)))
	return b
}

// ends are who sends to whom, and what the packet says before and behind the gateway.
func (d *dialogue) ends(way int) (from, at *peer, src, dst, newSrc, newDst netip.AddrPort) {
	if way == wayOut {
		return d.in, d.out, d.a, d.b, d.front, d.b
	}
	return d.out, d.in, d.b, d.front, d.b, d.a
}

// frame is the next packet of a direction.
func (d *dialogue) frame(way int, flags uint8, payload []byte) []byte {
	from, _, src, dst, _, _ := d.ends(way)
	var l4 pkt.Layer = pkt.UDP(src.Port(), dst.Port())
	if d.proto == pkt.ProtoTCP {
		l4 = pkt.Segment(src.Port(), dst.Port(), flags, d.seq[way], d.seq[1-way], 0)
	}
	frame := from.frame(dst.Addr(), l4, gopacket.Payload(payload))
	if d.said++; d.said%2 == 0 {
		frame = dontFragment(frame)
	}
	if d.padded {
		frame = append(frame, make([]byte, max(0, 60-len(frame)))...)
	}
	return frame
}

// say sends a packet and requires that it arrives, bit for bit as it has to be.
func (d *dialogue) say(way int, flags uint8, payload []byte) {
	d.g.t.Helper()
	frame := d.frame(way, flags, payload)
	d.arrives(way, frame)
	d.seq[way] += length(flags, string(payload))
}

// arrives sends a frame of the conversation and requires that it arrives.
func (d *dialogue) arrives(way int, frame []byte) {
	d.g.t.Helper()
	from, at, _, _, src, dst := d.ends(way)
	sent := from.raw(frame)
	is := func(p *pkt.Parsed) bool {
		return p.Proto == sent.Proto && p.Dst == dst && bytes.Equal(p.Payload, sent.Payload) &&
			p.Flags == sent.Flags && p.Seq == sent.Seq && p.Ack == sent.Ack
	}
	got := at.want(sent.String(), is)
	if way == wayOut && !d.front.IsValid() {
		d.front, src = got.Src, got.Src
	}
	if want := behind(sent, src, dst); !bytes.Equal(got.IP, want) {
		d.g.t.Errorf("sent %s\n got %x\nwant %x", sent, got.IP, want)
	}
	macs := at.Frames()[at.next-1].Data[:12]
	if !bytes.Equal(macs, append(append(net.HardwareAddr{}, at.MAC...), at.Gateway...)) {
		d.g.t.Errorf("%s arrives from %s to %s, want %s to %s", sent, net.HardwareAddr(macs[6:]), net.HardwareAddr(macs[:6]), at.Gateway, at.MAC)
	}
	d.sent[way], d.got[way] = append(d.sent[way], sent), append(d.got[way], got)
	d.bytes[way] += uint64(len(frame))
}

// behind is a packet behind the gateway: other addresses and ports, one hop less,
// checksums computed anew.
func behind(sent *pkt.Parsed, src, dst netip.AddrPort) []byte {
	b := bytes.Clone(sent.IP)
	v6 := src.Addr().Is6()
	at := 12
	if v6 {
		at = 8
		b[7]--
	} else {
		b[8]--
	}
	copy(b[at:], append(src.Addr().AsSlice(), dst.Addr().AsSlice()...))
	if !v6 {
		b[10], b[11] = 0, 0
		s := ^sum(0, b[:sent.L4])
		b[10], b[11] = byte(s>>8), byte(s)
	}
	l4 := b[sent.L4:]
	l4[0], l4[1], l4[2], l4[3] = byte(src.Port()>>8), byte(src.Port()), byte(dst.Port()>>8), byte(dst.Port())
	switch {
	case sent.Proto == pkt.ProtoTCP:
		finishSum(b, 0, sent.L4, sent.L4+16, v6, false)
	case l4[6]|l4[7] != 0:
		finishSum(b, 0, sent.L4, sent.L4+6, v6, true)
	}
	return b
}

// exchange has n packets of different sizes go each way. The largest goes first: the
// stack is asked about each that is larger than what it has let through.
func (d *dialogue) exchange(n int) {
	d.g.t.Helper()
	for i := range n {
		for _, way := range []int{wayOut, wayIn} {
			flags := uint8(0)
			if d.proto == pkt.ProtoTCP {
				flags = pkt.ACK | pkt.PSH
			}
			d.say(way, flags, d.payload(1400-1390*i/n))
		}
	}
}

// takesFast has packets go each way and requires that they take the fast path, but
// for those that the stack gets to see; with the kernel's forwarding, that none does.
func (d *dialogue) takesFast() {
	d.g.t.Helper()
	d.fastDuring(20, d.exchange)
}

// fastDuring is takesFast for n packets each way that f sends.
func (d *dialogue) fastDuring(n int, f func(n int)) {
	d.g.t.Helper()
	before, began := d.g.counts(), time.Now()
	f(n)
	after := d.g.counts()
	least, most := max(1, n-2-int(time.Since(began)/stackEvery)), n
	if !d.g.fastly() {
		least, most = 0, 0
	}
	for _, place := range []string{d.eth[0] + " in", d.eth[1] + " out", d.eth[1] + " in", d.eth[0] + " out"} {
		if fast := int(after[place].fast - before[place].fast); fast < least || fast > most {
			d.g.t.Errorf("%s > %s: of %d packets, %d took the fast path at %s, want %d to %d", d.a, d.b, n, fast, place, least, most)
		}
	}
}

// flow is what "flows --json" says of it.
func (d *dialogue) flow() loader.Flow {
	d.g.t.Helper()
	r := d.g.must("flows", "--json")
	var all []loader.Flow
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil {
		d.g.t.Fatalf("flows: %v\n%s", err, r)
	}
	for _, f := range all {
		if f.Inside == d.a.String() && f.Remote == d.b.String() && f.Proto == map[uint8]string{pkt.ProtoTCP: "tcp", pkt.ProtoUDP: "udp"}[d.proto] {
			return f
		}
	}
	d.g.t.Fatalf("%s and %s have no flow: %s", d.a, d.b, r.stdout)
	return loader.Flow{}
}

// saysFast requires that "flows" says of it whether it is fast: by its last packets,
// of which one in ten seconds takes the stack.
func (d *dialogue) saysFast() {
	d.g.t.Helper()
	eventually(d.g.t, func() string {
		d.exchange(1)
		if f := d.flow(); f.Fast != d.g.fastly() {
			return fmt.Sprintf("flows says fast: %v of %+v", f.Fast, f)
		}
		return ""
	})
}

// accounts requires that the flow's own counters are exact.
func (d *dialogue) accounts(copied bool) {
	d.g.t.Helper()
	f := d.flow()
	n := [2]uint64{uint64(len(d.sent[wayOut])), uint64(len(d.sent[wayIn]))}
	want := uint64(0)
	if copied {
		want = n[0] + n[1]
	}
	if f.PacketsOut != n[0] || f.PacketsIn != n[1] || f.BytesOut != d.bytes[0] || f.BytesIn != d.bytes[1] || f.Copied != want {
		d.g.t.Errorf("sent %d and %d packets, %d and %d bytes, of which %d to copy; flows says %+v", n[0], n[1], d.bytes[0], d.bytes[1], want, f)
	}
}

// Where a mirror sees a conversation.
const (
	atInternal = iota // before the translation, and after its reverse
	atExternal
	whereFrom // where each packet comes in, without translation
)

// mirrored requires that the sensor got each packet of the conversation once, in its
// order and bit for bit, as it looks at that side, sent to this MAC.
func (d *dialogue) mirrored(c *lab.Capture, mac net.HardwareAddr, side int) {
	d.g.t.Helper()
	want := [2][]*pkt.Parsed{d.sent[wayOut], d.got[wayIn]}
	a := d.a
	if side == atExternal {
		want, a = [2][]*pkt.Parsed{d.got[wayOut], d.sent[wayIn]}, d.front
	}
	if side == whereFrom {
		want = d.sent
	}
	var seen [2][][]byte
	look := func(frames []lab.Frame) bool {
		seen = [2][][]byte{}
		for _, f := range frames {
			p, err := pkt.Parse(f.Data)
			if err != nil || p.Proto != d.proto || !bytes.Equal(f.Data[:6], mac) {
				continue
			}
			switch {
			case p.Src == a && p.Dst == d.b:
				seen[wayOut] = append(seen[wayOut], p.IP)
			case p.Src == d.b && p.Dst == a:
				seen[wayIn] = append(seen[wayIn], p.IP)
			}
		}
		return len(seen[0]) >= len(want[0]) && len(seen[1]) >= len(want[1])
	}
	if _, err := c.WaitFor(look, gateWait); err != nil {
		d.g.t.Errorf("%s and %s: %v", a, d.b, err)
	}
	for way := range seen {
		if len(seen[way]) != len(want[way]) {
			d.g.t.Errorf("%s and %s, direction %d: the sensor got %d packets of %d", a, d.b, way, len(seen[way]), len(want[way]))
			continue
		}
		for i, p := range want[way] {
			if !bytes.Equal(seen[way][i], p.IP) {
				d.g.t.Errorf("packet %d of direction %d: the sensor got\n     %x\nwant %x", i, way, seen[way][i], p.IP)
				break
			}
		}
	}
}
