package model

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"tapgate/test/packet"
)

var (
	in1  = netip.MustParseAddr("192.168.3.2")
	in2  = netip.MustParseAddr("192.168.3.3")
	out1 = netip.MustParseAddr("203.0.113.8")
	out2 = netip.MustParseAddr("203.0.113.9")
	ext  = netip.MustParseAddr("203.0.113.1")
	in6  = netip.MustParseAddr("2001:db8:3::2")
	out6 = netip.MustParseAddr("2001:db8:113::8")
)

const (
	eth0   = 10
	eth3   = 13
	second = int64(time.Second)
)

func config() Config {
	return Config{
		Zones: []Zone{
			{Name: "external", Role: External, Interfaces: []int{eth0}},
			{Name: "internal", Role: Internal, Interfaces: []int{eth3}, Prefixes: []netip.Prefix{
				netip.MustParsePrefix("192.168.3.0/24"), netip.MustParsePrefix("2001:db8:3::/64")}},
		},
		Masquerades: []Masquerade{{Name: "m", From: "internal", To: "external", Ports: []Ports{{1024, 32767}}}},
		Forwards:    []Forward{{Name: "rdp", In: "external", Proto: TCP, Ports: Ports{3389, 3389}, To: in2, ToPort: 33}},
		Ours:        []Ours{{Addr: ext, Zone: "external", Ifindex: eth0}},
		Outside:     map[int][2]netip.Addr{eth0: {ext}},
		Timers: Timers{
			Provisional: 5 * time.Second, TCPOpening: 240 * time.Second, TCPEstablished: 7440 * time.Second, TCPClosing: 240 * time.Second,
			UDPUnanswered: 120 * time.Second, UDP: 300 * time.Second, ICMP: 60 * time.Second, Other: 600 * time.Second, Linger: 120 * time.Second,
		},
	}
}

func udp(src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
	return framed(src, dst, packet.UDP(sport, dport), packet.Payload(30))
}

func segment(src netip.Addr, sport uint16, dst netip.Addr, dport uint16, flags string) []byte {
	t := packet.TCP(sport, dport, false)
	t.PSH = false
	t.SYN, t.ACK, t.FIN, t.RST = strings.Contains(flags, "S"), strings.Contains(flags, "A"), strings.Contains(flags, "F"), strings.Contains(flags, "R")
	return framed(src, dst, t)
}

func framed(src, dst netip.Addr, rest ...packet.Layer) []byte {
	ether := packet.Ether(packet.ServerMAC, packet.GatewayMAC)
	if src.Is4() {
		return packet.Frame(append([]packet.Layer{ether, packet.IPv4(src, dst)}, rest...)...)
	}
	return packet.Frame(append([]packet.Layer{ether, packet.IPv6(src, dst)}, rest...)...)
}

// unreachable is an ICMP error about a frame, with some bytes of its transport header.
func unreachable(src, dst netip.Addr, about []byte, bytes int) []byte {
	p := parse(about)
	icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}
	return framed(src, dst, icmp, gopacket.Payload(about[etherLen:min(len(about), p.l4+bytes)]))
}

func passed(reason string, frame []byte) Outcome {
	return Outcome{Verdict: Pass, Reason: reason, Frame: frame}
}
func dropped(reason string) Outcome { return Outcome{Verdict: Drop, Reason: reason} }

// act is what a program did with one packet, and whether it may.
type act struct {
	name    string
	after   time.Duration // since the one before
	in, out int
	frame   []byte
	did     Outcome
	wrong   string // a part of what the model says against it; empty: nothing
}

func play(t *testing.T, m *Model, acts []act) {
	t.Helper()
	now := second
	for _, a := range acts {
		now += int64(a.after)
		err := m.Step(now, a.in, a.out, a.frame, a.did)
		switch {
		case a.wrong == "" && err != nil:
			t.Errorf("%s: %v", a.name, err)
		case a.wrong != "" && err == nil:
			t.Errorf("%s: taken; want %q", a.name, a.wrong)
		case a.wrong != "" && !strings.Contains(err.Error(), a.wrong):
			t.Errorf("%s: %v; want %q", a.name, err, a.wrong)
		}
	}
}

