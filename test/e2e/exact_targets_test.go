package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
)

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// Every target gets every copy, each finished in its way: by a next hop in
// IPv4 or IPv6, as it is, or as it is with another destination (T4: production
// keeps its own MACs, or nothing would be answered).
func TestT04Targets(t *testing.T) {
	t.Parallel()
	const other = "02:00:00:00:be:ef"
	for name, tc := range map[string]struct {
		first, second string
		one, two      sensorSide
	}{
		"via IPv4, l2":         {"via: 192.168.4.2", "l2: eth4", sensorSide{from: fromEtherType}, sensorSide{from: wholeFrame}},
		"via IPv6, l2 and MAC": {"via: '2001:db8:4::2'", "l2: eth4, mac: '" + other + "'", sensorSide{from: fromEtherType}, sensorSide{from: fromSourceMAC, dst: mac(other)}},
		"l2, via IPv4":         {"l2: eth2", "via: 192.168.5.2", sensorSide{from: wholeFrame}, sensorSide{from: fromEtherType}},
	} {
		t.Run(name, func(t *testing.T) {
			eachKind(t, func(t *testing.T, kind loader.AttachKind) {
				onOneCPU(t)
				g := newGateway(t, lab.RoutedOutside())
				g.kind = kind
				wholeChecksums(g)
				one, two := tc.one, tc.two
				one.host, two.host = g.Sensor, g.Mgmt
				for _, v := range []*sensorSide{&one, &two} {
					if v.from == fromEtherType {
						v.dst = v.host.MAC
					}
				}
				w := watchCable(g, "eth3", g.Servers[0], &one, &two)
				g.apply(exactConfig(tc.first, tc.second))
				odd := oddFrames(t, outward(g))
				w.same(func() {
					mixed(t, g.Servers[0], g.Outside[0])
					sendRaw(t, g.Servers[0], "eth0", odd...)
				})
				one.account(g, "ids", 0)
				two.account(g, "ids", 1)
			})
		})
	}
}

// T2: a packet that was cloned as often as one can be is still itself, and
// each clone is, whatever the program before it did.
func TestT02ManyCopiesOfOnePacket(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		wholeChecksums(g)
		targets := []string{"l2: eth2", "via: 192.168.4.2", "via: '2001:db8:5::2'"}
		ours := [][]byte{g.Sensor.MAC}
		views := []*sensorSide{nil, sensorView(g), {host: g.Mgmt, from: fromEtherType, dst: g.Mgmt.MAC}}
		views[1].pick = func(f []byte) bool { return bytes.Equal(f[:6], g.Sensor.MAC) }
		for i := len(targets); i < 16; i++ {
			m := mac(fmt.Sprintf("02:00:00:00:00:%02x", i))
			ours = append(ours, m)
			targets = append(targets, fmt.Sprintf("l2: eth2, mac: '%s'", m))
			views = append(views, &sensorSide{host: g.Sensor, from: fromSourceMAC, dst: m,
				pick: func(f []byte) bool { return bytes.Equal(f[:6], m) }})
		}
		views[0] = &sensorSide{host: g.Sensor, from: wholeFrame, pick: func(f []byte) bool {
			for _, m := range ours {
				if bytes.Equal(f[:6], m) {
					return false
				}
			}
			return true
		}}
		w := watchCable(g, "eth3", g.Servers[0], views...)
		g.apply(exactConfig(targets...))
		w.same(func() {
			for _, a := range []netip.Addr{g.Outside[0].Addr, g.Outside[0].Addr6} {
				echoAll(t, g.Servers[0], a, 3, 1400)
				talkTCP(t, g.Servers[0], echoTCP(t, g.Outside[0], netip.AddrPortFrom(a, 0).String()), 30_000)
				talkUDP(t, g.Servers[0], echoUDP(t, g.Outside[0], netip.AddrPortFrom(a, 0).String()), 0, 1, 1400, 5000)
			}
			sendRaw(t, g.Servers[0], "eth0", oddFrames(t, outward(g))...)
		})
		for i, v := range views {
			v.account(g, "ids", i)
		}
	})
}

// Frames of 9000 bytes, where every network has them.
func TestExactJumbo(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newGateway(t, lab.MTU(9000), lab.RoutedOutside())
		g.kind = kind
		wholeChecksums(g)
		v := sensorView(g)
		w := watchLarge(g, "eth3", g.Servers[0], jumbo, v)
		g.apply(example)
		out, in := w.same(func() {
			for _, a := range []netip.Addr{g.Outside[0].Addr, g.Outside[0].Addr6} {
				echoAll(t, g.Servers[0], a, 5, 8952)
				echoAll(t, g.Servers[0], a, 5, 20000)
				talkUDP(t, g.Servers[0], echoUDP(t, g.Outside[0], netip.AddrPortFrom(a, 0).String()), 0, 1400, 8000, 8952, 8972, 30000)
				// Less than the window, which holds few frames of this size: a window
				// that is full has timers send, on any CPU and in any order.
				talkTCP(t, g.Servers[0], echoTCP(t, g.Outside[0], netip.AddrPortFrom(a, 0).String()), 40_000)
			}
		})
		if largest(out) != 9014 || largest(in) != 9014 {
			t.Errorf("largest frame %d out and %d in, want 9014", largest(out), largest(in))
		}
		v.account(g, "ids", 0)
	})
}

// Groups by sockets of the hosts themselves.
func TestExactMulticastAndBroadcast(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newGateway(t)
		g.kind = kind
		wholeChecksums(g)
		v := sensorView(g)
		w := watchCable(g, "eth3", g.Servers[0], v)
		w.finish = segmenter(t, 1500, 1) // the gateway leaves its own checksums to the link
		g.apply(example)
		groups := []string{"239.1.2.3:5000", "224.0.0.251:5353", "192.168.3.255:5000", "255.255.255.255:67", "[ff02::fb]:5353", "[ff05::1:3]:547"}
		inner := []string{"239.1.2.3:5000", "192.168.3.255:5000", "[ff02::fb]:5353"}
		out, in := w.same(func() {
			for range 10 {
				shout(t, g.Servers[0], g.Servers[0].Interfaces[0], groups...)
				shout(t, g.Gateway, g.Gateway.Interface("eth3"), inner...)
			}
		})
		isGroup := func(f lab.Frame) bool { return f.Data[0]&1 == 1 && len(f.Data) > 300 }
		if n, m := len(lab.Select(out, isGroup)), len(lab.Select(in, isGroup)); n != 10*len(groups) || m != 10*len(inner) {
			t.Errorf("%d group frames out and %d in, want %d and %d", n, m, 10*len(groups), 10*len(inner))
		}
		v.account(g, "ids", 0)
	})
}
