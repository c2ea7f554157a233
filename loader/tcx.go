package loader

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// upsertTCX puts prog on the hook through the link pinned at pin, and makes the
// link if it is missing, dead, or on another interface.
func upsertTCX(prog *ebpf.Program, pin string, h hook) error {
	done, err := updateTCX(prog, pin, h)
	if err != nil || done {
		return err
	}
	if err := removeTCX(pin); err != nil {
		return err
	}
	anchor := link.Tail()
	if h.first {
		anchor = link.Head()
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: h.ifindex, Program: prog, Attach: tcxAttach(h), Anchor: anchor,
	})
	if err != nil {
		return err
	}
	defer l.Close() // the pin keeps it; without one, this detaches
	return l.Pin(pin)
}

// updateTCX puts prog into the pinned link if that is on the hook.
func updateTCX(prog *ebpf.Program, pin string, h hook) (bool, error) {
	l, info, err := openTCX(pin)
	if l == nil || err != nil {
		return false, err
	}
	defer l.Close()
	attached, err := queryTCX(h)
	if err != nil {
		return false, err
	}
	if _, here := findLink(attached, info.ID); !here {
		return false, nil
	}
	err = l.Update(prog)
	if errors.Is(err, unix.ENOLINK) { // the interface went away just now
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("update link %s: %w", pin, err)
	}
	return true, nil
}

// removeTCX detaches the link pinned at pin, wherever its interface is, and unpins it.
func removeTCX(pin string) error {
	l, _, err := openTCX(pin)
	if l == nil || err != nil {
		return err
	}
	defer l.Close()
	// Unpinning would do, were no other process holding the link open.
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("link %s: %w", pin, err)
	}
	if err := l.Unpin(); err != nil {
		return fmt.Errorf("unpin link %s: %w", pin, err)
	}
	return nil
}

// pinnedTCX gives the id of the link pinned at pin, 0 if there is none, and whether
// it still has an interface.
func pinnedTCX(pin string) (id link.ID, alive bool, err error) {
	l, info, err := openTCX(pin)
	if l == nil || err != nil {
		return 0, false, err
	}
	defer l.Close()
	return info.ID, info.TCX().Ifindex != 0, nil
}

// openTCX opens the link pinned at pin: nil if there is none.
func openTCX(pin string) (link.Link, *link.Info, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return nil, nil, fmt.Errorf("open link %s: %w", pin, err)
	}
	if err != nil { // a map or a program
		return nil, nil, notTCX(pin)
	}
	info, err := l.Info()
	if err == nil && info.TCX() == nil {
		err = notTCX(pin)
	}
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, info, nil
}

func notTCX(pin string) error {
	return fmt.Errorf("%w: %s is not a TCX link; it was left as it is: take the whole state away with \"tapgate detach --force\"", ErrState, pin)
}

// queryTCX lists the programs on the hook in the order they run. An interface that
// is gone has none, nor has a kernel without TCX.
func queryTCX(h hook) ([]link.AttachedProgram, error) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: h.ifindex, Attach: tcxAttach(h)})
	switch {
	case err == nil:
		return res.Programs, nil
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL), errors.Is(err, ebpf.ErrNotSupported):
		return nil, nil
	}
	return nil, fmt.Errorf("list TCX programs: %w", err)
}

// haveTCX says whether the kernel knows TCX (6.6). Such a kernel misses the
// interface; an older one does not understand the question.
func haveTCX() bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1 << 30, Attach: ebpf.AttachTCXIngress})
	return err == nil || errors.Is(err, unix.ENODEV)
}

func tcxAttach(h hook) ebpf.AttachType {
	if h.egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// findLink looks for a link among attached programs and gives the program it holds.
func findLink(attached []link.AttachedProgram, id link.ID) (ebpf.ProgramID, bool) {
	for _, p := range attached {
		if l, ok := p.LinkID(); ok && l == id {
			return p.ID, true
		}
	}
	return 0, false
}

func programID(prog *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := prog.Info()
	if err != nil {
		return 0, err
	}
	id, ok := info.ID()
	if !ok {
		return 0, fmt.Errorf("id of program: %w", ebpf.ErrNotSupported)
	}
	return id, nil
}

func programNames(attached []link.AttachedProgram) []string {
	var names []string
	for _, p := range attached {
		names = append(names, programName(p.ID))
	}
	return names
}

// programName is what bpftool shows, or the id of a program without a name.
func programName(id ebpf.ProgramID) string {
	if prog, err := ebpf.NewProgramFromID(id); err == nil {
		defer prog.Close()
		if info, err := prog.Info(); err == nil && info.Name != "" {
			return info.Name
		}
	}
	return fmt.Sprintf("program %d", id)
}
