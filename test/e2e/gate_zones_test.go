package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"

	"tapgate/loader"
	"tapgate/test/gateclock"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// gateIsolated has a second internal zone and a policy for mgmt.
const gateIsolated = `
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3], prefixes: [10.3.0.0/16]}
  lab:      {role: internal, interfaces: [eth5]}
  dmz:      {interfaces: [eth2]}
  mgmt:     {interfaces: [eth4]}
nat:
  masquerade:
    - {from: internal, to: external}
    - {from: mgmt, to: external}
policies:
  - {name: updates, from: mgmt, to: external, proto: tcp, ports: [80], action: accept}
  - {name: no-telnet, from: internal, to: external, proto: tcp, ports: [23], action: drop, log: true}
  - {name: no-net, from: internal, to: external, destinations: [198.51.100.0/24], action: drop}
mirrors:
  - name: ids
    zones: [internal]
    targets:
      - {via: 192.168.4.2}
`

// hosts of each network that speak by hand.
type zones struct {
	*gate
	internal, second, external, dmz, mgmt *peer
}

func newZones(t *testing.T) *zones {
	g := newGate(t, gateIsolated, lab.SecondInternal())
	return &zones{
		gate: g, internal: g.station(atInside, 0), second: g.stationAt(g.Second, 40), external: g.station(atOutside, 0),
		dmz: g.stationAt(g.Sensor, 40), mgmt: g.stationAt(g.Mgmt, 40),
	}
}

// Who may begin to speak to whom, IPv4 and IPv6, each protocol; what may not pass
// arrives nowhere, and is counted.
func TestGateZones(t *testing.T) {
	t.Parallel()
	z := newZones(t)
	named := map[string]*peer{"internal": z.internal, "second": z.second, "external": z.external, "dmz": z.dmz, "mgmt": z.mgmt}
	may := map[[2]string]bool{
		{"internal", "external"}: true, {"second", "external"}: true,
		{"internal", "second"}: true, {"second", "internal"}: true,
	}
	z.families(func(g *gate, v6 bool) {
		for from, a := range named {
			for to, b := range named {
				if from == to {
					continue
				}
				text := g.text()
				a.udp(5000, b.at(v6, 9000), text)
				a.tcp(5000, b.at(v6, 9000), pkt.SYN, 1, 0, text)
				a.query(false, 77, b.ip(v6), text)
				a.send(b.ip(v6), pkt.SCTP(5000, 9000), gopacket.Payload(text))
				a.tcp(5001, b.at(v6, 80), pkt.SYN, 1, 0, "web "+text)
				if may[[2]string{from, to}] {
					for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP, 0} {
						b.want(from+" to "+to, func(p *pkt.Parsed) bool {
							return string(p.Payload) == text && (p.Proto == proto || proto == 0 && p.Proto != pkt.ProtoUDP && p.Proto != pkt.ProtoTCP)
						})
					}
					b.wantText("web " + text)
					continue
				}
				if from == "mgmt" && to == "external" {
					b.wantText("web " + text) // by the policy
				}
				g.unseen(text, b, a)
			}
		}
	})
	// Afterwards the same once more, since what was refused must not have left
	// anything behind: the way back of a flow that was not admitted.
	for _, p := range []*peer{z.dmz, z.mgmt} {
		text := z.text()
		z.internal.udp(9000, p.at(false, 5000), text)
		z.unseen(text, p, z.internal)
	}
	z.dropped("eth2", "eth3", "eth4")
}

// unseen fails if a text that others have sent before arrives at a host.
func (g *gate) unseen(text string, at *peer, from ...*peer) {
	g.t.Helper()
	at.never(func(p *pkt.Parsed) bool { return string(p.Payload) == text }, from...)
}

// dropped fails unless each interface has dropped something.
func (g *gate) dropped(ifnames ...string) {
	g.t.Helper()
	s := g.status()
	for _, name := range ifnames {
		n := uint64(0)
		for _, m := range s.Members {
			if m.Interface == name {
				for _, d := range []*loader.DirectionStatus{m.Ingress, m.Egress} {
					for reason, count := range d.Reasons {
						if strings.HasPrefix(reason, "drop_") {
							n += count
						}
					}
				}
			}
		}
		if n == 0 {
			g.t.Errorf("%s has counted no drop", name)
		}
	}
}

// Replies come back from wherever a flow may go to, also without translation, and
// nothing else does.
func TestGateZonesReplies(t *testing.T) {
	t.Parallel()
	z := newZones(t)
	z.families(func(g *gate, v6 bool) {
		ext := g.mapUDP(z.internal, 5000, z.external, 9000, v6)
		g.answerUDP(z.external, 9000, ext, z.internal, 5000)
		if v6 && ext != z.internal.at(v6, 5000) {
			g.t.Errorf("IPv6 came from %s: not asked to be translated", ext)
		}
		s := g.connect(z.internal, 5000, z.external, 9000, v6)
		s.talk()
		// Beside a flow: other ports, other protocols, in the middle of nothing.
		text := g.text()
		inner := z.internal.at(v6, 5000)
		for _, to := range []netip.AddrPort{inner, netip.AddrPortFrom(inner.Addr(), 5001)} {
			z.external.udp(9001, to, text)
			z.external.tcp(9001, to, pkt.SYN, 1, 0, text)
			z.external.tcp(9001, to, pkt.ACK, 1, 1, text)
		}
		g.unseen(text, z.internal, z.external)
		// Between internal networks there is no need of a flow.
		text = g.text()
		z.second.tcp(5000, z.internal.at(v6, 22), pkt.ACK, 1, 1, text)
		z.internal.wantText(text)
		// From mgmt what the policy names, and its replies.
		web := g.connect(z.mgmt, 5000, z.external, 80, v6)
		web.talk()
		web.shut()
	})
}

