package main

import (
	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newUpgradeCommand(e *env, g *globals) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Put this binary's programs in place of the running ones",
		Long: `Puts the programs of this binary in place of those that another build of tapgate
has put in force. No packet is lost and no connection breaks: configuration, flows,
counters and a change that waits for confirmation stay as they are. It goes back the
same way, with the other binary. If it is cut short, the next command puts that right.

Where the maps of the running programs cannot be taken over nothing is changed, and
it says what is lost by changing over nevertheless. An agent of the other build ends
when it sees that its programs were replaced, so that the one which is installed now
is started.`,
		Example: `  tapgate upgrade --dry-run
  tapgate upgrade`,
		Args: noArgs,
		RunE: e.privileged(func(*cobra.Command, []string) error {
			opt, err := g.options(false)
			if err != nil {
				return err
			}
			err = e.change(func() (*loader.Result, error) { return e.loader().Upgrade(opt, dryRun) })
			if err == nil && dryRun {
				e.say("dry run: nothing was changed")
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, and whether this kernel takes the programs")
	return cmd
}
