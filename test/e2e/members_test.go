package e2e

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// memberKind is an interface that stands upon another one. In its lines, NAME is the
// interface, CABLE the one below it, which is down, and MAC what the network knows.
type memberKind struct {
	name     string // also the kernel's feature
	lines    []string
	external bool // the external member is of this kind, too
	farEnds  bool // and so are the interfaces of the hosts
}

var memberKinds = []memberKind{
	{name: "bridge", lines: []string{"link add name NAME address MAC type bridge", "link set CABLE master NAME"}},
	{name: "macvlan", external: true, lines: []string{
		"link set CABLE address 02:99:00:00:00:01", // else the macvlan's would be in use
		"link add link CABLE name NAME address MAC type macvlan mode bridge"}},
	{name: "vlan", external: true, farEnds: true, lines: []string{"link add link CABLE name NAME type vlan id 7"}},
	{name: "bond", lines: []string{"link add name NAME type bond mode active-backup miimon 10", "link set CABLE master NAME"}},
}

// upon puts an interface of the kind in the place of one that has a cable: name, MAC,
// addresses and default routes are the same, so that a test does not see a difference.
func (k memberKind) upon(g *gate, h *lab.Host, ifname string) {
	g.t.Helper()
	was := h.Interface(ifname)
	fill := strings.NewReplacer("NAME", ifname, "CABLE", "cable-"+ifname, "MAC", was.MAC.String())
	lines := append([]string{"addr flush dev NAME", "link set NAME down", "link set NAME name CABLE"}, k.lines...)
	lines = append(lines, "link set CABLE up", "link set NAME up", "addr add "+was.Addr.String()+" dev NAME")
	gateway := was.Addr.Masked().Addr().Next()
	routed := h != g.Gateway
	if routed {
		lines = append(lines, "route add default via "+gateway.String())
	}
	if was.Addr6.IsValid() {
		lines = append(lines, "addr add "+was.Addr6.String()+" dev NAME nodad")
		if routed {
			lines = append(lines, "route add default via "+was.Addr6.Masked().Addr().Next().String())
		}
	}
	for _, line := range lines {
		tool(g.t, h, "ip", words(fill.Replace(line))...)
	}
	// Linux answers ARP for any address of its own: a macvlan's cable, which hears
	// what goes to all, would give its own MAC, and packets would pass beside the member.
	if err := h.Sysctl("net/ipv4/conf/cable-"+ifname+"/arp_ignore", "1"); err != nil {
		g.t.Fatal(err)
	}
}

// running waits until the interface has its carrier: the kernel tells some of them late.
func (g *gate) running(h *lab.Host, ifname string) {
	g.t.Helper()
	eventually(g.t, func() (complaint string) {
		err := h.Do(func() error {
			i, err := net.InterfaceByName(ifname)
			if err == nil && i.Flags&net.FlagRunning == 0 {
				complaint = h.Name + " " + ifname + " has no carrier"
			}
			return err
		})
		if err != nil {
			complaint = err.Error()
		}
		return complaint
	})
}

// memberRules translates, and lets the outside ping: all else from there is dropped.
const memberRules = fastMirrors + `
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true}
policies:
  - {name: ping, from: external, to: internal, proto: icmp, action: accept}
  - {name: ping6, from: external, to: internal, proto: icmpv6, action: accept}
`

// A member may be any interface that looks like Ethernet: what goes by a bridge, a
// macvlan, a VLAN or a bond is judged, translated, fast and copied as it is by a cable.
// Programs are attached as the kernel likes best: older ones have clsact, newer ones TCX.
func TestShortMembers(t *testing.T) {
	t.Parallel()
	for _, k := range memberKinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			kernels.Require(t, k.name)
			g := newDirect(t, lab.RoutedOutside())
			k.upon(g, g.Gateway, "eth3")
			if k.external {
				k.upon(g, g.Gateway, "eth0")
			}
			if k.farEnds {
				k.upon(g, g.in[0], "eth0")
				k.upon(g, g.out[0], "eth0")
			}
			g.running(g.Gateway, "eth3")
			for _, h := range []*lab.Host{g.Gateway, g.in[0], g.out[0]} {
				g.running(h, "eth0")
			}
			g.apply(memberRules)
			g.passes()
			if k.name == "macvlan" {
				g.answersForMacvlan("cable-eth3")
			}
		})
	}
}

// answersForMacvlan looks for the word about a parent that answers for its macvlan, too.
func (g *gate) answersForMacvlan(parent string) {
	g.t.Helper()
	word := fmt.Sprintf("sysctl -w net/ipv4/conf/%s/arp_ignore=1", parent)
	said := func() bool {
		r := g.tapgateIn(memberRules, "check", "-f", "-")
		return strings.Contains(r.stdout+r.stderr, word)
	}
	if said() {
		g.t.Error("check warns of a parent that does not answer")
	}
	if err := g.Gateway.Sysctl("net/ipv4/conf/"+parent+"/arp_ignore", "0"); err != nil {
		g.t.Fatal(err)
	}
	if !said() {
		g.t.Error("check says nothing of a parent that answers")
	}
}

// passes sends a bit of everything through the gateway, and compares.
func (g *gate) passes() {
	g.t.Helper()
	capture, err := g.Sensor.Capture("eth0", lab.Incoming)
	if err != nil {
		g.t.Fatal(err)
	}
	g.forwards()
	server, outside := g.in[0], g.out[0]
	g.families(func(g *gate, v6 bool) {
		far, near := outside.Addr, server.Addr
		if v6 {
			far, near = outside.Addr6, server.Addr6
		}
		echoAll(g.t, server, far, 3, 56)
		echoAll(g.t, outside, near, 3, 56)
		in, out := g.pair()
		for _, proto := range []uint8{pkt.ProtoUDP, pkt.ProtoTCP} {
			d := g.newDialogue(proto, in, 5000, out, 9000, v6)
			d.open()
			d.takesFast()
			d.accounts(true)
			d.mirrored(capture, fastCopies[0], atInternal)
			d.mirrored(capture, fastCopies[1], atExternal)
		}
		text := g.text()
		out.udp(9001, in.at(v6, 5001), text)
		g.unseen(text, in, out)
		// Segments and checksums that are left to hardware.
		talkTCP(g.t, server, echoTCP(g.t, outside, net.JoinHostPort(far.String(), "0")), 100_000)
	})
	g.dropped("eth3")

	var s *loader.Status
	eventually(g.t, func() (complaint string) {
		s = g.checkLedgers()
		for i, m := range s.Mirrors {
			seen := uint64(len(lab.Select(capture.Frames(), func(f lab.Frame) bool { return bytes.Equal(f.Data[:6], fastCopies[i]) })))
			if m.Copied != m.Matched || m.Copied.Packets != seen || seen < 200 {
				complaint += fmt.Sprintf("%s: captured %d of %+v\n", m.Name, seen, m.Ledger)
			}
		}
		return complaint
	})
	if len(s.Problems) > 0 {
		g.t.Errorf("status tells problems: %q", s.Problems)
	}
}
