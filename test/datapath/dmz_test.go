package datapath

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"tapgate/test/packet"
)

// with changes bytes of a frame.
func with(frame []byte, at int, value ...byte) []byte {
	frame = bytes.Clone(frame)
	copy(frame[at:], value)
	return frame
}

const (
	passAnswer   = "pass_neighbour_answer"
	passQuestion = "pass_neighbour_question"
	dropLearned  = "drop_neighbour_learned"
	dropFromDMZ  = "drop_from_dmz"
)

// Offsets in a frame of neighbour discovery.
const (
	atHops     = 14 + 7
	atICMPType = 14 + 40
	atICMPCode = atICMPType + 1
	atOption   = 14 + 40 + 24
)

// What the sensor's network may send, and what is learned from it.
func TestDMZIngress(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via, via6))
	var (
		ask      = packet.ARPRequest(otherMAC, other, us)
		askOther = packet.ARPRequest(otherMAC, other, other)
		reply    = answer()
		solicit  = packet.SolicitFrame(otherMAC, other6, otherMAC, us6)
		advert   = packet.AdvertFrame(sensorMAC, gate.usMAC, us6, packet.Solicited|packet.Override, sensor6)
		zero     = net.HardwareAddr{0, 0, 0, 0, 0, 0}
		group    = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}
		allNodes = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
		everyone = netip.MustParseAddr("ff02::1")
	)
	nd := packet.Advert(us6, packet.Solicited, sensor6, sensorMAC)
	udp := func(ip packet.Layer, tags ...packet.Layer) []byte {
		all := append([]packet.Layer{packet.Ether(sensorMAC, gate.usMAC)}, tags...)
		return packet.Frame(append(all, ip, packet.UDP(1, 2), packet.Payload(20))...)
	}
	for _, c := range []struct {
		name    string
		frame   []byte
		reason  string
		learned net.HardwareAddr // of the sensor's addresses; nil: what it was
	}{
		{"ARP question for us", ask, passQuestion, nil},
		{"ARP question for us, from the sensor", packet.ARPRequest(sensorMAC, sensor, us), passQuestion, sensorMAC},
		{"ARP question for us, sent to us alone", with(ask, 0, gate.usMAC...), passQuestion, nil},
		{"ARP probe for our address", packet.ARPRequest(otherMAC, netip.IPv4Unspecified(), us), passQuestion, nil},
		{"ARP question for others", askOther, dropFromDMZ, nil},
		{"ARP question for others, from the sensor", packet.ARPRequest(sensorMAC, sensor, other), dropLearned, sensorMAC},
		{"ARP question for our other network", packet.ARPRequest(otherMAC, other, packet.Server), dropFromDMZ, nil},
		{"ARP answer of the sensor to us", reply, passAnswer, sensorMAC},
		{"ARP answer of the sensor with another MAC", packet.ARPReply(otherMAC, sensor, gate.usMAC, us), passAnswer, otherMAC},
		{"ARP answer to us from a stranger", packet.ARPReply(otherMAC, other, gate.usMAC, us), passAnswer, nil},
		{"ARP answer for us, to another MAC", packet.ARPReply(sensorMAC, sensor, otherMAC, us), dropLearned, sensorMAC},
		{"ARP answer for us, to all", packet.ARPReply(sensorMAC, sensor, packet.Broadcast, us), dropLearned, sensorMAC},
		{"ARP answer to others", packet.ARPReply(otherMAC, other, otherMAC, other), dropFromDMZ, nil},
		{"ARP announcement of the sensor", packet.ARPRequest(otherMAC, sensor, sensor), dropLearned, otherMAC},
		{"ARP announcement as an answer", packet.ARPReply(otherMAC, sensor, packet.Broadcast, sensor), dropLearned, otherMAC},
		{"ARP announcement of a stranger", packet.ARPRequest(otherMAC, other, other), dropFromDMZ, nil},
		{"ARP answer with a group MAC", packet.ARPReply(group, sensor, gate.usMAC, us), passAnswer, nil},
		{"ARP answer with the MAC of all", packet.ARPReply(packet.Broadcast, sensor, gate.usMAC, us), passAnswer, nil},
		{"ARP answer with no MAC", packet.ARPReply(zero, sensor, gate.usMAC, us), passAnswer, nil},
		{"ARP of another hardware", with(reply, 14, 0, 6), dropFromDMZ, nil},
		{"ARP of another protocol", with(reply, 16, 0x86, 0xdd), dropFromDMZ, nil},
		{"ARP with MACs of 8 bytes", with(reply, 18, 8), dropFromDMZ, nil},
		{"ARP with addresses of 16 bytes", with(reply, 19, 16), dropFromDMZ, nil},
		{"ARP with an unknown operation", with(packet.ARPReply(otherMAC, other, gate.usMAC, us), 20, 0, 9), dropFromDMZ, nil},
		{"ARP cut short", reply[:14+27], dropFromDMZ, nil},
		{"ARP with padding", append(bytes.Clone(reply), make([]byte, 18)...), passAnswer, sensorMAC},

		{"ND question for us", solicit, passQuestion, nil},
		{"ND question for us, from the sensor", packet.SolicitFrame(otherMAC, sensor6, otherMAC, us6), passQuestion, otherMAC},
		{"ND question for us without option", packet.SolicitFrame(sensorMAC, sensor6, nil, us6), passQuestion, nil},
		{"ND question that looks for duplicates of us", packet.SolicitFrame(otherMAC, netip.IPv6Unspecified(), nil, us6), passQuestion, nil},
		{"ND question for others", packet.SolicitFrame(otherMAC, other6, otherMAC, other6), dropFromDMZ, nil},
		{"ND question for others without option", packet.SolicitFrame(otherMAC, other6, nil, other6), dropFromDMZ, nil},
		{"ND question for others, from the sensor", packet.SolicitFrame(otherMAC, sensor6, otherMAC, other6), dropLearned, otherMAC},
		{"ND question with a group MAC", packet.SolicitFrame(sensorMAC, sensor6, group, us6), passQuestion, nil},
		{"ND question with another option", with(packet.SolicitFrame(otherMAC, sensor6, otherMAC, us6), atOption, 2), passQuestion, nil},
		{"ND question with a long option", with(packet.SolicitFrame(otherMAC, sensor6, otherMAC, us6), atOption+1, 2), passQuestion, nil},
		{"ND answer of the sensor to us", advert, passAnswer, sensorMAC},
		{"ND answer of the sensor with another MAC", packet.AdvertFrame(otherMAC, gate.usMAC, us6, packet.Solicited, sensor6), passAnswer, otherMAC},
		{"ND answer to us from a stranger", packet.AdvertFrame(otherMAC, gate.usMAC, us6, packet.Solicited, other6), passAnswer, nil},
		{"ND announcement of the sensor", packet.AdvertFrame(otherMAC, allNodes, everyone, packet.Override, sensor6), dropLearned, otherMAC},
		{"ND announcement of a stranger", packet.AdvertFrame(otherMAC, allNodes, everyone, packet.Override, other6), dropFromDMZ, nil},
		{"ND answer for us, to another MAC", packet.AdvertFrame(sensorMAC, otherMAC, us6, packet.Solicited, sensor6), dropLearned, sensorMAC},
		{"ND answer with a group MAC", with(advert, atOption+2, group...), passAnswer, nil},
		{"ND answer with another option", with(advert, atOption, 1), passAnswer, nil},
		{"ND answer with a long option", with(advert, atOption+1, 2), passAnswer, nil},
		{"ND answer without option", advert[:atOption], dropFromDMZ, nil},
		{"ND question that a router sent on", with(solicit, atHops, 254), dropFromDMZ, nil},
		{"ND answer that a router sent on", with(advert, atHops, 254), dropFromDMZ, nil},
		{"ND question with a code", with(solicit, atICMPCode, 1), dropFromDMZ, nil},
		{"ND question without option, with a code", with(packet.SolicitFrame(otherMAC, other6, nil, us6), atICMPCode, 1), dropFromDMZ, nil},
		{"ND cut in the target", solicit[:atOption-1], dropFromDMZ, nil},
		{"ND cut in IPv6", solicit[:14+39], dropFromDMZ, nil},
		{"router advertisement", with(advert, atICMPType, 134), dropFromDMZ, nil},
		{"redirect", with(advert, atICMPType, 137), dropFromDMZ, nil},
		{"echo request by IPv6", with(advert, atICMPType, 128), dropFromDMZ, nil},
		{"ND behind an extension header", packet.Frame(append([]packet.Layer{packet.Ether(sensorMAC, gate.usMAC), nd[0], packet.HopByHop(0)}, nd[1:]...)...), dropFromDMZ, nil},

		{"IPv4 to us", udp(packet.IPv4(sensor, us)), dropFromDMZ, nil},
		{"IPv4 to the inside", udp(packet.IPv4(sensor, packet.Server)), dropFromDMZ, nil},
		{"IPv6 to us", udp(packet.IPv6(sensor6, us6)), dropFromDMZ, nil},
		{"IPv6 to us, hop limit 255", udp(withHops(packet.IPv6(sensor6, us6), 255)), dropFromDMZ, nil},
		{"tagged IPv4", udp(packet.IPv4(sensor, us), packet.Tag(7)), dropFromDMZ, nil},
		{"tagged ARP answer", packet.Frame(packet.Ether(sensorMAC, gate.usMAC), packet.Tag(7), packet.ARP(2, otherMAC, sensor, gate.usMAC, us)), dropFromDMZ, nil},
		{"priority tagged ARP answer", packet.Frame(packet.Ether(sensorMAC, gate.usMAC), packet.Tag(0), packet.ARP(2, otherMAC, sensor, gate.usMAC, us)), dropFromDMZ, nil},
		{"QinQ ND", packet.Frame(append([]packet.Layer{packet.Ether(otherMAC, gate.usMAC), packet.ServiceTag(7), packet.Tag(8)}, packet.Advert(us6, packet.Solicited, sensor6, otherMAC)...)...), dropFromDMZ, nil},
		{"LLDP", packet.Frame(packet.EtherOf(sensorMAC, net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, 0x88cc), packet.Payload(30)), dropFromDMZ, nil},
		{"spanning tree", packet.Frame(packet.EtherOf(sensorMAC, net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, 38), packet.Payload(38)), dropFromDMZ, nil},
		{"runt", reply[:14], dropFromDMZ, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			gate.setNeighs(t, neigh{Asked: now(t), Unanswered: 3})
			ctx := skb{Ifindex: dmz, Mark: 7, Cb: [5]uint32{1, 2, 3, 4, 5}}
			verdict := shot
			if c.reason == passAnswer || c.reason == passQuestion {
				verdict = next
			}
			change := gate.during(t, func() {
				out := gate.runCut(t, "dmz_in", ctx, c.frame)
				if out.verdict != verdict {
					t.Errorf("verdict %d, want %d", out.verdict, verdict)
				}
				if !bytes.Equal(out.data, c.frame) || out.ctx.Mark != ctx.Mark || out.ctx.Cb != ctx.Cb {
					t.Errorf("the packet was changed:\n%x, was\n%x", out.data, c.frame)
				}
			})
			change.only(t, dmz, "dmz_in", c.reason)
			if got, want := change.seen(dmz, "dmz_in"), count(1, len(c.frame)); got != want {
				t.Errorf("seen %v, want %v", got, want)
			}
			target, state := via, "incomplete"
			if len(c.frame) > 13 && c.frame[12] == 0x86 && c.frame[13] == 0xdd {
				target = via6
			}
			if c.learned != nil {
				state = "reachable"
			}
			if got := gate.neighbour(t, target); got.MAC != c.learned.String() || got.State != state {
				t.Errorf("the next hop is %+v, want %s with MAC %q", got, state, c.learned)
			}
		})
	}
	gate.quiet(t)
}

