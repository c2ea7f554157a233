package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tapgate/loader"
)

const smallConfig = `zones:
  internal: {interfaces: [eth3]}
  dmz: {interfaces: [eth2]}
mirrors:
  - name: ids
    zones: [internal]
    targets:
      - {via: 192.168.4.2}
`

var done = &loader.Result{Changes: []string{"attached to eth3"}}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		want string // how the error begins
	}{
		{"bogus", `unknown command "bogus" for "tapgate"`},
		{"status extra", `status takes no arguments, only flags; got "extra"; see tapgate status --help`},
		{"mirror list x", `mirror list takes no arguments, only flags; got "x"; see tapgate mirror list --help`},
		{"detach extra", `detach takes no arguments, only flags; got "extra"; see tapgate detach --help`},
		{"apply a.yaml", `apply takes no arguments, only flags; got "a.yaml"; did you mean -f a.yaml?`},
		{"check a.yaml", `check takes no arguments, only flags; got "a.yaml"; did you mean -f a.yaml?`},
		{"apply -f a.yaml b", `apply takes no arguments, only flags; got "b"; see tapgate apply --help`},
		{"completion", "completion what? One of bash, fish, powershell, zsh; see tapgate completion --help"},
		{"completion foo", `unknown command "foo" for completion; known: bash, fish, powershell, zsh`},
		{"completion bash x", `completion bash takes no arguments, only flags; got "x"; see tapgate completion bash --help`},
		{"status --json --metrics", "if any flags in the group [json metrics] are set none of the others can be"},
		{"status --bogus", "unknown flag: --bogus"},
		{"status --attach-kind xdp", `invalid argument "xdp" for "--attach-kind" flag: must be auto, tcx or clsact`},
		{"status --lock-timeout 0s", "--lock-timeout 0s: must be above zero"},
		{"status --lock-timeout soon", `invalid argument "soon" for "--lock-timeout"`},
		{"status --bpffs=", "--bpffs: must not be empty"},
		{"status --netns /nope/net", "--netns /nope/net: no such file"},
		{"status --netns tg-nope", "--netns tg-nope: "},
		{"status --netns=", "--netns: must not be empty; leave it out for the namespace that tapgate runs in"},
		{"detach --netns=", "--netns: must not be empty"},
		{"status --netns /etc/passwd", "--netns /etc/passwd is not a network namespace; give a name under /run/netns, or a path as /proc/PID/ns/net"},
		{"status --netns /proc/self/ns/mnt", "--netns /proc/self/ns/mnt is not a network namespace"},
		{"status --netns .", "--netns . "},
		{"mirror", "mirror what? One of add, del, list; see tapgate mirror --help"},
		{"mirror lits", `unknown command "lits" for mirror; did you mean "list"?`},
		{"mirror add", "which mirror? Its NAME is missing"},
		{"mirror del ''", "which mirror? Its NAME is missing"},
		{"mirror add a b --via 192.0.2.1", "one NAME at a time, got a b"},
		{"mirror add ids", "no target: --via ADDR, or --l2 IF"},
		{"mirror add ids --via 192.0.2.1 --l2 eth2", "--via and --l2 are two targets: one at a time"},
		{"mirror add ids --via 192.0.2.1 --mac 02:00:00:00:00:01", "--mac goes with --l2"},
		{"mirror add ids --via 192.0.2", `--via: "192.0.2" is not an IP address`},
		{"mirror add ids --l2=", "--l2: the name of an interface is missing"},
		{"mirror add ids --l2 eth2 --mac 02", `--mac: "02" is not a MAC address of 6 bytes`},
		{"mirror del ids --mac 02", "--mac goes with --l2"},
		{"apply", "which configuration? -f FILE, or -f - for standard input"},
		{"apply -f /nope/x.yaml", "/nope/x.yaml: no such file or directory"},
		{"apply -f /", "/: is a directory"},
		{"attach", "--internal is missing: tapgate attach --internal IF[,IF] --dmz IF --sensor ADDR"},
		{"attach --internal a --dmz b", "--sensor is missing: "},
		{"attach --internal a --dmz b --sensor c", `--sensor: "c" is not an IP address`},
	} {
		f := &fake{result: done, source: smallConfig, status: &loader.Status{}}
		words := strings.Fields(c.args)
		for i := range words {
			words[i] = strings.Trim(words[i], "'")
		}
		got := call(f, "", words...)
		if !strings.HasPrefix(got.errs, c.want) || got.code != exitUsage {
			t.Errorf("%s: exit %d\n got %s\nwant %s", c.args, got.code, got.errs, c.want)
		}
		if got.stdout != "" {
			t.Errorf("%s: on stdout: %s", c.args, got.stdout)
		}
		if len(f.calls) > 0 {
			t.Errorf("%s: the loader was called: %v", c.args, f.calls)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, exitDone},
		{errors.New("broken"), exitFailed},
		{fmt.Errorf("%w: layout 7", loader.ErrState), exitFailed},
		{fmt.Errorf("%w: no state", loader.ErrNotAttached), exitNotAttached},
		{fmt.Errorf("%w: pid 7", loader.ErrBusy), exitBusy},
		{errors.Join(errors.New("other"), fmt.Errorf("%w: pid 7", loader.ErrBusy)), exitBusy},
		{&loader.ConfigError{Path: "zones", Err: "bad"}, exitUsage},
	} {
		f := &fake{
			err: c.err, applyErr: c.err, status: &loader.Status{}, report: &loader.Report{}, source: smallConfig, result: done,
			explanation: &loader.Explanation{},
		}
		for _, args := range []string{"status", "mirror list", "check", "mirror add ids --l2 eth2", "mirror del ids", "apply -f -",
			"forward list", "masquerade add --from internal --to dmz", "policy list", "flows", "flows flush --all", "explain 192.0.2.1 192.0.2.2 icmp"} {
			if got := call(f, smallConfig, strings.Fields(args)...); got.code != c.code {
				t.Errorf("%s with %v: exit %d, want %d", args, c.err, got.code, c.code)
			}
		}
	}
}

