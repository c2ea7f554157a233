package main

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"tapgate/loader"
)

// SIGTERM is how the agent is meant to end.
func TestAgentEndsWithSIGTERM(t *testing.T) {
	f := &fake{follow: func(ctx context.Context, log *slog.Logger, _ func() error) error {
		log.Info("following", "interface", "eth0")
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}}
	got := call(f, "", "agent", "--bpffs", "/b")
	if got.code != exitDone || got.errs != "" || got.stdout != "" || !strings.Contains(got.stderr, "level=INFO msg=following interface=eth0") || f.opt.BPFFS != "/b" {
		t.Errorf("%+v, options %+v", got, f.opt)
	}
}

func TestAgentFails(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{{loader.ErrNotAttached, exitNotAttached}, {errors.New("broken"), exitFailed}, {nil, exitDone}} {
		got := call(&fake{follow: func(context.Context, *slog.Logger, func() error) error { return c.err }}, "", "agent")
		if got.code != c.code {
			t.Errorf("%v: %+v", c.err, got)
		}
	}
}

// What the agent puts in force again is what is in force, not a file.
func TestAgentReapplies(t *testing.T) {
	f := &fake{source: gatewayConfig, result: &loader.Result{Changes: []string{"attached to eth3"}, Warnings: []string{"look out"}}}
	f.follow = func(_ context.Context, _ *slog.Logger, reapply func() error) error { return reapply() }
	got := call(f, "", "agent")
	if got.code != 0 || !slices.Contains(f.calls, "reapply") || f.gatewayCfg == nil || !reflect.DeepEqual(*f.gatewayCfg, mustParse(t, gatewayConfig).Config) || f.opened != loader.ReadWrite || f.closed != 1 {
		t.Errorf("%+v, config %+v", got, f.gatewayCfg)
	}
	for _, want := range []string{`level=INFO msg="attached to eth3"`, `level=WARN msg="look out"`} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("%s is not in the log:\n%s", want, got.stderr)
		}
	}
	f.source = "zones: [later]\n"
	if got := call(f, "", "agent"); got.code != exitFailed || !strings.Contains(got.errs, "another tapgate") {
		t.Errorf("a configuration that is not understood: %+v", got)
	}
	f.source, f.applyErr = gatewayConfig, errors.New("no such interface")
	if got := call(f, "", "agent"); got.code != exitFailed || got.errs != "no such interface" {
		t.Errorf("what cannot be applied: %+v", got)
	}
}

// Lines of the log are for people, or for programs, from a level on.
func TestAgentLogs(t *testing.T) {
	follow := func(_ context.Context, log *slog.Logger, _ func() error) error {
		log.Debug("looked")
		log.Info("following", "interface", "eth0")
		log.Warn("trying again later")
		return nil
	}
	for _, c := range []struct{ args, has, hasNot string }{
		{"", "level=INFO msg=following interface=eth0\n", "looked"},
		{"-v", "level=DEBUG msg=looked\n", "{"},
		{"--log-level warn", "level=WARN msg=\"trying again later\"\n", "following"},
		{"--log-format json", `"level":"INFO","msg":"following","interface":"eth0"}`, "looked"},
		{"--log-format json --log-level debug", `"level":"DEBUG","msg":"looked"}`, "level="},
	} {
		got := call(&fake{follow: follow}, "", append([]string{"agent", "--listen", ""}, strings.Fields(c.args)...)...)
		if got.code != exitDone || !strings.Contains(got.stderr, c.has) || strings.Contains(got.stderr, c.hasNot) {
			t.Errorf("%s: %+v", c.args, got)
		}
	}
	for args, want := range map[string]string{
		"--log-format xml": `--log-format "xml": it is text or json`, "--log-level loud": `--log-level "loud": it is debug, info, warn or error`,
		"--log-level info+2": `--log-level "info+2": it is debug`,
	} {
		got := call(&fake{follow: follow}, "", append([]string{"agent"}, strings.Fields(args)...)...)
		if got.code != exitUsage || !strings.Contains(got.errs, want) {
			t.Errorf("%s: %+v", args, got)
		}
	}
}
