package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

// ruleKind is what deleting forwards and masquerade rules differs in.
type ruleKind struct {
	thing  string // as people call it
	origin string // of the flows that it admits
	names  func(loader.Config) []string
	del    func(*loader.Config, string) (note string, err error)
}

func newRuleDelCommand(e *env, g *globals, k ruleKind) *cobra.Command {
	var flush, save bool
	cmd := &cobra.Command{
		Use:   "del NAME [--flush]",
		Short: "Delete a " + k.thing,
		Long: `Deletes a ` + k.thing + `. What is not there counts as deleted. The flows that it
admitted go on, and the command says how many there are; --flush ends them.
` + savedOnRequest,
		Example: fmt.Sprintf("  tapgate %s del NAME --save\n  tapgate %s del NAME --flush", k.origin, k.origin),
		Args:    oneName(k.thing),
		RunE: e.privileged(func(_ *cobra.Command, args []string) error {
			name := args[0]
			there := false
			return e.edit(g, &edit{
				save: save, put: gateway.Reduce,
				alter: func(cfg *loader.Config) (string, error) {
					note, err := k.del(cfg, name)
					there = note == ""
					return note, err
				},
				place: func(_ loader.Config, path string) string { return appliedPlace(path) },
				after: func(gw gateway) error {
					if !there && !flush {
						return nil
					}
					return e.flowsOf(gw, k, name, flush)
				},
			})
		}),
		ValidArgsFunction: e.completeName(g, k.names),
	}
	cmd.Flags().BoolVar(&flush, "flush", false, "end the flows that it admitted")
	addSave(cmd, &save)
	return cmd
}

// flowsOf tells what becomes of the flows of a rule that is gone.
func (e *env) flowsOf(gw gateway, k ruleKind, name string, flush bool) error {
	filter := loader.FlowFilter{Origin: k.origin, Rule: name}
	if flush {
		n, err := gw.FlushFlows(filter)
		line := fmt.Sprintf("%s of %s %s flushed", counted(n, "flow"), k.thing, name)
		e.noteResult(&loader.Result{Changes: []string{line}})
		return errors.Join(e.write(line+"\n"), err)
	}
	flows, err := gw.Flows(filter)
	if err != nil || len(flows) == 0 {
		return err
	}
	e.say("its flows go on (%d); to end them: tapgate %s del %s --flush", len(flows), k.origin, name)
	return nil
}

// counted is a number of things: "1 flow", "2 flows".
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// newRuleListCommand makes the list command of word; entries gives the list for
// programs and, if there is anything in it, for people.
func newRuleListCommand(e *env, g *globals, word, things string, entries func(*loader.Status, loader.Config) (list any, text string)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "Show " + things + " and how many flows they decided on",
		Args:    noArgs,
		Example: "  tapgate " + word + " list --json | jq '.[] | select(.flows == 0) | .name'",
		RunE: e.privileged(func(*cobra.Command, []string) error {
			s, cfg, err := e.statusAndConfig(g)
			if err != nil {
				return err
			}
			list, text := entries(s, cfg)
			switch {
			case asJSON:
				return e.writeJSON(list)
			case text == "":
				e.say("no %s", things)
				return nil
			}
			return e.write(text)
		}),
	}
	addJSON(cmd, &asJSON)
	return cmd
}

// statusAndConfig reads both under one lock.
func (e *env) statusAndConfig(g *globals) (s *loader.Status, cfg loader.Config, err error) {
	err = e.read(g, func(gw gateway) error {
		if s, err = gw.Status(); err != nil {
			return err
		}
		doc, err := parseConfig("applied configuration", []byte(gw.Source()))
		if err != nil {
			return fmt.Errorf("what is in force was applied by another tapgate: %v", err)
		}
		cfg = doc.Config
		return nil
	})
	return s, cfg, err
}

// read has f read an open gateway.
func (e *env) read(g *globals, f func(gateway) error) error { return e.open(g, loader.ReadOnly, f) }

func (e *env) open(g *globals, mode loader.Mode, f func(gateway) error) (err error) {
	opt, err := g.options(false)
	if err != nil {
		return err
	}
	gw, err := e.loader().Open(opt, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gw.Close()) }()
	return f(gw)
}

// gatewayOf is what the gateway does: nothing if it only taps.
func gatewayOf(s *loader.Status) loader.GatewayStatus {
	if s.Gateway == nil {
		return loader.GatewayStatus{}
	}
	return *s.Gateway
}

// ruleHits is how often a rule decided.
type ruleHits struct {
	Flows uint64 `json:"flows"`          // new flows that it decided on
	Last  string `json:"last,omitempty"` // when it did last, RFC 3339
}

func (h ruleHits) cells() []string { return []string{number(h.Flows), since(h.Last)} }

// now is replaced by tests.
var now = time.Now

// since says how long ago a time was.
func since(at string) string {
	t, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return "never"
	}
	return span(now().Sub(t)) + " ago"
}

// span makes a duration readable: "119s", "124m", "71h", "9d".
func span(d time.Duration) string {
	s := max(int64(d.Round(time.Second)/time.Second), 0)
	switch {
	case s < 120:
		return fmt.Sprintf("%ds", s)
	case s < 180*60:
		return fmt.Sprintf("%dm", s/60)
	case s < 72*3600:
		return fmt.Sprintf("%dh", s/3600)
	default:
		return fmt.Sprintf("%dd", s/86400)
	}
}

// ruleWidth is what a rule may take of a line, so that it stays below 100 columns.
const ruleWidth = 44

// short shows a list, or what there is room for of it.
func short(list []string) string {
	text := ""
	for i, s := range list {
		if i > 0 {
			s = ", " + s
		}
		if rest := len(list) - i; i > 0 && len(text)+len(s) > ruleWidth-5 && rest > 0 {
			return fmt.Sprintf("%s, +%d", text, rest)
		}
		text += s
	}
	return text
}

// ruleRows puts what a rule says besides on lines of their own, in that column.
func ruleRows(row []string, column int, besides ...string) [][]string {
	rows := [][]string{row}
	for _, text := range besides {
		if text != "" {
			more := make([]string, len(row))
			more[column] = "  " + text
			rows = append(rows, more)
		}
	}
	return rows
}

// besides is "WHAT a, b", or nothing.
func besides(what string, list []string) string {
	if len(list) == 0 {
		return ""
	}
	return what + " " + short(list)
}
