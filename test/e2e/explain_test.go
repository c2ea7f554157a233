package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// explained has something of everything that a packet can meet.
const explained = `
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3], prefixes: [10.3.0.0/16]}
  lab:      {role: internal, interfaces: [eth5]}
  dmz:      {interfaces: [eth2]}
  mgmt:     {interfaces: [eth4]}
nat:
  masquerade:
    - {from: internal, to: external}
    - {name: fixed, from: lab, to: external, addresses: [203.0.113.77], ports: "5000-5999", filtering: endpoint-independent}
    - {from: mgmt, to: external}
  exclude: [203.0.113.25/32]
  forwards:
    - {name: rdp, in: external, proto: tcp, port: 3389, to: "192.168.3.40:3390"}
    - {name: friends, in: external, proto: udp, port: "7000-7009", to: "192.168.3.40:8000-8009", sources: [203.0.113.40], limit: {rate: 100, per_remote: 50}}
    - {name: rdp6, in: external, proto: tcp, port: 3389, to: "[2001:db8:3::28]:3390"}
policies:
  - {name: updates, from: mgmt, to: external, proto: tcp, ports: [80], action: accept}
  - {name: no-telnet, from: internal, to: external, proto: tcp, ports: [23], action: drop, log: true}
  - {name: no-net, from: internal, to: external, destinations: [198.51.100.0/24], action: drop}
  - {name: let-in, from: external, to: lab, proto: udp, ports: [53], sources: ["203.0.113.40", "2001:db8:113::28"], action: accept}
mirrors:
  - name: ids
    zones: [internal]
    targets:
      - {via: 192.168.4.2}
  - name: both
    zones: [internal, lab, external]
    targets:
      - {via: 192.168.4.2}
`

// explainCase is a first packet, and what shall be said of it.
type explainCase struct {
	from  *peer
	src   netip.Addr // if not the station's own
	proto string
	to    netip.AddrPort
	want  loader.Explanation // Verdict, Reason, Policy; names of Forward and Masquerade
	at    *peer              // where it arrives
	seen  netip.AddrPort     // by whom it is sent to, there; the port may be any if 0
}

