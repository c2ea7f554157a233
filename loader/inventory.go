package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Inventory is what BPF there is of ours, and what hangs on the interfaces of the
// namespace beside it, for bug reports. It is read pin by pin, so also of a state that
// this binary does not understand.
type Inventory struct {
	State string     `json:"state"` // folder of the pins
	Pins  []PinInfo  `json:"pins"`
	Hooks []HookInfo `json:"hooks"` // those on which something hangs
}

// PinInfo is one pinned object.
type PinInfo struct {
	Pin  string `json:"pin"`  // in the state's folder
	Kind string `json:"kind"` // "map", "program" or "link"
	ID   uint64 `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
	Type string `json:"type,omitempty"`
	// Of a program.
	Tag     string  `json:"tag,omitempty"`
	Runs    uint64  `json:"runs,omitempty"`     // while the kernel's statistics are on
	RunTime float64 `json:"run_time,omitempty"` // seconds
	// Of a map.
	KeySize    uint32 `json:"key_size,omitempty"` // bytes
	ValueSize  uint32 `json:"value_size,omitempty"`
	MaxEntries uint32 `json:"max_entries,omitempty"`
	Memory     uint64 `json:"memory,omitempty"` // bytes, by the kernel's own account
	// Program is the one that a link holds.
	Program uint64 `json:"program,omitempty"`
	Err     string `json:"error,omitempty"`
}

// HookInfo is the order of programs at one hook of an interface.
type HookInfo struct {
	Interface string   `json:"interface"`
	Ifindex   int      `json:"ifindex"`
	Direction string   `json:"direction"` // "ingress" or "egress"
	TCX       []string `json:"tcx,omitempty"`
	Filters   []string `json:"filters,omitempty"` // in the clsact qdisc
}

// ReadInventory looks at the state of opt's namespace and at all its interfaces. What
// could be read is there also beside an error.
func ReadInventory(opt Options) (*Inventory, error) {
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return nil, err
	}
	inv := &Inventory{State: opt.stateDir(ns)}
	err = filepath.WalkDir(inv.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(inv.State, path)
		inv.Pins = append(inv.Pins, readPin(name, path))
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // there is no state, or it has just gone
	}
	hooks := ns.do(func() error {
		topo, err := readTopology()
		if err != nil {
			return err
		}
		for _, l := range topo.links {
			for _, egress := range []bool{false, true} {
				h, e := readHook(hook{ifindex: l.Attrs().Index, ifname: l.Attrs().Name, egress: egress})
				if len(h.TCX)+len(h.Filters) > 0 {
					inv.Hooks = append(inv.Hooks, h)
				}
				err = errors.Join(err, e)
			}
		}
		return err
	})
	return inv, errors.Join(err, hooks, ns.close())
}

// readPin finds out what a pin is by trying: its kind stands nowhere.
func readPin(name, path string) PinInfo {
	p := PinInfo{Pin: name}
	read := &ebpf.LoadPinOptions{ReadOnly: true}
	if m, err := ebpf.LoadPinnedMap(path, read); err == nil {
		defer m.Close()
		p.Kind, p.Type, p.KeySize, p.ValueSize, p.MaxEntries = "map", m.Type().String(), m.KeySize(), m.ValueSize(), m.MaxEntries()
		if info, err := m.Info(); err == nil {
			id, _ := info.ID()
			p.ID, p.Name = uint64(id), info.Name
			p.Memory, _ = info.Memlock()
		}
		return p
	}
	if prog, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer prog.Close()
		p.Kind, p.Type = "program", prog.Type().String()
		if info, err := prog.Info(); err == nil {
			id, _ := info.ID()
			p.ID, p.Name, p.Tag = uint64(id), info.Name, info.Tag
		}
		if stats, err := prog.Stats(); err == nil {
			p.Runs, p.RunTime = stats.RunCount, stats.Runtime.Seconds()
		}
		return p
	}
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		p.Err = err.Error()
		return p
	}
	defer l.Close()
	p.Kind = "link"
	if info, err := l.Info(); err == nil {
		p.ID, p.Type, p.Program = uint64(info.ID), fmt.Sprint(info.Type), uint64(info.Program)
	}
	return p
}

func readHook(h hook) (HookInfo, error) {
	info := HookInfo{Interface: h.ifname, Ifindex: h.ifindex, Direction: "ingress"}
	if h.egress {
		info.Direction = "egress"
	}
	programs, err := queryTCX(h)
	for _, p := range programs {
		info.TCX = append(info.TCX, fmt.Sprintf("%s (program %d)", programName(p.ID), p.ID))
	}
	filters, e := listFilters(h)
	for _, f := range filters {
		if f.handle != 0 {
			info.Filters = append(info.Filters, fmt.Sprintf("priority %d handle %#x chain %d %s %s (program %d)", f.priority, f.handle, f.chain, f.kind, f.name, f.program))
		}
	}
	return info, errors.Join(err, e)
}
