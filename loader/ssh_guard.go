package loader

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What would cut off the admin who puts a configuration in force. His connection ends
// at the gateway itself, so zones and policies do not judge it. What does: a dmz
// interface drops all that comes in, an internal one drops sources that its zone does
// not have, a forward takes packets for its port, and IPv6 forwarding costs the routes
// that router advertisements brought.

// lockOut returns a *ConfigError when cfg would cut off the SSH connection that this
// process was started through, or the next login there. res is what cfg means here, nil
// where it cannot be put in force anyway. It is called in ns. A process that nobody
// reached by SSH, or by an sshd in another network namespace, loses nothing.
func lockOut(cfg Config, res *resolved, ns *namespace) error {
	conns, err := sshConnections(os.Getpid(), ns.inode)
	if err != nil {
		return fmt.Errorf("look for the SSH connection in use: %w", err)
	}
	if len(conns) == 0 {
		return nil
	}
	topo, err := readTopology()
	if err != nil {
		return err
	}
	for _, c := range conns {
		route, link := arrivesBy(topo, c)
		if link == nil {
			continue
		}
		if err := cutByDMZ(cfg, topo, c, link); err != nil {
			return err
		}
		if res == nil || res.gateway == nil {
			continue
		}
		for _, m := range res.members {
			if !topo.untagged(link)[m.index] {
				continue
			}
			if err := cutByZone(cfg, res.gateway, m, c); err != nil {
				return err
			}
		}
		if err := cutByForwarding(cfg, res, c, route, link); err != nil {
			return err
		}
	}
	return nil
}

// cutByDMZ looks for link, and what it is stacked on, among the dmz interfaces.
func cutByDMZ(cfg Config, topo *topology, c connection, link netlink.Link) error {
	index := link.Attrs().Index
	under := topo.under(index)
	for _, z := range cfg.Zones {
		if z.Role != RoleDMZ {
			continue
		}
		for i, name := range z.Interfaces {
			l := topo.find(name)
			if l == nil || (l.Attrs().Index != index && !under[l.Attrs().Index]) {
				continue
			}
			return configErrorf(fmt.Sprintf("%s.interfaces[%d]", zonePath(z), i),
				"your SSH connection from %s comes in on %q, and zone %q (role dmz) drops what comes in: it would be cut off; log in another way, or --force",
				c.peer, name, z.Name)
		}
	}
	return nil
}

// cutByZone holds the connection against what is done to packets that come in on m.
func cutByZone(cfg Config, g *resolvedGateway, m *member, c connection) error {
	switch m.role {
	case RoleInternal:
		if err := cutBySource(cfg, g, m, c); err != nil {
			return err
		}
		// Its zone asks forwards as if it came from outside, where it is translated.
		for _, zone := range g.zonesOf(c.local.Addr()) {
			translated := slices.ContainsFunc(g.nat.Masquerades, func(q Masquerade) bool { return q.From == m.zone && q.To == zone })
			if i := g.forwardFor(zone, c); i >= 0 && translated {
				return takenBy(i, g.nat.Forwards[i], c, "it goes on, but you could not log in there again")
			}
		}
	case RoleExternal:
		if i := g.forwardFor(m.zone, c); i >= 0 {
			return takenBy(i, g.nat.Forwards[i], c, "it would be cut off")
		}
	}
	return nil
}

func takenBy(i int, f Forward, c connection, then string) error {
	return configErrorf(fmt.Sprintf("nat.forwards[%d].port", i),
		"your SSH connection from %s came to port %d of %s, which forward %q takes for itself: %s; give the forward another port or address, or sources without yours, or --force",
		c.peer, c.local.Port(), c.local.Addr(), f.Name, then)
}

// cutBySource: hosts of an internal zone may use no sources but those of its networks.
func cutBySource(cfg Config, g *resolvedGateway, m *member, c connection) error {
	peer := c.peer.Addr()
	networks := g.facts.Inside[m.zone]
	if peer.IsLinkLocalUnicast() && peer.Is6() || slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(peer) }) {
		return nil
	}
	zone := cfg.Zones[slices.IndexFunc(cfg.Zones, func(z Zone) bool { return z.Name == m.zone })]
	wanted := append(slices.Clone(zone.Prefixes), networkOf(peer))
	return configErrorf(zonePath(zone)+".prefixes",
		"your SSH connection from %s comes in on %q, and hosts of zone %q may use no sources but %s: it would be cut off; "+
			"say what else is behind its routers, prefixes: [%s], or --force",
		c.peer, m.name, m.zone, prefixList(networks, "none (it has no address)"), prefixList(wanted, ""))
}

func prefixList(list []netip.Prefix, none string) string {
	if len(list) == 0 {
		return none
	}
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.String()
		if p.Addr().Is6() && none == "" {
			texts[i] = `"` + texts[i] + `"` // as it stands in a file
		}
	}
	return strings.Join(texts, ", ")
}

