package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

// flowFlags say which flows are meant.
type flowFlags struct {
	addr, zone, proto string
	port              string
}

// flowProtos have names in the list.
var flowProtos = append([]string{"udplite", "sctp", "dccp", "gre", "esp", "ah", "ipip", "ipv6"}, policyProtos...)

var flowFilters = []string{"addr", "port", "zone", "proto"}

func (f *flowFlags) add(cmd *cobra.Command, e *env, g *globals) {
	p := cmd.Flags()
	p.StringVar(&f.addr, "addr", "", "with this address, or one of this network, inside, outside or remote: `CIDR`")
	p.StringVar(&f.port, "port", "", "with this port, or ICMP id, inside, outside or remote: `N`")
	p.StringVar(&f.zone, "zone", "", "from or to this `ZONE`")
	p.StringVar(&f.proto, "proto", "", "of this protocol: tcp, udp, icmp, icmpv6 or a number, `P`")
	p.SortFlags = false
	_ = cmd.RegisterFlagCompletionFunc("zone", e.completeZone(g))
	_ = cmd.RegisterFlagCompletionFunc("proto", completeWords(policyProtos...))
}

func (f *flowFlags) any(cmd *cobra.Command) bool {
	return slices.ContainsFunc(flowFilters, cmd.Flags().Changed)
}

// filter checks the flags; whether there is such a zone, zoneKnown does.
func (f *flowFlags) filter(cmd *cobra.Command) (out loader.FlowFilter, err error) {
	given := cmd.Flags().Changed
	if given("addr") {
		if out.Addr, err = parsePrefix(f.addr); err != nil {
			return out, usagef("--addr: %w", err)
		}
	}
	if given("port") {
		var ok bool
		if out.Port, ok = parsePort(f.port); !ok {
			return out, usagef("--port: %q is not a port, 1 to 65535", f.port)
		}
	}
	if given("proto") {
		if !slices.Contains(flowProtos, f.proto) {
			if err := parsePolicyProto(f.proto); err != nil {
				return out, usagef("--proto: %w", err)
			}
		}
		out.Proto = f.proto
	}
	if given("zone") {
		if out.Zone = f.zone; out.Zone == "" {
			return out, usagef("--zone: must not be empty")
		}
	}
	return out, nil
}

// zoneKnown tells a mistyped zone from one without flows.
func zoneKnown(gw gateway, zone string) error {
	doc, err := parseConfig("", []byte(gw.Source()))
	if zone == "" || err != nil {
		return nil
	}
	return knownZone(doc.Config, "--zone", zone)
}

func newFlowsCommand(e *env, g *globals) *cobra.Command {
	f := &flowFlags{}
	var asJSON bool
	var limit int
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "Show the flows that pass the gateway, or end them",
		Long: `Shows the flows in the gateway's table: the inside host, the remote, and beneath
the outside address where there is translation. ">" is for flows that the inside
began, "<" for those that came from outside. "left" is how long a flow lives on
without a packet; packets and bytes are of both directions, and copied are the
packets that a mirror took. Fast flows pass by the host's stack; each sends it one
packet in ten seconds.`,
		Example: `  tapgate flows --addr 192.168.3.0/24 --port 443
  tapgate flows --zone mgmt --json | jq '.[].remote'
  tapgate flows flush --addr 192.168.3.7`,
		Args: noArgs,
		RunE: e.privileged(func(cmd *cobra.Command, _ []string) error {
			filter, err := f.filter(cmd)
			if err != nil {
				return err
			}
			if limit < 0 || cmd.Flags().Changed("limit") && limit == 0 {
				return usagef("--limit %d: must be above zero", limit)
			}
			var flows []loader.Flow
			err = e.read(g, func(gw gateway) error {
				if err := zoneKnown(gw, filter.Zone); err != nil {
					return err
				}
				flows, err = gw.Flows(filter)
				return err
			})
			if err != nil {
				return err
			}
			return e.showFlows(orEmpty(flows), limit, asJSON)
		}),
	}
	f.add(cmd, e, g)
	cmd.Flags().IntVar(&limit, "limit", 0, "the first `N` only, those with most bytes")
	addJSON(cmd, &asJSON)
	cmd.AddCommand(newFlowsFlushCommand(e, g))
	return cmd
}

