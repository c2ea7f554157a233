package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/gopacket/gopacket"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

func rows6888() []rfcRow {
	return []rfcRow{
		{id: "6888-4+6888-5", own: true, try: limitOfHost},
		{id: "6888-6", own: true, try: noTranslation},
		{id: "6888-8", own: true, try: noEarlyReuse},
		{id: "6888-10", own: true, try: countsEverything},
		{id: "6888-12", own: true, try: logsNothing},
		{id: "6888-13+6888-15+7857-randomization", try: randomPorts},
	}
}

// The pool is neither contiguous nor the interface's own address.
var gatePool = []string{"203.0.113.100", "203.0.113.102", "203.0.113.110"}

// REQ-2, REQ-3, and RFC 4787 REQ-2: of several outside addresses one host always
// gets the same, and all are used.
func pairedPool(g *gate) {
	g = g.freshLab()
	for _, a := range gatePool {
		g.ip(g.Gateway, "addr add "+a+"/24 dev eth0")
	}
	g.apply(gateZones + `
nat:
  masquerade:
    - {from: internal, to: external, addresses: [` + strings.Join(gatePool, ", ") + `]}
`)
	out := [2]*peer{g.station(atOutside, 0), g.station(atOutside, 1)}
	used := map[netip.Addr]int{}
	for range 16 {
		in := g.station(atInside, 0)
		ext := g.mapUDP(in, 5000, out[0], 9000, false)
		g.answerUDP(out[0], 9000, ext, in, 5000)
		for i := range uint16(6) {
			to := out[i%2]
			tcp := g.mapAny(pkt.ProtoTCP, in, 6000+i, to, 9000+i, false)
			udp := g.mapUDP(in, 6000+i, to, 9000+i, false)
			icmp, _ := g.mapQuery(in, 77+i, to, false)
			for _, a := range []netip.Addr{tcp.Addr(), udp.Addr(), icmp} {
				if a != ext.Addr() {
					g.t.Errorf("%s came from %s and from %s", in.Addr, ext.Addr(), a)
				}
			}
		}
		used[ext.Addr()]++
	}
	for _, a := range gatePool {
		if used[netip.MustParseAddr(a)] == 0 {
			g.t.Errorf("nobody of 16 hosts has %s: %v", a, used)
		}
	}
	if len(used) != len(gatePool) {
		g.t.Errorf("addresses that are used: %v", used)
	}
	// By a real socket: ARP for the address is answered.
	in := g.udpSocket(g.in[0], netip.AddrPortFrom(g.in[0].Addr, 0))
	far := g.udpSocket(g.out[0], netip.AddrPortFrom(g.out[0].Addr, 5555))
	text := g.text()
	g.sendTo(in, netip.AddrPortFrom(g.out[0].Addr, 5555), text)
	from := g.receive(far, text)
	g.sendTo(far, from, text)
	g.receive(in, text)
}

// prohibited is the error by which a sender learns that its packet is refused.
func prohibited(v6 bool) (kind, code uint8) {
	if v6 {
		return 1, 1
	}
	return 3, 13
}

// REQ-4, REQ-5: a host gets no more than its share, is told so, and others lose nothing.
func limitOfHost(g *gate) {
	const limit = 100
	g = g.fresh(gateBoth + fmt.Sprintf("  max_flows_per_host: %d\n", limit))
	g.families(func(g *gate, v6 bool) {
		in, other, out := g.station(atInside, 0), g.station(atInside, 1), g.station(atOutside, 0)
		var seen []netip.AddrPort
		for port := range uint16(limit) {
			ext := g.mapUDP(in, 10_000+port, out, 9000, v6)
			g.answerUDP(out, 9000, ext, in, 10_000+port)
			seen = append(seen, ext)
		}
		g.aboutOwn(g.refusal(in, func() *pkt.Parsed { return in.udp(20_000, out.at(v6, 9000), "beyond") }))
		for port := range uint16(limit) {
			in.udp(20_001+port, out.at(v6, 9000), "beyond")
		}
		for port := range uint16(3) {
			g.answerUDP(out, 9000, g.mapUDP(other, 5000+port, out, 9000, v6), other, 5000+port)
		}
		for i, ext := range seen {
			g.answerUDP(out, 9000, ext, in, 10_000+uint16(i))
		}
		out.never(func(p *pkt.Parsed) bool { return string(p.Payload) == "beyond" }, in)
	})
}

