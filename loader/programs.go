package loader

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ProgramStatus is one of our programs in the kernel. One program runs on many
// interfaces.
type ProgramStatus struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	Tag  string `json:"tag"` // of its instructions
	// Runs and RunTime, in seconds, count while the kernel's statistics are on
	// (sysctl kernel.bpf_stats_enabled, or MeasurePrograms).
	Runs    uint64  `json:"runs,omitempty"`
	RunTime float64 `json:"run_time,omitempty"`
}

func (g *Gateway) statusPrograms(s *Status) error {
	for _, name := range slices.Sorted(maps.Keys(g.programs)) {
		p := g.programs[name]
		info, err := p.Info()
		if err != nil {
			return fmt.Errorf("look at program %s: %w", name, err)
		}
		id, _ := info.ID()
		ps := ProgramStatus{Name: name, ID: strconv.FormatUint(uint64(id), 10), Tag: info.Tag}
		if stats, err := p.Stats(); err == nil { // since 5.8
			ps.Runs, ps.RunTime = stats.RunCount, stats.Runtime.Seconds()
		}
		s.Programs = append(s.Programs, ps)
	}
	return nil
}

// MeasurePrograms has the kernel measure how long BPF programs run, all that there
// are on this machine, until it is closed. It costs some tens of nanoseconds a run.
func MeasurePrograms() (io.Closer, error) {
	c, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, fmt.Errorf("switch the kernel's statistics of BPF programs on: %w", err)
	}
	return c, nil
}
