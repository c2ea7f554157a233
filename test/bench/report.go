package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/sys/unix"
)

// report collects samples and makes figures of them.
type report struct {
	Kernel  string            `json:"kernel"`
	Arch    string            `json:"arch"`
	CPU     int               `json:"cpu"`
	Rounds  int               `json:"rounds"`
	Packets int               `json:"packets"`
	Bytes   int64             `json:"bytes"`
	Results []result          `json:"results"`
	Missing map[string]string `json:"missing,omitempty"` // modes that could not be set up, and why

	set     *settings
	errors  map[string]string
	samples map[sampleKey]sample
}

type sampleKey struct {
	pass       int
	test, mode string
}

// result is one row: medians over all passes, ratios taken within each pass.
type result struct {
	Test string  `json:"test"`
	Mode string  `json:"mode"`
	Unit string  `json:"unit"`
	Rate float64 `json:"rate"` // per second of CPU time
	// Ratio to the rate without a tap.
	Ratio float64 `json:"ratio_to_plain"`
	// CopyNs is the CPU time that one copy adds, in ns.
	CopyNs float64 `json:"ns_per_copy,omitempty"`
	// CopyRatio is that of tc mirred's copy = 1.
	CopyRatio float64 `json:"copy_to_mirred,omitempty"`
	// Seen is the share of what came through the gateway that the sensor
	// saw: packets, or in TCP tests bytes of whole frames by payload.
	Seen    float64  `json:"copied_share"`
	Lost    float64  `json:"lost_share"` // of what the generator sent
	Samples []sample `json:"samples"`
}

func newReport(set *settings) *report {
	var u unix.Utsname
	_ = unix.Uname(&u)
	return &report{
		Kernel: unix.ByteSliceToString(u.Release[:]), Arch: runtime.GOARCH,
		CPU: set.cpu, Rounds: set.rounds, Packets: set.packets, Bytes: set.bytes,
		set: set, errors: map[string]string{}, samples: map[sampleKey]sample{},
	}
}

func (r *report) add(pass int, test, mode string, s sample) {
	r.samples[sampleKey{pass, test, mode}] = s
}

// finish computes the results.
func (r *report) finish() {
	r.Missing = r.errors
	for _, t := range r.set.tests {
		for _, m := range r.set.modes {
			if r.errors[m.name] == "" {
				r.Results = append(r.Results, r.result(t, m.name))
			}
		}
	}
}

func (r *report) result(t test, mode string) result {
	var rate, ratio, copyNs, copyRatio, seen, lost []float64
	out := result{Test: t.name, Mode: mode, Unit: t.unit}
	for pass := range r.Rounds * passes {
		s, ok := r.samples[sampleKey{pass, t.name, mode}]
		if !ok {
			continue
		}
		out.Samples = append(out.Samples, s)
		rate = append(rate, s.Units/s.CPU*t.scale)
		seen = append(seen, s.Seen)
		if s.Sent > 0 {
			lost = append(lost, 1-s.Units/s.Sent)
		}
		base, ok := r.samples[sampleKey{pass, t.name, baseline}]
		if !ok {
			continue
		}
		ratio = append(ratio, s.Units/s.CPU/(base.Units/base.CPU))
		if mode == baseline || s.Frames == 0 {
			continue
		}
		price := copyPrice(s, base)
		copyNs = append(copyNs, price)
		if ref, ok := r.samples[sampleKey{pass, t.name, reference}]; ok && ref.Frames > 0 {
			copyRatio = append(copyRatio, price/copyPrice(ref, base))
		}
	}
	out.Rate, out.Ratio, out.Seen, out.Lost = median(rate), median(ratio), median(seen), median(lost)
	out.CopyNs, out.CopyRatio = median(copyNs), median(copyRatio)
	return out
}

// copyPrice is the CPU time in ns that one copy adds: time for each unit with
// the tap less time without it, by copies for each unit.
func copyPrice(s, base sample) float64 {
	return (s.CPU/s.Units - base.CPU/base.Units) / (s.Frames / s.Units)
}

// median is that of the middle, and 0 of nothing.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (r *report) table(markdown bool) string {
	w := table.NewWriter()
	w.SetStyle(table.StyleLight)
	w.AppendHeader(table.Row{"test", "gateway", "rate", "", "of no tap", "a copy, ns", "of mirred's", "copied"})
	for i, x := range r.Results {
		name := ""
		if i == 0 || r.Results[i-1].Test != x.Test {
			name = x.Test
			if i > 0 {
				w.AppendSeparator()
			}
		}
		w.AppendRow(table.Row{name, x.Mode, fmt.Sprintf("%.3g", x.Rate), x.Unit, fmt.Sprintf("%.2f", x.Ratio),
			orNone("%.0f", x.CopyNs), orNone("%.2f", x.CopyRatio), copied(x)})
	}
	var b strings.Builder
	if markdown {
		b.WriteString(w.RenderMarkdown())
	} else {
		b.WriteString(w.Render())
	}
	fmt.Fprintf(&b, "\n\nKernel %s, %s. Medians of %d passes; rates per second of CPU time, one CPU doing everything.\n", r.Kernel, r.Arch, r.Rounds*passes)
	for _, t := range r.set.tests {
		fmt.Fprintf(&b, "%s: %s.\n", t.name, t.what)
	}
	b.WriteString("The sensor's interface has tx off in every mode, as tapgate sets it. \"copied\" is packets at the sensor by packets that came\nthrough; in the TCP tests, bytes of whole frames at the sensor by payload, some 105 %.\n")
	for _, m := range r.set.modes {
		if r.errors[m.name] != "" {
			fmt.Fprintf(&b, "Left out: %s: %s\n", m.name, r.errors[m.name])
		}
	}
	return b.String()
}

func orNone(format string, v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf(format, v)
}

func copied(x result) string {
	text := ""
	if x.Mode != baseline || x.Seen > 0 {
		text = fmt.Sprintf("%.1f %%", 100*x.Seen)
	}
	if x.Lost > 0.001 {
		text += fmt.Sprintf(" (%.1f %% of production lost)", 100*x.Lost)
	}
	return text
}

func writeJSON(file string, report any) error {
	out, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(out, '\n'), 0o644)
}

// failed is an error if a mode that was asked for could not be measured.
func (r *report) failed() error {
	var errs []error
	for _, m := range r.set.modes {
		if r.errors[m.name] != "" {
			errs = append(errs, fmt.Errorf("%s was not measured: %s", m.name, r.errors[m.name]))
		}
	}
	return errors.Join(errs...)
}
