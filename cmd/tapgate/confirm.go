package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newConfirmCommand(e *env, g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm",
		Short: "Keep a change that waits for confirmation",
		Long: `Keeps what "tapgate apply --confirm" has put in force, which would go back by itself
otherwise. It fails where the change has gone back already.`,
		Example: `  tapgate apply -f new.yaml --confirm 60s
  tapgate confirm`,
		Args: noArgs,
		RunE: e.privileged(func(*cobra.Command, []string) (err error) {
			opt, err := g.options(false)
			if err != nil {
				return err
			}
			gw, err := e.loader().Open(opt, loader.ReadWrite)
			if errors.Is(err, loader.ErrUnconfirmed) {
				return fmt.Errorf("too late: %v", err)
			}
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, gw.Close()) }()
			if r := gw.Returned(); r != nil {
				return errors.New(returnedText(r))
			}
			if gw.Pending() == nil {
				e.say("already so: no change waits for confirmation")
				result, err := e.finish(gw.Confirm) // what an earlier run may have left
				if result != nil {
					e.noteResult(result)
				}
				if err != nil {
					return err
				}
			} else if err := e.change(gw.Confirm); err != nil {
				return err
			}
			e.keepConfirmedOf(g, gw)
			return nil
		}),
	}
}

func newRollbackCommand(e *env, g *globals) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Go back to the configuration before the last change",
		Long: `Takes a change back that waits for confirmation, at once. Otherwise it puts the
configuration in force again that was before the one in force: once more, and the
later one is back. What it is: tapgate config show --previous.

A change that was not confirmed in time has gone back already: then there is nothing
to do.`,
		Example: `  tapgate rollback
  tapgate config show --previous`,
		Args: noArgs,
		RunE: e.privileged(func(*cobra.Command, []string) error {
			opt, err := g.options(force)
			if err != nil {
				return err
			}
			opt.Planner = announcer{e}
			waits, err := e.rollback(g, opt)
			for waits { // the loader has to open it by itself
				err = e.change(func() (*loader.Result, error) { return e.loader().TakeBack(opt) })
				if !errors.Is(err, loader.ErrNoneWaits) {
					break
				}
				waits, err = e.rollback(g, opt) // it has gone back in between, or was confirmed
			}
			if waits && err == nil {
				e.say("the configuration before is in force again")
			}
			if errors.Is(err, loader.ErrUnconfirmed) {
				e.say("already so: %v", err)
				return e.change(func() (*loader.Result, error) { return e.loader().ClearUnconfirmed(opt) })
			}
			return err
		}),
	}
	addForce(cmd, &force, forceConfig)
	return cmd
}

// rollback puts the configuration before in force, unless a change waits.
func (e *env) rollback(g *globals, opt loader.Options) (waits bool, err error) {
	gw, err := e.loader().Open(opt, loader.ReadWrite)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, gw.Close()) }()
	switch {
	case gw.Pending() != nil:
		return true, nil
	case gw.Returned() != nil:
		e.say("already so: %s", returnedText(gw.Returned()))
		e.keepConfirmedOf(g, gw)
		return false, nil
	case gw.Previous() == "":
		return false, errors.New("there was no configuration before the one in force; to take that away: tapgate detach")
	}
	doc, err := parseConfig("previous configuration", []byte(gw.Previous()))
	if err != nil { // not the fault of this command line
		return false, fmt.Errorf("what was in force before is not understood by this tapgate: %v", err)
	}
	doc.File = gw.PreviousFile()
	err = e.change(func() (*loader.Result, error) { return gw.Apply(doc.Config) })
	if err == nil {
		e.keepConfirmedOf(g, gw)
	}
	return false, locate(err, doc.place)
}

// returnedText tells of a change that was not confirmed.
func returnedText(r *loader.Returned) string {
	how := "was taken back"
	if r.Itself {
		how = "was not confirmed in time and went back by itself"
	}
	return fmt.Sprintf("change %d %s at %s; the configuration before it is in force", r.Serial, how, clockTime(r.At))
}

// clockTime is the time of day of an RFC 3339 time, where this machine is.
func clockTime(text string) string {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return text
	}
	return t.Local().Format(time.TimeOnly)
}

// checkConfirm refuses a time that leaves none to confirm, or that nobody waits for.
func checkConfirm(d time.Duration) error {
	if d < loader.ConfirmLeast || d > loader.ConfirmMost {
		return usagef("--confirm %v: a time from %v to 1h, as 60s", d, loader.ConfirmLeast)
	}
	return nil
}
