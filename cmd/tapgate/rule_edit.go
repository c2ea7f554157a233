package main

import (
	"fmt"
	"slices"
	"strings"

	"tapgate/loader"
)

// natOf gives cfg a NAT of its own to change, a new one where there is none:
// from then on the gateway judges zones.
func natOf(cfg *loader.Config) *loader.NAT {
	n := loader.NAT{}
	if cfg.NAT != nil {
		n = *cfg.NAT
	}
	cfg.NAT = &n
	return cfg.NAT
}

func forwardsOf(cfg loader.Config) []loader.Forward {
	if cfg.NAT == nil {
		return nil
	}
	return cfg.NAT.Forwards
}

func masqueradesOf(cfg loader.Config) []loader.Masquerade {
	if cfg.NAT == nil {
		return nil
	}
	return cfg.NAT.Masquerades
}

func forwardNames(cfg loader.Config) (names []string) {
	for _, f := range forwardsOf(cfg) {
		names = append(names, f.Name)
	}
	return names
}

func masqueradeNames(cfg loader.Config) (names []string) {
	for _, m := range masqueradesOf(cfg) {
		names = append(names, masqueradeName(m))
	}
	return names
}

// masqueradeName is what commands call a rule, with a name or without.
func masqueradeName(m loader.Masquerade) string {
	if m.Name == "" {
		return m.From + "-" + m.To
	}
	return m.Name
}

func policyName(i int, p loader.Policy) string {
	if p.Name == "" {
		return fmt.Sprintf("policy-%d", i+1)
	}
	return p.Name
}

// addForward adds a forward to cfg. The note is not empty if it is there
// already, and cfg is then unchanged.
func addForward(cfg *loader.Config, f loader.Forward) (note string, err error) {
	if i := slices.Index(forwardNames(*cfg), f.Name); i >= 0 {
		return sameRule("forward", f.Name, forwardYAML(cfg.NAT.Forwards[i]), forwardYAML(f))
	}
	if err := knownZone(*cfg, "--in", f.In); err != nil {
		return "", err
	}
	n := natOf(cfg)
	n.Forwards = append(slices.Clone(n.Forwards), f)
	return "", nil
}

// delForward deletes a forward from cfg. The note is not empty if it is not
// there anyway.
func delForward(cfg *loader.Config, name string) (note string, err error) {
	i := slices.Index(forwardNames(*cfg), name)
	if i < 0 {
		return fmt.Sprintf("there is no forward %q", name), nil
	}
	n := natOf(cfg)
	n.Forwards = slices.Delete(slices.Clone(n.Forwards), i, i+1)
	return "", nil
}

// addMasquerade is addForward for a masquerade rule.
func addMasquerade(cfg *loader.Config, m loader.Masquerade) (note string, err error) {
	name := masqueradeName(m)
	if i := slices.Index(masqueradeNames(*cfg), name); i >= 0 {
		was := cfg.NAT.Masquerades[i]
		was.Name, m.Name = name, name
		return sameRule("masquerade rule", name, masqueradeYAML(was), masqueradeYAML(m))
	}
	for _, z := range []struct{ flag, zone string }{{"--from", m.From}, {"--to", m.To}} {
		if err := knownZone(*cfg, z.flag, z.zone); err != nil {
			return "", err
		}
	}
	n := natOf(cfg)
	n.Masquerades = append(slices.Clone(n.Masquerades), m)
	return "", nil
}

// delMasquerade is delForward for a masquerade rule.
func delMasquerade(cfg *loader.Config, name string) (note string, err error) {
	i := slices.Index(masqueradeNames(*cfg), name)
	if i < 0 {
		return fmt.Sprintf("there is no masquerade rule %q", name), nil
	}
	n := natOf(cfg)
	n.Masquerades = slices.Delete(slices.Clone(n.Masquerades), i, i+1)
	return "", nil
}

// sameRule says what to do with a rule whose name is in use.
func sameRule(what, name, was, is string) (note string, err error) {
	if was != is {
		return "", usagef("%s %q is there already, as %s; take another name, or delete it first (its flows stay)", what, name, was)
	}
	return fmt.Sprintf("%s %q is %s", what, name, was), nil
}

func knownZone(cfg loader.Config, flag, zone string) error {
	if names := zoneNames(cfg); !slices.Contains(names, zone) {
		return usagef("%s: no zone %q%s", flag, zone, didYouMean(zone, names))
	}
	return nil
}

// beginsNAT warns where a rule makes a gateway of what only tapped.
func (e *env) beginsNAT(cfg loader.Config) {
	if cfg.NAT != nil || len(cfg.Policies) > 0 {
		return
	}
	var closed []string
	for _, z := range cfg.Zones {
		if z.Role == loader.RoleExternal || z.Role == loader.RoleMgmt {
			closed = append(closed, z.Name)
		}
	}
	e.say("warning: the configuration in force only tapped; from now on tapgate judges what passes between zones: " +
		"from " + strings.Join(closed, " and ") + " nothing passes that no flow, forward or policy lets in")
}
