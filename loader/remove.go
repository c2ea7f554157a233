package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// Detach takes the gateway of a namespace away. Nothing to take away is done
// already. With opt.Force it also removes state that this binary does not
// understand: links and pins go, and what else that state changed is put back
// only if its journal can be read.
func Detach(opt Options) (*Result, error) {
	g, err := openAnyBuild(opt, ReadWrite)
	switch {
	case err == nil:
		res, err := g.Remove()
		return res, errors.Join(err, g.Close(), sweep(opt))
	case errors.Is(err, ErrNotAttached):
		return detachLeftovers(opt)
	case errors.Is(err, ErrState):
		return detachForeign(opt, err)
	}
	return nil, err
}

// Remove takes everything of this gateway away. The Gateway can only be closed
// afterwards.
func (g *Gateway) Remove() (*Result, error) {
	result := &Result{}
	for _, m := range g.active.Members {
		if len(m.Programs) > 0 {
			result.Changes = append(result.Changes, "detached from "+m.Interface)
		}
	}
	if g.active.Gateway != nil {
		if err := g.ns.do(func() error { return g.stopTranslating(result) }); err != nil { // no reason to stay
			result.Warnings = append(result.Warnings, err.Error())
		}
	}
	err := g.discard()
	result.Warnings = append(result.Warnings, g.warnings...)
	return result, err
}

// stopTranslating puts a generation in force that has no interfaces: the kernel is to
// take over at once and for all of them.
func (g *Gateway) stopTranslating(result *Result) error {
	if err := g.forget(); err != nil { // the other slot may be waiting
		return err
	}
	g.opt.Confirm = 0
	nothing := &plan{record: record{Layout: Layout}}
	if err := g.fillIdle(nothing); err != nil {
		return err
	}
	over := g.cutOver(nothing)
	err := g.commit(nothing)
	over(result)
	return err
}

// discard undoes all that the journal knows, and then the state itself goes
// with one rename: a run that is cut short is finished by the next.
func (g *Gateway) discard() error {
	return g.ns.do(func() error {
		g.active, g.pending = record{Layout: Layout}, nil
		if err := g.converge(); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
		old := filepath.Join(filepath.Dir(g.dir), fmt.Sprintf("old-%s-%d", filepath.Base(g.dir), os.Getpid()))
		if err := os.Rename(g.dir, old); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
		return nil
	})
}

// ClearUnconfirmed takes away what a first configuration has left that was not confirmed
// in time. What somebody has applied since then stays.
func ClearUnconfirmed(opt Options) (*Result, error) {
	g, err := openAnyBuild(opt, ReadWrite)
	switch {
	case err == nil:
		return &Result{}, g.Close()
	case errors.Is(err, ErrUnconfirmed):
		return detachLeftovers(opt)
	}
	return nil, err
}

// detachLeftovers clears up where nothing is in force: after a run that was cut
// short, or after a namespace that is gone.
func detachLeftovers(opt Options) (*Result, error) {
	result := &Result{}
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	dir := opt.stateDir(ns)
	if !pathExists(opt.root()) {
		return result, sweep(opt)
	}
	root, err := lockDir(opt.root(), true, opt.lockTimeout())
	if err != nil {
		return nil, err
	}
	found, err := removeLeftovers(dir)
	if pathExists(dir) {
		found = true
		lock, lockErr := lockDir(dir, true, opt.lockTimeout())
		if lockErr == nil {
			own, nsErr := openNamespace(opt.Netns)
			if nsErr == nil {
				g, openErr := openLocked(opt, own, dir, lock)
				if openErr == nil {
					switch mine := g.mine() == nil; {
					case mine && g.active.Serial != 0: // somebody has applied meanwhile
						found = false
					case !mine:
						g.journal = journal{} // of a namespace that is gone
						fallthrough
					default:
						openErr = g.discard()
					}
					openErr = errors.Join(openErr, g.Close())
				}
				lockErr = openErr
			} else {
				lockErr = errors.Join(nsErr, lock.unlock())
			}
		}
		err = errors.Join(err, lockErr)
	}
	err = errors.Join(err, root.unlock())
	if found && err == nil {
		result.Changes = append(result.Changes, "cleared away what an earlier run left")
	}
	return result, errors.Join(err, sweep(opt))
}

