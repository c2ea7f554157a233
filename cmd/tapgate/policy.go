package main

import (
	"github.com/spf13/cobra"

	"tapgate/loader"
)

func newPolicyCommand(e *env, g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "policy",
		Short:   "List policies",
		Example: `  tapgate policy list`,
	}
	needSubcommand(cmd)
	cmd.AddCommand(newRuleListCommand(e, g, "policy", "policies", func(s *loader.Status, cfg loader.Config) (any, string) {
		list := policyList(s, cfg)
		return list, policyTable(list)
	}))
	return cmd
}

// policyEntry is a policy of the configuration with what it did.
type policyEntry struct {
	Name         string   `json:"name"`
	From         string   `json:"from"`
	To           string   `json:"to"`
	Proto        string   `json:"proto,omitempty"` // none: any
	Sources      []string `json:"sources"`         // none: any
	Destinations []string `json:"destinations"`
	Ports        []string `json:"ports"`
	Action       string   `json:"action"` // "accept", "drop"
	Log          bool     `json:"log"`
	ruleHits
}

func policyList(s *loader.Status, cfg loader.Config) []policyEntry {
	list, hits := []policyEntry{}, hitsOf(gatewayOf(s).Policies)
	for i, p := range cfg.Policies {
		name := policyName(i, p)
		list = append(list, policyEntry{
			Name: name, From: p.From, To: p.To, Proto: p.Proto, Sources: prefixTexts(p.Sources),
			Destinations: prefixTexts(p.Destinations), Ports: portsTexts(p.Ports), Action: actionText(p), Log: p.Log,
			ruleHits: hits[name],
		})
	}
	return list
}

func policyTable(list []policyEntry) string {
	var rows [][]string
	for _, p := range list {
		what, action := p.Proto, p.Action
		switch {
		case what == "":
			what = "any"
		case len(p.Ports) > 0:
			what += " " + short(p.Ports)
		}
		if p.Log {
			action += ", log"
		}
		row := append([]string{p.Name, p.From + " > " + p.To, what, action}, p.cells()...)
		rows = append(rows, ruleRows(row, 2, besides("from", p.Sources), besides("to", p.Destinations))...)
	}
	if rows == nil {
		return ""
	}
	return columns("policies, of which the first that matches counts", []string{
		"name", "zones", "what", "action", ">flows", "last",
	}, rows)
}
