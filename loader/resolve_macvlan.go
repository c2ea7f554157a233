package loader

import "strconv"

// macvlanParent is the interface that answers ARP for a macvlan's addresses as well, with
// its own MAC, so that hosts send to it, past our programs; "" if none does. Linux answers
// for all of its addresses wherever it is asked, unless arp_ignore or a strict rp_filter
// says otherwise; of each the greater of "all" and the interface's own counts.
func (r *resolver) macvlanParent(m *member) string {
	if m.link.Type() != "macvlan" {
		return ""
	}
	for _, index := range r.topo.directlyUnder(m.link) {
		parent := r.topo.byIndex[index]
		if parent == nil {
			continue
		}
		name := parent.Attrs().Name
		if greaterSysctl(name, "arp_ignore") == 0 && greaterSysctl(name, "rp_filter") != 1 {
			return name
		}
	}
	return ""
}

func greaterSysctl(ifname, setting string) int {
	greatest := 0
	for _, of := range []string{"all", ifname} {
		text, err := sysctl{Key: "net/ipv4/conf/" + of + "/" + setting}.read()
		if n, bad := strconv.Atoi(text); err == nil && bad == nil {
			greatest = max(greatest, n)
		}
	}
	return greatest
}
