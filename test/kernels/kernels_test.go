package kernels

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestFeatures compares what this kernel has with what the list says, both
// ways, and tells it to the matrix.
func TestFeatures(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("probing features needs root")
	}
	list, release := mustLoad(t), mustRelease(t)
	kernel, err := list.Find(os.Getenv("TAPGATE_KERNEL"), release)
	if err != nil {
		t.Fatal(err)
	}
	var has, lacks []string
	for _, f := range Features() {
		ok, err := Has(f)
		switch {
		case err != nil:
			t.Error(err)
			continue
		case ok:
			has = append(has, f)
		default:
			lacks = append(lacks, f)
		}
		if kernel == nil {
			continue
		}
		if !ok && !kernel.Lacks(f) {
			t.Errorf("kernel %s lacks %s, which kernels.json expects of %q", release, f, kernel.Name)
		}
		if ok && kernel.Lacks(f) {
			t.Errorf("kernel %s has %s, which kernels.json says %q lacks", release, f, kernel.Name)
		}
	}
	Report(t, "has", strings.Join(has, ","))
	Report(t, "lacks", strings.Join(lacks, ","))
}

func TestJudge(t *testing.T) {
	known := &Kernel{Name: "5.10", Missing: []string{"tcx"}}
	for _, tc := range []struct {
		name           string
		kernel         *Kernel
		feature        string
		has, ci        bool
		skipped, fails bool
	}{
		{name: "has it", kernel: known, feature: "vlan", has: true},
		{name: "has it, unknown kernel in CI", feature: "vlan", has: true, ci: true},
		{name: "lacks it and may", kernel: known, feature: "tcx", skipped: true},
		{name: "lacks it and may, in CI", kernel: known, feature: "tcx", ci: true, skipped: true},
		{name: "lacks it and may not", kernel: known, feature: "vlan", fails: true},
		{name: "unknown kernel lacks it", feature: "tcx", skipped: true},
		{name: "unknown kernel lacks it in CI", feature: "tcx", ci: true, fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			skip, err := judge(tc.kernel, "5.10.0-1", tc.feature, tc.has, tc.ci)
			if skip != tc.skipped || (err != nil) != tc.fails {
				t.Errorf("judge = %v, %v; want skipped %v, failed %v", skip, err, tc.skipped, tc.fails)
			}
		})
	}
}

func TestFind(t *testing.T) {
	list := &List{Kernels: []Kernel{
		{Name: "6.1", Match: "6.1.", Suites: []string{"a"}},
		{Name: "6.12", Match: "6.12.", Suites: []string{"b"}},
		{Name: "running", Match: "6.18."},
	}}
	for _, tc := range []struct{ name, release, want, err string }{
		{release: "6.1.0-50", want: "6.1"},
		{release: "6.12.9", want: "6.12"},
		{release: "6.18.44-x", want: "running"},
		{release: "6.14.1"},
		{name: "6.12", release: "6.12.9", want: "6.12"},
		{name: "6.12", release: "6.1.9", err: "but 6.1.9 runs"},
		{name: "running", release: "6.18.1", want: "running"},
		{name: "running", release: "6.14.1"},
		{name: "4.4", release: "4.4.1", err: "not in kernels.json"},
	} {
		k, err := list.Find(tc.name, tc.release)
		var got, message string
		if k != nil {
			got = k.Name
		}
		if err != nil {
			message = err.Error()
		}
		if got != tc.want || (message == "") != (tc.err == "") || !strings.Contains(message, tc.err) {
			t.Errorf("Find(%q, %q) = %q, %q; want %q, %q", tc.name, tc.release, got, message, tc.want, tc.err)
		}
	}
}

// TestList finds typing errors in kernels.json.
func TestList(t *testing.T) {
	list := mustLoad(t)
	known := Features()
	seen := map[string]bool{}
	for _, k := range list.Kernels {
		if k.Name == "" || k.Match == "" || seen[k.Name] {
			t.Errorf("kernel %+v: no or a double name, or no match", k)
		}
		seen[k.Name] = true
		if (len(k.Suites) == 0) != (k.Package == "") {
			t.Errorf("kernel %s: suites and package go together", k.Name)
		}
		for _, f := range k.Missing {
			if !slices.Contains(known, f) {
				t.Errorf("kernel %s: no probe for %q", k.Name, f)
			}
		}
	}
	if len(list.Kernels) == 0 || len(list.Tests) == 0 {
		t.Error("kernels.json has no kernels or no tests")
	}
}

func TestHasUnknown(t *testing.T) {
	if _, err := Has("no such thing"); err == nil {
		t.Error("an unknown feature was probed")
	}
}

func mustLoad(t *testing.T) *List {
	t.Helper()
	l, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustRelease(t *testing.T) string {
	t.Helper()
	r, err := Release()
	if err != nil {
		t.Fatal(err)
	}
	return r
}
