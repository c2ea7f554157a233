package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"tapgate/loader"
)

// rewriteLimit is how many rules and mirrors are changed one by one: each time the text
// is read again.
const rewriteLimit = 200

// rewriteConfig changes the mirrors, forwards and masquerade rules in the text of a
// configuration until it says what to says, and nothing else in it: comments stay. It
// fails where that cannot be done, or would not be enough.
func rewriteConfig(from *document, to loader.Config) (string, error) {
	wasJSON := json.Valid([]byte(from.Source))
	for range rewriteLimit {
		if sameMeaning(from.Config, to) {
			if wasJSON && !json.Valid([]byte(from.Source)) {
				return "", errors.New("it is JSON, and would be YAML only")
			}
			return from.Source, nil
		}
		y := from.text()
		changed, err := y.approach(from.Config, to)
		if err != nil {
			return "", err
		}
		if !changed {
			return "", errors.New("it differs in more than mirrors, forwards and masquerade rules")
		}
		// Whether it says that now is for the reader to say.
		if from, err = parseConfig("its new text", []byte(y.String())); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("it differs in more than %d places", rewriteLimit)
}

// approach does one of the changes that lead from one configuration, which the text is
// of, to another.
func (y *yamlText) approach(from, to loader.Config) (changed bool, err error) {
	if changed, err = approachList(y, y.root, itemsOf(masqueradesOf(from), masqueradeItem), itemsOf(masqueradesOf(to), masqueradeItem), "nat", "masquerade"); changed || err != nil {
		return changed, err
	}
	if changed, err = approachList(y, y.root, itemsOf(forwardsOf(from), forwardItem), itemsOf(forwardsOf(to), forwardItem), "nat", "forwards"); changed || err != nil {
		return changed, err
	}
	for i, m := range from.Mirrors {
		k := slices.IndexFunc(to.Mirrors, func(o loader.Mirror) bool { return o.Name == m.Name && sameSet(o.Zones, m.Zones) })
		if k < 0 {
			continue
		}
		list, err := y.list(y.root, "mirrors")
		if err != nil || list == nil || i >= len(list.Values) {
			return false, cmp.Or(err, errors.New("its mirrors are not where they were expected"))
		}
		if changed, err = approachList(y, list.Values[i], itemsOf(m.Targets, targetItem), itemsOf(to.Mirrors[k].Targets, targetItem), "targets"); changed || err != nil {
			return changed, err
		}
	}
	return approachList(y, y.root, itemsOf(from.Mirrors, mirrorItem), itemsOf(to.Mirrors, mirrorItem), "mirrors")
}

// namedItem is an item of a list in two configurations: what is the same has one key.
type namedItem struct {
	key string
	yamlItem
}

func itemsOf[T any](list []T, item func(T) namedItem) []namedItem {
	items := make([]namedItem, len(list))
	for i, v := range list {
		items[i] = item(v)
	}
	return items
}

func keysOf(items []namedItem) map[string]bool {
	keys := map[string]bool{}
	for _, item := range items {
		keys[item.key] = true
	}
	return keys
}

func masqueradeItem(m loader.Masquerade) namedItem {
	text := masqueradeYAML(m)
	return namedItem{masqueradeMeaning(m), yamlItem{[]string{text}, text}}
}

func forwardItem(f loader.Forward) namedItem {
	text := forwardYAML(f)
	return namedItem{forwardMeaning(f), yamlItem{[]string{text}, text}}
}

func targetItem(t loader.Target) namedItem {
	text := "{" + targetYAML(t) + "}"
	return namedItem{text, yamlItem{[]string{text}, text}}
}

func mirrorItem(m loader.Mirror) namedItem {
	return namedItem{mirrorMeaning(m), yamlItem{mirrorLines(m), mirrorYAML(m)}}
}

// approachList deletes the first item that is too much, or adds the first that is missing.
func approachList(y *yamlText, top ast.Node, from, to []namedItem, keys ...string) (changed bool, err error) {
	had, wanted := keysOf(from), keysOf(to)
	for i, item := range from {
		if wanted[item.key] {
			continue
		}
		list, err := y.list(top, keys...)
		if err != nil || list == nil || len(list.Values) != len(from) {
			return false, cmp.Or(err, errors.New("its list is not where it was expected"))
		}
		return true, y.del(list, i)
	}
	for _, item := range to {
		if !had[item.key] {
			return true, y.add(top, item.yamlItem, keys...)
		}
	}
	return false, nil
}

// sameMeaning says whether two configurations ask for the same, however they are written.
func sameMeaning(a, b loader.Config) bool { return meaning(a) == meaning(b) }

// meaning is a configuration without what does not matter: the order of all but policies
// and pools of addresses, and names that a rule has anyway.
func meaning(cfg loader.Config) string {
	cfg.Zones = slices.Clone(cfg.Zones)
	for i, z := range cfg.Zones {
		z.Interfaces, z.Prefixes = ordered(z.Interfaces), ordered(z.Prefixes)
		cfg.Zones[i] = z
	}
	cfg.Zones = ordered(cfg.Zones)
	var parts []string
	for _, m := range cfg.Mirrors {
		parts = append(parts, mirrorMeaning(m))
	}
	for _, f := range forwardsOf(cfg) {
		parts = append(parts, forwardMeaning(f))
	}
	for _, m := range masqueradesOf(cfg) {
		parts = append(parts, masqueradeMeaning(m))
	}
	cfg.Mirrors = nil
	if cfg.NAT != nil {
		n := *cfg.NAT
		n.Forwards, n.Masquerades, n.Exclude = nil, nil, ordered(n.Exclude)
		cfg.NAT = &n
	}
	return formatConfig(cfg) + strings.Join(ordered(parts), "\n")
}

func mirrorMeaning(m loader.Mirror) string {
	m.Zones, m.Targets = slices.Compact(ordered(m.Zones)), slices.Clone(m.Targets)
	slices.SortFunc(m.Targets, func(a, b loader.Target) int { return cmp.Compare(targetYAML(a), targetYAML(b)) })
	return mirrorYAML(m)
}

func forwardMeaning(f loader.Forward) string {
	f.Sources = ordered(f.Sources)
	return forwardYAML(f)
}

func masqueradeMeaning(m loader.Masquerade) string {
	m.Name, m.Sources = masqueradeName(m), ordered(m.Sources)
	return masqueradeYAML(m)
}

// ordered is a list of its own, sorted by how its items print.
func ordered[T any](list []T) []T {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b T) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return list
}
