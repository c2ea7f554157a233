package kernels

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What tests print and the matrix reads.
const (
	// SkipPrefix begins the message of a skip, followed by the feature's name.
	SkipPrefix = "kernel feature missing: "
	// ReportPrefix begins a fact of a run, followed by KEY=VALUE.
	ReportPrefix = "kernel report: "
)

// Require skips the test if this kernel lacks the feature, and fails it if
// kernels.json says that the kernel should have it. The feature is probed,
// never derived from a version. On a kernel that is not in the list a test is
// skipped, but for CI=true, where it fails: a matrix must know its kernels.
func Require(t testing.TB, feature string) {
	t.Helper()
	has, err := Has(feature)
	if err != nil {
		t.Fatal(err)
	}
	list, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	release, err := Release()
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := list.Find(os.Getenv("TAPGATE_KERNEL"), release)
	if err != nil {
		t.Fatal(err)
	}
	skip, err := judge(kernel, release, feature, has, os.Getenv("CI") == "true")
	if err != nil {
		t.Fatal(err)
	}
	if skip {
		t.Skip(SkipPrefix + feature)
	}
}

// judge says whether a test that needs the feature is skipped; an error fails it.
func judge(k *Kernel, release, feature string, has, ci bool) (skip bool, err error) {
	switch {
	case has:
		return false, nil
	case k == nil && ci:
		return false, fmt.Errorf("kernel %s lacks %s and is not in kernels.json: add it there", release, feature)
	case k == nil || k.Lacks(feature):
		return true, nil
	}
	return false, fmt.Errorf("kernel %s lacks %s, which kernels.json expects of %q: load the module, or list the feature as missing",
		release, feature, k.Name)
}

// Report tells the matrix a fact of this run, such as attach=tcx.
func Report(t testing.TB, key, value string) {
	t.Helper()
	t.Logf("%s%s=%s", ReportPrefix, key, value)
}

// Release is the release of the running kernel, as "uname -r" tells it.
func Release() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return strings.TrimSpace(unix.ByteSliceToString(u.Release[:])), nil
}
