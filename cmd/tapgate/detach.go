package main

import (
	"errors"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newDetachCommand(e *env, g *globals) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "detach",
		Short: "Take everything away",
		Long: `Takes away every program, map and setting of tapgate in this network namespace.
Nothing of others is touched. Flows that tapgate translates end, but for those
that the host's own NAT goes on with.

Where nothing is attached there is nothing to do, and that is no error, so that
an interrupted detach can be run again.

The configuration that was kept for the next boot goes, too. If tapgate.service is
enabled, that boot applies /etc/tapgate/tapgate.yaml: systemctl disable tapgate.`,
		Example: `  tapgate detach
  tapgate detach --netns gw`,
		Args: noArgs,
		RunE: e.privileged(func(*cobra.Command, []string) error {
			opt, err := g.options(force)
			if err != nil {
				return err
			}
			opt.Planner = announcer{e}
			err = e.change(func() (*loader.Result, error) { return e.loader().Detach(opt) })
			if errors.Is(err, loader.ErrNotAttached) {
				e.say("already so: %v", err)
				err = nil
			}
			if err == nil {
				err = e.forgetConfirmed(g)
			}
			return err
		}),
	}
	addForce(cmd, &force, "also remove state that another version of tapgate made")
	return cmd
}