// outward is a packet from inside at external egress.
func outward(name string, frame []byte, did Outcome, wrong string) act {
	return act{name: name, in: eth3, out: eth0, frame: frame, did: did, wrong: wrong}
}

func inward(name string, frame []byte, did Outcome, wrong string) act {
	return act{name: name, in: eth0, frame: frame, did: did, wrong: wrong}
}

func TestMasquerade(t *testing.T) {
	made, flow := "pass_new_flow", "pass_flow"
	m := New(config())
	play(t, m, []act{
		outward("new", udp(in1, 5000, out1, 53), passed(made, udp(ext, 6000, out1, 53)), ""),
		outward("the same for another remote", udp(in1, 5000, out2, 53), passed(made, udp(ext, 6000, out2, 53)), ""),
		inward("answer", udp(out1, 53, ext, 6000), passed(flow, udp(out1, 53, in1, 5000)), ""),
		inward("another port of that remote", udp(out1, 54, ext, 6000), passed(made, udp(out1, 54, in1, 5000)), ""),
		inward("a stranger", udp(out1.Next().Next(), 53, ext, 6000), dropped("drop_unsolicited"), ""),
		inward("nobody's port", udp(out1, 53, ext, 6001), passed("pass_to_host", udp(out1, 53, ext, 6001)), ""),
		inward("SYN to nobody's port", segment(out1, 53, ext, 6001, "S"), dropped("drop_silent_syn"), ""),
	})
	refusals := New(config())
	play(t, refusals, []act{
		outward("new", udp(in1, 5000, out1, 53), passed(made, udp(ext, 6000, out1, 53)), ""),
		outward("port of another", udp(in2, 5000, out1, 53), passed(made, udp(ext, 6000, out1, 53)), "already"),
		outward("class", udp(in2, 500, out1, 53), passed(made, udp(ext, 5500, out1, 53)), "is not one for"),
		outward("range", udp(in2, 5000, out1, 53), passed(made, udp(ext, 40000, out1, 53)), "is not one for"),
		outward("address", udp(in2, 5000, out1, 53), passed(made, udp(out2, 6001, out1, 53)), "none of"),
		outward("a forward's port", segment(in2, 5000, out1, 53, "S"), passed(made, segment(ext, 3389, out1, 53, "S")), "belongs to a forward"),
		outward("checksum", udp(in2, 5000, out1, 53), passed(made, with(udp(ext, 6001, out1, 53), 40, 0)), "differ from byte 40"),
	})
}

func with(frame []byte, at int, b byte) []byte {
	c := append([]byte(nil), frame...)
	c[at] = b
	return c
}

func TestMappingMoves(t *testing.T) {
	m := New(config())
	play(t, m, []act{
		outward("new", udp(in1, 5000, out1, 53), passed("pass_new_flow", udp(ext, 6000, out1, 53)), ""),
		outward("another outside port", udp(in1, 5000, out2, 53), passed("pass_new_flow", udp(ext, 6001, out2, 53)), "frames differ"),
	})
}

