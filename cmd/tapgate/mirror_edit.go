package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"tapgate/loader"
)

// addMirror adds a mirror or a target to cfg. The note is not empty if it is
// there already, and cfg is then unchanged.
func addMirror(cfg *loader.Config, name string, zones []string, target loader.Target) (note string, err error) {
	i := slices.IndexFunc(cfg.Mirrors, func(m loader.Mirror) bool { return m.Name == name })
	if i < 0 {
		if len(zones) == 0 {
			return "", usagef("there is no mirror %q yet: for a new one say --zone (there are: %s)", name, strings.Join(zoneNames(*cfg), ", "))
		}
		cfg.Mirrors = append(slices.Clone(cfg.Mirrors), loader.Mirror{Name: name, Zones: zones, Targets: []loader.Target{target}})
		return "", nil
	}
	m := cfg.Mirrors[i]
	if len(zones) > 0 && !sameSet(zones, m.Zones) {
		return "", usagef("mirror %q copies zones %s, not %s; leave --zone out to add a target, or take another name",
			name, strings.Join(m.Zones, ", "), strings.Join(zones, ", "))
	}
	if indexTarget(m.Targets, target) >= 0 {
		return fmt.Sprintf("mirror %q has target %s", name, targetText(target)), nil
	}
	m.Targets = append(slices.Clone(m.Targets), target)
	cfg.Mirrors = slices.Clone(cfg.Mirrors)
	cfg.Mirrors[i] = m
	return "", nil
}

// delMirror deletes a mirror or, if target is not nil, one of its targets from
// cfg. The note is not empty if it is not there anyway.
func delMirror(cfg *loader.Config, name string, target *loader.Target) (note string, err error) {
	i := slices.IndexFunc(cfg.Mirrors, func(m loader.Mirror) bool { return m.Name == name })
	if i < 0 {
		return fmt.Sprintf("there is no mirror %q", name), nil
	}
	if target == nil {
		cfg.Mirrors = slices.Delete(slices.Clone(cfg.Mirrors), i, i+1)
		return "", nil
	}
	m := cfg.Mirrors[i]
	j := indexTarget(m.Targets, *target)
	switch {
	case j < 0:
		return fmt.Sprintf("mirror %q has no target %s", name, targetText(*target)), nil
	case len(m.Targets) == 1:
		return "", usagef("%s is the last target of mirror %q; to end it: tapgate mirror del %s", targetText(*target), name, name)
	}
	m.Targets = slices.Delete(slices.Clone(m.Targets), j, j+1)
	cfg.Mirrors = slices.Clone(cfg.Mirrors)
	cfg.Mirrors[i] = m
	return "", nil
}

func indexTarget(targets []loader.Target, t loader.Target) int {
	return slices.IndexFunc(targets, func(o loader.Target) bool {
		return o.Via == t.Via && o.L2 == t.L2 && bytes.Equal(o.MAC, t.MAC)
	})
}

// targetText names a target as status does.
func targetText(t loader.Target) string {
	switch {
	case t.Via.IsValid():
		return "via " + t.Via.String()
	case t.MAC != nil:
		return "l2 " + t.L2 + " mac " + t.MAC.String()
	default:
		return "l2 " + t.L2
	}
}

func sameSet(a, b []string) bool {
	sorted := func(s []string) []string { return slices.Compact(slices.Sorted(slices.Values(s))) }
	return slices.Equal(sorted(a), sorted(b))
}

func mirrorNames(cfg loader.Config) []string {
	names := make([]string, len(cfg.Mirrors))
	for i, m := range cfg.Mirrors {
		names[i] = m.Name
	}
	return names
}

// mirrorPlace names what a path into the changed configuration came from: the
// flags for the mirror and target just added, else what was applied before.
func mirrorPlace(name string) func(cfg loader.Config, path string) string {
	return func(cfg loader.Config, path string) string {
		i := slices.IndexFunc(cfg.Mirrors, func(m loader.Mirror) bool { return m.Name == name })
		if i < 0 {
			return appliedPlace(path)
		}
		last := len(cfg.Mirrors[i].Targets) - 1
		mirror := fmt.Sprintf("mirrors[%d]", i)
		target := fmt.Sprintf("%s.targets[%d]", mirror, last)
		switch {
		case path == target+".mac":
			return "--mac"
		case strings.HasPrefix(path, target) && cfg.Mirrors[i].Targets[last].Via.IsValid():
			return "--via"
		case strings.HasPrefix(path, target):
			return "--l2"
		case strings.HasPrefix(path, mirror+".zones"):
			return "--zone"
		case path == mirror+".name", path == mirror+".targets":
			return "" // these messages name the mirror themselves
		case path == mirror:
			return "mirror " + name
		default:
			return appliedPlace(path)
		}
	}
}

func zoneNames(cfg loader.Config) []string {
	names := make([]string, len(cfg.Zones))
	for i, z := range cfg.Zones {
		names[i] = z.Name
	}
	return names
}
