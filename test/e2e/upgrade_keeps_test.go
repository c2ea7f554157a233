package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"tapgate/test/builds"
)

// An agent whose programs are replaced ends, for the one that is installed then; one that
// comes to the gateway of another build changes nothing until its own programs are there.
func TestUpgradeAgent(t *testing.T) {
	t.Parallel()
	g := newGate(t, changeConfig)
	other := g.by(anotherBuild(t, builds.Programs))
	old := g.agent(nil, "--listen", "")
	foreign := g.by(other.build)
	other.must("upgrade")
	old.ended = true
	stays := time.AfterFunc(gateWait, func() { _ = old.cmd.Process.Kill() })
	defer stays.Stop()
	if err := old.cmd.Wait(); err == nil || old.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("the agent of before ended with %v", err)
	}
	if !strings.Contains(old.log.String(), "this agent ends, so that the one that is installed now is started") {
		t.Errorf("the agent of before said %s", old.log)
	}

	// The one that is installed now is in charge.
	now := foreign.agent(nil, "--listen", "")
	in, out := g.pair()
	first, second := g.outside(false).String(), "203.0.113.77"
	move := func(from, to string) { // with one of them there, the kernel keeps its neighbours
		g.ip(g.Gateway, "addr add "+to+"/24 dev eth0")
		g.ip(g.Gateway, "addr del "+from+"/24 dev eth0")
	}
	if err := g.Gateway.Sysctl("net/ipv4/conf/eth0/promote_secondaries", "1"); err != nil {
		t.Fatal(err)
	}
	move(first, second)
	now.says(second)
	foreign.mapUDP(in, 5000, out, 80, false)
	now.end()

	// One of before finds a gateway that is not its own.
	again := g.agent(nil, "--listen", "")
	again.says("of another build, so this agent changes nothing")
	move(second, first)
	time.Sleep(time.Second) // an agent of its own build is faster
	if text := again.log.String(); strings.Contains(text, "have changed") {
		t.Errorf("it changes another build's gateway: %s", text)
	}
	g.must("upgrade")
	again.says("are of this build now")
	again.says(first)
	g.mapUDP(in, 5001, out, 80, false)
	g.wantProblems()
}

// A change that waits for confirmation waits on: the way back needs nobody, and
// confirming works with either build.
func TestUpgradePending(t *testing.T) {
	t.Parallel()
	g := newGate(t, changeConfig)
	other := g.by(anotherBuild(t, builds.Programs))
	config := g.Dir + "/tried.yaml"
	if err := os.WriteFile(config, []byte(strings.Replace(changeConfig, "    - {name: web,", "    - {name: tried, in: external, proto: tcp, port: 4100, to: \"192.168.3.2:4100\"}\n    - {name: web,", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	before := g.rulesInForce()
	g.must("apply", "-f", config, "--confirm", "1m")
	tried := g.rulesInForce()
	g.says(other.must("upgrade"), "in place of build")
	g.allRun("while a change waits")
	if is := other.rulesInForce(); is != tried || is == before {
		t.Errorf("after the upgrade the rules are %s, want %s", is, tried)
	}
	other.must("confirm")
	if is := other.rulesInForce(); is != tried {
		t.Errorf("confirmed are %s, want %s", is, tried)
	}
	other.apply(changeConfig)
	other.must("apply", "-f", config, "--confirm", "10s")
	g.must("upgrade")
	waitFor(t, "nobody has confirmed", func() bool { return g.rulesInForce() == before })
	g.allRun("after the way back")
	g.must("apply", "-f", config)
	g.wantProblems()
}
