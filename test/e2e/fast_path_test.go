package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// fastMirrors copies what inside hosts send and get, and what the outside sees.
const fastMirrors = `
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3]}
  dmz:      {interfaces: [eth2]}
mirrors:
  - {name: inside, zones: [internal], targets: [{l2: eth2, mac: "02:00:5e:00:53:01"}]}
  - {name: outside, zones: [external], targets: [{l2: eth2, mac: "02:00:5e:00:53:02"}]}
  - {name: both, zones: [internal, external], targets: [{l2: eth2, mac: "02:00:5e:00:53:03"}]}
`

const fastRules = fastMirrors + `
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true}
  forwards:
    - {name: tcp, in: external, proto: tcp, port: 4000, to: "192.168.3.200:4001"}
    - {name: udp, in: external, proto: udp, port: 4000, to: "192.168.3.200:4001"}
    - {name: tcp6, in: external, proto: tcp, port: 4000, to: "[2001:db8:3::c8]:4001"}
    - {name: udp6, in: external, proto: udp, port: 4000, to: "[2001:db8:3::c8]:4001"}
`

// What the mirrors' copies are sent to.
var fastCopies = [3]net.HardwareAddr{mac("02:00:5e:00:53:01"), mac("02:00:5e:00:53:02"), mac("02:00:5e:00:53:03")}

// Packets of a flow that the stack has let through both ways take the fast path:
// they arrive bit for bit as they do by the stack, one hop shorter, the sensor has
// each of them once as it looks at each side, and every counter is exact. With
// "forwarding: kernel" the same, and none takes it.
func TestFastPath(t *testing.T) {
	t.Parallel()
	awaitUptime(t)
	for _, forwarding := range []string{"", forwardKernel} {
		t.Run("forwarding "+forwarding, func(t *testing.T) {
			eachKind(t, func(t *testing.T, kind loader.AttachKind) {
				g := newGateLab(t)
				g.kind, g.forwarding = kind, forwarding
				g.apply(fastRules)
				capture, err := g.Sensor.Capture("eth0", lab.Incoming)
				if err != nil {
					t.Fatal(err)
				}
				g.families(func(g *gate, v6 bool) {
					for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
						g.t.Run(fmt.Sprintf("proto %d masquerade", proto), func(t *testing.T) {
							g := g.with(t)
							in, out := g.pair()
							g.newDialogue(proto, in, 5000, out, 9000, v6).takesMirrored(capture)
						})
						g.t.Run(fmt.Sprintf("proto %d forward", proto), func(t *testing.T) {
							g := g.with(t)
							server, out := g.stationAt(g.in[0], 200), g.station(atOutside, 0)
							d := g.newDialogue(proto, server, 4001, out, 9001, v6)
							d.front = netip.AddrPortFrom(g.outside(v6), 4000)
							d.takesMirrored(capture)
						})
					}
				})
				g.checkLedgers()
			})
		})
	}
}

// takesMirrored opens a conversation and has it go by the fast path, seen by all
// mirrors.
func (d *dialogue) takesMirrored(capture *lab.Capture) {
	d.g.t.Helper()
	d.open()
	d.takesFast()
	d.accounts(true)
	d.mirrored(capture, fastCopies[0], atInternal)
	d.mirrored(capture, fastCopies[1], atExternal)
	if d.front == d.a { // one header, and so one copy
		d.mirrored(capture, fastCopies[2], whereFrom)
	} else {
		d.mirrored(capture, fastCopies[2], atInternal)
		d.mirrored(capture, fastCopies[2], atExternal)
	}
	d.saysFast()
	d.asksStack()
}

// asksStack requires that what conntrack and neighbours of the host live by takes the
// stack: a packet of each direction every ten seconds, and what begins or ends TCP.
func (d *dialogue) asksStack() {
	d.g.t.Helper()
	if !d.g.fastly() {
		return
	}
	most := func(n, fast int, f func(int)) {
		d.g.t.Helper()
		before := d.g.counts()
		f(n)
		after := d.g.counts()
		for _, place := range []string{d.eth[0] + " in", d.eth[1] + " out", d.eth[1] + " in", d.eth[0] + " out"} {
			if is := int(after[place].fast - before[place].fast); is > fast {
				d.g.t.Errorf("%s > %s: of %d packets, %d took the fast path at %s, want at most %d", d.a, d.b, n, is, place, fast)
			}
		}
	}
	d.g.pass(stackEvery+time.Second, d.a.Addr())
	most(10, 9, d.exchange)
	if d.proto != pkt.ProtoTCP {
		return
	}
	d.takesFast()
	for _, flags := range []uint8{pkt.SYN | pkt.ACK, pkt.FIN | pkt.ACK, pkt.RST | pkt.ACK} {
		most(1, 0, func(int) {
			d.say(wayOut, flags, nil)
			d.say(wayIn, flags, nil)
		})
	}
}

// On every kernel: packets of a flow take the fast path, and arrive as they have to be.
func TestShortFastPath(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateLab(t, lab.NoSensor())
		g.kind = kind
		g.apply(fastHosts)
		g.families(func(g *gate, v6 bool) {
			in, out := g.pair()
			for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
				d := g.newDialogue(proto, in, 5000, out, 9000, v6)
				d.open()
				d.takesFast()
				d.accounts(false)
			}
		})
	})
}

// Without translation, begun inside and outside: the same, and a mirror of both
// interfaces has one copy.
func TestFastPathUntranslated(t *testing.T) {
	t.Parallel()
	awaitUptime(t)
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateLab(t, lab.RoutedOutside())
		g.kind = kind
		g.apply(fastMirrors + "policies:\n  - {name: in, from: external, to: internal, action: accept}\n")
		capture, err := g.Sensor.Capture("eth0", lab.Incoming)
		if err != nil {
			t.Fatal(err)
		}
		g.families(func(g *gate, v6 bool) {
			for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
				for _, name := range []string{"from inside", "from outside"} {
					g.t.Run(fmt.Sprintf("proto %d %s", proto, name), func(t *testing.T) {
						g := g.with(t)
						in, out := g.pair()
						d := g.newDialogue(proto, in, 4000, out, 9000, v6)
						if name == "from outside" {
							d.front = d.a
						}
						d.takesMirrored(capture)
					})
				}
			}
		})
		g.checkLedgers()
	})
}

// Frames of real links are padded to 60 bytes, and the stack takes that off: a flow
// that has but small packets is as fast as others.
func TestFastPadded(t *testing.T) {
	t.Parallel()
	g := newGate(t, fastHosts, lab.NoSensor())
	g.families(func(g *gate, v6 bool) {
		for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
			in, out := g.pair()
			d := g.newDialogue(proto, in, 5000, out, 9000, v6)
			d.padded = true
			d.open()
			small := func(n int) {
				for range n {
					for _, way := range []int{wayOut, wayIn} {
						if proto == pkt.ProtoTCP {
							d.say(way, pkt.ACK, nil)
						} else {
							d.say(way, 0, d.payload(12))
						}
					}
				}
			}
			small(1)
			d.fastDuring(20, small)
		}
	})
}
