package loader

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// A configuration that is applied again, because an interface has come back, must not
// fail for another one that is still gone, or has no address at this moment: a sensor's
// card that is broken would keep production from going on. So what is missing stands
// in the new generation as it stood in the one before, without programs.

// knownAddress is an address of a member when the configuration was applied.
type knownAddress struct {
	Prefix netip.Prefix `json:"prefix"`
	Onlink netip.Prefix `json:"onlink,omitzero"` // if another one
	// Deprecated: it was not to be used as sender any more.
	Deprecated bool `json:"deprecated,omitempty"`
	// Gone: it was gone already, and is only remembered.
	Gone bool `json:"gone,omitempty"`
}

func (k knownAddress) address() address {
	a := address{prefix: k.Prefix, onlink: k.Onlink, usable: !k.Deprecated, gone: true}
	if !a.onlink.IsValid() {
		a.onlink = a.prefix
	}
	return a
}

// record is what is kept of a member, but for its place in the maps.
func (m *member) record() memberRecord {
	r := memberRecord{Interface: m.name, Ifindex: m.index, MAC: m.mac.String(), MTU: m.mtu, Zone: m.zone, Role: m.role, Absent: m.absent}
	if m.called != "" { // the configuration's name for it
		r.Interface = m.called
	}
	if m.written != r.Interface {
		r.Written = m.written
	}
	if m.role != RoleInternal && m.role != RoleDMZ {
		return r // nothing is made of them, or it is followed by itself
	}
	for _, a := range m.known {
		k := knownAddress{Prefix: a.prefix, Deprecated: !a.usable, Gone: a.gone}
		if a.onlink != a.prefix {
			k.Onlink = a.onlink
		}
		r.Known = append(r.Known, k)
	}
	return r
}

// writtenAs is its name in the configuration.
func (m memberRecord) writtenAs() string {
	if m.Written != "" {
		return m.Written
	}
	return m.Interface
}

// knownNow are the addresses that it had when it was applied.
func (m memberRecord) knownNow() (list []address) {
	for _, k := range m.Known {
		if !k.Gone {
			list = append(list, k.address())
		}
	}
	return list
}

// counting are those facts of an interface's addresses that a generation is made of.
func counting(role Role, known []address) (list []string) {
	for _, a := range known {
		switch {
		case role == RoleInternal && !a.onlink.Addr().IsLinkLocalUnicast():
			list = append(list, a.onlink.Masked().String())
		case role == RoleDMZ && a.onlink != a.prefix:
			list = append(list, fmt.Sprintf("%s to %s%s", a.prefix, a.onlink, a.age()))
		case role == RoleDMZ:
			list = append(list, a.prefix.String()+a.age())
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (a address) age() string {
	if a.usable {
		return ""
	}
	return " (deprecated)"
}

// remembered is what the generation before knows of an interface that the configuration
// names; nil if nothing.
func (r *resolver) remembered(name string) *memberRecord {
	if r.before == nil {
		return nil
	}
	i := slices.IndexFunc(r.before.Members, func(m memberRecord) bool { return m.writtenAs() == name || m.Interface == name })
	if i < 0 {
		return nil
	}
	return &r.before.Members[i]
}

// standIn is the interface that a member is now, if it only has another name, and else
// what is remembered of it.
func (r *resolver) standIn(m *memberRecord) (l netlink.Link, absent bool) {
	l = r.topo.byIndex[m.Ifindex]
	if l != nil && !m.Absent && l.Attrs().HardwareAddr.String() == m.MAC {
		return l, false
	}
	r.warn("interface %q is not there: all about it stays as it was until it comes back", m.Interface)
	a := netlink.NewLinkAttrs()
	a.Name, a.Index, a.MTU, a.EncapType = m.Interface, m.Ifindex, m.MTU, "ether"
	a.HardwareAddr, _ = net.ParseMAC(m.MAC) // it was one
	// Another interface may have its number by now. One that none has is as good: no
	// packet comes from there, and no copy gets there.
	const nobodys = 1 << 30
	if l != nil {
		a.Index = nobodys + int(m.Slot)
	}
	return &netlink.Dummy{LinkAttrs: a}, true
}

// remember adds to a member's addresses those that it has lost and that the
// configuration needs: all, if none is left, and the network of a next hop.
func (m *member) remember(before *memberRecord, cfg Config) {
	left := slices.ContainsFunc(m.known, func(a address) bool { return !a.prefix.Addr().IsLinkLocalUnicast() })
	for _, k := range before.Known {
		a := k.address()
		had := slices.ContainsFunc(m.known, func(o address) bool { return o.prefix == a.prefix && o.onlink == a.onlink })
		if had || left && !(m.role == RoleDMZ && cfg.needsHop(a.onlink, m.known)) {
			continue
		}
		m.known = append(slices.Clone(m.known), a) // it is the topology's
		m.addrs = append(m.addrs, a.prefix)
	}
}

// needsHop says whether a target's next hop is in a network, and in none of these.
func (c Config) needsHop(network netip.Prefix, others []address) bool {
	for _, m := range c.Mirrors {
		for _, t := range m.Targets {
			via := t.Via.Unmap()
			if via.IsValid() && network.Contains(via) && !slices.ContainsFunc(others, func(a address) bool { return a.onlink.Contains(via) }) {
				return true
			}
		}
	}
	return false
}

// judge is judge of a configuration that somebody wants, or of the one in force.
func (g *Gateway) judge(cfg Config) (*resolved, error) {
	if !g.again {
		return judge(g.opt, g.ns, cfg)
	}
	return resolveFrom(cfg, true, &g.active)
}

// Reapply puts the configuration in force in force again, on interfaces as they are now:
// cfg has to be what Source says. Interfaces that are gone stay as they were, and what
// would be refused of a configuration that somebody has just written is told instead.
func (g *Gateway) Reapply(cfg Config) (result *Result, err error) {
	if cfg.Source != g.active.Source {
		return nil, errors.New("only the configuration in force can be applied again")
	}
	g.again = true
	defer func() { g.again = false }()
	return g.Apply(cfg)
}
