package model

import (
	"encoding/binary"
	"net/netip"
)

// IP protocols.
const (
	ICMP    = 1
	TCP     = 6
	UDP     = 17
	DCCP    = 33
	ICMPv6  = 58
	SCTP    = 132
	UDPLite = 136
)

// Tuple is the endpoints of a packet. An ICMP query's id is the port of the side
// that asks, and 0 that of the side that answers.
type Tuple struct {
	Src, Dst     netip.Addr
	Sport, Dport uint16
	Proto        uint8
}

// Turned is the tuple of the way back.
func (t Tuple) Turned() Tuple {
	return Tuple{Src: t.Dst, Dst: t.Src, Sport: t.Dport, Dport: t.Sport, Proto: t.Proto}
}

// kind is what a packet is to the gateway.
type kind int

const (
	none    kind = iota // not IP, or never forwarded
	ports               // ports at the start of the header
	query               // ICMP with an id
	failure             // an ICMP error: about another packet
	other               // addresses alone
	later               // a fragment but for the first
	bad                 // headers that contradict themselves
)

// The flags of TCP.
const (
	fin = 1
	syn = 2
	rst = 4
	ack = 16
)

// datagram is a parsed frame. Offsets are those in the frame.
type datagram struct {
	frame  []byte
	family int // 4 or 6
	l3, l4 int
	end    int // of the IP packet, as its header tells it
	kind   kind
	tuple  Tuple
	first  bool   // of several fragments
	id     uint32 // of a fragment
	idAt   int    // where it stands
	flags  uint8  // TCP
	inner  *datagram
}

const etherLen = 14

func parse(frame []byte) *datagram {
	p := &datagram{frame: frame, l3: etherLen, end: len(frame)}
	if len(frame) < etherLen {
		return p
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		p.family = 4
	case 0x86dd:
		p.family = 6
	default:
		return p
	}
	p.network(false)
	return p
}

func (p *datagram) u16(at int) uint16 { return binary.BigEndian.Uint16(p.frame[at:]) }

// network parses the IP header and what follows. quoted: inside an ICMP error,
// where the end may be missing.
func (p *datagram) network(quoted bool) {
	p.kind = bad
	var ok bool
	if p.family == 4 {
		ok = p.ipv4(quoted)
	} else {
		ok = p.ipv6(quoted)
	}
	if !ok || p.kind == later {
		return
	}
	if !quoted && neverForwarded(p.tuple) {
		p.kind = none
		return
	}
	p.transport(quoted)
}

func neverForwarded(t Tuple) bool {
	dst := t.Dst
	return t.Src.Is6() && t.Src.IsLinkLocalUnicast() || dst.IsMulticast() || dst.IsLoopback() || dst.IsUnspecified() || dst.IsLinkLocalUnicast() ||
		dst == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// endOf is where the packet ends. A quoted one ends with what quotes it, whatever its
// header says.
func (p *datagram) endOf(total int, quoted bool) int {
	if quoted {
		return len(p.frame)
	}
	return min(p.l3+total, len(p.frame))
}

func (p *datagram) ipv4(quoted bool) bool {
	f := p.frame[p.l3:]
	if len(f) < 20 || f[0]>>4 != 4 || f[0]&15 < 5 {
		return false
	}
	header, total := int(f[0]&15)*4, int(binary.BigEndian.Uint16(f[2:]))
	if !quoted && (len(f) < header || total < header || total > len(f)) {
		return false
	}
	p.tuple.Src, p.tuple.Dst = netip.AddrFrom4([4]byte(f[12:])), netip.AddrFrom4([4]byte(f[16:]))
	p.tuple.Proto = f[9]
	p.l4 = p.l3 + header
	p.end = p.endOf(total, quoted)
	fragment := binary.BigEndian.Uint16(f[6:])
	p.id, p.idAt = uint32(binary.BigEndian.Uint16(f[4:])), p.l3+4
	if fragment&0x1fff != 0 {
		p.kind = later
		if !quoted && neverForwarded(p.tuple) {
			p.kind = none
		}
	}
	p.first = fragment&0x2000 != 0 && fragment&0x1fff == 0
	return true
}

func (p *datagram) ipv6(quoted bool) bool {
	f := p.frame[p.l3:]
	if len(f) < 40 || f[0]>>4 != 6 {
		return false
	}
	total := 40 + int(binary.BigEndian.Uint16(f[4:]))
	if !quoted && total > len(f) {
		return false
	}
	p.tuple.Src, p.tuple.Dst = netip.AddrFrom16([16]byte(f[8:])), netip.AddrFrom16([16]byte(f[24:]))
	p.end = p.endOf(total, quoted)
	next, at := f[6], p.l3+40
	for {
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if at+8 > p.end {
				return false
			}
			next, at = p.frame[at], at+8*(int(p.frame[at+1])+1)
			continue
		case 44:
			if at+8 > p.end {
				return false
			}
			offset := p.u16(at + 2)
			p.id, p.idAt = binary.BigEndian.Uint32(p.frame[at+4:]), at+4
			p.first = offset&1 != 0 && offset>>3 == 0
			next, at = p.frame[at], at+8
			if offset>>3 != 0 {
				p.tuple.Proto, p.l4, p.kind = next, at, later
				return true
			}
			continue
		}
		break
	}
	p.tuple.Proto, p.l4 = next, at
	return quoted || at <= p.end
}

