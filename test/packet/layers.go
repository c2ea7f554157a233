package packet

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Ether is the Ethernet header.
func Ether(src, dst net.HardwareAddr) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src, DstMAC: dst}
}

// EtherOf is an Ethernet header with a type that no layer here has, in host byte order.
func EtherOf(src, dst net.HardwareAddr, etherType uint16) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: layers.EthernetType(etherType)}
}

// Tag is a VLAN tag (0x8100) in the frame.
func Tag(id uint16) *layers.Dot1Q { return &layers.Dot1Q{VLANIdentifier: id} }

type serviceTag struct{ *layers.Dot1Q }

// ServiceTag is an outer tag of QinQ (0x88a8).
func ServiceTag(id uint16) Layer { return &serviceTag{Tag(id)} }

// IPv4 is a header with TTL 64 and without fragmentation.
func IPv4(src, dst netip.Addr) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 64, Id: 0x1234, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

// IPv6 is a header with hop limit 64.
func IPv6(src, dst netip.Addr) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

// extension is an IPv6 extension header.
type extension struct {
	kind, next layers.IPProtocol
	rest       []byte // what follows the next header
}

func (e *extension) LayerType() gopacket.LayerType { return gopacket.LayerTypePayload }

func (e *extension) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	bytes, err := b.PrependBytes(1 + len(e.rest))
	if err != nil {
		return err
	}
	bytes[0] = byte(e.next)
	copy(bytes[1:], e.rest)
	return nil
}

// padded is an extension header of 8*(units+1) bytes with one PadN option.
func padded(kind layers.IPProtocol, units int) Layer {
	rest := make([]byte, 8*(units+1)-1)
	rest[0] = byte(units)
	rest[1], rest[2] = 1, byte(len(rest)-3)
	return &extension{kind: kind, rest: rest}
}

// HopByHop is the hop-by-hop options header, 8*(units+1) bytes long.
func HopByHop(units int) Layer { return padded(layers.IPProtocolIPv6HopByHop, units) }

// DestinationOptions is that header, 8*(units+1) bytes long.
func DestinationOptions(units int) Layer { return padded(layers.IPProtocolIPv6Destination, units) }

// RoutingHeader is one without addresses, 8 bytes long.
func RoutingHeader() Layer {
	return &extension{kind: layers.IPProtocolIPv6Routing, rest: []byte{0, 4, 0, 0, 0, 0, 0}}
}

// Fragment6 is the fragment header; offset in bytes. What follows is part of a
// payload that protocol names unless the next layer does.
func Fragment6(offset uint16, more bool, protocol layers.IPProtocol) Layer {
	rest := make([]byte, 7)
	binary.BigEndian.PutUint16(rest[1:], offset&^7)
	if more {
		rest[2] |= 1
	}
	binary.BigEndian.PutUint32(rest[3:], 0xfeedbeef)
	return &extension{kind: layers.IPProtocolIPv6Fragment, next: protocol, rest: rest}
}

// UDP is the header of a datagram.
func UDP(src, dst uint16) *layers.UDP {
	return &layers.UDP{SrcPort: layers.UDPPort(src), DstPort: layers.UDPPort(dst)}
}

// TCP is a segment with ACK and PSH; with timestamps its header has 32 bytes.
func TCP(src, dst uint16, timestamps bool) *layers.TCP {
	t := &layers.TCP{SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst), Seq: 1000, Ack: 2000, ACK: true, PSH: true, Window: 512}
	if timestamps {
		nop := layers.TCPOption{OptionType: layers.TCPOptionKindNop}
		stamps := layers.TCPOption{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{0, 0, 0, 1, 0, 0, 0, 2}}
		t.Options = []layers.TCPOption{nop, nop, stamps}
	}
	return t
}

// SCTP is the common header; chunks are payload.
func SCTP(src, dst uint16) *layers.SCTP {
	return &layers.SCTP{SrcPort: layers.SCTPPort(src), DstPort: layers.SCTPPort(dst)}
}

// Echo is an ICMP echo request.
func Echo(id, seq uint16) *layers.ICMPv4 {
	return &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: id, Seq: seq}
}

// Payload is n bytes that count up, so that a lost or moved one shows.
func Payload(n int) gopacket.Payload {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8)
	}
	return p
}
