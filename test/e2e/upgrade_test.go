package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/builds"
)

// Upgrades back and forth between two builds at any moment (TAPGATE_UPGRADES says how
// many; fifty are in TestStressOperations), while packets flow both ways as fast as both ends take them and TCP
// connections talk: no packet is lost, no connection breaks, none passes a member unseen,
// and every one of the internal interface is copied. Also where the builds hand each
// other something else, so that the kernel forwards meanwhile.
func TestUpgradeUnderTraffic(t *testing.T) {
	for _, c := range []struct {
		name  string
		edits []builds.Edit
		n     int
	}{
		{"same", []builds.Edit{builds.Programs}, 12},
		{"handover", []builds.Edit{builds.FastMagic, builds.Handover}, 6},
	} {
		other := anotherBuild(t, c.edits...)
		t.Run(c.name, func(t *testing.T) {
			eachKindAlone(t, func(t *testing.T, kind loader.AttachKind) {
				upgrades(t, kind, other, envNumber(t, "TAPGATE_UPGRADES", c.n), c.name == "handover")
			})
		})
	}
}

func upgrades(t *testing.T, kind loader.AttachKind, other string, n int, throughKernel bool) {
	dice := rand.New(rand.NewPCG(diceSeed(t), 0))
	g := newGateLab(t)
	g.kind = kind
	g.apply(changeConfig)
	p := newStreams(g.gateway)
	members := []string{"eth0", "eth3"}
	before := map[string]passed{}
	for _, m := range members {
		before[m] = g.passedAtRest(m)
	}
	k := openTalk(g)
	k.goOn("before")
	g.forwards()
	halves, fast := len(g.readTable().sessions), g.counts()

	begin, arrived := time.Now(), uint64(0)
	p.during(func() {
		begin, arrived = time.Now(), p.up.arrived.Load()+p.down.arrived.Load()
		for i := range n {
			time.Sleep(time.Duration(dice.IntN(50)) * time.Millisecond)
			to := []string{other, binary}[i%2]
			r := g.by(to).must("upgrade")
			if !strings.Contains(r.stdout, "in place of build") || strings.Contains(r.stdout, "the kernel forwards") != throughKernel || r.stderr != "" {
				t.Errorf("upgrade %d: %s", i, r)
			}
			if i < 4 {
				g.allRun(fmt.Sprintf("upgrade %d", i))
				if is := g.ranBy(binary, other); is != to {
					t.Errorf("after upgrade %d the programs are of %q, want %q", i, is, to)
				}
				k.goOn("after an upgrade")
			}
		}
	})
	took := time.Since(begin)
	arrived = p.up.arrived.Load() + p.down.arrived.Load() - arrived
	rate := float64(arrived) / took.Seconds()
	took1 := fmt.Sprintf("%d upgrades in %v, %.0f packets a second meanwhile", n, took, rate)
	quick := g.fastSince(fast, "eth3 in") + g.fastSince(fast, "eth0 in")
	t.Logf("%s; %d of %d took the fast path", took1, quick, arrived)
	if rate < leastRate {
		t.Error("that is not the traffic that this test is about")
	}
	if !throughKernel && quick < int(arrived/2) {
		t.Error("less than half of them took the fast path")
	}
	p.check()
	k.goOn("after all upgrades")
	k.end()
	g.forwards()
	g.by(binary).must("upgrade") // or already so
	g.allRun("after all upgrades")
	for _, m := range members {
		b, now := before[m], g.passedAtRest(m)
		if in, seen := now.in-b.in, now.seenIn-b.seenIn; in != seen {
			t.Errorf("%s: %d packets came in, and the programs have seen %d", m, in, seen)
		}
		if out, seen := now.out-b.out, now.seenOut-b.seenOut; out != seen {
			t.Errorf("%s: %d packets left, and the programs have seen %d", m, out, seen)
		}
	}
	if m := g.checkLedgers().Mirrors[0]; m.Copied != m.Matched || m.Copied.Packets < arrived {
		t.Errorf("not every packet was copied: %+v", m.Ledger)
	}
	if table := g.consistent(); len(table.sessions) != halves {
		t.Errorf("there were %d halves of flows, and there are %d: %s", halves, len(table.sessions), table.origins())
	}
}

// passedAtRest is passedBy once nothing moves.
func (g *gateway) passedAtRest(device string) (p passed) {
	g.t.Helper()
	waitFor(g.t, "the counters of "+device+" come to rest", func() bool {
		before := p
		p = g.passedBy(device)
		return p == before
	})
	return p
}