func (e *env) showFlows(flows []loader.Flow, limit int, asJSON bool) error {
	all := len(flows)
	if limit > 0 && all > limit {
		slices.SortStableFunc(flows, func(a, b loader.Flow) int { return compare(b.Bytes, a.Bytes) })
		flows = flows[:limit]
	} else {
		slices.SortStableFunc(flows, func(a, b loader.Flow) int {
			return strings.Compare(a.Proto+" "+a.Inside+" "+a.Remote, b.Proto+" "+b.Inside+" "+b.Remote)
		})
	}
	if asJSON {
		return e.writeJSON(flows)
	}
	if all == 0 {
		e.say("no flows")
		return nil
	}
	if err := e.write(flowTable(flows)); err != nil {
		return err
	}
	if all > len(flows) {
		e.say("%d more", all-len(flows))
	}
	return nil
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// flowWidth is what endpoints may take of a line, so that it stays below 100 columns.
const flowWidth = 42

// flowTable shows flows; translation and what is too long go to lines of their own.
func flowTable(flows []loader.Flow) string {
	var rows [][]string
	for _, f := range flows {
		arrow := ">"
		if f.FromOutside {
			arrow = "<"
		}
		who := []string{f.Proto + " " + f.Inside + " " + arrow + " " + f.Remote}
		if len(who[0]) > flowWidth {
			who = []string{f.Proto + " " + f.Inside, "  " + arrow + " " + f.Remote}
		}
		if f.Outside != "" && f.Outside != f.Inside {
			who = append(who, "  as "+f.Outside)
		}
		rows = append(rows, []string{
			who[0], f.State, span(seconds(f.Age)), span(seconds(f.ExpiresIn)),
			number(f.Packets), size(f.Bytes), number(f.Copied), yesNo(f.Fast),
		})
		for _, w := range who[1:] {
			rows = append(rows, []string{w, "", "", "", "", "", "", ""})
		}
	}
	return columns(counted(len(flows), "flow"), []string{
		"flow", "state", ">age", ">left", ">packets", ">bytes", ">copied", "fast",
	}, rows)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func newFlowsFlushCommand(e *env, g *globals) *cobra.Command {
	f := &flowFlags{}
	var all bool
	cmd := &cobra.Command{
		Use:   "flush [--all]",
		Short: "End flows at once",
		Long: `Ends flows at once: those that all the given flags fit, or all. What their hosts
send later makes new flows, where rules and policies allow it.`,
		Example: `  tapgate flows flush --addr 203.0.113.8 --port 443
  tapgate flows flush --all`,
		Args: noArgs,
		RunE: e.privileged(func(cmd *cobra.Command, _ []string) error {
			filter, err := f.filter(cmd)
			switch {
			case err != nil:
				return err
			case all && f.any(cmd):
				return usagef("--all and a filter: one or the other")
			case !all && !f.any(cmd):
				return usagef("which flows? --%s, or --all", strings.Join(flowFilters, ", --"))
			}
			return e.flush(g, filter)
		}),
	}
	f.add(cmd, e, g)
	cmd.Flags().BoolVar(&all, "all", false, "all flows")
	return cmd
}

func (e *env) flush(g *globals, filter loader.FlowFilter) error {
	return e.open(g, loader.ReadWrite, func(gw gateway) error {
		if err := zoneKnown(gw, filter.Zone); err != nil {
			return err
		}
		n, err := gw.FlushFlows(filter)
		if n > 0 {
			e.noteResult(&loader.Result{Changes: []string{counted(n, "flow") + " flushed"}})
		}
		if err == nil && n == 0 {
			e.say("already so: no such flows")
			return nil
		}
		if n > 0 {
			if werr := e.write(fmt.Sprintf("%s flushed\n", counted(n, "flow"))); err == nil {
				err = werr
			}
		}
		return err
	})
}
