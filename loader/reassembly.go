package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Everything here is called inside the gateway's network namespace.
//
// Fragments that come in out of order take a way round through the kernel's own
// reassembly (headers/reassembly.h): a veth pair, one end of which is in a network
// namespace that has nothing but that end and the reassembly. No process and no
// mount keeps this namespace, but the pinned netfilter links in it: what they hold
// goes with them, so a run that was killed at any point leaves a folder of pins, or
// nothing. The gateway's own namespace reassembles no more than it did before, and
// a flood of fragments fills the memory that is set aside in the other one.
const (
	reassemblyDir  = "reassembly" // folder of the pins, beside maps, programs and links
	reassemblyNear = "tg-frag0"
	reassemblyFar  = "tg-frag1"
	// The alias tells our interface from one that happens to have its name.
	reassemblyAlias = "tapgate: puts fragments in order"

	reassemblyBack = "tapgate_back"
)

// reassemblyFamily is one of the two that are reassembled, each by a link of its own.
type reassemblyFamily struct {
	pin      string
	protocol link.NetfilterProtocolFamily
	any      string // all addresses
	proc     string // there if the kernel has the family
}

var reassemblyFamilies = []reassemblyFamily{
	{"defrag4", link.NetfilterProtoIPv4, "0.0.0.0/0", "/proc/sys/net/ipv4"},
	{"defrag6", link.NetfilterProtoIPv6, "::/0", "/proc/sys/net/ipv6"},
}

// pinnedReassembly are the names in the folder.
var pinnedReassembly = []string{"defrag4", "defrag6", reassemblyBack}

// reassembly is that way round, of one gateway.
type reassembly struct {
	dir   string
	ns    *namespace
	table *ebpf.Map // tells the programs where it is
	back  *ebpf.Program
}

func (g *Gateway) reassembly() *reassembly {
	return &reassembly{
		dir: filepath.Join(g.dir, reassemblyDir), ns: g.ns,
		table: g.maps[tapgateMapTgReassembly], back: g.programs[tapgateProgTapgateBack],
	}
}

// reassembles says whether a generation has inbound fragments to put in order.
func (r *record) reassembles() bool {
	return r.Gateway != nil && slices.ContainsFunc(r.Members, func(m memberRecord) bool { return m.Role == RoleExternal })
}

// prepareReassembly makes the way for fragments out of order, if a generation needs
// it and it is not there. Where the kernel has no means, a warning tells.
func (g *Gateway) prepareReassembly(next *record) error {
	if !next.reassembles() {
		return nil
	}
	r := g.reassembly()
	if r.standing() == nil {
		return nil
	}
	if err := r.remove(); err != nil {
		return err
	}
	if err := probeReassembly(); err != nil {
		g.warnings = append(g.warnings, fmt.Sprintf("%s on this kernel (%v)", fragmentsLost, err))
		return nil
	}
	if err := r.build(); err != nil {
		return fmt.Errorf("set up the reassembly of fragments: %w", err)
	}
	return nil
}

const fragmentsLost = "fragments from outside that come out of order are lost"

// convergeReassembly takes it away where no live generation needs it.
func (g *Gateway) convergeReassembly() error {
	if slices.ContainsFunc(g.live(), func(gen generation) bool { return gen.reassembles() }) {
		return nil
	}
	if err := g.reassembly().remove(); err != nil {
		return fmt.Errorf("take away the reassembly of fragments: %w", err)
	}
	return nil
}

// statusReassembly tells what becomes of fragments that come in out of order, and
// what is wrong with it where the kernel has the means.
func (g *Gateway) statusReassembly() (reordered bool, problem string) {
	if !g.active.reassembles() {
		return false, ""
	}
	err := g.reassembly().standing()
	if err == nil || probeReassembly() != nil {
		return err == nil, ""
	}
	return false, fmt.Sprintf("%s: %v; apply again", fragmentsLost, err)
}