// detachForeign removes pinned state of another layout by force.
func detachForeign(opt Options, why error) (*Result, error) {
	if !opt.Force {
		return nil, why
	}
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	dir := opt.stateDir(ns)
	lock, err := lockDir(dir, true, opt.lockTimeout())
	if err != nil {
		return nil, err
	}
	defer lock.unlock()
	pins, err := listLinkPins(dir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, pin := range pins {
		err := removeTCX(filepath.Join(dir, linksDir, fmt.Sprint(pin.ifindex), pin.program))
		if !errors.Is(err, ErrState) { // no link, but something that goes with the folder
			errs = append(errs, err)
		}
	}
	result := &Result{Changes: []string{"removed state of another tapgate from " + dir}}
	g := &Gateway{opt: opt, ns: ns, dir: dir}
	if !g.salvageJournal() {
		result.Warnings = []string{"offload settings, qdiscs and sysctls (as net.ipv4.ip_forward) that it changed are not known and stay as they are"}
	}
	errs = append(errs, ns.do(func() error {
		return errors.Join(g.restoreSysctls(), removeAllFilters(), g.dropQdiscs(nil), g.restoreOffloads(nil))
	}), os.RemoveAll(dir))
	return result, errors.Join(errors.Join(errs...), sweep(opt))
}

// salvageJournal reads the journal of state that is not understood as a whole.
func (g *Gateway) salvageJournal() bool {
	m, err := ebpf.LoadPinnedMap(filepath.Join(g.dir, mapsDir, tapgateMapTgRecords), nil)
	if err != nil {
		return false
	}
	defer m.Close()
	var j journal
	if m.Type() != ebpf.Array || m.KeySize() != 4 || readRecord(m, journalKey, &j) != nil || j.Layout != Layout || j.Cookie != g.ns.cookie {
		return false
	}
	g.journal = j
	return true
}

// sweep removes the folder above when it is empty, and the BPF filesystem if it
// was mounted by us.
func sweep(opt Options) error {
	if pathExists(opt.root()) {
		root, err := lockDir(opt.root(), true, opt.lockTimeout())
		if err == nil {
			err = removeDead(opt.root())
			// Not empty: another namespace has its state here.
			_ = os.Remove(opt.root())
			err = errors.Join(err, root.unlock())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return releaseBPFFS(opt.bpffs())
}

// removeDead removes states of namespaces that are gone.
func removeDead(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(root, e.Name())
		lock, err := lockDir(dir, true, 0)
		if err != nil {
			continue // in use, so not dead
		}
		if isDead(dir) {
			errs = append(errs, os.RemoveAll(dir))
		}
		errs = append(errs, lock.unlock())
	}
	return errors.Join(errs...)
}

// isDead says whether the namespace of a state is gone: nobody has a namespace of
// that number, and none of the links is alive; state without links says nothing.
// Or the number is another one's by now, which the kernel gives away again at once.
func isDead(dir string) bool {
	if holder := holderOf(filepath.Base(dir)); holder != "" {
		was, now := cookieOfState(dir), cookieOf(holder)
		return was != 0 && now != 0 && was != now
	}
	pins, err := listLinkPins(dir)
	if err != nil || len(pins) == 0 {
		return false
	}
	for _, pin := range pins {
		_, alive, err := pinnedTCX(filepath.Join(dir, linksDir, fmt.Sprint(pin.ifindex), pin.program))
		if err != nil || alive {
			return false
		}
	}
	return true
}

// cookieOf is that of a namespace, 0 if it is not known.
func cookieOf(netns string) uint64 {
	ns, err := openNamespace(netns)
	if err != nil {
		return 0
	}
	defer ns.close()
	return ns.cookie
}

// cookieOfState is that of the namespace which a state was made for, 0 if it is not known.
func cookieOfState(dir string) uint64 {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, mapsDir, tapgateMapTgRecords), nil)
	if err != nil {
		return 0
	}
	defer m.Close()
	var j journal
	if m.Type() != ebpf.Array || m.KeySize() != 4 || readRecord(m, journalKey, &j) != nil {
		return 0
	}
	return j.Cookie
}

// holderOf is the path of a process or a name that holds the namespace of that inode,
// "" if there is none.
func holderOf(inode string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && target == "net:["+inode+"]" {
			return l
		}
	}
	for _, folder := range netnsFolders {
		entries, _ := os.ReadDir(folder)
		for _, e := range entries {
			path := filepath.Join(folder, e.Name())
			if _, n, err := nsIdentity(path, -1); err == nil && fmt.Sprint(n) == inode {
				return path
			}
		}
	}
	return ""
}
