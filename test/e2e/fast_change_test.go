package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

const fastChange = `
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3, eth5]}
  dmz:      {interfaces: [eth2]}
nat:
  masquerade:
    - {name: all, from: internal, to: external, ipv6: true}
  forwards:
    - {name: one, in: external, proto: tcp, port: 4000, to: "192.168.3.200:4001"}
    - {name: two, in: external, proto: udp, port: 4000, to: "192.168.3.200:4001"}
    - {name: three, in: external, proto: tcp, port: 4000, to: "[2001:db8:3::c8]:4001"}
    - {name: four, in: external, proto: udp, port: 4000, to: "[2001:db8:3::c8]:4001"}
`

// fastFlows are flows on the fast path, of both protocols, begun inside and outside.
func (g *gate) fastFlows(v6 bool) (all []*dialogue) {
	g.t.Helper()
	in, out := g.pair()
	server := g.stationAt(g.in[0], 200)
	for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
		d := g.newDialogue(proto, in, 5000, out, 9000, v6)
		f := g.newDialogue(proto, server, 4001, out, 9001, v6)
		f.front = netip.AddrPortFrom(g.outside(v6), 4000)
		all = append(all, d.open(), f.open())
	}
	for _, d := range all {
		d.takesFast()
	}
	return all
}

// Rules, mirrors and the whole configuration change while flows are on the fast path:
// each change counts from the next packet on, and what a rule has admitted stays, as
// fast as before.
func TestFastChanges(t *testing.T) {
	t.Parallel()
	g := newGate(t, fastChange, lab.SecondInternal())
	capture, err := g.Sensor.Capture("eth0", lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	g.families(func(g *gate, v6 bool) {
		flows := g.fastFlows(v6)
		goOn := func(what string) {
			g.t.Helper()
			for _, d := range flows {
				d.fastDuring(10, d.exchange)
			}
			if g.t.Failed() {
				g.t.Fatalf("so it is %s", what)
			}
		}

		// A mirror, of each side: from the next packet on, to the last one before.
		mirrors := []string{"", "internal", "", "external", ""}
		for i, zone := range mirrors {
			config := fastChange
			if zone != "" {
				config += fmt.Sprintf("mirrors:\n  - {name: ids, zones: [%s], targets: [{l2: eth2, mac: \"%s\"}]}\n", zone, fastCopies[i%3])
			}
			g.apply(config)
			copied := make([]uint64, len(flows))
			for i, d := range flows {
				d.sent, d.got = [2][]*pkt.Parsed{}, [2][]*pkt.Parsed{}
				copied[i] = d.flow().Copied
			}
			before := len(capture.Frames())
			goOn("with a mirror of " + zone)
			for j, d := range flows {
				n := uint64(0)
				switch zone {
				case "internal":
					n = uint64(len(d.sent[wayOut]) + len(d.sent[wayIn]))
					d.mirrored(capture, fastCopies[i%3], atInternal)
				case "external":
					d.mirrored(capture, fastCopies[i%3], atExternal)
				}
				if now := d.flow().Copied; now != copied[j]+n {
					g.t.Errorf("mirror of %q: of %s %d packets were copied, want %d", zone, d.a, now-copied[j], n)
				}
			}
			if n := len(lab.Select(capture.Frames()[before:], isIP)); zone == "" && n > 0 {
				g.t.Errorf("without a mirror the sensor gets %d packets", n)
			}
		}

		// Policies that forbid what is there, and rules that are gone.
		in, out := g.pair()
		g.apply(fastChange + "policies:\n  - {name: no-udp, from: internal, to: external, proto: udp, action: drop}\n" +
			"  - {name: no-tcp, from: internal, to: external, proto: tcp, action: drop}\n")
		goOn("with policies that forbid new ones")
		text := g.text()
		in.udp(5000, out.at(v6, 9000), text)
		in.tcp(5000, out.at(v6, 9000), pkt.SYN, 1, 0, text)
		g.unseen(text, out, in)
		g.apply(fastChange)
		goOn("without policies again")
		g.apply(strings.NewReplacer("{name: one", "{name: five", "4000, to", "4009, to", "{name: all,", "{name: other, sources: [192.168.3.0/28], ").Replace(fastChange))
		goOn("without the rules that admitted them")
		g.apply(fastChange)
		goOn("with the rules again")

		// By commands, one by one.
		g.must(words("forward del one")...)
		g.must(words("masquerade add more --from internal --to external --source 192.168.3.128/25")...)
		goOn("after commands")
		g.must(words("masquerade del more")...)
		g.apply(fastChange)

		g.flushed(flows)
	})
	g.consistent()
}

func isIP(f lab.Frame) bool {
	p, err := pkt.Parse(f.Data)
	return err == nil && (p.Proto == pkt.ProtoUDP || p.Proto == pkt.ProtoTCP)
}

// flushed ends flows by order: at once, in both directions.
func (g *gate) flushed(flows []*dialogue) {
	g.t.Helper()
	for _, d := range flows {
		g.must("flows", "flush", "--addr", d.a.Addr().String(), "--port", fmt.Sprint(d.a.Port()), "--proto", map[uint8]string{pkt.ProtoTCP: "tcp", pkt.ProtoUDP: "udp"}[d.proto])
		for range 3 {
			text := g.text()
			if err := d.out.Send(d.by(d.out, wayIn, text)); err != nil {
				g.t.Fatal(err)
			}
			if d.proto == pkt.ProtoUDP && d.front.Port() == 4000 {
				break // the forward makes another one
			}
			g.unseen(text, d.in, d.out)
		}
		if d.proto == pkt.ProtoTCP && d.front.Port() == 4000 {
			continue
		}
		// A new one afterwards, and it becomes as fast. TCP needs a new beginning.
		n := g.newDialogue(d.proto, d.in, d.a.Port()+1, d.out, d.b.Port(), d.a.Addr().Is6())
		if d.front.Port() != 4000 {
			n.open()
			n.takesFast()
		}
	}
}

// The host of a flow moves to another interface of its zone, and back: packets both
// ways follow it, by the fast path as well.
func TestFastHostMoves(t *testing.T) {
	t.Parallel()
	for _, forwarding := range []string{"", forwardKernel} {
		t.Run("forwarding "+forwarding, func(t *testing.T) {
			g := newGateLab(t, lab.SecondInternal())
			g.forwarding = forwarding
			g.withoutFilter()
			g.apply(fastChange)
			g.families(func(g *gate, v6 bool) {
				elsewhere := g.stationAt(g.Second, 40+map[bool]int{true: 1}[v6])
				in, out := g.pair()
				for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
					d := g.newDialogue(proto, in, 5000, out, 9000, v6)
					d.open()
					d.takesFast()
					addr := netip.PrefixFrom(d.a.Addr(), d.a.Addr().BitLen())
					for range 2 {
						moved := *elsewhere
						moved.Addr, moved.Addr6 = in.Addr, in.Addr6
						g.ip(g.Gateway, fmt.Sprintf("neigh replace %s lladdr %s nud permanent dev eth5", d.a.Addr(), moved.MAC))
						g.ip(g.Gateway, fmt.Sprintf("route replace %s dev eth5", addr))
						d.in, d.eth[0] = &moved, "eth5"
						d.settles()
						d.takesFast()
						g.ip(g.Gateway, fmt.Sprintf("route del %s dev eth5", addr))
						elsewhere.next = moved.next
						d.in, d.eth[0] = in, "eth3"
						d.settles()
						d.takesFast()
					}
				}
			})
		})
	}
}

