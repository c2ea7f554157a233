package packet

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
)

// What is built says what it was built from; and whichever byte is changed, it
// shows: in a checksum, or in what the packet says.
func TestParse(t *testing.T) {
	quote := Frame(Ether(ServerMAC, GatewayMAC), IPv4(Gateway, Outside), UDP(7, 9), Payload(20))[14:]
	quote6 := Frame(Ether(ServerMAC, GatewayMAC), IPv6(Server6, Outside6), UDP(7, 9), Payload(20))[14:]
	for name, layers := range map[string][]Layer{
		"UDP":         {IPv4(Server, Outside), UDP(5000, 53), Payload(33)},
		"TCP":         {IPv4(Server, Outside), Segment(5000, 53, SYN|ACK, 1, 2, 1460), gopacket.Payload("x")},
		"echo":        append([]Layer{IPv4(Server, Outside)}, Query(false, false, 77, 1, "data")...),
		"error":       append([]Layer{IPv4(Server, Outside)}, Control(false, 3, 4, 1280, quote)...),
		"UDP 6":       {IPv6(Server6, Outside6), UDP(5000, 53), Payload(33)},
		"TCP 6":       {IPv6(Server6, Outside6), DestinationOptions(1), Segment(5000, 53, FIN, 1, 2, 0), gopacket.Payload("x")},
		"echo 6":      append([]Layer{IPv6(Server6, Outside6)}, Query(true, true, 77, 1, "data")...),
		"error 6":     append([]Layer{IPv6(Server6, Outside6)}, Control(true, 2, 0, 1280, quote6)...),
		"short quote": append([]Layer{IPv4(Server, Outside)}, Control(false, 11, 0, 0, quote[:28])...),
	} {
		frame := Frame(append([]Layer{Ether(ServerMAC, GatewayMAC)}, layers...)...)
		p, err := Parse(frame)
		if err != nil || len(p.Bad) > 0 {
			t.Errorf("%s: %s, %v", name, p, err)
			continue
		}
		t.Logf("%s: %s", name, p)
		src := netip.AddrPortFrom(Server, 5000)
		if frame[12] == 0x86 {
			src = netip.AddrPortFrom(Server6, 5000)
		}
		if p.Proto != ProtoTCP && p.Proto != ProtoUDP {
			src = netip.AddrPortFrom(src.Addr(), 0)
		}
		if p.Src != src {
			t.Errorf("%s: from %s, want %s", name, p.Src, src)
		}
		if p.Inner != nil && (p.Inner.Dst.Port() != 9 || p.Inner.Proto != ProtoUDP) {
			t.Errorf("%s: about %s", name, p.Inner)
		}
		for i := 14 + p.L4; i < len(frame); i++ {
			frame[i] ^= 0x40
			if q, err := Parse(frame); err == nil && len(q.Bad) == 0 {
				t.Errorf("%s: byte %d changed, and nothing is wrong: %s", name, i, q)
			}
			frame[i] ^= 0x40
		}
		for n := range len(frame) {
			if q, err := Parse(frame[:n]); err == nil {
				t.Errorf("%s: %d bytes of %d are %s", name, n, len(frame), q)
			}
		}
	}
}
