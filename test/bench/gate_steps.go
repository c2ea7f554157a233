package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// step is what one function of the data plane takes, in samples.
type step struct{ own, helpers int }

// stepsOf reads "perf script" and gives each sample to the function of ours that
// is nearest to the processor: its own code, or a helper that it has called. The
// kernel's part is the rest.
func stepsOf(lines *bufio.Scanner) (steps map[string]step, all int) {
	steps = map[string]step{}
	depth, found := 0, false
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" { // between samples
			depth, found = 0, false
			continue
		}
		if depth++; depth == 1 {
			all++
		}
		if found {
			continue
		}
		name := ourFunction(line)
		if name == "" {
			continue
		}
		found = true
		s := steps[name]
		if depth == 1 {
			s.own++
		} else {
			s.helpers++
		}
		steps[name] = s
	}
	return steps, all
}

// jited is how the kernel names functions of BPF programs: by tag and name.
var jited = regexp.MustCompile(`^[0-9a-f]+ bpf_prog_[0-9a-f]{16}_(\w+)$`)

// ourFunction is the BPF function of a line "ffffffffc0a1 bpf_prog_4eba19eec0591695_tg_facts".
func ourFunction(line string) string {
	if m := jited.FindStringSubmatch(line); m != nil {
		return m[1]
	}
	return ""
}

// sampled runs f again and again for a while under "perf record".
func sampled(ctx context.Context, folder string, f func() error) (map[string]step, int, error) {
	data := filepath.Join(folder, "perf.data")
	perf := exec.CommandContext(ctx, "perf", "record", "-q", "-e", "cpu-clock", "-F", "4999", "-g",
		"-p", strconv.Itoa(os.Getpid()), "-o", data)
	// It ends by itself with the process that it looks at.
	if err := perf.Start(); err != nil {
		return nil, 0, err
	}
	time.Sleep(time.Second) // until it samples
	failed := f()
	_ = perf.Process.Signal(os.Interrupt)
	_ = perf.Wait()
	if failed != nil {
		return nil, 0, failed
	}
	script := exec.CommandContext(ctx, "perf", "script", "-i", data, "-F", "ip,sym")
	out, err := script.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	var complaint bytes.Buffer
	script.Stderr = &complaint
	if err := script.Start(); err != nil {
		return nil, 0, err
	}
	steps, all := stepsOf(bufio.NewScanner(out))
	if err := script.Wait(); err != nil {
		return nil, 0, fmt.Errorf("perf script: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return steps, all, nil
}

// profileSteps prints a table of functions, ns for each packet or flow.
func profileSteps(ctx context.Context, f fleet, t gateTest) error {
	if _, err := exec.LookPath("perf"); err != nil {
		return nil
	}
	var cpu, units float64
	steps, all, err := sampled(ctx, f[0].folder, func() error {
		// New flows are limited by the ports that there are.
		for range 2 {
			s, err := f.measure(ctx, t)
			if err != nil {
				return err
			}
			cpu += s.CPU
			units += s.Units
		}
		return nil
	})
	if err != nil || all == 0 {
		return err
	}
	perSample := cpu / units / float64(all)
	fmt.Printf("\n%s, %s: %.0f ns each, %d samples\n\n| function | own, ns | its helpers, ns |\n|---|---|---|\n",
		f[0].scenario.name, t.name, cpu/units, all)
	names := slices.SortedFunc(maps.Keys(steps), func(a, b string) int {
		return steps[b].own + steps[b].helpers - steps[a].own - steps[a].helpers
	})
	rest := all
	for _, name := range names {
		s := steps[name]
		rest -= s.own + s.helpers
		if ns := float64(s.own+s.helpers) * perSample; ns >= 1 {
			fmt.Printf("| `%s` | %.0f | %.0f |\n", name, float64(s.own)*perSample, float64(s.helpers)*perSample)
		}
	}
	fmt.Printf("| the kernel, and the benchmark itself | %.0f | |\n", float64(rest)*perSample)
	return nil
}
