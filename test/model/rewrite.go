package model

import (
	"encoding/binary"
	"net/netip"
)

// sum adds up 16-bit words (RFC 1071), with what came before.
func sum(b []byte, n uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		n += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		n += uint32(b[0]) << 8
	}
	return fold(n)
}

func fold(n uint32) uint32 {
	for n > 0xffff {
		n = n>>16 + n&0xffff
	}
	return n
}

// adjust is RFC 1624, equation 3: the checksum after some words became others.
func adjust(check uint16, was, is []byte) uint16 {
	n := uint32(^check)
	for i := 0; i+1 < len(was); i += 2 {
		n += uint32(^binary.BigEndian.Uint16(was[i:]))
	}
	return ^uint16(sum(is, fold(n)))
}

func (p *datagram) put(at int, v uint16) { binary.BigEndian.PutUint16(p.frame[at:], v) }

// set writes bytes and corrects the checksums at the offsets, those that are there.
func (p *datagram) set(at int, is []byte, checks ...int) {
	was := append([]byte(nil), p.frame[at:at+len(is)]...)
	copy(p.frame[at:], is)
	for _, c := range checks {
		if c >= 0 {
			p.put(c, adjust(p.u16(c), was, is))
		}
	}
}

// headerCheck is where the IPv4 header's checksum stands, or -1.
func (p *datagram) headerCheck() int {
	if p.family == 4 {
		return p.l3 + 10
	}
	return -1
}

// transportCheck is where the checksum of the transport header stands, or -1
// if there is none, it is not there, or is off. pseudo: it
// covers the addresses.
func (p *datagram) transportCheck() (at int, pseudo bool) {
	at, pseudo = -1, true
	if p.kind == later || p.kind == other && p.tuple.Proto != ICMP && p.tuple.Proto != ICMPv6 {
		return -1, false
	}
	switch p.tuple.Proto {
	case TCP:
		at = p.l4 + 16
	case UDP, UDPLite, DCCP:
		at = p.l4 + 6
	case ICMPv6:
		at = p.l4 + 2
	case ICMP:
		at, pseudo = p.l4+2, false
	}
	if at < 0 || at+2 > p.end || p.sumMayMiss() && p.u16(at) == 0 {
		return -1, false
	}
	return at, pseudo
}

// sumMayMiss: a checksum of 0 says that there is none.
func (p *datagram) sumMayMiss() bool { return p.tuple.Proto == UDP || p.tuple.Proto == UDPLite }

func slice(a netip.Addr) []byte { return a.AsSlice() }

// translate makes the packet one of another tuple: RFC 4787 and 5382 for ports,
// RFC 5508 for query ids.
func (p *datagram) translate(to Tuple) {
	src, dst := p.l3+12, p.l3+16
	if p.family == 6 {
		src, dst = p.l3+8, p.l3+24
	}
	header := p.headerCheck()
	check, pseudo := p.transportCheck()
	covered := -1
	if pseudo {
		covered = check
	}
	p.set(src, slice(to.Src), header, covered)
	p.set(dst, slice(to.Dst), header, covered)
	word := func(n uint16) []byte { return []byte{byte(n >> 8), byte(n)} }
	switch p.kind {
	case ports:
		p.set(p.l4, word(to.Sport), check)
		p.set(p.l4+2, word(to.Dport), check)
	case query:
		id := to.Sport
		if !p.isRequest() {
			id = to.Dport
		}
		p.set(p.l4+4, word(id), check)
	}
	// Zero means that there is no checksum (RFC 768); ones mean zero.
	if check >= 0 && p.sumMayMiss() && p.u16(check) == 0 {
		p.put(check, 0xffff)
	}
	p.tuple = to
}

// translateError makes an ICMP error about a packet of a flow one about the packet
// as the receiver knows it (RFC 5508, REQ-4 and 5). to is the flow's tuple in the
// error's direction as it shall become.
func (p *datagram) translateError(to Tuple) {
	was := p.flow()
	if was == to {
		return
	}
	outer := Tuple{Src: p.tuple.Src, Dst: to.Dst, Proto: p.tuple.Proto}
	if was.Src != to.Src || p.tuple.Src == was.Src {
		outer.Src = to.Src
	}
	in := p.inner
	in.translate(to.Turned())
	p.translate(outer)
	// The error's own checksum is over all that it quotes: made anew, which is
	// right because a wrong one is never let through.
	at := p.l4 + 2
	p.put(at, 0)
	n := uint32(0)
	if p.family == 6 {
		n = sum(append(slice(outer.Src), slice(outer.Dst)...), n)
		n = fold(n + uint32(p.end-p.l4) + ICMPv6)
	}
	p.put(at, ^uint16(sum(p.frame[p.l4:p.end], n)))
}

// errorIsSound checks what RFC 5508 REQ-3 asks for: the ICMP checksum, and that of
// the inner IP header. Not that of the inner transport header.
func (p *datagram) errorIsSound() bool {
	n := uint32(0)
	if p.family == 6 {
		n = sum(append(slice(p.tuple.Src), slice(p.tuple.Dst)...), n)
		n = fold(n + uint32(p.end-p.l4) + ICMPv6)
	}
	if sum(p.frame[p.l4:p.end], n) != 0xffff {
		return false
	}
	in := p.inner
	return in.family == 6 || in.l4 <= len(in.frame) && sum(in.frame[in.l3:in.l4], 0) == 0xffff
}

// age takes one from the TTL.
func (p *datagram) age() {
	if p.family == 6 {
		p.frame[p.l3+7]--
		return
	}
	ttl := p.frame[p.l3+8]
	p.set(p.l3+8, []byte{ttl - 1, p.frame[p.l3+9]}, p.l3+10)
}

func (p *datagram) ttl() uint8 {
	if p.family == 6 {
		return p.frame[p.l3+7]
	}
	return p.frame[p.l3+8]
}
