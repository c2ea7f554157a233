package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// ownConfig leaves few ports for translation, so that they meet the gateway's own.
func ownConfig(filtering string) string {
	return gateZones + fmt.Sprintf(`
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true, ports: "20000-20007", filtering: %s}
`, filtering)
}

// Ports that the gateway itself uses in the middle of those for translation: claims
// leave out listeners and sockets, and none of its connections is harmed, whether
// it was there first or came later, while all other ports are in use.
func TestStressOwnPorts(t *testing.T) {
	for _, filtering := range []string{"address-dependent", "endpoint-independent"} {
		t.Run(filtering, func(t *testing.T) {
			g := newGate(t, ownConfig(filtering))
			g.families(func(g *gate, v6 bool) { g.ownPorts(v6) })
		})
	}
}

func (g *gate) ownPorts(v6 bool) {
	ours := g.outside(v6)
	far, accepted := g.listen(g.out[0], netip.AddrPortFrom(addrOf(g.out[0], v6), 0))
	ownTCP := func(port uint16) (net.Conn, net.Conn) {
		g.t.Helper()
		c, err := g.dial(g.Gateway, netip.AddrPortFrom(ours, port), far)
		if err != nil {
			g.t.Fatalf("the gateway's own connection from port %d: %v", port, err)
		}
		return c, g.take(accepted)
	}
	farUDP := g.udpSocket(g.out[0], netip.AddrPortFrom(addrOf(g.out[0], v6), 0))
	farAt := farUDP.LocalAddr().(*net.UDPAddr).AddrPort()
	ownUDP := func(port uint16) func() {
		g.t.Helper()
		c := g.udpSocket(g.Gateway, netip.AddrPortFrom(ours, port))
		return func() {
			g.t.Helper()
			text := g.text()
			g.sendTo(c, farAt, text)
			from := g.receive(farUDP, text)
			g.sendTo(farUDP, from, text)
			g.receive(c, text)
		}
	}

	// First the gateway: 20000 listens, 20001 is connected, 20002 has a UDP socket,
	// 20003 one that is connected.
	listener, calls := g.listen(g.Gateway, netip.AddrPortFrom(ours, 20_000))
	early, earlyFar := ownTCP(20_001)
	open := ownUDP(20_002)
	connected := g.connectedUDP(g.Gateway, netip.AddrPortFrom(ours, 20_003), farAt)
	all := func(why string) {
		g.t.Helper()
		c, err := g.dial(g.out[1], netip.AddrPortFrom(addrOf(g.out[1], v6), 0), listener)
		if err != nil {
			g.t.Errorf("%s: the listener is not reached: %v", why, err)
		} else {
			g.converse(c, g.take(calls))
		}
		g.converse(early, earlyFar)
		open()
		text := g.text()
		if _, err := connected.Write([]byte(text)); err != nil {
			g.t.Fatal(err)
		}
		from := g.receive(farUDP, text)
		g.sendTo(farUDP, from, text)
		g.receive(connected, text)
	}
	all("alone")

	// Then a host that takes every port that it can get, first for another remote.
	in, other := g.station(atInside, 0), g.station(atOutside, 1)
	taken := map[uint8]map[uint16]uint16{pkt.ProtoUDP: {}, pkt.ProtoTCP: {}}
	for proto, ports := range taken {
		sent := map[string]uint16{}
		for port := range uint16(12) {
			text := g.text()
			sent[text] = 5000 + port
			in.raw(in.opener(proto, 5000+port, other.at(v6, 9000), text))
			g.fenceBoth(in)
		}
		// The first ones may wait for a neighbour, behind the fence's back.
		waitFor(g.t, "six ports are taken", func() bool {
			for _, f := range other.Frames() {
				if got, err := pkt.Parse(f.Data); err == nil {
					if from, is := sent[string(got.Payload)]; is {
						ports[got.Src.Port()] = from
					}
				}
			}
			return len(ports) >= 6
		})
	}
	if _, is := taken[pkt.ProtoTCP][20_000]; is {
		g.t.Errorf("ports of TCP flows, with a listener at 20000: %v", taken[pkt.ProtoTCP])
	}
	if _, is := taken[pkt.ProtoUDP][20_002]; is {
		g.t.Errorf("ports of UDP flows, with a socket at 20002: %v", taken[pkt.ProtoUDP])
	}
	all("with flows beside")

	// And to the very remote that the gateway itself talks to, at another port.
	for proto, ports := range taken {
		for _, from := range ports {
			in.raw(in.opener(proto, from, netip.AddrPortFrom(farAt.Addr(), 1), "beside"))
		}
	}
	g.fenceBoth(in)
	all("with flows to the same remote")

	// What the gateway opens later, at ports that are mapped.
	for port := range taken[pkt.ProtoTCP] {
		if port == 20_001 {
			continue // has a connection already
		}
		c, c2 := ownTCP(port)
		g.converse(c, c2)
		delete(taken[pkt.ProtoTCP], port) // for the listener below
		break
	}
	for port := range taken[pkt.ProtoUDP] {
		if port == 20_003 {
			continue // has a socket already
		}
		ownUDP(port)()
		break
	}
	for port := range taken[pkt.ProtoTCP] {
		if port == 20_001 {
			continue
		}
		at, calls := g.listen(g.Gateway, netip.AddrPortFrom(ours, port))
		c, err := g.dial(g.out[1], netip.AddrPortFrom(addrOf(g.out[1], v6), 0), at)
		if err != nil {
			g.t.Errorf("a listener on mapped port %d is not reached: %v", port, err)
			break
		}
		g.converse(c, g.take(calls))
		break
	}
	// While the mappings go on.
	for proto, ports := range taken {
		for ext, from := range ports {
			if proto == pkt.ProtoUDP {
				g.answerUDP(other, 9000, netip.AddrPortFrom(ours, ext), in, from)
			}
		}
	}
	g.consistent()
}

// connectedUDP is a UDP socket that takes packets of one remote only.
func (g *gate) connectedUDP(h *lab.Host, from, to netip.AddrPort) *net.UDPConn {
	g.t.Helper()
	var c *net.UDPConn
	err := h.Do(func() (err error) {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}