func TestNeedsRoot(t *testing.T) {
	for _, args := range []string{
		"status", "apply", "apply -f /nope", "attach", "detach", "check -f /nope",
		"mirror list", "mirror add x --via 192.0.2.1", "mirror del x", "status --netns /nope",
		"forward list", "forward add x", "forward del x", "masquerade list", "masquerade add", "masquerade del x", "policy list",
		"flows", "flows flush", "explain 192.0.2.1 192.0.2.2 icmp", "agent",
	} {
		f := &fake{}
		e := &env{
			stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{},
			backend: f, missingCaps: func() []string { return []string{"CAP_BPF"} },
		}
		err := run(e, strings.Fields(args))
		if err == nil || !strings.HasPrefix(err.Error(), "needs root (CAP_BPF, CAP_NET_ADMIN, ") || exitCode(err) != exitFailed {
			t.Errorf("%s: exit %d: %v", args, exitCode(err), err)
		}
		if len(f.calls) > 0 {
			t.Errorf("%s: the loader was called: %v", args, f.calls)
		}
	}
	for _, args := range []string{"version", "help", "completion bash", "status --help", "mirror --help"} {
		e := &env{
			stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{},
			missingCaps: func() []string { return []string{"CAP_BPF"} },
		}
		if err := run(e, strings.Fields(args)); err != nil {
			t.Errorf("%s without root: %v", args, err)
		}
	}
}

