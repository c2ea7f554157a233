package loader

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Flow is a connection, or what is like one, between an inside host and a remote.
type Flow struct {
	Proto   string `json:"proto"`
	Inside  string `json:"inside"`  // ADDR:PORT; the id of an ICMP query as port; ADDR alone for protocols without
	Outside string `json:"outside"` // what the remote sees in its place
	Remote  string `json:"remote"`
	// Asked is what the inside host has asked for, where that is not the remote
	// (hairpin: an outside address of ours).
	Asked       string  `json:"asked,omitempty"`
	State       string  `json:"state"` // provisional; opening, established, closing (TCP); unanswered, answered (others)
	InsideZone  string  `json:"inside_zone"`
	OutsideZone string  `json:"outside_zone"`
	FromOutside bool    `json:"from_outside"`   // the remote began
	Origin      string  `json:"origin"`         // allowed, masquerade, forward, hairpin, eif, adopted
	Rule        string  `json:"rule,omitempty"` // name of the forward, masquerade or policy that let it in
	ExpiresIn   float64 `json:"expires_in"`     // seconds, if nothing more is heard
	Age         float64 `json:"age"`            // seconds
	// From inside (out) and from outside (in), and both together.
	PacketsOut uint64 `json:"packets_out"`
	BytesOut   uint64 `json:"bytes_out"`
	PacketsIn  uint64 `json:"packets_in"`
	BytesIn    uint64 `json:"bytes_in"`
	Packets    uint64 `json:"packets"`
	Bytes      uint64 `json:"bytes"`
	Fast       bool   `json:"fast"`   // the last packet of either side took the fast path, past the host's stack
	Copied     uint64 `json:"copied"` // packets that a mirror of the inside interface took
}

// FlowFilter selects flows; what is left out is not looked at.
type FlowFilter struct {
	Addr   netip.Prefix // of the inside host, of the outside address, or of the remote
	Port   uint16       // of any of them
	Zone   string       // that it begins or ends in
	Proto  string       // as in Flow, or a number
	Rule   string       // that let it in, also one that is gone since
	Origin string       // as in Flow; "forward", "masquerade" and "policy" also by the kind of its rule
}

// flowHalves is a flow as it stands in the map.
type flowHalves struct {
	inKey, outKey tapgateTgTuple
	in, out       tapgateTgSession
}

// Flows lists the flows that are alive.
func (g *Gateway) Flows(filter FlowFilter) ([]Flow, error) {
	if err := g.Sweep(); err != nil {
		return nil, err
	}
	list, err := g.flowsOf(filter)
	if err != nil {
		return nil, err
	}
	names := g.flowNames()
	timers, err := g.timersInForce()
	if err != nil {
		return nil, err
	}
	now := bootTime()
	flows := make([]Flow, 0, len(list))
	for i := range list {
		flows = append(flows, list[i].describe(names, timers, now))
	}
	slices.SortStableFunc(flows, func(a, b Flow) int {
		return cmp.Or(strings.Compare(a.Inside, b.Inside), strings.Compare(a.Proto, b.Proto), strings.Compare(a.Remote, b.Remote),
			strings.Compare(a.Outside, b.Outside))
	})
	return flows, nil
}

// flowsOf reads the flows that filter selects.
func (g *Gateway) flowsOf(filter FlowFilter) ([]flowHalves, error) {
	wanted, err := g.flowMatch(filter)
	if err != nil {
		return nil, err
	}
	return g.readFlows(wanted)
}

