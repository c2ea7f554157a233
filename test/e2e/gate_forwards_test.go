package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"

	pkt "tapgate/test/packet"
)

// The servers of the forwards are stations .200 and .201.
const gateServers = gateZones + `
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true}
  forwards:
    - {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.200:3389"}
    - {name: dns, in: external, proto: udp, port: 53, to: "192.168.3.200:5353"}
    - {name: range, in: external, proto: tcp, port: "7000-7009", to: "192.168.3.200:8000-8009"}
    - {name: rtp, in: external, proto: udp, port: "7000-7999", to: "192.168.3.201:7000-7999"}
    - {name: friends, in: external, proto: tcp, port: 22, to: "192.168.3.200:22", sources: [203.0.113.21, 198.51.100.0/24]}
    - {name: slow, in: external, proto: udp, port: 4001, to: "192.168.3.200:4001", limit: {rate: 5}}
    - {name: shared, in: external, proto: udp, port: 4002, to: "192.168.3.200:4002", limit: {per_remote: 5}}
    - {name: web, in: external, address: 203.0.113.1, proto: tcp, port: 80, to: "192.168.3.200:80"}
    - {name: web2, in: external, address: 203.0.113.2, proto: tcp, port: 80, to: "192.168.3.201:80"}
    - {name: rdp6, in: external, proto: tcp, port: 3389, to: "[2001:db8:3::c8]:3389"}
    - {name: dns6, in: external, proto: udp, port: 53, to: "[2001:db8:3::c8]:5353"}
`

// servers is a gateway with forwards and what they lead to.
type servers struct {
	*gate
	one, two, out *peer
}

func newServers(t *testing.T) *servers {
	t.Helper()
	g := newGateLab(t)
	g.ip(g.Gateway, "addr add 203.0.113.2/24 dev eth0")
	g.apply(gateServers)
	return &servers{gate: g, one: g.stationAt(g.in[0], 200), two: g.stationAt(g.in[1], 201), out: g.station(atOutside, 0)}
}

// endpoint is a port of the gateway's first outside address.
func (s *servers) endpoint(v6 bool, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(s.outside(v6), port)
}

// datagram sends one to the outside, requires that it arrives where it should, and
// that the answer comes from where it was asked.
func (s *servers) datagram(from *peer, port uint16, front netip.AddrPort, server *peer, inside uint16) {
	s.t.Helper()
	v6 := front.Addr().Is6()
	text := s.text()
	from.udp(port, front, text)
	if got := server.wantText(text); got.Dst != server.at(v6, inside) || got.Src != from.at(v6, port) {
		s.t.Errorf("to %s: arrived as %s, want it at %d", front, got, inside)
	}
	text = s.text()
	server.udp(inside, from.at(v6, port), text)
	if got := from.wantText(text); got.Src != front {
		s.t.Errorf("the answer came from %s, not from %s", got.Src, front)
	}
}

func TestGateForwards(t *testing.T) {
	t.Parallel()
	s := newServers(t)
	for _, v6 := range []bool{false, true} {
		s.accept(s.out, 9000, s.endpoint(v6, 3389), s.one, 3389).talk()
		s.datagram(s.out, 9000, s.endpoint(v6, 53), s.one, 5353)
	}
	for _, i := range []uint16{0, 4, 9} {
		s.accept(s.out, 9001, s.endpoint(false, 7000+i), s.one, 8000+i).talk()
	}
	for _, port := range []uint16{7000, 7123, 7999} {
		s.datagram(s.out, 9002, s.endpoint(false, port), s.two, port)
	}
	// Several outside addresses, each with its own server, by one port.
	s.accept(s.out, 9003, s.endpoint(false, 80), s.one, 80).talk()
	s.accept(s.out, 9003, netip.MustParseAddrPort("203.0.113.2:80"), s.two, 80).talk()
	s.accept(s.out, 9003, netip.MustParseAddrPort("203.0.113.2:3389"), s.one, 3389).talk()
	// Ports beside those of the ranges, and the other protocol.
	text := s.text()
	for _, port := range []uint16{6999, 7010, 3388, 3390} {
		s.out.tcp(9004, s.endpoint(false, port), pkt.SYN, 1, 0, text)
	}
	for _, port := range []uint16{6999, 8000, 3389, 54} {
		s.out.udp(9004, s.endpoint(false, port), text)
	}
	for _, server := range []*peer{s.one, s.two} {
		s.unseen(text, server, s.out)
	}
	// In the middle of nothing.
	s.out.tcp(9005, s.endpoint(false, 3389), pkt.ACK, 1, 1, text)
	s.unseen(text, s.one, s.out)
}

