package main

import (
	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newMirrorCommand(e *env, g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mirror",
		Short: "List, add and delete mirrors while traffic runs",
		Example: `  tapgate mirror list
  tapgate mirror add ids --zone internal --via 192.168.4.2
  tapgate mirror del ids`,
	}
	needSubcommand(cmd)
	cmd.AddCommand(newMirrorAddCommand(e, g), newMirrorDelCommand(e, g), newMirrorListCommand(e, g))
	return cmd
}

func newMirrorListCommand(e *env, g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "Show mirrors and what they copied",
		Example: "  tapgate mirror list --json | jq '.[].copied.packets'",
		Args:    noArgs,
		RunE: e.privileged(func(*cobra.Command, []string) error {
			s, err := e.status(g)
			if err != nil {
				return err
			}
			if asJSON {
				return e.writeJSON(s.Mirrors)
			}
			if len(s.Mirrors) == 0 {
				e.say("no mirrors; see tapgate mirror add --help")
				return nil
			}
			return e.write(joinParts([]string{mirrorTable(s.Mirrors, g.verbose), skipTable(s.Mirrors)}))
		}),
	}
	addJSON(cmd, &asJSON)
	return cmd
}

// mirrorFlags are the flags of mirror add and del.
type mirrorFlags struct {
	zones        []string
	via, l2, mac string
	force, save  bool
}

func (f *mirrorFlags) addTarget(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.via, "via", "", "target: next hop `ADDR` in the dmz")
	cmd.Flags().StringVar(&f.l2, "l2", "", "target: dmz interface `IF` that gets the frames as they are")
	cmd.Flags().StringVar(&f.mac, "mac", "", "with --l2: destination `MAC` to write")
}

// target gives the target of the flags, or nil if none names one.
func (f *mirrorFlags) target(cmd *cobra.Command) (*loader.Target, error) {
	via, l2, mac := cmd.Flags().Changed("via"), cmd.Flags().Changed("l2"), cmd.Flags().Changed("mac")
	var t loader.Target
	var err error
	switch {
	case via && l2:
		return nil, usagef("--via and --l2 are two targets: one at a time")
	case mac && !l2:
		return nil, usagef("--mac goes with --l2")
	case via:
		if t.Via, err = parseVia(f.via); err != nil {
			return nil, usagef("--via: %w", err)
		}
	case l2:
		if t.L2 = f.l2; t.L2 == "" {
			return nil, usagef("--l2: the name of an interface is missing")
		}
		if mac {
			if t.MAC, err = parseMAC(f.mac); err != nil {
				return nil, usagef("--mac: %w", err)
			}
		}
	default:
		return nil, nil
	}
	return &t, nil
}

func newMirrorAddCommand(e *env, g *globals) *cobra.Command {
	f := &mirrorFlags{}
	cmd := &cobra.Command{
		Use:   "add NAME --zone Z[,Z] --via ADDR | --l2 IF [--mac MAC]",
		Short: "Add a mirror, or a target to a mirror",
		Long: `Adds a mirror, or another target to a mirror that exists: then --zone may be
left out. Traffic and other copies go on.
` + savedOnRequest,
		Example: `  tapgate mirror add ids --zone internal --via 192.168.4.2
  tapgate mirror add ids --l2 eth2 --mac 02:00:5e:00:53:01 --save`,
		Args: oneName("mirror"),
		RunE: e.privileged(func(cmd *cobra.Command, args []string) error {
			target, err := f.target(cmd)
			if err != nil {
				return err
			}
			if target == nil {
				return usagef("no target: --via ADDR, or --l2 IF")
			}
			return e.edit(g, &edit{
				force: f.force, save: f.save, put: gateway.Apply, place: mirrorPlace(args[0]),
				alter: func(cfg *loader.Config) (string, error) { return addMirror(cfg, args[0], f.zones, *target) },
			})
		}),
	}
	cmd.Flags().StringSliceVar(&f.zones, "zone", nil, "zones whose packets are copied: `Z[,Z]`")
	_ = cmd.RegisterFlagCompletionFunc("zone", e.completeZones(g))
	f.addTarget(cmd)
	cmd.Flags().SortFlags = false
	addSave(cmd, &f.save)
	addForce(cmd, &f.force, "also if packets may be larger than the sensor's MTU: those are skipped")
	return cmd
}

func newMirrorDelCommand(e *env, g *globals) *cobra.Command {
	f := &mirrorFlags{}
	cmd := &cobra.Command{
		Use:   "del NAME [--via ADDR | --l2 IF [--mac MAC]]",
		Short: "Delete a mirror, or one of its targets",
		Long: `Deletes a mirror or, with --via or --l2, one of its targets. What is not there
counts as deleted. The last target of a mirror goes with the mirror only.
` + savedOnRequest,
		Example: `  tapgate mirror del ids --via 192.168.4.2
  tapgate mirror del ids`,
		Args:              oneName("mirror"),
		ValidArgsFunction: e.completeName(g, mirrorNames),
		RunE: e.privileged(func(cmd *cobra.Command, args []string) error {
			target, err := f.target(cmd)
			if err != nil {
				return err
			}
			return e.edit(g, &edit{
				save: f.save, put: gateway.Reduce, place: mirrorPlace(args[0]),
				alter: func(cfg *loader.Config) (string, error) { return delMirror(cfg, args[0], target) },
			})
		}),
	}
	f.addTarget(cmd)
	cmd.Flags().SortFlags = false
	addSave(cmd, &f.save)
	return cmd
}
