package main

import (
	"bufio"
	"bytes"
	"cmp"
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
)

// step is what one function of the data plane takes, in samples.
type step struct {
	own, helpers int
	called       map[string]int // of the helpers: what it called itself
}

// stepsOf reads "perf script" and gives each sample of a packet's way to the
// function of ours that is nearest to the processor: its own code, or a helper
// that it has called. The kernel's part is the rest. Samples of anything else,
// as of this process's own work, do not count.
func stepsOf(lines *bufio.Scanner) (steps map[string]step, all int) {
	steps = map[string]step{}
	var name, above, called string
	depth, at, sent := 0, 0, false
	end := func() {
		if sent {
			all++
		}
		if sent && name != "" {
			s := steps[name]
			if at == 1 {
				s.own++
			} else {
				s.helpers++
				if s.called == nil {
					s.called = map[string]int{}
				}
				s.called[called]++
			}
			steps[name] = s
		}
		depth, at, sent, name, above = 0, 0, false, "", ""
	}
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" { // between samples
			end()
			continue
		}
		depth++
		if f := ourFunction(line); name == "" && f != "" {
			name, at, called = f, depth, above
		}
		_, above, _ = strings.Cut(line, " ")
		sent = sent || strings.Contains(line, generating)
	}
	end()
	return steps, all
}

// generating is the kernel's function that everything a packet does is done in,
// as everything is on one CPU.
const generating = "bpf_test_run_xdp_live"

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
	told, tell, err := os.Pipe()
	if err != nil {
		return nil, 0, err
	}
	defer tell.Close()
	heard, hear, err := os.Pipe()
	if err != nil {
		told.Close()
		return nil, 0, err
	}
	defer heard.Close()
	perf := exec.CommandContext(ctx, "perf", "record", "-q", "-e", "cpu-clock", "-F", "4999", "-g",
		"-D", "-1", "--control", "fd:3,4", "-p", strconv.Itoa(os.Getpid()), "-o", data)
	perf.ExtraFiles = []*os.File{told, hear}
	// It ends by itself with the process that it looks at.
	err = perf.Start()
	told.Close()
	hear.Close()
	if err != nil {
		return nil, 0, err
	}
	_, err = tell.WriteString("enable\n")
	if err == nil {
		_, err = heard.Read(make([]byte, 16)) // it samples now, or is gone
	}
	if err == nil {
		err = f()
	}
	_ = perf.Process.Signal(os.Interrupt)
	_ = perf.Wait()
	if err != nil {
		return nil, 0, err
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
func profileSteps(ctx context.Context, f fleet, t gateLoad) error {
	if _, err := exec.LookPath("perf"); err != nil {
		return nil
	}
	var cpu, units float64
	steps, all, err := sampled(ctx, f[0].folder, func() error {
		// New flows are limited by the ports that there are.
		for turn := 0; turn < 2 || turn < 20 && cpu < 1e9 && !f[0].scenario.fresh; turn++ {
			s, err := f.sample(ctx, t)
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
	fmt.Printf("\n%s, %s: %.0f ns each, %d samples\n\n| function | own, ns | its helpers, ns | of these |\n|---|---|---|---|\n",
		t.name, f[0].mode.name, cpu/units, all)
	names := slices.SortedFunc(maps.Keys(steps), func(a, b string) int {
		return steps[b].own + steps[b].helpers - steps[a].own - steps[a].helpers
	})
	rest := all
	for _, name := range names {
		s := steps[name]
		rest -= s.own + s.helpers
		if ns := float64(s.own+s.helpers) * perSample; ns >= 1 {
			fmt.Printf("| `%s` | %.0f | %.0f | %s |\n", name, float64(s.own)*perSample, float64(s.helpers)*perSample, s.most(perSample))
		}
	}
	fmt.Printf("| the kernel, and the generator | %.0f | | |\n", float64(rest)*perSample)
	return nil
}

// most is what took the most time of what a function called.
func (s step) most(perSample float64) string {
	names := slices.SortedFunc(maps.Keys(s.called), func(a, b string) int {
		return cmp.Or(s.called[b]-s.called[a], cmp.Compare(a, b))
	})
	var out []string
	for _, name := range names[:min(5, len(names))] {
		if ns := float64(s.called[name]) * perSample; ns >= 1 {
			out = append(out, fmt.Sprintf("%s %.0f", name, ns))
		}
	}
	return strings.Join(out, ", ")
}