func TestApply(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tapgate.yaml")
	if err := os.WriteFile(file, []byte(smallConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ file, stdin string }{{file, ""}, {"-", smallConfig}, {"/dev/stdin", smallConfig}} {
		f := &fake{result: &loader.Result{Changes: []string{"one", "two"}, Warnings: []string{"look out"}}}
		got := call(f, c.stdin, "apply", "-f", c.file, "--force", "-v", "--attach-kind", "clsact", "--lock-timeout", "3s", "--bpffs", "/b", "--netns", "/proc/self/ns/net")
		if got != (outcome{stdout: "one\ntwo\n", stderr: "tapgate: warning: look out\n"}) {
			t.Errorf("%s: %+v", c.file, got)
		}
		want := loader.Options{Netns: "/proc/self/ns/net", BPFFS: "/b", LockTimeout: 3 * time.Second, Attach: loader.AttachClsact, Force: true, Verbose: true}
		if f.opt != want {
			t.Errorf("options %+v, want %+v", f.opt, want)
		}
		if f.cfg == nil || f.cfg.Source != smallConfig || len(f.cfg.Mirrors) != 1 {
			t.Errorf("%s: config %+v", c.file, f.cfg)
		}
	}
	got := call(&fake{result: &loader.Result{}}, smallConfig, "apply", "-f", "-")
	if got != (outcome{stderr: "tapgate: already so: nothing to change\n"}) {
		t.Errorf("nothing to change: %+v", got)
	}
	f := &fake{}
	got = call(f, "zones:\n  dmz: {interfaces: eth2}\n", "apply", "-f", "-")
	if got.code != exitUsage || !strings.HasPrefix(got.errs, "stdin:2:21: expected a list") || len(f.calls) > 0 {
		t.Errorf("bad file: %+v, calls %v", got, f.calls)
	}
}

// The loader's complaints about the configuration come out with their line.
func TestApplyLocatesErrors(t *testing.T) {
	f := &fake{applyErr: fmt.Errorf("resolve: %w", errors.Join(
		&loader.ConfigError{Path: "zones.internal.interfaces[0]", Err: `no interface "eth3"`},
		fmt.Errorf("deeper: %w", &loader.ConfigError{Path: "mirrors[0].targets[0].via", Err: "not on a dmz network"}),
		&loader.ConfigError{Path: "elsewhere", Err: "odd"},
		errors.New("and something else"),
	))}
	got := call(f, smallConfig, "apply", "-f", "-")
	want := `stdin:2:27: no interface "eth3"
stdin:8:15: not on a dmz network
stdin: odd
and something else`
	if got.errs != want || got.code != exitUsage {
		t.Errorf("exit %d, got\n%s\nwant\n%s", got.code, got.errs, want)
	}
}

func TestAttach(t *testing.T) {
	f := &fake{result: done}
	got := call(f, "", "attach", "--internal", "eth3,eth5", "--dmz", "eth2", "--sensor", "192.168.4.2", "--external", "eth0", "--mgmt", "eth4")
	if got != (outcome{stdout: "attached to eth3\n"}) {
		t.Fatalf("%+v", got)
	}
	want := `zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3, eth5]}
  dmz: {interfaces: [eth2]}
  mgmt: {interfaces: [eth4]}
mirrors:
  - name: ids
    zones: [internal]
    targets:
      - {via: 192.168.4.2}
`
	if f.cfg.Source != want {
		t.Errorf("source\n%s\nwant\n%s", f.cfg.Source, want)
	}
	// The same configuration as one from a file of that text.
	if fromFile := mustParse(t, want); !reflect.DeepEqual(*f.cfg, fromFile.Config) {
		t.Errorf("config\n%+v\nwant\n%+v", *f.cfg, fromFile.Config)
	}

	f = &fake{applyErr: errors.Join(
		&loader.ConfigError{Path: "zones.internal.interfaces[0]", Err: "a"}, &loader.ConfigError{Path: "mirrors[0].targets[0].via", Err: "b"},
		&loader.ConfigError{Path: "mirrors[0].name", Err: "c"}, &loader.ConfigError{Path: "zones.dmz", Err: "d"},
	)}
	got = call(f, "", "attach", "--internal", "x", "--dmz", "y", "--sensor", "192.0.2.1", "--mirror", "z")
	if got.errs != "--internal: a\n--sensor: b\n--mirror: c\n--dmz: d" || got.code != exitUsage {
		t.Errorf("%+v", got)
	}
}

func TestDetach(t *testing.T) {
	f := &fake{result: done}
	if got := call(f, "", "detach", "--force"); got != (outcome{stdout: "attached to eth3\n"}) || !f.opt.Force {
		t.Errorf("%+v, options %+v", got, f.opt)
	}
	f = &fake{result: done, ends: 2}
	if got := call(f, "", "detach"); !strings.HasPrefix(got.stderr, "tapgate: this ends 2 translated flows, ") {
		t.Errorf("with flows: %+v", got)
	}
	f = &fake{err: fmt.Errorf("%w: no state", loader.ErrNotAttached)}
	if got := call(f, "", "detach"); got != (outcome{stderr: "tapgate: already so: not attached here: no state\n"}) {
		t.Errorf("not attached: %+v", got)
	}
}

func TestMirrorCommands(t *testing.T) {
	add := func(lines string) string { return "# a comment\n" + smallConfig + lines }
	for _, c := range []struct {
		args string
		want string // the configuration applied; "" if none
		note string
		errs string
	}{
		{args: "add ids --via 192.168.4.3", want: add("      - {via: 192.168.4.3}\n")},
		{args: "add ids --zone internal --l2 eth2", want: add("      - {l2: eth2}\n")},
		{args: "add ids --l2 eth2 --mac 02:00:00:00:00:01", want: add("      - {l2: eth2, mac: \"02:00:00:00:00:01\"}\n")},
		{args: "add new --zone internal,dmz --via 2001:db8::2",
			want: add("  - name: new\n    zones: [internal, dmz]\n    targets:\n      - {via: \"2001:db8::2\"}\n")},
		{args: "add ids --via 192.168.4.2", note: `tapgate: already so: mirror "ids" has target via 192.168.4.2`},
		{args: "add ids --via ::ffff:192.168.4.2 --zone internal", note: `tapgate: already so: mirror "ids" has target via 192.168.4.2`},
		{args: "add ids --via 192.168.4.3 --zone dmz",
			errs: `mirror "ids" copies zones internal, not dmz; leave --zone out to add a target, or take another name`},
		{args: "add new --via 192.168.4.3", errs: `there is no mirror "new" yet: for a new one say --zone (there are: internal, dmz)`},
		{args: "del ids", want: "# a comment\nzones:\n  internal: {interfaces: [eth3]}\n  dmz: {interfaces: [eth2]}\nmirrors:\n"},
		{args: "del nope", note: `tapgate: already so: there is no mirror "nope"`},
		{args: "del nope --via 192.168.4.2", note: `tapgate: already so: there is no mirror "nope"`},
		{args: "del ids --l2 eth2", note: `tapgate: already so: mirror "ids" has no target l2 eth2`},
		{args: "del ids --via 192.168.4.2", errs: `via 192.168.4.2 is the last target of mirror "ids"; to end it: tapgate mirror del ids`},
	} {
		f := &fake{source: "# a comment\n" + smallConfig, result: done}
		got := call(f, "", strings.Fields("mirror "+c.args)...)
		applied := ""
		if f.gatewayCfg != nil {
			applied = f.gatewayCfg.Source
			// What goes to the kernel is what the text says.
			if fromText := mustParse(t, applied); formatConfig(fromText.Config) != formatConfig(*f.gatewayCfg) {
				t.Errorf("%s: text and config differ:\n%+v\n%+v", c.args, *f.gatewayCfg, fromText.Config)
			}
		}
		code := exitDone
		if c.errs != "" {
			code = exitUsage
		}
		if applied != c.want || strings.TrimSpace(got.stderr) != c.note || got.errs != c.errs || got.code != code {
			t.Errorf("mirror %s: %+v\napplied\n%s\nwant\n%s", c.args, got, applied, c.want)
		}
		if f.opened != loader.ReadWrite || f.closed != 1 {
			t.Errorf("mirror %s: mode %v, closed %d times", c.args, f.opened, f.closed)
		}
		// To delete, the rest of the configuration need not fit any more.
		if reduced := slices.Contains(f.calls, "reduce"); reduced != (c.want != "" && strings.HasPrefix(c.args, "del ")) {
			t.Errorf("mirror %s: calls %v", c.args, f.calls)
		}
	}
}

// Adding and deleting again gives the configuration there was.
func TestMirrorThereAndBack(t *testing.T) {
	before := formatConfig(mustParse(t, exampleConfig).Config)
	source := before
	for _, args := range []string{
		"add new --zone app --via 192.168.4.9", "add new --l2 eth2", "del new --via 192.168.4.9", "add ids --l2 eth2", "del ids --l2 eth2", "del new",
	} {
		f := &fake{source: source, result: done}
		if got := call(f, "", strings.Fields("mirror "+args)...); got.code != 0 || f.gatewayCfg == nil {
			t.Fatalf("mirror %s: %+v", args, got)
		}
		source = f.gatewayCfg.Source
	}
	if source != before {
		t.Errorf("got\n%s\nwant\n%s", source, before)
	}
}

func TestMirrorErrors(t *testing.T) {
	f := &fake{source: smallConfig, applyErr: errors.Join(
		&loader.ConfigError{Path: "mirrors[0].targets[1].via", Err: "a"},
		&loader.ConfigError{Path: "mirrors[0].zones[0]", Err: "b"},
		&loader.ConfigError{Path: "mirrors[0].targets[0].via", Err: "c"},
		&loader.ConfigError{Path: "mirrors[0].name", Err: `mirror name "ids": d`},
		&loader.ConfigError{Path: "mirrors[0].targets", Err: `with mirror "ids": e`},
	)}
	got := call(f, "", "mirror", "add", "ids", "--via", "192.0.2.1")
	want := "--via: a\n--zone: b\napplied configuration: mirrors[0].targets[0].via: c\nmirror name \"ids\": d\nwith mirror \"ids\": e"
	if got.errs != want || got.code != exitUsage || f.closed != 1 {
		t.Errorf("%+v", got)
	}
	f = &fake{source: smallConfig, applyErr: errors.Join(
		&loader.ConfigError{Path: "mirrors[0].targets[1].mac", Err: "a"}, &loader.ConfigError{Path: "mirrors[0].targets[1].l2", Err: "b"})}
	got = call(f, "", "mirror", "add", "ids", "--l2", "eth2", "--mac", "02:00:00:00:00:01")
	if got.errs != "--mac: a\n--l2: b" {
		t.Errorf("%+v", got)
	}
	f = &fake{source: "zones: [later]\n"}
	got = call(f, "", "mirror", "add", "ids", "--via", "192.0.2.1")
	if got.code != exitFailed || !strings.Contains(got.errs, "applied configuration:1:8:") || f.closed != 1 {
		t.Errorf("a configuration that is not understood: %+v", got)
	}
}

// The first signal lets a change come to its end.
func TestSignalDuringChange(t *testing.T) {
	said := make(chan string, 1)
	e := &env{stdout: &bytes.Buffer{}, stderr: writerFunc(func(p []byte) { said <- string(p) })}
	err := e.change(func() (*loader.Result, error) {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
			return nil, err
		}
		if s := <-said; !strings.Contains(s, "finishing what is under way") {
			t.Errorf("said %q", s)
		}
		return done, nil
	})
	if err != nil || e.stdout.(*bytes.Buffer).String() != "attached to eth3\n" {
		t.Errorf("%v, %s", err, e.stdout)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}

func TestOutputFails(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range []string{"status", "status --json", "mirror list --json", "check", "version", "completion bash", "apply -f -", "flows",
		"flows --json", "flows flush --all", "forward list --json", "policy list --json", "explain 192.0.2.1 192.0.2.2 icmp --json"} {
		e := &env{
			stdin: strings.NewReader(smallConfig), stdout: full, stderr: &bytes.Buffer{},
			backend: &fake{
				status: &loader.Status{}, report: &loader.Report{}, result: done, source: smallConfig,
				flows: []loader.Flow{{}}, explanation: &loader.Explanation{},
			},
			missingCaps: func() []string { return nil },
		}
		if err := run(e, strings.Fields(args)); exitCode(err) != exitFailed {
			t.Errorf("%s to a full disk: %v", args, err)
		}
	}
}

func TestHelpHasExamples(t *testing.T) {
	root := newRootCommand(&env{}, new(bool))
	for _, c := range root.Commands() {
		for _, sub := range append(slices.Clone(c.Commands()), c) {
			if sub.Example == "" && sub.Runnable() || sub.Short == "" { // help topics are examples all over
				t.Errorf("%s: no example or short help", sub.CommandPath())
			}
			for line := range strings.Lines(sub.Long + "\n" + sub.Example) {
				if len(line) > 101 {
					t.Errorf("%s: a line of %d columns: %s", sub.CommandPath(), len(line), line)
				}
			}
		}
	}
}

func TestDidYouMean(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"zone", `; did you mean "zones"?`},
		{"Mirrors", `; did you mean "mirrors"?`},
		{"zoens", `; did you mean "zones"?`},
		{"something", "; known: zones, mirrors"},
		{"x", "; known: zones, mirrors"},
	} {
		if got := didYouMean(c.name, []string{"zones", "mirrors"}); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