// build makes it in steps that leave nothing behind but pins in the folder.
func (r *reassembly) build() (err error) {
	if err := os.Mkdir(r.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.remove())
		}
	}()
	var mac [6]byte
	err = inNewNetns(func() error {
		near, far, err := makeReassemblyPair()
		if err != nil {
			return err
		}
		copy(mac[:], far.Attrs().HardwareAddr)
		for _, f := range reassemblyFamilies {
			if !pathExists(f.proc) {
				continue
			}
			l, err := attachDefrag(f.protocol)
			if err != nil {
				return err
			}
			err = l.Pin(filepath.Join(r.dir, f.pin))
			if err := errors.Join(err, l.Close()); err != nil {
				return err
			}
		}
		if err := boundReassembly(); err != nil {
			return err
		}
		if err := netlink.LinkSetNsFd(near, r.ns.fd); err != nil {
			return fmt.Errorf("bring %s into the gateway's network namespace: %w", reassemblyNear, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	near, err := r.near()
	if err != nil {
		return err
	}
	if near == nil {
		return fmt.Errorf("%s has vanished", reassemblyNear)
	}
	// Our end says nothing by itself, neither does it take part in anything.
	quiet := "/proc/sys/net/ipv6/conf/" + reassemblyNear + "/disable_ipv6"
	if err := os.WriteFile(quiet, []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := netlink.LinkSetUp(near); err != nil {
		return fmt.Errorf("switch on %s: %w", reassemblyNear, err)
	}
	index := near.Attrs().Index
	if err := upsertTCX(r.back, filepath.Join(r.dir, reassemblyBack), r.hook(index)); err != nil {
		return fmt.Errorf("attach to %s: %w", reassemblyNear, err)
	}
	// From now on the programs use it.
	return r.table.Put(uint32(0), tapgateTgReassemblyLink{Ifindex: uint32(index), Mac: mac})
}

func (r *reassembly) hook(ifindex int) hook {
	return hook{ifindex: ifindex, ifname: reassemblyNear, first: true}
}

// near finds our end of the pair, nil if there is none.
func (r *reassembly) near() (netlink.Link, error) {
	l, err := netlink.LinkByName(reassemblyNear)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for %s: %w", reassemblyNear, err)
	}
	if l.Attrs().Alias != reassemblyAlias {
		return nil, nil
	}
	return l, nil
}

// standing is nil if all of it is there and in use.
func (r *reassembly) standing() error {
	var use tapgateTgReassemblyLink
	if err := r.table.Lookup(uint32(0), &use); err != nil {
		return fmt.Errorf("read the way to the reassembly: %w", err)
	}
	if use.Ifindex == 0 {
		return errors.New("it is not set up")
	}
	near, err := r.near()
	if err != nil {
		return err
	}
	if near == nil || near.Attrs().Index != int(use.Ifindex) {
		return fmt.Errorf("interface %s is gone", reassemblyNear)
	}
	if near.Attrs().Flags&unix.IFF_UP == 0 || !hasCarrier(near) {
		return fmt.Errorf("interface %s is down", reassemblyNear)
	}
	for _, f := range reassemblyFamilies {
		if pathExists(f.proc) && !pathExists(filepath.Join(r.dir, f.pin)) {
			return fmt.Errorf("its link %s is gone", f.pin)
		}
	}
	id, _, err := pinnedTCX(filepath.Join(r.dir, reassemblyBack))
	if err != nil {
		return err
	}
	attached, err := queryTCX(r.hook(int(use.Ifindex)))
	if err != nil {
		return err
	}
	own, err := programID(r.back)
	if err != nil {
		return err
	}
	if running, here := findLink(attached, id); id == 0 || !here || running != own {
		return fmt.Errorf("its program is not attached to %s", reassemblyNear)
	}
	return nil
}

// remove takes away whatever there is of it.
func (r *reassembly) remove() error {
	if !pathExists(r.dir) {
		return nil // the folder is made first
	}
	if err := r.table.Put(uint32(0), tapgateTgReassemblyLink{}); err != nil {
		return fmt.Errorf("forget the way to the reassembly: %w", err)
	}
	errs := []error{removeTCX(filepath.Join(r.dir, reassemblyBack))}
	// The other end would take it along, but some time later.
	near, err := r.near()
	errs = append(errs, err)
	if near != nil {
		errs = append(errs, netlink.LinkDel(near))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(r.dir) // the links' last references, and the namespace's
}

// attachDefrag switches reassembly on in the namespace of the calling thread, for
// as long as the link lives. The program that it asks for lets everything pass.
func attachDefrag(family link.NetfilterProtocolFamily) (link.Link, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "tapgate_defrag", Type: ebpf.Netfilter, AttachType: ebpf.AttachNetfilter, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1 /* NF_ACCEPT */), asm.Return()},
	})
	if err != nil {
		return nil, fmt.Errorf("load a netfilter program: %w", err)
	}
	defer p.Close()
	const ipDefrag = 1 // BPF_F_NETFILTER_IP_DEFRAG
	l, err := link.AttachNetfilter(link.NetfilterOptions{
		Program: p, ProtocolFamily: family, Hook: link.NetfilterInetPreRouting, Priority: -128, NetfilterFlags: ipDefrag,
	})
	if err != nil {
		return nil, fmt.Errorf("attach a netfilter program that reassembles: %w", err)
	}
	return l, nil
}

// probeReassembly tries all that is needed in a namespace that ends with the probe.
func probeReassembly() error {
	if !haveTCX() {
		return errors.New("the kernel has no TCX")
	}
	if err := features.HaveProgramType(ebpf.Netfilter); err != nil {
		return fmt.Errorf("netfilter programs: %w", err)
	}
	return inNewNetns(func() error {
		if _, _, err := makeReassemblyPair(); err != nil {
			return err
		}
		for _, f := range reassemblyFamilies {
			if !pathExists(f.proc) {
				continue
			}
			l, err := attachDefrag(f.protocol)
			if err != nil {
				return err
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
		return nil
	})
}
