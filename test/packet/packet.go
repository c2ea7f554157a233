// Package packet builds frames for tests, so that a test reads like its packet:
//
//	packet.Frame(packet.Ether(a, b), packet.Tag(7), packet.IPv4(src, dst), packet.UDP(5000, 53), packet.Payload(100))
//
// Types, next headers, lengths and checksums follow from the layers unless they
// are set. Nothing is padded.
package packet

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Layer is one header, or the payload.
type Layer = gopacket.SerializableLayer

// The machines of the examples, with addresses of the documentation ranges.
var (
	ServerMAC  = net.HardwareAddr{2, 0, 0, 0x5e, 0, 1}
	GatewayMAC = net.HardwareAddr{2, 0, 0, 0x5e, 0, 2}

	Server   = netip.MustParseAddr("192.0.2.10")
	Outside  = netip.MustParseAddr("203.0.113.8")
	Gateway  = netip.MustParseAddr("198.51.100.1") // its outside address
	Server6  = netip.MustParseAddr("2001:db8:3::10")
	Outside6 = netip.MustParseAddr("2001:db8:113::8")
)

// Frame puts the layers together: Ether first, no FCS. It panics if that
// cannot be, which is a mistake in the test.
func Frame(all ...Layer) []byte {
	eth, ok := all[0].(*layers.Ethernet)
	if !ok {
		panic("packet: the first layer is not Ether")
	}
	link(all)
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, all[1:]...); err != nil {
		panic(fmt.Sprintf("packet: %v", err))
	}
	// Written here, since gopacket pads.
	frame := append([]byte{}, eth.DstMAC...)
	frame = append(frame, eth.SrcMAC...)
	frame = append(frame, byte(eth.EthernetType>>8), byte(eth.EthernetType))
	return append(frame, buf.Bytes()...)
}

// link tells each layer what comes next, and transport layers their addresses.
func link(all []Layer) {
	var network gopacket.NetworkLayer
	for i, l := range all {
		var next Layer = gopacket.Payload(nil)
		if i+1 < len(all) {
			next = all[i+1]
		}
		switch l := l.(type) {
		case *layers.Ethernet:
			l.EthernetType = or(l.EthernetType, etherType(next))
		case *layers.Dot1Q:
			l.Type = or(l.Type, etherType(next))
		case *serviceTag:
			l.Type = or(l.Type, etherType(next))
		case *layers.IPv4:
			l.Protocol = or(l.Protocol, protocol(next))
			network = l
		case *layers.IPv6:
			l.NextHeader = or(l.NextHeader, protocol(next))
			network = l
		case *extension:
			l.next = or(l.next, protocol(next))
		case *layers.TCP:
			_ = l.SetNetworkLayerForChecksum(network)
		case *layers.UDP:
			_ = l.SetNetworkLayerForChecksum(network)
		case *layers.ICMPv6:
			_ = l.SetNetworkLayerForChecksum(network)
		}
	}
}

func or[T comparable](set, follows T) T {
	var zero T
	if set != zero {
		return set
	}
	return follows
}

func etherType(l Layer) layers.EthernetType {
	switch l.(type) {
	case *layers.Dot1Q:
		return layers.EthernetTypeDot1Q
	case *serviceTag:
		return layers.EthernetTypeQinQ
	case *layers.IPv4:
		return layers.EthernetTypeIPv4
	case *layers.IPv6:
		return layers.EthernetTypeIPv6
	case *layers.ARP:
		return layers.EthernetTypeARP
	}
	return 0x88b5 // IEEE 802: local experiments
}

func protocol(l Layer) layers.IPProtocol {
	switch l := l.(type) {
	case *layers.TCP:
		return layers.IPProtocolTCP
	case *layers.UDP:
		return layers.IPProtocolUDP
	case *layers.SCTP:
		return layers.IPProtocolSCTP
	case *layers.ICMPv4:
		return layers.IPProtocolICMPv4
	case *layers.ICMPv6:
		return layers.IPProtocolICMPv6
	case *extension:
		return l.kind
	}
	return layers.IPProtocolNoNextHeader
}
