package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
)

// gateReport is what the gateway's benchmark found.
type gateReport struct {
	Kernel       string            `json:"kernel"`
	Arch         string            `json:"arch"`
	CPU          int               `json:"cpu"`
	Rounds       int               `json:"rounds"`
	Packets      int               `json:"packets"`
	ConntrackMax int               `json:"nf_conntrack_max"`
	Results      []gateResult      `json:"results"`
	Missing      map[string]string `json:"missing,omitempty"` // what could not be set up, and why

	set     *settings
	samples map[gateKey]sample
	memory  map[gateKey][]memory // pass and test 0
	parts   map[gateKey]int
}

type gateKey struct {
	pass                 int
	scenario, test, mode string
}

// gateResult is one row: medians over all passes, ratios taken within each pass.
type gateResult struct {
	Scenario string  `json:"scenario"`
	Test     string  `json:"test"`
	Mode     string  `json:"mode"`
	Unit     string  `json:"unit"`
	Rate     float64 `json:"rate"` // millions per second of CPU time
	// Ratio to the rate of MASQUERADE.
	Ratio float64 `json:"ratio_to_masquerade"`
	// Extra is the CPU time for each unit beyond that of plain forwarding, in ns.
	Extra float64 `json:"extra_ns"`
	Lost  float64 `json:"lost_share"`
	// Gateways that held the flows.
	Gateways int `json:"gateways"`
	// Bytes for each flow: of slab, of tapgate's maps, and of these before there
	// is a flow.
	SlabBytes  float64  `json:"slab_bytes_per_flow,omitempty"`
	MapBytes   float64  `json:"map_bytes_per_flow,omitempty"`
	FixedBytes float64  `json:"fixed_bytes_per_flow,omitempty"`
	Samples    []sample `json:"samples"`
}

func newGateReport(set *settings) *gateReport {
	r := newReport(set)
	return &gateReport{
		Kernel: r.Kernel, Arch: r.Arch, CPU: r.CPU, Rounds: r.Rounds, Packets: r.Packets, ConntrackMax: conntrackMax(),
		Missing: map[string]string{}, set: set,
		samples: map[gateKey]sample{}, memory: map[gateKey][]memory{}, parts: map[gateKey]int{},
	}
}

// note keeps what is known once a fleet stands.
func (r *gateReport) note(s scenario, m gateMode, f fleet) {
	key := gateKey{0, s.name, "", m.name}
	r.memory[key] = append(r.memory[key], f.memory())
	r.parts[key] = len(f)
}

func (r *gateReport) add(pass int, scenario, test, mode string, s sample) {
	r.samples[gateKey{pass, scenario, test, mode}] = s
}

func (r *gateReport) finish() {
	for _, s := range r.set.scenarios {
		for _, t := range s.tests() {
			for _, m := range r.set.gateModes {
				if row := r.result(s, t, m); len(row.Samples) > 0 {
					r.Results = append(r.Results, row)
				}
			}
		}
	}
}

func (r *gateReport) result(s scenario, t gateTest, m gateMode) gateResult {
	var rate, ratio, extra, lost []float64
	row := gateResult{Scenario: s.name, Test: t.name, Mode: m.name, Unit: t.unit}
	for pass := range r.Rounds * passes {
		got, ok := r.samples[gateKey{pass, s.name, t.name, m.name}]
		if !ok {
			continue
		}
		row.Samples = append(row.Samples, got)
		rate = append(rate, got.Units/got.CPU*1e3)
		lost = append(lost, 1-got.Units/got.Sent)
		if base, ok := r.samples[gateKey{pass, s.name, t.name, gateBaseline}]; ok {
			ratio = append(ratio, got.Units/got.CPU/(base.Units/base.CPU))
		}
		if floor, ok := r.samples[gateKey{pass, s.name, t.name, gateFloor}]; ok {
			extra = append(extra, got.CPU/got.Units-floor.CPU/floor.Units)
		}
	}
	row.Rate, row.Ratio, row.Extra, row.Lost = median(rate), median(ratio), median(extra), median(lost)
	key := gateKey{0, s.name, "", m.name}
	row.Gateways = r.parts[key]
	var slab, elements, fixed []float64
	for _, v := range r.memory[key] {
		slab = append(slab, v.Slab/float64(v.Flows))
		elements = append(elements, v.Maps/float64(v.Flows))
		fixed = append(fixed, v.Fixed/float64(s.room()))
	}
	// The machine's slab changes by itself, and elements come by the page.
	if s.room() >= 1<<16 && !m.direct {
		row.MapBytes = median(elements)
		if !s.fresh {
			row.SlabBytes, row.FixedBytes = median(slab), median(fixed)
		}
	}
	return row
}

func (r *gateReport) table(markdown bool) string {
	w := table.NewWriter()
	w.SetStyle(table.StyleLight)
	w.AppendHeader(table.Row{"load", "measured", "gateway", "rate", "", "of MASQUERADE", "ns beyond forwarding"})
	last := ""
	for i, x := range r.Results {
		name, test := "", ""
		if now := x.Scenario + x.Test; now != last {
			name, test, last = x.Scenario, x.Test, now
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
		w.AppendRow(table.Row{name, test, mode, fmt.Sprintf("%.3g", x.Rate), x.Unit, orNone("%.2f", x.Ratio), r.extra(x)})
	}
	var b strings.Builder
	if markdown {
		b.WriteString(w.RenderMarkdown())
	} else {
		b.WriteString(w.Render())
	}
	b.WriteString("\n\n")
	for i, x := range r.Results {
		if x.SlabBytes+x.MapBytes == 0 || i > 0 && r.Results[i-1].Scenario == x.Scenario && r.Results[i-1].Test != x.Test {
			continue
		}
		var parts []string
		if x.SlabBytes > 0 {
			parts = append(parts, fmt.Sprintf("%.0f bytes of slab", x.SlabBytes))
		}
		if x.MapBytes > 0 {
			parts = append(parts, fmt.Sprintf("%.0f bytes by the maps' own account", x.MapBytes))
		}
		if x.FixedBytes > 0 {
			parts = append(parts, fmt.Sprintf("%.0f more for its share of buckets and queues", x.FixedBytes))
		}
		fmt.Fprintf(&b, "Memory of a flow, %s, %s: %s.\n", x.Scenario, x.Mode, strings.Join(parts, "; "))
	}
	fmt.Fprintf(&b, "Kernel %s, %s. 64-byte UDP; medians of %d passes; rates per second of CPU time, one CPU doing everything.\n", r.Kernel, r.Arch, r.Rounds*passes)
	for _, s := range r.set.scenarios {
		fmt.Fprintf(&b, "%s: %s.\n", s.name, s.what)
	}
	fmt.Fprintf(&b, "A network namespace holds nf_conntrack_max flows, %d here, a limit of the whole machine; where that is too little,\nseveral gateways share them in the kernel's one table.\n", r.ConntrackMax)
	for _, key := range slices.Sorted(maps.Keys(r.Missing)) {
		fmt.Fprintf(&b, "Left out: %s: %s\n", key, r.Missing[key])
	}
	return b.String()
}

func (r *gateReport) extra(x gateResult) string {
	if x.Mode == gateFloor || math.IsNaN(x.Extra) {
		return ""
	}
	return orNone("%.0f", x.Extra)
}

// failed is an error if something that was asked for could not be measured.
func (r *gateReport) failed() error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(r.Missing)) {
		errs = append(errs, fmt.Errorf("%s was not measured: %s", key, r.Missing[key]))
	}
	return errors.Join(errs...)
}