// What is explained is what happens.
func TestExplain(t *testing.T) {
	t.Parallel()
	g := newGate(t, explained, lab.SecondInternal())
	in, second, mgmt, dmz := g.stationAt(g.in[0], 40), g.stationAt(g.Second, 41), g.stationAt(g.Mgmt, 42), g.stationAt(g.Sensor, 43)
	friend, out, plain := g.stationAt(g.out[0], 40), g.stationAt(g.out[1], 41), g.stationAt(g.out[0], 25)
	copies, err := g.Sensor.Capture("eth0", lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := copies.Stop(); err != nil {
			t.Error(err)
		}
	})
	wan, fixed := g.outside(false), netip.MustParseAddr("203.0.113.77")
	expl := func(verdict, reason string, more ...string) (e loader.Explanation) {
		e.Verdict, e.Reason = verdict, reason
		for _, m := range more {
			switch kind, name, _ := strings.Cut(m, " "); kind {
			case "policy":
				e.Policy = name
			case "forward":
				e.Forward = &loader.ExplanationForward{Name: name}
			case "masquerade":
				e.Masquerade = &loader.ExplanationMasquerade{Name: name}
			}
		}
		return e
	}
	at := func(p *peer, port uint16) netip.AddrPort { return p.at(false, port) }
	from := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }
	none := netip.Addr{}
	for _, c := range []explainCase{
		{in, none, "udp", at(out, 9000), expl("pass", "pass_new_flow", "masquerade internal-external"), out, from(wan)},
		{in, none, "tcp", at(out, 9000), expl("pass", "pass_new_flow", "masquerade internal-external"), out, from(wan)},
		{in, none, "udp", at(plain, 9000), expl("pass", "pass_new_flow"), plain, from(in.Addr)},
		{in, none, "udp", out.at(true, 9000), expl("pass", "pass_new_flow"), out, from(in.Addr6)},
		{in, none, "udp", at(second, 9000), expl("pass", "pass_allowed"), second, from(in.Addr)},
		{second, none, "udp", in.at(true, 9000), expl("pass", "pass_allowed"), in, from(second.Addr6)},
		{second, none, "udp", at(out, 9000), expl("pass", "pass_new_flow", "masquerade fixed"), out, from(fixed)},
		{in, none, "tcp", at(out, 23), expl("drop", "drop_policy", "policy no-telnet"), nil, netip.AddrPort{}},
		{in, none, "udp", at(out, 23), expl("pass", "pass_new_flow", "masquerade internal-external"), out, from(wan)},
		{in, none, "udp", at(dmz, 9000), expl("drop", "drop_zone"), nil, netip.AddrPort{}},
		{in, none, "udp", at(mgmt, 9000), expl("drop", "drop_zone"), nil, netip.AddrPort{}},
		{in, out.Addr, "udp", at(out, 9000), expl("drop", "drop_spoofed"), nil, netip.AddrPort{}},
		{in, second.Addr6, "udp", out.at(true, 9000), expl("drop", "drop_spoofed"), nil, netip.AddrPort{}},
		{dmz, none, "udp", at(in, 9000), expl("drop", "drop_from_dmz"), nil, netip.AddrPort{}},
		{mgmt, none, "tcp", at(out, 80), expl("pass", "pass_new_flow", "policy updates", "masquerade mgmt-external"), out, from(wan)},
		{mgmt, none, "tcp", at(out, 81), expl("drop", "drop_zone"), nil, netip.AddrPort{}},
		{out, none, "udp", at(in, 9000), expl("drop", "drop_zone"), nil, netip.AddrPort{}},
		{out, none, "udp", second.at(true, 53), expl("drop", "drop_zone"), nil, netip.AddrPort{}},
		{friend, none, "udp", second.at(true, 53), expl("pass", "pass_new_flow", "policy let-in"), second, from(friend.Addr6)},
		{out, none, "tcp", netip.AddrPortFrom(wan, 3389), expl("pass", "pass_new_flow", "forward rdp"), in, from(out.Addr)},
		{friend, none, "udp", netip.AddrPortFrom(wan, 7004), expl("pass", "pass_new_flow", "forward friends"), in, from(friend.Addr)},
		{out, none, "udp", netip.AddrPortFrom(wan, 7004), expl("host", "pass_to_host"), nil, netip.AddrPort{}},
		{second, none, "tcp", netip.AddrPortFrom(wan, 3389), expl("pass", "pass_hairpin", "forward rdp", "masquerade fixed"), in, from(fixed)},
		{second, none, "tcp", netip.AddrPortFrom(g.outside(true), 3389), expl("host", "pass_to_host"), nil, netip.AddrPort{}}, // the way back would be another
		{out, none, "tcp", netip.AddrPortFrom(g.outside(true), 3389), expl("pass", "pass_new_flow", "forward rdp6"), in, from(out.Addr6)},
		{in, none, "udp", netip.AddrPortFrom(g.Gateway.Interface("eth3").Addr.Addr(), 53), expl("host", "pass_to_host"), nil, netip.AddrPort{}},
		{in, none, "udp", netip.MustParseAddrPort("198.18.5.5:53"), expl("drop", "kernel_no_route"), nil, netip.AddrPort{}},
	} {
		t.Run(fmt.Sprintf("%s from %s to %s", c.proto, c.from.Addr, c.to), func(t *testing.T) {
			explainOne(g.with(t), c, copies, in, second, mgmt, dmz, friend, out, plain)
		})
	}
}

func explainOne(g *gate, c explainCase, copies *lab.Capture, all ...*peer) {
	const sport = 4000
	src := c.from.ip(c.to.Addr().Is6())
	q := loader.Query{Src: src, Dst: c.to.Addr(), Proto: c.proto, Port: c.to.Port(), Sport: sport}
	if c.src.IsValid() {
		src, q.Src, q.From = c.src, c.src, "internal"
	}
	ask := func() (e *loader.Explanation) {
		g.opened(func(gw *loader.Gateway) (err error) { e, err = gw.Explain(q); return err })
		return e
	}
	e := ask()
	if e.Verdict != c.want.Verdict || e.Reason != c.want.Reason || e.Policy != c.want.Policy ||
		(e.Forward == nil) != (c.want.Forward == nil) || e.Forward != nil && e.Forward.Name != c.want.Forward.Name ||
		(e.Masquerade == nil) != (c.want.Masquerade == nil) || e.Masquerade != nil && e.Masquerade.Name != c.want.Masquerade.Name {
		g.t.Errorf("explained as %+v\nwant %+v", *e, c.want)
	}
	before, text := g.reasons(), g.text()
	layers := []pkt.Layer{pkt.Ether(c.from.MAC, c.from.Gateway), header(src, c.to.Addr()), pkt.UDP(sport, c.to.Port()), gopacket.Payload(text)}
	if c.proto == "tcp" {
		layers[2] = pkt.Segment(sport, c.to.Port(), pkt.SYN, 1, 0, 0)
	}
	c.from.raw(pkt.Frame(layers...))
	if c.at != nil {
		got := c.at.wantText(text)
		to := c.to
		if e.Forward != nil {
			to = netip.MustParseAddrPort(e.Forward.To)
		}
		if got.Src.Addr() != c.seen.Addr() || got.Dst != to {
			g.t.Errorf("arrived as %s > %s, want from %s to %s", got.Src, got.Dst, c.seen, to)
		}
		if m := e.Masquerade; m != nil && !slices.Contains(m.Addresses, got.Src.Addr().String()) {
			g.t.Errorf("arrived from %s, which is not among %v", got.Src, m.Addresses)
		}
	} else {
		for _, p := range all {
			g.unseen(text, p, c.from)
		}
	}
	c.from.knock()
	if after := g.reasons(); !strings.HasPrefix(e.Reason, "kernel_") && after[e.Reason] == before[e.Reason] {
		g.t.Errorf("%s was not counted", e.Reason)
	}
	g.wantCopies(copies, text, e)
	// What has made a flow belongs to it from then on.
	if e.Reason == "pass_new_flow" {
		if e := ask(); e.Flow == nil || e.Reason != "pass_flow" || e.Verdict != "pass" {
			g.t.Errorf("once more: %+v", *e)
		}
	}
}

