package main

import (
	"fmt"
	"slices"
	"testing"

	"tapgate/loader"
)

func TestUpgradeCommand(t *testing.T) {
	f := &fake{result: done}
	if got := call(f, "", "upgrade"); got != (outcome{stdout: "attached to eth3\n"}) || !slices.Equal(f.calls, []string{"upgrade, dry run false"}) {
		t.Errorf("%+v, %v", got, f.calls)
	}
	f = &fake{result: done}
	got := call(f, "", "upgrade", "--dry-run", "--netns", "/proc/self/ns/net")
	if got != (outcome{stdout: "attached to eth3\n", stderr: "tapgate: dry run: nothing was changed\n"}) ||
		!slices.Equal(f.calls, []string{"upgrade, dry run true"}) || f.opt.Netns != "/proc/self/ns/net" {
		t.Errorf("%+v, %v, %+v", got, f.calls, f.opt)
	}
	f = &fake{result: &loader.Result{}}
	if got := call(f, "", "upgrade"); got != (outcome{stderr: "tapgate: already so: nothing to change\n"}) {
		t.Errorf("already so: %+v", got)
	}
	for err, want := range map[error]int{
		fmt.Errorf("%w: no state", loader.ErrNotAttached): exitNotAttached,
		fmt.Errorf("%w: layout 7", loader.ErrState):       exitFailed,
		fmt.Errorf("%w: pid 1", loader.ErrBusy):           exitBusy,
	} {
		if got := call(&fake{err: err}, "", "upgrade"); got.code != want || got.errs != err.Error() || got.stdout != "" {
			t.Errorf("%v: %+v", err, got)
		}
	}
}

// The configuration in force can be shown though its maps are another tapgate's.
func TestConfigShowOfAnotherLayout(t *testing.T) {
	f := &fake{err: fmt.Errorf("%w: layout 7", loader.ErrState), source: smallConfig}
	if got := call(f, "", "config", "show"); got != (outcome{stdout: smallConfig}) || !slices.Equal(f.calls, []string{"open", "source"}) {
		t.Errorf("%+v, %v", got, f.calls)
	}
	if got := call(f, "", "config", "show", "--previous"); got.code != exitFailed {
		t.Errorf("the one before: %+v", got)
	}
}
