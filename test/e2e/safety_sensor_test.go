package e2e

import (
	"net"
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// trouble is something that happens to the sensor or the link to it.
type trouble struct {
	name     string
	features []string // of the kernel
	up       bool     // the link is up meanwhile
	begin    func(g *gateway)
	// settled is asked while packets flow; nil: at once.
	settled func(g *gateway, b *books) bool
	// verdict judges what became of the copies meanwhile.
	verdict func(is period) bool
	end     func(g *gateway, b *books)
}

var movedMAC = net.HardwareAddr{2, 0, 0x5e, 0, 0x53, 7}

func allSkipped(reason string) func(period) bool {
	return func(is period) bool { return is.copied == 0 && is.skipped[reason] == is.matched }
}

func qdiscTrouble(name string, features []string, qdiscs ...string) trouble {
	return trouble{
		name: name, features: features, up: true,
		begin: func(g *gateway) {
			for _, q := range qdiscs {
				inHost(g.t, g.Gateway, "tc", words("qdisc add dev eth2 "+q)...)
			}
		},
		verdict: func(is period) bool { return is.copied == is.matched && is.drops > 0 && is.captured > 0 },
		end: func(g *gateway, _ *books) {
			inHost(g.t, g.Gateway, "tc", "qdisc", "del", "dev", "eth2", "root")
		},
	}
}

// allCopied is how it is without trouble.
func allCopied(is period) bool {
	return is.copied == is.matched && is.captured == is.copied && is.refused == 0 && is.drops == 0
}

var troubles = []trouble{
	{
		name:    "sensor down",
		begin:   func(g *gateway) { g.switchLink(g.Sensor, "eth0", false) },
		settled: func(g *gateway, _ *books) bool { return !g.sensorLink().Carrier },
		verdict: func(is period) bool { return is.copied == is.matched && is.refused == is.copied },
		end:     func(g *gateway, _ *books) { g.switchLink(g.Sensor, "eth0", true) },
	},
	{
		name:    "dmz interface down",
		begin:   func(g *gateway) { g.switchLink(g.Gateway, "eth2", false) },
		settled: func(g *gateway, _ *books) bool { return !g.sensorLink().Up },
		verdict: func(is period) bool { return is.copied == is.matched && is.refused == is.copied },
		end:     func(g *gateway, _ *books) { g.switchLink(g.Gateway, "eth2", true) },
	},
	{
		name:    "removed",
		begin:   func(g *gateway) { inHost(g.t, g.Sensor, "ip", "link", "del", "eth0") },
		verdict: allSkipped("clone_error"),
		end: func(g *gateway, b *books) {
			inHost(g.t, g.Gateway, "ip", "link", "add", "eth2", "address", g.Gateway.Interface("eth2").MAC.String(),
				"type", "veth", "peer", "name", "eth0", "address", g.Sensor.MAC.String(), "netns", g.Sensor.Name)
			inHost(g.t, g.Gateway, "ip", "addr", "add", "192.168.4.1/24", "dev", "eth2")
			inHost(g.t, g.Sensor, "ip", "addr", "add", "192.168.4.2/24", "dev", "eth0")
			g.switchLink(g.Sensor, "eth0", true)
			g.switchLink(g.Gateway, "eth2", true)
			b.reopen()
			g.apply(example)
		},
	},
	{
		name: "moved to another MAC", up: true,
		begin: func(g *gateway) {
			if err := g.Sensor.SetMAC("eth0", movedMAC); err != nil {
				g.t.Fatal(err)
			}
		},
		settled: func(_ *gateway, b *books) bool { return b.lastTo(movedMAC) },
		verdict: allCopied,
		end: func(g *gateway, _ *books) {
			if n := g.mirror("ids").Targets[0].Neighbour; n == nil || n.Changes != 1 || n.MAC != movedMAC.String() {
				g.t.Errorf("status does not tell of the MAC that changed: %+v", n)
			}
		},
	},
	{
		// The link takes the questions, and nobody answers.
		name: "unresolved", up: true,
		begin: func(g *gateway) { inHost(g.t, g.Sensor, "ip", "addr", "del", "192.168.4.2/24", "dev", "eth0") },
		settled: func(g *gateway, _ *books) bool {
			return g.mirror("ids").Targets[0].Neighbour.State == "failed"
		},
		verdict: allSkipped("unresolved"),
		end: func(g *gateway, _ *books) {
			inHost(g.t, g.Sensor, "ip", "addr", "add", "192.168.4.2/24", "dev", "eth0")
		},
	},
	qdiscTrouble("congested tbf", []string{"tbf"}, "root tbf rate 4mbit burst 4k limit 8k"),
	// So slow that next to nothing leaves: full all the time.
	qdiscTrouble("stalled tbf", []string{"tbf"}, "root tbf rate 256kbit burst 1600 limit 3200"),
	// It takes every packet and drops others, which no result tells of.
	qdiscTrouble("congested fq_codel", []string{"tbf", "fq_codel"},
		"root handle 1: tbf rate 4mbit burst 4k limit 100k", "parent 1: fq_codel limit 8 flows 4 target 1ms interval 10ms"),
	{
		// Without the feature only apply looks at the MTU.
		name: "smaller MTU of the dmz interface", features: []string{"check_mtu"}, up: true,
		begin: func(g *gateway) { g.setMTU(g.Gateway, "eth2", 1280) },
		verdict: func(is period) bool {
			return is.skipped["too_big"] > 0 && is.copied+is.skipped["too_big"] == is.matched && is.captured == is.copied
		},
		end: func(g *gateway, _ *books) { g.setMTU(g.Gateway, "eth2", 1500) },
	},
	{
		name: "smaller MTU of the sensor", up: true,
		begin: func(g *gateway) { g.setMTU(g.Sensor, "eth0", 1280) },
		verdict: func(is period) bool {
			return is.copied == is.matched && is.drops > 0 && is.drops == is.refused
		},
		end: func(g *gateway, _ *books) { g.setMTU(g.Sensor, "eth0", 1500) },
	},
}

func (g *gateway) switchLink(h *lab.Host, ifname string, up bool) {
	g.t.Helper()
	if err := h.SetUp(ifname, up); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) setMTU(h *lab.Host, ifname string, bytes int) {
	g.t.Helper()
	if err := h.SetMTU(ifname, bytes); err != nil {
		g.t.Fatal(err)
	}
}

// sensorLink is the link to the sensor as status tells it.
func (g *gateway) sensorLink() (link loader.LinkStatus) {
	g.t.Helper()
	for _, l := range g.status().Links {
		if l.Interface == "eth2" {
			link = l
		}
	}
	return link
}

// Promise 1: whatever becomes of the sensor, production loses nothing, keeps
// its path MTU and hears no ICMP. Promise 2: every copy is accounted for.
func TestSafetySensor(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		for _, trouble := range troubles {
			t.Run(strings.ReplaceAll(trouble.name, " ", "_"), func(t *testing.T) {
				for _, f := range trouble.features {
					kernels.Require(t, f)
				}
				g := newGateway(t)
				g.kind = kind
				p := newProduction(g)
				g.apply(example)
				trouble.run(g, p)
				p.check()
			})
		}
	})
}

func (tr trouble) run(g *gateway, p *production) {
	b := newBooks(g)
	if is := b.pass(p, 300, true); !allCopied(is) {
		g.t.Fatalf("before: not every packet was copied: %+v", is)
	}
	p.during(func() {
		tr.begin(g)
		if tr.settled != nil {
			waitFor(g.t, tr.name, func() bool { return tr.settled(g, b) })
		}
	})
	if is := b.pass(p, 3000, tr.up); !tr.verdict(is) {
		g.t.Errorf("meanwhile the copies should have gone another way: %+v", is)
	}
	p.transfer(4 << 20)
	g.checkLedgers()

	p.during(func() { tr.end(g, b) })
	last := period{}
	waitFor(g.t, "every packet is copied again", func() bool {
		last = b.pass(p, 100, true)
		return allCopied(last)
	})
	if is := b.pass(p, 1000, true); !allCopied(is) {
		g.t.Errorf("afterwards: not every packet was copied: %+v", is)
	}
}
