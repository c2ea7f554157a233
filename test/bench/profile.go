package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// profile shows how long each BPF program runs for a packet, in a pass of its
// own, since the kernel's statistics slow every program down. They are asked
// for by a file descriptor: the sysctl would be the whole machine's. A tap's
// time holds that of the programs on the sensor's interface, which the copy
// passes, and the link's work on it.
func profile(ctx context.Context, set *settings) error {
	fmt.Printf("\nBPF programs, statistics on (they add some 20-60 ns to each run):\n")
	for _, m := range set.modes {
		if m.name != "tapgate" && m.name != "tapgate-raw" {
			continue
		}
		if err := profileMode(ctx, set, m); err != nil {
			return fmt.Errorf("profile of %s: %w", m.name, err)
		}
	}
	fmt.Println("Where the CPU has hardware counters: bpftool prog profile id ID duration 5 cycles instructions")
	return nil
}

func profileMode(ctx context.Context, set *settings, m mode) error {
	l, err := newLab(ctx, set, m)
	if err != nil {
		return err
	}
	defer l.close()
	for _, t := range set.tests {
		err := printRuns(fmt.Sprintf("%-9s %-12s", t.name, m.name), func() error {
			_, err := t.measure(ctx, l)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// printRuns prints which programs run during f, and how long each run takes.
func printRuns(title string, f func() error) error {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("enable statistics of BPF programs: %w", err)
	}
	defer stats.Close()
	before, err := runTimes()
	if err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	after, err := runTimes()
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(after)) {
		a, b := after[id], before[id]
		// Others on this machine have programs too, but hardly any so busy now.
		if runs := a.runs - b.runs; runs >= 1000 {
			fmt.Printf("%s id %-6d %-16s %9d runs %7.0f ns each\n", title, id, a.name, runs, float64(a.ns-b.ns)/float64(runs))
		}
	}
	return nil
}

type runTime struct {
	name     string
	runs, ns uint64
}

// runTimes reads the statistics of all programs of the machine.
func runTimes() (map[ebpf.ProgramID]runTime, error) {
	out := map[ebpf.ProgramID]runTime{}
	for id, err := ebpf.ProgramGetNextID(0); err == nil; id, err = ebpf.ProgramGetNextID(id) {
		prog, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		info, err := prog.Info()
		if err == nil {
			t := runTime{name: info.Name}
			if s, err := prog.Stats(); err == nil {
				t.runs, t.ns = s.RunCount, uint64(s.Runtime)
			}
			out[id] = t
		}
		prog.Close()
	}
	return out, nil
}
