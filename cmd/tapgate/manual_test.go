package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tapgate/loader"
)

// manualSections are the parts of tapgate.yaml(5) about keys, by the method of the
// parser that reads them.
var manualSections = map[string]string{
	"": "The file", "zone": "zones", "nat": "nat", "masquerade": "masquerade", "forward": "forwards", "limit": "limit",
	"timeouts": "timeouts", "policy": "policies", "mirror": "mirrors", "target": "targets",
}

// manualKeys are the keys that a section of the page explains.
func manualKeys(t *testing.T, section string) (keys []string) {
	t.Helper()
	_, after, found := strings.Cut(configurationText, "\n## "+section+"\n")
	if !found {
		t.Fatalf("the page has no section %q", section)
	}
	end := regexp.MustCompile(`(?m)^#`).FindStringIndex(after)
	for _, line := range regexp.MustCompile(`(?m)^\*\*.*\*\*\n: `).FindAllString(after[:end[0]], -1) {
		for _, m := range regexp.MustCompile(`\*\*([a-z0-9_]+)\*\*`).FindAllStringSubmatch(line, -1) {
			keys = append(keys, m[1])
		}
	}
	slices.Sort(keys)
	return keys
}

// The page explains every key that the parser knows, and no other.
func TestManualExplainsEveryKey(t *testing.T) {
	for method, keys := range parserKeys(t) {
		if len(keys) == 0 {
			continue
		}
		section, ok := manualSections[method]
		if !ok {
			t.Errorf("%s reads the keys %q, and the page has no section for them", method, keys)
			continue
		}
		if on := manualKeys(t, section); !slices.Equal(on, keys) {
			t.Errorf("section %q explains %q, and the parser knows %q", section, on, keys)
		}
	}
	if want := fmt.Sprintf("16777216. Default: %d.", loader.DefaultMaxFlows); !strings.Contains(configurationText, want) {
		t.Errorf("the page does not say %q", want)
	}
}

// Its examples are configurations, and the last one has every key.
func TestManualExamples(t *testing.T) {
	var examples []string
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(configurationText, -1) {
		examples = append(examples, m[1])
		doc, err := parseConfig("example", []byte(m[1]))
		if err != nil {
			t.Errorf("%v in\n%s", err, m[1])
			continue
		}
		if _, err := parseConfig("written again", []byte(formatConfig(doc.Config))); err != nil {
			t.Error(err)
		}
	}
	if len(examples) != 3 {
		t.Fatalf("%d examples", len(examples))
	}
	// One of two that mean the same is enough.
	doubled := []string{"source", "destination"}
	for method, keys := range parserKeys(t) {
		for _, key := range keys {
			if !slices.Contains(doubled, key) && !regexp.MustCompile(`(?m)(^|[\s{])`+key+`:`).MatchString(examples[2]) {
				t.Errorf("the last example has no %s of %q", key, method)
			}
		}
	}
}

// Help topics and manual pages are one text.
func TestManualPages(t *testing.T) {
	dir := t.TempDir()
	if r := call(&fake{}, "", "man", dir); r.code != 0 {
		t.Fatal(r.errs)
	}
	for _, p := range manualPages {
		roff, err := os.ReadFile(filepath.Join(dir, p.name+"."+p.section))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{".TH", p.name, ".SH NAME", ".SH SEE ALSO"} {
			if !strings.Contains(string(roff), want) {
				t.Errorf("%s has no %q:\n%.300s", p.name, want, roff)
			}
		}
		for _, args := range [][]string{{"help", p.topic}, {p.topic}} {
			if r := call(&fake{}, "", args...); r.code != 0 || !strings.Contains(r.stdout, p.text[:200]) {
				t.Errorf("%q: %s: %.300s", args, r.errs, r.stdout)
			}
		}
	}
	r := call(&fake{}, "", "help")
	for _, p := range manualPages {
		if !strings.Contains(r.stdout, p.short) {
			t.Errorf("help does not name %s: %s", p.topic, r.stdout)
		}
	}
}