func TestTimers(t *testing.T) {
	made, flow := "pass_new_flow", "pass_flow"
	first := outward("new", udp(in1, 5000, out1, 53), passed(made, udp(ext, 6000, out1, 53)), "")
	at := func(d time.Duration, a act) act { a.after = d; return a }
	answer := udp(out1, 53, ext, 6000)
	in := udp(out1, 53, in1, 5000)
	play(t, New(config()), []act{first,
		at(119*time.Second, inward("unanswered, 119 s", answer, passed(flow, in), "")),
		at(299*time.Second, inward("answered, 299 s", answer, passed(flow, in), "")),
		at(301*time.Second, inward("answered, 301 s", answer, dropped("drop_unsolicited"), "")),
		at(119*time.Second, outward("its port is kept for it", udp(in1, 5000, out2, 53), passed(made, udp(ext, 6000, out2, 53)), "")),
	})
	play(t, New(config()), []act{first,
		at(121*time.Second, inward("unanswered, 121 s", answer, dropped("drop_unsolicited"), "")),
		at(119*time.Second, outward("for nobody else", udp(in2, 5000, out2, 53), passed(made, udp(ext, 6000, out2, 53)), "already")),
		at(2*time.Second, outward("but for 120 s", udp(in2, 5000, out2, 53), passed(made, udp(ext, 6000, out2, 53)), "")),
	})
	syn := outward("SYN", segment(in1, 5000, out1, 80, "S"), passed(made, segment(ext, 6000, out1, 80, "S")), "")
	synAck := inward("SYN ACK", segment(out1, 80, ext, 6000, "SA"), passed(flow, segment(out1, 80, in1, 5000, "SA")), "")
	ackOut := func(flags string) act {
		return outward(flags+" out", segment(in1, 5000, out1, 80, flags), passed(flow, segment(ext, 6000, out1, 80, flags)), "")
	}
	ackIn := func(flags string) act {
		return inward(flags+" in", segment(out1, 80, ext, 6000, flags), passed(flow, segment(out1, 80, in1, 5000, flags)), "")
	}
	gone := inward("gone", segment(out1, 80, ext, 6000, "A"), dropped("drop_unsolicited"), "")
	for name, acts := range map[string][]act{
		"established":   {syn, synAck, ackOut("A"), at(7439*time.Second, ackIn("A")), at(7441*time.Second, gone)},
		"opening":       {syn, at(239*time.Second, synAck), at(241*time.Second, gone)},
		"half closed":   {syn, synAck, ackOut("A"), ackOut("FA"), at(7439*time.Second, ackIn("A"))},
		"closed":        {syn, synAck, ackOut("A"), ackOut("FA"), ackIn("FA"), at(239*time.Second, ackOut("A")), at(241*time.Second, gone)},
		"reset":         {syn, synAck, ackOut("A"), ackIn("R"), at(241*time.Second, gone)},
		"reset, data":   {syn, synAck, ackOut("A"), ackIn("R"), at(239*time.Second, ackOut("A")), at(7439*time.Second, ackIn("A"))},
		"SYN after FIN": {syn, synAck, ackOut("A"), ackOut("FA"), ackIn("FA"), ackOut("S"), synAck, ackOut("A"), at(7439*time.Second, ackIn("A"))},
		"both open":     {syn, ackIn("S"), ackOut("SA"), ackIn("SA"), ackOut("A"), at(7439*time.Second, ackIn("A"))},
	} {
		t.Run(name, func(t *testing.T) { play(t, New(config()), acts) })
	}
	play(t, New(config()), []act{
		outward("mid-stream", segment(in1, 5000, out1, 80, "A"), dropped("drop_no_flow"), ""),
	})
}

func TestForwardAndHairpin(t *testing.T) {
	m := New(config())
	aged := func(frame []byte) Outcome {
		p := parse(frame)
		p.age()
		return Outcome{Verdict: Redirect, Reason: "pass_hairpin", Frame: p.frame}
	}
	play(t, m, []act{
		inward("forward", segment(out1, 700, ext, 3389, "S"), passed("pass_new_flow", segment(out1, 700, in2, 33, "S")), ""),
		{name: "to the server", in: eth0, out: eth3, frame: segment(out1, 700, in2, 33, "S"), did: passed("pass_flow", segment(out1, 700, in2, 33, "S"))},
		outward("answer", segment(in2, 33, out1, 700, "SA"), passed("pass_flow", segment(ext, 3389, out1, 700, "SA")), ""),
		inward("mid-stream", segment(out2, 700, ext, 3389, "A"), dropped("drop_no_flow"), ""),
		{name: "hairpin", in: eth3, frame: segment(in1, 900, ext, 3389, "S"), did: aged(segment(ext, 901, in2, 33, "S"))},
		{name: "hairpin back", in: eth3, frame: segment(in2, 33, ext, 901, "SA"), did: aged(segment(ext, 3389, in1, 900, "SA"))},
		{name: "spoofed", in: eth3, frame: udp(out1, 5, out2, 6), did: dropped("drop_spoofed")},
		{name: "unsolicited to inside", in: eth0, out: eth3, frame: udp(out1, 5, in1, 6), did: dropped("drop_zone")},
	})
}

