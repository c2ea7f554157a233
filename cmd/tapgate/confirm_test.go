package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
)

var pendingChange = &loader.Pending{Until: "2026-11-22T22:31:07Z", Left: 43.2, Serial: 4}

// localTime is a time of day as commands show it here.
func localTime(t *testing.T, text string) string {
	t.Helper()
	when, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return when.Local().Format("15:04:05")
}

func TestApplyPlan(t *testing.T) {
	plan := &loader.Plan{Warnings: []string{"w"}, Changes: []loader.Change{
		{Kind: loader.ChangeAdded, What: "forward web", After: "tcp 80"},
		{Kind: loader.ChangeRemoved, What: "policy a", Before: "drop"},
		{Kind: loader.ChangeChanged, What: "forward rdp", Before: "tcp 1", After: "tcp 2"},
	}}
	const text = "+ forward web: tcp 80\n- policy a: drop\n~ forward rdp: tcp 1 -> tcp 2\n"
	f := &fake{plan: plan}
	if got := call(f, smallConfig, "apply", "-f", "-", "--dry-run"); got != (outcome{stdout: text, stderr: "tapgate: warning: w\ntapgate: dry run: nothing was changed\n"}) ||
		!slices.Equal(f.calls, []string{"dry run"}) {
		t.Errorf("dry run: %+v %v", got, f.calls)
	}
	f = &fake{plan: plan, applyErr: errors.Join(&loader.ConfigError{Path: "mirrors[0].targets[0].via", Err: "a"})}
	if got := call(f, smallConfig, "apply", "-f", "-", "--dry-run"); got.code != exitUsage || !strings.HasPrefix(got.errs, "stdin:") || got.stdout != "" {
		t.Errorf("a dry run that is refused: %+v", got)
	}
	// Before the change; what was announced is not told again.
	f = &fake{plan: plan, result: &loader.Result{Changes: []string{"+ forward web: tcp 80", "- policy a: drop", "~ forward rdp: tcp 1 -> tcp 2", "took over 3"}}}
	if got := call(f, smallConfig, "apply", "-f", "-"); got.stdout != text+"took over 3\n" {
		t.Errorf("apply: %+v", got)
	}
	got := call(f, smallConfig, "apply", "-f", "-", "--json")
	for _, want := range []string{`"change": "added"`, `"what": "forward web"`, `"after": "tcp 80"`, `"notes": [` + "\n    \"took over 3\"\n  ]"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("--json does not say %s: %+v", want, got)
		}
	}
}

func TestApplyConfirm(t *testing.T) {
	f := &fake{result: &loader.Result{Changes: []string{"c"}, Until: pendingChange.Until}}
	got := call(f, smallConfig, "apply", "-f", "-", "--confirm", "1m")
	if f.opt.Confirm != time.Minute || got.stdout != "c\n" || got.code != 0 ||
		!strings.Contains(got.stderr, "in force until "+localTime(t, pendingChange.Until)+", then all is as before again: keep it with \"tapgate confirm\"") {
		t.Errorf("%+v, options %+v", got, f.opt)
	}
	for _, flags := range []string{"--confirm 4s", "--confirm 61m", "--confirm 0", "--confirm x", "--confirm 60s --cut-over"} {
		f := &fake{result: done}
		if got := call(f, smallConfig, append([]string{"apply", "-f", "-"}, strings.Fields(flags)...)...); got.code != exitUsage || len(f.calls) > 0 {
			t.Errorf("%s: %+v %v", flags, got, f.calls)
		}
	}
}

func TestConfirmAndRollback(t *testing.T) {
	returned := &loader.Returned{Serial: 5, At: "2026-11-22T22:31:07Z", Itself: true}
	first := fmt.Errorf("%w: gone, since %w", loader.ErrNotAttached, loader.ErrUnconfirmed)
	for _, c := range []struct {
		name  string
		f     *fake
		args  string
		calls string
		code  int
		want  string // on either output, or in the error
	}{
		{"waits", &fake{pending: pendingChange, result: done}, "confirm", "open confirm", 0, "attached to eth3"},
		{"nothing waits", &fake{result: &loader.Result{}}, "confirm", "open confirm", 0, "already so: no change waits"},
		{"gone back", &fake{returned: returned}, "confirm", "open", 1, "change 5 was not confirmed in time and went back by itself at " + localTime(t, returned.At)},
		{"first, gone back", &fake{err: first}, "confirm", "open", 1, "too late: "},
		{"not attached", &fake{err: loader.ErrNotAttached}, "confirm", "open", 3, ""},
		{"clearing up fails", &fake{pending: pendingChange, applyErr: errors.New("x")}, "confirm", "open confirm", 1, "x"},

		{"waits", &fake{pending: pendingChange, result: done}, "rollback", "open take back", 0, "attached to eth3"},
		{"gone back", &fake{returned: returned, previous: smallConfig}, "rollback", "open", 0, "already so: change 5 was not confirmed"},
		{"gone back meanwhile", &fake{pending: pendingChange, lapse: returned}, "rollback", "open take back open", 0, "already so: change 5 was not confirmed"},
		{"nothing before", &fake{source: smallConfig}, "rollback", "open", 1, "no configuration before"},
		{"one before", &fake{previous: smallConfig, result: done}, "rollback --force", "open", 0, "attached to eth3"},
		{"does not fit", &fake{previous: smallConfig, applyErr: &loader.ConfigError{Path: "mirrors[0].zones[0]", Err: "a"}}, "rollback", "open", 2, "previous configuration:6:13: a"},
		{"not understood", &fake{previous: "zones: [later]\n"}, "rollback", "open", 1, "not understood"},
		{"not attached", &fake{err: loader.ErrNotAttached}, "rollback", "open", 3, ""},

		{"shown", &fake{source: "# c\n" + smallConfig, previous: "x"}, "config show", "open", 0, "# c\nzones:"},
		{"before shown", &fake{source: smallConfig, previous: "# old"}, "config show --previous", "open", 0, "# old"},
		{"none before", &fake{source: smallConfig}, "config show --previous", "open", 1, "no configuration before"},
	} {
		got := call(c.f, "", strings.Fields(c.args)...)
		calls := strings.Join(c.f.calls, " ")
		if got.code != c.code || calls != c.calls || !strings.Contains(got.stdout+got.stderr+got.errs, c.want) {
			t.Errorf("%s, %s: calls %q, want %q; want code %d and %q: %+v", c.args, c.name, calls, c.calls, c.code, c.want, got)
		}
	}
}

