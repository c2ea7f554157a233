package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newAgentCommand(e *env, g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "agent",
		Short: "Follow outside addresses and links until it is ended",
		Long: `Runs until SIGTERM or SIGINT and keeps the gateway in step with its interfaces:
an outside address that changes is used at once, and an interface that comes back
gets its programs again. It never reads the configuration file. Traffic does not
depend on it: whenever it ends, all stays as it is. It logs to standard error.`,
		Example: `  tapgate agent
  systemd-run --unit tapgate-agent tapgate agent`,
		Args: noArgs,
		RunE: e.privileged(func(*cobra.Command, []string) error {
			opt, err := g.options(false)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			level := slog.LevelInfo
			if g.verbose {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: level}))
			return e.agent(ctx, opt, log)
		}),
	}
}

// agent follows until ctx ends, which is no error.
func (e *env) agent(ctx context.Context, opt loader.Options, log *slog.Logger) error {
	err := e.loader().Follow(ctx, opt, log, func() error { return e.reapply(opt, log) })
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// reapply puts the configuration in force in force again, on interfaces as they are now.
func (e *env) reapply(opt loader.Options, log *slog.Logger) (err error) {
	gw, err := e.loader().Open(opt, loader.ReadWrite)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gw.Close()) }()
	doc, err := parseConfig("applied configuration", []byte(gw.Source()))
	if err != nil {
		return fmt.Errorf("what is in force was applied by another tapgate: %v", err)
	}
	result, err := gw.Apply(doc.Config)
	if err != nil {
		return err
	}
	for _, w := range result.Warnings {
		log.Warn(w)
	}
	for _, c := range result.Changes {
		log.Info(c)
	}
	return nil
}
