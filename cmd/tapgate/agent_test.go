package main

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
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
	if got.code != 0 || f.gatewayCfg == nil || !reflect.DeepEqual(*f.gatewayCfg, mustParse(t, gatewayConfig).Config) || f.opened != loader.ReadWrite || f.closed != 1 {
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
