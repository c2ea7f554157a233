package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

// recorded runs a command and gives the records that it left.
func recorded(f *fake, stdin string, args ...string) (records []auditRecord) {
	e := &env{
		stdin: strings.NewReader(stdin), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, backend: f,
		missingCaps: func() []string { return nil }, auditLog: func(r auditRecord) { records = append(records, r) },
	}
	_ = run(e, args)
	return records
}

// reading are the commands that leave the gateway as it is.
var reading = []string{
	"agent", "check", "completion bash", "completion fish", "completion powershell", "completion zsh", "config schema", "config show", "demo",
	"explain", "flows", "forward list", "import", "man", "masquerade list", "mirror list", "policy list", "report", "status", "top", "version",
}

// Every command either leaves a record or is known not to change anything.
func TestAuditNamesCommands(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		name := strings.TrimPrefix(c.CommandPath(), "tapgate ")
		if c.RunE != nil && !slices.Contains([]string{"completion", "config", "forward", "masquerade", "mirror", "policy"}, name) && changing[name] == slices.Contains(reading, name) {
			t.Errorf("%s: is it changing or reading? Name it in one of both lists", name)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	started := false
	walk(newRootCommand(&env{}, &started))
}

func TestAuditOfCommands(t *testing.T) {
	t.Setenv("SUDO_USER", "anna")
	ok := &loader.Result{Changes: []string{"one", "two"}, Warnings: []string{"look out"}, Serial: 7}
	for _, c := range []struct {
		args    string
		command string // "" for none
		fake    *fake
		failed  bool
		changes []string
	}{
		{"apply -f - --netns /proc/self/ns/net", "apply", &fake{result: ok}, false, ok.Changes},
		{"apply -f -", "apply", &fake{applyErr: errors.New("no")}, true, nil},
		{"apply -f /nope", "apply", &fake{}, true, nil},
		{"attach --internal eth3 --dmz eth2 --sensor 192.168.4.2", "attach", &fake{result: ok}, false, ok.Changes},
		{"detach", "detach", &fake{result: ok}, false, ok.Changes},
		{"detach", "detach", &fake{err: loader.ErrNotAttached}, false, nil},
		{"mirror add rec --zone internal --l2 eth2", "mirror add", &fake{result: ok, source: smallConfig}, false, ok.Changes},
		{"mirror del ids", "mirror del", &fake{err: loader.ErrBusy}, true, nil},
		{"flows flush --all", "flows flush", &fake{source: smallConfig, flows: make([]loader.Flow, 3)}, false, []string{"3 flows flushed"}},
		{"apply -f - --dry-run", "", &fake{plan: &loader.Plan{}}, false, nil},
		{"status", "", &fake{status: &loader.Status{}, source: smallConfig}, false, nil},
		{"check", "", &fake{report: &loader.Report{}}, false, nil},
		{"flows", "", &fake{source: smallConfig}, false, nil},
	} {
		records := recorded(c.fake, smallConfig, strings.Fields(c.args)...)
		if c.command == "" {
			if len(records) > 0 {
				t.Errorf("%s: left %+v", c.args, records)
			}
			continue
		}
		if len(records) != 1 {
			t.Errorf("%s: %d records", c.args, len(records))
			continue
		}
		r := records[0]
		if r.command != c.command || r.line != "tapgate "+c.args || r.who.sudoUser != "anna" || r.who.uid != os.Getuid() ||
			(r.err != nil) != c.failed || !slices.Equal(r.changes, c.changes) {
			t.Errorf("%s: %+v", c.args, r)
		}
		if len(c.changes) == 2 && (r.serial != 7 || !slices.Equal(r.warnings, ok.Warnings)) {
			t.Errorf("%s: %+v", c.args, r)
		}
	}
	r := recorded(&fake{result: ok}, smallConfig, "apply", "-f", "-", "--netns", "/proc/self/ns/net")
	if len(r) != 1 || r[0].netns != "/proc/self/ns/net" {
		t.Errorf("network namespace: %+v", r)
	}
}

func TestAuditText(t *testing.T) {
	r := auditRecord{
		command: "forward add", line: commandLine([]string{"forward", "add", "a b", "--to", `x"y`}),
		who:     caller{uid: 0, loginUID: "1000", sudoUser: "anna", tty: "pts/3", sshPeer: "192.0.2.7:50122"},
		changes: []string{"one", "two", "three", "four", "five"}, serial: 12,
	}
	if want := `forward add: 5 changes (uid 0, login uid 1000, sudo from anna, on pts/3, by SSH from 192.0.2.7:50122): one; two; three; and 2 more`; r.text() != want {
		t.Errorf("got %s\nwant %s", r.text(), want)
	}
	if r.line != `tapgate forward add "a b" --to "x\"y"` {
		t.Error(r.line)
	}
	r = auditRecord{command: "apply", err: errors.Join(errors.New("this"), errors.New("that"))}
	if want := "apply failed (uid 0): this; that"; r.text() != want {
		t.Errorf("got %s\nwant %s", r.text(), want)
	}
	long := make([]string, 3000)
	for i := range long {
		long[i] = strings.Repeat("x", 40)
	}
	if got := limited(long); len(got) > auditLimit+100 || !strings.HasSuffix(got, " more") {
		t.Errorf("%d bytes, ending %q", len(got), got[len(got)-20:])
	}
}

func TestTTYOf(t *testing.T) {
	for stat, want := range map[string]string{
		"7 (a) b) S 1 7 7 34816 7 0":     "pts/0",
		"7 (sh) S 1 7 7 4229124 7 0":     "pts/1028",
		"7 (sh) S 1 7 7 1025 7 0":        "tty1",
		"7 (sh) S 1 7 7 1088 7 0":        "ttyS0",
		"7 (sh) S 1 7 7 0 7 0":           "",
		"7 (sh) S":                       "",
		"7 (ttyAMA) S 1 7 7 52224 0 0 0": "204:0",
	} {
		if got := ttyOf(stat); got != want {
			t.Errorf("%s: %q, want %q", stat, got, want)
		}
	}
}

// What the agent changes by itself is recorded, and its log is as it was.
func TestAuditOfAgent(t *testing.T) {
	var log bytes.Buffer
	var lines []string
	l := slog.New(auditHandler{slog.NewTextHandler(&log, nil), func(line string) { lines = append(lines, line) }})
	l.Info("looked")
	l.With("netns", "gw").Info("outside addresses have changed", "interface", "eth0", loader.Changed)
	if want := []string{"outside addresses have changed interface=eth0"}; !slices.Equal(lines, want) {
		t.Errorf("recorded %q, want %q", lines, want)
	}
	if strings.Count(log.String(), "\n") != 2 || !strings.Contains(log.String(), "netns=gw") {
		t.Error(log.String())
	}
	// Also what the log is too quiet for.
	quiet := slog.New(auditHandler{slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}), func(line string) { lines = append(lines, line) }})
	log.Reset()
	quiet.Info("a link came back", loader.Changed)
	if len(lines) != 2 || log.Len() != 0 {
		t.Errorf("recorded %q, logged %q", lines, &log)
	}

	// And what it was kept from, once for as long as the reason is the same.
	var records []auditRecord
	f := &fake{source: smallConfig}
	e := &env{backend: f, auditLog: func(r auditRecord) { records = append(records, r) }}
	a := &agent{env: e, opt: loader.Options{Netns: filepath.Join("/run/netns", "gw")}, log: slog.New(slog.DiscardHandler)}
	no, other := errors.New("no room"), errors.New("no memory")
	for _, err := range []error{no, no, other, nil, nil, no} {
		f.result, f.applyErr = &loader.Result{Changes: []string{"attached"}, Warnings: []string{"look out"}, Serial: 3}, err
		if err != nil {
			f.result = nil
		}
		if got := a.reapply(); !errors.Is(got, err) {
			t.Errorf("%v, want %v", got, err)
		}
	}
	got := ""
	for _, r := range records {
		got += fmt.Sprintf("%s %s %d %q %q %v; ", r.command, r.netns, r.serial, r.changes, r.warnings, r.err)
	}
	const failed, done = "agent /run/netns/gw 0 [] [] ", `agent /run/netns/gw 3 ["attached"] ["look out"] <nil>; `
	if want := failed + "no room; " + failed + "no memory; " + done + done + failed + "no room; "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