// Sockets, so that checksums are left to the hardware that there is not.
func TestGateForwardSockets(t *testing.T) {
	t.Parallel()
	g := newGate(t, strings.NewReplacer("192.168.3.200", "192.168.3.2", "192.168.3.201", "192.168.3.3", "::c8", "::2").Replace(gateServers))
	g.families(func(g *gate, v6 bool) {
		_, accepted := g.listen(g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 3389))
		c, err := g.dial(g.out[0], netip.AddrPortFrom(addrOf(g.out[0], v6), 0), netip.AddrPortFrom(g.outside(v6), 3389))
		if err != nil {
			g.t.Fatal(err)
		}
		g.converse(c, g.take(accepted))
		server := g.udpSocket(g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 5353))
		far := g.udpSocket(g.out[0], netip.AddrPortFrom(addrOf(g.out[0], v6), 0))
		for _, size := range []int{0, 1200, 4000} {
			text := g.text() + strings.Repeat("x", size)
			g.sendTo(far, netip.AddrPortFrom(g.outside(v6), 53), text)
			from := g.receive(server, text)
			g.sendTo(server, from, text)
			if back := g.receive(far, text); back != netip.AddrPortFrom(g.outside(v6), 53) {
				g.t.Errorf("the answer came from %s", back)
			}
		}
		// Hairpin: from inside by the outside address, from another host and from the server itself.
		for _, h := range g.in {
			c, err := g.dial(h, netip.AddrPortFrom(addrOf(h, v6), 0), netip.AddrPortFrom(g.outside(v6), 3389))
			if err != nil {
				g.t.Fatal(err)
			}
			far := g.take(accepted)
			g.converse(c, far)
			if from := netip.MustParseAddrPort(far.RemoteAddr().String()); from.Addr() != g.outside(v6) {
				g.t.Errorf("the server saw %s", from)
			}
		}
	})
}

// Only some may use it, others find nothing there.
func TestGateForwardSources(t *testing.T) {
	t.Parallel()
	s := newServers(t)
	friend, stranger := s.out, s.station(atOutside, 1)
	if friend.Addr.String() != "203.0.113.21" {
		t.Fatalf("the first station outside is %s", friend.Addr)
	}
	s.accept(friend, 9000, s.endpoint(false, 22), s.one, 22).talk()
	text := s.text()
	stranger.tcp(9000, s.endpoint(false, 22), pkt.SYN, 1, 0, text)
	s.unseen(text, s.one, stranger)
}

