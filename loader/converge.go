package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// converge takes away what the live generations (pending.go) do not need: programs,
// qdiscs, settings, addresses and next hops that an earlier change left, finished
// or not. Forwarding is switched on here, too: before the generation is in force
// the machine would forward what nobody judges. It runs before and after each change, and may itself be cut short.
func (g *Gateway) converge() error {
	wanted := map[int][]string{}
	dmz, configured := map[int]bool{}, map[int]bool{}
	for _, gen := range g.live() {
		for _, m := range gen.Members {
			configured[m.Ifindex] = true
			wanted[m.Ifindex] = append(slices.Clone(wanted[m.Ifindex]), m.Programs...)
			dmz[m.Ifindex] = dmz[m.Ifindex] || m.Role == RoleDMZ
		}
	}
	// First of all: what forwards by our doing must not when nobody judges it.
	errs := []error{g.convergeSlow(), g.restoreSysctls(), g.dropPrograms(wanted)}
	errs = append(errs, g.dropQdiscs(configured), g.restoreOffloads(dmz), g.dropNexthops(), g.convergeOutside(), g.convergeReassembly(), g.setSysctls())
	if errors.Join(errs...) == nil {
		errs = append(errs, g.convergeFast())
	}

	before := g.journal.entries()
	if errors.Join(errs...) == nil {
		keep := func(t touched) bool { return len(wanted[t.Ifindex]) > 0 }
		g.journal.Touched = keepIf(g.journal.Touched, keep)
		g.journal.Qdiscs = keepIf(g.journal.Qdiscs, func(t touched) bool {
			have, err := ingressQdisc(t.Ifindex)
			return err == nil && have != "" && configured[t.Ifindex]
		})
		g.journal.Offloads = keepIf(g.journal.Offloads, func(o offloadEntry) bool { return dmz[o.Ifindex] })
		g.journal.Sysctls = keepIf(g.journal.Sysctls, func(e sysctlEntry) bool { return g.needsSysctl(e.sysctl) })
		if g.journal.entries() != before {
			errs = append(errs, g.writeJournal())
		}
	}
	return errors.Join(errs...)
}

// entries is how many there are, which tells whether some have gone.
func (j *journal) entries() int {
	return len(j.Touched) + len(j.Qdiscs) + len(j.Offloads) + len(j.Sysctls)
}

func keepIf[T any](list []T, keep func(T) bool) []T {
	return slices.DeleteFunc(list, func(t T) bool { return !keep(t) })
}

// dropMoved detaches programs from interfaces that were moved to another network
// namespace, where they would go on with our maps. It tells which.
func (g *Gateway) dropMoved() (told []string, err error) {
	pins, err := listLinkPins(g.dir)
	errs := []error{err}
	for _, pin := range pins {
		h := hookOf(pin.program, pin.ifindex, g.nameOf(pin.ifindex))
		moved, err := movedAway(pin.program, g.linkDir(pin.ifindex), h)
		errs = append(errs, err)
		if moved {
			told = append(told, fmt.Sprintf("interface %s was moved to another network namespace with %s on it: "+
				"detached from it; apply again when it is back, or without it", h.ifname, pin.program))
			errs = append(errs, removeTCX(filepath.Join(g.linkDir(pin.ifindex), pin.program)))
		}
	}
	return told, errors.Join(errs...)
}

