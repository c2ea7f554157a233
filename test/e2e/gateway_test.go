// Package e2e runs the built tapgate against real networks in namespaces: what
// a user types, what the sensor then sees, and what is left afterwards.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
)

// binary is the tapgate under test: $TAPGATE_BIN, or built by TestMain.
var binary = os.Getenv("TAPGATE_BIN")

func TestMain(m *testing.M) {
	beTracer()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("needs root: it makes network namespaces")
	}
	if _, err := lab.RemoveStale(); err != nil {
		return 1, err
	}
	defer removeBuilds()
	if binary == "" {
		dir, err := os.MkdirTemp("", "tapgate-e2e-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "tapgate")
		build := exec.Command("go", "build", "-o", binary, "tapgate/cmd/tapgate")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build tapgate: %w\n%s", err, out)
		}
	}
	return m.Run(), nil
}

// gateway is a lab with a BPF filesystem of its own.
type gateway struct {
	*lab.Lab
	t     *testing.T
	bpffs string
	kind  loader.AttachKind // "" is what the kernel has
	build string            // another tapgate than binary; "" is that one
	// forwarding is put in front of every configuration; "" leaves it out.
	forwarding string
}

func newGateway(t *testing.T, opts ...lab.Option) *gateway {
	t.Helper()
	l := lab.ForTest(t, opts...)
	bpffs, err := l.MountBPFFS()
	if err != nil {
		t.Fatal(err)
	}
	return &gateway{Lab: l, t: t, bpffs: bpffs}
}

// result is a command that ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout:\n%s\nstderr:\n%s", r.code, r.stdout, r.stderr)
}

// command prepares a tapgate command for this gateway, run from outside its namespace.
func (g *gateway) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append(args, "--netns", g.Gateway.Name, "--bpffs", g.bpffs)
	if g.kind != loader.AttachAuto {
		args = append(args, "--attach-kind", string(g.kind))
	}
	return exec.CommandContext(ctx, g.program(), args...)
}

// program is the tapgate that runs here.
func (g *gateway) program() string {
	if g.build != "" {
		return g.build
	}
	return binary
}

// tapgate runs a command and returns how it ended.
func (g *gateway) tapgate(args ...string) result {
	g.t.Helper()
	return g.tapgateIn("", args...)
}

// tapgateIn is tapgate with something on standard input.
func (g *gateway) tapgateIn(stdin string, args ...string) result {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := g.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		g.t.Fatalf("tapgate %s: %v", strings.Join(args, " "), err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command that has to succeed.
func (g *gateway) must(args ...string) result {
	g.t.Helper()
	r := g.tapgate(args...)
	if r.code != 0 {
		g.t.Fatalf("tapgate %s: %s", strings.Join(args, " "), r)
	}
	return r
}

// example is the smallest tap of the lab: the internal network to the sensor.
const example = `
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3]}
  dmz:      {interfaces: [eth2]}
  mgmt:     {interfaces: [eth4]}
mirrors:
  - name: ids
    zones: [internal]
    targets:
      - {via: 192.168.4.2}
`

// apply puts a config in force.
func (g *gateway) apply(config string) {
	g.t.Helper()
	if g.forwarding != "" {
		config = "forwarding: " + g.forwarding + "\n" + config
	}
	if r := g.tapgateIn(config, "apply", "-f", "-"); r.code != 0 {
		g.t.Fatalf("tapgate apply: %s", r)
	}
}

// status reads "status --json".
func (g *gateway) status() *loader.Status {
	g.t.Helper()
	r := g.must("status", "--json")
	var s loader.Status
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		g.t.Fatalf("status --json: %v\n%s", err, r)
	}
	return &s
}

// mirror is one mirror of the status, which must be there.
func (g *gateway) mirror(name string) loader.MirrorStatus {
	g.t.Helper()
	for _, m := range g.status().Mirrors {
		if m.Name == name {
			return m
		}
	}
	g.t.Fatalf("status has no mirror %q", name)
	return loader.MirrorStatus{}
}

// unbalanced are the accounts of every mirror, target and direction in which
// matched is not copied + sum(skipped), in packets and bytes.
func unbalanced(s *loader.Status) (wrong []string) {
	check := func(what string, l loader.Ledger) {
		sum := l.Copied
		for _, c := range l.Skipped {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		if sum != l.Matched {
			wrong = append(wrong, fmt.Sprintf("%s: matched %+v, and copied + skipped is %+v: %+v", what, l.Matched, sum, l))
		}
	}
	all := func(what string, both, ingress, egress loader.Ledger) {
		check(what, both)
		check(what+" ingress", ingress)
		check(what+" egress", egress)
	}
	for _, m := range s.Mirrors {
		all(m.Name, m.Ledger, m.Ingress, m.Egress)
		for _, t := range m.Targets {
			all(m.Name+" "+t.Target, t.Ledger, t.Ingress, t.Egress)
		}
	}
	return wrong
}

// checkLedgers fails if there are any. While packets flow, a ledger may be read
// in the middle of an update, once in ten thousand readings: read again then.
func (g *gateway) checkLedgers() (s *loader.Status) {
	g.t.Helper()
	var wrong []string
	for range 4 {
		s = g.status()
		if wrong = unbalanced(s); len(wrong) == 0 {
			return s
		}
	}
	for _, w := range wrong {
		g.t.Error(w)
	}
	return s
}
