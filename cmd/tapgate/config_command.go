package main

import (
	"errors"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newConfigCommand(e *env, g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Show or save the configuration in force, or show what a file may hold",
		Example: "  tapgate config show\n  tapgate config save",
	}
	needSubcommand(cmd)
	cmd.AddCommand(newConfigSaveCommand(e, g), newConfigSchemaCommand(e), newConfigShowCommand(e, g))
	return cmd
}

// showForeign prints what a tapgate of another layout has in force: whoever is to change
// over by hand needs it.
func (e *env) showForeign(g *globals) error {
	opt, err := g.options(false)
	if err != nil {
		return err
	}
	text, err := e.loader().SourceInForce(opt)
	if err != nil {
		return err
	}
	return e.write(text)
}

func newConfigShowCommand(e *env, g *globals) *cobra.Command {
	var previous bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print the configuration in force as a file that apply takes",
		Long: `Prints the configuration in force: the text that was applied, with its comments, or
what commands as "tapgate mirror add" have made of it. "tapgate apply" takes it. Where
a change waits for confirmation, that is the one in force.

--previous prints the one that "tapgate rollback" would put in force: the one before
the last change, or before the change that waits for confirmation.`,
		Example: `  tapgate config show
  tapgate config show | diff /etc/tapgate/tapgate.yaml -
  tapgate config show --previous`,
		Args: noArgs,
		RunE: e.privileged(func(*cobra.Command, []string) error {
			err := e.read(g, func(gw gateway) error {
				text := gw.Source()
				if previous {
					if text = gw.Previous(); text == "" {
						return errors.New("there was no configuration before the one in force")
					}
				}
				return e.write(text)
			})
			if errors.Is(err, loader.ErrState) && !previous {
				return e.showForeign(g)
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&previous, "previous", false, "the one before")
	return cmd
}
