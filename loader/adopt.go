package loader

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Cut-over. A machine that has translated by the kernel's own NAT changes to ours
// and back, and no connection breaks: what it tracks becomes our flows before our
// first generation is in force, with the same outside ports, and our flows become
// connections that it translates when there is no generation any more. The entry
// of a connection that somebody else translates says nothing about translation,
// since the host then sees inside addresses only.

// cutOver is called before a plan is in force. It returns what has to be done when
// it is. Trouble is told, and no reason not to go on: connections begin anew.
//
// For a moment both translate, in either direction. Then a packet from inside comes
// to us translated and is dropped, and one from outside finds the kernel's entry
// in its way: both are sent again. If nobody did, the machine itself would answer
// packets to its address, with RST.
func (g *Gateway) cutOver(p *plan) (after func(*Result)) {
	had, has := g.active.Gateway != nil, p.record.Gateway != nil
	var taken []adoption
	var told []string
	var err error
	switch {
	case !had && has:
		taken, told, err = g.adopt(p)
	case had && !has:
		told, err = g.handBack()
	}
	return func(result *Result) {
		result.Changes = append(result.Changes, told...)
		if err := errors.Join(err, g.letGo(taken)); err != nil {
			result.Warnings = append(result.Warnings, err.Error())
		}
	}
}

// adoption is a tracked connection of an inside host that is translated, or that
// replies must be let in for.
type adoption struct {
	order tapgateTgOrder
	entry ctEntry
	orig  ctTuple // its entry when we translate
	flow  bool    // of TCP or UDP: it becomes a flow; others begin anew
}

// adopter finds out whose a connection is.
type adopter struct {
	g      *Gateway
	p      *plan
	inside map[netip.Prefix]uint8
	ways   map[netip.Addr]uint8 // zones behind which remotes are
	rules  kernelRules
}

// adopt makes flows of what the kernel translates. It returns what letGo has to do
// once the plan is in force.
func (g *Gateway) adopt(p *plan) (taken []adoption, told []string, err error) {
	// Of a gateway that was here before: who has been killed may have left some.
	if err := g.endAll(); err != nil {
		return nil, nil, err
	}
	ct, err := openConntrack()
	if ct == nil || err != nil {
		return nil, nil, err
	}
	defer ct.close()
	entries, err := ct.list()
	if err != nil {
		return nil, nil, err
	}
	a := &adopter{g: g, p: p, inside: map[netip.Prefix]uint8{}, ways: map[netip.Addr]uint8{}}
	for _, z := range p.record.Zones {
		if z.Gone {
			continue
		}
		for _, prefix := range p.record.Gateway.Inside[z.Name] {
			a.inside[prefix] = z.Number
		}
	}
	if err := g.maps[tapgateMapTgRules].Lookup(1-g.slot, &a.rules.rules); err != nil {
		return nil, nil, fmt.Errorf("open the rules to come: %w", err)
	}
	defer a.rules.rules.Close()
	a.rules.ours = g.maps[tapgateMapTgOurs]
	flows, refused := 0, map[tapgateTgReason][]ctTuple{}
	for _, e := range entries {
		ad, ok := a.judge(e)
		if !ok {
			continue
		}
		if ad.flow {
			ret, err := g.order(tapgateProgTapgateOpen, ad.order, 1)
			if err != nil {
				return taken, nil, fmt.Errorf("take over a connection: %w", err)
			}
			if why := tapgateTgReason(ret); why != tapgateTgReasonTG_PASS_NEW_FLOW {
				refused[why] = append(refused[why], ad.entry.orig)
				continue
			}
			flows++
		}
		taken = append(taken, ad)
	}
	if flows > 0 {
		told = append(told, "took over "+counted(flows, "connection")+" from the kernel's NAT")
	}
	for _, why := range slices.Sorted(maps.Keys(refused)) {
		g.warnings = append(g.warnings, notTaken(why, refused[why]))
	}
	return taken, told, nil
}

// notTaken tells of connections that end, since they could not be taken over.
func notTaken(why tapgateTgReason, list []ctTuple) string {
	text := map[tapgateTgReason]string{
		tapgateTgReasonTG_DROP_NO_PORT: "another inside host has the outside port", tapgateTgReasonTG_DROP_TABLE_FULL: "the flow table is full, or the host's part of it",
		tapgateTgReasonTG_DROP_BUSY: "there is a flow like it",
	}[why]
	if text == "" {
		text = reasonNames()[why]
	}
	const some = 3
	var names []string
	for _, t := range list[:min(some, len(list))] {
		k := t.key()
		names = append(names, flowProtoName(t.proto)+" "+endpointText(k.Src, k.Sport)+" > "+endpointText(k.Dst, k.Dport))
	}
	more := when(len(list) > some, ", ...")
	return fmt.Sprintf("%s of the kernel's NAT could not be taken over, since %s: %s%s", counted(len(list), "connection"), text, strings.Join(names, ", "), more)
}

