package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// Gateway is the state of one network namespace, opened and locked. All of it
// is in the kernel: a process that ends, however it ends, takes nothing along.
type Gateway struct {
	opt      Options
	ns       *namespace
	dir      string
	lock     *dirLock
	maps     map[string]*ebpf.Map
	programs map[string]*ebpf.Program
	slot     uint32   // generation in force
	active   record   // its record
	pending  *pending // a change that nobody has confirmed; nil for none
	journal  journal
	// What the next Result tells: interfaces that were moved away with our
	// programs, programs that were missing, what could not be put back.
	moved, reattached, warnings []string
	// mended are settings that were no longer as the generation in force needs them.
	mended []string
	// closed: what this apply may go back to forwards nothing.
	closed bool
	// asked: a whole configuration, and not a change of one by ourselves, is put in force.
	asked bool
	// again: the configuration in force is put in force again (Reapply).
	again bool
}

// Result is what a change did, for people.
type Result struct {
	Changes  []string `json:"changes"`
	Warnings []string `json:"warnings"`
	// Serial is the number of the generation that was put in force; 0 if none was.
	Serial uint64 `json:"serial,omitempty"`
	// Until is when it goes back by itself unless it is confirmed, RFC 3339; "" if never.
	Until string `json:"until,omitempty"`
}

