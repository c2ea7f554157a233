package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tapgate/loader"
)

// rfcRow is one requirement of those in bpf/README.md, "Requirements", and the
// exchange that shows it.
type rfcRow struct {
	id string // RFC and requirement; several, joined by +, that one exchange shows
	// own rows build networks for themselves and get none.
	own bool
	try func(g *gate)
}

// rfcRows are all of them; each file of an RFC adds its own.
func rfcRows() []rfcRow {
	return slices.Concat(rows4787(), rows5382(), rows5508(), rows6888(), rows7857())
}

// Every requirement of RFC 4787, 5382, 5508, 6888 and 7857 that a NAT without PCP
// can meet, tried between hosts in namespaces: with packets that are built here
// where sockets would not send them. Timers are tried without waiting for them.
// Known flows take the fast path, as they do by default.
func TestGateRFC(t *testing.T) { tryRows(t, loader.AttachAuto, forwardFast) }

// The same with programs attached as on kernels before 6.6.
func TestGateRFCClsact(t *testing.T) { tryRows(t, loader.AttachClsact, forwardFast) }

// The same where every packet takes the host's stack.
func TestGateRFCKernel(t *testing.T) { tryRows(t, loader.AttachAuto, forwardKernel) }

func tryRows(t *testing.T, kind loader.AttachKind, forwarding string) {
	t.Parallel()
	awaitUptime(t)
	shared := (&gate{gateway: &gateway{t: t, kind: kind, forwarding: forwarding}}).fresh(gateBoth)
	for _, row := range rfcRows() {
		t.Run(row.id, func(t *testing.T) {
			t.Parallel()
			if row.own {
				row.try(&gate{gateway: &gateway{t: t, kind: kind, forwarding: forwarding}})
				return
			}
			row.try(shared.with(t))
		})
	}
	// After all rows, which have run by then: they shall have gone the way that was asked for.
	t.Cleanup(func() {
		shared.forwards()
		if fast := shared.counts()["eth3 in"].fast; (fast > 0) != shared.fastly() {
			t.Errorf("%d packets of the rows took the fast path", fast)
		}
	})
}

// The table in bpf/README.md has exactly the requirements that are tried, or names
// the test that does it, or says why one is not met.
func TestGateRequirementsTable(t *testing.T) {
	text, err := os.ReadFile("../../bpf/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## Requirements\n")
	if !found {
		t.Fatal("bpf/README.md has no section Requirements")
	}
	tried := map[string]bool{}
	for _, row := range rfcRows() {
		for _, id := range strings.Split(row.id, "+") {
			tried[id] = true
		}
	}
	tests := testNames(t)
	for _, m := range regexp.MustCompile("(?m)^\\| (\\d{4}-\\S+) \\| (\\S+) \\|(?: `(Test\\w+)`)?").FindAllStringSubmatch(section, -1) {
		id, met, by := m[1], m[2] == "met", m[3]
		switch {
		case met && by != "" && !tests[by]:
			t.Errorf("%s: there is no %s", id, by)
		case met && by == "" && !tried[id]:
			t.Errorf("the table says that %s is met, and nobody tries it", id)
		case !met && tried[id]:
			t.Errorf("%s is tried, and the table does not say that it is met", id)
		}
		delete(tried, id)
	}
	for id := range tried {
		t.Errorf("%s is tried, and the table does not tell it", id)
	}
}

// testNames are the tests of this package.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			names[m[1]] = true
		}
	}
	return names
}
