package e2e

import (
	"bytes"
	bin "encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// packet serialises layers with lengths and checksums set right.
func packet(t *testing.T, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for i, l := range all {
		var network gopacket.NetworkLayer
		if i > 0 {
			network, _ = all[i-1].(gopacket.NetworkLayer)
		}
		var err error
		switch l := l.(type) {
		case *layers.TCP:
			err = l.SetNetworkLayerForChecksum(network)
		case *layers.UDP:
			err = l.SetNetworkLayerForChecksum(network)
		case *layers.ICMPv6:
			err = l.SetNetworkLayerForChecksum(network)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// joint says who sends the frames of a cable to whom.
type joint struct {
	from, to net.HardwareAddr
	src, dst netip.Addr
	s6, d6   netip.Addr
}

func (j joint) eth(kind layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: j.from, DstMAC: j.to, EthernetType: kind}
}

func (j joint) ip4(p layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Id: 7, Protocol: p, SrcIP: j.src.AsSlice(), DstIP: j.dst.AsSlice()}
}

func (j joint) ip6(p layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: p, SrcIP: j.s6.AsSlice(), DstIP: j.d6.AsSlice()}
}

// raw is a frame with any bytes behind the EtherType.
func (j joint) raw(kind uint16, body ...byte) []byte {
	f := append(append([]byte{}, j.to...), j.from...)
	return append(bin.BigEndian.AppendUint16(f, kind), body...)
}

// tagged puts VLAN tags (type, tag) into a frame.
func tagged(frame []byte, tags ...uint16) []byte {
	f := bytes.Clone(frame[:12])
	for _, v := range tags {
		f = bin.BigEndian.AppendUint16(f, v)
	}
	return append(f, frame[12:]...)
}

// group gives a frame another destination MAC.
func group(frame []byte, mac string) []byte {
	m, err := net.ParseMAC(mac)
	if err != nil {
		panic(err)
	}
	return append(bytes.Clone(m), frame[6:]...)
}

// oddFrames is what a network may carry: protocols that nobody routes, tags,
// groups, and frames that are broken in the places where parsers look.
func oddFrames(t *testing.T, j joint) [][]byte {
	pay := gopacket.Payload(noise(200))
	udp := packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 4000, DstPort: 4001}, pay)
	udp6 := packet(t, j.eth(layers.EthernetTypeIPv6), j.ip6(layers.IPProtocolUDP), &layers.UDP{SrcPort: 4000, DstPort: 4001}, pay)
	tcp := packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolTCP),
		&layers.TCP{SrcPort: 4000, DstPort: 4001, ACK: true, Window: 1000, Options: []layers.TCPOption{{OptionType: 1}, {OptionType: 1}}}, pay)
	arp := func(op uint16, spa, tpa netip.Addr) []byte {
		return packet(t, j.eth(layers.EthernetTypeARP), &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4,
			HwAddressSize: 6, ProtAddressSize: 4, Operation: op, SourceHwAddress: j.from, SourceProtAddress: spa.AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: tpa.AsSlice()})
	}
	options := j.ip4(layers.IPProtocolUDP)
	options.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 11, OptionData: make([]byte, 9)}, {OptionType: 1}}
	ext := func(next byte, headers ...byte) []byte {
		f := packet(t, j.eth(layers.EthernetTypeIPv6), j.ip6(layers.IPProtocol(next)), gopacket.Payload(append(headers, udp6[54:]...)))
		return f
	}
	hop := func(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	broken := func(at int, v byte) []byte { f := bytes.Clone(udp); f[at] = v; return f }

	frames := [][]byte{
		udp, udp6, tcp,
		// Protocols of the link.
		group(j.raw(0x88cc, append([]byte{2, 7, 4, 2, 0, 0, 0, 0, 1, 4, 5, 5, 'e', 't', 'h', '0', 6, 2, 0, 120, 0, 0}, make([]byte, 30)...)...), "01:80:c2:00:00:0e"), // LLDP
		group(j.raw(38, append([]byte{0x42, 0x42, 3}, make([]byte, 43)...)...), "01:80:c2:00:00:00"),                                                                  // STP, 802.3 length
		group(j.raw(0x8809, append([]byte{1, 1}, make([]byte, 108)...)...), "01:80:c2:00:00:02"),                                                                      // LACP
		group(j.raw(0x888e, 1, 1, 0, 0), "01:80:c2:00:00:03"),                                                                                                         // EAPOL
		group(j.raw(0x88f7, make([]byte, 44)...), "01:1b:19:00:00:00"),                                                                                                // PTP
		j.raw(0x88e5, noise(60)...), j.raw(0x0842, bytes.Repeat([]byte{0xff}, 102)...), j.raw(0x8035, make([]byte, 46)...), // MACsec, wake on LAN, RARP
		j.raw(0x8847, append([]byte{0, 1, 0x11, 64}, udp[14:]...)...), j.raw(0x8864, append([]byte{0x11, 0, 0, 1, 0, 9, 0, 0x21}, udp[14:]...)...), // MPLS, PPPoE
		arp(1, j.src, j.dst), arp(2, j.src, j.dst), group(arp(1, j.src, j.src), "ff:ff:ff:ff:ff:ff"), // gratuitous
		// Groups and others' frames.
		group(udp, "ff:ff:ff:ff:ff:ff"), group(udp, "01:00:5e:00:00:fb"), group(udp6, "33:33:00:00:00:01"), group(udp, "02:de:ad:00:00:01"),
		// Tags.
		tagged(udp, 0x8100, 100), tagged(udp6, 0x8100, 0x6064), tagged(tcp, 0x8100, 0), tagged(udp, 0x88a8, 7, 0x8100, 8),
		tagged(udp6, 0x88a8, 7, 0x8100, 8), tagged(udp, 0x8100, 7, 0x8100, 9), tagged(udp, 0x88a8, 1, 0x88a8, 2, 0x8100, 3),
		tagged(udp, 0x8100, 1, 0x8100, 2, 0x8100, 3, 0x8100, 4), tagged(arp(1, j.src, j.dst), 0x8100, 100), tagged(j.raw(0x88cc, noise(40)...), 0x8100, 1),
		j.raw(0x88a8, 0, 1, 0x81, 0, 0, 2), // a tag and nothing; an outer tag cut short no kernel takes in
		// Other protocols over IP.
		packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolGRE), gopacket.Payload(append([]byte{0, 0, 8, 0}, udp[14:]...))),
		packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolESP), pay), packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolSCTP), pay),
		packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolIPv4), gopacket.Payload(udp[14:])), packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolOSPF), pay),
		packet(t, j.eth(layers.EthernetTypeIPv4), options, &layers.UDP{SrcPort: 1, DstPort: 2}, pay),
		// IPv6 extension headers: hop by hop, destination, a chain, too many, a fragment of one.
		ext(0, hop(17)...), ext(60, hop(17)...), ext(0, append(hop(60), hop(17)...)...), ext(0, bytes.Repeat(hop(60), 9)...),
		ext(44, 17, 0, 0, 0, 0, 0, 0, 1), ext(59), ext(253),
		// Broken: version, header length, total length, checksum, TTL; cut short; longer than IP says.
		broken(14, 0x65), broken(14, 0x41), broken(14, 0x4f), broken(16, 0xff), broken(17, 1), broken(24, 0), broken(22, 0), broken(22, 1),
		udp[:14], udp[:15], udp[:33], udp[:34], udp[:36], udp6[:53], udp6[:54], tcp[:50], append(bytes.Clone(udp), noise(30)...),
		j.raw(0), j.raw(0xffff, 1), j.raw(0x0800), j.raw(0x86dd, 0x60), j.raw(0x0806, 0, 1),
		// Sizes: smallest, padded, largest, and the largest with a tag.
		packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1, DstPort: 2}),
		append(packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1, DstPort: 2}), make([]byte, 18)...),
		packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload(noise(1472))),
		tagged(packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload(noise(1472))), 0x8100, 9),
		tagged(packet(t, j.eth(layers.EthernetTypeIPv6), j.ip6(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload(noise(1444))), 0x88a8, 9, 0x8100, 9), // more would be refused, but for one 802.1Q tag
	}
	// Numbered, so that each is one of its own: what can be told apart must come in order.
	for i, f := range frames {
		if len(f) > 60 {
			bin.BigEndian.PutUint16(f[len(f)-2:], uint16(i))
		}
	}
	return frames
}

// writePcap writes frames for tcpreplay into the lab's folder.
func writePcap(g *gateway, name string, frames [][]byte) string {
	g.t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	err := w.WriteFileHeader(65536, layers.LinkTypeEthernet)
	for i, f := range frames {
		if err == nil {
			info := gopacket.CaptureInfo{Timestamp: time.Unix(int64(i), 0), CaptureLength: len(f), Length: len(f)}
			err = w.WritePacket(info, f)
		}
	}
	path := filepath.Join(g.Dir, name)
	if err == nil {
		err = os.WriteFile(path, b.Bytes(), 0o600)
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return path
}
