// Package kernels is the list of kernels that tapgate is tested on, and the
// check that a test may be skipped on one of them.
//
// The list is kernels.json. The script scripts/kernels.sh boots what it names,
// the hosted workflow takes its matrix from it, and Require compares with it
// what a kernel turns out to lack.
package kernels

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

//go:embed kernels.json
var listJSON []byte

// List is the content of kernels.json.
type List struct {
	Tests   []Test   `json:"tests"`   // what is run on each kernel
	Tools   []string `json:"tools"`   // programs of this machine that guests get
	Modules []string `json:"modules"` // kernel modules that guests load; those that a kernel has built in or not at all are passed over
	Kernels []Kernel `json:"kernels"`
}

// Test is one test binary.
type Test struct {
	Package string `json:"package"` // as for "go test", from the top of the repository
	Run     string `json:"run"`     // -test.run, or empty for all
	Skip    string `json:"skip"`    // -test.skip, or empty for none
}

// Kernel is one kernel of the list.
type Kernel struct {
	Name    string   `json:"name"`
	Match   string   `json:"match"`   // what its release (uname -r) begins with
	Suites  []string `json:"suites"`  // Debian suites; none for the running kernel
	Package string   `json:"package"` // meta package that depends on the newest image
	Vimto   string   `json:"vimto"`   // tag of the cilium/ci-kernels image that comes nearest, for the hosted workflow
	Missing []string `json:"missing"` // features it is known to lack; it has to have all others
}

// Load returns the list.
func Load() (*List, error) {
	var l List
	d := json.NewDecoder(strings.NewReader(string(listJSON)))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, fmt.Errorf("kernels.json: %w", err)
	}
	return &l, nil
}

// Find returns the kernel of that name, or by its release if name is empty, or
// nil where the list does not have it. A name that does not fit the release
// is an error.
func (l *List) Find(name, release string) (*Kernel, error) {
	for i, k := range l.Kernels {
		fits := strings.HasPrefix(release, k.Match)
		switch {
		case name == "" && fits:
			return &l.Kernels[i], nil
		case name == "" || name != k.Name:
		case fits:
			return &l.Kernels[i], nil
		case len(k.Suites) == 0: // the running kernel may be any
			return nil, nil
		default:
			return nil, fmt.Errorf("kernel %q of kernels.json is a %s*, but %s runs", name, k.Match, release)
		}
	}
	if name != "" {
		return nil, fmt.Errorf("kernel %q is not in kernels.json", name)
	}
	return nil, nil
}

// Lacks says whether the list expects the kernel to be without the feature.
func (k *Kernel) Lacks(feature string) bool { return slices.Contains(k.Missing, feature) }
