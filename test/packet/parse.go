package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Protocols by number, as Parsed has them.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
)

// TCP flags as they stand in the header.
const (
	FIN = 1
	SYN = 2
	RST = 4
	PSH = 8
	ACK = 16
)

// Parsed is what an IP packet says, read without gopacket: what builds the
// packets of a test shall not be what judges them.
type Parsed struct {
	IP       []byte // the packet from its IP header on, without padding
	L4       int    // where in IP the transport header begins
	Src, Dst netip.AddrPort
	Proto    uint8
	TTL      uint8
	ID       uint32 // of IPv4, or of the IPv6 fragment header
	DontFrag bool
	More     bool // more fragments follow
	Offset   int  // of this fragment, in bytes
	Payload  []byte

	Flags    uint8 // TCP
	Seq, Ack uint32
	MSS      uint16 // the option, 0 without

	Type, Code uint8   // ICMP
	Echo, Turn uint16  // id and sequence number of a query
	Rest       uint32  // bytes 4 to 7 of an ICMP header
	Inner      *Parsed // what an ICMP error is about, often cut short

	// Bad says which checksums are wrong, of those that can be checked.
	Bad []string
}

// Parse reads an Ethernet frame without VLAN tags.
func Parse(frame []byte) (*Parsed, error) {
	if len(frame) < 14 {
		return nil, errors.New("no Ethernet header")
	}
	switch kind := binary.BigEndian.Uint16(frame[12:]); kind {
	case 0x0800, 0x86dd:
		return parseIP(frame[14:], false)
	default:
		return nil, fmt.Errorf("EtherType %#04x", kind)
	}
}

// parseIP reads a packet; one that an ICMP error quotes may be cut short.
func parseIP(b []byte, quoted bool) (*Parsed, error) {
	if len(b) < 20 {
		return nil, errors.New("no IP header")
	}
	p := &Parsed{}
	header := p.header4
	if b[0]>>4 == 6 {
		header = p.header6
	}
	whole, err := header(b)
	if err != nil {
		return nil, err
	}
	if len(b) < whole && !quoted {
		return nil, fmt.Errorf("%d bytes of a packet of %d", len(b), whole)
	}
	p.IP = b[:min(whole, len(b))]
	if p.Offset > 0 {
		p.Payload = p.IP[p.L4:]
		return p, nil
	}
	return p, p.transport(len(b) >= whole && !p.More)
}

func (p *Parsed) header4(b []byte) (whole int, err error) {
	p.L4 = int(b[0]&15) * 4
	if b[0]>>4 != 4 || p.L4 < 20 || len(b) < p.L4 {
		return 0, errors.New("IPv4 header wrong or cut short")
	}
	if sum(0, b[:p.L4]) != 0xffff {
		p.Bad = append(p.Bad, "IPv4 header")
	}
	p.ID = uint32(binary.BigEndian.Uint16(b[4:]))
	f := binary.BigEndian.Uint16(b[6:])
	p.DontFrag, p.More, p.Offset = f&0x4000 != 0, f&0x2000 != 0, int(f&0x1fff)*8
	p.TTL, p.Proto = b[8], b[9]
	p.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:16])), 0)
	p.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), 0)
	return int(binary.BigEndian.Uint16(b[2:])), nil
}

func (p *Parsed) header6(b []byte) (whole int, err error) {
	if len(b) < 40 {
		return 0, errors.New("IPv6 header cut short")
	}
	p.TTL, p.Proto, p.L4 = b[7], b[6], 40
	p.Src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), 0)
	p.Dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[24:40])), 0)
	for {
		switch p.Proto {
		case 0, 43, 60: // hop by hop, routing, destination
			if len(b) < p.L4+8 {
				return 0, errors.New("IPv6 extension header cut short")
			}
			p.Proto, p.L4 = b[p.L4], p.L4+8*(int(b[p.L4+1])+1)
		case 44:
			if len(b) < p.L4+8 {
				return 0, errors.New("IPv6 fragment header cut short")
			}
			f := binary.BigEndian.Uint16(b[p.L4+2:])
			p.More, p.Offset = f&1 != 0, int(f&^7)
			p.ID = binary.BigEndian.Uint32(b[p.L4+4:])
			p.Proto, p.L4 = b[p.L4], p.L4+8
			if p.Offset > 0 {
				return 40 + int(binary.BigEndian.Uint16(b[4:])), nil
			}
		default:
			if len(b) < p.L4 {
				return 0, errors.New("IPv6 extension header cut short")
			}
			return 40 + int(binary.BigEndian.Uint16(b[4:])), nil
		}
	}
}

