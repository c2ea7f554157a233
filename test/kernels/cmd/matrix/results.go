package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"tapgate/test/kernels"
)

// result is what one kernel's run came to.
type result struct {
	Kernel   string            `json:"kernel"`
	Release  string            `json:"release"`
	Passed   int               `json:"passed"`
	Failed   int               `json:"failed"`
	Skipped  int               `json:"skipped"`
	Features []string          `json:"skipped_features"` // that tests were skipped for
	Facts    map[string]string `json:"facts"`            // what tests reported
	Seconds  float64           `json:"seconds"`
	Problems []string          `json:"problems"` // output of failed tests, and what else went wrong
}

func (r *result) ok() bool { return r.Failed == 0 && len(r.Problems) == 0 && r.Passed > 0 }

// line is the kernel's line of the report.
func (r *result) line() string {
	state := "ok  "
	if !r.ok() {
		state = "FAIL"
	}
	s := fmt.Sprintf("%s %-8s %-28s passed %d, failed %d, skipped %d, %.0f s", state, r.Kernel, r.Release, r.Passed, r.Failed, r.Skipped, r.Seconds)
	if len(r.Features) > 0 {
		s += ", without: " + strings.Join(r.Features, " ")
	}
	return s
}

// event is one line of "go tool test2json".
type event struct {
	Action, Test, Output string
}

// read takes the log of a run apart.
func read(ctx context.Context, name string, log []byte, took time.Duration) (*result, error) {
	r := &result{Kernel: name, Release: "-", Facts: map[string]string{}, Seconds: took.Seconds()}
	done := false
	var current string
	var body bytes.Buffer
	for line := range bytes.Lines(log) {
		key, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		switch key {
		case "TAPGATE-RELEASE":
			r.Release = value
		case "TAPGATE-START":
			current = value
			body.Reset()
		case "TAPGATE-EXIT":
			if err := r.addPackage(ctx, current, body.Bytes(), value); err != nil {
				return nil, err
			}
			current = ""
		case "TAPGATE-ERROR":
			r.Problems = append(r.Problems, "the guest's init: "+value)
		case "TAPGATE-DONE":
			done = true
		default:
			body.Write(line)
		}
	}
	if current != "" {
		if err := r.addPackage(ctx, current, body.Bytes(), "none"); err != nil {
			return nil, err
		}
	}
	if !done {
		r.Problems = append(r.Problems, "the run did not come to its end")
	}
	if r.Passed+r.Failed == 0 {
		r.Problems = append(r.Problems, "no test ran")
	}
	r.settle()
	return r, nil
}

// settle makes the counts show what went wrong outside the tests.
func (r *result) settle() {
	if len(r.Problems) > 0 && r.Failed == 0 {
		r.Failed = 1
	}
}

// addPackage counts the tests of one binary that have no subtests: the others
// only sum these up.
func (r *result) addPackage(ctx context.Context, pkg string, log []byte, exit string) error {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-p", pkg)
	cmd.Stdin = bytes.NewReader(log)
	out, err := output(cmd)
	if err != nil {
		return err
	}
	said := map[string]string{}
	ended := map[string]string{}
	var order []string
	for d := json.NewDecoder(strings.NewReader(out)); d.More(); {
		var e event
		if err := d.Decode(&e); err != nil {
			return err
		}
		switch e.Action {
		case "run":
			order = append(order, e.Test)
		case "output":
			said[e.Test] += e.Output
			if _, fact, ok := strings.Cut(e.Output, kernels.ReportPrefix); ok {
				key, value, _ := strings.Cut(strings.TrimSpace(fact), "=")
				r.fact(key, value)
			}
		case "pass", "fail", "skip":
			if e.Test != "" {
				ended[e.Test] = e.Action
			}
		}
	}
	failed := 0
	for i, test := range order {
		hasSubtests := i+1 < len(order) && slices.ContainsFunc(order, func(o string) bool { return strings.HasPrefix(o, test+"/") })
		switch ended[test] {
		case "pass":
			if !hasSubtests {
				r.Passed++
			}
			r.attached(test)
		case "skip":
			r.skip(pkg, test, said[test])
		default:
			failed++
			if text := message(said[test]); text != "" || !hasSubtests {
				r.Problems = append(r.Problems, fmt.Sprintf("%s %s:\n%s", pkg, test, tail(text, 40)))
			}
			if !hasSubtests {
				r.Failed++
			}
		}
	}
	if exit != "0" && failed == 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("%s ended with code %s:\n%s", pkg, exit, tail(string(log), 40)))
	}
	return nil
}

// attached notes the way to attach that a passed test is named after.
func (r *result) attached(test string) {
	for part := range strings.SplitSeq(test, "/") {
		if part == "tcx" || part == "clsact" {
			r.fact("attach", part)
		}
	}
}

// message is what a test said without the lines that frame it.
func message(said string) string {
	var b strings.Builder
	for line := range strings.Lines(said) {
		if bare := strings.TrimSpace(line); !strings.HasPrefix(bare, "=== ") && !strings.HasPrefix(bare, "--- ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// fact keeps what a test reported; different values of one key stand side by side.
func (r *result) fact(key, value string) {
	have, ok := r.Facts[key]
	switch {
	case !ok:
		r.Facts[key] = value
	case !slices.Contains(strings.Split(have, ","), value):
		r.Facts[key] = have + "," + value
	}
}

func (r *result) skip(pkg, test, said string) {
	_, feature, ok := strings.Cut(said, kernels.SkipPrefix)
	if !ok {
		r.Problems = append(r.Problems, fmt.Sprintf("%s %s was skipped without kernels.Require, so nothing says that it may be:\n%s", pkg, test, tail(said, 10)))
	}
	r.Skipped++
	if feature, _, _ = strings.Cut(feature, "\n"); feature != "" && !slices.Contains(r.Features, feature) {
		r.Features = append(r.Features, feature)
		slices.Sort(r.Features)
	}
}

// tail is the end of a text, at most n lines.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = append([]string{"..."}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "\n")
}
