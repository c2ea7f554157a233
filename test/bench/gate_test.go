package main

import (
	"bufio"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestGateModes sees every packet of every load come through in each mode, new
// flows and answers alike, once at the sensor and on the way that the mode says,
// so that no figure compares a gateway that drops.
func TestGateModes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, for network namespaces and BPF")
	}
	set := &settings{packets: 1024, bytes: 10_000_000, cpu: lastCPU(), tapgate: build(t)}
	loads := map[string]scenario{}
	for _, s := range allScenarios {
		loads[s.name] = s
	}
	few := loads["1k"]
	few.name, few.flows = "16k", 1<<14
	for _, s := range []scenario{few, loads["forwards-10"], loads["new"], loads["new-forwards-10"], loads["hosts"]} {
		for _, m := range gateModes {
			if !m.measures(s) || s.hosts && !mainModes(m) { // TestModes has the other taps
				continue
			}
			t.Run(s.name+"/"+m.name, func(t *testing.T) {
				f, err := newFleet(t.Context(), set, m, s)
				if err != nil {
					t.Fatal(err)
				}
				defer f.close()
				for _, load := range s.loads {
					got, err := f.sample(t.Context(), load)
					if err != nil {
						t.Fatalf("%s: %v", load.name, err)
					}
					if got.Units != got.Sent && load.name != "tcp-1500" {
						t.Errorf("%s: %v of %v came through", load.name, got.Units, got.Sent)
					}
					if m.tap != (got.Frames > 0) && load.name != "latency" || got.CPU <= 0 {
						t.Errorf("%s: %v copies, CPU time %v ns", load.name, got.Frames, got.CPU)
					}
				}
				if kept := f.memory(); s.flows == few.flows && !m.direct && !m.kernel && (kept.Maps < 400*float64(kept.Flows) || kept.Maps > 4000*float64(kept.Flows)) {
					t.Errorf("the maps say that %d flows take %.0f bytes", kept.Flows, kept.Maps)
				}
			})
		}
	}
	if left, _ := filepath.Glob("/run/netns/" + prefix() + "*"); len(left) > 0 {
		t.Errorf("%v left over", left)
	}
}

func TestGateFigures(t *testing.T) {
	set, err := parse([]string{"--gate", "--loads", "flows-1M,both-1k,both-1M,both-1k-again", "--rounds", "1"})
	if err != nil {
		t.Fatal(err)
	}
	rep := newGateReport(set)
	rep.memory[gateKey{0, "1M", gateFast}] = []memory{{Slab: 6e8, Maps: 5e8, Fixed: 2e8, Flows: 1_000_000}}
	// 1000, 2000, 1600 and 4000 ns a packet; the second pass at half the speed.
	for pass, factor := range []float64{1, 2, 1} {
		for mode, ns := range map[string]float64{gateFloor: 1000, gateBaseline: 2000, gateFast: 1600, gateRecipe: 4000, gateFastTap: 1600} {
			rep.add(pass, "flows-1M", mode, sample{Units: 100, Sent: 100, CPU: 100 * ns * factor, Fast: 1 - factor/1000})
			rep.add(pass, "both-1k", mode, sample{Units: 100, Sent: 100, CPU: 100 * ns * factor})
			rep.add(pass, "both-1k-again", mode, sample{Units: 100, Sent: 100, CPU: 100 * ns * factor})
			rep.add(pass, "both-1M", mode, sample{Units: 100, Sent: 100, CPU: 200 * ns * factor})
		}
	}
	broken, _ := choose(gateModes, []string{gateRecipe})
	rep.leaveOut("flows-1M", broken[0], refusal("it is broken"))
	rep.finish()
	results := map[string]gateResult{}
	for _, x := range rep.Results {
		results[x.Load+" "+x.Mode] = x
	}
	if _, there := results["flows-1M "+gateRecipe]; there || len(results) != 16 {
		t.Fatalf("%d results, want 16, without what was left out: %+v", len(results), rep.Results)
	}
	got := results["flows-1M "+gateFast]
	for what, v := range map[string][2]float64{
		"rate": {got.Rate, 0.625}, "ratio": {got.Ratio, 1.25}, "extra": {got.Extra, 600}, "lost": {got.Lost, 0}, "fast": {got.Fast, 0.998},
		"slab": {got.SlabBytes, 600}, "maps": {got.MapBytes, 500}, "fixed": {got.FixedBytes, 2e8 / float64(5<<18)},
		"recipe": {results["both-1k "+gateFastTap].Recipe, 2.5},
	} {
		if math.Abs(v[0]-v[1]) > 1e-9 {
			t.Errorf("%s of %s is %v, want %v", what, got.Mode, v[0], v[1])
		}
	}
	reached := map[float64]bool{}
	for _, g := range rep.Goals {
		if g.Least > 0 {
			reached[g.Measured] = g.Measured >= g.Least
		}
	}
	// With tap, without, and a million flows at half the speed of a thousand.
	if len(reached) != 3 || !reached[2.5] || !reached[1.25] || reached[0.5] {
		t.Errorf("goals: %+v", rep.Goals)
	}
	for _, want := range []string{"1.25", "600 bytes of slab; 500", "99.8 % fast", "not reached", "flows-1M, masquerade-tee: it is broken"} {
		if out := rep.table(false); !strings.Contains(out, want) {
			t.Errorf("table has no %q:\n%s", want, out)
		}
	}
	for _, want := range []string{"| flows-1M | 0.5 | Mpps |", "| 1.25 |", "| not reached |", "600 bytes of slab; 500"} {
		if out := rep.table(true); !strings.Contains(out, want) {
			t.Errorf("Markdown has no %q:\n%s", want, out)
		}
	}
	if err := rep.failed(); err == nil || !strings.Contains(err.Error(), gateRecipe) {
		t.Errorf("error is %v, want one that names the mode that is left out", err)
	}
}