// Limits on new flows: in all, and for each remote; those that are there go on.
func TestGateForwardLimits(t *testing.T) {
	t.Parallel()
	s := newServers(t)
	const burst = 100
	arrived := func(port uint16, from ...*peer) map[netip.Addr]int {
		t.Helper()
		text := s.text()
		for i := range uint16(burst) {
			for _, p := range from {
				p.udp(10_000+i, s.endpoint(false, port), text)
			}
		}
		s.fence(append(from, s.one)...)
		n := map[netip.Addr]int{}
		for _, f := range s.one.Frames() {
			if got, err := pkt.Parse(f.Data); err == nil && string(got.Payload) == text {
				n[got.Src.Addr()]++
			}
		}
		return n
	}
	other := s.station(atOutside, 1)
	s.datagram(s.out, 9000, s.endpoint(false, 4001), s.one, 4001)
	n := arrived(4001, s.out, other)
	if all := n[s.out.Addr] + n[other.Addr]; all == 0 || all > burst {
		t.Errorf("of %d new flows %v were admitted, with a limit of 5 a second", 2*burst, n)
	}
	s.datagram(s.out, 9000, s.endpoint(false, 4001), s.one, 4001)
	n = arrived(4002, s.out, other)
	for _, p := range []*peer{s.out, other} {
		if n[p.Addr] < 5 || n[p.Addr] > burst/2 {
			t.Errorf("of %d new flows of %s %d were admitted, with a limit of 5 a second for each remote", burst, p.Addr, n[p.Addr])
		}
	}
}

// Changing forwards at run time: the flows that one has admitted outlive it,
// "flows flush" ends them.
func TestGateForwardChange(t *testing.T) {
	t.Parallel()
	s := newServers(t)
	conn := s.accept(s.out, 9000, s.endpoint(false, 3389), s.one, 3389)
	conn.talk()
	s.must("forward", "del", "rdp")
	conn.talk()
	text := s.text()
	s.out.tcp(9001, s.endpoint(false, 3389), pkt.SYN, 1, 0, text)
	s.unseen(text, s.one, s.out)
	s.must("forward", "add", "rdp", "--in", "external", "--proto", "tcp", "--port", "3389", "--to", s.two.at(false, 3390).String())
	conn.talk() // still to the first server
	s.accept(s.out, 9002, s.endpoint(false, 3389), s.two, 3390).talk()
	s.must("flows", "flush", "--addr", s.one.Addr.String(), "--proto", "tcp")
	sent := conn.sendIn(pkt.ACK|pkt.PSH, s.text())
	s.one.never(sameSegment(sent), s.out)
}

// The MSS of a SYN fits the way out where the configuration says so, both ways,
// and the checksum with it.
func TestGateClampMSS(t *testing.T) {
	t.Parallel()
	g := newGateLab(t)
	if err := g.Gateway.SetMTU("eth0", 1300); err != nil {
		t.Fatal(err)
	}
	server := g.stationAt(g.in[0], 200)
	for _, clamp := range []bool{true, false} {
		config := gateServers
		if clamp {
			config += "  clamp_mss: true\n"
		}
		g.apply(config)
		g.families(func(g *gate, v6 bool) {
			in, out := g.pair()
			want := func(mss uint16) uint16 {
				fits := uint16(1300 - 40)
				if v6 {
					fits -= 20
				}
				if clamp && mss > fits {
					return fits
				}
				return mss
			}
			front := netip.AddrPortFrom(g.outside(v6), 3389)
			for i, mss := range []uint16{0, 536, 1240, 1260, 1261, 1460} {
				syn := func(from *peer, port uint16, to netip.AddrPort, at *peer, flags uint8) *pkt.Parsed {
					seq := uint32(g.texts.Add(1))
					from.send(to.Addr(), pkt.Segment(port, to.Port(), flags, seq, 7, mss), gopacket.Payload(nil))
					got := at.want("SYN", func(p *pkt.Parsed) bool { return p.Proto == pkt.ProtoTCP && p.Seq == seq })
					if got.MSS != want(mss) {
						g.t.Errorf("clamp %v: MSS %d became %d, want %d", clamp, mss, got.MSS, want(mss))
					}
					return got
				}
				port := 5000 + uint16(i)
				seen := syn(in, port, out.at(v6, 9000), out, pkt.SYN)
				syn(out, 9000, seen.Src, in, pkt.SYN|pkt.ACK)
				seen = syn(out, port, front, server, pkt.SYN)
				syn(server, 3389, seen.Src, out, pkt.SYN|pkt.ACK)
			}
		})
	}
}
