package loader

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Feature is something of the kernel that tapgate uses.
type Feature struct {
	Name   string `json:"name"`
	Since  string `json:"since"` // mainline release that brought it; distributions carry some back
	Use    string `json:"use"`   // what for
	Have   bool   `json:"have"`
	Needed bool   `json:"needed"`          // nothing works without it
	Err    string `json:"error,omitempty"` // why it is not there, or could not be tried
}

// ProbeFeatures tries what tapgate uses of the kernel, without a look at its
// version. Nothing is left behind, and no interface of the caller's is touched.
// Without root most of it cannot be tried: then Have is false and Err says so.
func ProbeFeatures() []Feature {
	_ = rlimit.RemoveMemlock() // before 5.11 maps count against it

	list := []struct {
		Feature
		try func() error
	}{
		{Feature{Name: "bpffs", Since: "4.4", Use: "keeps the state without a process", Needed: true}, probeBPFFS},
		{Feature{Name: "sched_cls", Since: "4.1", Use: "programs on TC", Needed: true},
			func() error { return features.HaveProgramType(ebpf.SchedCLS) }},
		{Feature{Name: "clone_redirect", Since: "4.2", Use: "copies packets", Needed: true}, helper(asm.FnCloneRedirect)},
		{Feature{Name: "boot_clock", Since: "5.8", Use: "age of the sensor's MAC, deadlines", Needed: true}, helper(asm.FnKtimeGetBootNs)},
		{Feature{Name: "array_of_maps", Since: "4.12", Use: "two generations of the configuration", Needed: true},
			func() error { return features.HaveMapType(ebpf.ArrayOfMaps) }},
		{Feature{Name: "btf", Since: "4.18", Use: "types of maps and programs", Needed: true}, probeBTF},
		{Feature{Name: "spin_lock", Since: "5.1", Use: "locks in map values", Needed: true}, probeSpinLock},
		{Feature{Name: "tcx", Since: "6.6", Use: "attaches without a qdisc, in order with other programs"}, probeTCX},
		{Feature{Name: "clsact", Since: "4.5", Use: "attaches where there is no TCX"}, probeClsact},
		{Feature{Name: "check_mtu", Since: "5.12", Use: "asks for the MTU of the sensor's interface at each copy"}, helper(asm.FnCheckMtu)},
		{Feature{Name: "fib_lookup", Since: "4.18", Use: "the way of packets that pass by the host's stack (forwarding: fast)"}, helper(asm.FnFibLookup)},
		{Feature{Name: "netns_cookie", Since: "5.14", Use: "tells a network namespace from a later one with its inode"}, probeNetnsCookie},
		{Feature{Name: "netfilter_defrag", Since: "6.6", Use: "puts fragments in order that come in out of order"}, probeReassembly},
	}
	out := make([]Feature, len(list))
	tcx := false
	for i, f := range list {
		err := f.try()
		f.Have = err == nil
		if err != nil {
			f.Err = err.Error()
		}
		switch f.Name {
		case "tcx":
			tcx = f.Have
		case "clsact":
			f.Needed = !tcx
		}
		out[i] = f.Feature
	}
	return out
}

// missing is an error that names the needed features that are not there, or nil.
func missing(fs []Feature) error {
	var lacks, names []string
	for _, f := range fs {
		if f.Needed && !f.Have {
			lacks = append(lacks, fmt.Sprintf("%s (since %s, %s): %s", f.Name, f.Since, f.Use, f.Err))
			names = append(names, f.Name)
		}
	}
	switch {
	case len(lacks) == 0:
		return nil
	case os.Geteuid() != 0:
		return fmt.Errorf("run tapgate as root: without, this cannot be had or tried of the kernel: %s", strings.Join(names, ", "))
	}
	return fmt.Errorf("this kernel lacks what tapgate needs: %s", strings.Join(lacks, "; "))
}

func helper(fn asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(ebpf.SchedCLS, fn) }
}

func probeBPFFS() error {
	text, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(text)), "bpf") {
		return errors.New("the kernel has no BPF filesystem")
	}
	return nil
}

func probeBTF() error {
	b, err := btf.NewBuilder([]btf.Type{&btf.Int{Name: "tg_probe", Size: 4}}, nil)
	if err != nil {
		return err
	}
	h, err := btf.NewHandle(b)
	if err != nil {
		return err
	}
	return h.Close()
}

// probeSpinLock loads a program that takes a lock: maps alone would also be made
// without their types.
func probeSpinLock() error {
	word := &btf.Int{Name: "unsigned int", Size: 4}
	lock := &btf.Struct{Name: "bpf_spin_lock", Size: 4, Members: []btf.Member{{Name: "val", Type: word}}}
	value := &btf.Struct{Name: "tg_probe", Size: 8, Members: []btf.Member{
		{Name: "word", Type: word}, {Name: "lock", Type: lock, Offset: 32},
	}}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "tg_probe", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Key: word, Value: value,
	})
	if err != nil {
		return err
	}
	defer m.Close()
	return loads(
		asm.StoreImm(asm.R10, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R6, asm.R0),
		asm.Add.Imm(asm.R6, 4),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnSpinLock.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnSpinUnlock.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	)
}

func loads(ins ...asm.Instruction) error {
	p, err := probeProgram(ins...)
	if err != nil {
		return err
	}
	return p.Close()
}

func probeProgram(ins ...asm.Instruction) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "tg_probe", Type: ebpf.SchedCLS, License: "GPL", Instructions: ins})
}

// probeTCX asks for a link on an interface that cannot be: a kernel that knows
// TCX looks for the interface first.
func probeTCX() error {
	p, err := probeProgram(asm.Mov.Imm(asm.R0, -1), asm.Return())
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: math.MaxInt32, Program: p, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		return errors.Join(errors.New("the kernel attached to an interface that does not exist"), l.Close())
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// probeClsact attaches to the loopback of a namespace that lives for that long only.
func probeClsact() error {
	p, err := probeProgram(asm.Mov.Imm(asm.R0, -1), asm.Return())
	if err != nil {
		return err
	}
	defer p.Close()
	return inNewNetns(func() error {
		loopback := hook{ifindex: 1, egress: true}
		if _, err := addClsact(loopback.ifindex); err != nil {
			return err
		}
		if err := netlink.FilterAdd(bpfFilter(loopback, "tg_probe", 1, p.FD())); err != nil {
			return fmt.Errorf("add bpf filter: %w", err)
		}
		return nil
	})
}

// inNewNetns calls f on a thread in a network namespace of its own, which ends with it.
func inNewNetns(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(back)
			err = unix.Unshare(unix.CLONE_NEWNET)
		}
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("make a network namespace to try it in: %w", err)
			return
		}
		err = f()
		if e := unix.Setns(back, unix.CLONE_NEWNET); e == nil {
			runtime.UnlockOSThread()
		} // else the runtime ends the thread with this goroutine
		done <- err
	}()
	return <-done
}

func probeNetnsCookie() error {
	cookie, err := netnsCookie()
	if err == nil && cookie == 0 {
		err = errors.New("the kernel has no cookies of network namespaces")
	}
	return err
}
