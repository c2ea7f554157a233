package lab

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
)

// Host is a network namespace with its interfaces. Addr, Addr6 and MAC are
// those of its first interface (eth0); invalid where it has none.
type Host struct {
	Name       string // of its network namespace, as for "ip netns" and --netns
	Addr       netip.Addr
	Addr6      netip.Addr
	MAC        net.HardwareAddr
	Interfaces []Interface

	lab *Lab
	ns  *namespace
}

// Interface is one interface of a host as it was made.
type Interface struct {
	Name  string
	Index int
	MAC   net.HardwareAddr
	Addr  netip.Prefix // the host's own address and the network's length
	Addr6 netip.Prefix
}

// Path is the file of the host's network namespace.
func (h *Host) Path() string { return filepath.Join(netnsDir, h.Name) }

// Interface returns the interface of that name as it was made, or an empty one.
func (h *Host) Interface(name string) Interface {
	for _, i := range h.Interfaces {
		if i.Name == name {
			return i
		}
	}
	return Interface{}
}

// Do runs f in the host's network namespace, on the caller's goroutine with
// its thread held. Sockets made in f stay in the namespace afterwards;
// goroutines started in f do not run in it. May be nested.
func (h *Host) Do(f func() error) error { return h.ns.do(f) }

// SetMTU changes the MTU of an interface, in bytes.
func (h *Host) SetMTU(ifname string, bytes int) error {
	return h.link(ifname, func(l netlink.Link) error { return netlink.LinkSetMTU(l, bytes) })
}

// SetUp switches an interface on or off.
func (h *Host) SetUp(ifname string, up bool) error {
	return h.link(ifname, func(l netlink.Link) error {
		if up {
			return netlink.LinkSetUp(l)
		}
		return netlink.LinkSetDown(l)
	})
}

// SetMAC gives an interface another MAC address. The host says nothing about
// it, so others keep the old one until they ask.
func (h *Host) SetMAC(ifname string, mac net.HardwareAddr) error {
	return h.link(ifname, func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, mac) })
}

func (h *Host) link(ifname string, f func(netlink.Link) error) error {
	return h.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err == nil {
			err = f(link)
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", h.Name, ifname, err)
		}
		return nil
	})
}

// SetTxChecksum says whether an interface leaves checksums to the hardware
// ("tx" of ethtool; on by default). On a veth there is no hardware: the other
// end gets such packets with a checksum that was never finished.
func (h *Host) SetTxChecksum(ifname string, on bool) error {
	return h.feature(ifname, "tx-checksum-ip-generic", on)
}

func (h *Host) feature(ifname, name string, on bool) error {
	return h.Do(func() error {
		tool, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer tool.Close()
		if err := tool.Change(ifname, map[string]bool{name: on}); err != nil {
			return fmt.Errorf("set %s of %s %s to %v: %w", name, h.Name, ifname, on, err)
		}
		return nil
	})
}