// REQ-6: towards some destinations nothing is translated.
func noTranslation(g *gate) {
	g = g.freshLab()
	plain, out := g.station(atOutside, 0), g.station(atOutside, 1)
	g.apply(gateBoth + fmt.Sprintf("  exclude: [%s/32, %q]\n", plain.Addr, plain.Addr6.String()+"/128"))
	g.families(func(g *gate, v6 bool) {
		in := g.station(atInside, 0)
		if from := g.mapUDP(in, 5000, plain, 9000, v6); from != in.at(v6, 5000) {
			g.t.Errorf("came from %s, translated", from)
		}
		g.answerUDP(plain, 9000, in.at(v6, 5000), in, 5000)
		s := g.connect(in, 5000, plain, 9000, v6)
		if s.ext != s.a {
			g.t.Errorf("came from %s, translated", s.ext)
		}
		s.talk()
		s.shut()
		if from := g.mapUDP(in, 5000, out, 9000, v6); from.Addr() != g.outside(v6) {
			g.t.Errorf("came from %s, not translated", from)
		}
		// What is not translated is filtered all the same.
		text := g.text()
		out.udp(9000, in.at(v6, 5000), text)
		plain.tcp(9001, in.at(v6, 5001), pkt.SYN, 1, 0, text)
		is := func(p *pkt.Parsed) bool { return string(p.Payload) == text }
		g.refused(is, out, in)
	})
}

// fewPorts is a gateway with n ports for each protocol above 1024.
func (g *gate) fewPorts(n int) *gate {
	return g.fresh(gateZones + fmt.Sprintf(`
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true, ports: "20000-%d"}
`, 20_000+n-1))
}

// REQ-8: a port whose mapping has ended is nobody else's for two minutes.
func noEarlyReuse(g *gate) {
	g = g.fewPorts(1)
	first, second, out := g.station(atInside, 0), g.station(atInside, 1), g.station(atOutside, 0)
	ext := g.mapUDP(first, 5000, out, 9000, false)
	g.pass(301*time.Second, first.Addr)
	g.expire(first.Addr)
	if all := g.flows(first.Addr); len(all) != 0 {
		g.t.Fatalf("flows that have run out: %+v", all)
	}
	g.aboutOwn(g.refusal(second, func() *pkt.Parsed { return second.udp(5000, out.at(false, 9000), "early") }))
	g.pass(60*time.Second, first.Addr)
	second.udp(5000, out.at(false, 9000), "early")
	g.flows(second.Addr)
	g.pass(61*time.Second, first.Addr)
	g.expire(first.Addr)
	if again := g.mapUDP(second, 5000, out, 9000, false); again != ext {
		g.t.Errorf("the only port is %s, and %s was used", ext, again)
	}
	out.never(func(p *pkt.Parsed) bool { return string(p.Payload) == "early" }, second)
	g.answerUDP(out, 9000, ext, second, 5000)
}

// REQ-11, and RFC 5508 REQ-8: when ports run out the sender is told, it is counted,
// and no mapping goes to make room.
func exhaustion(g *gate) {
	const ports = 10
	g = g.fewPorts(ports)
	g.families(func(g *gate, v6 bool) {
		in, out := g.station(atInside, 0), g.station(atOutside, 0)
		for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
			var streams []*stream
			var seen []netip.AddrPort
			owner := map[netip.AddrPort]bool{}
			for port := range uint16(ports) {
				var ext netip.AddrPort
				if proto == pkt.ProtoUDP {
					ext = g.mapUDP(in, 5000+port, out, 9000, v6)
				} else {
					s := g.connect(in, 5000+port, out, 9000, v6)
					streams, ext = append(streams, s), s.ext
				}
				if owner[ext] || ext.Port() < 20_000 || ext.Port() >= 20_000+ports {
					g.t.Errorf("%s is another's, or not of the range", ext)
				}
				owner[ext] = true
				seen = append(seen, ext)
			}
			told, sent := g.refusal(in, func() *pkt.Parsed {
				if proto == pkt.ProtoUDP {
					return in.udp(6000, out.at(v6, 9000), "beyond")
				}
				return in.tcp(6000, out.at(v6, 9000), pkt.SYN, 1, 0, "beyond")
			})
			g.aboutOwn(told, sent)
			// An error is no reason for another, nor are many refusals for many.
			for port := range uint16(2000) {
				in.raw(in.frame(out.ip(v6), pkt.UDP(6000+port, 9000), gopacket.Payload("beyond")))
			}
			for i, ext := range seen {
				if proto == pkt.ProtoTCP {
					streams[i].talk()
					continue
				}
				g.answerUDP(out, 9000, ext, in, 5000+uint16(i))
				if again := g.mapUDP(in, 5000+uint16(i), out, 9000, v6); again != ext {
					g.t.Errorf("the mapping was %s and is %s", ext, again)
				}
			}
			errors := 0
			for _, f := range in.Frames() {
				if p, err := pkt.Parse(f.Data); err == nil && p.Error() {
					errors++
				}
			}
			if errors > 1000 {
				g.t.Errorf("%d errors: no limit to them", errors)
			}
		}
		out.never(func(p *pkt.Parsed) bool { return string(p.Payload) == "beyond" }, in)
	})
}

