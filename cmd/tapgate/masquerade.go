package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newMasqueradeCommand(e *env, g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "masquerade",
		Short: "List, add and delete masquerade rules while traffic runs",
		Example: `  tapgate masquerade list
  tapgate masquerade add --from internal --to external
  tapgate masquerade del internal-external`,
	}
	needSubcommand(cmd)
	cmd.AddCommand(newMasqueradeAddCommand(e, g), newMasqueradeDelCommand(e, g), newMasqueradeListCommand(e, g))
	return cmd
}

// masqueradeFlags are the flags of masquerade add.
type masqueradeFlags struct {
	from, to, filtering       string
	addresses, sources, ports []string
	ipv6                      bool
}

func (f *masqueradeFlags) masquerade(cmd *cobra.Command, args []string) (m loader.Masquerade, err error) {
	if err := needFlags(cmd, "from", "to"); err != nil {
		return m, err
	}
	m = loader.Masquerade{From: f.from, To: f.to, IPv6: f.ipv6}
	if len(args) > 0 {
		m.Name = args[0]
	}
	if m.Sources, err = prefixFlag(cmd, "source", f.sources); err != nil {
		return m, err
	}
	if m.Addresses, err = prefixFlag(cmd, "address", f.addresses); err != nil {
		return m, err
	}
	if cmd.Flags().Changed("ports") && (len(f.ports) == 0 || len(f.ports) > 2) {
		return m, usagef("--ports: one or two ranges, as 1024-32767,61000-65535")
	}
	for _, s := range f.ports {
		r, err := parsePorts(s)
		if err != nil {
			return m, usagef("--ports: %w", err)
		}
		m.Ports = append(m.Ports, r)
	}
	if cmd.Flags().Changed("filtering") {
		if m.EndpointIndependent, err = parseFiltering(f.filtering); err != nil {
			return m, usagef("--filtering: %w", err)
		}
	}
	return m, nil
}

func newMasqueradeAddCommand(e *env, g *globals) *cobra.Command {
	f := &masqueradeFlags{}
	var force, save bool
	cmd := &cobra.Command{
		Use:   "add [NAME] --from Z --to Z",
		Short: "Translate the sources of flows from one zone to another",
		Long: `Has flows from one zone to another go out with an address of the gateway: that of
the interface they leave by, or those given. Without NAME the rule is called
FROM-TO. IPv6 is translated only with --ipv6, or with IPv6 addresses.
` + savedOnRequest,
		Example: `  tapgate masquerade add --from internal --to external --save
  tapgate masquerade add pool --from app --to external --address 203.0.113.16/30 --ports 1024-65535`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return oneName("masquerade rule")(nil, args)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: e.privileged(func(cmd *cobra.Command, args []string) error {
			m, err := f.masquerade(cmd, args)
			if err != nil {
				return err
			}
			c := &edit{force: force, save: save, put: gateway.Apply}
			c.alter = func(cfg *loader.Config) (string, error) {
				before := *cfg
				note, err := addMasquerade(cfg, m)
				if note == "" && err == nil {
					e.beginsNAT(before)
					c.place = rulePlace(fmt.Sprintf("nat.masquerade[%d]", len(cfg.NAT.Masquerades)-1),
						"masquerade rule "+masqueradeName(m), map[string]string{"sources": "source", "addresses": "address"})
				}
				return note, err
			}
			return e.edit(g, c)
		}),
	}
	p := cmd.Flags()
	p.StringVar(&f.from, "from", "", "`ZONE` of the hosts that are hidden")
	p.StringVar(&f.to, "to", "", "`ZONE` that they are hidden from")
	p.StringSliceVar(&f.addresses, "address", nil, "outside addresses to use: `ADDR[,CIDR]`; the interface's own if not given")
	p.StringSliceVar(&f.ports, "ports", nil, "outside ports to use: `N-N[,N-N]`; those that the host does not use if not given")
	p.StringVar(&f.filtering, "filtering", "", "`HOW` answers are let in: address-dependent (default), endpoint-independent")
	p.StringSliceVar(&f.sources, "source", nil, "only these hosts: `CIDR[,CIDR]`; all of the zone if not given")
	p.BoolVar(&f.ipv6, "ipv6", false, "IPv6 as well")
	p.SortFlags = false
	addSave(cmd, &save)
	addForce(cmd, &force, forceConfig)
	_ = cmd.RegisterFlagCompletionFunc("from", e.completeZone(g, loader.RoleInternal, loader.RoleMgmt))
	_ = cmd.RegisterFlagCompletionFunc("to", e.completeZone(g, loader.RoleExternal))
	_ = cmd.RegisterFlagCompletionFunc("filtering", completeWords(filterings...))
	return cmd
}

func newMasqueradeDelCommand(e *env, g *globals) *cobra.Command {
	return newRuleDelCommand(e, g, ruleKind{
		thing: "masquerade rule", origin: "masquerade", names: masqueradeNames, del: delMasquerade,
	})
}

func newMasqueradeListCommand(e *env, g *globals) *cobra.Command {
	return newRuleListCommand(e, g, "masquerade", "masquerade rules", func(s *loader.Status, cfg loader.Config) (any, string) {
		list := masqueradeList(s, cfg)
		return list, masqueradeTable(list)
	})
}

// masqueradeEntry is a rule of the configuration with what it did.
type masqueradeEntry struct {
	Name      string   `json:"name"`
	From      string   `json:"from"`
	To        string   `json:"to"`
	Sources   []string `json:"sources"`   // none: all
	Addresses []string `json:"addresses"` // none: the interface's own
	Ports     []string `json:"ports"`     // none: those that the host does not use
	Filtering string   `json:"filtering"`
	IPv6      bool     `json:"ipv6"`
	ruleHits
}

func masqueradeList(s *loader.Status, cfg loader.Config) []masqueradeEntry {
	list, hits := []masqueradeEntry{}, hitsOf(gatewayOf(s).Masquerades)
	for _, m := range masqueradesOf(cfg) {
		name := masqueradeName(m)
		entry := masqueradeEntry{
			Name: name, From: m.From, To: m.To, Sources: prefixTexts(m.Sources), Addresses: prefixTexts(m.Addresses),
			Ports: portsTexts(m.Ports), Filtering: addressDependent, IPv6: m.IPv6, ruleHits: hits[name],
		}
		if m.EndpointIndependent {
			entry.Filtering = endpointIndependent
		}
		list = append(list, entry)
	}
	return list
}

func masqueradeTable(list []masqueradeEntry) string {
	var rows [][]string
	for _, m := range list {
		as, filtering := "the interface's address", ""
		if len(m.Addresses) > 0 {
			as = short(m.Addresses)
		}
		if m.Filtering != addressDependent {
			filtering = "filtering " + m.Filtering
		}
		row := append([]string{m.Name, m.From + " > " + m.To, as, yesNo(m.IPv6)}, m.cells()...)
		rows = append(rows, ruleRows(row, 2, besides("ports", m.Ports), besides("only", m.Sources), filtering)...)
	}
	if rows == nil {
		return ""
	}
	return columns("masquerade rules", []string{"name", "zones", "as", "ipv6", ">flows", "last"}, rows)
}
