package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// changeConfig is the configuration that changes begin with and come back to. Its
// masquerade and its forwards are those of the connections that are open.
const changeConfig = gateZones + `
nat:
  masquerade:
    - {name: all, from: internal, to: external, ipv6: true}
  forwards:
    - {name: web, in: external, proto: tcp, port: 4000, to: "192.168.3.2:4000"}
policies:
  - {name: no-telnet, from: internal, to: external, proto: tcp, ports: [23], action: drop}
`

// changedConfigs differ from it, each in another rule, also in those by which
// connections are open.
func changedConfigs() (all []string) {
	for _, c := range [][2]string{
		{"ipv6: true}", `ipv6: true, ports: "20000-30000"}`},
		{"ipv6: true}", "ipv6: true, filtering: endpoint-independent}"},
		{"ipv6: true}", "ipv6: true, sources: [192.168.3.0/25, \"2001:db8:3::/64\"]}"},
		{`to: "192.168.3.2:4000"}`, `to: "192.168.3.3:4000"}`},
		{`to: "192.168.3.2:4000"}`, `to: "192.168.3.2:4000", sources: [198.51.100.0/24], limit: {rate: 1, per_remote: 1}}`},
		{"    - {name: web,", "    - {name: other, in: external, proto: udp, port: \"5000-5999\", to: \"192.168.3.3:5000-5999\"}\n    - {name: web,"},
		{"nat:\n", "nat:\n  exclude: [198.51.100.0/24]\n"},
		{"nat:\n", "nat:\n  clamp_mss: true\n"},
		{"nat:\n", "nat:\n  max_flows_per_host: 5000\n"},
		{"nat:\n", "nat:\n  timeouts: {udp: 600s, tcp_opening: 300s, icmp: 90s}\n"},
		{"action: drop}", "action: drop, log: true}"},
		{"policies:\n", "policies:\n  - {name: no-net, from: internal, to: external, destinations: [198.51.100.0/24], action: drop}\n"},
		{"policies:\n", "policies:\n  - {name: nothing-new, from: internal, to: external, action: drop}\n"},
		{"interfaces: [eth3]", "interfaces: [eth3], prefixes: [10.3.0.0/16]"},
	} {
		if strings.Count(changeConfig, c[0]) != 1 {
			panic(c[0])
		}
		all = append(all, strings.Replace(changeConfig, c[0], c[1], 1))
	}
	return all
}

// changeCommands are commands by which rules come and go one by one.
var changeCommands = []string{
	"forward add rdp --in external --proto tcp --port 3389 --to 192.168.3.3:3389",
	"forward add dns --in external --proto udp --port 53 --to [2001:db8:3::3]:5353 --rate 100 --rate-per-remote 10",
	"forward del web",
	"forward del rdp",
	"forward add web --in external --proto tcp --port 4000 --to 192.168.3.2:4000",
	"forward del dns",
	"masquerade add lab --from internal --to external --source 192.168.3.128/25 --ports 40000-40099",
	"masquerade del all",
	"masquerade add all --from internal --to external --ipv6",
	"masquerade del lab",
	"mirror add second --zone internal --l2 eth2 --mac 02:00:5e:00:53:01",
	"mirror del second",
}

// openTalk are TCP connections through a gateway with changeConfig, from either side.
func openTalk(g *gate) *talk {
	g.t.Helper()
	k := newTalk(g.t)
	for _, v6 := range []bool{false, true} {
		at := echoTCP(g.t, g.out[1], netip.AddrPortFrom(addrOf(g.out[1], v6), 0).String())
		k.addTCP(g, fmt.Sprintf("TCP from inside, IPv6 %v", v6), g.in[1], v6, netip.MustParseAddrPort(at))
	}
	echoTCP(g.t, g.in[0], g.in[0].Addr.String()+":4000")
	k.addTCP(g, "TCP from outside", g.out[1], false, netip.AddrPortFrom(g.outside(false), 4000))
	return k
}

// Every rule is changed, a thousand changes in a row (TAPGATE_CHANGES says otherwise),
// while packets flow both ways, numbered and as fast as both ends take them, and TCP
// connections talk in both directions: nothing is lost, no connection breaks, and the
// table is what it was. Most packets take the fast path.
func TestStressChanges(t *testing.T) {
	g := newGate(t, changeConfig)
	p := newStreams(g.gateway)
	k := openTalk(g)
	k.goOn("before")
	before := len(g.readTable().sessions)

	g.forwards()
	counted := g.counts()
	configs := changedConfigs()
	n := envNumber(t, "TAPGATE_CHANGES", 1000)
	begin, sent := time.Now(), p.up.sent+p.down.sent
	p.during(func() {
		begin, sent = time.Now(), p.up.arrived.Load()+p.down.arrived.Load()
		for made := 0; made < n; {
			for i, config := range configs {
				g.apply(config)
				if made++; made >= n {
					break
				}
				if i%4 == 3 {
					k.goOn("after a change")
				}
			}
			g.apply(changeConfig)
			for _, c := range changeCommands {
				g.must(words(c)...)
				if made++; made >= n {
					break
				}
			}
			g.apply(changeConfig)
			made += 2
		}
	})
	took := time.Since(begin)
	arrived := p.up.arrived.Load() + p.down.arrived.Load() - sent
	fast := g.fastSince(counted, "eth3 in") + g.fastSince(counted, "eth0 in")
	rate := float64(arrived) / took.Seconds()
	t.Logf("%d changes in %v, %.0f packets a second meanwhile; %d of %d took the fast path", n, took, rate, fast, arrived)
	if rate < leastRate {
		t.Error("that is no stream")
	}
	if fast < int(arrived/2) {
		t.Error("that is less than half of them")
	}
	p.check()
	k.goOn("after all changes")
	k.end()
	if table := g.consistent(); len(table.sessions) != before {
		t.Errorf("there were %d halves of flows, and there are %d: %s", before, len(table.sessions), table.origins())
	}
}
