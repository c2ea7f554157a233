package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"tapgate/loader"
	"tapgate/test/lab"
	"tapgate/test/model"
)

// gateway is the lab whose loader says what configurations mean, and in whose network
// namespace the programs run: its interfaces, routes, neighbours and sockets are real.
type gateway struct {
	*lab.Lab
	gw     *loader.Gateway
	dir    string        // of the state
	tapIn  *ebpf.Program // as the loader has loaded it
	ports  []model.Ports // that masquerade uses where a rule says nothing
	macs   map[int][6]byte
	scenes []*scene
}

// behindRemote are networks that are reached by a router outside.
var behindRemote = map[string]string{"198.51.100.0/24": "203.0.113.8", "2001:db8:99::/64": "2001:db8:113::8"}

// newGateway makes one, with all scenarios put in force once.
func newGateway(t testing.TB) *gateway {
	t.Helper()
	l, err := lab.New(lab.Prefix("tgrn"), lab.SilentSensor(), lab.SecondInternal())
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{Lab: l, macs: map[int][6]byte{}}
	t.Cleanup(func() {
		if g.tapIn != nil {
			g.tapIn.Close()
		}
		if g.gw != nil {
			err = g.gw.Close()
		}
		if err := errors.Join(err, l.Close()); err != nil {
			t.Error(err)
		}
	})
	if err = errors.Join(g.Gateway.Do(g.addNeighbours), g.load()); err != nil {
		t.Fatal(err)
	}
	if g.ports, err = hostPorts(g.Gateway); err != nil {
		t.Fatal(err)
	}
	for _, s := range scenarios {
		sc, err := g.takeScene(s)
		if err != nil {
			t.Fatal(err)
		}
		g.scenes = append(g.scenes, sc)
	}
	return g
}

// load has the loader load the programs.
func (g *gateway) load() error {
	bpffs, err := g.MountBPFFS()
	if err != nil {
		return err
	}
	opt := loader.Options{Netns: g.Gateway.Name, BPFFS: bpffs}
	if _, err := loader.Apply(opt, scenarios[0].config()); err != nil {
		return err
	}
	if g.gw, err = loader.Open(opt, loader.ReadWrite); err != nil {
		return err
	}
	status, err := g.gw.Status()
	if err != nil {
		return err
	}
	g.dir = status.State
	g.tapIn, err = ebpf.LoadPinnedProgram(filepath.Join(g.dir, "programs", "tapgate_tap_in"), nil)
	return err
}

// macOf is the address of a host: whose it is can be read in it.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As16()
	return append(net.HardwareAddr{2, 1}, b[12:]...)
}

// addNeighbours has the kernel know everybody.
func (g *gateway) addNeighbours() error {
	for name, z := range gateZones {
		link, err := netlink.LinkByIndex(z.ifindex)
		if err != nil {
			return fmt.Errorf("zone %s: %w", name, err)
		}
		g.macs[z.ifindex] = [6]byte(link.Attrs().HardwareAddr)
	}
	for _, a := range append(append(append(append([]netip.Addr{}, insiders...), seconds...), managers...), remotes...) {
		if nextHop(a) != a {
			continue
		}
		family := netlink.FAMILY_V4
		if a.Is6() {
			family = netlink.FAMILY_V6
		}
		err := netlink.NeighSet(&netlink.Neigh{LinkIndex: behind(a), Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: macOf(a)})
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", a, err)
		}
	}
	for to, via := range behindRemote {
		dst := netip.MustParsePrefix(to)
		err := netlink.RouteReplace(&netlink.Route{
			LinkIndex: external, Gw: netip.MustParseAddr(via).AsSlice(),
			Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
		})
		if err != nil {
			return fmt.Errorf("route to %s: %w", to, err)
		}
	}
	return nil
}

// nextHop is who gets a packet for an address: the host itself, or a router outside.
func nextHop(a netip.Addr) netip.Addr {
	for to, via := range behindRemote {
		if netip.MustParsePrefix(to).Contains(a) {
			return netip.MustParseAddr(via)
		}
	}
	return a
}

// way is how packets to an address leave.
func (g *gateway) way(dst netip.Addr) (model.Way, bool) {
	if !contains(insiders, dst) && !contains(seconds, dst) && !contains(managers, dst) && !contains(remotes, dst) {
		return model.Way{}, false
	}
	return model.Way{To: [6]byte(macOf(nextHop(dst))), From: g.macs[behind(dst)]}, true
}

// behind says by which interface a host's packets come in.
func behind(a netip.Addr) int {
	for _, z := range gateZones {
		for _, n := range z.nets {
			if n.Contains(a) {
				return z.ifindex
			}
		}
	}
	return external
}

// hostPorts are the ports that masquerade uses where a rule says nothing.
func hostPorts(h *lab.Host) (ranges []model.Ports, err error) {
	err = h.Do(func() error {
		text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		if err != nil {
			return err
		}
		var low, high uint16
		if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
			return err
		}
		ranges = []model.Ports{{First: 1024, Last: low - 1}, {First: high + 1, Last: 65535}}
		return nil
	})
	return ranges, err
}
