package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// answers: who gets no port is told (RFC 5508 REQ-8), not more often than
// a hundred times a second.
func (tr *translator) answers(t *testing.T) {
	tr.configure(t, func(n *loader.NAT) {
		n.Masquerades[0].Ports = []loader.PortRange{{First: 2000, Last: 2001}}
	})
	told, start := 0, time.Now()
	for i := range 300 {
		v4 := tr.chance(2)
		s := shape{proto: unix.IPPROTO_UDP, ttl: 63, payload: tr.noise(tr.IntN(1200)), options: oneOf(tr.rng, 0, 1)}
		e := ends{insiders[0], tr.remote(true), uint16(5000 + i), 53}
		if !v4 {
			e.src, e.dst = insiders[3], tr.remote(false)
		}
		frame := s.frame(e)
		o := tr.out(t, frame)
		switch {
		case o.verdict == next && i < 12:
			continue // a port was left
		case o.verdict == shot && told >= 50:
			continue // enough was said
		case o.verdict != redirect:
			t.Fatalf("packet %d, after %d answers: verdict %d", i, told, o.verdict)
		}
		told++
		isAnswer(t, frame, e, o.data)
	}
	if passed := time.Since(start); told < 50 || float64(told) > 51+100*passed.Seconds() {
		t.Errorf("%d answers in %v", told, passed)
	}
	// Later fragments and errors are about nothing that one could be told.
	q := tr.report(true, shape{proto: unix.IPPROTO_UDP})
	frame := q.frame(insiders[0], remotes[0], ends{remotes[0], insiders[0], 1, 2})
	if o := tr.out(t, frame); o.verdict != shot {
		t.Errorf("an error of no flow: verdict %d", o.verdict)
	}
}

// isAnswer fails unless it is what a router says to the sender of the frame.
func isAnswer(t *testing.T, frame []byte, e ends, answer []byte) {
	t.Helper()
	quoted := frame[14:min(len(frame), 14+96)]
	s := shape{ttl: 64, proto: unix.IPPROTO_ICMP}
	h := []byte{3, 13, 0, 0, 0, 0, 0, 0}
	to := ends{dst: e.src}
	var pseudo []byte
	if len(answer) < 14+40+8 {
		t.Fatalf("answer of %d bytes", len(answer))
	}
	h = append(h, quoted...)
	if e.src.Is4() {
		to.src = netip.AddrFrom4([4]byte(answer[14+12:]))
	} else {
		s.proto = unix.IPPROTO_ICMPV6
		h[0], h[1] = 1, 1
		to.src = netip.AddrFrom16([16]byte(answer[14+8:]))
		pseudo = pseudoHeader(to, s.proto, len(h))
	}
	binary.BigEndian.PutUint16(h[2:], check(pseudo, h))
	want := s.network(to, h)
	if e.src.Is4() {
		copy(want[4:], []byte{0, 0, 0x40, 0}) // id, don't fragment
		want[1] = 0xc0                        // internetwork control
		want[10], want[11] = 0, 0
		binary.BigEndian.PutUint16(want[10:], check(want[:20]))
	}
	if !bytes.Equal(answer[14:], want) {
		t.Fatalf("about\n%x\nthe answer is\n%x\nwant\n%x", frame[14:], answer[14:], want)
	}
	if to.src != e.dst && to.src != netip.MustParseAddr("192.168.3.1") && to.src != netip.MustParseAddr("2001:db8:3::1") {
		t.Fatalf("the answer comes from %v", to.src)
	}
}
