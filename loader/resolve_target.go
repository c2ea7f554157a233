package loader

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

func (r *resolver) mirrorTargets(path string, m resolvedMirror) (targets []target) {
	if len(m.Targets) == 0 {
		r.fail(path+".targets", "mirror %q has no targets: add the sensor's address (via) or interface (l2)", m.Name)
	}
	for i, t := range m.Targets {
		at := fmt.Sprintf("%s.targets[%d]", path, i)
		t.Via = t.Via.Unmap()
		if slices.ContainsFunc(targets, func(o target) bool { return sameTarget(o.Target, t) }) {
			r.fail(at, "mirror %q has this target twice", m.Name)
			continue
		}
		rt := target{Target: t, mirror: m.Name}
		switch {
		case t.Via.IsValid() == (t.L2 != ""):
			r.fail(at, "a target has either via (address of the sensor) or l2 (interface to it)")
		case t.L2 != "":
			at += ".l2"
			rt.device = r.deviceOf(at, t)
		case t.MAC != nil:
			r.fail(at+".mac", "a MAC goes with l2 only: that of a via target is learned")
		default:
			at += ".via"
			rt.device, rt.source = r.wayTo(at, t.Via)
		}
		if rt.device != nil {
			r.checkMTU(at, m, rt.device)
		}
		targets = append(targets, rt)
	}
	return targets
}

func sameTarget(a, b Target) bool {
	return a.Via == b.Via && a.L2 == b.L2 && bytes.Equal(a.MAC, b.MAC)
}

// deviceOf finds the dmz interface of an l2 target.
func (r *resolver) deviceOf(path string, t Target) *member {
	switch atMAC := strings.TrimSuffix(path, "l2") + "mac"; {
	case t.MAC == nil:
	case len(t.MAC) != 6:
		r.fail(atMAC, "MAC %s has %d bytes; an Ethernet address has 6", t.MAC, len(t.MAC))
	case bytes.Equal(t.MAC, make([]byte, 6)):
		r.fail(atMAC, "MAC %s is nobody's: give that of the sensor, or leave it out to send frames as they are", t.MAC)
	}
	l := r.topo.find(t.L2)
	if l == nil {
		if !r.dmzBroken() {
			r.fail(path, "no interface %q; dmz interfaces: %s", t.L2, r.dmzNames())
		}
		return nil
	}
	for _, m := range r.out.members {
		if m.index != l.Attrs().Index {
			continue
		}
		if m.role != RoleDMZ {
			r.fail(path, "interface %q is in zone %q (role %s), but the sensor's is in a zone with the role dmz (%s)",
				t.L2, m.zone, m.role, r.dmzNames())
			return nil
		}
		return m
	}
	if !r.dmzBroken() {
		r.fail(path, "interface %q is in no zone; put it in one with the role dmz, or take one of: %s", t.L2, r.dmzNames())
	}
	return nil
}

// wayTo finds the dmz interface that a next hop is on, and our sender address there.
func (r *resolver) wayTo(path string, via netip.Addr) (*member, netip.Addr) {
	none := netip.Addr{}
	if via.IsUnspecified() || via.IsMulticast() || via.IsLoopback() || via == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		r.fail(path, "%s is not the address of one machine: give that of the sensor, or of the router before it", via)
		return nil, none
	}
	if via.Zone() != "" {
		r.fail(path, "write %s without %%%s: the interface follows from the dmz zone", via.WithZone(""), via.Zone())
		return nil, none
	}
	if own := r.topo.owner(via); own != nil {
		r.fail(path, "%s is this machine's own address (on %q); give the sensor's", via, own.Attrs().Name)
		return nil, none
	}

	var found []*member
	for _, m := range r.out.members {
		if m.role == RoleDMZ && m.reaches(via) {
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 0:
		if !r.dmzBroken() {
			r.fail(path, "%s is on no dmz network (%s)%s; copies go to a neighbour on one of these", via, r.dmzNetworks(), r.elsewhere(via))
		}
		return nil, none
	case len(found) > 1:
		what := fmt.Sprintf("%s is on the networks of %q and %q alike", via, found[0].name, found[1].name)
		if via.IsLinkLocalUnicast() {
			what = fmt.Sprintf("%s is link-local, and there are several dmz interfaces", via)
		}
		r.fail(path, "%s: give an address that only one dmz interface reaches, or use l2", what)
		return nil, none
	}
	source, problem := found[0].senderFor(via)
	if problem != "" {
		r.fail(path, "%s", problem)
	}
	return found[0], source
}

