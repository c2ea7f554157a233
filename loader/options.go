package loader

import "time"

// DefaultBPFFS is where the BPF filesystem is expected, and mounted if it is not.
const DefaultBPFFS = "/sys/fs/bpf"

// AttachKind says how programs are put on interfaces.
type AttachKind string

// The attach kinds. Auto takes TCX where the kernel has it (6.6), else clsact.
const (
	AttachAuto   AttachKind = ""
	AttachTCX    AttachKind = "tcx"
	AttachClsact AttachKind = "clsact"
)

// Options say which gateway is meant and how to go about it.
type Options struct {
	// Netns is the gateway's network namespace: a name under /run/netns or a
	// path. Empty means the caller's.
	Netns string
	// BPFFS is the mount point of the BPF filesystem; DefaultBPFFS if empty.
	BPFFS string
	// LockTimeout is how long to wait for another tapgate; 5 s if zero.
	LockTimeout time.Duration
	// Attach is for tests and for kernels whose TCX must not be used.
	Attach AttachKind
	// Force does what is refused for the user's own good.
	Force bool
	// CutOver takes over the flows of a host that masquerades itself, whose rule
	// goes right after; without it that is refused.
	CutOver bool
	// Confirm, if not zero, has an apply go back by itself after this time unless
	// Gateway.Confirm comes: ConfirmLeast to ConfirmMost.
	Confirm time.Duration
	// Planner, if set, is told what is about to change, before it does.
	Planner Planner
	// Verbose makes verifier errors carry the whole log.
	Verbose bool
}

// Planner is told of changes before they are made.
type Planner interface {
	// Planned is what an apply changes.
	Planned([]Change)
	// Ending says how many translated flows end with the last NAT rule.
	Ending(flows int)
}

// Mode says what a Gateway is opened for.
type Mode int

// The modes: readers share the lock, a writer has it alone.
const (
	ReadOnly Mode = iota
	ReadWrite
)