// networkOf is the network that the route to addr leads to, or addr alone by a default route.
func networkOf(addr netip.Addr) netip.Prefix {
	routes, err := netlink.RouteGetWithOptions(addr.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err == nil && len(routes) > 0 && routes[0].Dst != nil {
		if p := prefixOf(routes[0].Dst); p.Bits() > 0 && p.Contains(addr) {
			return p.Masked()
		}
	}
	return netip.PrefixFrom(addr, addr.BitLen())
}

// zonesOf are the external zones whose address a is.
func (g *resolvedGateway) zonesOf(a netip.Addr) (zones []string) {
	for _, o := range g.facts.Outside {
		if slices.Contains(o.Addresses, a) {
			zones = append(zones, o.Zone)
		}
	}
	for _, p := range g.pools() {
		if p.Prefix.Contains(a) {
			zones = append(zones, p.Zone)
		}
	}
	return zones
}

// forwardFor is the forward that takes the connection's packets where they come from
// zone; -1 for none.
func (g *resolvedGateway) forwardFor(zone string, c connection) int {
	local, peer := c.local.Addr(), c.peer.Addr()
	return slices.IndexFunc(g.nat.Forwards, func(f Forward) bool {
		asked := f.Address.Unmap() == local
		if !f.Address.IsValid() {
			asked = local.Is4() == f.To.Unmap().Is4() && slices.Contains(g.zonesOf(local), zone)
		}
		return asked && f.In == zone && f.Proto == "tcp" && f.Ports.First <= c.local.Port() && c.local.Port() <= f.Ports.Last &&
			(len(f.Sources) == 0 || slices.ContainsFunc(f.Sources, func(p netip.Prefix) bool { return unmapPrefix(p).Contains(peer) }))
	})
}

// cutByForwarding: when IPv6 forwarding is switched on, the kernel forgets the routes
// of router advertisements, but for interfaces whose accept_ra is 2.
func cutByForwarding(cfg Config, res *resolved, c connection, route *netlink.Route, link netlink.Link) error {
	name := link.Attrs().Name
	if !c.peer.Addr().Is6() || route == nil || route.Protocol != unix.RTPROT_RA || res.gateway.nat.KeepSysctls {
		return nil
	}
	switched := false
	for _, s := range res.gateway.sysctls {
		if s.On != nil && s.On.Ifindex == link.Attrs().Index && strings.HasSuffix(s.Key, "/accept_ra") {
			return nil // kept by us
		}
		if s.Key == sysctlForward6 {
			now, err := s.read()
			switched = err == nil && now != s.Value
		}
	}
	accept, err := readSysctl(sysctlRoot + "net/ipv6/conf/" + name + "/accept_ra")
	if !switched || err != nil || accept == "2" {
		return nil
	}
	path := "nat"
	if cfg.NAT == nil {
		path = "policies"
	}
	return configErrorf(path,
		"your SSH connection from %s comes by a route that %q has from router advertisements, and the kernel forgets it when IPv6 forwarding is switched on: "+
			"it would be cut off; first \"sysctl -w net/ipv6/conf/%s/accept_ra=2\", or --force", c.peer, name, name)
}

// arrivesBy is the route by which the peer is reached, if it is one that can be asked
// for, and its interface; nil if there is none.
func arrivesBy(topo *topology, c connection) (*netlink.Route, netlink.Link) {
	peer, local := c.peer.Addr(), c.local.Addr()
	if peer.IsLinkLocalUnicast() && peer.Is6() { // which link does not stand in /proc
		return nil, topo.owner(local)
	}
	routes, err := netlink.RouteGetWithOptions(peer.AsSlice(), &netlink.RouteGetOptions{SrcAddr: local.AsSlice()})
	if err != nil || len(routes) == 0 {
		routes, err = netlink.RouteGet(peer.AsSlice())
	}
	if err != nil || len(routes) == 0 {
		return nil, nil
	}
	return &routes[0], topo.byIndex[routes[0].LinkIndex]
}

// untagged are link and the interfaces beneath it that have its packets as they are: not
// within a VLAN or a tunnel, of which nothing is judged there.
func (t *topology) untagged(link netlink.Link) map[int]bool {
	seen := map[int]bool{link.Attrs().Index: true}
	for todo := []netlink.Link{link}; len(todo) > 0; todo = todo[1:] {
		switch l := todo[0]; l.Type() {
		case "macvlan", "ipvlan", "bond", "bridge", "team", "vrf":
			for _, below := range t.directlyUnder(l) {
				if b := t.byIndex[below]; b != nil && !seen[below] {
					seen[below] = true
					todo = append(todo, b)
				}
			}
		}
	}
	return seen
}
