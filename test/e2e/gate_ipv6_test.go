package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	pkt "tapgate/test/packet"
)

// gatePlain6 translates IPv4 only: IPv6 is stateful, with its own addresses.
const gatePlain6 = gateZones + `
nat:
  masquerade:
    - {from: internal, to: external}
`

// IPv6 without translation: flows from inside and their replies, errors about them,
// and nothing else.
func TestGateIPv6(t *testing.T) {
	t.Parallel()
	awaitUptime(t)
	g := newGate(t, gatePlain6)
	in, out, router := g.station(atInside, 0), g.station(atOutside, 0), g.station(atOutside, 1)
	if ext := g.mapUDP(in, 5000, out, 9000, true); ext != in.at(true, 5000) {
		t.Fatalf("came from %s", ext)
	}
	g.answerUDP(out, 9000, in.at(true, 5000), in, 5000)
	s := g.connect(in, 5000, out, 9000, true)
	s.talk()
	addr, id := g.mapQuery(in, 77, out, true)
	g.answerQuery(out, addr, id, in, 77)
	// Errors about each of them, both ways.
	for _, p := range g.aboutEach(in, out, true) {
		for _, k := range errorKinds(true) {
			router.complain(in.Addr6, k[0], k[1], 1280, p[1], 28)
			g.aboutOwn(in.wantError(k[0], k[1]), p[0])
		}
	}
	text := g.text()
	sent := out.udp(9000, in.at(true, 5000), text)
	in.complain(out.Addr6, 1, 4, 0, in.wantText(text), 28)
	g.aboutOwn(out.wantError(1, 4), sent)
	// Not asked for: data, requests, errors about nothing, replies to nobody.
	text = g.text()
	out.udp(9001, in.at(true, 5001), text)
	out.tcp(9001, in.at(true, 5001), pkt.SYN, 1, 0, text)
	out.tcp(9001, in.at(true, 5001), pkt.ACK, 1, 1, text)
	out.query(false, 78, in.Addr6, text)
	out.query(true, 78, in.Addr6, text)
	stray := *sent
	stray.IP = append([]byte{}, sent.IP...)
	stray.IP[stray.L4+1] ^= 1
	router.complain(in.Addr6, 1, 4, 4711, &stray, 28)
	g.refused(func(p *pkt.Parsed) bool { return string(p.Payload) == text || p.Rest == 4711 }, out, in)
	in.never(func(p *pkt.Parsed) bool { return p.Rest == 4711 }, router)
	// And it ends.
	g.pass(301*time.Second, in.Addr6)
	g.expire(in.Addr6)
	g.refusedUDP(out, 9000, in.at(true, 5000), in)
}

// Extension headers before TCP and UDP, and fragments of one, with and without translation.
func TestGateIPv6Extensions(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]string{"plain": gatePlain6, "masquerade": gateBoth} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, config)
			in, out := g.pair()
			for i, ext := range [][]pkt.Layer{
				{pkt.DestinationOptions(0)},
				{pkt.HopByHop(0)},
				{pkt.DestinationOptions(3), pkt.RoutingHeader()},
				{pkt.HopByHop(0), pkt.DestinationOptions(1)},
				{pkt.Fragment6(0, false, 0)},
			} {
				port := 5000 + uint16(i)
				text := g.text()
				in.send(out.Addr6, append(ext, pkt.UDP(port, 9000), gopacket.Payload(text))...)
				got := out.wantText(text)
				if name == "plain" && got.Src != in.at(true, port) || name != "plain" && got.Src.Addr() != g.outside(true) {
					t.Errorf("%d: arrived as %s", i, got)
				}
				text = g.text()
				out.send(got.Src.Addr(), append(ext, pkt.UDP(9000, got.Src.Port()), gopacket.Payload(text))...)
				if back := in.wantText(text); back.Dst != in.at(true, port) {
					t.Errorf("%d: came back as %s", i, back)
				}
			}
		})
	}
}

// Hosts with empty neighbour tables find the gateway, and it finds them.
func TestGateIPv6Neighbours(t *testing.T) {
	t.Parallel()
	g := newGate(t, gatePlain6)
	for _, h := range []struct{ name, line string }{{"in", "neigh flush all"}} {
		g.ip(g.in[0], "-6 "+h.line)
		g.ip(g.Gateway, "-6 "+h.line)
	}
	echoAll(t, g.in[0], g.Gateway.Interface("eth3").Addr6.Addr(), 1, 56)
	echoAll(t, g.in[0], g.out[0].Addr6, 3, 56)
	talkTCP(t, g.in[0], echoTCP(t, g.out[0], netip.AddrPortFrom(g.out[0].Addr6, 0).String()), 100_000)
}

// A UDP checksum of zero, which says that there is none, stays zero; other
// protocols get their hosts' outside address, one host for each remote.
func TestGateOtherProtocols(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	in, out := g.pair()
	frame := in.frame(out.Addr, pkt.UDP(5000, 9000), gopacket.Payload("no checksum"))
	frame[40], frame[41] = 0, 0
	in.raw(frame)
	if got := out.wantText("no checksum"); got.IP[26] != 0 || got.IP[27] != 0 || got.Src.Addr() != g.outside(false) {
		t.Errorf("arrived as %s with the checksum % x", got, got.IP[26:28])
	}
	for i, proto := range []layers.IPProtocol{layers.IPProtocolESP, layers.IPProtocolGRE, layers.IPProtocolIPIP, 200} {
		text := g.text()
		raw := func(from *peer, to netip.Addr) *pkt.Parsed {
			ip := pkt.IPv4(from.Addr, to)
			ip.Protocol = proto
			return from.raw(pkt.Frame(pkt.Ether(from.MAC, from.Gateway), ip, gopacket.Payload(text)))
		}
		raw(in, out.Addr)
		got := out.want(text, func(p *pkt.Parsed) bool { return p.Proto == uint8(proto) })
		if got.Src.Addr() != g.outside(false) || string(got.IP[20:]) != text {
			t.Errorf("protocol %d: arrived as %s", proto, got)
		}
		raw(out, got.Src.Addr())
		if back := in.want(text, func(p *pkt.Parsed) bool { return p.Proto == uint8(proto) }); back.Src.Addr() != out.Addr {
			t.Errorf("protocol %d: came back as %s", proto, back)
		}
		if i == 0 {
			// The way back is one host's.
			second := g.station(atInside, 1)
			raw(second, out.Addr)
			raw(out, g.outside(false))
			in.want(text, func(p *pkt.Parsed) bool { return p.Proto == uint8(proto) })
			second.never(func(p *pkt.Parsed) bool { return p.Proto == uint8(proto) }, out)
		}
	}
}
