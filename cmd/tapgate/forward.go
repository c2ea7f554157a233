package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newForwardCommand(e *env, g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forward",
		Short: "List, add and delete port forwards while traffic runs",
		Example: `  tapgate forward list
  tapgate forward add rdp --in external --proto tcp --port 3389 --to 192.168.3.3:3389
  tapgate forward del rdp`,
	}
	needSubcommand(cmd)
	cmd.AddCommand(newForwardAddCommand(e, g), newForwardDelCommand(e, g), newForwardListCommand(e, g))
	return cmd
}

// forwardFlags are the flags of forward add.
type forwardFlags struct {
	in, address, proto, port, to string
	sources                      []string
	rate, perRemote              uint32
}

// forward makes one of the flags given.
func (f *forwardFlags) forward(cmd *cobra.Command, name string) (fw loader.Forward, err error) {
	if err := needFlags(cmd, "in", "proto", "port", "to"); err != nil {
		return fw, err
	}
	fw = loader.Forward{Name: name, In: f.in, Proto: f.proto, Rate: f.rate, RateHost: f.perRemote}
	if err := parseForwardProto(f.proto); err != nil {
		return fw, usagef("--proto: %w", err)
	}
	if fw.Ports, err = parsePorts(f.port); err != nil {
		return fw, usagef("--port: %w", err)
	}
	var to loader.PortRange
	if fw.To, to, err = parseEndpoint(f.to); err != nil {
		return fw, usagef("--to: %w", err)
	}
	if err := samePorts(fw.Ports, to); err != nil {
		return fw, usagef("--to: %w", err)
	}
	fw.ToPort = to.First
	if cmd.Flags().Changed("address") {
		if fw.Address, err = parseAddr(f.address); err != nil {
			return fw, usagef("--address: %w", err)
		}
	}
	fw.Sources, err = prefixFlag(cmd, "source", f.sources)
	return fw, err
}

// prefixFlag reads a flag that holds a list of networks.
func prefixFlag(cmd *cobra.Command, name string, texts []string) ([]netip.Prefix, error) {
	if cmd.Flags().Changed(name) && len(texts) == 0 {
		return nil, usagef("--%s: must not be empty", name)
	}
	var all []netip.Prefix
	for _, s := range texts {
		p, err := parsePrefix(s)
		if err != nil {
			return nil, usagef("--%s: %w", name, err)
		}
		all = append(all, p)
	}
	return all, nil
}