// settles has the host itself speak first, where it is now, until packets go both
// ways: routes are looked at again within a tenth of a second, and what comes in the
// meantime for the host goes where it was.
func (d *dialogue) settles() {
	d.g.t.Helper()
	flags := uint8(0)
	if d.proto == pkt.ProtoTCP {
		flags = pkt.ACK | pkt.PSH
	}
	d.say(wayOut, flags, d.payload(1400))
	eventually(d.g.t, func() string {
		text := d.g.text()
		if err := d.out.Send(d.by(d.out, wayIn, text)); err != nil {
			d.g.t.Fatal(err)
		}
		d.g.fence(d.out, d.in)
		if !d.in.got(func(p *pkt.Parsed) bool { return string(p.Payload) == text }) {
			return "the host gets nothing where it is now"
		}
		return ""
	})
	d.say(wayIn, flags, d.payload(1400))
}

// An interface leaves the configuration while flows of its hosts are on the fast path:
// they go on by the stack, which knows them, and are fast again when it is back.
// Flows of others stay as fast as they were.
func TestFastMemberLeaves(t *testing.T) {
	t.Parallel()
	for _, forwarding := range []string{"", forwardKernel} {
		t.Run("forwarding "+forwarding, func(t *testing.T) {
			g := newGateLab(t, lab.SecondInternal())
			g.forwarding = forwarding
			g.apply(fastChange)
			g.families(func(g *gate, v6 bool) {
				in, out := g.pair()
				second := g.stationAt(g.Second, 40+map[bool]int{true: 1}[v6])
				for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
					stays, leaves := g.newDialogue(proto, in, 5000, out, 9000, v6), g.newDialogue(proto, second, 5000, out, 9001, v6)
					leaves.eth[0] = "eth5"
					for _, d := range []*dialogue{stays, leaves} {
						d.open()
						d.takesFast()
					}
					g.apply(strings.ReplaceAll(fastChange, ", eth5", ""))
					before := g.counts()
					leaves.exchange(5)
					for _, place := range []string{"eth0 in", "eth0 out"} {
						if n := g.fastSince(before, place); n != 0 {
							g.t.Errorf("%d packets of an interface of no zone take the fast path at %s", n, place)
						}
					}
					stays.takesFast()
					g.apply(fastChange)
					stays.takesFast()
					leaves.exchange(1)
					leaves.takesFast()
				}
			})
		})
	}
}

