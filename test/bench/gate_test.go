package main

import (
	"bufio"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGateModes sees every packet of every load come through in each mode, new
// flows and answers alike, so that no figure compares a gateway that drops.
func TestGateModes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces and BPF")
	}
	set := &settings{packets: 1024, cpu: lastCPU(), tapgate: build(t)}
	loads := append([]scenario{{"flows-16k", "", 1 << 14, 0, false}}, allScenarios[3:5]...)
	for _, s := range loads {
		for _, m := range gateModes {
			t.Run(s.name+"/"+m.name, func(t *testing.T) {
				f, err := newFleet(t.Context(), set, m, s)
				if err != nil {
					t.Fatal(err)
				}
				defer f.close()
				for _, test := range s.tests() {
					got, err := f.measure(t.Context(), test)
					if err != nil {
						t.Fatal(err)
					}
					if got.Sent != 1024 || got.Units != got.Sent {
						t.Errorf("%s: %v of %v came through, of 1024 asked for", test.name, got.Units, got.Sent)
					}
					if m.tap != (got.Frames > 0) || got.CPU <= 0 {
						t.Errorf("%s: %v copies, CPU time %v ns", test.name, got.Frames, got.CPU)
					}
				}
				if kept := f.memory(); !m.direct && !m.kernel && (kept.Maps < 400*float64(kept.Flows) || kept.Maps > 4000*float64(kept.Flows)) {
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
	set := &settings{rounds: 1, scenarios: allScenarios[2:3], gateModes: gateModes[:3]}
	rep := newGateReport(set)
	name := set.scenarios[0].name
	rep.memory[gateKey{0, name, "", "tapgate"}] = []memory{{Slab: 6e8, Maps: 5e8, Fixed: 2e8, Flows: 1_000_000}}
	// 1000, 2000 and 2500 ns a packet; the second pass at half the speed.
	for pass, factor := range []float64{1, 2, 1} {
		for mode, ns := range map[string]float64{gateFloor: 1000, gateBaseline: 2000, "tapgate": 2500} {
			rep.add(pass, name, "out", mode, sample{Units: 100, Sent: 100, CPU: 100 * ns * factor})
		}
	}
	rep.finish()
	if len(rep.Results) != 3 {
		t.Fatalf("%d results, want 3: %+v", len(rep.Results), rep.Results)
	}
	got := rep.Results[2]
	for what, v := range map[string][2]float64{
		"rate": {got.Rate, 0.4}, "ratio": {got.Ratio, 0.8}, "extra": {got.Extra, 1500}, "lost": {got.Lost, 0},
		"slab": {got.SlabBytes, 600}, "maps": {got.MapBytes, 500}, "fixed": {got.FixedBytes, 2e8 / float64(1<<20)},
	} {
		if math.Abs(v[0]-v[1]) > 1e-9 {
			t.Errorf("%s of %s is %v, want %v", what, got.Mode, v[0], v[1])
		}
	}
	for _, want := range []string{"0.80", "1500", "600 bytes of slab; 500 bytes"} {
		if out := rep.table(false); !strings.Contains(out, want) {
			t.Errorf("table has no %q:\n%s", want, out)
		}
	}
}

func TestGateArguments(t *testing.T) {
	for _, bad := range [][]string{{"--gate", "nosuchmode"}, {"--gate", "--loads", "nosuchload"}, {"--loads", "new"}, {"--gate", "tee"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	set, err := parse([]string{"--gate", "tapgate", "--loads", "new"})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names(set.gateModes), " "); got != "forward masquerade tapgate" || len(set.scenarios) != 1 {
		t.Errorf("modes %q and %d loads, want tapgate beside its measures and 1", got, len(set.scenarios))
	}
}

func TestSteps(t *testing.T) {
	steps, all := stepsOf(bufio.NewScanner(strings.NewReader(`
	ffffffffc0a1 bpf_prog_4eba19eec0591695_tg_facts
	ffffffffc0a2 bpf_prog_07144c957ac2225d_tapgate_tap_in
	ffffffff8101 tcf_classify

	ffffffff8102 htab_map_hash
	ffffffffc0a1 bpf_prog_4eba19eec0591695_tg_facts

	ffffffff8103 bpf_prog_run_xdp
	ffffffff8104 xdp_test_run_batch
`)))
	if want := (step{own: 1, helpers: 1}); all != 3 || len(steps) != 1 || steps["tg_facts"] != want {
		t.Errorf("%d samples, %+v; want 3 and one of each kind in tg_facts", all, steps)
	}
}