// endAll ends all flows of a gateway that is no more. Nobody looks at them: the ports
// are the kernel's to give.
func (g *Gateway) endAll() error {
	list, err := g.flowsOf(FlowFilter{})
	if err == nil && len(list) > 0 {
		_, err = g.flush(list)
	}
	if err != nil {
		return fmt.Errorf("end the flows of before: %w", err)
	}
	return nil
}

// zoneInside is the internal zone that an address is of, 0 for none.
func (a *adopter) zoneInside(addr netip.Addr) (zone uint8) {
	longest := -1
	for prefix, number := range a.inside {
		if prefix.Bits() > longest && prefix.Contains(addr) {
			longest, zone = prefix.Bits(), number
		}
	}
	return zone
}

func (a *adopter) judge(e ctEntry) (ad adoption, ok bool) {
	from, to := a.zoneInside(e.orig.src), a.zoneInside(e.reply.src)
	if e.zone != 0 || (from == 0) == (to == 0) {
		return ad, false // of the gateway itself, or between inside hosts
	}
	ad.entry = e
	// The kernel's two tuples are the keys of our two halves.
	in, out := e.orig, e.reply
	ad.orig = in
	if to != 0 {
		in, out = e.reply, e.orig
		ad.orig = in.reversed()
		ad.order.FromOutside = 1
	}
	ad.order.InsideZone = max(from, to)
	translated := in.src != out.dst || in.sport != out.dport
	if translated {
		our, known := a.p.gateway.ours[tapgateTgOursKey{Addr: out.dst.As16()}]
		if !known {
			return ad, false // to an address that will not be ours
		}
		ad.order.OutsideZone = our.Zone
	} else if ad.order.OutsideZone = a.zoneBehind(out.src); ad.order.OutsideZone == 0 {
		return ad, false
	}
	ad.order.Inside, ad.order.Outside = in.key(), out.key()
	ad.order.Generation = uint8(1 - a.g.slot)
	ad.order.Established = 1
	ad.order.Number = a.rule(in, out, ad.order)
	if translated && ad.order.FromOutside == 0 {
		ad.order.Translated = 1
	}
	switch e.orig.proto {
	case unix.IPPROTO_TCP:
		ad.flow = e.tcpState >= tcpEstablish && e.tcpState <= tcpLastACK
	case unix.IPPROTO_UDP:
		ad.flow = e.status&ctSeenReply != 0
	}
	// Of what becomes no flow only the translation is taken away.
	return ad, ad.flow || translated
}

// zoneBehind is the external zone that the way to a remote leads to, 0 for none.
func (a *adopter) zoneBehind(remote netip.Addr) uint8 {
	if zone, known := a.ways[remote]; known {
		return zone
	}
	var zone uint8
	if routes, err := netlink.RouteGet(remote.AsSlice()); err == nil && len(routes) > 0 {
		for _, m := range a.p.record.Members {
			if m.Ifindex == routes[0].LinkIndex && m.Role == RoleExternal {
				zone = a.p.members[uint32(m.Ifindex)].Zone
			}
		}
	}
	a.ways[remote] = zone
	return zone
}

// rule is the number of the rule that would have let it in, and 1; 0 for none.
func (a *adopter) rule(in, out ctTuple, o tapgateTgOrder) uint32 {
	var r *tapgateTgRule
	var err error
	if o.FromOutside == 1 {
		r, err = findForward(a.rules, o.OutsideZone, endpoints{src: out.src, dst: out.dst, sport: out.sport, dport: out.dport, proto: out.proto})
	} else {
		r, _, err = findMasquerade(a.rules, o.InsideZone, o.OutsideZone, endpoints{src: in.src, dst: in.dst, sport: in.sport, dport: in.dport, proto: in.proto})
	}
	if r == nil || err != nil {
		return 0
	}
	return r.Number + 1
}

func (t ctTuple) key() tapgateTgTuple {
	return tapgateTgTuple{Src: t.src.As16(), Dst: t.dst.As16(), Sport: bigEndian(t.sport), Dport: bigEndian(t.dport), Proto: t.proto}
}

func tupleOf(k tapgateTgTuple) ctTuple {
	return ctTuple{
		proto: k.Proto, src: netip.AddrFrom16(k.Src).Unmap(), dst: netip.AddrFrom16(k.Dst).Unmap(),
		sport: bigEndian(k.Sport), dport: bigEndian(k.Dport),
	}
}

