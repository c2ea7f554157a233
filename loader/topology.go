package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// topology is a snapshot of the interfaces of a namespace.
type topology struct {
	links   []netlink.Link // by ifindex
	byIndex map[int]netlink.Link
	addrs   map[int][]address
}

// address is one address of an interface.
type address struct {
	prefix netip.Prefix // our address with the length of its network
	onlink netip.Prefix // what is reached without a router: the same network, or the peer
	usable bool         // can be a sender: not deprecated and not a duplicate
	// What else tells the address that stands for an interface outside.
	global, primary bool // of global scope; neither secondary nor temporary nor being tried
	gone            bool // it is only remembered (resolve_again.go)
}

// readTopology reads the namespace that the calling thread is in.
func readTopology() (*topology, error) {
	links, err := wholeDump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := wholeDump(func() ([]netlink.Addr, error) {
		return netlink.AddrList(nil, netlink.FAMILY_ALL)
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}

	t := &topology{links: links, byIndex: map[int]netlink.Link{}, addrs: map[int][]address{}}
	slices.SortFunc(t.links, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	for _, l := range links {
		t.byIndex[l.Attrs().Index] = l
	}
	for _, a := range addrs {
		t.addrs[a.LinkIndex] = append(t.addrs[a.LinkIndex], makeAddress(a))
	}
	return t, nil
}

// wholeDump repeats a dump that the kernel says was changed halfway.
func wholeDump[T any](dump func() ([]T, error)) (list []T, err error) {
	for range 10 {
		if list, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

func makeAddress(a netlink.Addr) address {
	r := address{
		prefix: prefixOf(a.IPNet),
		usable: a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_DADFAILED) == 0,
		global: a.Scope == unix.RT_SCOPE_UNIVERSE,
		// IFA_F_SECONDARY is IFA_F_TEMPORARY for IPv6.
		primary: a.Flags&(unix.IFA_F_SECONDARY|unix.IFA_F_TENTATIVE) == 0,
	}
	r.onlink = r.prefix
	if a.Peer != nil {
		r.onlink = prefixOf(a.Peer)
	}
	return r
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// find looks a name up as "ip link" does: alternative names count too.
func (t *topology) find(name string) netlink.Link {
	for _, l := range t.links {
		if l.Attrs().Name == name || slices.Contains(l.Attrs().AltNames, name) {
			return l
		}
	}
	return nil
}

// names lists the interfaces that could be meant by a name that is not found.
func (t *topology) names() string {
	var names []string
	for _, l := range t.links {
		if l.Attrs().Flags&net.FlagLoopback == 0 && l.Attrs().Name != reassemblyNear { // ours
			names = append(names, l.Attrs().Name)
		}
	}
	if len(names) == 0 {
		return "none but the loopback"
	}
	return strings.Join(names, ", ")
}

// owner is the interface that has addr, or nil.
func (t *topology) owner(addr netip.Addr) netlink.Link {
	for index, list := range t.addrs {
		for _, a := range list {
			if a.prefix.Addr() == addr {
				return t.byIndex[index]
			}
		}
	}
	return nil
}

// unfit says why no zone can have the interface, or "".
func (t *topology) unfit(l netlink.Link) string {
	a := l.Attrs()
	if a.Flags&net.FlagLoopback != 0 {
		return fmt.Sprintf("%q is the loopback interface, which carries the machine's own traffic only; take an interface to a network", a.Name)
	}
	// An interface in a VRF is routed by itself; ports of everything else
	// hand their packets to the master.
	if master := t.byIndex[a.MasterIndex]; master != nil && master.Type() != "vrf" {
		return fmt.Sprintf("%q is a port of %s %q, where its packets are routed: take %q instead",
			a.Name, master.Type(), master.Attrs().Name, master.Attrs().Name)
	}
	return ""
}

// untapable says why programs cannot copy from or deliver to the interface, or "".
func (t *topology) untapable(l netlink.Link) string {
	if why := t.unfit(l); why != "" {
		return why
	}
	if a := l.Attrs(); a.EncapType != "ether" || len(a.HardwareAddr) != 6 {
		return fmt.Sprintf("%q (type %s) has no Ethernet frames (link/%s): it can be neither tapped nor be on the sensor's side", a.Name, l.Type(), a.EncapType)
	}
	return ""
}

// under returns every interface that the packets of index travel on as well:
// parents of VLANs and the like, ports of bridges and bonds, and the interface
// that a tunnel leaves by, at any depth. index itself is not among them.
func (t *topology) under(index int) map[int]bool {
	seen := map[int]bool{}
	for todo := []int{index}; len(todo) > 0; {
		l := t.byIndex[todo[0]]
		todo = todo[1:]
		if l == nil {
			continue
		}
		for _, below := range t.directlyUnder(l) {
			if below != index && !seen[below] {
				seen[below] = true
				todo = append(todo, below)
			}
		}
	}
	return seen
}

func (t *topology) directlyUnder(l netlink.Link) []int {
	a := l.Attrs()
	var below []int
	// IFLA_LINK of a veth or netkit is its peer, which is beside it. With a
	// namespace id it is an index of another namespace.
	if kind := l.Type(); a.ParentIndex > 0 && a.NetNsID < 0 && kind != "veth" && kind != "netkit" {
		below = append(below, a.ParentIndex)
	}
	for _, other := range t.links {
		if other.Attrs().MasterIndex == a.Index {
			below = append(below, other.Attrs().Index)
		}
	}
	return append(below, tunnelUnder(l)...)
}

// tunnelUnder is where the packets of a tunnel leave: the device it is bound to,
// else the one that the route to its other end takes now.
func tunnelUnder(l netlink.Link) []int {
	var device int
	var remote net.IP
	switch l := l.(type) {
	case *netlink.Vxlan:
		device, remote = l.VtepDevIndex, l.Group
	case *netlink.Geneve:
		remote = l.Remote
	case *netlink.Gretap:
		device, remote = int(l.Link), l.Remote
	default:
		return nil
	}
	if device > 0 {
		return []int{device}
	}
	if remote == nil || remote.IsUnspecified() || remote.IsMulticast() {
		return nil
	}
	routes, err := netlink.RouteGet(remote)
	if err != nil || len(routes) == 0 {
		return nil // no route: nothing leaves
	}
	return []int{routes[0].LinkIndex}
}
