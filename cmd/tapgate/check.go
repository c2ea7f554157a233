package main

import (
	"errors"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newCheckCommand(e *env, g *globals) *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check [-f FILE]",
		Short: "Say what this kernel, these interfaces and a configuration allow",
		Long: `Says what this kernel can do, which interfaces can be tapped and, with -f, whether
a configuration can be put in force here, and what the host's own firewall
(firewalld, nft, iptables, ufw, Docker) does to the same flows, with the commands
that mend it. Changes nothing.

Exit code 2 if the configuration cannot be put in force, 1 if the kernel lacks
what tapgate needs.`,
		Example: `  tapgate check
  tapgate check -f /etc/tapgate/tapgate.yaml`,
		Args: noArgs,
		RunE: e.privileged(func(cmd *cobra.Command, _ []string) error {
			opt, err := g.options(false)
			if err != nil {
				return err
			}
			doc, cfg := &document{}, (*loader.Config)(nil)
			if cmd.Flags().Changed("file") {
				if doc, err = e.readConfig(file); err != nil {
					return err
				}
				cfg = &doc.Config
			}
			report, err := e.loader().Check(opt, cfg)
			if report == nil {
				return locate(err, doc.place)
			}
			raw := errorLines(err)
			err = locate(err, doc.place)
			// The loader tells problems in both ways; here they get their line.
			report.Problems = slices.DeleteFunc(report.Problems, func(p string) bool { return slices.Contains(raw, p) })
			if asJSON {
				report.Problems = append(report.Problems, errorLines(err)...)
				return errors.Join(e.writeJSON(report), err)
			}
			return errors.Join(e.write(checkText(report, cfg != nil && err == nil && len(report.Problems) == 0)), err)
		}),
	}
	addFile(cmd, &file)
	addJSON(cmd, &asJSON)
	return cmd
}

// checkText shows a report. good says that there was a configuration and
// nothing stands against it.
func checkText(r *loader.Report, good bool) string {
	parts := []string{facts("kernel", r.Kernel)}

	var rows [][]string
	for _, f := range r.Features {
		have := yesNo(f.Have)
		switch {
		case f.Have:
		case f.Needed:
			have = "NO, needed"
		}
		rows = append(rows, []string{f.Name, f.Since, have, f.Use})
		if !f.Have && f.Err != "" {
			rows = append(rows, []string{"", "", "", "(" + f.Err + ")"})
		}
	}
	if rows != nil {
		parts = append(parts, columns("features", []string{"name", "since", "here", "use"}, rows))
	}

	rows = nil
	var why []string
	for _, i := range r.Interfaces {
		if !i.Tapable {
			why = append(why, i.Name+": "+i.Why)
		}
		zone := i.Zone
		if zone == "" {
			zone = "-"
		}
		rows = append(rows, []string{
			i.Name, i.Type, zone, yesNo(i.Tapable), yesNo(i.Up), yesNo(i.Carrier), number(uint64(i.MTU)),
			strings.Join(i.Addresses, " "),
		})
	}
	if rows != nil {
		parts = append(parts, columns("interfaces", []string{
			"name", "type", "zone", "tappable", "up", "carrier", ">mtu", "addresses",
		}, rows))
	}
	parts = append(parts, bullets("not tappable", why), gatewayReport(r.Gateway), bullets("warnings", r.Warnings), bullets("problems", r.Problems))
	if good {
		parts = append(parts, "the configuration can be put in force\n")
	}
	return joinParts(parts)
}

// gatewayReport shows what the configuration would make of this machine beside a tap.
func gatewayReport(gw *loader.GatewayReport) string {
	if gw == nil {
		return ""
	}
	fragments := "out of order as well"
	if !gw.Reassembly {
		fragments = "in order only: not put in order on this kernel (netfilter_defrag)"
	}
	memory := ""
	if gw.Memory > 0 {
		memory = ", whose memory (" + size(gw.Memory) + ") is taken at once"
	}
	pairs := outsidePairs(gw.Outside)
	pairs = append(pairs, "ports", strings.Join(gw.Ports, ", ")+", where a rule names none", "flows", number(uint64(gw.MaxFlows))+" at most"+memory,
		"fragments", fragments)
	for i, line := range strings.Split(text.WrapSoft(forwardingText(gw.Forwarding), 80), "\n") {
		pairs = append(pairs, first("forwarding", i), strings.TrimSpace(line))
	}
	for i, s := range gw.Sysctls {
		pairs = append(pairs, first("sets", i), s)
	}
	return joinParts([]string{section("gateway", pairs), hostRules(gw.HostRules)})
}

// hostRules shows what the host's own firewall does to the same flows, with the
// commands each in a line of its own, to be copied.
func hostRules(rules []loader.HostRule) string {
	var lines []string
	for _, h := range rules {
		says := h.Says
		if len(h.Commands) > 0 {
			says += ":"
		}
		for _, line := range strings.Split(text.WrapSoft(says, 96), "\n") {
			lines = append(lines, strings.TrimSpace(line))
		}
		for _, c := range h.Commands {
			lines = append(lines, "  "+c)
		}
	}
	return bullets("host rules", lines)
}
