package main

import (
	"context"
	"fmt"
)

// gateProfile shows how long each program runs for a packet of each load.
func gateProfile(ctx context.Context, set *settings) error {
	fmt.Printf("\nBPF programs: samples by function where perf is there, and runs with statistics on (they add some 20-60 ns to each run):\n")
	for _, s := range set.scenarios {
		for _, m := range set.gateModes {
			if m.direct || m.kernel || !m.measures(s) {
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
	for _, t := range s.loads {
		if s.hosts {
			continue // no generator by which samples are known
		}
		if err := profileSteps(ctx, f, t); err != nil {
			note("%s, %s: no samples: %v", t.name, m.name, err)
		}
	}
	fmt.Println()
	for _, t := range s.loads {
		err := printRuns(fmt.Sprintf("%-16s %-18s", t.name, m.name), func() error {
			_, err := f.sample(ctx, t)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