// What was confirmed is kept in a file for the next boot, and nothing else is.
func TestConfirmedFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "state")
	file := filepath.Join(dir, confirmedName)
	kept := func() string {
		text, err := os.ReadFile(file)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(text)
	}
	do := func(f *fake, args string) outcome {
		t.Helper()
		return call(f, smallConfig, append(strings.Fields(args), "--state-dir", dir)...)
	}
	do(&fake{result: done, source: "one", pending: pendingChange}, "apply -f - --confirm 60s")
	do(&fake{applyErr: errors.New("x"), source: "one"}, "apply -f -")
	do(&fake{plan: &loader.Plan{}, source: "one"}, "apply -f - --dry-run")
	do(&fake{status: &loader.Status{}, source: "one"}, "status")
	if text := kept(); text != "" {
		t.Errorf("kept, though nothing was confirmed: %q", text)
	}
	for _, c := range []struct {
		args string
		f    *fake
	}{
		{"apply -f -", &fake{}},
		{"attach --internal eth3 --dmz eth2 --sensor 192.168.4.2", &fake{}},
		{"confirm", &fake{pending: pendingChange}},
		{"confirm", &fake{}},
		{"rollback", &fake{previous: smallConfig}},
		{"rollback", &fake{returned: &loader.Returned{}}},
		{"mirror add new --zone internal --l2 eth2", &fake{}},
		{"mirror del ids", &fake{}},
	} {
		os.Remove(file)
		c.f.result, c.f.source = done, smallConfig
		if got := do(c.f, c.args); got.code != 0 || kept() != smallConfig || strings.Contains(got.stderr, "warning") {
			t.Errorf("%s: %+v; kept %q", c.args, got, kept())
		}
	}
	for name, want := range map[string]os.FileMode{dir: 0o700, file: 0o600} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v", name, st.Mode(), err)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("beside it: %v", names)
	}

	// A boot takes it, and the other one only where there is none.
	other := filepath.Join(t.TempDir(), "other.yaml")
	if err := os.WriteFile(other, []byte("# other\n"+smallConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fake{result: done, source: smallConfig}
	if got := do(f, "apply --confirmed -f "+other); got.code != 0 || f.cfg.Source != smallConfig {
		t.Errorf("%+v: applied %q", got, f.cfg.Source)
	}
	f = &fake{result: done}
	if got := do(f, "detach"); got.code != 0 || kept() != "" {
		t.Errorf("after detach: %+v, kept %q", got, kept())
	}
	f = &fake{result: done, source: smallConfig}
	if got := do(f, "apply --confirmed -f "+other); got.code != 0 || !strings.HasPrefix(f.cfg.Source, "# other") {
		t.Errorf("nothing is kept: %+v: applied %q", got, f.cfg.Source)
	}
	// Elsewhere there is nothing to take.
	if got := call(&fake{result: done}, "", "apply", "--confirmed", "-f", other); got.code != exitUsage {
		t.Errorf("without a folder: %+v", got)
	}

	// A failure is told, and none of the change.
	got := call(&fake{result: done, source: "two"}, smallConfig, "apply", "-f", "-", "--state-dir", "/dev/null")
	if got.code != 0 || !strings.Contains(got.stderr, "warning: in force, but not kept for the next boot in /dev/null/confirmed.yaml") {
		t.Errorf("a folder that cannot be: %+v", got)
	}
}

// Whatever runs in a network namespace of its own keeps nothing for the machine's boot,
// with all capabilities and with few.
func TestMachinesNetns(t *testing.T) {
	const asked = "TAPGATE_TEST_NETNS"
	if os.Getenv(asked) != "" {
		fmt.Printf("the machine's: %v\n", machinesNetns())
		return
	}
	few := "setpriv --inh-caps=-all --bounding-set=-all,+net_admin "
	for prefix, want := range map[string]bool{"": true, few: true, "unshare --net ": false, "unshare --net " + few: false} {
		words := append(strings.Fields(prefix), os.Args[0], "-test.run=^TestMachinesNetns$")
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Env = append(os.Environ(), asked+"=1")
		out, err := cmd.CombinedOutput()
		if line := fmt.Sprintf("the machine's: %v\n", want); err != nil || !strings.Contains(string(out), line) {
			t.Errorf("%q: want %q: %v\n%s", prefix, line, err, out)
		}
	}
}

func TestStatusPending(t *testing.T) {
	f := &fake{status: &loader.Status{Serial: 5, Pending: pendingChange}}
	if got := call(f, "", "status"); !strings.Contains(got.stdout, "pending     goes back at "+localTime(t, pendingChange.Until)+", in 43 s, unless it is confirmed: tapgate confirm\n") {
		t.Errorf("%+v", got)
	}
}
