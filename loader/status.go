package loader

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Count is packets as on the wire (a GSO packet counts its segments) and bytes
// of the original frames without FCS, with VLAN tags.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Ledger is the account of a mirror or target: Matched = Copied + sum(Skipped).
type Ledger struct {
	Matched Count `json:"matched"`
	Copied  Count `json:"copied"`
	// Skipped holds every reason, also those that never happened.
	Skipped map[string]Count `json:"skipped"`
	// Refused are copies (contained in Copied) that the sensor's link did
	// not take, in the link's own units: socket buffers and their bytes.
	Refused Count `json:"refused"`
}

// Status is what a gateway does now.
type Status struct {
	Netns    string          `json:"netns"`      // inode of the network namespace
	State    string          `json:"state"`      // folder in the BPF filesystem
	Layout   int             `json:"layout"`     // version of the pinned state
	Slot     int             `json:"generation"` // the slot in force, 0 or 1
	Serial   uint64          `json:"serial"`     // counts applied configurations
	Applied  string          `json:"applied"`    // time of the last change, RFC 3339
	Members  []MemberStatus  `json:"interfaces"`
	Mirrors  []MirrorStatus  `json:"mirrors"`
	Links    []LinkStatus    `json:"links"`             // interfaces that copies leave by
	Gateway  *GatewayStatus  `json:"gateway,omitempty"` // nil: it only copies
	Programs []ProgramStatus `json:"programs,omitempty"`
	Problems []string        `json:"problems"`
	// Pending, if not nil: what is in force goes back by itself unless it is confirmed.
	Pending *Pending `json:"pending,omitempty"`
	// Returned, if not nil: the last change was not confirmed.
	Returned *Returned `json:"returned,omitempty"`
}

// MemberStatus is one interface of the configuration.
type MemberStatus struct {
	Interface string           `json:"interface"`
	Ifindex   int              `json:"ifindex"`
	Zone      string           `json:"zone"`
	Role      Role             `json:"role"`
	Attached  string           `json:"attached"` // "tcx", "clsact", or "" where this step needs no program
	Ingress   *DirectionStatus `json:"ingress,omitempty"`
	Egress    *DirectionStatus `json:"egress,omitempty"`
}

// DirectionStatus counts what a program of ours saw.
type DirectionStatus struct {
	Seen       Count             `json:"seen"`
	Reasons    map[string]uint64 `json:"reasons"` // socket buffers by reason, only those that happened
	Duplicates uint64            `json:"duplicates"`
}

// MirrorStatus is the account of one mirror. A packet is copied once all of
// the mirror's targets have it, and skipped with the first reason otherwise.
type MirrorStatus struct {
	Name  string   `json:"name"`
	Zones []string `json:"zones"`
	Ledger
	Ingress Ledger         `json:"ingress"` // from the zone's hosts
	Egress  Ledger         `json:"egress"`  // to the zone's hosts
	Targets []TargetStatus `json:"targets"`
}

// TargetStatus is the account of one target.
type TargetStatus struct {
	Target    string `json:"target"` // "via 192.168.4.2", "l2 eth2", "l2 eth2 mac 02:.."
	Interface string `json:"interface"`
	Ledger
	Ingress   Ledger           `json:"ingress"`
	Egress    Ledger           `json:"egress"`
	Neighbour *NeighbourStatus `json:"neighbour,omitempty"` // for via
}

// NeighbourStatus is what the data plane knows of a next hop.
type NeighbourStatus struct {
	State       string  `json:"state"` // "incomplete", "reachable", "probing", "failed"
	MAC         string  `json:"mac,omitempty"`
	Age         float64 `json:"age,omitempty"` // seconds since the last answer
	Asks        uint64  `json:"asks"`          // questions handed to the link
	AsksRefused uint64  `json:"asks_refused"`  // of these: not taken by it
	Changes     uint64  `json:"changes"`       // times the MAC became another one
}

// LinkStatus is a sensor-side interface with the kernel's own counters since
// the interface exists.
type LinkStatus struct {
	Interface  string `json:"interface"`
	Up         bool   `json:"up"` // administratively
	Carrier    bool   `json:"carrier"`
	MTU        int    `json:"mtu"`
	TxPackets  uint64 `json:"tx_packets"`
	TxDropped  uint64 `json:"tx_dropped"`  // by the device
	QdiscDrops uint64 `json:"qdisc_drops"` // by its root qdisc
}

// Status reads what the gateway does now. Counters are read while traffic runs;
// at rest they add up exactly.
func (g *Gateway) Status() (*Status, error) {
	s := &Status{
		Netns: strconv.FormatUint(g.ns.inode, 10), State: g.dir, Layout: g.active.Layout, Slot: int(g.slot),
		Serial: g.active.Serial, Applied: g.active.Applied.Format(time.RFC3339),
		Pending: g.Pending(), Returned: g.Returned(),
		Members: []MemberStatus{}, Mirrors: []MirrorStatus{}, Links: []LinkStatus{}, Problems: append([]string{}, g.moved...),
	}
	err := g.ns.do(func() error {
		return errors.Join(g.statusMembers(s), g.statusAddresses(s), g.statusMirrors(s), g.statusLinks(s), g.statusCopies(s), g.statusGateway(s), g.statusPrograms(s))
	})
	if sameBuild(g.programs) != nil {
		s.Problems = append(s.Problems, "the programs in force are of another build: \"tapgate upgrade\" puts this one's in place, without a gap")
	}
	return s, err
}

