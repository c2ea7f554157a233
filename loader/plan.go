package loader

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// plan is a generation before it is in the kernel: its record, and the maps'
// contents. Numbers that the generation in force uses for the same thing stay,
// so that its counters and what was learned of next hops go on.
type plan struct {
	record   record
	members  map[uint32]tapgateTgMember // by ifindex
	targets  map[uint32]tapgateTgTarget // by number
	nexthops map[tapgateTgNexthopKey]tapgateTgNexthop
	gateway  gatewayPlan
	// Numbers that were not in use: their counters start at zero.
	freshMirrors, freshTargets, freshSlots, freshNeighs []uint32
}

// The programs of an interface, by what it is for.
var (
	tapPrograms = []string{tapgateProgTapgateTapIn, tapgateProgTapgateTapOut}
	dmzPrograms = []string{tapgateProgTapgateDmzIn, tapgateProgTapgateDmzOut}
)

// hookOf says where a program goes: copy first on the way in and last on the
// way out; drop first; deliver last.
func hookOf(program string, ifindex int, ifname string) hook {
	egress := program == tapgateProgTapgateTapOut || program == tapgateProgTapgateDmzOut
	return hook{ifindex: ifindex, ifname: ifname, egress: egress, first: !egress}
}

// numbers hands out numbers below limit that nobody has.
type numbers struct {
	used  map[uint32]bool
	limit uint32
	next  uint32
	what  string
}

func newNumbers(what string, first, limit uint32) *numbers {
	return &numbers{used: map[uint32]bool{}, limit: limit, next: first, what: what}
}

func (n *numbers) take() (uint32, error) {
	for ; n.next < n.limit; n.next++ {
		if !n.used[n.next] {
			n.used[n.next] = true
			return n.next, nil
		}
	}
	return 0, fmt.Errorf("no room for another %s: %d is the limit, counting those that are being replaced", n.what, n.limit)
}

func roleNumber(r Role) tapgateTgRole {
	switch r {
	case RoleExternal:
		return tapgateTgRoleTG_ROLE_EXTERNAL
	case RoleInternal:
		return tapgateTgRoleTG_ROLE_INTERNAL
	case RoleDMZ:
		return tapgateTgRoleTG_ROLE_DMZ
	case RoleMgmt:
		return tapgateTgRoleTG_ROLE_MGMT
	}
	return tapgateTgRoleTG_ROLE_NONE
}

