package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"tapgate/test/builds"
)

// operated is a gateway in the hands of somebody who changes it all the time, and what
// the last command that succeeded has said.
type operated struct {
	*gate
	dice          *rand.Rand
	builds        [2]string
	runs          int // which build's programs
	config        string
	agent         *runningAgent
	kills, deaths int
}

// now is the gateway, operated with the build whose programs run.
func (o *operated) now() *gate { return o.by(o.builds[o.runs]) }

// perhaps runs a command and says whether it came to its end: one in four is killed at
// a random moment.
func (o *operated) perhaps(g *gate, stdin string, args ...string) (done bool) {
	o.t.Helper()
	if o.dice.IntN(4) > 0 {
		if r := g.tapgateIn(stdin, args...); r.code != 0 {
			o.t.Errorf("%v: %s", args, r)
		}
		return true
	}
	o.kills++
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := g.command(ctx, args...)
	cmd.Stdin = bytes.NewReader([]byte(stdin))
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	time.Sleep(time.Duration(o.dice.IntN(150)) * time.Millisecond)
	_ = cmd.Process.Signal(syscall.SIGKILL) // it may have ended
	_ = cmd.Wait()
	if cmd.ProcessState.Exited() {
		if cmd.ProcessState.ExitCode() != 0 {
			o.t.Errorf("%v: exit code %d", args, cmd.ProcessState.ExitCode())
		}
		return true
	}
	o.deaths++
	return false
}

// apply puts a configuration in force, or is killed, and what is in force is that of
// before or this one.
func (o *operated) apply(next string) {
	o.t.Helper()
	done := o.perhaps(o.now(), next, "apply", "-f", "-")
	is := o.now().must("config", "show").stdout
	if is != next && (done || is != o.config) {
		o.t.Errorf("in force is %s\nwas asked for: %s\n(done: %v) before: %s", is, next, done, o.config)
	}
	o.config = is
}

// upgrade has the programs of the other build run, or is killed, and all that run are
// of one of the two.
func (o *operated) upgrade() {
	o.t.Helper()
	to := 1 - o.runs
	done := o.perhaps(o.by(o.builds[to]), "", "upgrade")
	switch is := o.ranBy(o.builds[0], o.builds[1]); {
	case is == o.builds[to]:
		o.runs = to
	case done || is == "":
		o.t.Errorf("after an upgrade (done: %v) the programs are of %q", done, is)
	}
	if is := o.now().must("config", "show").stdout; is != o.config {
		o.t.Errorf("after an upgrade in force is %s, want %s", is, o.config)
	}
}

// restartAgent ends the agent, in one way or another, and starts one of the build that runs.
func (o *operated) restartAgent() {
	o.t.Helper()
	if o.agent != nil {
		how := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[o.dice.IntN(2)]
		_ = o.agent.cmd.Process.Signal(how) // one of another build may have ended
		_ = o.agent.cmd.Wait()
		o.agent.ended = true
	}
	o.agent = o.now().agent(nil, "--listen", "")
}

// Two hundred changes of the configuration (TAPGATE_APPLIES says otherwise), a quarter
// as many upgrades, and restarts of the agent, in a row at random moments, one command in
// four killed, while packets flow both ways and TCP connections talk: nothing is lost,
// no connection breaks, and in force is what the last command said that succeeded.
func TestStressOperations(t *testing.T) {
	other := anotherBuild(t, builds.Programs)
	o := &operated{gate: newGate(t, changeConfig), dice: rand.New(rand.NewPCG(diceSeed(t), 0)), builds: [2]string{binary, other}, config: changeConfig}
	p := newStreams(o.gateway)
	k := openTalk(o.gate)
	k.goOn("before")
	halves := len(o.readTable().sessions)
	o.restartAgent()
	configs := changedConfigs()
	n := envNumber(t, "TAPGATE_APPLIES", 200)
	upgrades, agents := 0, 1
	begin, arrived := time.Now(), uint64(0)
	p.during(func() {
		begin, arrived = time.Now(), p.up.arrived.Load()+p.down.arrived.Load()
		for i := range n {
			next := changeConfig
			if i%2 == 0 {
				next = configs[o.dice.IntN(len(configs))]
			}
			o.apply(next)
			if i%4 == 1 {
				o.upgrade()
				upgrades++
			}
			if o.dice.IntN(8) == 0 {
				o.restartAgent()
				agents++
			}
			if i%20 == 19 {
				k.goOn(fmt.Sprintf("after %d changes", i+1))
			}
		}
	})
	o.restartAgent() // the last one may end by itself: upgraded after it was started
	took := time.Since(begin)
	arrived = p.up.arrived.Load() + p.down.arrived.Load() - arrived
	rate := float64(arrived) / took.Seconds()
	t.Logf("%d applies, %d upgrades, %d agents in %v; %d of %d that were to be killed died; %.0f packets a second meanwhile",
		n, upgrades, agents, took, o.deaths, o.kills, rate)
	if rate < leastRate {
		t.Error("that is no stream")
	}
	if o.deaths == 0 {
		t.Error("nothing was killed: the test sees too little")
	}
	p.check()
	k.goOn("after all")
	k.end()
	o.now().allRun("after all")
	if table := o.consistent(); len(table.sessions) != halves {
		t.Errorf("there were %d halves of flows, and there are %d: %s", halves, len(table.sessions), table.origins())
	}
}
