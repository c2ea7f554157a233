package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// gateProfile shows how long each program runs for a packet of each load.
func gateProfile(ctx context.Context, set *settings) error {
	fmt.Printf("\nBPF programs: samples by function where perf is there, and runs with statistics on (they add some 20-60 ns to each run):\n")
	for _, s := range set.scenarios {
		for _, m := range set.gateModes {
			if m.direct || m.kernel || m.tap {
				continue
			}
			if err := profileScenario(ctx, set, m, s); err != nil {
				return fmt.Errorf("profile of %s, %s: %w", s.name, m.name, err)
			}
		}
	}
	return nil
}

func profileScenario(ctx context.Context, set *settings, m gateMode, s scenario) error {
	f, err := newFleet(ctx, set, m, s)
	if err != nil {
		return err
	}
	defer f.close()
	// Before the statistics are on, which would be in there.
	for _, t := range s.tests() {
		if err := profileSteps(ctx, f, t); err != nil {
			note("%s, %s: no samples: %v", s.name, t.name, err)
		}
	}
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("enable statistics of BPF programs: %w", err)
	}
	defer stats.Close()
	fmt.Println()
	for _, t := range s.tests() {
		before, err := runTimes()
		if err != nil {
			return err
		}
		if _, err := f.measure(ctx, t); err != nil {
			return err
		}
		after, err := runTimes()
		if err != nil {
			return err
		}
		for _, id := range slices.Sorted(maps.Keys(after)) {
			a, b := after[id], before[id]
			if runs := a.runs - b.runs; runs >= 1000 {
				fmt.Printf("%-17s %-15s %-12s id %-6d %-16s %9d runs %7.0f ns each\n",
					s.name, t.name, m.name, id, a.name, runs, float64(a.ns-b.ns)/float64(runs))
			}
		}
	}
	return nil
}
