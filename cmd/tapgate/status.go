package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newStatusCommand(e *env, g *globals) *cobra.Command {
	var asJSON, asMetrics bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is attached, what was copied and what is wrong",
		Long: `Shows interfaces, the gateway, mirrors, the links to sensors and problems. For
each mirror and target, matched = copied + skipped. Copied means handed to the
sensor's link; what the link refused or dropped after that stands beside it. Where a
file was applied, it says whether that still is what is in force.

With -v also per direction, why packets went as they did, and how many flows each
rule decided on. --metrics prints the
counters as Prometheus reads them, as for node_exporter's textfile collector.`,
		Example: `  tapgate status
  tapgate status --metrics >/var/lib/node_exporter/tapgate.prom
  tapgate status --netns gw --json | jq .mirrors`,
		Args: noArgs,
		RunE: e.privileged(func(*cobra.Command, []string) error {
			if asMetrics {
				s, err := e.status(g)
				if err != nil {
					return err
				}
				return e.writeMetrics(s)
			}
			s, err := e.statusWithFile(g)
			if err != nil {
				return err
			}
			if asJSON {
				return e.writeJSON(s)
			}
			return e.write(statusText(s.Status, s.File, g.verbose))
		}),
	}
	addJSON(cmd, &asJSON)
	cmd.Flags().BoolVar(&asMetrics, "metrics", false, "print metrics for Prometheus")
	cmd.MarkFlagsMutuallyExclusive("json", "metrics")
	return cmd
}

// writeMetrics prints a status in Prometheus' text format.
func (e *env) writeMetrics(s *loader.Status) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(loader.NewCollector(func() (*loader.Status, error) { return s, nil }))
	families, err := registry.Gather()
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			return err
		}
	}
	return e.write(text.String())
}

// status reads the gateway's status.
func (e *env) status(g *globals) (s *loader.Status, err error) {
	err = e.read(g, func(gw gateway) error {
		s, err = statusOf(gw)
		return err
	})
	return s, err
}

// statusFile is a status with what only this program looks at.
type statusFile struct {
	*loader.Status
	File *fileState `json:"file,omitempty"` // that was applied, if there is one
}

func (e *env) statusWithFile(g *globals) (s statusFile, err error) {
	var file loader.SourceFile
	var source string
	err = e.read(g, func(gw gateway) error {
		file, source = gw.File(), gw.Source()
		s.Status, err = statusOf(gw)
		return err
	})
	if err == nil {
		s.File = lookAtFile(file, source) // without the lock, since file systems may hang
	}
	return s, err
}

