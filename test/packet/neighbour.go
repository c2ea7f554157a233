package packet

import (
	"net"
	"net/netip"

	"github.com/gopacket/gopacket/layers"
)

// Broadcast is the Ethernet address of all.
var Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ARP is an ARP packet for IPv4 over Ethernet: op 1 asks, 2 answers.
func ARP(op uint16, senderMAC net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) *layers.ARP {
	return &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: op, SourceHwAddress: senderMAC, SourceProtAddress: sender.AsSlice(),
		DstHwAddress: targetMAC, DstProtAddress: target.AsSlice(),
	}
}

// ARPRequest is the frame in which who asks all for target.
func ARPRequest(whoMAC net.HardwareAddr, who, target netip.Addr) []byte {
	return Frame(Ether(whoMAC, Broadcast), ARP(1, whoMAC, who, make(net.HardwareAddr, 6), target))
}

// ARPReply is the frame in which who tells to its MAC.
func ARPReply(whoMAC net.HardwareAddr, who netip.Addr, toMAC net.HardwareAddr, to netip.Addr) []byte {
	return Frame(Ether(whoMAC, toMAC), ARP(2, whoMAC, who, toMAC, to))
}

// SolicitedNode is the multicast group that is asked for an address, and its MAC.
func SolicitedNode(target netip.Addr) (netip.Addr, net.HardwareAddr) {
	a := target.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], a[13:])
	return netip.AddrFrom16(group), net.HardwareAddr{0x33, 0x33, 0xff, a[13], a[14], a[15]}
}

// neighbour is an IPv6 header as neighbour discovery wants it.
func neighbour(src, dst netip.Addr) *layers.IPv6 {
	ip := IPv6(src, dst)
	ip.HopLimit = 255
	return ip
}

func linkAddress(option layers.ICMPv6Opt, mac net.HardwareAddr) layers.ICMPv6Options {
	if mac == nil {
		return nil
	}
	return layers.ICMPv6Options{{Type: option, Data: mac}}
}

// Solicit are the layers of a neighbour solicitation from IPv6 on; mac is the
// option with the sender's address, or nil. Sent to the solicited-node group.
func Solicit(src netip.Addr, mac net.HardwareAddr, target netip.Addr) []Layer {
	group, _ := SolicitedNode(target)
	return []Layer{
		neighbour(src, group),
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)},
		&layers.ICMPv6NeighborSolicitation{
			TargetAddress: target.AsSlice(), Options: linkAddress(layers.ICMPv6OptSourceAddress, mac),
		},
	}
}

// SolicitFrame is the whole frame of Solicit, from senderMAC to the group.
func SolicitFrame(senderMAC net.HardwareAddr, src netip.Addr, option net.HardwareAddr, target netip.Addr) []byte {
	_, groupMAC := SolicitedNode(target)
	return Frame(append([]Layer{Ether(senderMAC, groupMAC)}, Solicit(src, option, target)...)...)
}

// The flags of an advertisement: sent for a question, and overriding what is known.
const (
	Solicited = 0x40
	Override  = 0x20
)

// Advert are the layers of a neighbour advertisement from IPv6 on; mac is the
// option with the target's address, or nil.
func Advert(dst netip.Addr, flags uint8, target netip.Addr, mac net.HardwareAddr) []Layer {
	return []Layer{
		neighbour(target, dst),
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborAdvertisement, 0)},
		&layers.ICMPv6NeighborAdvertisement{
			Flags: flags, TargetAddress: target.AsSlice(), Options: linkAddress(layers.ICMPv6OptTargetAddress, mac),
		},
	}
}

// AdvertFrame is the whole frame of Advert.
func AdvertFrame(mac, toMAC net.HardwareAddr, dst netip.Addr, flags uint8, target netip.Addr) []byte {
	return Frame(append([]Layer{Ether(mac, toMAC)}, Advert(dst, flags, target, mac)...)...)
}
