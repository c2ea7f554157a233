package main

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

// change runs what alters the gateway. A signal does not cut it short, since it
// takes moments and its end is a better place to stop; a second one does, and
// the next command then puts right what is half done.
func (e *env) change(f func() (*loader.Result, error)) error {
	return e.report(e.finish(f))
}

// finish runs f to its end.
func (e *env) finish(f func() (*loader.Result, error)) (*loader.Result, error) {
	signals := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		defer signal.Stop(signals)
		select {
		case s := <-signals:
			e.say("%v: finishing what is under way; once more to stop at once", s)
		case <-done:
		}
	}()
	defer close(done)
	return f()
}

// report tells what a change did: changes on stdout, the rest on stderr.
func (e *env) report(result *loader.Result, err error) error {
	if result == nil {
		return err
	}
	e.noteResult(result)
	for _, w := range result.Warnings {
		e.say("warning: %s", w)
	}
	for _, c := range result.Changes {
		if slices.Contains(e.announced, c) {
			continue
		}
		if _, werr := fmt.Fprintln(e.stdout, c); werr != nil && err == nil {
			err = fmt.Errorf("done, but writing of it failed: %w", werr)
		}
	}
	if err == nil && len(result.Changes) == 0 {
		e.say("already so: nothing to change")
	}
	return err
}

// say is talk, on stderr.
func (e *env) say(format string, args ...any) {
	fmt.Fprintf(e.stderr, "tapgate: "+format+"\n", args...)
}

// announcer says beforehand what a command without a plan ends.
type announcer struct{ *env }

func (announcer) Planned([]loader.Change) {}

func (a announcer) Ending(flows int) {
	a.say("this ends %s, but for those that a NAT of the host's own goes on with", counted(flows, "translated flow"))
}

// privileged makes the body of a command that touches the kernel. Those that change
// something leave a record.
func (e *env) privileged(f func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := e.needRoot(); err != nil {
			return err
		}
		err := f(cmd, args)
		e.audit(cmd, err)
		return err
	}
}

func addForce(cmd *cobra.Command, force *bool, what string) {
	cmd.Flags().BoolVar(force, "force", false, what)
}
