// Command matrix runs the tests of test/kernels/kernels.json on its kernels.
// scripts/kernels.sh builds and starts it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"tapgate/test/kernels"
)

const usage = `usage: scripts/kernels.sh [flags] [KERNEL...]

Boots the kernels of test/kernels/kernels.json (or those named) in software
emulation, runs the tests listed there in each, and prints one line per kernel.
"running" is the kernel of this machine, without emulation; it needs root.
Packages, images and full logs stay in ${TAPGATE_CACHE:-~/.cache/tapgate}.

`

func main() {
	runtime.LockOSThread() // children die with the thread that started them
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

type options struct {
	list, fetch, table, readme, update, noTapgate bool

	json    string
	jobs    int
	timeout time.Duration
	tests   []string
}

func run(ctx context.Context, args []string) error {
	var o options
	f := pflag.NewFlagSet("kernels", pflag.ContinueOnError)
	f.BoolVar(&o.list, "list", false, "print the names of the kernels as JSON, and do no more")
	f.BoolVar(&o.fetch, "fetch", false, "download and unpack, print the paths of the images, and do no more")
	f.BoolVar(&o.update, "update", false, "ask for newer packages now, not only when those in the cache are a week old")
	f.BoolVar(&o.table, "table", false, "print the results as a Markdown table too")
	f.BoolVar(&o.readme, "readme", false, "write that table into "+readme+"; needs all kernels")
	f.BoolVar(&o.noTapgate, "no-tapgate", false, "do not build cmd/tapgate and give it to the tests")
	f.StringVar(&o.json, "json", "", "write the results into this file")
	f.IntVar(&o.jobs, "jobs", max(1, runtime.NumCPU()), "how many kernels run at the same time, with 1 GB of memory each")
	f.DurationVar(&o.timeout, "timeout", 15*time.Minute, "longest time for one boot of a kernel; one that hangs is booted once more")
	f.StringArrayVar(&o.tests, "test", nil, "run this instead of the list's tests: PACKAGE or PACKAGE=RUN")
	f.Usage = func() { fmt.Fprint(os.Stderr, usage+f.FlagUsages()) }
	if err := f.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	list, err := kernels.Load()
	if err != nil {
		return err
	}
	chosen, err := choose(list.Kernels, f.Args())
	if err != nil {
		return err
	}
	cache, err := cacheFolder()
	if err != nil {
		return err
	}
	switch {
	case o.list:
		return printNames(chosen)
	case o.fetch:
		return fetchAll(ctx, cache, chosen, o.update)
	case o.readme && len(chosen) != len(list.Kernels):
		return fmt.Errorf("--readme needs all kernels, not only %s", strings.Join(f.Args(), " "))
	}
	if len(o.tests) > 0 {
		list.Tests = nil
		for _, t := range o.tests {
			pkg, pattern, _ := strings.Cut(t, "=")
			list.Tests = append(list.Tests, kernels.Test{Package: pkg, Run: pattern})
		}
	}
	m := &matrix{options: o, list: list, cache: cache}
	return m.run(ctx, chosen)
}

func choose(all []kernels.Kernel, names []string) ([]kernels.Kernel, error) {
	if len(names) == 0 {
		return all, nil
	}
	var chosen []kernels.Kernel
	for _, n := range names {
		i := slices.IndexFunc(all, func(k kernels.Kernel) bool { return k.Name == n })
		if i < 0 {
			return nil, fmt.Errorf("kernel %q is not in kernels.json", n)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func cacheFolder() (string, error) {
	if dir := os.Getenv("TAPGATE_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "tapgate"), err
}

func printNames(chosen []kernels.Kernel) error {
	var names []string
	for _, k := range chosen {
		if len(k.Suites) > 0 {
			names = append(names, k.Name)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(names)
}

func fetchAll(ctx context.Context, cache string, chosen []kernels.Kernel, update bool) error {
	for _, k := range chosen {
		if len(k.Suites) == 0 {
			continue
		}
		img, err := fetch(ctx, cache, k, update)
		if err != nil {
			return err
		}
		fmt.Println(k.Name, img.kernel, img.modules)
	}
	return nil
}

// matrix is one run of the script.
type matrix struct {
	options  options
	list     *kernels.List
	cache    string
	binaries []binary
	tapgate  string
	common   []byte
	fetching sync.Mutex
}

func (m *matrix) run(ctx context.Context, chosen []kernels.Kernel) error {
	folder, err := os.MkdirTemp("", "tapgate-kernels-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	start := time.Now()
	m.binaries, err = build(ctx, folder, m.list.Tests)
	if err != nil {
		return err
	}
	if !m.options.noTapgate {
		m.tapgate = filepath.Join(folder, "tapgate")
		if _, err := goCommand(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", m.tapgate, "./cmd/tapgate"); err != nil {
			return err
		}
	}
	a, err := common(ctx, folder, m.binaries, m.tapgate, m.list.Tools)
	if err != nil {
		return err
	}
	m.common = a.bytes()
	fmt.Fprintf(os.Stderr, "kernels: built %d test binaries in %.0f s, %d MB with tools\n", len(m.binaries), time.Since(start).Seconds(), len(m.common)>>20)

	results := m.all(ctx, folder, chosen)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	sum := &result{}
	var failed []string
	for _, r := range results {
		if !r.ok() {
			failed = append(failed, r.Kernel)
		}
		sum.Passed, sum.Failed, sum.Skipped = sum.Passed+r.Passed, sum.Failed+r.Failed, sum.Skipped+r.Skipped
	}
	if err := m.publish(results); err != nil {
		return err
	}
	fmt.Printf("%d kernels: %d passed, %d failed, %d skipped\n", len(results), sum.Passed, sum.Failed, sum.Skipped)
	if len(failed) > 0 {
		return fmt.Errorf("failed on %s", strings.Join(failed, ", "))
	}
	return nil
}

// all runs some kernels at a time and tells of each when it is done. The results are
// in the order of the list.
func (m *matrix) all(ctx context.Context, folder string, chosen []kernels.Kernel) []*result {
	results := make([]*result, len(chosen))
	next := make(chan int)
	var workers sync.WaitGroup
	var telling sync.Mutex
	for range min(max(1, m.options.jobs), len(chosen)) {
		workers.Go(func() {
			runtime.LockOSThread() // as in main
			for i := range next {
				r, err := m.kernel(ctx, folder, chosen[i])
				if err != nil {
					r = &result{Kernel: chosen[i].Name, Release: "-", Failed: 1, Problems: []string{err.Error()}}
				}
				results[i] = r
				telling.Lock()
				if ctx.Err() == nil {
					m.tell(chosen[i], r)
				}
				telling.Unlock()
			}
		})
	}
	for i := range chosen {
		next <- i
	}
	close(next)
	workers.Wait()
	return results
}

func (m *matrix) tell(k kernels.Kernel, r *result) {
	fmt.Println(r.line())
	for _, p := range r.Problems {
		fmt.Println("    " + strings.ReplaceAll(strings.TrimSpace(p), "\n", "\n    "))
	}
	if !r.ok() {
		fmt.Println("    full log: " + m.logs(k))
	}
}

func (m *matrix) logs(k kernels.Kernel) string { return filepath.Join(m.cache, "logs", k.Name) }

// keep puts the logs of a run where they outlive it. While it lasts they are in
// its own folder, since there may be another run at the same time.
func (m *matrix) keep(k kernels.Kernel, console, tests []byte) error {
	if err := os.MkdirAll(m.logs(k), 0o755); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(m.logs(k), "console.log"), console, 0o644),
		os.WriteFile(filepath.Join(m.logs(k), "tests.log"), tests, 0o644))
}

// kernel runs the tests on one kernel.
func (m *matrix) kernel(ctx context.Context, folder string, k kernels.Kernel) (*result, error) {
	if len(k.Suites) == 0 {
		start := time.Now()
		log, err := direct(ctx, k, m.binaries, m.tapgate)
		if err := errors.Join(err, m.keep(k, nil, log)); err != nil {
			return nil, err
		}
		return read(ctx, k.Name, log, time.Since(start))
	}
	img, err := m.fetch(ctx, k)
	if err != nil {
		return nil, err
	}
	folder = filepath.Join(folder, k.Name)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	initramfs := filepath.Join(folder, "initramfs.cpio")
	if err := m.initramfs(initramfs, img); err != nil {
		return nil, err
	}
	start := time.Now()
	console, log, bootErr := boot(ctx, folder, k, img, initramfs, m.options.timeout)
	if stuck(ctx, log, bootErr) {
		fmt.Fprintf(os.Stderr, "kernels: %s hung or did not come up (%d bytes of tests): booting it once more\n", k.Name, len(log))
		console, log, bootErr = boot(ctx, folder, k, img, initramfs, m.options.timeout)
	}
	took := time.Since(start)
	if err := m.keep(k, console, log); err != nil {
		return nil, err
	}
	r, err := read(ctx, k.Name, log, took)
	if err != nil {
		return nil, errors.Join(bootErr, err)
	}
	if bootErr != nil {
		r.Problems = append(r.Problems, bootErr.Error(), "console:\n"+tail(string(console), 30))
	}
	if said := complaints(console); len(said) > 0 {
		r.Problems = append(r.Problems, "the kernel complained:\n"+strings.Join(said, "\n"))
	}
	r.settle()
	return r, nil
}

// fetch fetches one image at a time: packages are kept in one place for all.
func (m *matrix) fetch(ctx context.Context, k kernels.Kernel) (*image, error) {
	m.fetching.Lock()
	defer m.fetching.Unlock()
	return fetch(ctx, m.cache, k, m.options.update)
}

// stuck says that the emulator, not a test, is to blame: software emulation now
// and then hangs or breaks a kernel while it boots (seen with 5.10 and 7.3). A
// guest that ran its tests to the end, or failed in them, is not tried again.
func stuck(ctx context.Context, log []byte, err error) bool {
	if ctx.Err() != nil || bytes.Contains(log, []byte("TAPGATE-DONE")) {
		return false
	}
	return errors.Is(err, errHung) || !bytes.Contains(log, []byte("TAPGATE-START"))
}

func (m *matrix) initramfs(path string, img *image) error {
	a := newArchive()
	if err := modules(a, img.modules, m.list.Modules); err != nil {
		return err
	}
	return os.WriteFile(path, slices.Concat(m.common, a.bytes()), 0o600)
}

// publish writes the results where the flags say.
func (m *matrix) publish(results []*result) error {
	t := table(results)
	if m.options.table {
		fmt.Print("\n", t, "\n")
	}
	if m.options.readme {
		if err := writeReadme(readme, t); err != nil {
			return err
		}
	}
	if m.options.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(m.options.json, append(text, '\n'), 0o644)
}