// What there is nothing to do about, or that cannot be done, changes nothing and says why.
func TestUpgradeRefused(t *testing.T) {
	other := anotherBuild(t, builds.Programs)
	layout := anotherBuild(t, builds.Layout)
	g := newGate(t, changeConfig)
	g.says(g.must("upgrade"), "already so")
	p := newStreams(g.gateway)
	serial := g.status().Serial
	p.during(func() {
		r := g.by(other).must("upgrade", "--dry-run")
		g.says(r, "in place of build", "eth0", "eth2", "eth3", "eth4", "dry run: nothing was changed")
		if is := g.ranBy(binary, other); is != binary {
			t.Errorf("after a dry run the programs are of %q", is)
		}
		if r := g.by(other).tapgateIn(changeConfig, "apply", "-f", "-"); r.code != 1 || !strings.Contains(r.stderr, `"tapgate upgrade"`) {
			t.Errorf("apply of another build: %s", r)
		}
		for _, args := range [][]string{{"upgrade"}, {"upgrade", "--dry-run"}} {
			r := g.by(layout).tapgate(args...)
			if r.code != 1 || r.stdout != "" {
				t.Errorf("%v across layouts: %s", args, r)
			}
			g.says(r, fmt.Sprintf("layout %d, and this tapgate knows %d", loader.Layout, loader.Layout+100), "nothing was changed",
				"tapgate config show >FILE", "tapgate detach --force", "tapgate apply -f FILE", "all translated connections break")
		}
		g.allRun("after what was refused")
		if s := g.status(); s.Serial != serial || len(s.Problems) > 0 {
			t.Errorf("after what was refused: serial %d, before %d; %q", s.Serial, serial, s.Problems)
		}
	})
	p.check()

	// What it says to do instead works.
	shown := g.by(layout).must("config", "show").stdout
	if shown != changeConfig {
		t.Errorf("the tapgate of another layout shows %s", shown)
	}
	g.by(layout).must("detach", "--force")
	g.by(layout).apply(shown)
	g.by(layout).wantProblems()
	g.by(layout).must("detach")
	if r := g.by(other).tapgate("upgrade"); r.code != 3 {
		t.Errorf("where there is nothing: %s", r)
	}
}

// An upgrade is killed at any of its steps, under traffic. Whatever command comes next,
// of whichever build, finds the programs of one of them, all of them; nothing is lost
// and no connection breaks.
func TestUpgradeKilled(t *testing.T) {
	edits := map[loader.AttachKind][]builds.Edit{
		loader.AttachTCX: {builds.Programs}, loader.AttachClsact: {builds.FastMagic, builds.Handover},
	}
	eachKindAlone(t, func(t *testing.T, kind loader.AttachKind) { killUpgrades(t, kind, anotherBuild(t, edits[kind]...)) })
}

func killUpgrades(t *testing.T, kind loader.AttachKind, other string) {
	dice := rand.New(rand.NewPCG(diceSeed(t), 0))
	g := newGateLab(t)
	g.kind = kind
	empty := tree(t, g.bpffs)
	g.apply(changeConfig)
	p := newStreams(g.gateway)
	p.up.pace, p.down.pace = 2*time.Millisecond, 2*time.Millisecond // time for the commands
	k := openTalk(g)
	k.goOn("before")
	kill := killer{g: g.by(other).gateway, rng: dice}
	calls, _, talk := kill.traced("upgrade", -1)
	if is := g.ranBy(binary, other); is != other || len(calls) < 20 {
		t.Fatalf("upgrade: the programs are of %q, %d calls: %s", is, len(calls), talk)
	}
	at := points(t, calls, dice)
	// All steps between the first pin and the last unlink matter, and most.
	for i, c := range calls {
		if c == "link_update" || c == "rename" || c == "netlink" && kind == loader.AttachClsact && dice.IntN(8) == 0 {
			at = append(at, i)
		}
	}
	ended := map[string]int{}
	p.during(func() {
		for i, n := range at {
			g.must("upgrade")
			made, died, talk := kill.traced("upgrade", n)
			if !died {
				continue
			}
			where := fmt.Sprintf("killed at call %d of %d (%s)", n, len(calls), made[n])
			next := [...]struct{ build, args string }{
				{binary, "status"}, {other, "status"}, {binary, "upgrade"}, {other, "upgrade"}, {binary, "flows"},
				{other, "mirror list"}, {other, "flows flush --port 9"}, {binary, "explain 192.168.3.2 203.0.113.8 tcp 80"},
			}[(i+n)%8]
			r := g.by(next.build).tapgate(words(next.args)...)
			refused := strings.HasPrefix(next.args, "flows flush") && strings.Contains(r.stderr, "tapgate upgrade")
			if r.code != 0 && !refused {
				t.Errorf("%s (%s): %s: %s", where, talk, next.args, r)
			}
			g.allRun(where + ", then " + next.args)
			is := g.ranBy(binary, other)
			if is == "" || strings.HasPrefix(next.args, "upgrade") && is != next.build {
				t.Errorf("%s: after %s the programs are of %q", where, next.args, is)
			}
			ended[is]++
			k.goOn(where)
			g.forwards()
		}
	})
	t.Logf("killed %d times; then %d times the programs of before ran, %d times the new ones", ended[binary]+ended[other], ended[binary], ended[other])
	if ended[binary] == 0 || ended[other] == 0 {
		t.Error("it always ended the same way: the test sees too little")
	}
	p.check()
	k.goOn("after all")
	k.end()
	g.must("upgrade")
	if problems := g.status().Problems; len(problems) > 0 {
		t.Errorf("status tells of %q", problems)
	}
	g.by(other).must("upgrade")
	g.by(other).must("detach")
	if left := tree(t, g.bpffs); len(left) != len(empty) {
		t.Errorf("after detach there is %v", left)
	}
}
