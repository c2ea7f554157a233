package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapgate/test/kernels"
)

// What puts fragments in order goes with the gateway, comes again if somebody took
// it away, and a run that was killed anywhere leaves nothing that the next one
// does not mend.
func TestGateFragmentsLifecycle(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	t.Parallel()
	g := newGateLab(t)
	g.apply(gateBoth)
	reversed := func() {
		t.Helper()
		in, out := g.pair()
		for _, x := range fragExchanges(in, out, false)[:1] {
			x.across(g, in, out, "reversed", fragOrders[0].of, fragOrders[0].of)
		}
	}
	reversed()
	g.ip(g.Gateway, "link del tg-frag0")
	s := g.status()
	if s.Gateway.Reorders || !slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, "tg-frag0 is gone") }) {
		t.Errorf("without its interface: %v, problems %q", s.Gateway.Reorders, s.Problems)
	}
	g.apply(gateBoth)
	reversed()

	// Only tapping: nothing of it.
	g.apply(gateZones)
	if names := g.interfaces(); slices.Contains(names, "tg-frag0") {
		t.Errorf("while only tapping there are %v", names)
	}
	if _, err := os.Stat(filepath.Join(g.stateDir(), "reassembly")); err == nil {
		t.Error("while only tapping there are pins")
	}
	g.apply(gateBoth)
	ids := bpfIDs{}
	ids.owned(t, g.bpffs)
	g.must("detach")
	ids.gone(t)
	if names := g.interfaces(); slices.Contains(names, "tg-frag0") {
		t.Errorf("after detach there are %v", names)
	}
}

// A stranger's interface of that name is left alone, and said.
func TestGateFragmentsNameTaken(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	t.Parallel()
	g := newGateLab(t)
	g.ip(g.Gateway, "link add tg-frag0 type veth peer name other")
	config := filepath.Join(g.Dir, "gate.yaml")
	if err := os.WriteFile(config, []byte(gateBoth), 0o600); err != nil {
		t.Fatal(err)
	}
	r := g.tapgate("apply", "-f", config)
	if r.code == 0 || !strings.Contains(r.stderr, "tg-frag0") {
		t.Errorf("apply: %s", r)
	}
	if names := g.interfaces(); !slices.Contains(names, "tg-frag0") || !slices.Contains(names, "other") {
		t.Errorf("there are %v", names)
	}
	g.ip(g.Gateway, "link del tg-frag0")
	g.apply(gateBoth)
}

func TestGateFragmentsKilled(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	t.Parallel()
	g := newGateLab(t)
	before := g.list()
	k := killer{g: g.gateway, empty: len(tree(t, g.bpffs)), rng: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0)), config: g.Dir + "/config.yaml"}
	if err := os.WriteFile(k.config, []byte(gateBoth), 0o600); err != nil {
		t.Fatal(err)
	}
	stands := func(g *gateway) string {
		if s := g.status(); s.Gateway == nil || !s.Gateway.Reorders || len(s.Problems) > 0 {
			return fmt.Sprintf("status: %+v, problems %q", s.Gateway, s.Problems)
		}
		return ""
	}
	k.command(killed{"apply -f CONFIG", []string{"detach"}, stands})
	k.command(killed{"detach", []string{"apply -f CONFIG"}, wantNothing})
	g.must("apply", "-f", k.config)
	ids := bpfIDs{}
	ids.owned(t, g.bpffs)
	g.must("detach")
	ids.gone(t)
	g.unchanged(before, "afterwards")
}
