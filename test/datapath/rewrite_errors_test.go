package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// errors: ICMP errors about flows, from both sides and from the gateway
// itself, with quoted packets of any length; RFC 5508 REQ-3, 4, 5.
func (tr *translator) errors(t *testing.T) {
	tr.configure(t, func(*loader.NAT) {})
	for range 500 {
		f := tr.open(t)
		// From outside, about what the inside host sent. A router keeps its address.
		q := tr.report(f.v4, f.shape)
		from := oneOf(tr.rng, f.inside.dst, tr.remote(f.v4))
		frame := q.frame(from, f.outside.src, f.outside)
		want := q.frame(from, f.inside.src, f.inside)
		tr.in(t, frame).became(t, q, frame, want)

		// From inside, by the host, a router before it or the gateway's own kernel: the
		// outside sees one address only.
		q = tr.report(f.v4, tr.answer(f.shape))
		ctx := skb{Ifindex: external, IngressIfindex: internal}
		from = f.inside.src
		switch tr.IntN(3) {
		case 0:
			ctx.IngressIfindex = 0
			if f.v4 {
				from = outsideIP
			}
		case 1:
			if f.v4 {
				from = insiders[0]
			} else {
				from = insiders[3]
			}
		}
		frame = q.frame(from, f.inside.dst, f.inside.turned())
		want = q.frame(f.outside.src, f.inside.dst, f.outside.turned())
		tr.through(t, "tap_out", ctx, frame).became(t, q, frame, want)
	}
}

// badErrors: each sum that RFC 5508 REQ-3 asks to verify, and the one
// that it asks not to.
func (tr *translator) badErrors(t *testing.T) {
	tr.configure(t, func(*loader.NAT) {})
	for range 100 {
		f := tr.open(t)
		q := tr.report(f.v4, f.shape)
		frame := q.frame(f.inside.dst, f.outside.src, f.outside)
		l4 := 14 + 4*q.outer.tags + 40
		if f.v4 {
			l4 = 14 + 4*q.outer.tags + 20 + 4*q.outer.options
		}
		wrong := bytes.Clone(frame)
		wrong[l4+tr.IntN(len(wrong)-l4)] ^= 1 << tr.IntN(8)
		if o := tr.in(t, wrong); o.verdict == next && !bytes.Equal(o.data, wrong) {
			t.Fatalf("%+v: translated though a bit is wrong\n%x", q, wrong)
		}
		wrong = bytes.Clone(frame)
		wrong[len(wrong)-1] ^= 4
		if o := tr.in(t, wrong); o.verdict != shot {
			t.Fatalf("%+v: wrong ICMP checksum: verdict %d", q, o.verdict)
		}
		// The same with the ICMP checksum made right again.
		flip := func(frame []byte, to netip.Addr, at int) []byte {
			b := bytes.Clone(frame)
			b[at] ^= 0x20
			b[l4+2], b[l4+3] = 0, 0
			var pseudo []byte
			if !f.v4 {
				pseudo = pseudoHeader(ends{src: f.inside.dst, dst: to}, unix.IPPROTO_ICMPV6, len(b)-l4)
			}
			binary.BigEndian.PutUint16(b[l4+2:], check(pseudo, b[l4:]))
			return b
		}
		if f.v4 {
			wrong = flip(frame, f.outside.src, l4+8+8) // the quoted TTL
			if o := tr.in(t, wrong); o.verdict != shot {
				t.Fatalf("%+v: wrong checksum of the quoted header: verdict %d", q, o.verdict)
			}
		}
		if f.shape.proto == unix.IPPROTO_TCP && q.extension == nil {
			at := len(frame) - min(q.keep, len(f.shape.transport(f.outside))) + 7 // the quoted sequence number
			wrong = flip(frame, f.outside.src, at)
			tr.in(t, wrong).became(t, q, wrong, flip(q.frame(f.inside.dst, f.inside.src, f.inside), f.inside.src, at))
		}
	}
	// Beyond what an Ethernet of 1500 holds the sum is left to the receiver, for
	// whom it is as wrong as before.
	f := tr.open(t)
	for _, length := range []int{600, 1400, 1600, 3000} {
		s := f.shape
		s.payload = tr.noise(length)
		q := report{outer: shape{ttl: 9, icmpType: 3}, quoted: s, keep: 9000}
		if !f.v4 {
			q.outer.icmpType = 1
		}
		frame := q.frame(f.inside.dst, f.outside.src, f.outside)
		tr.in(t, frame).became(t, q, frame, q.frame(f.inside.dst, f.inside.src, f.inside))
		frame[len(frame)-1] ^= 1
		if o := tr.in(t, frame); (o.verdict == shot) != (length < 1500) {
			t.Errorf("last bit of %d bytes wrong: verdict %d", len(frame), o.verdict)
		}
	}
}
