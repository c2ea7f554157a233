package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
)

// table is all that was found: as Markdown by load and mode, to be read side by
// side, and otherwise with each figure.
func (r *gateReport) table(markdown bool) string {
	var b strings.Builder
	if markdown {
		b.WriteString(r.sideBySide().RenderMarkdown() + "\n\n")
	} else {
		b.WriteString(r.rows().Render() + "\n\n")
	}
	if len(r.Goals) > 0 {
		b.WriteString(render(goalTable(r.Goals), markdown) + "\n\n")
	}
	var lines strings.Builder
	if markdown {
		r.latency(&lines)
	}
	r.flowMemory(&lines)
	r.explain(&lines)
	text := lines.String()
	if markdown {
		text = strings.TrimSuffix(strings.ReplaceAll(text, "\n", "  \n"), "  \n") + "\n"
	}
	return b.String() + text
}

// sideBySide has a row for each load: speed by that of MASQUERADE.
func (r *gateReport) sideBySide() table.Writer {
	w := table.NewWriter()
	header := table.Row{"load", gateBaseline, ""}
	for _, m := range r.set.gateModes {
		if m.name != gateBaseline {
			header = append(header, m.name)
		}
	}
	w.AppendHeader(header)
	for _, s := range r.set.scenarios {
		for _, t := range s.loads {
			row := table.Row{t.name, "", t.unit}
			for _, m := range r.set.gateModes {
				i := slices.IndexFunc(r.Results, func(x gateResult) bool { return x.Load == t.name && x.Mode == m.name })
				switch {
				case m.name == gateBaseline && i >= 0:
					row[1] = fmt.Sprintf("%.3g", r.Results[i].Rate)
				case m.name == gateBaseline:
				case i < 0:
					row = append(row, "")
				case r.Results[i].Ratio == 0: // nothing to compare with
					row = append(row, fmt.Sprintf("%.3g %s", r.Results[i].Rate, t.unit))
				default:
					row = append(row, fmt.Sprintf("%.2f", r.Results[i].Ratio))
				}
			}
			w.AppendRow(row)
		}
	}
	return w
}

// latency is what each mode adds to a packet's way.
func (r *gateReport) latency(b *strings.Builder) {
	var parts []string
	for _, x := range r.Results {
		if x.Load != "latency" {
			continue
		}
		if x.Mode == gateFloor {
			parts = append(parts, fmt.Sprintf("Latency of a packet, median: %.2f us with plain forwarding; added by", x.Rate))
		} else if len(parts) > 0 {
			parts = append(parts, fmt.Sprintf("%s %.0f ns,", x.Mode, x.Extra))
		}
	}
	if len(parts) > 0 {
		b.WriteString(strings.TrimSuffix(strings.Join(parts, " "), ",") + ".\n")
	}
}

// rows has a row for each load and mode.
func (r *gateReport) rows() table.Writer {
	w := table.NewWriter()
	w.SetStyle(table.StyleLight)
	w.AppendHeader(table.Row{"load", "gateway", "rate", "", "of MASQUERADE", "of MASQUERADE + TEE", "ns beyond forwarding"})
	for i, x := range r.Results {
		load := ""
		if i == 0 || r.Results[i-1].Load != x.Load {
			load = x.Load
			if i > 0 {
				w.AppendSeparator()
			}
		}
		mode := x.Mode
		if x.Gateways > 1 {
			mode += fmt.Sprintf(" (%d gateways)", x.Gateways)
		}
		if x.Lost > 0.001 {
			mode += fmt.Sprintf(" (%.1f %% lost)", 100*x.Lost)
		}
		if x.Fast > 0 && x.Fast < 0.999 {
			mode += fmt.Sprintf(" (%.1f %% fast)", 100*x.Fast)
		}
		w.AppendRow(table.Row{load, mode, fmt.Sprintf("%.3g", x.Rate), x.Unit, orNone("%.2f", x.Ratio), orNone("%.2f", x.Recipe), r.extra(x)})
	}
	return w
}

func (r *gateReport) flowMemory(b *strings.Builder) {
	for i, x := range r.Results {
		// With a tap it is the same, and each scenario has it at each load.
		if x.SlabBytes == 0 || x.Mode != gateBaseline && x.Mode != gateFast ||
			slices.ContainsFunc(r.Results[:i], func(o gateResult) bool { return o.Mode == x.Mode && o.SlabBytes == x.SlabBytes }) {
			continue
		}
		fmt.Fprintf(b, "Memory of a flow, %s, %s: %.0f bytes of slab", x.Load, x.Mode, x.SlabBytes)
		if x.MapBytes > 0 {
			fmt.Fprintf(b, "; %.0f by the maps' own account, %.0f more for its share of buckets and queues", x.MapBytes, x.FixedBytes)
		}
		b.WriteString(".\n")
	}
}

func render(w table.Writer, markdown bool) string {
	if markdown {
		return w.RenderMarkdown()
	}
	return w.Render()
}

func (r *gateReport) explain(b *strings.Builder) {
	fmt.Fprintf(b, "Kernel %s, %s. 64-byte UDP; medians of %d passes; rates per second of CPU time, one CPU doing everything.\n", r.Kernel, r.Arch, r.Rounds*passes)
	for _, m := range r.set.gateModes {
		fmt.Fprintf(b, "%s: %s.\n", m.name, m.what)
	}
	for _, s := range r.set.scenarios {
		for _, t := range s.loads {
			fmt.Fprintf(b, "%s: %s.\n", t.name, t.what)
		}
	}
	b.WriteString("Flows of the fast path are ready for it before they are measured; of each, one packet in ten seconds and direction takes the stack besides: of a million flows at a million packets a second, one in five.\n")
	fmt.Fprintf(b, "A network namespace holds nf_conntrack_max flows, %d here, a limit of the whole machine; where that is too little, several gateways share them in the kernel's one table.\n", r.ConntrackMax)
	for _, key := range slices.Sorted(maps.Keys(r.Missing)) {
		fmt.Fprintf(b, "Left out: %s: %s\n", key, r.Missing[key])
	}
}

func (r *gateReport) extra(x gateResult) string {
	if x.Mode == gateFloor || math.IsNaN(x.Extra) {
		return ""
	}
	return orNone("%.0f", x.Extra)
}
