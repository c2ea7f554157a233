package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
)

// memory is what a gateway's flows take, in bytes.
type memory struct {
	// Slab of the whole machine (/proc/meminfo): all that grows with the flows,
	// tapgate's elements and the kernel's alike.
	Slab float64 `json:"slab"`
	// Maps is what the kernel says that tapgate's flow maps take (memlock in
	// fdinfo): elements, buckets and queues.
	Maps float64 `json:"maps,omitempty"`
	// Fixed is that of the maps before there is a flow.
	Fixed float64 `json:"fixed,omitempty"`
	Flows int     `json:"flows"`
}

// since is the memory taken for so many flows since then.
func (m memory) since(before memory, flows int) memory {
	return memory{Slab: m.Slab - before.Slab, Maps: m.Maps - before.Maps, Fixed: before.Maps, Flows: flows}
}

func (m memory) add(o memory) memory {
	return memory{m.Slab + o.Slab, m.Maps + o.Maps, m.Fixed + o.Fixed, m.Flows + o.Flows}
}

func (l *gateLab) measureMemory() (m memory, err error) {
	if m.Slab, err = meminfo("Slab"); err != nil || l.mode.direct || l.mode.kernel {
		return m, err
	}
	for _, name := range []string{"tg_sessions", "tg_bindings", "tg_remotes", "tg_hosts", "tg_fresh", "tg_settled", "tg_dying", "tg_idle"} {
		files, _ := filepath.Glob(filepath.Join(l.bpffs(), "tapgate", "*", "maps", name))
		if len(files) != 1 {
			return m, fmt.Errorf("%d pins of map %s", len(files), name)
		}
		bytes, err := memlock(files[0])
		if err != nil {
			return m, err
		}
		m.Maps += bytes
	}
	return m, nil
}

func memlock(pin string) (float64, error) {
	opened, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer opened.Close()
	info, err := opened.Info()
	if err != nil {
		return 0, err
	}
	bytes, ok := info.Memlock()
	if !ok {
		return 0, fmt.Errorf("the kernel does not say how much memory %s takes", filepath.Base(pin))
	}
	return float64(bytes), nil
}

// meminfo is a line of /proc/meminfo in bytes.
func meminfo(name string) (float64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, name+":")
		if !ok {
			continue
		}
		var kib float64
		if _, err := fmt.Sscanf(rest, "%f kB", &kib); err != nil {
			return 0, fmt.Errorf("read %s: %w", name, err)
		}
		return kib * 1024, nil
	}
	return 0, fmt.Errorf("no %s in /proc/meminfo", name)
}
