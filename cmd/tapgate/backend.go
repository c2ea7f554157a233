package main

import (
	"context"

	"tapgate/loader"
)

// gateway is what commands ask of an open loader.Gateway.
type gateway interface {
	Source() string
	File() loader.SourceFile
	SetFile(loader.SourceFile) error
	Previous() string
	PreviousFile() loader.SourceFile
	Pending() *loader.Pending
	Returned() *loader.Returned
	Confirm() (*loader.Result, error)
	Apply(loader.Config) (*loader.Result, error)
	Reapply(loader.Config) (*loader.Result, error)
	Reduce(loader.Config) (*loader.Result, error)
	Status() (*loader.Status, error)
	Flows(loader.FlowFilter) ([]loader.Flow, error)
	FlushFlows(loader.FlowFilter) (int, error)
	HeaviestFlows(m *loader.FlowMeter, n int, order loader.FlowOrder) ([]loader.FlowRate, error)
	Explain(loader.Query) (*loader.Explanation, error)
	Close() error
}

// backend is what commands ask of the loader.
type backend interface {
	Apply(loader.Options, loader.Config) (*loader.Result, error)
	Open(loader.Options, loader.Mode) (gateway, error)
	Check(loader.Options, *loader.Config) (*loader.Report, error)
	Detach(loader.Options) (*loader.Result, error)
	DryRun(loader.Options, loader.Config) (*loader.Plan, error)
	TakeBack(loader.Options) (*loader.Result, error)
	ClearUnconfirmed(loader.Options) (*loader.Result, error)
	Upgrade(opt loader.Options, dryRun bool) (*loader.Result, error)
	SourceInForce(loader.Options) (string, error)
	// Follow runs until ctx ends.
	Follow(context.Context, loader.Options, loader.Follower) error
	// FollowTranslations runs until ctx ends.
	FollowTranslations(ctx context.Context, opt loader.Options, tell func(loader.TranslationNews), trouble func(error))
}

func (e *env) loader() backend {
	if e.backend != nil {
		return e.backend
	}
	return kernel{}
}

// kernel is the backend that works on the running system.
type kernel struct{}

func (kernel) Apply(opt loader.Options, cfg loader.Config) (*loader.Result, error) {
	return loader.Apply(opt, cfg)
}

func (kernel) Open(opt loader.Options, mode loader.Mode) (gateway, error) {
	g, err := loader.Open(opt, mode)
	if err != nil {
		return nil, err
	}
	return g, nil
}

func (kernel) Check(opt loader.Options, cfg *loader.Config) (*loader.Report, error) {
	return loader.Check(opt, cfg)
}

func (kernel) Detach(opt loader.Options) (*loader.Result, error) {
	return loader.Detach(opt)
}

func (kernel) DryRun(opt loader.Options, cfg loader.Config) (*loader.Plan, error) {
	return loader.DryRun(opt, cfg)
}

func (kernel) TakeBack(opt loader.Options) (*loader.Result, error) {
	return loader.TakeBack(opt)
}

func (kernel) Upgrade(opt loader.Options, dryRun bool) (*loader.Result, error) {
	return loader.Upgrade(opt, dryRun)
}

func (kernel) SourceInForce(opt loader.Options) (string, error) { return loader.SourceInForce(opt) }

func (kernel) ClearUnconfirmed(opt loader.Options) (*loader.Result, error) {
	return loader.ClearUnconfirmed(opt)
}

func (kernel) Follow(ctx context.Context, opt loader.Options, hooks loader.Follower) error {
	return loader.Follow(ctx, opt, hooks)
}

func (kernel) FollowTranslations(ctx context.Context, opt loader.Options, tell func(loader.TranslationNews), trouble func(error)) {
	loader.FollowTranslations(ctx, opt, tell, trouble)
}
