package e2e

import (
	bin "encoding/binary"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"tapgate/test/lab"
)

// segmenter makes of a captured frame what is on the wire: it cuts what a
// sender left to be cut, to the given payload sizes, and finishes checksums.
// It is the test's own account of RFC 791, 8200, 9293 and 768, not the kernel's.
func segmenter(t *testing.T, mtu, udpSize int) func([]byte) [][]byte {
	return func(f []byte) [][]byte {
		l3 := 14
		v6 := be16(f[12:]) == 0x86dd
		if !v6 && be16(f[12:]) != 0x0800 {
			return [][]byte{f}
		}
		var l4 int
		var proto byte
		if v6 {
			l4, proto = l3+40, f[l3+6]
		} else {
			l4, proto = l3+int(f[l3]&15)*4, f[l3+9]
			if be16(f[l3+6:])&0x3fff != 0 {
				return [][]byte{f} // fragments are cut and finished by the stack
			}
		}
		var data, size int
		switch proto {
		case 6:
			data = l4 + int(f[l4+12]>>4)*4
			size = mtu - (data - l3)
		case 17:
			data, size = l4+8, max(udpSize, 1)
			if len(f)-l3 <= mtu {
				size = len(f)
			}
		default:
			return [][]byte{f}
		}
		var all [][]byte
		rest := f[data:]
		for n := 0; n == 0 || len(rest) > 0; n++ {
			part := rest[:min(size, len(rest))]
			rest = rest[len(part):]
			s := append(append([]byte{}, f[:data]...), part...)
			if v6 {
				bin.BigEndian.PutUint16(s[l3+4:], uint16(len(s)-l3-40))
			} else {
				bin.BigEndian.PutUint16(s[l3+2:], uint16(len(s)-l3))
				bin.BigEndian.PutUint16(s[l3+4:], uint16(be16(f[l3+4:])+n))
				bin.BigEndian.PutUint16(s[l3+10:], 0)
				bin.BigEndian.PutUint16(s[l3+10:], ^sum(0, s[l3:l4]))
			}
			if proto == 6 {
				bin.BigEndian.PutUint32(s[l4+4:], bin.BigEndian.Uint32(f[l4+4:])+uint32(n*size))
				if len(rest) > 0 {
					s[l4+13] &^= 0x09 // FIN and PSH on the last only
				}
				if n > 0 {
					s[l4+13] &^= 0x80 // CWR on the first only
				}
				finishSum(s, l3, l4, l4+16, v6, n == 0 && len(rest) == 0)
			} else {
				bin.BigEndian.PutUint16(s[l4+4:], uint16(len(s)-l4))
				finishSum(s, l3, l4, l4+6, v6, true)
			}
			if len(s) > mtu+14 {
				t.Errorf("the test cuts to %d bytes", len(s))
			}
			all = append(all, s)
		}
		return all
	}
}

// finishSum writes the transport checksum at offset at. A sum of 0 is written
// as its equal 0xffff by UDP, and by Linux also in TCP where it cuts nothing.
func finishSum(s []byte, l3, l4, at int, v6, noZero bool) {
	bin.BigEndian.PutUint16(s[at:], 0)
	addresses, proto := s[l3+12:l3+20], s[l3+9]
	if v6 {
		addresses, proto = s[l3+8:l3+40], s[l3+6]
	}
	v := ^sum(uint32(sum(uint32(proto)+uint32(len(s)-l4), addresses)), s[l4:])
	if v == 0 && noZero {
		v = 0xffff
	}
	bin.BigEndian.PutUint16(s[at:], v)
}

// sum is the ones' complement sum of RFC 1071, added to start.
func sum(start uint32, b []byte) uint16 {
	s := uint64(start)
	for i := 0; i+1 < len(b); i += 2 {
		s += uint64(be16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint64(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// bigTCP is one TCP packet with n bytes of data, its checksum as a sender
// leaves it to hardware: that of the pseudo header.
func bigTCP(t *testing.T, j joint, n int) []byte {
	f := packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolTCP),
		&layers.TCP{SrcPort: 4000, DstPort: 4001, Seq: 1000, ACK: true, PSH: true, Window: 1000}, gopacket.Payload(noise(n)))
	bin.BigEndian.PutUint16(f[50:], sum(uint32(6+len(f)-34), f[26:34]))
	return f
}

func cutTCP(f []byte, size int) [][]byte { return segmenter(nil, size+40, 0)(f) }

func tcpOnly(frames []lab.Frame) []lab.Frame {
	return lab.Select(frames, func(f lab.Frame) bool {
		kind, at := f.EtherType()
		return kind == 0x0800 && len(f.Data) > at+20 && f.Data[at+9] == 6
	})
}