// TestJudge sees figures refused that would compare other work.
func TestJudge(t *testing.T) {
	fast, slow, fresh := gateMode{fast: true}, gateMode{}, scenario{fresh: true}
	good := sample{Units: 1000, Sent: 1000, Fast: 1}
	for what, c := range map[string]struct {
		mode  gateMode
		s     scenario
		got   sample
		flows float64
		want  string
	}{
		"fast":            {fast, scenario{}, good, 0, ""},
		"lossy":           {fast, scenario{}, sample{Units: 900, Sent: 1000, Fast: 1}, 0, "10.0 % were lost"},
		"half fast":       {fast, scenario{}, sample{Units: 1000, Sent: 1000, Fast: 0.5}, 0, "50.0 %"},
		"not to be fast":  {slow, scenario{}, good, 0, "must not"},
		"slow":            {slow, scenario{}, sample{Units: 1000, Sent: 1000}, 0, ""},
		"flows":           {fast, fresh, sample{Units: 1000, Sent: 1000}, 1000, ""},
		"flows forgotten": {slow, fresh, sample{Units: 1000, Sent: 1000}, 990, "990 more"},
	} {
		l := &gateLab{lab: &lab{set: &settings{}}, mode: c.mode, scenario: c.s}
		if err := l.judge(c.got, c.flows); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
	l := &gateLab{mode: gateMode{tap: true}}
	for frames, want := range map[float64]bool{1000: true, 1001: true, 900: false, 2000: false} {
		if err := l.wantCopies(sample{Frames: frames}, 1000); (err == nil) != want {
			t.Errorf("%v copies of 1000 packets: %v", frames, err)
		}
	}
}

func TestAccountOf(t *testing.T) {
	got, err := accountOf([]byte(`{"gateway": {"flows": 7}, "interfaces": [
		{"role": "internal", "ingress": {"reasons": {"pass_fast": 10, "pass_flow": 2}}, "egress": {"reasons": {"pass_fast": 100}}},
		{"role": "external", "ingress": {"reasons": {"pass_fast": 20}}},
		{"role": "dmz", "ingress": {"reasons": {"drop_from_dmz": 3}}}]}`))
	if want := (account{flows: 7, packets: 32, fast: 30}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

func TestGateArguments(t *testing.T) {
	for _, bad := range [][]string{{"--gate", "nosuchmode"}, {"--gate", "--loads", "nosuchload"}, {"--loads", "new"}, {"--gate", "tee"}, {"--allow-slow"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	set, err := parse([]string{"--gate", "--modes", gateFast, "--loads", "new,both-1k"})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names(set.gateModes), " "); got != "forward masquerade tapgate-fast" {
		t.Errorf("modes %q, want tapgate-fast beside its measures", got)
	}
	if set.rounds != 3 || set.packets != 400_000 {
		t.Errorf("%d rounds of %d packets, want 3 of 400,000", set.rounds, set.packets)
	}
	if len(set.scenarios) != 2 || len(set.scenarios[0].loads) != 1 || len(groups(set.scenarios)) != 2 {
		t.Errorf("scenarios %+v, want two of one load each", set.scenarios)
	}
	if set, err = parse([]string{"--gate"}); err != nil || slices.Contains(names(set.gateModes), gateOptional) || len(groups(set.scenarios)) != 7 {
		t.Errorf("by default %v in %d groups, %v", names(set.gateModes), len(groups(set.scenarios)), err)
	}
}

func TestSteps(t *testing.T) {
	steps, all := stepsOf(bufio.NewScanner(strings.NewReader(`
	ffffffffc0a1 bpf_prog_4eba19eec0591695_tg_facts
	ffffffffc0a2 bpf_prog_07144c957ac2225d_tapgate_tap_in
	ffffffff8101 tcf_classify
	ffffffff8105 bpf_test_run_xdp_live

	ffffffff8102 htab_map_hash
	ffffffffc0a1 bpf_prog_4eba19eec0591695_tg_facts
	ffffffff8105 bpf_test_run_xdp_live

	ffffffff8106 htab_map_lookup_elem
	ffffffff8107 bpf_map_copy_value

	ffffffff8103 bpf_prog_run_xdp
	ffffffff8105 bpf_test_run_xdp_live
`)))
	want := step{own: 1, helpers: 1, called: map[string]int{"htab_map_hash": 1}}
	if all != 3 || len(steps) != 1 || !reflect.DeepEqual(steps["tg_facts"], want) {
		t.Errorf("%d samples, %+v; want 3 and one of each kind in tg_facts", all, steps)
	}
}
