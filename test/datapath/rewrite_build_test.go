package datapath

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Packets for the tests of translation. What a packet shall become is built anew
// with its other endpoints, every checksum from nothing: the second opinion on
// what the programs do incrementally.

// ends are the endpoints of a packet.
type ends struct {
	src, dst     netip.Addr
	sport, dport uint16 // ICMP queries: the id is the port of who asks
}

func (e ends) turned() ends { return ends{e.dst, e.src, e.dport, e.sport} }

// shape is what a packet looks like but for its endpoints.
type shape struct {
	proto    uint8
	tags     int // VLAN tags in the frame
	options  int // words of IPv4 options, or IPv6 extension headers of 8 bytes
	first    bool
	noSum    bool // UDP: checksum 0
	zeroSum  bool // the payload's first word makes the checksum's sum 0
	payload  []byte
	ttl      uint8
	icmpType uint8
	icmpCode uint8
	tcpFlags uint8
	tcpOpts  []byte
}

// check is the internet checksum (RFC 1071) of all parts together.
func check(parts ...[]byte) uint16 {
	var sum uint32
	odd := false
	for _, p := range parts {
		for _, b := range p {
			if odd {
				sum += uint32(b)
			} else {
				sum += uint32(b) << 8
			}
			odd = !odd
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// pseudoHeader is that of RFC 8200; its sum is also that of RFC 793.
func pseudoHeader(e ends, proto uint8, length int) []byte {
	b := append(e.src.AsSlice(), e.dst.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return binary.BigEndian.AppendUint32(b, uint32(proto))
}

// transport is what follows the IP header, and where its checksum stands.
func (s shape) transport(e ends) []byte {
	var h []byte
	sumAt := -1
	switch s.proto {
	case unix.IPPROTO_TCP:
		h = append(make([]byte, 20), s.tcpOpts...)
		copy(h[4:], []byte{1, 2, 3, 4, 5, 6, 7, 8, uint8(len(h)) << 2, s.tcpFlags, 16, 0})
		sumAt = 16
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE:
		h = make([]byte, 8)
		length := 8 + len(s.payload)
		if s.proto == unix.IPPROTO_UDPLITE {
			length = 8 // what the checksum covers
		}
		binary.BigEndian.PutUint16(h[4:], uint16(length))
		sumAt = 6
	case unix.IPPROTO_DCCP:
		h = make([]byte, 16)
		h[4], h[8] = 4, 1<<1
		sumAt = 6
	case unix.IPPROTO_SCTP:
		h = []byte{0, 0, 0, 0, 9, 9, 9, 9, 0xca, 0xfe, 0xba, 0xbe}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		h = []byte{s.icmpType, s.icmpCode, 0, 0, 0, 0, 0, 77}
		binary.BigEndian.PutUint16(h[4:], e.sport|e.dport)
		sumAt = 2
	default:
		h = []byte{1, 2, 3, 4, 0, 0, 0, 1}
	}
	switch s.proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_DCCP, unix.IPPROTO_SCTP:
		binary.BigEndian.PutUint16(h, e.sport)
		binary.BigEndian.PutUint16(h[2:], e.dport)
	}
	all := append(h, s.payload...)
	if sumAt < 0 || s.noSum {
		return all
	}
	covered := all
	if s.proto == unix.IPPROTO_UDPLITE {
		covered = all[:8]
	}
	var pseudo []byte
	if s.proto != unix.IPPROTO_ICMP {
		pseudo = pseudoHeader(e, s.proto, len(all))
	}
	if s.zeroSum {
		word := all[len(h):]
		word[0], word[1] = 0, 0
		binary.BigEndian.PutUint16(word, check(pseudo, covered))
	}
	sum := check(pseudo, covered)
	if sum == 0 && (s.proto == unix.IPPROTO_UDP || s.proto == unix.IPPROTO_UDPLITE) {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(all[sumAt:], sum)
	return all
}

// network is the IP packet around a transport part.
func (s shape) network(e ends, body []byte) []byte {
	if e.src.Is4() {
		p := make([]byte, 20+4*s.options)
		p[0] = 0x40 | uint8(len(p)/4)
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)+len(body)))
		p[4], p[5] = 0x12, 0x34
		if s.first {
			p[6] = 0x20
		}
		p[8], p[9] = s.ttl, s.proto
		copy(p[12:], e.src.AsSlice())
		copy(p[16:], e.dst.AsSlice())
		for i := 20; i < len(p); i++ {
			p[i] = 1
		}
		binary.BigEndian.PutUint16(p[10:], check(p))
		return append(p, body...)
	}
	p := make([]byte, 40)
	p[0], p[7] = 0x60, s.ttl
	copy(p[8:], e.src.AsSlice())
	copy(p[24:], e.dst.AsSlice())
	next := 6
	for range s.options {
		p[next] = unix.IPPROTO_DSTOPTS
		next = len(p)
		p = append(p, 0, 0, 1, 4, 0, 0, 0, 0)
	}
	if s.first {
		p[next] = unix.IPPROTO_FRAGMENT
		next = len(p)
		p = append(p, 0, 0, 0, 1, 1, 2, 3, 4)
	}
	p[next] = s.proto
	p = append(p, body...)
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	return p
}

// ether is the frame around an IP packet.
func (s shape) ether(v4 bool, p []byte) []byte {
	b := []byte{2, 0, 0, 0x5e, 0, 2, 2, 0, 0, 0x5e, 0, 1}
	for i := range s.tags {
		b = append(b, 0x81, 0, 0, uint8(7+i))
	}
	if v4 {
		b = append(b, 0x08, 0x00)
	} else {
		b = append(b, 0x86, 0xdd)
	}
	return append(b, p...)
}

func (s shape) frame(e ends) []byte {
	return s.ether(e.src.Is4(), s.network(e, s.transport(e)))
}

// port reads the n-th port, or the id, from a frame of this shape.
func (s shape) port(frame []byte, e ends, n int) uint16 {
	body := frame[len(frame)-len(s.transport(e)):]
	if s.query() {
		n = 2
	}
	return binary.BigEndian.Uint16(body[2*n:])
}

func (s shape) query() bool { return s.proto == unix.IPPROTO_ICMP || s.proto == unix.IPPROTO_ICMPV6 }

func (s shape) portless() bool { return s.proto == unix.IPPROTO_GRE || s.proto == unix.IPPROTO_ESP }

// report is an ICMP error.
type report struct {
	outer, quoted shape
	keep          int    // bytes of the quoted transport part, all if there are not as many
	extension     []byte // RFC 4884: behind the quoted packet
}

// frame is the error from one to another about a packet.
func (q report) frame(from, to netip.Addr, about ends) []byte {
	body := q.quoted.transport(about)
	packet := q.quoted.network(about, body)
	if q.keep < len(body) {
		packet = packet[:len(packet)-len(body)+q.keep]
	}
	s := q.outer
	s.proto = unix.IPPROTO_ICMPV6
	if from.Is4() {
		s.proto = unix.IPPROTO_ICMP
	}
	h := []byte{s.icmpType, s.icmpCode, 0, 0, 0, 0, 0, 0}
	if q.extension != nil {
		for len(packet) < 128 {
			packet = append(packet, 0)
		}
		if from.Is4() {
			packet = packet[:len(packet)&^3]
			h[5] = uint8(len(packet) / 4)
		} else {
			packet = packet[:len(packet)&^7]
			h[4] = uint8(len(packet) / 8)
		}
		packet = append(packet, q.extension...)
	}
	h = append(h, packet...)
	e := ends{src: from, dst: to}
	var pseudo []byte
	if !from.Is4() {
		pseudo = pseudoHeader(e, s.proto, len(h))
	}
	binary.BigEndian.PutUint16(h[2:], check(pseudo, h))
	return s.ether(from.Is4(), s.network(e, h))
}

// rng is a random generator with what the tests draw from it.
type rng struct{ *rand.Rand }

func oneOf[T any](r rng, all ...T) T { return all[r.IntN(len(all))] }

func (r rng) chance(oneIn int) bool { return r.IntN(oneIn) == 0 }

func (r rng) noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = uint8(r.Uint32())
	}
	return b
}

