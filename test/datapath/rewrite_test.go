package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// redirect is TC_ACT_REDIRECT.
const redirect = int32(7)

// The outside addresses that inside hosts get.
var (
	rewritePool  = netip.MustParseAddr("203.0.113.20")
	rewritePool6 = netip.MustParseAddr("2001:db8:113::20")
)

func poolOf(v4 bool) netip.Addr {
	if v4 {
		return rewritePool
	}
	return rewritePool6
}

// translator is a gateway of its own, whose flows are nobody else's business.
type translator struct {
	*rig
	rng
	complete bool // BPF_PROG_RUN can watch skb->csum (6.11)
}

// TestRewrite: packets through the programs, compared with what they shall become.
// TAPGATE_REWRITE_SEED repeats a run.
func TestRewrite(t *testing.T) {
	requireIngressIfindex(t)
	r, err := newRig()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("TAPGATE_REWRITE_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	tr := &translator{rig: r}
	const flag = 1 << 2 // BPF_F_TEST_SKB_CHECKSUM_COMPLETE
	frame := shape{proto: unix.IPPROTO_UDP, ttl: 64}.frame(ends{insiders[0], insiders[1], 1, 2})
	_, err = r.programs["dmz_in"].Run(&ebpf.RunOptions{Data: frame, Flags: flag})
	if err != nil && !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	tr.complete = err == nil
	for _, test := range []struct {
		name string
		run  func(*translator, *testing.T)
	}{
		{"packets", (*translator).packets}, {"errors", (*translator).errors}, {"bad_errors", (*translator).badErrors},
		{"clamp", (*translator).clamp}, {"answer", (*translator).answers},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Logf("TAPGATE_REWRITE_SEED=%d", seed)
			tr.rng = rng{rand.New(rand.NewPCG(seed, 0))}
			test.run(tr, t)
		})
	}
}

// configure puts a masquerade in force.
func (tr *translator) configure(t *testing.T, change func(*loader.NAT)) {
	t.Helper()
	cfg := policy()
	cfg.Zones[1].Prefixes = []netip.Prefix{netip.MustParsePrefix("192.168.3.0/24"), netip.MustParsePrefix("2001:db8:3::/64")}
	cfg.NAT = &loader.NAT{Masquerades: []loader.Masquerade{{
		Name: "in", From: "internal", To: "external", IPv6: true,
		Addresses: []netip.Prefix{netip.PrefixFrom(rewritePool, 32), netip.PrefixFrom(rewritePool6, 128)},
	}}}
	change(cfg.NAT)
	if _, err := tr.gw.Apply(cfg); err != nil {
		t.Fatal(err)
	}
}

// out is a packet that an inside host sends, as external egress gets it; in is
// one of a remote at external ingress.
func (tr *translator) out(t *testing.T, frame []byte) outcome {
	return tr.through(t, "tap_out", skb{Ifindex: external, IngressIfindex: internal}, frame)
}

func (tr *translator) in(t *testing.T, frame []byte) outcome {
	return tr.through(t, "tap_in", skb{Ifindex: external}, frame)
}

// through runs a packet, and again as one whose whole sum the device has told.
// The kernel then compares skb->csum with the bytes afterwards.
func (tr *translator) through(t *testing.T, program string, ctx skb, frame []byte) outcome {
	t.Helper()
	o := tr.run(t, program, ctx, frame)
	if !tr.complete || o.verdict != next {
		return o
	}
	opts := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: &ctx, Flags: 1 << 2}
	err := tr.Gateway.Do(func() error {
		_, err := tr.programs[program].Run(opts)
		return err
	})
	if err != nil {
		t.Fatalf("skb->csum does not fit to the packet: %v\n%x\nbecame\n%x", err, frame, o.data)
	}
	if !bytes.Equal(opts.DataOut, o.data) {
		t.Fatalf("with skb->csum\n%x\nwithout\n%x", opts.DataOut, o.data)
	}
	return o
}

// became fails unless the packet passed as these bytes.
func (o outcome) became(t *testing.T, what any, frame, want []byte) {
	t.Helper()
	if o.verdict == next && bytes.Equal(o.data, want) {
		return
	}
	at := 0
	for at < min(len(o.data), len(want)) && o.data[at] == want[at] {
		at++
	}
	t.Fatalf("%+v: verdict %d, first difference at byte %d\nwas  %x\ngot  %x\nwant %x", what, o.verdict, at, frame, o.data, want)
}

// flow is one that the gateway translates.
type flow struct {
	v4              bool
	shape           shape
	inside, outside ends // as the inside host sends, as the remote gets it
}

