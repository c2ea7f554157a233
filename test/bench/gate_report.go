package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
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
	Goals        []goal            `json:"goals"`
	Missing      map[string]string `json:"missing,omitempty"` // what could not be set up, and why

	set     *settings
	samples map[gateKey]sample
	memory  map[gateKey][]memory // pass 0, and the scenario's name
	parts   map[gateKey]int
}

type gateKey struct {
	pass       int
	load, mode string
}

// gateResult is one row: medians over all passes, ratios taken within each pass.
type gateResult struct {
	Load string  `json:"load"`
	Mode string  `json:"mode"`
	Unit string  `json:"unit"`
	Rate float64 `json:"rate"` // per second of CPU time, or the time itself
	// Ratios to the speed of MASQUERADE, and of MASQUERADE + TEE.
	Ratio  float64 `json:"ratio_to_masquerade"`
	Recipe float64 `json:"ratio_to_masquerade_tee,omitempty"`
	// Extra is the time for each packet, flow or segment beyond that of plain
	// forwarding, in ns.
	Extra float64 `json:"extra_ns"`
	Lost  float64 `json:"lost_share"`
	Fast  float64 `json:"fast_share,omitempty"` // the least of all samples
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
	key := gateKey{0, s.name, m.name}
	r.memory[key] = append(r.memory[key], f.memory())
	r.parts[key] = len(f)
}

func (r *gateReport) add(pass int, load, mode string, s sample) {
	r.samples[gateKey{pass, load, mode}] = s
}

func missingKey(load string, m gateMode) string { return load + ", " + m.name }

// leaveOut is about a load, or a scenario, that gives no figures in a mode.
func (r *gateReport) leaveOut(load string, m gateMode, err error) {
	key := missingKey(load, m)
	note("%s is left out: %v", key, err)
	r.Missing[key] = err.Error()
}

func (r *gateReport) finish() {
	for _, s := range r.set.scenarios {
		for _, t := range s.loads {
			for _, m := range r.set.gateModes {
				if !m.measures(s) || r.Missing[missingKey(t.name, m)]+r.Missing[missingKey(s.name, m)] != "" {
					continue
				}
				if row := r.result(s, t, m); len(row.Samples) > 0 {
					r.Results = append(r.Results, row)
				}
			}
		}
	}
	r.Goals = r.goals()
}

// ratio is how much faster one load in one mode went than another, the median of
// all passes that have both, and NaN if there is none.
func (r *gateReport) ratio(load, mode, baseLoad, baseMode string) float64 {
	var out []float64
	for pass := range r.Rounds * passes {
		got, ok := r.samples[gateKey{pass, load, mode}]
		base, there := r.samples[gateKey{pass, baseLoad, baseMode}]
		if ok && there {
			out = append(out, got.Units/got.CPU/(base.Units/base.CPU))
		}
	}
	if len(out) == 0 {
		return math.NaN()
	}
	return median(out)
}

func (r *gateReport) result(s scenario, t gateLoad, m gateMode) gateResult {
	var rate, extra, lost []float64
	row := gateResult{Load: t.name, Mode: m.name, Unit: t.unit, Fast: 1}
	for pass := range r.Rounds * passes {
		got, ok := r.samples[gateKey{pass, t.name, m.name}]
		if !ok {
			continue
		}
		row.Samples = append(row.Samples, got)
		row.Fast = min(row.Fast, got.Fast)
		if t.rate > 0 {
			rate = append(rate, got.Units/got.CPU*t.rate)
		} else {
			rate = append(rate, got.CPU/got.Units/1e3)
		}
		if got.Sent > 0 {
			lost = append(lost, 1-got.Units/got.Sent)
		}
		if floor, ok := r.samples[gateKey{pass, t.name, gateFloor}]; ok {
			extra = append(extra, got.CPU/got.Units-floor.CPU/floor.Units)
		}
	}
	row.Rate, row.Extra, row.Lost = median(rate), median(extra), median(lost)
	row.Ratio = orZero(r.ratio(t.name, m.name, t.name, gateBaseline))
	if m.tap {
		row.Recipe = orZero(r.ratio(t.name, m.name, t.name, gateRecipe))
	}
	key := gateKey{0, s.name, m.name}
	row.Gateways = r.parts[key]
	var slab, elements, fixed []float64
	for _, v := range r.memory[key] {
		slab = append(slab, v.Slab/float64(v.Flows))
		elements = append(elements, v.Maps/float64(v.Flows))
		fixed = append(fixed, v.Fixed/float64(s.capacity()))
	}
	// The machine's slab changes by itself, and elements come by the page.
	if s.flows >= 1<<16 && !m.direct {
		row.MapBytes, row.SlabBytes, row.FixedBytes = median(elements), median(slab), median(fixed)
	}
	return row
}

func orZero(v float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return v
}

// failed is an error if something that was asked for could not be measured.
func (r *gateReport) failed() error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(r.Missing)) {
		errs = append(errs, fmt.Errorf("%s was not measured: %s", key, r.Missing[key]))
	}
	return errors.Join(errs...)
}
