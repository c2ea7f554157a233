package e2e

import (
	"bytes"
	"testing"

	"tapgate/test/lab"
)

// interleaved requires that got is made of the sequences, each in its order,
// and of nothing else, as far as the network layer is concerned.
func interleaved(t *testing.T, what string, got []lab.Frame, sequences ...[]lab.Frame) {
	t.Helper()
	total := 0
	for _, s := range sequences {
		total += len(s)
	}
next:
	for n, f := range got {
		for i, s := range sequences {
			if len(s) > 0 && bytes.Equal(s[0].Payload(), f.Payload()) {
				sequences[i] = s[1:]
				continue next
			}
		}
		t.Errorf("%s: frame %d of %d (of %d) is none that comes next: %s", what, n, len(got), total, brief(f.Data))
		for _, s := range sequences {
			if len(s) > 0 {
				t.Errorf("next would be %s", brief(s[0].Data))
			}
		}
		return
	}
	for _, s := range sequences {
		if len(s) > 0 {
			t.Errorf("%s: %d of %d frames are missing, the first: %s", what, len(s), total, brief(s[0].Data))
		}
	}
}