// dropPrograms detaches programs from interfaces that do not want them: taps
// first, and delivery once none of them can be running any more, since a copy
// without delivery would reach the sensor's network unfinished. What goes here and
// after it may be in use by programs that read the control word before: it waits for those.
func (g *Gateway) dropPrograms(wanted map[int][]string) error {
	pins, err := listLinkPins(g.dir)
	errs := []error{err, g.waitForPrograms()}
	dropped, err := g.dropKind(tapPrograms, pins, wanted)
	errs = append(errs, err)
	if dropped {
		errs = append(errs, g.waitForPrograms())
	}
	_, err = g.dropKind(dmzPrograms, pins, wanted)
	errs = append(errs, err)
	dirs, err := os.ReadDir(filepath.Join(g.dir, linksDir))
	errs = append(errs, err)
	for _, d := range dirs {
		if n, err := strconv.Atoi(d.Name()); err == nil && len(wanted[n]) == 0 {
			err := os.Remove(filepath.Join(g.dir, linksDir, d.Name()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// dropKind detaches some programs from interfaces that do not want them. It says
// whether there was any.
func (g *Gateway) dropKind(programs []string, pins []linkPin, wanted map[int][]string) (dropped bool, err error) {
	var errs []error
	for _, pin := range pins {
		if slices.Contains(programs, pin.program) && !slices.Contains(wanted[pin.ifindex], pin.program) {
			dropped = true
			h := hookOf(pin.program, pin.ifindex, g.nameOf(pin.ifindex))
			errs = append(errs, detachProgram(pin.program, h, g.linkDir(pin.ifindex)))
		}
	}
	for _, t := range g.journal.Touched {
		for _, program := range programs {
			if slices.Contains(wanted[t.Ifindex], program) {
				continue
			}
			h := hookOf(program, t.Ifindex, t.Interface)
			filters, err := listFilters(h)
			errs = append(errs, err)
			if _, ours := ownFilter(filters, program); ours {
				dropped = true
				errs = append(errs, removeFilters(program, h))
			}
		}
	}
	return dropped, errors.Join(errs...)
}

// waitForPrograms returns when no program runs that may have read the control
// word, or been on an interface, before the call: an update of an outer map
// waits for that, also if it changes nothing.
func (g *Gateway) waitForPrograms() error {
	outer := g.maps[tapgateMapTgTargets]
	var inner *ebpf.Map
	if err := outer.Lookup(g.slot, &inner); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		return fmt.Errorf("wait for programs: %w", err)
	}
	defer inner.Close()
	if err := outer.Put(g.slot, inner); err != nil {
		return fmt.Errorf("wait for programs: %w", err)
	}
	return nil
}

func (g *Gateway) nameOf(ifindex int) string {
	for _, gen := range g.live() {
		for _, m := range gen.Members {
			if m.Ifindex == ifindex {
				return m.Interface
			}
		}
	}
	for _, t := range g.journal.Touched {
		if t.Ifindex == ifindex {
			return t.Interface
		}
	}
	return "index " + strconv.Itoa(ifindex)
}

// dropQdiscs removes clsact where we added it and nobody uses it, once the
// interface is not configured any more: the kernel drops what an interface is
// sending when the qdisc comes or goes, so that must not happen with a mirror.
func (g *Gateway) dropQdiscs(configured map[int]bool) error {
	var errs []error
	for _, t := range g.journal.Qdiscs {
		if configured[t.Ifindex] && attachKindFor(g.opt.Attach) == AttachClsact {
			continue
		}
		l, err := t.link()
		errs = append(errs, err)
		if l != nil {
			errs = append(errs, removeClsact(t.Ifindex))
		}
	}
	return errors.Join(errs...)
}

// restoreOffloads switches on again what we switched off and is still off.
func (g *Gateway) restoreOffloads(dmz map[int]bool) error {
	var errs []error
	for _, o := range g.journal.Offloads {
		if dmz[o.Ifindex] {
			continue
		}
		l, err := o.link()
		errs = append(errs, err)
		if l == nil {
			continue
		}
		// What the driver no longer does (a guest that took its offers back)
		// is not ours to insist on, and must not keep the rest from going.
		if err := setFeatures(l.Attrs().Name, o.Features, true); err != nil {
			g.warnings = append(g.warnings, err.Error())
		}
	}
	return errors.Join(errs...)
}

// link finds the interface, under whatever name it has now; nil if it is gone
// or its index belongs to another one.
func (t touched) link() (netlink.Link, error) {
	l, err := netlink.LinkByIndex(t.Ifindex)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", t.Interface, err)
	}
	if l.Attrs().Name != t.Interface && l.Attrs().HardwareAddr.String() != t.MAC {
		return nil, nil
	}
	return l, nil
}

// dropNexthops forgets addresses that no target of the live generations needs.
func (g *Gateway) dropNexthops() error {
	targets, err := g.targetsInForce()
	if err != nil {
		return err
	}
	hops := g.maps[tapgateMapTgNexthops]
	var key tapgateTgNexthopKey
	var hop tapgateTgNexthop
	var stale []tapgateTgNexthopKey
	for it := hops.Iterate(); it.Next(&key, &hop); {
		if !g.needsNexthop(key, hop, targets) {
			stale = append(stale, key)
		}
	}
	for _, key := range stale {
		if err := hops.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget a next hop: %w", err)
		}
	}
	return nil
}

func (g *Gateway) needsNexthop(key tapgateTgNexthopKey, hop tapgateTgNexthop, targets []tapgateTgTarget) bool {
	for _, t := range targets {
		if hop.Kind == tapgateTgNexthopKindTG_NEXTHOP_SENSOR && t.Ifindex == key.Ifindex &&
			t.Nexthop == key.Address && t.Neigh == hop.Neigh {
			return true
		}
	}
	if hop.Kind != tapgateTgNexthopKindTG_NEXTHOP_OURS {
		return false
	}
	address := netip.AddrFrom16(key.Address).Unmap().String()
	return slices.ContainsFunc(g.live(), func(gen generation) bool {
		return slices.ContainsFunc(gen.Members, func(m memberRecord) bool {
			return uint32(m.Ifindex) == key.Ifindex && slices.Contains(m.Addresses, address)
		})
	})
}

// targetsInForce are those of the live generations.
func (g *Gateway) targetsInForce() (targets []tapgateTgTarget, err error) {
	for _, gen := range g.live() {
		list, err := g.targetsOf(gen)
		if err != nil {
			return nil, err
		}
		targets = append(targets, list...)
	}
	return targets, nil
}

func (g *Gateway) targetsOf(gen generation) ([]tapgateTgTarget, error) {
	var inner *ebpf.Map
	if err := g.maps[tapgateMapTgTargets].Lookup(gen.slot, &inner); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("read the targets in force: %w", err)
	}
	defer inner.Close()
	var targets []tapgateTgTarget
	for _, m := range gen.Mirrors {
		for _, r := range m.Targets {
			var t tapgateTgTarget
			if err := inner.Lookup(r.Number, &t); err != nil {
				return nil, fmt.Errorf("read target %d: %w", r.Number, err)
			}
			targets = append(targets, t)
		}
	}
	return targets, nil
}