// makePlan lays out res beside the generation in force.
func makePlan(old *record, res *resolved, source string) (*plan, error) {
	p := &plan{
		record:   record{Layout: Layout, Serial: old.nextSerial(), Applied: time.Now().UTC().Truncate(time.Second), Source: source},
		members:  map[uint32]tapgateTgMember{},
		targets:  map[uint32]tapgateTgTarget{},
		nexthops: map[tapgateTgNexthopKey]tapgateTgNexthop{},
	}
	p.record.Previous, p.record.PreviousFile = old.previousTo(source)
	slots, err := p.placeMembers(old, res)
	if err != nil {
		return nil, err
	}
	if err := p.placeMirrors(old, res, slots); err != nil {
		return nil, err
	}
	zones, err := p.placeZones(old, res.zones)
	if err != nil {
		return nil, err
	}
	p.numberZones(zones)
	if res.gateway != nil {
		if err := p.placeGateway(old, res.gateway, zones); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *plan) placeMembers(old *record, res *resolved) (slots map[int]uint32, err error) {
	n := newNumbers("interface", 1, limitMembers)
	for _, m := range old.Members {
		n.used[m.Slot] = true
	}
	tapped := map[int]bool{}
	for _, mirror := range res.mirrors {
		for _, m := range mirror.members {
			tapped[m.index] = true
		}
	}
	slots = map[int]uint32{}
	for _, m := range res.members {
		r := m.record()
		same := func(o memberRecord) bool {
			return o.Ifindex == r.Ifindex && (o.MAC == r.MAC || o.Interface == r.Interface)
		}
		if i := slices.IndexFunc(old.Members, same); i >= 0 {
			r.Slot = old.Members[i].Slot
		} else {
			if r.Slot, err = n.take(); err != nil {
				return nil, err
			}
			p.freshSlots = append(p.freshSlots, r.Slot)
		}
		switch {
		case m.role == RoleDMZ:
			r.Programs = dmzPrograms
			for _, addr := range m.addrs {
				r.Addresses = append(r.Addresses, addr.Addr().String())
				p.nexthops[nexthopKey(m.index, addr.Addr())] = tapgateTgNexthop{Kind: tapgateTgNexthopKindTG_NEXTHOP_OURS}
			}
		case tapped[m.index] || res.gateway != nil:
			r.Programs = tapPrograms
		}
		if m.absent {
			r.Programs = nil
		}
		slots[m.index] = r.Slot
		p.record.Members = append(p.record.Members, r)
		p.members[uint32(m.index)] = tapgateTgMember{Role: roleNumber(m.role), Slot: r.Slot}
	}
	return slots, nil
}

func (p *plan) placeMirrors(old *record, res *resolved, slots map[int]uint32) error {
	mirrorNumbers := newNumbers("mirror", 0, limitMirrors)
	targetNumbers := newNumbers("target", 0, limitTargets)
	for _, m := range old.Mirrors {
		mirrorNumbers.used[m.Number] = true
		for _, t := range m.Targets {
			targetNumbers.used[t.Number] = true
		}
	}
	neighs := newNeighNumbers(old)

	for _, m := range res.mirrors {
		r := mirrorRecord{Name: m.Name, Zones: m.Zones}
		var before *mirrorRecord
		if i := slices.IndexFunc(old.Mirrors, func(o mirrorRecord) bool { return o.Name == m.Name }); i >= 0 {
			before = &old.Mirrors[i]
			r.Number = before.Number
		} else {
			number, err := mirrorNumbers.take()
			if err != nil {
				return err
			}
			r.Number = number
			p.freshMirrors = append(p.freshMirrors, number)
		}
		var copies []tapgateTgCopy
		for i, t := range m.targets {
			tr, entry, err := p.placeTarget(before, t, targetNumbers, neighs, slots)
			if err != nil {
				return err
			}
			entry.Mirror = uint8(r.Number)
			if i == len(m.targets)-1 {
				entry.Last = 1
			}
			r.Targets = append(r.Targets, tr)
			copies = append(copies, entry)
		}
		p.record.Mirrors = append(p.record.Mirrors, r)
		if err := p.addCopies(m, r.Number, copies); err != nil {
			return err
		}
	}
	p.record.Neighs = neighs.inUse
	p.freshNeighs = neighs.fresh
	return nil
}

func (p *plan) placeTarget(before *mirrorRecord, t target, n *numbers, neighs *neighNumbers, slots map[int]uint32) (targetRecord, tapgateTgCopy, error) {
	r := targetRecord{Target: t.String(), Interface: t.device.name, Ifindex: t.device.index}
	same := func(o targetRecord) bool { return o.Target == r.Target && o.Ifindex == r.Ifindex }
	known := -1
	if before != nil {
		known = slices.IndexFunc(before.Targets, same)
	}
	if known >= 0 {
		r.Number = before.Targets[known].Number
	} else {
		number, err := n.take()
		if err != nil {
			return r, tapgateTgCopy{}, err
		}
		r.Number = number
		p.freshTargets = append(p.freshTargets, number)
	}

	out := tapgateTgTarget{Ifindex: uint32(t.device.index)}
	entry := tapgateTgCopy{
		Ifindex: out.Ifindex, Mtu: uint32(t.device.mtu), Target: uint16(r.Number), Slot: uint8(slots[t.device.index]),
	}
	copy(out.Smac[:], t.device.mac)
	copy(entry.Smac[:], t.device.mac)
	switch {
	case !t.Via.IsValid():
		out.Kind = tapgateTgTargetKindTG_TARGET_L2
		if t.MAC != nil {
			out.Kind = tapgateTgTargetKindTG_TARGET_L2MAC
			copy(entry.Dmac[:], t.MAC)
		}
	default:
		number, err := neighs.of(t.device.index, t.Via)
		if err != nil {
			return r, entry, err
		}
		r.Neigh = &number
		out.Neigh, entry.Neigh = number, uint16(number)
		out.Kind = tapgateTgTargetKindTG_TARGET_VIA6
		if t.Via.Unmap().Is4() {
			out.Kind = tapgateTgTargetKindTG_TARGET_VIA4
		}
		out.Source = t.source.As16()
		out.Nexthop = t.Via.As16()
		p.nexthops[nexthopKey(t.device.index, t.Via)] = tapgateTgNexthop{
			Kind: tapgateTgNexthopKindTG_NEXTHOP_SENSOR, Neigh: number,
		}
	}
	entry.Kind = uint8(out.Kind)
	p.targets[r.Number] = out
	return r, entry, nil
}

// addCopies lists the mirror's copies at each interface it taps.
func (p *plan) addCopies(m resolvedMirror, number uint32, copies []tapgateTgCopy) error {
	for _, on := range m.members {
		entry := p.members[uint32(on.index)]
		entry.Mirrors |= 1 << number
		for _, c := range copies {
			if int(entry.Ncopies) == len(entry.Copies) {
				return configErrorf("mirrors", "more than %d copies of each packet on %s", len(entry.Copies), on.name)
			}
			entry.Copies[entry.Ncopies] = c
			entry.Ncopies++
		}
		p.members[uint32(on.index)] = entry
	}
	return nil
}

func nexthopKey(ifindex int, addr netip.Addr) tapgateTgNexthopKey {
	return tapgateTgNexthopKey{Ifindex: uint32(ifindex), Address: addr.As16()}
}

// neighNumbers numbers the next hops: one each, however many targets use it.
type neighNumbers struct {
	old   []neighRecord
	free  *numbers
	inUse []neighRecord
	fresh []uint32
}

func newNeighNumbers(old *record) *neighNumbers {
	n := &neighNumbers{old: old.Neighs, free: newNumbers("next hop", 0, limitTargets)}
	for _, o := range old.Neighs {
		n.free.used[o.Number] = true
	}
	return n
}

func (n *neighNumbers) of(ifindex int, addr netip.Addr) (uint32, error) {
	same := func(o neighRecord) bool { return o.Ifindex == ifindex && o.Address == addr.String() }
	if i := slices.IndexFunc(n.inUse, same); i >= 0 {
		return n.inUse[i].Number, nil
	}
	if i := slices.IndexFunc(n.old, same); i >= 0 {
		n.inUse = append(n.inUse, n.old[i])
		return n.old[i].Number, nil
	}
	number, err := n.free.take()
	if err != nil {
		return 0, err
	}
	n.inUse = append(n.inUse, neighRecord{Ifindex: ifindex, Address: addr.String(), Number: number})
	n.fresh = append(n.fresh, number)
	return number, nil
}
