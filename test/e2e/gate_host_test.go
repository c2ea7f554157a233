package e2e

import (
	"net"
	"net/netip"
	"testing"

	pkt "tapgate/test/packet"
)

// The gateway's own listeners and connections have ports in the range of those that
// are translated: none of theirs is given away, and they work on when all others are.
func TestGateOwnPorts(t *testing.T) {
	t.Parallel()
	const ports = 10
	g := (&gate{gateway: &gateway{t: t}}).fewPorts(ports)
	g.families(func(g *gate, v6 bool) {
		own := g.outside(v6)
		tcpAt, accepted := g.listen(g.Gateway, netip.AddrPortFrom(own, 20_003))
		udp := g.udpSocket(g.Gateway, netip.AddrPortFrom(own, 20_003))
		farAt, farAccepted := g.listen(g.out[0], netip.AddrPortFrom(addrOf(g.out[0], v6), 9000))
		conn, err := g.dial(g.Gateway, netip.AddrPortFrom(own, 20_005), farAt)
		if err != nil {
			g.t.Fatal(err)
		}
		far := g.take(farAccepted)
		farUDP := g.udpSocket(g.out[0], farAt)
		var dialed *net.UDPConn
		err = g.Gateway.Do(func() (err error) {
			dialed, err = net.DialUDP("udp", &net.UDPAddr{IP: own.AsSlice(), Port: 20_005}, net.UDPAddrFromAddrPort(farAt))
			return err
		})
		if err != nil {
			g.t.Fatal(err)
		}
		defer dialed.Close()

		works := func() {
			g.t.Helper()
			g.converse(conn, far)
			for _, h := range g.out {
				c, err := g.dial(h, netip.AddrPortFrom(addrOf(h, v6), 0), tcpAt)
				if err != nil {
					g.t.Fatal(err)
				}
				g.converse(c, g.take(accepted))
				s := g.udpSocket(h, netip.AddrPortFrom(addrOf(h, v6), 0))
				text := g.text()
				g.sendTo(s, netip.AddrPortFrom(own, 20_003), text)
				from := g.receive(udp, text)
				g.sendTo(udp, from, text)
				g.receive(s, text)
			}
			text := g.text()
			if _, err := dialed.Write([]byte(text)); err != nil {
				g.t.Fatal(err)
			}
			g.sendTo(farUDP, g.receive(farUDP, text), text)
			g.receive(dialed, text)
		}
		works()

		// All that is left is used up, towards the same remote endpoint.
		remote := g.stationAt(g.out[0], 99)
		in := g.station(atInside, 0)
		for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
			taken := map[uint16]bool{}
			for port := range uint16(3 * ports) {
				if proto == pkt.ProtoUDP {
					in.udp(5000+port, remote.at(v6, 9000), "flow")
				} else {
					in.tcp(5000+port, remote.at(v6, 9000), pkt.SYN, 1, 0, "flow")
				}
			}
			g.fence(in, remote)
			for _, f := range remote.Frames() {
				if got, err := pkt.Parse(f.Data); err == nil && got.Proto == proto && got.Src.Addr() == own {
					taken[got.Src.Port()] = true
				}
			}
			if taken[20_003] || len(taken) < ports-2 || len(taken) > ports-1 {
				g.t.Errorf("protocol %d: flows from inside have the ports %v", proto, taken)
			}
		}
		works()
	})
}

// By default translated ports lie outside of those that the host's own
// connections get.
func TestGateDefaultPorts(t *testing.T) {
	t.Parallel()
	g := newGateLab(t)
	if err := g.Gateway.Sysctl("net/ipv4/ip_local_port_range", "30000 50000"); err != nil {
		t.Fatal(err)
	}
	g.apply(gateBoth)
	in, out := g.pair()
	for port := range uint16(300) {
		if ext := g.mapUDP(in, 5000+port, out, 9000, false); ext.Port() >= 30_000 && ext.Port() <= 50_000 || ext.Port() < 1024 {
			t.Fatalf("port %d was given away", ext.Port())
		}
	}
}