// letGo has the kernel translate what was taken over no longer.
func (g *Gateway) letGo(taken []adoption) error {
	if len(taken) == 0 {
		return nil
	}
	ct, err := openConntrack()
	if ct == nil || err != nil {
		return err
	}
	defer ct.close()
	var errs []error
	for _, ad := range taken {
		if ad.entry.status&(ctSrcNAT|ctDstNAT) == 0 {
			continue // says nothing of translation
		}
		err := ct.removeEntry(ad.entry)
		if err == nil && ad.flow {
			// A firewall of the host's that asks for connections goes on to know it.
			err = ct.create(ad.orig, ad.entry.timeout, netip.AddrPort{}, netip.AddrPort{})
			if errors.Is(err, unix.EEXIST) {
				err = nil // its next packet was faster
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("take the kernel's translation away from %s port %d: %w", ad.orig.src, ad.orig.sport, err))
		}
		if len(errs) > 3 {
			break
		}
	}
	return errors.Join(errs...)
}

// leaving are flows that end with the translation, read while they are there.
type leaving struct {
	flows []flowHalves
	timer [tapgateTgTimerTG_TIMERS]uint64
}

// leaveFlows reads the translated flows.
func (g *Gateway) leaveFlows() (l leaving, err error) {
	if g.active.Gateway == nil {
		return l, nil
	}
	if l.timer, err = g.timersInForce(); err != nil {
		return l, err
	}
	all, err := g.flowsOf(FlowFilter{})
	l.flows = keepIf(all, func(f flowHalves) bool { return f.translated() })
	return l, err
}

// handBack gives flows to the kernel's connection tracking, if there is one, for its
// own NAT to go on with.
func (g *Gateway) handBack() (told []string, err error) {
	l, err := g.leaveFlows()
	if len(l.flows) == 0 || err != nil {
		return nil, err
	}
	if g.opt.Planner != nil {
		g.opt.Planner.Ending(len(l.flows))
	}
	handed, err := l.toConntrack()
	line := "ended " + counted(len(l.flows), "translated flow")
	if handed > 0 {
		line += fmt.Sprintf(" (%d handed to the kernel's connection tracking, for a NAT of the host's own to go on with)", handed)
	}
	return []string{line}, err
}

func (l leaving) toConntrack() (handed int, failed error) {
	ct, err := openConntrack()
	if ct == nil || err != nil {
		return 0, err
	}
	defer ct.close()
	now := bootTime()
	for i := range l.flows {
		f := &l.flows[i]
		in, out := tupleOf(f.inKey), tupleOf(f.outKey)
		timer, since := flowState(&f.in, &f.out, in.proto)
		left := secondsBetween(now, since+l.timer[timer])
		if f.out.Origin == uint8(tapgateTgOriginTG_ORIGIN_HAIRPIN) || left <= 0 {
			continue
		}
		switch in.proto {
		case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		default:
			continue // what the kernel makes of others is its own business
		}
		// What the kernel knows of it has no translation, and never gets one.
		if err := ct.remove(tupleAttr(nl.CTA_TUPLE_ORIG, in), in.src.Is6()); err != nil {
			failed = firstOf(failed, fmt.Errorf("hand flows to the kernel's connection tracking: take %s of %s out: %w", flowProtoName(in.proto), in.src, err))
			continue
		}
		goesOn := in.proto == unix.IPPROTO_TCP && timer == tapgateTgTimerTG_TIMER_TCP_ESTABLISHED ||
			in.proto == unix.IPPROTO_UDP && flowAnswered(&f.in, &f.out, in.proto)
		if !goesOn {
			continue // it begins anew with its next packet
		}
		orig, snat, dnat := in, netip.AddrPortFrom(out.dst, out.dport), netip.AddrPort{}
		if in.dst != out.src || in.dport != out.sport {
			dnat = netip.AddrPortFrom(out.src, out.sport)
		}
		if f.out.Flags&flowInitiator != 0 {
			orig, snat, dnat = out, netip.AddrPort{}, netip.AddrPortFrom(in.src, in.sport)
		}
		err := ct.create(orig, uint32(left)+1, snat, dnat)
		switch {
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
			return handed, nil // no NAT in this kernel
		case errors.Is(err, unix.EEXIST):
		case err != nil:
			failed = firstOf(failed, fmt.Errorf("hand flows to the kernel's connection tracking: put %s of %s in: %w", flowProtoName(in.proto), in.src, err))
		default:
			handed++
		}
	}
	return handed, failed
}

// firstOf keeps the first error: the others have the same reason, and one flow must
// not keep the rest from being handed over.
func firstOf(first, next error) error {
	if first != nil {
		return first
	}
	return next
}
