package datapath

import (
	"encoding/binary"
	"net/netip"

	"tapgate/test/packet"
)

// IP protocols that the generator speaks.
const (
	icmp4, tcp, udp, dccp, gre, esp, icmp6, sctp, udplite = 1, 6, 17, 33, 47, 50, 58, 132, 136
)

// TCP flags.
const (
	fFIN = 1
	fSYN = 2
	fRST = 4
	fACK = 16
)

// talk is a packet to be built: much faster than test/packet, which the tests of
// the model use.
type talk struct {
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16 // ICMP: the id is the port of who asks
	flags        uint8  // TCP
	kind, code   uint8  // ICMP
	payload      []byte
	length       int // of a payload that counts up, if payload is nil
	id           uint16
	offset       int // of a fragment, bytes
	more         bool
	ttl          uint8
	noSum        bool // UDP: no checksum
	options      bool // IPv4 options, an IPv6 extension header
}

func onesSum(b []byte, n uint32) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		n += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		n += uint32(b[len(b)-1]) << 8
	}
	for n>>16 != 0 {
		n = n&0xffff + n>>16
	}
	return n
}

func word(n int) []byte { return []byte{byte(n >> 8), byte(n)} }

// transport is the header behind IP, with its checksum.
func (p talk) transport() []byte {
	body := p.payload
	if body == nil {
		body = make([]byte, p.length)
		for i := range body {
			body[i] = byte(i)
		}
	}
	var h []byte
	sumAt := -1
	switch p.proto {
	case tcp:
		h = make([]byte, 20)
		h[12], h[13], h[14] = 0x50, p.flags, 2
		sumAt = 16
	case udp, udplite:
		h = make([]byte, 8)
		if p.proto == udp {
			copy(h[4:], word(8+len(body)))
		}
		sumAt = 6
	case dccp:
		h = make([]byte, 16)
		h[4] = 4
		sumAt = 6
	case sctp:
		h = make([]byte, 12)
	case icmp4, icmp6:
		h = make([]byte, 8)
		h[0], h[1] = p.kind, p.code
		copy(h[4:], word(int(p.sport|p.dport)))
		sumAt = 2
	}
	switch p.proto {
	case tcp, udp, udplite, dccp, sctp:
		copy(h, word(int(p.sport)))
		copy(h[2:], word(int(p.dport)))
	}
	all := append(h, body...)
	if sumAt < 0 || p.noSum && p.proto == udp {
		return all
	}
	n := uint32(0)
	if p.proto != icmp4 {
		n = onesSum(p.src.AsSlice(), n)
		n = onesSum(p.dst.AsSlice(), n)
		n = onesSum(append(word(int(p.proto)), word(len(all))...), n)
	}
	sum := ^uint16(onesSum(all, n))
	if sum == 0 && (p.proto == udp || p.proto == udplite || p.proto == icmp6) {
		sum = 0xffff
	}
	copy(all[sumAt:], word(int(sum)))
	return all
}

// frame is the whole packet; of a fragmented one the piece that was asked for.
func (p talk) frame() []byte {
	all := p.transport()
	if p.offset > 0 || p.more {
		const piece = 64
		all = all[min(p.offset, len(all)):]
		if p.more {
			all = all[:min(piece, len(all))&^7]
		}
	}
	ttl := p.ttl
	if ttl == 0 {
		ttl = 64
	}
	f := append(append([]byte{}, packet.GatewayMAC...), packet.ServerMAC...)
	if p.src.Is4() {
		return append(p.ipv4(append(f, 8, 0), ttl, len(all)), all...)
	}
	return append(p.ipv6(append(f, 0x86, 0xdd), ttl, len(all)), all...)
}