// refusal sends again and again, as the answers to that are limited, until one comes.
func (g *gate) refusal(in *peer, send func() *pkt.Parsed) (told, sent *pkt.Parsed) {
	g.t.Helper()
	for deadline := time.Now().Add(gateWait); ; {
		sent = send()
		kind, code := prohibited(sent.Dst.Addr().Is6())
		is := func(p *pkt.Parsed) bool {
			return p.Error() && p.Type == kind && p.Code == code && p.Inner.Proto == sent.Proto && p.Inner.Src == sent.Src && p.Inner.ID == sent.ID
		}
		if _, err := in.WaitFor(func([]lab.Frame) bool { return in.got(is) }, 100*time.Millisecond); err == nil {
			return in.want("the refusal", is), sent
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("%s was never told that its packets are refused: %q", in.Addr, brieflyAll(in.Frames()))
		}
	}
}

// REQ-10: what there is can be seen: flows, their endpoints and counters.
func countsEverything(g *gate) {
	g = g.fresh(gateBoth)
	in, out := g.pair()
	ext := g.mapUDP(in, 5000, out, 9000, false)
	g.answerUDP(out, 9000, ext, in, 5000)
	s := g.connect(in, 5001, out, 9001, false)
	s.talk()
	f := g.flowOf("udp", in.at(false, 5000), out.at(false, 9000))
	if f.Outside != ext.String() || f.Packets != 2 || f.Bytes == 0 || f.Copied != 2 {
		g.t.Errorf("UDP: %+v, want it from %s with 2 packets, all copied", f, ext)
	}
	f = g.flowOf("tcp", s.a, s.b)
	if f.Outside != s.ext.String() || f.Packets != 5 || f.Copied != 5 || f.State == "" {
		g.t.Errorf("TCP: %+v, want it from %s with 5 packets, all copied", f, s.ext)
	}
}

// REQ-12: where a flow goes to is logged nowhere.
func logsNothing(g *gate) {
	g = g.fresh(gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		g.answerUDP(out, 9000, g.mapUDP(in, 5000, out, 9000, v6), in, 5000)
		g.connect(in, 5000, out, 9000, v6).shut()
		g.mapQuery(in, 77, out, v6)
		out.udp(9000, netip.AddrPortFrom(g.outside(v6), 5000), "unsolicited")
		out.knock()
	})
	events, err := ebpf.LoadPinnedMap(filepath.Join(g.stateDir(), "maps", "tg_events"), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	defer events.Close()
	r, err := ringbuf.NewReader(events)
	if err != nil {
		g.t.Fatal(err)
	}
	defer r.Close()
	r.SetDeadline(time.Now()) // what is there is read first
	if e, err := r.Read(); !errors.Is(err, os.ErrDeadlineExceeded) {
		g.t.Errorf("logged: % x, %v", e.RawSample, err)
	}
}

// REQ-13, REQ-15, RFC 7857 and RFC 6056: all ports are used, and the
// next one cannot be told from those before.
func randomPorts(g *gate) {
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
		const n = 400
		var ports []uint16
		for i := range uint16(n) {
			ports = append(ports, g.mapAny(proto, in, 10_000+i, out, 9000, false).Port())
		}
		near, kept := 0, 0
		bins := [16]int{}
		for i, p := range ports {
			if p == 10_000+uint16(i) {
				kept++
			}
			if i > 0 && max(p, ports[i-1])-min(p, ports[i-1]) < 16 {
				near++
			}
			bins[p/4096]++
		}
		full := 0
		for _, b := range bins {
			if b >= n/64 {
				full++
			}
		}
		// By chance 400 of 36,000 ports: 0.01 kept, 0.4 near the one before.
		if near > 8 || kept > 3 || full < 8 {
			g.t.Errorf("protocol %d: %d of %d near the one before, %d kept, %d of 16 parts used: %v", proto, near, n, kept, full, bins)
		}
	}
}