// statusOf is the gateway's status. Lists are never nil, so that JSON has [].
func statusOf(gw gateway) (*loader.Status, error) {
	s, err := gw.Status()
	if err != nil {
		return nil, err
	}
	s.Members = orEmpty(s.Members)
	s.Mirrors = orEmpty(s.Mirrors)
	s.Links = orEmpty(s.Links)
	s.Problems = orEmpty(s.Problems)
	return s, nil
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func statusText(s *loader.Status, file *fileState, verbose bool) string {
	about := []string{
		"namespace", s.Netns,
		"state", s.State,
		"generation", fmt.Sprintf("%d, change %d, applied %s", s.Slot, s.Serial, s.Applied),
	}
	if p := s.Pending; p != nil {
		about = append(about, "pending", fmt.Sprintf("goes back at %s, in %.0f s, unless it is confirmed: tapgate confirm", clockTime(p.Until), p.Left))
	}
	if s.Returned != nil {
		about = append(about, "returned", returnedText(s.Returned))
	}
	parts := []string{facts(append(about, file.pairs()...)...)}
	parts = append(parts, memberTable(s.Members))
	if verbose {
		parts = append(parts, reasonTable(s.Members))
	}
	parts = append(parts, gatewayText(s.Gateway, verbose), mirrorTable(s.Mirrors, verbose), skipTable(s.Mirrors), linkTable(s.Links), neighbourTable(s.Mirrors))
	return joinParts(append(parts, bullets("problems", s.Problems)))
}

func memberTable(members []loader.MemberStatus) string {
	var rows [][]string
	for _, m := range members {
		attached := m.Attached
		if attached == "" {
			attached = "-"
		}
		row := []string{m.Interface, m.Zone, string(m.Role), attached}
		row = append(row, seen(m.Ingress)...)
		row = append(row, seen(m.Egress)...)
		rows = append(rows, append(row, dropped(m)))
	}
	if rows == nil {
		return ""
	}
	return columns("interfaces", []string{
		"name", "zone", "role", "attached", ">seen in", ">bytes", ">seen out", ">bytes", ">dropped",
	}, rows)
}

func seen(d *loader.DirectionStatus) []string {
	if d == nil {
		return []string{"-", "-"}
	}
	return cells(d.Seen)
}

// dropped sums what our programs dropped on an interface: only ever copies, and
// what came from the dmz.
func dropped(m loader.MemberStatus) string {
	if m.Ingress == nil && m.Egress == nil {
		return "-"
	}
	var sum uint64
	for _, d := range []*loader.DirectionStatus{m.Ingress, m.Egress} {
		if d == nil {
			continue
		}
		for reason, n := range d.Reasons {
			if strings.HasPrefix(strings.ToLower(reason), "drop") {
				sum += n
			}
		}
	}
	return number(sum)
}

func reasonTable(members []loader.MemberStatus) string {
	var rows [][]string
	for _, m := range members {
		for _, d := range []struct {
			name string
			*loader.DirectionStatus
		}{{"in", m.Ingress}, {"out", m.Egress}} {
			if d.DirectionStatus == nil {
				continue
			}
			for _, reason := range slices.Sorted(maps.Keys(d.Reasons)) {
				rows = append(rows, []string{m.Interface, d.name, reason, number(d.Reasons[reason])})
			}
			if d.Duplicates > 0 {
				rows = append(rows, []string{m.Interface, d.name, "(copied at another interface)", number(d.Duplicates)})
			}
		}
	}
	if rows == nil {
		return ""
	}
	return columns("verdicts", []string{"interface", "direction", "reason", ">buffers"}, rows)
}

func mirrorTable(mirrors []loader.MirrorStatus, verbose bool) string {
	var rows [][]string
	add := func(name string, all, in, out loader.Ledger) {
		rows = append(rows, ledgerRow(name, all))
		if verbose {
			rows = append(rows, ledgerRow("  from hosts", in), ledgerRow("  to hosts", out))
		}
	}
	for _, m := range mirrors {
		add(m.Name+" ("+strings.Join(m.Zones, ", ")+")", m.Ledger, m.Ingress, m.Egress)
		for _, t := range m.Targets {
			name := t.Target
			if !strings.HasPrefix(name, "l2 ") && t.Interface != "" {
				name += " on " + t.Interface
			}
			add("- "+name, t.Ledger, t.Ingress, t.Egress)
		}
	}
	if rows == nil {
		return ""
	}
	return columns("mirrors", []string{
		"mirror, target", ">matched", ">bytes", ">copied", ">bytes", ">refused", ">skipped", ">bytes",
	}, rows)
}

func ledgerRow(name string, l loader.Ledger) []string {
	var skipped loader.Count
	for _, c := range l.Skipped {
		skipped.Packets += c.Packets
		skipped.Bytes += c.Bytes
	}
	row := []string{name}
	row = append(row, cells(l.Matched)...)
	row = append(row, cells(l.Copied)...)
	row = append(row, number(l.Refused.Packets))
	return append(row, cells(skipped)...)
}

// skipTable says why packets were skipped, for those targets where some were.
func skipTable(mirrors []loader.MirrorStatus) string {
	var rows [][]string
	for _, m := range mirrors {
		for _, t := range m.Targets {
			for _, reason := range slices.Sorted(maps.Keys(t.Skipped)) {
				if c := t.Skipped[reason]; c.Packets > 0 {
					rows = append(rows, append([]string{m.Name, t.Target, reason}, cells(c)...))
				}
			}
		}
	}
	if rows == nil {
		return ""
	}
	return columns("skipped", []string{"mirror", "target", "reason", ">packets", ">bytes"}, rows)
}

func cells(c loader.Count) []string { return []string{number(c.Packets), size(c.Bytes)} }

func linkTable(links []loader.LinkStatus) string {
	var rows [][]string
	for _, l := range links {
		rows = append(rows, []string{
			l.Interface, yesNo(l.Up), yesNo(l.Carrier), strconv.Itoa(l.MTU),
			number(l.TxPackets), number(l.TxDropped), number(l.QdiscDrops),
		})
	}
	if rows == nil {
		return ""
	}
	return columns("sensor links", []string{
		"name", "up", "carrier", ">mtu", ">sent", ">dropped by device", ">by qdisc",
	}, rows)
}

func neighbourTable(mirrors []loader.MirrorStatus) string {
	var rows [][]string
	known := map[string]bool{}
	for _, m := range mirrors {
		for _, t := range m.Targets {
			n := t.Neighbour
			key := t.Interface + " " + t.Target
			if n == nil || known[key] {
				continue
			}
			known[key] = true // targets of several mirrors share one next hop
			mac, answer := n.MAC, "never"
			if mac == "" {
				mac = "-"
			} else {
				answer = fmt.Sprintf("%.0f s ago", n.Age)
			}
			rows = append(rows, []string{
				strings.TrimPrefix(t.Target, "via "), t.Interface, n.State, mac, answer,
				number(n.Asks), number(n.AsksRefused), number(n.Changes),
			})
		}
	}
	if rows == nil {
		return ""
	}
	return columns("next hops", []string{
		"address", "interface", "state", "mac", "answered", ">asked", ">refused", ">mac changes",
	}, rows)
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
