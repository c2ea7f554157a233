package main

import (
	"strings"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newAttachCommand(e *env, g *globals) *cobra.Command {
	var external, internal, dmz, mgmt, sensors []string
	var mirror string
	var force bool
	cmd := &cobra.Command{
		Use:   "attach --internal IF[,IF] --dmz IF --sensor ADDR",
		Short: "Tap by flags, without a configuration file",
		Long: `The simple case without a file: copies every packet of the internal interfaces,
both directions, to a sensor in the dmz. The same as "tapgate apply" of a file
that says so: a configuration that is in force already is replaced.`,
		Example: `  tapgate attach --internal eth3 --dmz eth2 --sensor 192.168.4.2
  tapgate attach --external eth0 --internal eth3,eth5 --dmz eth2 --mgmt eth4 --sensor 192.168.4.2`,
		Args: noArgs,
		RunE: e.privileged(func(cmd *cobra.Command, _ []string) error {
			for _, must := range []string{"internal", "dmz", "sensor"} {
				if !cmd.Flags().Changed(must) {
					return usagef("--%s is missing: tapgate %s", must, cmd.Use)
				}
			}
			opt, err := g.options(force)
			if err != nil {
				return err
			}
			cfg := loader.Config{Mirrors: []loader.Mirror{{Name: mirror, Zones: []string{"internal"}}}}
			for _, z := range []struct {
				name       loader.Role
				interfaces []string
			}{
				{loader.RoleExternal, external}, {loader.RoleInternal, internal},
				{loader.RoleDMZ, dmz}, {loader.RoleMgmt, mgmt},
			} {
				if cmd.Flags().Changed(string(z.name)) {
					cfg.Zones = append(cfg.Zones, loader.Zone{Name: string(z.name), Role: z.name, Interfaces: z.interfaces})
				}
			}
			for _, s := range sensors {
				via, err := parseVia(s)
				if err != nil {
					return usagef("--sensor: %w", err)
				}
				cfg.Mirrors[0].Targets = append(cfg.Mirrors[0].Targets, loader.Target{Via: via})
			}
			cfg.Source = formatConfig(cfg)
			err = e.change(func() (*loader.Result, error) { return e.loader().Apply(opt, cfg) })
			if err == nil {
				e.keepConfirmed(g)
			}
			return locate(err, attachFlag)
		}),
	}
	f := cmd.Flags()
	f.StringSliceVar(&internal, "internal", nil, "interfaces that are tapped: `IF[,IF]`")
	f.StringSliceVar(&dmz, "dmz", nil, "interface that the sensor is behind: `IF`")
	f.StringSliceVar(&sensors, "sensor", nil, "the sensor's `ADDR` in the dmz")
	f.StringSliceVar(&external, "external", nil, "interface to the outside: `IF`")
	f.StringSliceVar(&mgmt, "mgmt", nil, "interface of the management network: `IF`")
	f.StringVar(&mirror, "mirror", "ids", "`NAME` of the mirror")
	f.SortFlags = false
	addForce(cmd, &force, forceConfig)
	return cmd
}

// attachFlag names the flag that a path into the configuration came from.
func attachFlag(path string) string {
	for _, p := range []struct{ prefix, flag string }{
		{"zones.external", "--external"},
		{"zones.internal", "--internal"},
		{"zones.dmz", "--dmz"},
		{"zones.mgmt", "--mgmt"},
		{"mirrors[0].targets", "--sensor"},
		{"mirrors[0].name", "--mirror"},
	} {
		if strings.HasPrefix(path, p.prefix) {
			return p.flag
		}
	}
	return path
}
