package main

import (
	"fmt"
	"math"

	"github.com/jedib0t/go-pretty/v6/table"
)

// goal is a ratio that the gateway is to reach.
type goal struct {
	What                   string `json:"what"`
	load, mode, of, ofMode string
	Least                  float64 `json:"least"`
	Aim                    float64 `json:"aim,omitempty"`
	Measured               float64 `json:"measured"`
}

var allGoals = []goal{
	{What: "with tap, of MASQUERADE + TEE: 1,000 flows, both directions", load: "both-1k", mode: gateFastTap, of: "both-1k", ofMode: gateRecipe, Least: 1.7, Aim: 2},
	{What: "without, of MASQUERADE: 1,000 flows, both directions", load: "both-1k", mode: gateFast, of: "both-1k", ofMode: gateBaseline, Least: 1.1, Aim: 1.4},
	{What: "new connections, of MASQUERADE", load: "new", mode: gateFast, of: "new", ofMode: gateBaseline, Least: 1},
	{What: "new connections with tap, of MASQUERADE + TEE", load: "new", mode: gateFastTap, of: "new", ofMode: gateRecipe, Least: 1},
	{What: "1 million flows, of 1,000: both directions", load: "both-1M", mode: gateFast, of: "both-1k-again", ofMode: gateFast, Least: 0.75},
	{What: "the same with tap", load: "both-1M", mode: gateFastTap, of: "both-1k-again", ofMode: gateFastTap, Least: 0.75},
	{What: "the same, MASQUERADE (to compare)", load: "both-1M", mode: gateBaseline, of: "both-1k", ofMode: gateBaseline},
	{What: "10,000 forwards, of 10: packets", load: "forwards-10k", mode: gateFast, of: "forwards-10", ofMode: gateFast, Least: 0.95},
	{What: "10,000 forwards, of 10: new connections", load: "new-forwards-10k", mode: gateFast, of: "new-forwards-10", ofMode: gateFast, Least: 0.95},
}

// goals are those that were measured.
func (r *gateReport) goals() (out []goal) {
	for _, g := range allGoals {
		if g.Measured = r.ratio(g.load, g.mode, g.of, g.ofMode); !math.IsNaN(g.Measured) {
			out = append(out, g)
		}
	}
	return out
}

func goalTable(goals []goal) table.Writer {
	w := table.NewWriter()
	w.SetStyle(table.StyleLight)
	w.AppendHeader(table.Row{"to reach", "at least", "aim", "measured", ""})
	for _, g := range goals {
		verdict := ""
		if g.Least > 0 {
			verdict = "not reached"
			if g.Measured >= g.Least {
				verdict = "reached"
			}
		}
		w.AppendRow(table.Row{g.What, orNone("%.2f", g.Least), orNone("%.1f", g.Aim), fmt.Sprintf("%.2f", g.Measured), verdict})
	}
	return w
}
