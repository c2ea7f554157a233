package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func names(stem string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = stem + strconv.Itoa(i+1)
	}
	return all
}

// newNetwork makes the hosts of a network and the cables to the gateway.
func (l *Lab) newNetwork(n network) ([]*Host, error) {
	if len(n.hosts) == 0 {
		return nil, errors.New("has no hosts: ask for at least one")
	}
	if n.first+len(n.hosts) > 255 {
		return nil, fmt.Errorf("%d hosts are more than its addresses", len(n.hosts))
	}
	hosts := make([]*Host, len(n.hosts))
	for i, name := range n.hosts {
		h, err := l.newHost(name, false)
		if err != nil {
			return nil, err
		}
		hosts[i] = h
	}
	gw := end{ns: l.Gateway.ns, ifname: n.ifname, mac: macFor(n, 1), index: n.index}
	ends := make([]end, len(hosts))
	for i, h := range hosts {
		ends[i] = end{ns: h.ns, ifname: "eth0", mac: macFor(n, n.first+i)}
	}
	if len(ends) == 1 {
		if err := l.cable(gw, ends[0]); err != nil {
			return nil, err
		}
	} else if err := l.patch(n, append([]end{gw}, ends...)); err != nil {
		return nil, err
	}

	// The hosts first: the gateway's end then comes up with its carrier on.
	for i, h := range hosts {
		addresses := l.addresses(n, n.first+i)
		if n.silent {
			addresses = nil
		}
		if err := h.setUp(ends[i], addresses); err != nil {
			return nil, err
		}
	}
	if err := l.Gateway.setUp(gw, l.addresses(n, 1)); err != nil {
		return nil, err
	}
	for _, h := range hosts {
		if n.silent {
			continue
		}
		if err := h.addRoutes(n); err != nil {
			return nil, err
		}
	}
	return hosts, nil
}

// end is one end of a cable.
type end struct {
	ns     *namespace
	ifname string
	mac    net.HardwareAddr
	index  int // 0: the kernel's choice
}

// macFor gives addresses that say whose they are: 02:00 and the IPv4 address.
func macFor(n network, host int) net.HardwareAddr {
	ip := hostBits(n.prefix4, host).Addr().As4()
	return append(net.HardwareAddr{2, 0}, ip[:]...)
}

func (l *Lab) addresses(n network, host int) []netip.Prefix {
	all := []netip.Prefix{hostBits(n.prefix4, host)}
	if l.ipv6 {
		all = append(all, hostBits(n.prefix6, host))
	}
	return all
}

func (l *Lab) cable(a, b end) error {
	return a.ns.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU, attrs.Index = a.ifname, a.mac, l.mtu, a.index
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: b.ifname, PeerHardwareAddr: b.mac,
			PeerNamespace: netlink.NsFd(b.ns.file.Fd()), PeerMTU: uint32(l.mtu),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("make cable %s %s to %s %s: %w", a.ns.name, a.ifname, b.ns.name, b.ifname, err)
		}
		return nil
	})
}

