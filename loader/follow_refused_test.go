package loader

import (
	"testing"
	"time"
)

// The log hears of every flow that was refused once, and of each reason once a minute.
func TestRefusalsSince(t *testing.T) {
	const full, ports = tapgateTgRefusalTG_REFUSED_FULL, tapgateTgRefusalTG_REFUSED_PORTS
	start := time.Now()
	var r refusals
	for i, c := range []struct {
		after  time.Duration
		reason tapgateTgRefusal
		count  uint64
		want   uint64
	}{
		{0, full, 7, 0}, // before this agent
		{0, ports, 0, 0},
		{5 * time.Second, full, 7, 0},
		{10 * time.Second, full, 10, 3},
		{15 * time.Second, full, 30, 0},
		{20 * time.Second, ports, 2, 2}, // has its own minute
		{69 * time.Second, full, 40, 0},
		{70 * time.Second, full, 40, 30}, // all that were left out
		{300 * time.Second, full, 40, 0},
		{305 * time.Second, full, 41, 1},
		{310 * time.Second, full, 0, 0}, // another table
		{400 * time.Second, full, 4, 4},
	} {
		if got := r.since(c.reason, c.count, start.Add(c.after)); got != c.want {
			t.Errorf("look %d: %d since, want %d", i+1, got, c.want)
		}
	}
}