func (p talk) ipv4(f []byte, ttl uint8, length int) []byte {
	h := make([]byte, 20, 24)
	if p.options {
		h = append(h, 148, 4, 0, 0) // router alert
	}
	h[0] = 0x40 | byte(len(h)/4)
	copy(h[2:], word(len(h)+length))
	copy(h[4:], word(int(p.id)))
	fragment := p.offset / 8
	if p.more {
		fragment |= 0x2000
	}
	copy(h[6:], word(fragment))
	h[8], h[9] = ttl, p.proto
	copy(h[12:], p.src.AsSlice())
	copy(h[16:], p.dst.AsSlice())
	copy(h[10:], word(int(^uint16(onesSum(h, 0)))))
	return append(f, h...)
}

func (p talk) ipv6(f []byte, ttl uint8, length int) []byte {
	h := make([]byte, 40, 56)
	h[0], h[6], h[7] = 0x60, p.proto, ttl
	copy(h[8:], p.src.AsSlice())
	copy(h[24:], p.dst.AsSlice())
	if p.options {
		h = append(h, h[6], 0, 1, 4, 0, 0, 0, 0)
		h[6] = 60
	}
	if p.offset > 0 || p.more {
		next := h[6]
		h[6] = 44
		fragment := p.offset
		if p.more {
			fragment |= 1
		}
		at := len(h)
		if p.options { // behind the extension header
			next, h[40], h[6] = p.proto, 44, 60
		}
		h = append(h, next, 0, byte(fragment>>8), byte(fragment), 0, 0, byte(p.id>>8), byte(p.id))
		_ = at
	}
	copy(h[4:], word(len(h)-40+length))
	return append(f, h...)
}

// heard is a packet as it was delivered.
type heard struct {
	talk
	ip []byte // from the network header on
}

// hear reads a frame that was delivered.
func hear(frame []byte) heard {
	h := heard{ip: frame[14:]}
	ip := h.ip
	var l4 []byte
	if ip[0]>>4 == 4 {
		h.src, h.dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		h.proto, l4 = ip[9], ip[int(ip[0]&15)*4:]
		h.offset = int(binary.BigEndian.Uint16(ip[6:])&0x1fff) * 8
	} else {
		h.src, h.dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		h.proto, l4 = ip[6], ip[40:]
		for h.proto == 60 || h.proto == 44 {
			if h.proto == 44 {
				h.offset = int(binary.BigEndian.Uint16(l4[2:]) &^ 7)
			}
			h.proto, l4 = l4[0], l4[8*(1+int(l4[1])):]
			if h.offset > 0 {
				break
			}
		}
	}
	if h.offset > 0 || len(l4) < 8 {
		return h
	}
	switch h.proto {
	case tcp, udp, udplite, dccp, sctp:
		h.sport, h.dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
		if h.proto == tcp && len(l4) > 13 {
			h.flags = l4[13]
		}
	case icmp4, icmp6:
		h.kind = l4[0]
		switch h.kind {
		case 8, 128:
			h.sport = binary.BigEndian.Uint16(l4[4:])
		case 0, 129:
			h.dport = binary.BigEndian.Uint16(l4[4:])
		}
	}
	return h
}

// failure says whether it is an ICMP error.
func (h heard) failure() bool {
	return h.proto == icmp4 && (h.kind == 3 || h.kind == 11 || h.kind == 12) || h.proto == icmp6 && h.kind >= 1 && h.kind <= 4
}

// aged is what the kernel makes of a frame that it routes: one TTL less.
func aged(frame []byte) []byte {
	f := append([]byte{}, frame...)
	if f[14]>>4 == 6 {
		f[14+7]--
		return f
	}
	f[14+8]--
	header := f[14 : 14+int(f[14]&15)*4]
	copy(header[10:], []byte{0, 0})
	copy(header[10:], word(int(^uint16(onesSum(header, 0)))))
	return f
}

// trimmed is a frame without its padding, which the kernel takes away.
func trimmed(frame []byte) []byte {
	end := 14 + int(binary.BigEndian.Uint16(frame[16:]))
	if frame[14]>>4 == 6 {
		end = 14 + 40 + int(binary.BigEndian.Uint16(frame[18:]))
	}
	return frame[:min(end, len(frame))]
}

func ttlOf(frame []byte) uint8 {
	if frame[14]>>4 == 6 {
		return frame[14+7]
	}
	return frame[14+8]
}