func newForwardAddCommand(e *env, g *globals) *cobra.Command {
	f := &forwardFlags{}
	var force, save bool
	cmd := &cobra.Command{
		Use:   "add NAME --in Z --proto P --port N --to ADDR:PORT",
		Short: "Let the outside reach an inside service",
		Long: `Lets the outside reach an inside service: what comes in from a zone for a port of
the gateway goes to an inside address. Both may be ranges of the same size.
` + savedOnRequest,
		Example: `  tapgate forward add rdp --in external --proto tcp --port 3389 --to 192.168.3.3:3389 --save
  tapgate forward add game --in external --proto udp --port 7000-7009 --to 192.168.3.3:7000-7009
  tapgate forward add ssh --in external --proto tcp --port 22 --to 192.168.3.3:22 --source 192.0.2.7`,
		Args:              oneName("forward"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: e.privileged(func(cmd *cobra.Command, args []string) error {
			fw, err := f.forward(cmd, args[0])
			if err != nil {
				return err
			}
			c := &edit{force: force, save: save, put: gateway.Apply}
			c.alter = func(cfg *loader.Config) (string, error) {
				before := *cfg
				note, err := addForward(cfg, fw)
				if note == "" && err == nil {
					e.beginsNAT(before)
					c.place = rulePlace(fmt.Sprintf("nat.forwards[%d]", len(cfg.NAT.Forwards)-1), "forward "+fw.Name, map[string]string{
						"sources": "source", "limit.rate": "rate", "limit.per_remote": "rate-per-remote",
					})
				}
				return note, err
			}
			return e.edit(g, c)
		}),
	}
	p := cmd.Flags()
	p.StringVar(&f.in, "in", "", "external `ZONE` that asks")
	p.StringVar(&f.proto, "proto", "", "`P`: tcp or udp")
	p.StringVar(&f.port, "port", "", "port, or range of ports, that is asked for: `N`[-N]")
	p.StringVar(&f.to, "to", "", "inside `ADDR:PORT`, or ADDR:PORT-PORT; IPv6 as [ADDR]:PORT")
	p.StringSliceVar(&f.sources, "source", nil, "only these may use it: `CIDR[,CIDR]`; all if not given")
	p.StringVar(&f.address, "address", "", "`ADDR` of the gateway that is asked; any of the zone's if not given")
	amountVar(cmd, &f.rate, "rate", "admit this many new flows a second, `N`, in all")
	amountVar(cmd, &f.perRemote, "rate-per-remote", "admit this many new flows a second, `N`, from each address")
	p.SortFlags = false
	addSave(cmd, &save)
	addForce(cmd, &force, forceConfig)
	_ = cmd.RegisterFlagCompletionFunc("in", e.completeZone(g, loader.RoleExternal))
	_ = cmd.RegisterFlagCompletionFunc("proto", completeWords(forwardProtos...))
	return cmd
}

// amountVar is a flag for a number above zero.
func amountVar(cmd *cobra.Command, to *uint32, name, usage string) {
	cmd.Flags().Var((*amount)(to), name, usage)
}

type amount uint32

func (a *amount) String() string {
	if *a == 0 {
		return ""
	}
	return fmt.Sprint(uint32(*a))
}

func (a *amount) Set(s string) error {
	n, err := parseAmount(s)
	*a = amount(n)
	return err
}

func (a *amount) Type() string { return "number" }

func newForwardDelCommand(e *env, g *globals) *cobra.Command {
	return newRuleDelCommand(e, g, ruleKind{
		thing: "forward", origin: "forward", names: forwardNames, del: delForward,
	})
}

func newForwardListCommand(e *env, g *globals) *cobra.Command {
	return newRuleListCommand(e, g, "forward", "forwards", func(s *loader.Status, cfg loader.Config) (any, string) {
		list := forwardList(s, cfg)
		return list, forwardTable(list)
	})
}

// forwardEntry is a forward of the configuration with what it did.
type forwardEntry struct {
	Name    string       `json:"name"`
	In      string       `json:"in"`
	Address string       `json:"address,omitempty"`
	Proto   string       `json:"proto"`
	Port    string       `json:"port"`
	To      string       `json:"to"`
	Sources []string     `json:"sources"` // none: any
	Limit   forwardLimit `json:"limit"`
	ruleHits
}

type forwardLimit struct {
	Rate      uint32 `json:"rate"` // 0: none
	PerRemote uint32 `json:"per_remote"`
}

func forwardList(s *loader.Status, cfg loader.Config) []forwardEntry {
	list, hits := []forwardEntry{}, hitsOf(gatewayOf(s).Forwards)
	for _, f := range forwardsOf(cfg) {
		entry := forwardEntry{
			Name: f.Name, In: f.In, Proto: f.Proto, Port: portsText(f.Ports), To: forwardTo(f), Sources: prefixTexts(f.Sources),
			Limit: forwardLimit{f.Rate, f.RateHost}, ruleHits: hits[f.Name],
		}
		if f.Address.IsValid() {
			entry.Address = f.Address.String()
		}
		list = append(list, entry)
	}
	return list
}

func forwardTable(list []forwardEntry) string {
	var rows [][]string
	for _, f := range list {
		address := ""
		if f.Address != "" {
			address = "at " + f.Address
		}
		row := append([]string{f.Name, f.In, f.Proto + " " + f.Port + " to " + f.To}, f.cells()...)
		rows = append(rows, ruleRows(row, 2, address, besides("only", f.Sources), f.Limit.text())...)
	}
	if rows == nil {
		return ""
	}
	return columns("forwards", []string{"name", "in", "what", ">flows", "last"}, rows)
}

func (l forwardLimit) text() string {
	var parts []string
	if l.Rate > 0 {
		parts = append(parts, fmt.Sprintf("%d/s", l.Rate))
	}
	if l.PerRemote > 0 {
		parts = append(parts, fmt.Sprintf("%d/s for each remote", l.PerRemote))
	}
	return besides("limit", parts)
}
