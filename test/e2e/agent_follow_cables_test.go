package e2e

import (
	"net/netip"

	"tapgate/test/lab"
)

// pull takes an interface of the gateway, and what it is connected to, away.
func (f *followed) pull(ifname string) {
	f.t.Helper()
	f.ip(f.Gateway, "link del "+ifname)
}

// plug puts it back, with a new number, and as configured before.
func (f *followed) plug(ifname string, h *lab.Host) {
	f.t.Helper()
	iface, peer := f.Gateway.Interface(ifname), h.Interfaces[0]
	f.ip(f.Gateway, "link add "+ifname+" address "+iface.MAC.String()+" type veth peer name eth0 address "+peer.MAC.String()+" netns "+h.Name)
	f.impatient()
	// The gateway first: what the host asks while nobody is there it asks again after a second.
	f.ip(f.Gateway, "link set "+ifname+" up")
	f.addresses(ifname)
	for _, a := range []netip.Prefix{peer.Addr, peer.Addr6} {
		f.ip(h, "addr add "+a.String()+" dev eth0 nodad")
	}
	f.ip(h, "link set eth0 up")
	f.homeRoutes(h, ifname)
}

// homeRoutes gives a host its default routes by the gateway, if it has such.
func (f *followed) homeRoutes(h *lab.Host, ifname string) {
	f.t.Helper()
	if h == f.out[0] {
		return
	}
	iface := f.Gateway.Interface(ifname)
	f.ip(h, "route replace default via "+iface.Addr.Addr().String())
	f.ip(h, "-6 route replace default via "+iface.Addr6.Addr().String())
}

// addresses gives an interface of the gateway the addresses back that it was made with,
// and the routes that need it.
func (f *followed) addresses(ifname string) {
	f.t.Helper()
	iface := f.Gateway.Interface(ifname)
	for _, a := range []netip.Prefix{iface.Addr, iface.Addr6} {
		f.ip(f.Gateway, "addr replace "+a.String()+" dev "+ifname+" nodad")
	}
	if ifname == "eth0" {
		f.routed()
	}
}