func withHops(ip *layers.IPv6, hops uint8) *layers.IPv6 {
	ip.HopLimit = hops
	return ip
}

// A tag that the driver took out of the frame is a tag as well.
func TestDMZIngressTagBeside(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	change := gate.during(t, func() {
		out := gate.runPrepared(t, preparation{program: "dmz_in", tag: 7}, skb{Ifindex: dmz}, answer())
		if out.verdict != shot {
			t.Errorf("verdict %d, want %d", out.verdict, shot)
		}
	})
	change.only(t, dmz, "dmz_in", dropFromDMZ)
}

// Outside the dmz role the program has no opinion, whatever comes.
func TestDMZIngressNotMember(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	for _, ifindex := range []int{external, internal} {
		ctx, frame := skb{Ifindex: uint32(ifindex)}, plainPacket()
		gate.run(t, "dmz_in", ctx, frame).unchanged(t, ctx, frame)
	}
}

// The life of a next hop, as status tells it.
func TestDMZLearns(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	gate.setNeighs(t, neigh{Asked: now(t), Unanswered: 4})
	hear := func(mac net.HardwareAddr) {
		gate.run(t, "dmz_in", skb{Ifindex: dmz}, packet.ARPReply(mac, sensor, gate.usMAC, us))
	}
	for i, c := range []struct {
		mac     net.HardwareAddr
		changes uint64
	}{
		{sensorMAC, 0}, {sensorMAC, 0}, {otherMAC, 1}, {otherMAC, 1}, {sensorMAC, 2},
	} {
		hear(c.mac)
		got := gate.neighbour(t, via)
		if got.State != "reachable" || got.MAC != c.mac.String() || got.Changes != c.changes {
			t.Errorf("after answer %d: %+v, want reachable, %s, %d changes", i, got, c.mac, c.changes)
		}
	}
	// What another interface of the dmz hears is not of this network.
	gate.run(t, "dmz_in", skb{Ifindex: dmz2}, packet.ARPRequest(otherMAC, sensor, sensor))
	if got := gate.neighbour(t, via); got.MAC != sensorMAC.String() {
		t.Errorf("learned from another interface: %+v", got)
	}
}
