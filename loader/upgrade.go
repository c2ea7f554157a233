package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// An upgrade puts the programs of this binary in place of those that run, with the
// same maps: policy, flows and counters stay. bpf/README.md, "Upgrade", says why the
// programs of two builds may run side by side for a moment.

// Handover is the version of what one program hands to the next with a packet, or
// leaves for its next run: TG_HANDOVER of headers/abi.h. An upgrade from another one
// has the kernel forward meanwhile.
const Handover = 1

// replaceState says what to do about state that cannot be taken over.
const replaceState = "To change to this tapgate nevertheless, keep what is in force (tapgate config show >FILE), take it away " +
	"(tapgate detach --force) and put it in force again (tapgate apply -f FILE): all translated connections break"

// Upgrade puts the programs of this binary in place of the running ones, without a
// gap; none are loaded for a gateway that is not there (ErrNotAttached). Nothing to
// change is no error. ErrState where the running ones' maps cannot be taken over;
// whatever fails, those that ran before run on. With dryRun it only loads them, to
// see whether this kernel takes them, and tells what would change.
func Upgrade(opt Options, dryRun bool) (*Result, error) {
	g, err := openAnyBuild(opt, ReadWrite)
	var refused *refusedState
	if errors.As(err, &refused) {
		return nil, fmt.Errorf("%w in %s: %w; nothing was changed, since its flows and counters cannot be taken over. %s",
			ErrState, refused.dir, refused.why, replaceState)
	}
	if err != nil {
		return nil, err
	}
	result, err := g.upgrade(dryRun)
	return result, errors.Join(err, g.Close())
}

func (g *Gateway) upgrade(dryRun bool) (result *Result, err error) {
	if err := sameBuild(g.programs); !errors.Is(err, ErrState) {
		return &Result{}, err // already so, if it is nil
	}
	err = g.ns.do(func() error {
		result, err = g.replacePrograms(dryRun)
		return err
	})
	return result, err
}

// replacePrograms does it. Until the folders have changed their names a run that is
// cut short is undone by the next command, after that it is finished.
func (g *Gateway) replacePrograms(dryRun bool) (*Result, error) {
	next, err := g.loadBeside()
	if err != nil {
		return nil, err
	}
	defer func() { closePins(nil, next) }()
	result := &Result{Warnings: g.moved}
	change, err := g.describeUpgrade(next)
	if err != nil {
		return nil, err
	}
	result.Changes = append(result.Changes, change...)
	if dryRun {
		return result, nil
	}
	if err := g.exchange(next); err != nil {
		return nil, fmt.Errorf("upgrade: %w; the programs that ran before run on", err)
	}
	next, g.programs = g.programs, next
	result.Warnings = append(result.Warnings, g.warnings...)
	if err := os.RemoveAll(filepath.Join(g.dir, upgradeOldDir)); err != nil {
		result.Warnings = append(result.Warnings, fmt.Sprintf("the programs of before are in the kernel yet: %v; the next command removes them", err))
	}
	return result, nil
}

// loadBeside loads the programs of this binary with the maps of the running ones.
func (g *Gateway) loadBeside() (map[string]*ebpf.Program, error) {
	// The same secret: a packet that a program of the one build lets past the stack
	// may meet one of the other at egress.
	spec, err := programSpecs(g.journal.Secret)
	if err != nil {
		return nil, err
	}
	sizeFlowMaps(spec, makingOf(g.maps))
	// What a map begins with would be written into that of the gateway: empty rules into
	// the slot that may be in force.
	for name := range g.maps {
		spec.Maps[name].Contents = nil
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: g.maps})
	if err != nil {
		return nil, loadError(err, g.opt.Verbose)
	}
	defer coll.Close()
	next := map[string]*ebpf.Program{}
	for _, name := range pinnedPrograms {
		next[name] = coll.DetachProgram(name)
	}
	return next, nil
}

// exchange makes next the programs of the gateway, or leaves all as it was.
func (g *Gateway) exchange(next map[string]*ebpf.Program) (err error) {
	aside := filepath.Join(g.dir, upgradeNewDir)
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	resume := func() error { return nil }
	defer func() {
		if err != nil {
			err = errors.Join(err, g.swap(next, g.programs), g.waitForPrograms(), resume(), os.RemoveAll(aside))
		}
	}()
	if err := pinPrograms(next, aside); err != nil {
		return err
	}
	if g.journal.Handover != Handover {
		if resume, err = g.throughKernel(); err != nil {
			return err
		}
	}
	if err := g.swap(g.programs, next); err != nil {
		return err
	}
	if err := g.renamePrograms(); err != nil {
		return err
	}
	// From here on it is done; what is left is put right by any later command.
	if g.journal.Handover != Handover {
		g.journal.Handover = Handover
		g.warn(g.writeJournal())
		g.warn(g.waitForPrograms()) // the last of the old ones must not see the fast path again
		g.warn(resume())
	}
	return nil
}

func (g *Gateway) warn(err error) {
	if err != nil {
		g.warnings = append(g.warnings, err.Error())
	}
}

// throughKernel has the kernel forward all packets: what the programs of one build
// leave in a packet that goes past the stack means nothing to those of the other. When
// it returns, no such packet is on its way. resume ends that.
func (g *Gateway) throughKernel() (resume func() error, err error) {
	was := g.journal.Handover
	var fast []uint32 // both generations: the other one may come into force by itself
	resume = func() error {
		var errs []error
		for _, slot := range fast {
			_, err := g.switchFast(slot, true)
			errs = append(errs, err)
		}
		if g.journal.Handover == 0 { // it has failed
			g.journal.Handover = was
			errs = append(errs, g.writeJournal())
		}
		return errors.Join(errs...)
	}
	g.journal.Handover = 0 // in between, and whenever this is cut short
	if err := g.writeJournal(); err != nil {
		return resume, err
	}
	for slot := range uint32(2) {
		switched, err := g.switchFast(slot, false)
		if err != nil {
			return resume, err
		}
		if switched {
			fast = append(fast, slot)
		}
	}
	return resume, g.waitForPrograms()
}

// renamePrograms makes those that were pinned aside the gateway's: the first of the
// two renames is the change.
func (g *Gateway) renamePrograms() error {
	own, old := filepath.Join(g.dir, programsDir), filepath.Join(g.dir, upgradeOldDir)
	if err := os.Rename(own, old); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(g.dir, upgradeNewDir), own); err != nil {
		return errors.Join(err, os.Rename(old, own))
	}
	return nil
}

// describeUpgrade tells what changes, for people.
func (g *Gateway) describeUpgrade(next map[string]*ebpf.Program) ([]string, error) {
	before, err := buildOf(g.programs)
	if err != nil {
		return nil, err
	}
	after, err := buildOf(next)
	if err != nil {
		return nil, err
	}
	all, err := g.attachments()
	if err != nil {
		return nil, err
	}
	var on []string
	for _, a := range all {
		if !slices.Contains(on, a.hook.ifname) {
			on = append(on, a.hook.ifname)
		}
	}
	lines := []string{fmt.Sprintf("programs of build %s in place of build %s on %s; configuration, flows and counters stay", after, before, strings.Join(on, ", "))}
	if g.journal.Handover != Handover {
		lines = append(lines, "the kernel forwards all packets meanwhile, and copies of that moment may be skipped: "+
			"what the programs hand each other is not the same in both builds")
	}
	return lines, nil
}
