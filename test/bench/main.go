// Command bench measures what a passive tap costs a gateway: tapgate beside
// the kernel's own ways to copy packets, in one run, in network namespaces of
// its own. Every ratio is taken within one pass, where all modes run within
// seconds of each other, and the medians of all passes are reported: absolute
// figures belong to the machine, ratios hold from run to run.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// passes is how often the tests of a round are run on the same gateways.
const passes = 3

// settings are the flags of one run.
type settings struct {
	rounds   int
	packets  int   // generated in each UDP measurement
	bytes    int64 // sent in each TCP measurement
	cpu      int
	tapgate  string
	json     string
	markdown bool
	profile  bool
	modes    []mode
	tests    []test

	gate      bool // measure the gateway, not the tap
	gateModes []gateMode
	scenarios []scenario
	allowSlow bool // figures of fast gateways count whatever way their packets took
}

func run(ctx context.Context, args []string) error {
	set, err := parse(args)
	if err != nil || set == nil {
		return err
	}
	if set.gate {
		return runGate(ctx, set)
	}
	note("rates per second of CPU time; generator, gateway, sensor and both ends share CPU %d", set.cpu)
	rep := newReport(set)
	for i := range set.rounds {
		note("round %d of %d", i+1, set.rounds)
		if err := round(ctx, set, rep, i); err != nil {
			return err
		}
	}
	return conclude(ctx, set, rep, profile)
}

// results is what a benchmark has measured.
type results interface {
	finish()
	table(markdown bool) string
	failed() error
}

// conclude shows the results, writes them down and runs the profile, as was asked for.
func conclude(ctx context.Context, set *settings, rep results, profile func(context.Context, *settings) error) error {
	rep.finish()
	fmt.Print(rep.table(set.markdown))
	if set.json != "" {
		if err := writeJSON(set.json, rep); err != nil {
			return err
		}
	}
	if set.profile {
		if err := profile(ctx, set); err != nil {
			return err
		}
	}
	return rep.failed()
}

