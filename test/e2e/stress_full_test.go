package e2e

import (
	"net/netip"
	"testing"
	"time"

	"tapgate/loader"
	pkt "tapgate/test/packet"
)

// A full table: flows that are alive stay, new ones are refused, counted, and told
// so; when there is room again they come in.
func TestStressFullTable(t *testing.T) {
	const size = 128
	g := newGate(t, gateZones+`
nat:
  max_flows: 128
  max_flows_per_host: 128
  masquerade:
    - {from: internal, to: external, ipv6: true}
`)
	g.families(func(g *gate, v6 bool) {
		in, other, out := g.station(atInside, 0), g.station(atInside, 1), g.station(atOutside, 0)
		var seen []netip.AddrPort
		for port := range uint16(size) {
			ext := g.mapUDP(in, 5000+port, out, 9000, v6)
			g.answerUDP(out, 9000, ext, in, 5000+port)
			seen = append(seen, ext)
		}
		if n := g.consistent().account.number("flows"); n != size {
			g.t.Fatalf("%d flows fill a table of %d", n, size)
		}
		before := g.status().Gateway.Refused["full"]
		var last *pkt.Parsed
		const beyond = 50
		for port := range uint16(beyond) {
			last = other.udp(6000+port, out.at(v6, 9000), "beyond")
			if port == 0 {
				kind, code := prohibited(v6)
				g.aboutOwn(other.wantError(kind, code), last)
			}
		}
		g.fence(other)
		if n := g.status().Gateway.Refused["full"] - before; n != beyond {
			g.t.Errorf("%d new flows were refused, and %d are counted", beyond, n)
		}
		if out.got(func(p *pkt.Parsed) bool { return string(p.Payload) == "beyond" }) {
			g.t.Error("a flow for which there was no room got out")
		}
		for i, ext := range seen {
			g.answerUDP(out, 9000, ext, in, 5000+uint16(i))
			if again := g.mapUDP(in, 5000+uint16(i), out, 9000, v6); again != ext {
				g.t.Errorf("the mapping was %s and is %s", ext, again)
			}
		}
		if n := len(g.consistent().sessions); n != 2*size {
			g.t.Errorf("%d halves of %d flows", n, size)
		}
		// What is over makes room.
		g.pass(301*time.Second, in.ip(v6))
		g.expire(in.ip(v6))
		g.answerUDP(out, 9000, g.mapUDP(other, 5000, out, 9000, v6), other, 5000)
		g.emptyFlows()
	})
}

// Half of the table is open to flows that nobody answers. Beyond that a host's own
// oldest goes first, and no other host's.
func TestStressUnanswered(t *testing.T) {
	const size, fresh = 1024, 512
	g := newGate(t, gateZones+`
nat:
  max_flows: 1024
  max_flows_per_host: 1024
  masquerade:
    - {from: internal, to: external, ipv6: true}
`)
	in, other, out := g.station(atInside, 0), g.station(atInside, 1), g.station(atOutside, 0)
	answered := g.mapUDP(in, 4000, out, 9000, false)
	g.answerUDP(out, 9000, answered, in, 4000)
	waiting := g.mapUDP(other, 4000, out, 9000, false)
	for port := range uint16(3 * size) {
		in.udp(5000+port, out.at(false, 9000), "scan")
	}
	g.fence(in)
	if n := g.readAccount().number("fresh"); n > fresh {
		t.Errorf("%d flows without an answer, %d may be", n, fresh)
	}
	// The answered one, the other host's that waits for its answer, and new ones of
	// the other host.
	g.answerUDP(out, 9000, answered, in, 4000)
	g.answerUDP(out, 9000, waiting, other, 4000)
	for port := range uint16(20) {
		g.answerUDP(out, 9000, g.mapUDP(other, 5000+port, out, 9000, false), other, 5000+port)
	}
	g.consistent()
	g.empty()
}

// emptyFlows ends all flows, with the timers as they are, and those of bindings.
func (g *gate) emptyFlows() {
	g.t.Helper()
	g.opened(func(gw *loader.Gateway) error {
		_, err := gw.FlushFlows(loader.FlowFilter{})
		return err
	})
	g.consistent()
}

// A flow that was flushed: its tuple is nobody's for a moment, its port nobody
// else's for two minutes, and its own host gets the same port again at once.
func TestStressFlushed(t *testing.T) {
	const config = gateZones + `
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true, ports: "20000-20000"}
`
	g := newGate(t, config)
	g.families(func(g *gate, v6 bool) {
		proto := uint8(pkt.ProtoUDP)
		if v6 {
			proto = pkt.ProtoTCP
		}
		in, other, out := g.station(atInside, 0), g.station(atInside, 1), g.station(atOutside, 0)
		ext := g.mapAny(proto, in, 5000, out, 9000, v6)
		g.must("flows", "flush", "--addr", in.ip(v6).String())
		if all := g.flows(in.ip(v6)); len(all) > 0 {
			g.t.Errorf("after flows flush: %+v", all)
		}
		// Its remote is a stranger now.
		text := g.text()
		out.raw(out.opener(proto, 9000, ext, text))
		g.unseen(text, in, out)
		other.raw(other.opener(proto, 5000, out.at(v6, 9000), "early"))
		g.fence(other)
		if again := g.mapAny(proto, in, 5000, out, 9000, v6); again != ext {
			g.t.Errorf("the endpoint had %s and has %s", ext, again)
		}
		if out.got(func(p *pkt.Parsed) bool { return string(p.Payload) == "early" }) {
			g.t.Error("another host got the port at once")
		}
		g.must("flows", "flush", "--addr", in.ip(v6).String())
		g.pass(121*time.Second, in.ip(v6))
		g.expire(in.ip(v6))
		g.mapAny(proto, other, 5000, out, 9000, v6)
		g.consistent()
	})
}

// A connection that has ended, and one with the same ports right after it: one of
// the same host goes on with the flow, and one of another host never meets it.
func TestStressSameTuple(t *testing.T) {
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		var first netip.AddrPort
		for i := range 5 {
			s := g.connect(in, 5000, out, 9000, v6)
			s.talk()
			if i%2 == 0 {
				s.shut()
			} else {
				s.outward(pkt.RST|pkt.ACK, "")
			}
			if !first.IsValid() {
				first = s.ext
			}
			if s.ext != first {
				g.t.Errorf("one endpoint came from %s, then from %s", first, s.ext)
			}
		}
		if all := g.flows(in.ip(v6)); len(all) != 1 {
			g.t.Errorf("one tuple has %d flows: %+v", len(all), all)
		}
		g.consistent()
	})
}
