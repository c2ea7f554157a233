package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"tapgate/loader"
)

// fake is a backend that does what it is told and writes down what it was asked.
type fake struct {
	err        error // of every call
	applyErr   error
	result     *loader.Result
	status     *loader.Status
	report     *loader.Report
	source     string
	previous   string
	file       loader.SourceFile
	prevFile   loader.SourceFile
	onApply    func() // when a gateway's configuration is changed
	pending    *loader.Pending
	returned   *loader.Returned
	lapse      *loader.Returned // what waits goes back just before it is taken back
	plan       *loader.Plan
	opened     loader.Mode
	opt        loader.Options
	cfg        *loader.Config
	gatewayCfg *loader.Config
	closed     int
	calls      []string

	flows       []loader.Flow
	filters     []loader.FlowFilter // asked for, in order
	query       loader.Query
	explanation *loader.Explanation
	follow      func(ctx context.Context, log *slog.Logger, reapply func() error) error
	hooks       loader.Follower // of the last Follow

	ends         int // translated flows of a detach
	heaviest     []loader.FlowRate
	translations chan loader.TranslationNews
}

func (f *fake) Apply(opt loader.Options, cfg loader.Config) (*loader.Result, error) {
	f.calls = append(f.calls, "apply")
	if opt.Planner != nil && f.plan != nil {
		opt.Planner.Planned(f.plan.Changes)
	}
	opt.Planner = nil
	f.opt, f.cfg = opt, &cfg
	return f.result, f.applyErr
}

func (f *fake) Open(opt loader.Options, mode loader.Mode) (gateway, error) {
	f.calls = append(f.calls, "open")
	f.opt, f.opened = opt, mode
	if f.err != nil {
		return nil, f.err
	}
	return fakeGateway{f}, nil
}

func (f *fake) Check(opt loader.Options, cfg *loader.Config) (*loader.Report, error) {
	f.calls = append(f.calls, "check")
	f.opt, f.cfg = opt, cfg
	return f.report, f.err
}

func (f *fake) Detach(opt loader.Options) (*loader.Result, error) {
	f.calls = append(f.calls, "detach")
	if f.ends > 0 {
		opt.Planner.Ending(f.ends)
	}
	opt.Planner = nil
	f.opt = opt
	return f.result, f.err
}

func (f *fake) ClearUnconfirmed(opt loader.Options) (*loader.Result, error) {
	return f.Detach(opt)
}

func (f *fake) DryRun(opt loader.Options, cfg loader.Config) (*loader.Plan, error) {
	f.calls = append(f.calls, "dry run")
	f.opt, f.cfg = opt, &cfg
	return f.plan, f.applyErr
}

func (f *fake) TakeBack(opt loader.Options) (*loader.Result, error) {
	f.calls = append(f.calls, "take back")
	f.opt = opt
	if f.lapse != nil {
		f.pending, f.returned, f.lapse = nil, f.lapse, nil
		return nil, loader.ErrNoneWaits
	}
	return f.result, f.applyErr
}

func (f *fake) Upgrade(opt loader.Options, dryRun bool) (*loader.Result, error) {
	f.calls = append(f.calls, fmt.Sprintf("upgrade, dry run %v", dryRun))
	f.opt = opt
	return f.result, f.err
}

func (f *fake) SourceInForce(loader.Options) (string, error) {
	f.calls = append(f.calls, "source")
	return f.source, nil
}

func (f *fake) Follow(ctx context.Context, opt loader.Options, hooks loader.Follower) error {
	f.calls = append(f.calls, "follow")
	f.opt = opt
	if f.follow == nil {
		return f.err
	}
	f.hooks = hooks
	return f.follow(ctx, hooks.Log, hooks.Reapply)
}

type fakeGateway struct{ *fake }

func (g fakeGateway) Source() string { return g.source }

func (g fakeGateway) File() loader.SourceFile { return g.file }

func (g fakeGateway) SetFile(file loader.SourceFile) error {
	g.fake.file = file
	return nil
}

func (g fakeGateway) Previous() string { return g.previous }

func (g fakeGateway) PreviousFile() loader.SourceFile { return g.prevFile }

func (g fakeGateway) Pending() *loader.Pending { return g.pending }

func (g fakeGateway) Returned() *loader.Returned { return g.returned }

func (g fakeGateway) Confirm() (*loader.Result, error) {
	g.calls = append(g.calls, "confirm")
	g.pending = nil
	return g.result, g.applyErr
}

func (g fakeGateway) Apply(cfg loader.Config) (*loader.Result, error) {
	g.gatewayCfg = &cfg
	if g.onApply != nil {
		g.onApply()
	}
	return g.result, g.applyErr
}

func (g fakeGateway) Reapply(cfg loader.Config) (*loader.Result, error) {
	g.calls = append(g.calls, "reapply")
	return g.Apply(cfg)
}

func (g fakeGateway) Reduce(cfg loader.Config) (*loader.Result, error) {
	g.calls = append(g.calls, "reduce")
	g.gatewayCfg = &cfg
	return g.result, g.applyErr
}

func (g fakeGateway) Status() (*loader.Status, error) { return g.status, nil }

// Flows gives those of the rule asked for, or all.
func (g fakeGateway) Flows(filter loader.FlowFilter) ([]loader.Flow, error) {
	g.calls = append(g.calls, "flows")
	g.filters = append(g.filters, filter)
	return slices.DeleteFunc(slices.Clone(g.flows), func(f loader.Flow) bool {
		return filter.Rule != "" && (f.Rule != filter.Rule || f.Origin != filter.Origin)
	}), nil
}

func (g fakeGateway) FlushFlows(filter loader.FlowFilter) (int, error) {
	flows, err := g.Flows(filter)
	g.calls[len(g.calls)-1] = "flush"
	return len(flows), err
}

func (g fakeGateway) HeaviestFlows(_ *loader.FlowMeter, n int, order loader.FlowOrder) ([]loader.FlowRate, error) {
	g.calls = append(g.calls, "heaviest "+string(order))
	return g.heaviest[:min(n, len(g.heaviest))], nil
}

func (g fakeGateway) Explain(q loader.Query) (*loader.Explanation, error) {
	g.query = q
	return g.explanation, nil
}

func (g fakeGateway) Close() error {
	g.closed++
	return nil
}

// outcome is what a user sees of a command.
type outcome struct {
	stdout, stderr string
	errs           string // the lines that main would print
	code           int
}

func call(f *fake, stdin string, args ...string) outcome {
	var stdout, stderr bytes.Buffer
	e := &env{
		stdin: strings.NewReader(stdin), stdout: &stdout, stderr: &stderr,
		backend: f, missingCaps: func() []string { return nil },
	}
	err := run(e, args)
	return outcome{stdout.String(), stderr.String(), strings.Join(errorLines(err), "\n"), exitCode(err)}
}

// FollowTranslations tells what it is given.
func (f *fake) FollowTranslations(ctx context.Context, _ loader.Options, tell func(loader.TranslationNews), _ func(error)) {
	for {
		select {
		case news := <-f.translations:
			tell(news)
		case <-ctx.Done():
			return
		}
	}
}