// patch joins several ends by a bridge in a namespace of its own, which
// forwards what a plain switch would rather keep (LLDP and such), and says
// nothing by itself.
func (l *Lab) patch(n network, ends []end) error {
	sw, err := l.newHost("sw-"+n.name, false)
	if err != nil {
		return err
	}
	if l.ipv6 {
		if err := sw.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
			return err
		}
	}
	off, all := false, uint16(0xfff8) // the kernel refuses bits 0 to 2
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "br0", l.mtu
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off, GroupFwdMask: &all}
	err = sw.Do(func() error {
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make bridge in %s: %w", sw.Name, err)
		}
		return netlink.LinkSetUp(bridge)
	})
	if err != nil {
		return err
	}
	for i, e := range ends {
		port := end{ns: sw.ns, ifname: "port" + strconv.Itoa(i), index: 100 + i}
		if err := l.cable(port, e); err != nil {
			return err
		}
		err := sw.Do(func() error {
			link, err := netlink.LinkByName(port.ifname)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMaster(link, bridge); err != nil {
				return fmt.Errorf("put %s on the bridge: %w", port.ifname, err)
			}
			return netlink.LinkSetUp(link)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// setUp gives an interface its addresses and switches it on.
func (h *Host) setUp(e end, addresses []netip.Prefix) error {
	return h.Do(func() error {
		link, err := netlink.LinkByName(e.ifname)
		if err != nil {
			return err
		}
		iface := Interface{Name: e.ifname, Index: link.Attrs().Index, MAC: e.mac}
		for _, p := range addresses {
			addr := &netlink.Addr{IPNet: &net.IPNet{
				IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
			}}
			if p.Addr().Is4() {
				iface.Addr = p
			} else {
				iface.Addr6 = p
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add %s to %s %s: %w", p, h.Name, e.ifname, err)
			}
		}
		h.Interfaces = append(h.Interfaces, iface)
		if len(h.Interfaces) == 1 {
			h.Addr, h.Addr6, h.MAC = iface.Addr.Addr(), iface.Addr6.Addr(), iface.MAC
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("switch on %s %s: %w", h.Name, e.ifname, err)
		}
		return nil
	})
}

// addRoutes: inner hosts have the gateway as their default route. Outside,
// IPv4 has none, as in the internet, which knows only the gateway's address.
func (h *Host) addRoutes(n network) error {
	if n.route4 {
		return h.addDefaultRoute(n)
	}
	return h.addRoute(n.prefix6)
}

func (h *Host) addDefaultRoute(n network) error {
	return errors.Join(h.addRoute(n.prefix4), h.addRoute(n.prefix6))
}

// addRoute sets the default route by the gateway of a network; again is fine.
func (h *Host) addRoute(p netip.Prefix) error {
	if p.Addr().Is6() && !h.lab.ipv6 {
		return nil
	}
	gw := hostBits(p, 1).Addr()
	return h.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		err = netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()})
		if err != nil {
			return fmt.Errorf("add default route by %s in %s: %w", gw, h.Name, err)
		}
		return nil
	})
}

// settle waits until every link has its carrier and no address is tentative.
func (l *Lab) settle() error {
	for _, h := range l.Hosts() {
		var last string
		err := waitUntil(settleTime, func() (ready bool, err error) {
			err = h.Do(func() error {
				last, err = unsettled()
				return err
			})
			return last == "", err
		})
		if err != nil {
			return fmt.Errorf("%s: %s: %w", h.Name, last, err)
		}
	}
	return nil
}

func unsettled() (string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return "", err
	}
	for _, link := range links {
		a := link.Attrs()
		if a.Flags&net.FlagUp == 0 {
			continue // tunl0 and the like, which some kernels put everywhere
		}
		if a.RawFlags&unix.IFF_RUNNING == 0 {
			return a.Name + " has no carrier", nil
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return "", err
		}
		for _, addr := range addrs {
			if addr.Flags&unix.IFA_F_TENTATIVE != 0 {
				return fmt.Sprintf("%s of %s is tentative", addr.IPNet, a.Name), nil
			}
		}
	}
	return "", nil
}

// newHost makes an empty host that speaks only when spoken to: nothing but
// the test shall be on the cables.
func (l *Lab) newHost(name string, forward bool) (*Host, error) {
	ns, err := newNamespace(l.id + "-" + name)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.spaces = append(l.spaces, ns)
	l.mu.Unlock()
	h := &Host{Name: ns.name, lab: l, ns: ns}

	sysctls := map[string]string{}
	if l.ipv6 {
		for _, who := range []string{"all", "default"} {
			dir := filepath.Join("net/ipv6/conf", who)
			sysctls[filepath.Join(dir, "accept_dad")] = "0"
			sysctls[filepath.Join(dir, "accept_ra")] = "0"
			sysctls[filepath.Join(dir, "router_solicitations")] = "0"
			if forward {
				sysctls[filepath.Join(dir, "forwarding")] = "1"
			}
		}
	}
	if forward {
		sysctls["net/ipv4/ip_forward"] = "1"
	}
	for name, value := range sysctls {
		if err := h.Sysctl(name, value); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Sysctl sets a sysctl of the host's network namespace, named by its path
// below /proc/sys: "net/ipv4/ip_forward".
func (h *Host) Sysctl(name, value string) error {
	return h.Do(func() error {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl in %s: %w", h.Name, err)
		}
		return nil
	})
}