// The outside address becomes another one while flows are on the fast path: the agent
// ends them, and from then on nothing leaves with the old one.
func TestFastAddressChanges(t *testing.T) {
	t.Parallel()
	g := newGate(t, strings.ReplaceAll(fastChange, ", eth5", ""))
	g.follow()
	was, now := g.outside(false), netip.MustParseAddr("203.0.113.51")
	flows := g.fastFlows(false)
	if err := g.Gateway.Sysctl("net/ipv4/conf/eth0/promote_secondaries", "1"); err != nil {
		t.Fatal(err)
	}
	g.ip(g.Gateway, fmt.Sprintf("addr add %s/24 dev eth0", now))
	g.ip(g.Gateway, fmt.Sprintf("addr del %s/24 dev eth0", was))
	eventually(t, func() string {
		var left []loader.Flow
		g.opened(func(gw *loader.Gateway) (err error) {
			left, err = gw.Flows(loader.FlowFilter{Addr: netip.PrefixFrom(was, 32)})
			return err
		})
		if len(left) > 0 {
			return fmt.Sprintf("%d flows have the old address", len(left))
		}
		return ""
	})
	d := flows[0] // UDP from inside
	for range 3 {
		text := g.text()
		if err := d.in.Send(d.by(d.in, wayOut, text)); err != nil {
			t.Fatal(err)
		}
		if got := d.out.wantText(text); got.Src.Addr() != now {
			t.Errorf("%s, want it from %s", got, now)
		}
	}
	d = g.newDialogue(pkt.ProtoUDP, d.in, 5001, d.out, 9000, false)
	d.open()
	if d.front.Addr() != now {
		t.Errorf("a new flow comes from %s, want %s", d.front, now)
	}
	d.takesFast()
}
