package e2e

import (
	"os"
	"regexp"
	"testing"

	"tapgate/test/lab"
)

// The examples of tapgate.yaml(5) can be put in force on the gateway that they speak of.
func TestManualExamplesCanBeApplied(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../cmd/tapgate/manual/tapgate.yaml.md")
	if err != nil {
		t.Fatal(err)
	}
	g := newGateway(t, lab.SecondInternal())
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(examples) != 3 {
		t.Fatalf("%d examples on the page", len(examples))
	}
	for _, m := range examples {
		if r := g.tapgateIn(m[1], "check", "-f", "-"); r.code != 0 {
			t.Errorf("%s%s", m[1], r)
		}
	}
}
