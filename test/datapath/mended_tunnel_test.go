package datapath

import (
	"testing"

	"github.com/gopacket/gopacket/layers"

	"tapgate/loader"
	"tapgate/test/packet"
)

// A GSO packet of a tunnel: what its segments repeat is not known, but that
// there are segments, each below the MTU, is. It was skipped as too_big.
func TestWireCountTunnel(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	outer := func() *layers.IPv4 {
		ip := outward()
		ip.Protocol = layers.IPProtocolGRE
		return ip
	}
	outer6 := func() *layers.IPv6 {
		ip := outward6()
		ip.NextHeader = layers.IPProtocolGRE
		return ip
	}
	gre := func(kind layers.EthernetType) packet.Layer { return &layers.GRE{Protocol: kind} }
	inIP := func() *layers.IPv4 {
		ip := outward()
		ip.Protocol = layers.IPProtocolIPv4
		return ip
	}
	tcp := func() packet.Layer { return packet.TCP(5000, 443, true) }
	for _, c := range []struct {
		name       string
		frame      []byte
		size, segs int
	}{
		{"GRE", packet.Frame(fromServer(), outer(), gre(layers.EthernetTypeIPv4), outward(), tcp(), packet.Payload(2900)), 700, 0},
		{"GRE, no remainder", packet.Frame(fromServer(), outer(), gre(layers.EthernetTypeIPv4), outward(), tcp(), packet.Payload(3500-90)), 700, 0},
		{"GRE, segments known", packet.Frame(fromServer(), outer(), gre(layers.EthernetTypeIPv4), outward(), tcp(), packet.Payload(2800)), 700, 4},
		{"GRE over IPv6", packet.Frame(fromServer(), outer6(), gre(layers.EthernetTypeIPv6), outward6(), tcp(), packet.Payload(2900)), 650, 0},
		{"IP in IP", packet.Frame(fromServer(), inIP(), outward(), tcp(), packet.Payload(2900)), 700, 0},
		{"with a VLAN tag", packet.Frame(fromServer(), packet.Tag(7), outer(), gre(layers.EthernetTypeIPv4), outward(), tcp(), packet.Payload(2900)), 700, 0},
		{"segments of the MTU", packet.Frame(fromServer(), outer(), gre(layers.EthernetTypeIPv4), outward(), tcp(), packet.Payload(2900)), 1500, 0},
	} {
		for _, program := range []string{"tap_in", "tap_out"} {
			t.Run(c.name+"/"+program, func(t *testing.T) {
				gate.setNeighs(t, fresh(t))
				ctx := skb{Ifindex: internal, GsoSize: uint32(c.size), GsoSegs: uint32(c.segs)}
				got := gate.during(t, func() { gate.run(t, program, ctx, c.frame).unchanged(t, ctx, c.frame) })
				segs := c.segs
				if segs == 0 {
					segs = (len(c.frame) + c.size - 1) / c.size
				}
				want := count(segs, len(c.frame))
				if n := got.seen(internal, program); n != want {
					t.Errorf("seen %v, want %v", n, want)
				}
				a := difference(findMirror(got.before, "ids").Ledger, findMirror(got.after, "ids").Ledger)
				// BPF_PROG_RUN gives no gso_type, which kernels refuse to clone.
				if a.skipped["too_big"] != (loader.Count{}) || a.matched != want {
					t.Errorf("account %+v, want %v and none too big", a, want)
				}
			})
		}
	}
	// A single one above the MTU is too big all the same.
	frame := packet.Frame(fromServer(), outer(), gre(layers.EthernetTypeIPv4), outward(), tcp(), packet.Payload(1600))
	got := gate.during(t, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, frame) })
	got.mirror(t, "ids", "tap_in", skipped("too_big", count(1, len(frame))))
	gate.viaEth2.take(t, 0, isCopy) // kernels that cloned them
}