func (p *datagram) transport(quoted bool) {
	room := p.end - p.l4
	need := 8
	if !quoted {
		switch p.tuple.Proto {
		case TCP:
			need = 20
		case DCCP, SCTP:
			need = 12
		}
	}
	switch p.tuple.Proto {
	case TCP, UDP, UDPLite, DCCP, SCTP:
		if room < need {
			return
		}
		p.kind = ports
		p.tuple.Sport, p.tuple.Dport = p.u16(p.l4), p.u16(p.l4+2)
		if p.tuple.Proto == TCP && room >= 14 {
			p.flags = p.frame[p.l4+13]
		}
	case ICMP, ICMPv6:
		if room < need || (p.tuple.Proto == ICMP) != (p.family == 4) {
			return
		}
		p.icmp(quoted)
	default:
		p.kind = other
	}
}

func (p *datagram) icmp(quoted bool) {
	t := p.frame[p.l4]
	ask, answer, about := false, false, false
	if p.family == 4 {
		ask, answer = t == 8 || t == 13 || t == 15 || t == 17, t == 0 || t == 14 || t == 16 || t == 18
		about = t == 3 || t == 11 || t == 12
	} else {
		ask, answer = t == 128, t == 129
		about = t >= 1 && t <= 4
		if t >= 130 && t <= 137 || t == 143 { // listeners, neighbours, redirect: never forwarded
			p.kind = none
			return
		}
	}
	switch {
	case ask:
		p.kind, p.tuple.Sport = query, p.u16(p.l4+4)
	case answer:
		p.kind, p.tuple.Dport = query, p.u16(p.l4+4)
	case about && !quoted:
		in := &datagram{frame: p.frame, family: p.family, l3: p.l4 + 8, end: p.end}
		if in.l3 > p.end {
			return
		}
		in.frame = p.frame[:p.end]
		in.network(true)
		if in.kind == bad || in.tuple.Src != p.tuple.Dst { // it goes to who sent what it is about
			return
		}
		if in.kind == later { // about no flow: it has no ports, and what has none is treated alike
			in.tuple = Tuple{}
		}
		p.inner = in
		p.kind = failure
		p.tuple = Tuple{Src: p.tuple.Src, Dst: p.tuple.Dst, Proto: p.tuple.Proto}
	case about: // an error about an error: nobody may send it
		return
	default:
		p.kind = other
	}
}

// flow is the tuple of the flow that the packet belongs to, in its direction.
func (p *datagram) flow() Tuple {
	if p.kind == failure {
		return p.inner.tuple.Turned()
	}
	return p.tuple
}

// unmapped says whether a packet's flow has no mapping: protocols without ports,
// and SCTP, whose checksum cannot follow a change of port. Their flows are by
// remote, and keep their ports.
func (p *datagram) unmapped() bool { return p.kind == other || p.tuple.Proto == SCTP }

// begins says whether a TCP packet may begin a flow.
func (p *datagram) begins() bool {
	return p.tuple.Proto != TCP || p.flags&(syn|ack|rst|fin) == syn
}

// asks says whether an ICMP query is a request.
func (p *datagram) asks() bool { return p.kind != query || p.isRequest() }

func (p *datagram) isRequest() bool {
	t := p.frame[p.l4]
	if p.family == 6 {
		return t == 128
	}
	return t == 8 || t == 13 || t == 15 || t == 17
}