// reasons are the counters of all interfaces and directions.
func (g *gate) reasons() map[string]uint64 {
	g.t.Helper()
	sum := map[string]uint64{}
	for _, m := range g.status().Members {
		for _, d := range []*loader.DirectionStatus{m.Ingress, m.Egress} {
			if d == nil {
				continue
			}
			for reason, n := range d.Reasons {
				sum[reason] += n
			}
		}
	}
	return sum
}

// wantCopies: as many as there are mirrors, each with the addresses it is copied with.
func (g *gate) wantCopies(copies *lab.Capture, text string, e *loader.Explanation) {
	g.t.Helper()
	count := func(frames []lab.Frame) (n int) {
		for _, f := range frames {
			if p, err := pkt.Parse(f.Data); err == nil && string(p.Payload) == text {
				n++
			}
		}
		return n
	}
	frames, err := copies.WaitFor(func(frames []lab.Frame) bool { return count(frames) >= len(e.Mirrors) }, gateWait)
	if n := count(frames); err != nil || n != len(e.Mirrors) {
		g.t.Errorf("%d copies, want %+v; %v", n, e.Mirrors, err)
	}
}

// Questions that make no sense, and what is said of a gateway that only copies.
func TestExplainRefused(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateZones)
	a, b := netip.MustParseAddr("192.168.3.40"), netip.MustParseAddr("203.0.113.40")
	for want, q := range map[string]loader.Query{
		"give the addresses of both ends":                          {Src: a, Proto: "udp", Port: 1},
		"192.168.3.40 and 2001:db8::1 are not of one IP":           {Src: a, Dst: netip.MustParseAddr("2001:db8::1"), Proto: "udp", Port: 1},
		"packets to 224.0.0.1 are never routed":                    {Src: a, Dst: netip.MustParseAddr("224.0.0.1"), Proto: "udp", Port: 1},
		`unknown protocol "tdp"`:                                   {Src: a, Dst: b, Proto: "tdp", Port: 1},
		"tcp needs the port that is asked for":                     {Src: a, Dst: b, Proto: "tcp"},
		"icmp has no ports":                                        {Src: a, Dst: b, Proto: "icmp", Port: 1},
		`no zone "mars"; there are: external, internal, dmz, mgmt`: {Src: a, Dst: b, Proto: "icmp", From: "mars"},
		"there is no route to 198.18.1.1, so where it comes fr":    {Src: netip.MustParseAddr("198.18.1.1"), Dst: b, Proto: "icmp"},
	} {
		var err error
		g.opened(func(gw *loader.Gateway) error { _, err = gw.Explain(q); return nil })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", q, err, want)
		}
	}
	g.opened(func(gw *loader.Gateway) error {
		e, err := gw.Explain(loader.Query{Src: a, Dst: b, Proto: "icmp"})
		if err == nil && (e.Verdict != "pass" || len(e.Mirrors) != 1 || !strings.Contains(e.Why, "only copies")) {
			t.Errorf("%+v", *e)
		}
		return err
	})
	g.opened(func(gw *loader.Gateway) error {
		e, err := gw.Explain(loader.Query{Src: g.outside(false), Dst: a, Proto: "udp", Port: 9})
		if err == nil && (e.Verdict != "pass" || e.From != (loader.ExplanationEnd{}) || e.To.Zone != "internal" || len(e.Mirrors) != 1) {
			t.Errorf("%+v", *e)
		}
		return err
	})
}