func (g *Gateway) statusMembers(s *Status) error {
	for _, m := range g.active.Members {
		ms := MemberStatus{Interface: m.Interface, Ifindex: m.Ifindex, Zone: m.Zone, Role: m.Role}
		here, problem := m.stillHere()
		if problem != "" {
			s.Problems = append(s.Problems, problem)
		}
		for _, program := range m.Programs {
			if !here {
				continue
			}
			kind, problems := g.programStatus(m, program)
			s.Problems = append(s.Problems, problems...)
			if ms.Attached == "" {
				ms.Attached = string(kind)
			}
		}
		if len(m.Programs) > 0 {
			var errIn, errOut error
			ms.Ingress, errIn = g.directionStatus(m.Slot, tapgateTgDirectionTG_INGRESS)
			ms.Egress, errOut = g.directionStatus(m.Slot, tapgateTgDirectionTG_EGRESS)
			if err := errors.Join(errIn, errOut); err != nil {
				return err
			}
		}
		s.Members = append(s.Members, ms)
	}
	return nil
}

// stillHere says whether the interface is there as it was applied.
func (m memberRecord) stillHere() (here bool, problem string) {
	l, err := netlink.LinkByIndex(m.Ifindex)
	if other, e := netlink.LinkByName(m.Interface); err != nil && e == nil {
		return false, fmt.Sprintf("interface %s is another one now (index %d, before %d): apply again", m.Interface, other.Attrs().Index, m.Ifindex)
	}
	if err != nil {
		return false, fmt.Sprintf("interface %s is not there any more (removed, or moved to another network namespace): apply again when it is back, or without it", m.Interface)
	}
	a := l.Attrs()
	switch {
	case a.HardwareAddr.String() != m.MAC && a.Name != m.Interface:
		return false, fmt.Sprintf("interface %s is not there any more, and its index %d belongs to %s: apply again", m.Interface, m.Ifindex, a.Name)
	case a.Name != m.Interface:
		return true, fmt.Sprintf("interface %s is called %s now; the tap goes on, and the configuration should follow", m.Interface, a.Name)
	case a.HardwareAddr.String() != m.MAC && m.Role == RoleDMZ:
		return true, fmt.Sprintf("interface %s has another MAC (%s) than when it was applied: apply again", m.Interface, a.HardwareAddr)
	}
	return true, ""
}

func (g *Gateway) programStatus(m memberRecord, program string) (kind AttachKind, problems []string) {
	h := hookOf(program, m.Ifindex, m.Interface)
	kind, _, inFront, err := attachedKind(program, h, g.linkDir(m.Ifindex))
	switch {
	case err != nil:
		problems = append(problems, err.Error())
	case kind == "":
		problems = append(problems, fmt.Sprintf("%s is not attached to %s: apply again", program, h))
	case len(inFront) > 0 && h.first:
		problems = append(problems, fmt.Sprintf("on %s other programs run before ours and may hide packets from it: %s", h, strings.Join(inFront, ", ")))
	}
	return kind, problems
}

func (g *Gateway) statusMirrors(s *Status) error {
	for _, m := range g.active.Mirrors {
		ms := MirrorStatus{Name: m.Name, Zones: m.Zones, Targets: []TargetStatus{}}
		var err error
		if ms.Ingress, ms.Egress, err = ledgersOf(g.maps[tapgateMapTgMirrorLed], m.Number); err != nil {
			return err
		}
		ms.Ledger = ms.Ingress.plus(ms.Egress)
		for _, t := range m.Targets {
			ts := TargetStatus{Target: t.Target, Interface: t.Interface}
			if ts.Ingress, ts.Egress, err = ledgersOf(g.maps[tapgateMapTgTargetLed], t.Number); err != nil {
				return err
			}
			ts.Ledger = ts.Ingress.plus(ts.Egress)
			if t.Neigh != nil {
				var n tapgateTgNeigh
				if err := g.maps[tapgateMapTgNeighs].Lookup(*t.Neigh, &n); err != nil {
					return fmt.Errorf("read next hop: %w", err)
				}
				ts.Neighbour = neighbourStatus(n)
			}
			ms.Targets = append(ms.Targets, ts)
		}
		s.Mirrors = append(s.Mirrors, ms)
	}
	return nil
}

func (g *Gateway) statusLinks(s *Status) error {
	for _, m := range g.active.Members {
		if m.Role != RoleDMZ {
			continue
		}
		l, err := netlink.LinkByIndex(m.Ifindex)
		if err != nil {
			continue // told among the members
		}
		a := l.Attrs()
		ls := LinkStatus{
			Interface: a.Name, MTU: a.MTU,
			Up: a.RawFlags&unix.IFF_UP != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		}
		if a.Statistics != nil {
			ls.TxPackets, ls.TxDropped = a.Statistics.TxPackets, a.Statistics.TxDropped
		}
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			return fmt.Errorf("list qdiscs of %s: %w", a.Name, err)
		}
		for _, q := range qdiscs {
			qa := q.Attrs()
			if qa.Parent == netlink.HANDLE_ROOT && qa.Statistics != nil && qa.Statistics.Queue != nil {
				ls.QdiscDrops += uint64(qa.Statistics.Queue.Drops)
			}
		}
		s.Links = append(s.Links, ls)
	}
	return nil
}
