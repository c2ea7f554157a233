package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
)

// killed is a command that will be killed, with what makes things ready for
// it and what has to be so once it was run again.
type killed struct {
	args   string
	before []string // commands
	after  func(g *gateway) (problem string)
}

const (
	killAttach = "attach --external eth0 --internal eth3 --dmz eth2 --sensor 192.168.4.2"
	killMirror = "second --zone internal --l2 eth2 --mac 02:00:5e:00:53:01"
)

func (g *gateway) mirrorNames() string {
	names := []string{}
	for _, m := range g.status().Mirrors {
		names = append(names, m.Name)
	}
	return strings.Join(names, " ")
}

func wantMirrors(want string) func(g *gateway) string {
	return func(g *gateway) string {
		if got := g.mirrorNames(); got != want {
			return fmt.Sprintf("mirrors are %q, want %q", got, want)
		}
		return ""
	}
}

func wantNothing(g *gateway) string {
	if r := g.tapgate("status"); r.code != 3 {
		return "status: " + r.String()
	}
	return ""
}

var killedCommands = []killed{
	{killAttach, []string{"detach"}, wantMirrors("ids")},
	{"apply -f CONFIG", []string{"detach"}, wantMirrors("ids")},
	// In place of another configuration.
	{"apply -f CONFIG", []string{killAttach, "mirror add " + killMirror}, wantMirrors("ids")},
	{"mirror add " + killMirror, []string{killAttach}, wantMirrors("ids second")},
	{"mirror del second", []string{killAttach, "mirror add " + killMirror}, wantMirrors("ids")},
	{"status", []string{killAttach}, wantMirrors("ids")},
	{"detach", []string{killAttach, "mirror add " + killMirror}, wantNothing},
}

// killsEach is at how many calls each command is killed by default.
const killsEach = 10

// points picks the calls at which to kill: one of every kind first, then any.
// TAPGATE_KILLS says how many, or "all".
func points(t *testing.T, calls []string, rng *rand.Rand) []int {
	t.Helper()
	n := killsEach
	if s := os.Getenv("TAPGATE_KILLS"); s == "all" {
		n = len(calls)
	} else if s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("TAPGATE_KILLS: %v", err)
		}
	}
	var at, others []int
	kinds := map[string]bool{}
	for _, i := range rng.Perm(len(calls)) {
		if kinds[calls[i]] {
			others = append(others, i)
		} else {
			kinds[calls[i]] = true
			at = append(at, i)
		}
	}
	at = append(at, others...)
	at = at[:min(n, len(at))]
	slices.Sort(at)
	return at
}

// diceSeed is that of a test's dice; TAPGATE_SEED says otherwise.
func diceSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("TAPGATE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("TAPGATE_SEED: %v", err)
		}
	}
	t.Logf("TAPGATE_SEED=%d", seed)
	return seed
}

// Promise 8: any command may be killed at any point: production loses nothing,
// status answers, and the same command again succeeds.
func TestSafetyKilled(t *testing.T) {
	t.Parallel()
	seed := diceSeed(t)
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t)
		g.kind = kind
		p := newProduction(g)
		b := newBooks(g)
		if kind == loader.AttachClsact {
			// While the kernel adds or removes a clsact qdisc, the interface sends
			// nothing and drops what it should (qdisc_graft calls dev_deactivate).
			// Here the admin's own are there, so that losses would be ours.
			for _, ifname := range []string{"eth2", "eth3"} {
				inHost(g.t, g.Gateway, "tc", "qdisc", "add", "dev", ifname, "clsact")
			}
		}
		before := g.list()
		k := killer{g: g, empty: len(tree(t, g.bpffs)), rng: rand.New(rand.NewPCG(seed, 0)), config: g.Dir + "/config.yaml"}
		if err := os.WriteFile(k.config, []byte(example), 0o600); err != nil {
			t.Fatal(err)
		}
		p.during(func() {
			for _, c := range killedCommands {
				k.command(c)
			}
			// The last command was detach, and the one before it may have been cut short.
			g.apply(example)
		})
		if is := b.pass(p, 500, true); !allCopied(is) {
			t.Errorf("after all this not every packet is copied: %+v", is)
		}
		ids := bpfIDs{}
		ids.owned(t, g.bpffs)
		g.must("detach")
		ids.gone(t)
		g.unchanged(before, "afterwards")
		p.check()
	})
}

type killer struct {
	g      *gateway
	rng    *rand.Rand
	config string
	empty  int // entries of the BPF filesystem when there is nothing of ours
}

func (k *killer) words(command string) []string {
	return strings.Fields(strings.ReplaceAll(command, "CONFIG", k.config))
}

// traced runs a command and kills it at its changing call number n; see traced.
func (k *killer) traced(command string, n int) (calls []string, killed bool, talk string) {
	g := k.g
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := os.CreateTemp(g.Dir, "talk-*")
	if err != nil {
		g.t.Fatal(err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := g.command(ctx, k.words(command)...)
	cmd.Stdout, cmd.Stderr = out, out
	calls, killed = traced(g.t, cmd, n)
	text, err := os.ReadFile(out.Name())
	if err != nil {
		g.t.Fatal(err)
	}
	return calls, killed, string(bytes.TrimSpace(text))
}

func (k *killer) command(c killed) {
	g := k.g
	g.t.Helper()
	prepare := func() {
		g.t.Helper()
		for _, command := range c.before {
			g.must(k.words(command)...)
		}
	}
	prepare()
	calls, _, talk := k.traced(c.args, -1)
	if problem := c.after(g); problem != "" {
		g.t.Fatalf("%s, traced: %s: %s", c.args, problem, talk)
	}
	at := points(g.t, calls, k.rng)
	g.t.Logf("%q makes %d changing calls; killed at %v", c.args, len(calls), at)
	deaths := 0
	for _, n := range at {
		prepare()
		made, died, _ := k.traced(c.args, n)
		if !died {
			continue // it took a shorter way than the first time
		}
		deaths++
		where := fmt.Sprintf("%q killed at call %d (%s)", c.args, n, made[n])
		if r := g.tapgate("status"); r.code != 0 && r.code != 3 {
			g.t.Errorf("%s: status: %s", where, r)
		} else if r.code == 0 {
			g.checkLedgers()
		}
		if r := g.tapgate(k.words(c.args)...); r.code != 0 {
			g.t.Fatalf("%s: the same again: %s", where, r)
		}
		if problem := c.after(g); problem != "" {
			g.t.Fatalf("%s: %s", where, problem)
		}
		if c.args == "detach" {
			if left := tree(g.t, g.bpffs); len(left) != k.empty {
				g.t.Errorf("%s: after detach there is %v", where, left)
			}
			continue
		}
		if s := g.checkLedgers(); len(s.Problems) > 0 {
			g.t.Errorf("%s: status tells of %q", where, s.Problems)
		}
	}
	if deaths < len(at)*3/4 {
		g.t.Errorf("%q was killed only %d times of %d", c.args, deaths, len(at))
	}
}
