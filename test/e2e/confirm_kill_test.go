package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// All that has to do with a change that waits is killed at any moment, under
// connections that are open. What is in force is always one of the two configurations,
// status answers, and the next command comes to its end.
func TestConfirmKilled(t *testing.T) {
	seed := diceSeed(t)
	g := newGate(t, gateServers)
	k := newTalk(t)
	k.addTCP(g, "TCP from inside", g.in[1], false, netip.MustParseAddrPort(echoTCP(t, g.out[1], g.out[1].Addr.String()+":0")))
	k8 := killer{g: g.gateway, rng: rand.New(rand.NewPCG(seed, 0))}
	cut := g.file("cut.yaml", cutOff)
	old := g.rulesInForce()
	g.apply(cutOff)
	next := g.rulesInForce()
	waiting := func() { g.apply(gateServers); g.must("apply", "-f", cut, "--confirm", "1h") }

	for _, c := range []struct {
		args   string
		before func()
		after  string // what is in force then
		states []string
		again  func() // until it is so after all
	}{
		{
			"apply -f " + cut + " --confirm 1h", func() { g.apply(gateServers) }, next, []string{old, next},
			func() {
				if g.status().Pending == nil {
					g.must("apply", "-f", cut, "--confirm", "1h")
				}
			},
		},
		{"confirm", waiting, next, []string{next}, func() { g.must("confirm") }},
		{"rollback", waiting, old, []string{old, next}, func() { g.must("rollback") }},
		{
			"rollback ", func() { g.apply(gateServers); g.apply(cutOff) }, old, []string{old, next},
			func() {
				if g.rulesInForce() != old {
					g.must("rollback")
				}
			},
		},
		// Clears up behind one that has gone back by itself.
		{"flows flush --addr 192.168.3.9", func() { waiting(); g.pastDeadlineNow() }, old, []string{old}, func() { g.must("flows", "flush", "--addr", "192.168.3.9") }},
		{"apply -f " + cut, func() { waiting(); g.pastDeadlineNow() }, next, []string{old, next}, func() { g.must("apply", "-f", cut) }},
		{"detach", waiting, "", []string{next, "gone"}, func() { g.must("detach") }},
	} {
		reset := func() {
			if g.tapgate("status").code == 0 && g.status().Pending != nil {
				g.must("rollback")
			}
			c.before()
		}
		inForce := func() string {
			if r := g.tapgate("status"); r.code == 3 {
				return "gone"
			} else if r.code != 0 {
				t.Errorf("status: %s", r)
			}
			return g.rulesInForce()
		}
		reset()
		calls, _, talk := k8.traced(c.args, -1)
		if is := inForce(); c.after != "" && is != c.after {
			t.Fatalf("%q: %s: the rules are %s", c.args, talk, is)
		}
		deaths := 0
		for range stressKills(t) {
			reset()
			at := k8.rng.IntN(len(calls))
			made, died, _ := k8.traced(c.args, at)
			if !died {
				continue // it took a shorter way than the first time
			}
			deaths++
			where := fmt.Sprintf("%q killed at call %d of %d (%s)", c.args, at, len(calls), made[at])
			is, known := inForce(), false
			for _, s := range c.states {
				known = known || is == s
			}
			if !known {
				t.Errorf("%s: the rules are %s", where, is)
			}
			c.again()
			if c.after == "" {
				g.apply(gateServers)
				continue
			}
			if is := inForce(); is != c.after {
				t.Errorf("%s: after the next command the rules are %s, want %s", where, is, c.after)
			}
			if s := g.status(); len(s.Problems) > 0 {
				t.Errorf("%s: status tells of %q", where, s.Problems)
			}
			k.goOn(where)
		}
		t.Logf("%q makes %d changing calls; killed %d times", c.args, len(calls), deaths)
		if deaths == 0 {
			t.Errorf("%q was never killed", c.args)
		}
	}
	k.end()
}