func TestErrors(t *testing.T) {
	m := New(config())
	sent, seen := udp(in1, 5000, out1, 53), udp(ext, 6000, out1, 53)
	broken := unreachable(out2, ext, seen, 8)
	broken[etherLen+20+8+8] ^= 1 // the TTL that is quoted
	play(t, m, []act{
		outward("new", sent, passed("pass_new_flow", seen), ""),
		inward("error", unreachable(out2, ext, seen, 8), passed("pass_icmp_error", unreachable(out2, in1, sent, 8)), ""),
		inward("long error", unreachable(out2, ext, seen, 38), passed("pass_icmp_error", unreachable(out2, in1, sent, 38)), ""),
		inward("bad checksum", with(unreachable(out2, ext, seen, 8), etherLen+22, 0x77), dropped("drop_malformed"), ""),
		inward("inner checksum", broken, dropped("drop_malformed"), ""),
		inward("of no flow", unreachable(out2, ext, udp(ext, 6001, out1, 53), 8), dropped("drop_no_flow"), ""),
		inward("answer", udp(out1, 53, ext, 6000), passed("pass_flow", udp(out1, 53, in1, 5000)), ""),
		outward("about the answer", unreachable(in1, out1, udp(out1, 53, in1, 5000), 8), passed("pass_icmp_error", unreachable(ext, out1, udp(out1, 53, ext, 6000), 8)), ""),
	})
}

func TestQuery(t *testing.T) {
	reply := func(src, dst netip.Addr, id uint16) []byte {
		e := packet.Echo(id, 1)
		e.TypeCode = layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoReply, 0)
		return framed(src, dst, e)
	}
	m := New(config())
	play(t, m, []act{
		outward("request", framed(in1, out1, packet.Echo(7, 1)), passed("pass_new_flow", framed(ext, out1, packet.Echo(99, 1))), ""),
		inward("reply", reply(out1, ext, 99), passed("pass_flow", reply(out1, in1, 7)), ""),
		outward("same id of another host", framed(in2, out1, packet.Echo(7, 1)), passed("pass_new_flow", framed(ext, out1, packet.Echo(99, 1))), "already"),
	})
}

func TestIPv6WithoutTranslation(t *testing.T) {
	m := New(config())
	sent := udp(in6, 5000, out6, 53)
	play(t, m, []act{
		outward("new", sent, passed("pass_new_flow", sent), ""),
		inward("answer", udp(out6, 53, in6, 5000), passed("pass_to_host", udp(out6, 53, in6, 5000)), ""),
		{name: "answer goes in", in: eth0, out: eth3, frame: udp(out6, 53, in6, 5000), did: passed("pass_flow", udp(out6, 53, in6, 5000))},
		{name: "another does not", in: eth0, out: eth3, frame: udp(out6, 54, in6, 5000), did: dropped("drop_zone")},
	})
}

func TestLimits(t *testing.T) {
	cfg := config()
	cfg.Limits.PerHost = 2
	m := New(cfg)
	flow := func(port uint16) act {
		return outward("flow", udp(in1, port, out1, 53), passed("pass_new_flow", udp(ext, port+1000, out1, 53)), "")
	}
	early := flow(5000)
	early.did, early.wrong = dropped("drop_table_full"), "for want of room"
	full := flow(5002)
	full.did = dropped("drop_table_full")
	beyond := flow(5003)
	beyond.wrong = "beyond the limits"
	play(t, m, []act{early, flow(5000), flow(5001), full, beyond})
}