// Policies: dropped by name and port, in the order of the file; other traffic as before.
func TestGatePolicies(t *testing.T) {
	t.Parallel()
	z := newZones(t)
	out := z.station(atOutside, 0)
	text := z.text()
	z.internal.tcp(5000, out.at(false, 23), pkt.SYN, 1, 0, text)
	z.internal.send(netip.MustParseAddr("198.51.100.7"), pkt.UDP(5000, 53), gopacket.Payload(text))
	z.unseen(text, out, z.internal)
	s := z.connect(z.internal, 5000, out, 24, false)
	s.talk()
	// A flow that was admitted outlives the policy that would refuse it now, and new ones do not begin.
	changed := strings.ReplaceAll(gateIsolated, "ports: [23]", "ports: [23, 24]")
	z.apply(changed)
	s.talk()
	text = z.text()
	z.internal.tcp(5001, out.at(false, 24), pkt.SYN, 1, 0, text)
	z.unseen(text, out, z.internal)
	z.apply(gateIsolated)
	z.connect(z.internal, 5001, out, 24, false).talk()
}

// Anti-spoofing: an internal network has the sources of its own prefixes only.
func TestGateSpoofed(t *testing.T) {
	t.Parallel()
	z := newZones(t)
	spoof := func(src, src6 string) string {
		t.Helper()
		text := z.text()
		for i, a := range []string{src, src6} {
			v6 := i == 1
			z.internal.raw(pkt.Frame(pkt.Ether(z.internal.MAC, z.internal.Gateway), header(netip.MustParseAddr(a), z.external.ip(v6)),
				pkt.UDP(5000, 9000), gopacket.Payload(text)))
		}
		return text
	}
	for _, a := range [][2]string{
		{"192.168.6.2", "2001:db8:6::2"}, {"203.0.113.9", "2001:db8:113::9"}, {"198.51.100.1", "2001:db8:ffff::1"}, {"192.168.5.2", "2001:db8:5::2"},
	} {
		z.unseen(spoof(a[0], a[1]), z.external, z.internal)
	}
	// Behind a router inside, where the configuration says so.
	text := spoof("10.3.7.7", "2001:db8:3::77")
	z.external.wantText(text)
	z.dropped("eth3")
}

// The gateway's own services are the host's business: reached from internal, mgmt
// and external as its firewall says, and never from the dmz.
func TestGateOwnServices(t *testing.T) {
	t.Parallel()
	z := newZones(t)
	for _, side := range []struct {
		h      *lab.Host
		ifname string
	}{{z.in[0], "eth3"}, {z.Mgmt, "eth4"}, {z.out[0], "eth0"}} {
		at, accepted := z.listen(z.Gateway, netip.AddrPortFrom(z.Gateway.Interface(side.ifname).Addr.Addr(), 0))
		c, err := z.dial(side.h, netip.AddrPortFrom(side.h.Addr, 0), at)
		if err != nil {
			t.Fatal(err)
		}
		z.converse(c, z.take(accepted))
	}
	// By hand: no answer to a station of the dmz, of any kind.
	at, _ := z.listen(z.Gateway, netip.AddrPortFrom(z.Gateway.Interface("eth2").Addr.Addr(), 0))
	z.dmz.tcp(5000, at, pkt.SYN, 1, 0, "")
	z.dmz.query(false, 1, at.Addr(), "ping")
	z.dmz.knock()
	if z.dmz.got(func(*pkt.Parsed) bool { return true }) {
		t.Errorf("the dmz got answers: %q", brieflyAll(z.dmz.Frames()))
	}
	// And what the gateway itself opens, to everywhere.
	for _, h := range []*lab.Host{z.in[0], z.Mgmt, z.out[0]} {
		at, accepted := z.listen(h, netip.AddrPortFrom(h.Addr, 0))
		c, err := z.dial(z.Gateway, netip.AddrPort{}, at)
		if err != nil {
			t.Fatal(err)
		}
		z.converse(c, z.take(accepted))
	}
}

// After the time for taking over connections, TCP begins with a SYN.
func TestGateMidStream(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	in, out := g.pair()
	var early []*stream
	for _, v6 := range []bool{false, true} {
		s := g.newStream(in, 5000, out, 9000, v6)
		s.outward(pkt.ACK|pkt.PSH, g.text())
		s.talk()
		early = append(early, s)
	}
	if left := g.status().Gateway.Adopting; left < 500 || left > 600 {
		t.Errorf("taken over for another %v s, want ten minutes", left)
	}
	g.clock((*gateclock.Clock).EndAdoption)
	for _, s := range early {
		late := g.newStream(in, 5001, out, 9000, s.a.Addr().Is6())
		sent := late.sendOut(pkt.ACK|pkt.PSH, g.text())
		out.never(sameSegment(sent), in)
		s.talk()
		g.connect(in, 5001, out, 9001, s.a.Addr().Is6()).talk()
	}
}
