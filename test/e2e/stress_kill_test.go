package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"

	pkt "tapgate/test/packet"
)

// rules are what is in force, as status tells it.
func (g *gate) rulesInForce() string {
	g.t.Helper()
	s := g.status().Gateway
	if s == nil {
		return "nothing"
	}
	var all []string
	for _, r := range s.Forwards {
		all = append(all, "forward "+r.Name+": "+r.Rule)
	}
	for _, r := range s.Masquerades {
		all = append(all, "masquerade "+r.Name+": "+r.Rule)
	}
	for _, r := range s.Policies {
		all = append(all, "policy "+r.Name+": "+r.Rule)
	}
	return strings.Join(all, "; ")
}

// stressKills is how often each command is killed; TAPGATE_KILLS says otherwise.
func stressKills(t *testing.T) int {
	t.Helper()
	s := os.Getenv("TAPGATE_KILLS")
	if s == "" || s == "all" {
		return 4
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("TAPGATE_KILLS: %v", err)
	}
	return n
}

// Commands that change rules and flows are killed at any moment, under traffic: the
// rules are the old ones or the new ones, the same command again succeeds, no
// packet is lost, no connection breaks, and the table stays whole.
func TestStressKilled(t *testing.T) {
	seed := diceSeed(t)
	g := newGate(t, changeConfig)
	p := newStreams(g.gateway)
	p.up.pace, p.down.pace = 5*time.Millisecond, 5*time.Millisecond // time for the commands
	k := newTalk(t)
	k.addTCP(g, "TCP from inside", g.in[1], false, netip.MustParseAddrPort(echoTCP(t, g.out[1], g.out[1].Addr.String()+":0")))
	echoTCP(t, g.in[0], g.in[0].Addr.String()+":4000")
	k.addTCP(g, "TCP from outside", g.out[1], false, netip.AddrPortFrom(g.outside(false), 4000))

	// A host whose flows are flushed, and come again.
	victim, out := g.station(atInside, 0), g.station(atOutside, 0)
	stop, stopped := make(chan struct{}), sync.WaitGroup{}
	halt := sync.OnceFunc(func() { close(stop); stopped.Wait() })
	defer halt()
	stopped.Go(func() {
		for n := uint16(0); ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			if err := victim.Send(victim.frame(out.Addr, pkt.UDP(5000+n%50, 9000), gopacket.Payload("victim"))); err != nil {
				t.Error(err)
				return
			}
		}
	})

	const other = "forward add rdp --in external --proto tcp --port 3389 --to 192.168.3.3:3389"
	config := g.Dir + "/other.yaml"
	if err := os.WriteFile(config, []byte(changedConfigs()[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	k8 := killer{g: g.gateway, rng: rand.New(rand.NewPCG(seed, 0))}
	p.during(func() {
		for _, c := range []string{
			"apply -f " + config,
			other,
			"forward del web",
			"masquerade del all",
			"flows flush --addr " + victim.Addr.String(),
		} {
			g.apply(changeConfig)
			old := g.rulesInForce()
			calls, _, talk := k8.traced(c, -1)
			next := g.rulesInForce()
			if flush := strings.HasPrefix(c, "flows"); len(calls) == 0 || flush != (old == next) {
				t.Errorf("%q: %s; the rules were %s and are %s", c, talk, old, next)
				continue
			}
			deaths, news := 0, 0
			for range stressKills(t) {
				g.apply(changeConfig)
				at := k8.rng.IntN(len(calls))
				made, died, _ := k8.traced(c, at)
				if !died {
					continue // it took a shorter way than the first time
				}
				deaths++
				where := fmt.Sprintf("%q killed at call %d of %d (%s)", c, at, len(calls), made[at])
				again := false // nothing is left to do
				switch is := g.rulesInForce(); is {
				case old:
				case next:
					again = true
					news++
				default:
					t.Errorf("%s: the rules are neither %s nor %s, but %s", where, old, next, is)
				}
				k.goOn(where)
				if r := g.tapgate(words(c)...); r.code != 0 && !again {
					t.Errorf("%s: the same again: %s", where, r)
				}
				if is := g.rulesInForce(); is != next {
					t.Errorf("%s: after the same again the rules are %s, want %s", where, is, next)
				}
				if s := g.status(); len(s.Problems) > 0 {
					t.Errorf("%s: status tells of %q", where, s.Problems)
				}
			}
			t.Logf("%q makes %d changing calls; killed %d times, %d times the new rules were in force", c, len(calls), deaths, news)
			if deaths == 0 {
				t.Errorf("%q was never killed", c)
			}
		}
	})
	p.check()
	k.goOn("after all")
	k.end()
	halt()
	g.fenceBoth(victim)
	g.consistent()
	g.empty()
}
