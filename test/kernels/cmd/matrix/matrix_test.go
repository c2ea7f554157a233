package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tapgate/test/kernels"
)

// v marks a line for test2json, as "-test.v=test2json" does.
const v = "\x16"

func TestRead(t *testing.T) {
	const begin, end = "TAPGATE-RELEASE 5.10.0-1\n\nTAPGATE-START ./test/x\n", "TAPGATE-DONE\n"
	for _, tc := range []struct {
		name, log               string
		passed, failed, skipped int
		problem                 string // empty: none
	}{
		{
			name: "subtests count, their parent does not", passed: 3, skipped: 1,
			log: begin + v + "=== RUN   TestA\n" + v + "=== RUN   TestA/one\n" + v + "--- PASS: TestA/one (0.00s)\n" +
				v + "=== RUN   TestA/two\n" + v + "--- PASS: TestA/two (0.00s)\n" + v + "--- PASS: TestA (0.00s)\n" +
				v + "=== RUN   TestAB\n" + v + "--- PASS: TestAB (0.00s)\n" +
				v + "=== RUN   TestC\n    x.go:1: " + kernels.SkipPrefix + "tcx\n" + v + "--- SKIP: TestC (0.00s)\n" + v + "PASS\n\nTAPGATE-EXIT 0\n" + end,
		},
		{
			name: "a failure shows what the test said", failed: 1, problem: "the reason",
			log: begin + v + "=== RUN   TestA\n    x.go:1: the reason\n" + v + "--- FAIL: TestA (0.00s)\n" + v + "FAIL\n\nTAPGATE-EXIT 1\n" + end,
		},
		{
			name: "a skip without a feature", failed: 1, skipped: 1, problem: "without kernels.Require",
			log: begin + v + "=== RUN   TestA\n    x.go:1: not today\n" + v + "--- SKIP: TestA (0.00s)\n" + v + "PASS\n\nTAPGATE-EXIT 0\n" + end,
		},
		{
			name: "a crash of the binary", failed: 1, problem: "panic: oh",
			log: begin + v + "=== RUN   TestA\npanic: oh\n\nTAPGATE-EXIT 2\n" + end,
		},
		{
			name: "a binary that fails without a failed test", passed: 1, failed: 1, problem: "ended with code 1",
			log: begin + v + "=== RUN   TestA\n" + v + "--- PASS: TestA (0.00s)\n" + v + "PASS\n\nTAPGATE-EXIT 1\n" + end,
		},
		{
			name: "the machine died", passed: 1, failed: 1, problem: "did not come to its end",
			log: begin + v + "=== RUN   TestA\n" + v + "--- PASS: TestA (0.00s)\n" + v + "=== RUN   TestB\n",
		},
		{name: "no tests", log: begin + "PASS\n\nTAPGATE-EXIT 0\n" + end, failed: 1, problem: "no test ran"},
		{name: "the guest could not start", log: "TAPGATE-RELEASE 5.10.0-1\n\nTAPGATE-ERROR load module x: oh\n", failed: 1, problem: "load module x: oh"},
		{name: "nothing came", failed: 1, problem: "did not come to its end"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := read(t.Context(), "5.10", []byte(tc.log), 0)
			if err != nil {
				t.Fatal(err)
			}
			if r.Passed != tc.passed || r.Failed != tc.failed || r.Skipped != tc.skipped {
				t.Errorf("passed %d, failed %d, skipped %d; want %d, %d, %d", r.Passed, r.Failed, r.Skipped, tc.passed, tc.failed, tc.skipped)
			}
			problems := strings.Join(r.Problems, "\n")
			if !strings.Contains(problems, tc.problem) || r.ok() != (tc.problem == "") {
				t.Errorf("ok %v, problems %q; want %q", r.ok(), problems, tc.problem)
			}
		})
	}
}

func TestAttached(t *testing.T) {
	var r = result{Facts: map[string]string{}}
	for _, test := range []string{"TestShort/clsact", "TestShort/tcx/more", "TestShort/tcx", "TestTcx/xtcx"} {
		r.attached(test)
	}
	if got := r.Facts["attach"]; got != "clsact,tcx" {
		t.Errorf("got %q", got)
	}
}

func TestTable(t *testing.T) {
	r := &result{Kernel: "5.10", Release: "5.10.0-1", Passed: 3, Skipped: 1, Features: []string{"tcx"},
		Facts: map[string]string{"has": "clsact,vlan", "attach": "clsact"}}
	text, err := replaceTable([]byte("a\n"+tableBegin+"\nold\n"+tableEnd+"\nb\n"), table([]*result{r}))
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	const row = "| 5.10 | 5.10.0-1 | clsact | no | yes | no | no | 3 | 0 | 1: tcx |\n"
	if !strings.HasPrefix(got, "a\n"+tableBegin+"\n|") || !strings.HasSuffix(got, row+tableEnd+"\nb\n") || strings.Contains(got, "old") {
		t.Errorf("got:\n%s", got)
	}
	if _, err := replaceTable([]byte("no markers"), ""); err == nil {
		t.Error("a text without markers was changed")
	}
	page, err := os.ReadFile(filepath.Join("../../../..", readme))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replaceTable(page, ""); err != nil {
		t.Errorf("%s: %v", readme, err)
	}
}

// TestArchive has cpio read what the kernel will.
func TestArchive(t *testing.T) {
	a := newArchive()
	a.add("a/b/odd", []byte("12345"))
	a.link("a/link", "b/odd")
	a.add("top", nil)
	cmd := exec.Command("cpio", "-it", "--quiet")
	cmd.Stdin = bytes.NewReader(a.bytes())
	out, err := output(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Fields(out), []string{"a", "a/b", "a/b/odd", "a/link", "top"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestComplaints(t *testing.T) {
	console := "[    1.0] mtrr: your CPUs\n[    2.5] BUG: unable to handle page fault\n[    3.1] WARNING: CPU: 0 PID: 1 at net/core/dev.c:1\n"
	if got := complaints([]byte(console)); len(got) != 2 {
		t.Errorf("got %q, want the last two lines", got)
	}
}