// readFlows pairs the halves that wanted says yes to. The map changes meanwhile: a
// half whose other one was not met is asked for again, and what is just being made
// or about to go is left out.
func (g *Gateway) readFlows(wanted func(in, out *tapgateTgTuple, h *tapgateTgSession) bool) ([]flowHalves, error) {
	sessions := g.maps[tapgateMapTgSessions]
	insides, outsides := map[tapgateTgTuple]tapgateTgSession{}, map[tapgateTgTuple]tapgateTgSession{}
	err := eachElement(sessions, func(key *tapgateTgTuple, h *tapgateTgSession) {
		switch {
		case h.Half == uint8(tapgateTgHalfTG_HALF_INSIDE) && wanted(key, &h.Other, h):
			insides[*key] = *h
		case h.Half == uint8(tapgateTgHalfTG_HALF_OUTSIDE) && wanted(&h.Other, key, h):
			outsides[*key] = *h
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the flows: %w", err)
	}
	list := make([]flowHalves, 0, len(outsides))
	for key, out := range outsides {
		if life := tapgateTgLife(out.Life); life != tapgateTgLifeTG_LIFE_LIVE && life != tapgateTgLifeTG_LIFE_NEW {
			continue
		}
		in, met := insides[out.Other]
		if !met || in.Other != key {
			err := sessions.Lookup(out.Other, &in)
			if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && in.Other != key {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read the flows: %w", err)
			}
		}
		list = append(list, flowHalves{inKey: out.Other, outKey: key, in: in, out: out})
	}
	return list, nil
}

// eachElement reads a hash map, in batches where the kernel has them (5.6).
func eachElement[K comparable, V any](m *ebpf.Map, f func(*K, *V)) error {
	const batch = 4096
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, ebpf.ErrNotSupported) {
			break
		}
		for i := range n {
			f(&keys[i], &values[i])
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil // that was all
		}
		if err != nil {
			return err
		}
	}
	var key K
	var value V
	it := m.Iterate()
	for it.Next(&key, &value) {
		f(&key, &value)
	}
	if err := it.Err(); !errors.Is(err, ebpf.ErrIterationAborted) {
		return err
	}
	return nil // it changed faster than it can be read: what was read will do
}

// flowMatch makes a function of a filter. It works on one half's view as well as
// on the other's.
func (g *Gateway) flowMatch(f FlowFilter) (func(in, out *tapgateTgTuple, h *tapgateTgSession) bool, error) {
	proto := -1
	if f.Proto != "" {
		n, ok := flowProto(f.Proto)
		if !ok {
			return nil, fmt.Errorf("unknown protocol %q: it is one of %s, or a number up to 255", f.Proto, strings.Join(flowProtos(), ", "))
		}
		proto = int(n)
	}
	var zone uint8
	if f.Zone != "" {
		i := slices.IndexFunc(g.active.Zones, func(z zoneRecord) bool { return z.Name == f.Zone })
		if i < 0 {
			var known []string
			for _, z := range g.active.Zones {
				if !z.Gone {
					known = append(known, z.Name)
				}
			}
			return nil, fmt.Errorf("no zone %q; there are: %s", f.Zone, strings.Join(known, ", "))
		}
		zone = g.active.Zones[i].Number
	}
	if f.Origin != "" && f.Origin != kindPolicy && !slices.Contains(originNames[:], f.Origin) {
		return nil, fmt.Errorf("unknown origin %q: it is one of %s", f.Origin, strings.Join(originNames[:], ", "))
	}
	rules := g.rulesNamed(f.Rule, f.Origin)
	port := bigEndian(f.Port)
	return func(in, out *tapgateTgTuple, h *tapgateTgSession) bool {
		switch {
		case proto >= 0 && int(in.Proto) != proto,
			f.Port != 0 && in.Sport != port && in.Dport != port && out.Sport != port && out.Dport != port,
			zone != 0 && h.InsideZone != zone && h.OutsideZone != zone,
			f.Rule != "" && !rules[uint32(h.Rule)],
			f.Rule == "" && f.Origin != "" && originName(h.Origin) != f.Origin && !rules[uint32(h.Rule)]:
			return false
		}
		return !f.Addr.IsValid() || within(f.Addr, in.Src) || within(f.Addr, in.Dst) || within(f.Addr, out.Src) || within(f.Addr, out.Dst)
	}, nil
}

func within(p netip.Prefix, a [16]byte) bool { return p.Contains(netip.AddrFrom16(a).Unmap()) }

// rulesNamed are the rules of that name and kind, as flows have their numbers.
func (g *Gateway) rulesNamed(name, kind string) map[uint32]bool {
	numbers := map[uint32]bool{}
	if g.active.Gateway == nil {
		return numbers
	}
	for _, r := range g.active.Gateway.Rules {
		if (name == "" || r.Name == name) && (kind == "" || r.Kind == kind) {
			numbers[r.Number+1] = true
		}
	}
	return numbers
}

// flowNames are the names behind numbers in flows.
type flowNames struct {
	zones map[uint8]string
	rules map[uint32]string
}

func (g *Gateway) flowNames() flowNames { return namesOf(g.live()) }

// namesOf are those of the first of these generations, and what only others name: flows
// of the configuration before go on while a change waits.
func namesOf(live []generation) flowNames {
	n := flowNames{zones: map[uint8]string{}, rules: map[uint32]string{}}
	for _, in := range slices.Backward(live) {
		for _, z := range in.Zones {
			n.zones[z.Number] = z.Name
		}
		if in.Gateway != nil {
			for _, r := range in.Gateway.Rules {
				n.rules[r.Number+1] = r.Name
			}
		}
	}
	return n
}

