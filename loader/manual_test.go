package loader

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The reference of the configuration tells timers and limits as they are here.
func TestManualTellsTimersAndLimits(t *testing.T) {
	text, err := os.ReadFile("../cmd/tapgate/manual/tapgate.yaml.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(text)), " ")
	var wants []string
	for _, r := range timerRules {
		if r.name == "" {
			continue
		}
		least := fmt.Sprintf("Default: %.0fs, least: %.0fs", r.std.Seconds(), r.lowest.Seconds())
		if r.std == r.lowest {
			least = fmt.Sprintf("Default and least: %.0fs", r.std.Seconds())
		}
		rfc, _, _ := strings.Cut(r.rfc, ",")
		if rfc != "" {
			rfc = " (" + rfc + ")"
		}
		if _, after, _ := strings.Cut(page, "**"+r.name+"** :"); !strings.Contains(after[:min(len(after), 150)], least+rfc+".") {
			t.Errorf("the page does not say of %s %q", r.name, least+rfc)
		}
	}
	for format, n := range map[string]int{
		"at most %d policies": limitPolicies, "at most %d mirrors": limitMirrors, "with %d targets in all": limitTargets, "and %d copies of a packet": limitCopies,
		"at most %d interfaces": limitMembers - 1, "may be, %d to ": floorMaxFlows, "to %d. Default: ": limitFlows, "Default: %d. It can grow": DefaultMaxFlows,
	} {
		wants = append(wants, fmt.Sprintf(format, n))
	}
	for _, want := range wants {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}