// open sends the first packet of a flow, and looks what became of it.
func (tr *translator) open(t *testing.T) flow {
	t.Helper()
	f := flow{v4: tr.chance(2)}
	f.shape = tr.shape(f.v4)
	host := []byte{192, 168, 3, uint8(2 + tr.IntN(200))}
	if !f.v4 {
		host = append(netip.MustParseAddr("2001:db8:3::").AsSlice()[:8], tr.noise(8)...)
	}
	src, _ := netip.AddrFromSlice(host)
	f.inside = ends{src, tr.remote(f.v4), uint16(1024 + tr.IntN(60000)), uint16(1 + tr.IntN(65535))}
	switch {
	case f.shape.portless():
		f.inside.sport, f.inside.dport = 0, 0
	case f.shape.query():
		f.inside.dport = 0
	}
	frame := f.shape.frame(f.inside)
	o := tr.out(t, frame)
	f.outside = f.inside
	f.outside.src = poolOf(f.v4)
	if f.inside.sport != 0 {
		f.outside.sport = f.shape.port(o.data, f.inside, 0)
	}
	if f.shape.proto == unix.IPPROTO_SCTP && f.outside.sport != f.inside.sport {
		t.Fatalf("SCTP port %d became %d: its CRC cannot be right", f.inside.sport, f.outside.sport)
	}
	o.became(t, f, frame, f.shape.frame(f.outside))
	return f
}

// packets: flows of all protocols, both ways, IP options,
// extension headers and without UDP checksum.
func (tr *translator) packets(t *testing.T) {
	tr.configure(t, func(*loader.NAT) {})
	for range 800 {
		f := tr.open(t)
		s := tr.answer(f.shape)
		frame := s.frame(f.outside.turned())
		tr.in(t, frame).became(t, f, frame, s.frame(f.inside.turned()))
		// A tagged frame is that of a VLAN interface above: not ours to translate.
		tagged := s
		tagged.tags = 1
		frame = tagged.frame(f.outside.turned())
		tr.in(t, frame).became(t, f, frame, frame)
		if f.shape.proto != unix.IPPROTO_UDP {
			continue
		}
		// A checksum that comes out as 0 says that there is none: it is written as
		// 0xffff, from which it goes on as from 0.
		s = f.shape
		s.noSum, s.zeroSum = false, true
		want := s.frame(f.outside)
		s.payload, s.zeroSum = want[len(want)-len(s.payload):], false
		frame = s.frame(f.inside)
		tr.out(t, frame).became(t, f, frame, want)
		s.zeroSum = true
		frame = s.frame(f.outside.turned())
		s.payload, s.zeroSum = frame[len(frame)-len(s.payload):], false
		tr.in(t, frame).became(t, f, frame, s.frame(f.inside.turned()))
	}
}

// clamp: the MSS of SYNs, both ways, wherever the option stands.
func (tr *translator) clamp(t *testing.T) {
	tr.configure(t, func(n *loader.NAT) { n.ClampMSS = true })
	const most = 1460 // of eth0's MTU
	for i := range 200 {
		mss := oneOf[uint16](tr.rng, 536, 1459, 1460, 1461, 8960, 65535)
		opts, at := tr.options(mss)
		s := shape{proto: unix.IPPROTO_TCP, ttl: 64, tcpFlags: 2, tcpOpts: opts, options: oneOf(tr.rng, 0, 1)}
		in := ends{netip.AddrFrom4([4]byte{192, 168, 3, uint8(2 + tr.IntN(200))}), tr.remote(true), uint16(2000 + i), 80}
		frame := s.frame(in)
		o := tr.out(t, frame)
		out := in
		out.src, out.sport = rewritePool, s.port(o.data, in, 0)
		w := s
		w.tcpOpts = bytes.Clone(opts)
		if at >= 0 && mss > most {
			binary.BigEndian.PutUint16(w.tcpOpts[at:], most)
		}
		o.became(t, fmt.Sprintf("options %x", opts), frame, w.frame(out))
		s.tcpFlags, w.tcpFlags = 0x12, 0x12
		frame = s.frame(out.turned())
		tr.in(t, frame).became(t, fmt.Sprintf("options %x", opts), frame, w.frame(in.turned()))
		s.tcpFlags = 0x10
		frame = s.frame(in)
		tr.out(t, frame).became(t, "no SYN", frame, s.frame(out))
	}
}

// options are those of a SYN, and where among them the value of the MSS stands,
// -1 if the option is not there or is not to be found.
func (r rng) options(mss uint16) (opts []byte, at int) {
	at = -1
	switch r.IntN(4) {
	case 0:
		opts = append(opts, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8)
	case 1:
		opts = append(opts, 1)
	case 2:
		opts = append(opts, 1, 1, 3, 3, 7)
	}
	cut := r.chance(8)
	if cut {
		opts = append(opts, oneOf[byte](r, 0, 5), 0) // the end, or an option that ends before it begins
	}
	if !r.chance(6) {
		if !cut {
			at = len(opts) + 2
		}
		opts = append(opts, 2, 4, uint8(mss>>8), uint8(mss))
	}
	if r.chance(2) {
		opts = append(opts, 4, 2, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8)
	}
	for len(opts)%4 != 0 {
		opts = append(opts, oneOf[byte](r, 0, 1))
	}
	return opts, at
}