func (f *flowHalves) describe(names flowNames, timers [tapgateTgTimerTG_TIMERS]uint64, now uint64) Flow {
	proto := f.inKey.Proto
	timer, since := flowState(&f.in, &f.out, proto)
	out := Flow{
		Proto:  flowProtoName(proto),
		Inside: endpointText(f.inKey.Src, f.inKey.Sport), Outside: endpointText(f.outKey.Dst, f.outKey.Dport),
		Remote: endpointText(f.outKey.Src, f.outKey.Sport), State: stateName(timer, flowAnswered(&f.in, &f.out, proto)),
		InsideZone: names.zones[f.out.InsideZone], OutsideZone: names.zones[f.out.OutsideZone],
		Origin: originName(f.out.Origin), Rule: names.rules[uint32(f.out.Rule)],
		Age:        secondsBetween(max(atCoarse(f.in.Created, now), atCoarse(f.out.Created, now)), now),
		ExpiresIn:  secondsBetween(now, since+timers[timer]),
		PacketsOut: f.in.Packets, BytesOut: f.in.Bytes, PacketsIn: f.out.Packets, BytesIn: f.out.Bytes,
		Packets: f.in.Packets + f.out.Packets, Bytes: f.in.Bytes + f.out.Bytes, Copied: f.in.Copied + f.out.Copied,
		Fast: f.in.Fast|f.out.Fast != 0, FromOutside: f.out.Flags&flowInitiator != 0,
	}
	if asked := endpointText(f.inKey.Dst, f.inKey.Dport); asked != out.Remote {
		out.Asked = asked
	}
	return out
}

// secondsBetween is never negative: clocks are read one after the other.
func secondsBetween(from, to uint64) float64 {
	if to <= from {
		return 0
	}
	return float64((to-from)/1e6) / 1000
}

// endpointText is ADDR:PORT, or the address alone where there is no port.
func endpointText(addr [16]byte, port uint16) string {
	a := netip.AddrFrom16(addr).Unmap()
	if port == 0 {
		return a.String()
	}
	return netip.AddrPortFrom(a, bigEndian(port)).String()
}

// translated says whether packets of the flow become others.
func (f *flowHalves) translated() bool {
	return f.inKey.Src != f.outKey.Dst || f.inKey.Dst != f.outKey.Src || f.inKey.Sport != f.outKey.Dport || f.inKey.Dport != f.outKey.Sport
}

var originNames = func() (names [tapgateTgOriginTG_ORIGIN_ADOPTED + 1]string) {
	names[tapgateTgOriginTG_ORIGIN_ALLOWED] = "allowed"
	names[tapgateTgOriginTG_ORIGIN_MASQUERADE] = kindMasquerade
	names[tapgateTgOriginTG_ORIGIN_FORWARD] = kindForward
	names[tapgateTgOriginTG_ORIGIN_HAIRPIN] = "hairpin"
	names[tapgateTgOriginTG_ORIGIN_EIF] = "eif"
	names[tapgateTgOriginTG_ORIGIN_ADOPTED] = "adopted"
	return names
}()

func originName(n uint8) string {
	if int(n) < len(originNames) {
		return originNames[n]
	}
	return strconv.Itoa(int(n))
}

// Protocols that have a name in lists of flows.
var protoNames = []struct {
	name   string
	number uint8
}{
	{"tcp", unix.IPPROTO_TCP},
	{"udp", unix.IPPROTO_UDP},
	{"icmp", unix.IPPROTO_ICMP},
	{"icmpv6", unix.IPPROTO_ICMPV6},
	{"udplite", unix.IPPROTO_UDPLITE},
	{"sctp", unix.IPPROTO_SCTP},
	{"dccp", unix.IPPROTO_DCCP},
	{"gre", unix.IPPROTO_GRE},
	{"esp", unix.IPPROTO_ESP},
	{"ah", unix.IPPROTO_AH},
	{"ipip", unix.IPPROTO_IPIP},
	{"ipv6", unix.IPPROTO_IPV6},
}

func flowProtos() (names []string) {
	for _, p := range protoNames {
		names = append(names, p.name)
	}
	return names
}

func flowProto(name string) (uint8, bool) {
	for _, p := range protoNames {
		if p.name == name {
			return p.number, true
		}
	}
	n, err := strconv.ParseUint(name, 10, 8)
	return uint8(n), err == nil
}

func flowProtoName(number uint8) string {
	for _, p := range protoNames {
		if p.number == number {
			return p.name
		}
	}
	return strconv.Itoa(int(number))
}