// remote is an address that no network of the lab has.
func (r rng) remote(v4 bool) netip.Addr {
	b := r.noise(16)
	if v4 {
		b[0] = uint8(20 + r.IntN(80))
		return netip.AddrFrom4([4]byte(b))
	}
	b[0], b[1] = 0x2a, 0x05
	return netip.AddrFrom16([16]byte(b))
}

// shape is of any protocol that is translated, its first packet.
func (r rng) shape(v4 bool) shape {
	s := shape{
		proto: oneOf[uint8](r, unix.IPPROTO_TCP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE,
			unix.IPPROTO_DCCP, unix.IPPROTO_SCTP, unix.IPPROTO_GRE, unix.IPPROTO_ESP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMP),
		options: oneOf(r, 0, 0, 0, 1, 2), payload: r.noise(2 + r.IntN(200)), ttl: 64,
		tcpFlags: 2,
	}
	if s.query() {
		s.icmpType = oneOf[uint8](r, 8, 13)
		if !v4 {
			s.proto, s.icmpType = unix.IPPROTO_ICMPV6, 128
		}
	}
	s.noSum = s.proto == unix.IPPROTO_UDP && r.chance(5)
	return s
}

// answer is the shape of what comes back.
func (r rng) answer(s shape) shape {
	s.options, s.payload = oneOf(r, 0, 0, 1), r.noise(2+r.IntN(200))
	s.noSum = s.proto == unix.IPPROTO_UDP && r.chance(5)
	switch s.icmpType {
	case 8:
		s.icmpType = 0
	case 13:
		s.icmpType = 14
	case 128:
		s.icmpType = 129
	}
	s.tcpFlags = 0x12
	return s
}

// report is an error about a packet of some shape.
func (r rng) report(v4 bool, about shape) report {
	about.tags, about.ttl, about.first = 0, 1, r.chance(5)
	q := report{outer: shape{ttl: 61}, quoted: about, keep: oneOf(r, 8, 8, 12, 16, 18, 20, 1000)}
	if v4 {
		q.outer.icmpType, q.outer.options = oneOf[uint8](r, 3, 11, 12), oneOf(r, 0, 1)
	} else {
		q.outer.icmpType, q.quoted.options = oneOf[uint8](r, 1, 2, 3, 4), 0
	}
	q.outer.icmpCode = uint8(r.IntN(4))
	if r.chance(4) {
		q.keep = 1000
		q.extension = []byte{0x20, 0, 0xaa, 0xbb, 0, 8, 1, 1, 1, 2, 3, 4}
	}
	return q
}
