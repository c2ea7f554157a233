package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// Outside addresses stand outside of the generations, since they change by
// themselves: new ones are added before a generation is in force that needs them,
// and those that no longer are any go behind it.

// outsideMaps are the contents of tg_outside and tg_ours that a record asks for.
func outsideMaps(r *record) (map[tapgateTgOutsideKey]tapgateTgOutsideAddr, map[tapgateTgOursKey]tapgateTgOurAddr, error) {
	outside := map[tapgateTgOutsideKey]tapgateTgOutsideAddr{}
	ours := map[tapgateTgOursKey]tapgateTgOurAddr{}
	if r.Gateway == nil {
		return outside, ours, nil
	}
	zones := map[string]uint8{}
	for _, z := range r.Zones {
		if !z.Gone {
			zones[z.Name] = z.Number
		}
	}
	for _, p := range r.Gateway.Pool {
		// Larger ones are refused by buildRules already.
		for a := p.Prefix.Masked().Addr(); p.Prefix.Contains(a) && len(ours) <= limitOurs; a = a.Next() {
			ours[tapgateTgOursKey{Addr: a.As16()}] = tapgateTgOurAddr{Ifindex: uint32(p.Ifindex), Zone: zones[p.Zone]}
		}
	}
	for _, o := range r.Gateway.Outside {
		for _, a := range o.Addresses {
			ours[tapgateTgOursKey{Addr: a.As16()}] = tapgateTgOurAddr{Ifindex: uint32(o.Ifindex), Zone: zones[o.Zone], Assigned: 1}
		}
		for family, a := range map[uint32]netip.Addr{4: o.V4, 6: o.V6} {
			if a.IsValid() {
				outside[tapgateTgOutsideKey{Ifindex: uint32(o.Ifindex), Family: family}] = tapgateTgOutsideAddr{Addr: a.As16(), Mtu: uint32(o.MTU)}
			}
		}
	}
	if len(ours) > limitOurs {
		return nil, nil, configErrorf("nat", "the addresses of the external interfaces and those that rules name are more than %d", limitOurs)
	}
	return outside, ours, nil
}

// addOutside writes what a plan's generation needs and is not there yet.
func (g *Gateway) addOutside(p *plan) error {
	for key, value := range p.gateway.outside {
		if err := g.maps[tapgateMapTgOutside].Put(key, value); err != nil {
			return fmt.Errorf("fill the map of outside addresses: %w", err)
		}
	}
	for key, value := range p.gateway.ours {
		if err := g.maps[tapgateMapTgOurs].Put(key, value); err != nil {
			return fmt.Errorf("fill the map of our addresses: %w", err)
		}
	}
	return nil
}

// convergeOutside makes the maps of addresses what the record in force says, with what
// another live generation needs beside it.
func (g *Gateway) convergeOutside() error {
	outside, ours, err := outsideMaps(&g.active)
	if err == nil && g.waits() {
		var more map[tapgateTgOutsideKey]tapgateTgOutsideAddr
		var others map[tapgateTgOursKey]tapgateTgOurAddr
		more, others, err = outsideMaps(&g.pending.other)
		outside, ours = addMissing(outside, more), addMissing(ours, others)
	}
	if err != nil {
		return err
	}
	return errors.Join(
		makeEqual(g.maps[tapgateMapTgOutside], outside, "outside addresses"),
		makeEqual(g.maps[tapgateMapTgOurs], ours, "our addresses"),
	)
}

func addMissing[K comparable, V any](to, from map[K]V) map[K]V {
	for key, value := range from {
		if _, have := to[key]; !have {
			to[key] = value
		}
	}
	return to
}

// makeEqual gives a hash map exactly this content. What stays is not touched.
func makeEqual[K, V comparable](m *ebpf.Map, want map[K]V, what string) error {
	var key K
	var value V
	have := map[K]V{}
	it := m.Iterate()
	for it.Next(&key, &value) {
		have[key] = value
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read the map of %s: %w", what, err)
	}
	for key := range have {
		if _, stays := want[key]; !stays {
			if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("clear the map of %s: %w", what, err)
			}
		}
	}
	for key, value := range want {
		if old, had := have[key]; had && old == value {
			continue
		}
		if err := m.Put(key, value); err != nil {
			return fmt.Errorf("fill the map of %s: %w", what, err)
		}
	}
	return nil
}

// outsideNow reads which addresses the external interfaces of the generation in
// force have at this moment.
func (g *Gateway) outsideNow() ([]outsideRecord, error) {
	if g.active.Gateway == nil {
		return nil, nil
	}
	topo, err := readTopology()
	if err != nil {
		return nil, err
	}
	return g.outsideIn(topo), nil
}

// outsideIn is outsideNow in a topology. An interface that is gone has no address.
func (g *Gateway) outsideIn(topo *topology) []outsideRecord {
	list := slices.Clone(g.active.Gateway.Outside)
	for i, o := range list {
		list[i] = outsideRecord{Interface: o.Interface, Ifindex: o.Ifindex, Zone: o.Zone, MTU: o.MTU, Addresses: []netip.Addr{}}
		if l := topo.byIndex[o.Ifindex]; l != nil && g.sameLink(l, o) {
			list[i] = outsideOf(o.Interface, o.Ifindex, o.Zone, l.Attrs().MTU, topo.addrs[o.Ifindex])
		}
	}
	return list
}

// sameLink says whether the interface is still the one that was applied.
func (g *Gateway) sameLink(l netlink.Link, o outsideRecord) bool {
	for _, m := range g.active.Members {
		if m.Ifindex == o.Ifindex && !m.Absent {
			return l.Attrs().Name == m.Interface || l.Attrs().HardwareAddr.String() == m.MAC
		}
	}
	return false
}

// lostAddresses are those that interfaces had and no interface has any more:
// flows that are translated to them cannot go on.
func lostAddresses(before, now []outsideRecord) (lost []netip.Addr) {
	still := map[netip.Addr]bool{}
	for _, o := range now {
		for _, a := range o.Addresses {
			still[a] = true
		}
	}
	for _, o := range before {
		for _, a := range o.Addresses {
			if !still[a] {
				lost = append(lost, a)
			}
		}
	}
	return lost
}

func (o outsideRecord) equal(other outsideRecord) bool {
	return o.Ifindex == other.Ifindex && o.Zone == other.Zone && o.MTU == other.MTU && o.V4 == other.V4 && o.V6 == other.V6 && slices.Equal(o.Addresses, other.Addresses)
}