// round builds one gateway for each mode, measures them in turn in each test,
// and takes them down. Building them anew spreads what depends on where the
// kernel happens to put its structures over the rounds.
func round(ctx context.Context, set *settings, rep *report, number int) (err error) {
	var labs []*lab
	defer func() {
		for _, l := range labs {
			l.close()
		}
	}()
	for _, m := range set.modes {
		if rep.errors[m.name] != "" {
			continue
		}
		l, err := newLab(ctx, set, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && m.name == baseline {
			return fmt.Errorf("gateway without a tap: %w", err)
		}
		if err != nil {
			note("%s is left out: %v", m.name, err)
			rep.errors[m.name] = err.Error()
			continue
		}
		labs = append(labs, l)
	}
	// Backwards every other round, so that a machine that slows down or
	// speeds up favours nobody.
	if number%2 == 1 {
		slices.Reverse(labs)
	}
	for pass := range passes {
		for _, t := range set.tests {
			for _, l := range labs {
				s, err := t.measure(ctx, l)
				if err != nil {
					return fmt.Errorf("%s with %s: %w", t.name, l.mode.name, err)
				}
				rep.add(number*passes+pass, t.name, l.mode.name, s)
			}
		}
	}
	return nil
}

func parse(args []string) (*settings, error) {
	set := &settings{}
	fs := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	fs.IntVar(&set.rounds, "rounds", 5, "rounds of 3 passes; medians are reported; with --gate 3 if not said")
	fs.IntVar(&set.packets, "packets", 100_000, "packets in each UDP measurement; with --gate 400,000 if not said")
	fs.Int64Var(&set.bytes, "bytes", 100_000_000, "bytes in each TCP measurement")
	fs.IntVar(&set.cpu, "cpu", lastCPU(), "CPU that does everything")
	fs.StringVar(&set.tapgate, "tapgate", "", "the tapgate binary (bench.sh builds it)")
	fs.StringVar(&set.json, "json", "", "write all figures to this file")
	fs.BoolVar(&set.markdown, "markdown", false, "print the tables as Markdown, as test/bench/README.md has them")
	fs.BoolVar(&set.profile, "profile", false, "afterwards, show the time in each BPF program")
	fs.BoolVar(&set.gate, "gate", false, "measure the gateway's NAT beside the kernel's MASQUERADE, not the tap")
	quick := fs.Bool("quick", false, "2 short rounds; ratios are rougher")
	tests := fs.StringSlice("tests", names(allTests), "tests to run")
	loads := fs.StringSlice("loads", nil, "with --gate: loads to run; all if none is named, but with --quick those of a million flows")
	modes := fs.StringSlice("modes", nil, "the same as MODE...")
	fs.BoolVar(&set.allowSlow, "allow-slow", false, "with --gate: keep figures of a fast gateway whose packets were not fast")
	fs.Usage = func() {
		fmt.Fprintf(os.Stderr, "usage: bench [flags] [MODE...]\n\nmodes: %s\n       (all but %s if none is named)\n"+
			"with --gate: %s\n       (all but %s if none is named)\nloads: %s\n\n%s", strings.Join(names(allModes), ", "), "tapgate-raw",
			strings.Join(names(gateModes), ", "), gateOptional, strings.Join(names(allLoads()), ", "), fs.FlagUsages())
	}
	if err := fs.Parse(args); err == pflag.ErrHelp {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if *quick {
		quicken(set, fs)
	}
	if set.gate {
		gateLengths(set, fs, *quick)
	}
	if set.rounds < 1 || set.rounds > 100 || set.packets < 1 || set.packets > 10_000_000 || set.bytes < 1 || set.bytes > 20e9 {
		return nil, fmt.Errorf("rounds, packets or bytes out of range: at most 100, 10 million and 20 GB")
	}
	var err error
	if set.tests, err = choose(allTests, *tests); err != nil {
		return nil, err
	}
	wanted := append(fs.Args(), *modes...)
	if set.gate {
		return set, chooseGate(set, wanted, *loads, *quick)
	}
	if len(*loads) > 0 || set.allowSlow {
		return nil, fmt.Errorf("--loads and --allow-slow go with --gate")
	}
	if len(wanted) == 0 {
		wanted = slices.DeleteFunc(names(allModes), func(n string) bool { return n == "tapgate-raw" })
	}
	if !slices.Contains(wanted, baseline) {
		wanted = append(wanted, baseline)
	}
	set.modes, err = choose(allModes, wanted)
	return set, err
}

// chooseGate picks modes and loads; floor and baseline are always there.
func chooseGate(set *settings, modes, loads []string, quick bool) (err error) {
	if len(modes) == 0 {
		modes = slices.DeleteFunc(names(gateModes), func(n string) bool { return n == gateOptional })
	}
	if len(loads) == 0 {
		loads = names(allLoads())
		if quick {
			loads = slices.DeleteFunc(loads, func(n string) bool { return strings.HasSuffix(n, "-1M") || n == "both-1k-again" })
		}
	}
	if set.gateModes, err = choose(gateModes, append([]string{gateFloor, gateBaseline}, modes...)); err != nil {
		return err
	}
	if _, err := choose(allLoads(), loads); err != nil {
		return err
	}
	for _, s := range allScenarios {
		s.loads = slices.DeleteFunc(slices.Clone(s.loads), func(l gateLoad) bool { return !slices.Contains(loads, l.name) })
		if len(s.loads) > 0 {
			set.scenarios = append(set.scenarios, s)
		}
	}
	return nil
}

func quicken(set *settings, fs *pflag.FlagSet) {
	if !fs.Changed("rounds") {
		set.rounds = 2
	}
	if !fs.Changed("packets") {
		set.packets = 20_000
	}
	if !fs.Changed("bytes") {
		set.bytes = 30_000_000
	}
}

// gateLengths are those of the gateway's benchmark: each flow's way is looked up ten
// times a second, so that a measurement must be long enough to have its share of it.
func gateLengths(set *settings, fs *pflag.FlagSet, quick bool) {
	if !fs.Changed("rounds") && !quick {
		set.rounds = 3
	}
	if !fs.Changed("packets") {
		set.packets = 400_000
		if quick {
			set.packets = 200_000
		}
	}
}

type named interface{ title() string }

func names[T named](all []T) []string {
	var out []string
	for _, v := range all {
		out = append(out, v.title())
	}
	return out
}

// choose picks by name and keeps the order of all.
func choose[T named](all []T, wanted []string) ([]T, error) {
	for _, w := range wanted {
		if !slices.Contains(names(all), w) {
			return nil, fmt.Errorf("unknown %q: there are %s", w, strings.Join(names(all), ", "))
		}
	}
	var out []T
	for _, v := range all {
		if slices.Contains(wanted, v.title()) {
			out = append(out, v)
		}
	}
	return out, nil
}

func note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
