package e2e

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// controlWord is the word that says which generation is in force: headers/abi.h.
func (g *gateway) controlMap() *ebpf.Map {
	g.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(g.stateDir(), "maps", "tg_control"), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return m
}

func (g *gateway) controlWord() (word uint64) {
	g.t.Helper()
	m := g.controlMap()
	defer m.Close()
	if err := m.Lookup(uint32(0), &word); err != nil {
		g.t.Fatal(err)
	}
	return word
}

// pastDeadlineNow has the deadline of a change that waits be long ago.
func (g *gateway) pastDeadlineNow() {
	g.t.Helper()
	word := g.controlWord()
	if word>>2 == 0 {
		g.t.Fatal("no change waits")
	}
	m := g.controlMap()
	defer m.Close()
	if err := m.Put(uint32(0), word&3|4); err != nil {
		g.t.Fatal(err)
	}
}

// readdress replaces the gateway's outside address.
func (g *gate) readdress(from, to string) {
	g.t.Helper()
	if err := g.Gateway.Sysctl("net/ipv4/conf/eth0/promote_secondaries", "1"); err != nil {
		g.t.Fatal(err)
	}
	g.ip(g.Gateway, "addr add "+to+" dev eth0")
	g.ip(g.Gateway, "addr del "+from+" dev eth0")
}

// An agent runs while a change waits: an outside address that changes then is used by the
// change and by what is behind it, and when the change has gone back the agent clears up.
func TestConfirmAgent(t *testing.T) {
	t.Parallel()
	g := newGate(t, gateBoth)
	in, out := g.pair()
	const again = gateZones + `
nat:
  masquerade:
    - {name: other, from: internal, to: external}
`
	a := g.agent(nil, "--listen", "")
	g.try(again, "1h")
	was, now := g.outside(false), netip.MustParseAddr("203.0.113.77")
	if from := g.mapUDP(in, 7000, out, 9000, false); from.Addr() != was {
		t.Errorf("while it waits flows come from %s", from)
	}
	g.readdress(was.String()+"/24", now.String()+"/24")
	a.says("outside addresses have changed")
	eventually(t, func() string {
		if s := g.status().Gateway.Outside[0].IPv4; s != now.String() {
			return "the outside address is " + s
		}
		return ""
	})
	if s := g.status(); s.Pending == nil {
		t.Error("nothing waits any more when the address has changed")
	}
	if from := g.mapUDP(in, 7001, out, 9000, false); from.Addr() != now {
		t.Errorf("while it waits, after the address has changed, flows come from %s", from)
	}

	g.pastDeadlineNow()
	if from := g.mapUDP(in, 7002, out, 9000, false); from.Addr() != now {
		t.Errorf("when it has gone back flows come from %s", from)
	}
	a.says("a change was not confirmed in time")
	eventually(t, func() string {
		if word := g.controlWord(); word>>2 != 0 {
			return "nobody has cleared up: the word still has a deadline"
		}
		return ""
	})
	s := g.status()
	if s.Returned == nil || len(s.Gateway.Masquerades) != 2 || s.Gateway.Outside[0].IPv4 != now.String() || len(s.Problems) > 0 {
		t.Errorf("after the agent has cleared up: %+v %+v %q", s.Returned, s.Gateway, s.Problems)
	}
	if from := g.mapUDP(in, 7003, out, 9000, false); from.Addr() != now {
		t.Errorf("after the agent has cleared up flows come from %s", from)
	}
}

// An interface that has lost our programs while a change waits gets them back when it
// does no longer.
func TestConfirmAgentWaits(t *testing.T) {
	t.Parallel()
	g := newGateLab(t)
	g.kind = "clsact"
	g.apply(gateBoth)
	in, out := g.pair()
	a := g.agent(nil, "--listen", "", "--attach-kind", "clsact")
	g.try(gateZones+"nat: {masquerade: [{name: other, from: internal, to: external}]}\n", "1h")
	inHost(t, g.Gateway, "tc", "qdisc", "del", "dev", "eth3", "clsact")
	a.says("applying again when the change that waits is confirmed")
	g.must("confirm")
	a.says("interfaces have changed: applying again\"")
	eventually(t, func() string { return strings.Join(g.status().Problems, "; ") })
	g.mapUDP(in, 7000, out, 9000, false)
}

// The agent takes away what a first configuration has left that nobody confirmed.
func TestConfirmAgentFirst(t *testing.T) {
	t.Parallel()
	g := newGateLab(t)
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := g.Gateway.Sysctl(key, "0"); err != nil {
			t.Fatal(err)
		}
	}
	before := g.list()
	g.try(gateBoth, "1h")
	a := g.agent(nil, "--listen", "")
	g.pastDeadlineNow()
	a.says("the first configuration was not confirmed in time: cleared away")
	g.unchanged(before, "afterwards")
	// And follows the next one.
	g.apply(gateBoth)
	eventually(t, func() string {
		if !g.status().Gateway.Followed {
			return "the agent does not follow"
		}
		return ""
	})
	a.end()
	g.must("detach")
}