// reaches says whether via is on-link at m.
func (m *member) reaches(via netip.Addr) bool {
	return slices.ContainsFunc(m.known, func(a address) bool { return a.onlink.Contains(via) })
}

// senderFor picks our address on the network of via.
func (m *member) senderFor(via netip.Addr) (source netip.Addr, problem string) {
	for _, a := range m.known {
		if !a.onlink.Contains(via) {
			continue
		}
		if via == lastAddr(a.onlink) || (via.Is4() && a.onlink.Bits() < 31 && via == a.onlink.Masked().Addr()) {
			return netip.Addr{}, fmt.Sprintf("%s is not the address of one machine on %s of %q", via, a.onlink.Masked(), m.name)
		}
		if !source.IsValid() || a.usable {
			source = a.prefix.Addr()
		}
		if a.usable {
			break
		}
	}
	return source, ""
}

// lastAddr is the broadcast address of an IPv4 network, if it has one.
func lastAddr(p netip.Prefix) netip.Addr {
	if !p.Addr().Is4() || p.Bits() >= 31 {
		return netip.Addr{}
	}
	b := p.Masked().Addr().As4()
	for i, ones := range net.CIDRMask(p.Bits(), 32) {
		b[i] |= ^ones
	}
	return netip.AddrFrom4(b)
}

// dmzBroken: what is missing on the sensor's side is told already.
func (r *resolver) dmzBroken() bool {
	want, have := 0, 0
	for _, z := range r.cfg.Zones {
		if z.Role == RoleDMZ {
			want += len(z.Interfaces)
		}
	}
	for _, m := range r.out.members {
		if m.role == RoleDMZ {
			have++
		}
	}
	return want == 0 || have < want
}

func (r *resolver) dmzNames() string {
	var names []string
	for _, m := range r.out.members {
		if m.role == RoleDMZ {
			names = append(names, m.name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func (r *resolver) dmzNetworks() string {
	var list []string
	for _, m := range r.out.members {
		if m.role != RoleDMZ {
			continue
		}
		var networks []string
		for _, a := range m.known {
			network := a.onlink.Masked().String()
			if !a.prefix.Addr().IsLinkLocalUnicast() && !slices.Contains(networks, network) {
				networks = append(networks, network)
			}
		}
		if networks == nil {
			networks = []string{"has no address"}
		}
		list = append(list, m.name+" "+strings.Join(networks, " "))
	}
	return strings.Join(list, ", ")
}

// elsewhere helps who gave an address of the wrong network.
func (r *resolver) elsewhere(via netip.Addr) string {
	for _, m := range r.out.members {
		if m.role != RoleDMZ && m.reaches(via) {
			return fmt.Sprintf(" but on that of %q, which is in zone %q", m.name, m.zone)
		}
	}
	return ""
}

// checkMTU: a copy is as large as its original, and the delivery skips what the
// sensor's interface cannot take.
func (r *resolver) checkMTU(path string, m resolvedMirror, device *member) {
	var largest *member
	for _, t := range m.members {
		if largest == nil || t.mtu > largest.mtu {
			largest = t
		}
	}
	if largest == nil || device.mtu >= largest.mtu {
		return
	}
	fits := fmt.Sprintf("the MTU of %q is %d, but packets of the tapped %q have up to %d bytes", device.name, device.mtu, largest.name, largest.mtu)
	if r.force {
		r.warn("%s: larger ones are skipped as too_big", fits)
		return
	}
	r.fail(path, "%s: \"ip link set %s mtu %d\", there and at the sensor, or --force to skip the larger ones", fits, device.name, largest.mtu)
}