// transport reads what follows the IP header; complete says that it is all there.
func (p *Parsed) transport(complete bool) error {
	b := p.IP[p.L4:]
	p.Payload = b
	if len(b) < 8 {
		return nil
	}
	var at int // of the checksum
	switch p.Proto {
	case ProtoTCP, ProtoUDP:
		p.Src = netip.AddrPortFrom(p.Src.Addr(), binary.BigEndian.Uint16(b))
		p.Dst = netip.AddrPortFrom(p.Dst.Addr(), binary.BigEndian.Uint16(b[2:]))
		if p.Proto == ProtoUDP {
			at, p.Payload = 6, b[8:]
			break
		}
		p.Seq = binary.BigEndian.Uint32(b[4:])
		if len(b) < 20 {
			return nil
		}
		at, p.Ack, p.Flags = 16, binary.BigEndian.Uint32(b[8:]), b[13]
		head := int(b[12]>>4) * 4
		if head >= 20 && len(b) >= head {
			p.MSS, p.Payload = mss(b[20:head]), b[head:]
		}
	case ProtoICMP, ProtoICMPv6:
		at, p.Type, p.Code, p.Rest = 2, b[0], b[1], binary.BigEndian.Uint32(b[4:])
		p.Echo, p.Turn, p.Payload = uint16(p.Rest>>16), uint16(p.Rest), b[8:]
		if p.Error() {
			var err error
			if p.Inner, err = parseIP(b[8:], true); err != nil {
				return fmt.Errorf("quoted packet: %w", err)
			}
			for _, bad := range p.Inner.Bad {
				p.Bad = append(p.Bad, "quoted "+bad)
			}
		}
	default:
		return nil
	}
	if complete && !p.sumRight(b, at) {
		p.Bad = append(p.Bad, map[uint8]string{ProtoTCP: "TCP", ProtoUDP: "UDP", ProtoICMP: "ICMP", ProtoICMPv6: "ICMPv6"}[p.Proto])
	}
	return nil
}

// Error says whether it is an ICMP error, which quotes a packet.
func (p *Parsed) Error() bool {
	switch p.Proto {
	case ProtoICMP:
		return p.Type == 3 || p.Type == 4 || p.Type == 5 || p.Type == 11 || p.Type == 12
	case ProtoICMPv6:
		return p.Type >= 1 && p.Type <= 4
	}
	return false
}

// sumRight checks the transport's checksum, which stands at the offset.
func (p *Parsed) sumRight(b []byte, at int) bool {
	if p.Proto == ProtoICMP {
		return sum(0, b) == 0xffff
	}
	if p.Proto == ProtoUDP && b[at] == 0 && b[at+1] == 0 {
		return p.Src.Addr().Is4() // none, which IPv6 does not have
	}
	pseudo := append(p.Src.Addr().AsSlice(), p.Dst.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(p.Proto))
	return sum(uint32(sum(0, pseudo)), b) == 0xffff
}

func mss(options []byte) uint16 {
	for len(options) > 0 && options[0] != 0 {
		n := 1
		if options[0] != 1 {
			if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
				return 0
			}
			n = int(options[1])
		}
		if options[0] == 2 && n == 4 {
			return binary.BigEndian.Uint16(options[2:])
		}
		options = options[n:]
	}
	return 0
}

func sum(start uint32, b []byte) uint16 {
	for len(b) > 1 {
		start += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	for start > 0xffff {
		start = start&0xffff + start>>16
	}
	return uint16(start)
}

// String is the packet in a line, for messages of tests.
func (p *Parsed) String() string {
	s := fmt.Sprintf("%s > %s proto %d ttl %d", p.Src, p.Dst, p.Proto, p.TTL)
	switch {
	case p.Proto == ProtoTCP && p.Offset == 0:
		s += fmt.Sprintf(" flags %#02x seq %d ack %d", p.Flags, p.Seq, p.Ack)
	case (p.Proto == ProtoICMP || p.Proto == ProtoICMPv6) && p.Offset == 0:
		s += fmt.Sprintf(" type %d code %d rest %#x", p.Type, p.Code, p.Rest)
	}
	if p.More || p.Offset > 0 {
		s += fmt.Sprintf(" fragment %#x at %d more %v", p.ID, p.Offset, p.More)
	}
	if p.Inner != nil {
		s += " about " + p.Inner.String()
	}
	if len(p.Bad) > 0 {
		s += fmt.Sprintf(" bad %q", p.Bad)
	}
	return fmt.Sprintf("%s, %d bytes", s, len(p.Payload))
}
