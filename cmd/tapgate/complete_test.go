package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
)

func TestCompletion(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string // proposals, and at the end cobra's directive: 0 files, 4 nothing else
	}{
		{[]string{"mirror", "del", ""}, "ids record :4"},
		{[]string{"mirror", "del", "re"}, "record :4"},
		{[]string{"mirror", "del", "x"}, ":4"},
		{[]string{"mirror", "del", "ids", ""}, ":4"},
		{[]string{"mirror", "add", "x", "--zone", ""}, "external app mgmt :4"},
		{[]string{"mirror", "add", "x", "--zone=a"}, "app :4"},
		{[]string{"mirror", "add", "x", "--zone", "app,"}, "app,external app,mgmt :4"},
		{[]string{"mirror", "add", "x", "--zone", "app,m"}, "app,mgmt :4"},
		{[]string{"status", "--netns", "/proc/"}, ":0"},
		{[]string{"status", "--netns", "tg-no-such"}, ":4"},
	} {
		f := &fake{source: exampleConfig}
		got := call(f, "", append([]string{"__completeNoDesc"}, c.args...)...)
		if words := strings.Join(strings.Fields(got.stdout), " "); words != c.want || got.code != 0 || got.errs != "" {
			t.Errorf("%q: %q, want %q: %+v", c.args, words, c.want, got)
		}
		if len(f.calls) > 0 && (f.opened != loader.ReadOnly || f.closed != 1 || f.opt.LockTimeout > time.Second) {
			t.Errorf("%q: mode %v, closed %d times, waits %v for the lock", c.args, f.opened, f.closed, f.opt.LockTimeout)
		}
	}
}

// What completes is where the command would go.
func TestCompletionOfAnotherGateway(t *testing.T) {
	f := &fake{source: exampleConfig}
	got := call(f, "", "__completeNoDesc", "mirror", "del", "--netns", "/proc/self/ns/net", "--bpffs", "/b", "i")
	if got.stdout != "ids\n:4\n" || f.opt.Netns != "/proc/self/ns/net" || f.opt.BPFFS != "/b" {
		t.Errorf("%+v, options %+v", got, f.opt)
	}
}

func TestCompletionOfNetns(t *testing.T) {
	entries, _ := os.ReadDir(netnsDir)
	got := call(&fake{}, "", "__completeNoDesc", "status", "--netns", "")
	words := strings.Fields(got.stdout)
	for _, e := range entries {
		// Tests of other packages come and go.
		if _, err := os.Stat(netnsDir + "/" + e.Name()); err == nil && !slices.Contains(words, e.Name()) {
			t.Errorf("%q is not among %q", e.Name(), words)
		}
	}
}

// Where nothing can be known, nothing is proposed and nothing said.
func TestCompletionOfNothing(t *testing.T) {
	for what, f := range map[string]*fake{
		"not attached": {err: loader.ErrNotAttached},
		"broken":       {err: errors.New("broken")},
		"later text":   {source: "zones: [later]\n"},
	} {
		for _, args := range [][]string{{"mirror", "del", ""}, {"mirror", "add", "x", "--zone", ""}, {"mirror", "del", "--netns", "tg-nope", ""}} {
			got := call(f, "", append([]string{"__completeNoDesc"}, args...)...)
			if got.stdout != ":4\n" || got.code != 0 || strings.Contains(got.stderr, "tapgate: ") {
				t.Errorf("%s: %q: %+v", what, args, got)
			}
		}
	}
}
