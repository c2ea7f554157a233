package loader

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The kinds of a Change.
const (
	ChangeAdded   = "added"
	ChangeChanged = "changed"
	ChangeRemoved = "removed"
)

// Change is one thing that a configuration has otherwise than the one before it.
type Change struct {
	Kind   string `json:"change"` // ChangeAdded, ChangeChanged or ChangeRemoved
	What   string `json:"what"`   // "forward web"
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// String is how people read it: "+ forward web: tcp 80 ...".
func (c Change) String() string {
	switch c.Kind {
	case ChangeAdded:
		return fmt.Sprintf("+ %s: %s", c.What, c.After)
	case ChangeRemoved:
		return fmt.Sprintf("- %s: %s", c.What, c.Before)
	}
	return fmt.Sprintf("~ %s: %s -> %s", c.What, c.Before, c.After)
}

func lines(changes []Change) (list []string) {
	for _, c := range changes {
		list = append(list, c.String())
	}
	return list
}

// fact is what a configuration says of one thing.
type fact struct{ what, text string }

// difference tells what a generation has otherwise than the one before.
func difference(old, now *record) (changes []Change) {
	before, after := describe(old), describe(now)
	named := func(list []fact, what string) int {
		return slices.IndexFunc(list, func(f fact) bool { return f.what == what })
	}
	for _, f := range before {
		if named(after, f.what) < 0 {
			changes = append(changes, Change{Kind: ChangeRemoved, What: f.what, Before: f.text})
		}
	}
	for _, f := range after {
		switch i := named(before, f.what); {
		case i < 0:
			changes = append(changes, Change{Kind: ChangeAdded, What: f.what, After: f.text})
		case before[i].text != f.text:
			changes = append(changes, Change{Kind: ChangeChanged, What: f.what, Before: before[i].text, After: f.text})
		}
	}
	if old, now := sharedPolicies(old, now), sharedPolicies(now, old); !slices.Equal(old, now) {
		changes = append(changes, Change{Kind: ChangeChanged, What: "order of policies", Before: strings.Join(old, ", "), After: strings.Join(now, ", ")})
	}
	return changes
}

func describe(r *record) (list []fact) {
	for _, m := range r.Members {
		list = append(list, fact{"interface " + m.Interface, fmt.Sprintf("zone %s (%s), index %d", m.Zone, m.Role, m.Ifindex)})
	}
	for _, m := range r.Mirrors {
		for _, t := range m.Targets {
			list = append(list, fact{
				fmt.Sprintf("mirror %s %s", m.Name, t.Target),
				fmt.Sprintf("of %s, by %s", strings.Join(m.Zones, ", "), t.Interface),
			})
		}
	}
	return append(list, describeGateway(r.Gateway)...)
}

// describeGateway is a line for each thing that can be configured of it.
func describeGateway(r *gatewayRecord) (list []fact) {
	if r == nil {
		return nil
	}
	list = append(list, fact{"gateway", words(r.Text, when(r.KeepSysctls, "sysctls keep"))}, fact{"forwarding", r.Forwarding.String()})
	for _, zone := range slices.Sorted(maps.Keys(r.Inside)) {
		list = append(list, fact{"networks of zone " + zone, strings.TrimSpace(listed("", r.Inside[zone]))})
	}
	for _, rule := range r.Rules {
		if !rule.Gone {
			list = append(list, fact{rule.Kind + " " + rule.Name, rule.Text})
		}
	}
	return list
}

// sharedPolicies are the names of those policies of r that o has too, in r's order,
// which decides.
func sharedPolicies(r, o *record) (names []string) {
	if r.Gateway == nil || o.Gateway == nil {
		return nil
	}
	for _, p := range r.Gateway.Rules {
		if p.Kind == kindPolicy && !p.Gone && slices.ContainsFunc(o.Gateway.Rules, func(q ruleRecord) bool {
			return q.Kind == kindPolicy && q.Name == p.Name && !q.Gone
		}) {
			names = append(names, p.Name)
		}
	}
	return names
}
