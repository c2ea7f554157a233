package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newExplainCommand(e *env, g *globals) *cobra.Command {
	var from, sport string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain SRC DST PROTO [PORT]",
		Short: "Say what would become of a packet that begins a flow",
		Long: `Says what would become of a packet that begins a flow: which zones it comes from
and goes to, which policy, forward or masquerade rule decides, what it is
translated to, which way it takes and which mirrors copy it. The rules in force
are asked, not a file, and as far as it matters the host: its routes, its own
firewall, whether the neighbour answers. Nothing is sent.

DST is the address that the sender uses: for a forward, that of the gateway.`,
		Example: `  tapgate explain 192.168.3.2 203.0.113.8 tcp 443
  tapgate explain 198.51.100.7 203.0.113.1 tcp 3389 --from external
  tapgate explain 192.168.3.2 203.0.113.8 icmp`,
		Args: func(_ *cobra.Command, args []string) error {
			if n := len(args); n < 3 || n > 4 {
				return usagef("explain what? SRC DST PROTO [PORT], as 192.168.3.2 203.0.113.8 tcp 443; got %d arguments", n)
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
			var words []string
			if len(args) == 2 {
				words = beginning(part, slices.Clone(policyProtos))
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: e.privileged(func(cmd *cobra.Command, args []string) error {
			q, err := explainQuery(args, from)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("sport") {
				var ok bool
				if q.Sport, ok = parsePort(sport); !ok {
					return usagef("--sport: %q is not a port, 1 to 65535", sport)
				}
			}
			var x *loader.Explanation
			err = e.read(g, func(gw gateway) error {
				doc, err := parseConfig("", []byte(gw.Source()))
				if err == nil && from != "" {
					if err := knownZone(doc.Config, "--from", from); err != nil {
						return err
					}
				}
				x, err = gw.Explain(q)
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				return e.writeJSON(x)
			}
			return e.write(explainText(x))
		}),
	}
	p := cmd.Flags()
	p.StringVar(&from, "from", "", "`ZONE` that the packet comes from, if its address does not tell")
	p.StringVar(&sport, "sport", "", "its source port, `N`; any if not given")
	p.SortFlags = false
	addJSON(cmd, &asJSON)
	_ = cmd.RegisterFlagCompletionFunc("from", e.completeZone(g))
	return cmd
}

// portProtos have ports, by their names and numbers.
var portProtos = []string{"tcp", "6", "udp", "17", "udplite", "136", "sctp", "132", "dccp", "33"}

// explainQuery reads SRC DST PROTO [PORT].
func explainQuery(args []string, from string) (q loader.Query, err error) {
	q = loader.Query{Proto: strings.ToLower(args[2]), From: from}
	if q.Src, err = parseAddr(args[0]); err != nil {
		return q, usagef("SRC: %w", err)
	}
	if q.Dst, err = parseAddr(args[1]); err != nil {
		return q, usagef("DST: %w", err)
	}
	if q.Src.Is4() != q.Dst.Is4() {
		return q, usagef("SRC %s and DST %s: one is IPv4 and the other IPv6", q.Src, q.Dst)
	}
	if !slices.Contains(flowProtos, q.Proto) {
		if err := parsePolicyProto(q.Proto); err != nil {
			return q, usagef("PROTO: %w", err)
		}
	}
	ported := slices.Contains(portProtos, q.Proto)
	switch {
	case len(args) == 4 && !ported && args[3] != "0":
		return q, usagef("PORT %s: %s has no ports", args[3], q.Proto)
	case len(args) < 4 && ported:
		return q, usagef("PORT is missing: tapgate explain %s %s %s PORT", args[0], args[1], args[2])
	case len(args) == 4 && ported:
		var ok bool
		if q.Port, ok = parsePort(args[3]); !ok {
			return q, usagef("PORT: %q is not a port, 1 to 65535", args[3])
		}
	}
	return q, nil
}

// explainText tells the story step by step, the verdict last.
func explainText(x *loader.Explanation) string {
	const label = 12 // as facts has it
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s > %s\n\n", x.Proto, x.Src, x.Dst)
	for _, s := range x.Steps {
		name := s.Step
		for line := range strings.Lines(text.WrapSoft(printable(s.Text), 100-label)) {
			b.WriteString(strings.TrimRight(fmt.Sprintf("%-*s%s", label, name, line), " \n") + "\n")
			name = ""
		}
	}
	return b.String()
}
