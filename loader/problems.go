package loader

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// statusCopies tells why copies do not arrive, as far as it can be seen from here.
func (g *Gateway) statusCopies(s *Status) error {
	for _, l := range s.Links {
		switch {
		case !l.Up:
			s.Problems = append(s.Problems, fmt.Sprintf("interface %s is down: the copies that leave by it are lost", l.Interface))
		case !l.Carrier:
			s.Problems = append(s.Problems, fmt.Sprintf("interface %s has no carrier: the copies that leave by it are lost", l.Interface))
		}
	}
	for _, l := range s.Links {
		if stuck, err := txChecksumStuck(l.Interface); err == nil && len(stuck) > 0 {
			s.Problems = append(s.Problems, offloadLeft(l.Interface, stuck))
		}
	}
	for _, m := range s.Mirrors {
		for _, t := range m.Targets {
			if n := t.Neighbour; n != nil && (n.State == "failed" || n.State == "incomplete") {
				s.Problems = append(s.Problems, fmt.Sprintf("mirror %s: %s does not answer: its copies are skipped as unresolved", m.Name, t.Target))
			}
			if lack := g.tooSmall(s, m, t); lack != "" {
				s.Problems = append(s.Problems, lack)
			}
		}
	}
	return g.statusSources(s)
}

// tooSmall says whether packets of a tapped interface can be larger than the
// sensor's interface takes.
func (g *Gateway) tooSmall(s *Status, m MirrorStatus, t TargetStatus) string {
	i := slices.IndexFunc(s.Links, func(l LinkStatus) bool { return l.Interface == t.Interface })
	if i < 0 {
		return ""
	}
	for _, member := range g.active.Members {
		if !slices.Contains(m.Zones, member.Zone) {
			continue
		}
		l, err := netlink.LinkByIndex(member.Ifindex)
		if err == nil && l.Attrs().MTU > s.Links[i].MTU {
			return fmt.Sprintf("mirror %s: the MTU of %s is %d, that of %s is %d: larger packets are skipped as too_big",
				m.Name, t.Interface, s.Links[i].MTU, l.Attrs().Name, l.Attrs().MTU)
		}
	}
	return ""
}

// statusSources tells of sender addresses that the dmz interface has lost:
// answers to questions that we ask with them do not come to us.
func (g *Gateway) statusSources(s *Status) error {
	targets, err := g.targetsInForce()
	if err != nil {
		return err
	}
	told := map[netip.Addr]bool{}
	for _, t := range targets {
		source := netip.AddrFrom16(t.Source).Unmap()
		if source.IsUnspecified() || told[source] {
			continue
		}
		told[source] = true
		l, err := netlink.LinkByIndex(int(t.Ifindex))
		if err != nil {
			continue // told among the members
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		has := slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			ip, ok := netip.AddrFromSlice(a.IP)
			return ok && ip.Unmap() == source
		})
		if !has {
			s.Problems = append(s.Problems, fmt.Sprintf("interface %s does not have the address %s any more, by which next hops are asked for: apply again", l.Attrs().Name, source))
		}
	}
	return nil
}