// Open opens the gateway of a namespace and locks it until Close: shared with
// other readers, or for this writer alone. ErrNotAttached if there is none,
// ErrBusy if the lock is held for too long, ErrState if this binary does not
// understand what is pinned.
func Open(opt Options, mode Mode) (*Gateway, error) {
	g, err := openAnyBuild(opt, mode)
	if err == nil && mode == ReadWrite {
		if err = sameBuild(g.programs); err == nil {
			err = g.ns.do(g.settle)
		}
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	return g, err
}

// openAnyBuild is Open also for a writer whose programs are not those that run:
// with the same layout they can be taken away, if not changed.
func openAnyBuild(opt Options, mode Mode) (*Gateway, error) {
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return nil, err
	}
	dir := opt.stateDir(ns)
	lock, err := lockState(opt, dir, mode)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: no state in %s; put a configuration in force with \"tapgate apply\" or \"tapgate attach\"", ErrNotAttached, dir)
	}
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	g, err := openLocked(opt, ns, dir, lock)
	if err != nil {
		return nil, err
	}
	err = g.mine()
	if err == nil {
		err = ns.do(func() error { g.moved, err = g.dropMoved(); return err })
	}
	if err == nil && g.active.Serial == 0 {
		err = g.nothingApplied()
	}
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// openLocked takes over ns and lock, also when it fails.
func openLocked(opt Options, ns *namespace, dir string, lock *dirLock) (*Gateway, error) {
	_ = rlimit.RemoveMemlock() // before 5.11 inner maps and runs of programs count against it
	g := &Gateway{opt: opt, ns: ns, dir: dir, lock: lock}
	if err := g.readSettled(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (g *Gateway) read() (err error) {
	if g.maps, g.programs, err = openPins(g.dir); err != nil {
		return err
	}
	return g.readRecords()
}

// openOrCreate is Open for a writer that makes what is missing; state that is
// nobody's is cleared away first. table is how a new one is made.
func openOrCreate(opt Options, table tableMaking) (*Gateway, error) {
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return nil, err
	}
	g, err := lockOrCreate(opt, ns, table)
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	if err := g.mine(); err != nil {
		if !errors.Is(err, ErrNotAttached) {
			return nil, errors.Join(err, g.Close())
		}
		g.journal = journal{} // it speaks of interfaces of a namespace that is gone
		if err := errors.Join(g.discard(), g.Close()); err != nil {
			return nil, err
		}
		return openOrCreate(opt, table)
	}
	err = ns.do(func() error { g.moved, err = g.dropMoved(); return err })
	if err == nil {
		err = sameBuild(g.programs)
	}
	if err == nil {
		err = ns.do(g.settle)
	}
	if err != nil && g.active.Serial == 0 { // nothing is in force that could be lost
		err = errors.Join(err, g.discard())
	}
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func lockOrCreate(opt Options, ns *namespace, table tableMaking) (*Gateway, error) {
	dir := opt.stateDir(ns)
	for {
		lock, err := lockDir(dir, true, opt.lockTimeout())
		if err == nil {
			return openLocked(opt, ns, dir, lock)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		lock, err = create(opt, ns, dir, table)
		if err != nil {
			return nil, err
		}
		if lock == nil {
			continue
		}
		g := &Gateway{opt: opt, ns: ns, dir: dir, lock: lock}
		if err := g.read(); err != nil { // it is ours alone, and nothing is attached yet
			return nil, errors.Join(err, os.RemoveAll(dir), g.Close())
		}
		return g, nil
	}
}

// create makes the state under the lock of the folder above, and returns it
// locked, or nil if somebody else was faster.
func create(opt Options, ns *namespace, dir string, table tableMaking) (lock *dirLock, err error) {
	if err := ensureBPFFS(opt.bpffs()); err != nil {
		return nil, err
	}
	if err := os.Mkdir(opt.root(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create state: %w", err)
	}
	root, err := lockDir(opt.root(), true, opt.lockTimeout())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a detach removed it meanwhile
	}
	if err != nil {
		return nil, err
	}
	defer root.unlock()
	if pathExists(dir) {
		return nil, nil
	}
	if _, err := removeLeftovers(dir); err != nil {
		return nil, fmt.Errorf("clear away what an earlier run left: %w", err)
	}
	err = ns.do(func() error {
		if err := missing(ProbeFeatures()); err != nil {
			return err
		}
		lock, err = loadInto(dir, ns, table, opt.Verbose)
		return err
	})
	return lock, err
}

func (g *Gateway) readRecords() error {
	if err := g.readControl(); err != nil {
		return err
	}
	g.journal = journal{}
	if err := readRecord(g.maps[tapgateMapTgRecords], journalKey, &g.journal); err != nil {
		return stateError(g.dir, err)
	}
	return nil
}

// nothingApplied says why there is state, and nothing in force.
func (g *Gateway) nothingApplied() error {
	if !g.expired() {
		return fmt.Errorf("%w: an apply was cut short before it took effect; apply again, or \"tapgate detach\"", ErrNotAttached)
	}
	return fmt.Errorf("%w: the first configuration went out of force at %s, since %w: apply again, or clear away with \"tapgate detach\" "+
		"what it has switched on", ErrNotAttached, g.pending.until().Format(time.TimeOnly), ErrUnconfirmed)
}

func (g *Gateway) writeJournal() error {
	return writeRecord(g.maps[tapgateMapTgRecords], journalKey, g.journal)
}

// mine says whether the state belongs to this namespace: the inode that the
// folder is named by is used again as soon as a namespace is gone.
func (g *Gateway) mine() error {
	gone := fmt.Errorf("%w: the state in %s is left over from a network namespace that is gone; the next apply removes it", ErrNotAttached, g.dir)
	if g.journal.Cookie != 0 && g.ns.cookie != 0 {
		if g.journal.Cookie != g.ns.cookie {
			return gone
		}
		return nil
	}
	if g.active.Serial == 0 {
		return nil // nothing was attached, so nothing can be mistaken
	}
	attached := slices.ContainsFunc(g.active.Members, func(m memberRecord) bool { return len(m.Programs) > 0 })
	alive := !attached // nothing that could tell
	err := g.ns.do(func() error {
		for _, m := range g.active.Members {
			for _, program := range m.Programs {
				kind, _, _, err := attachedKind(program, hookOf(program, m.Ifindex, m.Interface), g.linkDir(m.Ifindex))
				alive = alive || err == nil && kind != ""
			}
		}
		return nil
	})
	if err == nil && !alive {
		return gone
	}
	return err
}

func (g *Gateway) linkDir(ifindex int) string {
	return filepath.Join(g.dir, linksDir, fmt.Sprint(ifindex))
}

// Source returns the text of the configuration in force, as it was given in Config.
func (g *Gateway) Source() string { return g.active.Source }

// File returns the file of the configuration in force, as it was given in Config or to
// SetFile.
func (g *Gateway) File() SourceFile { return g.active.File }

// SetFile notes that what is in force stands in this file.
func (g *Gateway) SetFile(file SourceFile) error {
	if file == g.active.File {
		return nil
	}
	next := g.active
	next.File = file
	if err := writeRecord(g.maps[tapgateMapTgRecords], g.slot, next); err != nil {
		return err
	}
	g.active = next
	return nil
}

// Close lets go of the lock. What is in force stays in force.
func (g *Gateway) Close() error {
	closePins(g.maps, g.programs)
	return errors.Join(g.lock.unlock(), g.ns.close())
}
