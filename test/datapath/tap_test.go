package datapath

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"tapgate/test/packet"
)

var (
	fromServer  = func() packet.Layer { return packet.Ether(packet.ServerMAC, packet.GatewayMAC) }
	toServer    = func() packet.Layer { return packet.Ether(packet.GatewayMAC, packet.ServerMAC) }
	outward     = func() *layers.IPv4 { return packet.IPv4(packet.Server, packet.Outside) }
	outward6    = func() *layers.IPv6 { return packet.IPv6(packet.Server6, packet.Outside6) }
	plainPacket = func() []byte {
		return packet.Frame(fromServer(), outward(), packet.UDP(5000, 53), packet.Payload(40))
	}
)

// frames is one of every kind that a tap meets.
func frames() map[string][]byte {
	f := packet.Frame
	udp := func() packet.Layer { return packet.UDP(5000, 53) }
	options := outward()
	options.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}} // router alert
	first, later := outward(), outward()
	first.Flags, later.FragOffset, later.Protocol = layers.IPv4MoreFragments, 3, layers.IPProtocolUDP
	group := packet.IPv4(packet.Server, packet.Outside)
	lldp := []byte{2, 7, 4, 2, 0, 0, 0x5e, 0, 1, 4, 2, 7, '1', 6, 2, 0, 120, 0, 0}
	plain, plain6 := plainPacket(), f(fromServer(), outward6(), udp(), packet.Payload(40))
	return map[string][]byte{
		"ARP request":              packet.ARPRequest(packet.ServerMAC, packet.Server, packet.Outside),
		"IPv4 ICMP":                f(fromServer(), outward(), packet.Echo(1, 1), packet.Payload(56)),
		"IPv4 UDP":                 plain,
		"IPv4 TCP with options":    f(fromServer(), outward(), packet.TCP(5000, 443, true), packet.Payload(500)),
		"IPv4 SCTP":                f(fromServer(), outward(), packet.SCTP(5000, 36412), packet.Payload(32)),
		"IPv4 options":             f(fromServer(), options, udp(), packet.Payload(20)),
		"IPv4 first fragment":      f(fromServer(), first, udp(), packet.Payload(16)),
		"IPv4 later fragment":      f(fromServer(), later, packet.Payload(24)),
		"IPv4 of full size":        f(fromServer(), outward(), udp(), packet.Payload(1500-28)),
		"IPv4 broadcast":           f(packet.Ether(packet.ServerMAC, packet.Broadcast), group, udp(), packet.Payload(9)),
		"IPv6 UDP":                 plain6,
		"IPv6 extension headers":   f(fromServer(), outward6(), packet.HopByHop(0), packet.RoutingHeader(), packet.DestinationOptions(1), packet.TCP(1, 2, true), packet.Payload(5)),
		"IPv6 long extensions":     f(fromServer(), outward6(), packet.HopByHop(30), packet.DestinationOptions(30), udp()),
		"IPv6 many extensions":     f(fromServer(), outward6(), packet.HopByHop(0), packet.DestinationOptions(0), packet.DestinationOptions(0), packet.DestinationOptions(0), packet.DestinationOptions(0), packet.DestinationOptions(0), packet.DestinationOptions(0), udp()),
		"IPv6 first fragment":      f(fromServer(), outward6(), packet.Fragment6(0, true, layers.IPProtocolUDP), packet.Payload(64)),
		"IPv6 later fragment":      f(fromServer(), outward6(), packet.Fragment6(64, false, layers.IPProtocolUDP), packet.Payload(64)),
		"IPv6 neighbour question":  packet.SolicitFrame(packet.ServerMAC, packet.Server6, packet.ServerMAC, packet.Outside6),
		"VLAN":                     f(fromServer(), packet.Tag(7), outward(), udp(), packet.Payload(8)),
		"VLAN priority only":       f(fromServer(), packet.Tag(0), packet.Payload(50)),
		"QinQ":                     f(fromServer(), packet.ServiceTag(7), packet.Tag(8), outward6(), udp(), packet.Payload(8)),
		"three tags":               f(fromServer(), packet.ServiceTag(7), packet.Tag(8), packet.Tag(9), outward(), udp(), packet.Payload(8)),
		"four tags":                f(fromServer(), packet.ServiceTag(7), packet.Tag(8), packet.Tag(9), packet.Tag(10), outward(), udp()),
		"tag cut short":            f(packet.EtherOf(packet.ServerMAC, packet.GatewayMAC, 0x8100), packet.Payload(2)),
		"LLDP":                     f(packet.EtherOf(packet.ServerMAC, packet.GatewayMAC, 0x88cc), gopacket.Payload(lldp)),
		"802.3 length":             f(packet.EtherOf(packet.ServerMAC, packet.GatewayMAC, 0x0026), packet.Payload(38)),
		"unknown type":             f(packet.EtherOf(packet.ServerMAC, packet.GatewayMAC, 0x9999), packet.Payload(100)),
		"runt of 14 bytes":         plain[:14],
		"runt of 15 bytes":         plain[:15],
		"IPv4 cut in the header":   plain[:14+12],
		"IPv4 without transport":   plain[:14+20],
		"IPv4 cut in UDP":          plain[:14+20+4],
		"IPv4 TCP cut":             f(fromServer(), outward(), packet.TCP(5000, 443, true))[:14+20+13],
		"IPv4 with version 5":      with(plain, 14, 0x55),
		"IPv4 with ihl 4":          with(plain, 14, 0x44),
		"IPv4 with ihl 15 and cut": with(plain, 14, 0x4f)[:14+30],
		"IPv6 cut in the header":   plain6[:14+39],
		"IPv6 cut in an extension": f(fromServer(), outward6(), packet.HopByHop(0))[:14+44],
		"IPv6 with version 4":      with(plain6, 14, 0x45),
	}
}

