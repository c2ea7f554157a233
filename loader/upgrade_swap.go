package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The folders of an upgrade that is under way, beside "programs".
const (
	upgradeNewDir = "programs-new" // what will be the gateway's programs
	upgradeOldDir = "programs-old" // what they were
)

// attachment is one place where a program of ours runs.
type attachment struct {
	program string
	hook    hook
	pin     string // of its TCX link; "" for a filter
}

// attachments are all of them, of whatever generation: those that deliver before
// those that rely on delivery.
func (g *Gateway) attachments() ([]attachment, error) {
	pins, err := listLinkPins(g.dir)
	if err != nil {
		return nil, err
	}
	var all []attachment
	for _, program := range slices.Concat(dmzPrograms, tapPrograms) {
		for _, p := range pins {
			if p.program == program {
				h := hookOf(program, p.ifindex, g.nameOf(p.ifindex))
				all = append(all, attachment{program, h, filepath.Join(g.linkDir(p.ifindex), program)})
			}
		}
		for _, t := range g.journal.Touched {
			h := hookOf(program, t.Ifindex, t.Interface)
			filters, err := listFilters(h)
			if err != nil {
				return nil, err
			}
			if _, ok := ownFilter(filters, program); ok {
				all = append(all, attachment{program: program, hook: h})
			}
		}
	}
	r := g.reassembly()
	if pin := filepath.Join(r.dir, reassemblyBack); pathExists(pin) {
		all = append(all, attachment{tapgateProgTapgateBack, r.hook(0), pin})
	}
	return all, nil
}

// swap puts programs in place of those of the same name, wherever they run: each by
// one step of the kernel's, so that every packet meets the one or the other.
func (g *Gateway) swap(from, to map[string]*ebpf.Program) error {
	all, err := g.attachments()
	if err != nil {
		return err
	}
	for _, a := range all {
		if a.pin != "" {
			err = swapLink(to[a.program], a.pin)
		} else {
			err = swapFilter(from[a.program], to[a.program], a)
		}
		if err != nil {
			return fmt.Errorf("put %s on %s: %w", a.program, a.hook, err)
		}
	}
	return nil
}

// swapLink leaves a link alone whose interface is gone.
func swapLink(to *ebpf.Program, pin string) error {
	l, _, err := openTCX(pin)
	if l == nil || err != nil {
		return err
	}
	defer l.Close()
	if err := l.Update(to); err != nil && !errors.Is(err, unix.ENOLINK) {
		return err
	}
	return nil
}

// swapFilter leaves a filter alone that has another tapgate's program.
func swapFilter(from, to *ebpf.Program, a attachment) error {
	if from == nil { // not loaded before that run was cut short
		return nil
	}
	was, err := programID(from)
	if err != nil {
		return err
	}
	filters, err := listFilters(a.hook)
	if err != nil {
		return err
	}
	if own, ok := ownFilter(filters, a.program); !ok || own.program != was {
		return nil
	}
	if err := replaceFilter(to, a.program, a.hook); err != nil && !isGone(err) {
		return err
	}
	return nil
}

// cutShort says whether the state has the traces of an upgrade that was cut short.
func cutShort(dir string) bool {
	return pathExists(filepath.Join(dir, upgradeNewDir)) || pathExists(filepath.Join(dir, upgradeOldDir))
}

// lockState is lockDir for a state's folder. A reader that comes after an upgrade
// which was cut short puts that right first, as a writer.
func lockState(opt Options, dir string, mode Mode) (*dirLock, error) {
	for range 3 { // somebody else's may be cut short in between
		lock, err := lockDir(dir, mode == ReadWrite, opt.lockTimeout())
		if err != nil || mode == ReadWrite || !cutShort(dir) {
			return lock, err
		}
		if err := lock.unlock(); err != nil {
			return nil, err
		}
		if err := settleUpgrade(opt, dir); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: in %s one upgrade after the other is cut short", ErrBusy, dir)
}

func settleUpgrade(opt Options, dir string) error {
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return err
	}
	lock, err := lockDir(dir, true, opt.lockTimeout())
	if err != nil {
		return errors.Join(err, ns.close())
	}
	g, err := openLocked(opt, ns, dir, lock)
	if err != nil {
		return err
	}
	return g.Close()
}

// readSettled is read behind an upgrade that may have been cut short: it is undone
// before its renames, and finished after the first. Either set of programs is whole,
// so this is for every build with this layout. Only writers come here with such a state.
func (g *Gateway) readSettled() error {
	if !cutShort(g.dir) {
		return g.read()
	}
	own, next := filepath.Join(g.dir, programsDir), filepath.Join(g.dir, upgradeNewDir)
	if !pathExists(own) && pathExists(next) {
		if err := os.Rename(next, own); err != nil {
			return fmt.Errorf("finish an upgrade that was cut short: %w", err)
		}
	}
	if err := g.read(); err != nil {
		return err
	}
	err := g.ns.do(func() error {
		if err := g.swapBack(next); err != nil {
			return err
		}
		return g.convergeFast() // the kernel may have been to forward meanwhile
	})
	if err == nil {
		err = errors.Join(os.RemoveAll(next), os.RemoveAll(filepath.Join(g.dir, upgradeOldDir)))
	}
	if err != nil {
		return fmt.Errorf("put right an upgrade that was cut short: %w", err)
	}
	return nil
}

// swapBack puts the gateway's programs where those of the folder are.
func (g *Gateway) swapBack(folder string) error {
	if !pathExists(folder) {
		return nil
	}
	next := map[string]*ebpf.Program{}
	defer closePins(nil, next)
	for _, name := range pinnedPrograms {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(folder, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			continue // killed before it was pinned
		}
		if err != nil {
			return err
		}
		next[name] = p
	}
	return g.swap(next, g.programs)
}
