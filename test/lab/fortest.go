package lab

import "sync"

// TB is what ForTest needs of a testing.TB; package testing stays out of the
// program that ships the demo.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

var sweepOnce sync.Once

// ForTest builds a lab that ends with the test. It fails the test if it cannot.
func ForTest(t TB, opts ...Option) *Lab {
	t.Helper()
	sweepOnce.Do(func() {
		removed, err := RemoveStale()
		if err != nil {
			t.Logf("remove stale labs: %v", err)
		}
		for _, r := range removed {
			t.Logf("removed stale %s", r)
		}
	})
	l, err := New(opts...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return l
}