// Every kind of frame goes on untouched, is counted with its size, and arrives
// at the sensor as it was but for the two MACs.
func TestTapCopiesEveryFrame(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	for name, frame := range frames() {
		for _, program := range []string{"tap_in", "tap_out"} {
			t.Run(name+"/"+program, func(t *testing.T) {
				gate.setNeighs(t, fresh(t))
				ctx := skb{Ifindex: internal, Mark: 0xbeef, Priority: 6, Cb: [5]uint32{1, 2, 3, 4, 5}}
				c := gate.during(t, func() { gate.runCut(t, program, ctx, frame).unchanged(t, ctx, frame) })
				want := append(append(bytes.Clone(sensorMAC), gate.usMAC...), frame[12:]...)
				// A receiving kernel drops what has no room for the tag's type.
				if name != "tag cut short" {
					if got := gate.viaEth2.copies(t, 1); !bytes.Equal(got[0], want) {
						t.Errorf("the copy is\n%x, want\n%x", got[0], want)
					}
				}
				n := count(1, len(frame))
				if got := c.seen(internal, program); got != n {
					t.Errorf("seen %v, want %v", got, n)
				}
				c.only(t, internal, program, "pass_tapped")
				c.mirror(t, "ids", program, copied(n))
				c.target(t, "ids", via, copied(n))
				if got := c.reasons(dmz, "dmz_out")["pass_delivered"]; got != 1 {
					t.Errorf("%d copies delivered by the count of eth2, want 1", got)
				}
			})
		}
	}
	gate.quiet(t)
}

// A tag beside the frame is part of it: in the bytes counted and at the sensor.
func TestTapTagBesideTheFrame(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	frame := plainPacket()
	for _, program := range []string{"tap_in", "tap_out"} {
		gate.setNeighs(t, fresh(t))
		ctx := skb{Ifindex: internal}
		c := gate.during(t, func() {
			gate.runPrepared(t, preparation{program: program, tag: 7}, ctx, frame).unchanged(t, ctx, frame)
		})
		want := append(append(bytes.Clone(sensorMAC), gate.usMAC...), 0x81, 0, 0, 7)
		want = append(want, frame[12:]...)
		if got := gate.viaEth2.copies(t, 1); !bytes.Equal(got[0], want) {
			t.Errorf("%s: the copy is\n%x, want\n%x", program, got[0], want)
		}
		c.mirror(t, "ids", program, copied(count(1, len(frame)+4)))
	}
}

// Who is copied: members that a mirror covers, and never a copy.
func TestTapWhom(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	for _, c := range []struct {
		name    string
		ctx     skb
		ifindex int    // whose counters tell it; 0: nobody's
		reason  string // counted there
		copies  int
	}{
		{"member", skb{Ifindex: internal}, internal, "pass_tapped", 1},
		{"member, mark of the admin", skb{Ifindex: internal, Mark: copyMark - 1}, internal, "pass_tapped", 1},
		{"member, cb as if it were a copy", skb{Ifindex: internal, Cb: [5]uint32{copyMagic << 8, 1, 2, 3, 4}}, internal, "pass_tapped", 1},
		{"own copy", skb{Ifindex: internal, Mark: copyMark}, 0, "", 0},
		{"own copy with magic", skb{Ifindex: internal, Mark: copyMark, Cb: [5]uint32{copyMagic << 8}}, 0, "", 0},
		{"not a member", skb{}, 0, "", 0},
		{"member that no mirror covers", skb{Ifindex: second}, second, "pass_not_tapped", 0},
	} {
		for _, program := range []string{"tap_in", "tap_out"} {
			t.Run(c.name+"/"+program, func(t *testing.T) {
				gate.setNeighs(t, fresh(t))
				frame := plainPacket()
				before := gate.outsiders(t, program)
				change := gate.during(t, func() { gate.run(t, program, c.ctx, frame).unchanged(t, c.ctx, frame) })
				gate.viaEth2.copies(t, c.copies)
				if c.ifindex == 0 {
					if got := gate.outsiders(t, program) - before; got != 1 {
						t.Errorf("%d packets counted for no member, want 1", got)
					}
				} else if direction(change.after, c.ifindex, program) != nil {
					change.only(t, c.ifindex, program, c.reason)
				}
				if c.copies == 0 {
					change.mirror(t, "ids", program, account{})
				}
			})
		}
	}
	gate.quiet(t)
}

// outsiders is how many packets slot 0 counted, which is no interface's.
func (r *rig) outsiders(t *testing.T, program string) (sum uint64) {
	t.Helper()
	key := uint32(0)
	if program == "tap_out" || program == "dmz_out" {
		key = 1
	}
	cpus, err := r.maps["tg_seen"].LookupBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	size := int(r.maps["tg_seen"].ValueSize()+7) &^ 7
	for ; len(cpus) >= size; cpus = cpus[size:] {
		sum += binary.NativeEndian.Uint64(cpus)
	}
	return sum
}
