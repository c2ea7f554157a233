package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// explain follows the packet as README.md of the data plane has it: what happens
// where it comes in, the host's route, what happens where it leaves.
func (e *explainer) explain(from string) error {
	own, err := e.comesFrom(from)
	if err != nil {
		return err
	}
	var copies uint64
	before := e.packet
	if !own {
		if e.in != nil {
			if copies, err = e.copied(e.in, "ingress", 0); err != nil {
				return err
			}
		}
		if done, err := e.ingress(); done || err != nil {
			return err
		}
	}
	if done, err := e.route(own); done || err != nil {
		return err
	}
	if !own && e.hostFirewall() {
		return nil
	}
	done, err := e.egress(own)
	if done || err != nil {
		return err
	}
	if e.out.Reason == reasonNames()[tapgateTgReasonTG_PASS_NEW_FLOW] {
		if err := e.room(before.src); err != nil {
			return err
		}
	}
	if e.packet != before {
		copies = 0 // it wears other headers now
	}
	if e.out.Verdict != verdictDrop && e.to != nil {
		_, err = e.copied(e.to, "egress", copies)
	}
	return err
}

// comesFrom finds the interface that the packet comes in by. own: it has none, since the gateway sends it.
func (e *explainer) comesFrom(zone string) (own bool, err error) {
	src := e.packet.src
	if owner := e.topo.owner(src); owner != nil && zone == "" {
		e.step("from", "%s is the gateway's own address, on %s", src, owner.Attrs().Name)
		return true, nil
	}
	routed := 0
	if routes, err := netlink.RouteGet(src.AsSlice()); err == nil && len(routes) > 0 {
		routed = routes[0].LinkIndex
	}
	why := "its address"
	if zone == "" {
		if zone, err = e.insideZone(routed); err != nil {
			return false, err
		}
	} else {
		why = "the question"
		if e.zoneNumber(zone) == 0 {
			return false, fmt.Errorf("explain: no zone %q; there are: %s", zone, e.zoneList())
		}
	}
	if zone != "" {
		for i, m := range e.g.active.Members {
			if m.Zone == zone && (e.in == nil || m.Ifindex == routed) {
				e.in = &e.g.active.Members[i]
			}
		}
	} else {
		why, e.in = "the route back to it", e.memberAt(routed)
	}
	switch {
	case e.in != nil:
		e.out.From = endOf(e.in)
		e.step("from", "zone %s, interface %s: by %s", zoneText(e.in), e.in.Interface, why)
	case routed == 0:
		return false, fmt.Errorf("explain: there is no route to %s, so where it comes from is unknown: name the zone", src)
	default:
		e.out.From.Interface = e.interfaceName(routed)
		e.step("from", "interface %s, which is in no zone: by %s", e.out.From.Interface, why)
	}
	return false, nil
}

// zoneText is the zone, with its role where the name does not say it.
func zoneText(m *memberRecord) string {
	if m.Zone == string(m.Role) {
		return m.Zone
	}
	return fmt.Sprintf("%s (%s)", m.Zone, m.Role)
}

// insideZone is the internal zone whose hosts may use the source. Where several
// may, it is the one that the route back leads to.
func (e *explainer) insideZone(routed int) (found string, err error) {
	for _, z := range e.g.active.Zones {
		if z.Gone || z.Role != RoleInternal || e.packet.src.IsUnspecified() || e.packet.src.IsLinkLocalUnicast() {
			continue
		}
		ok, err := sourceOK(e.rules, z.Number, e.packet.src)
		if err != nil {
			return "", err
		}
		m := e.memberAt(routed)
		if ok && (found == "" || m != nil && m.Zone == z.Name) {
			found = z.Name
		}
	}
	return found, nil
}

func (e *explainer) zoneList() string {
	var names []string
	for _, z := range e.g.active.Zones {
		if !z.Gone {
			names = append(names, z.Name)
		}
	}
	return strings.Join(names, ", ")
}

// ingress is what happens where the packet comes in. done: it goes no further.
func (e *explainer) ingress() (done bool, err error) {
	if e.in != nil && e.in.Role == RoleDMZ {
		e.endFor(tapgateTgReasonTG_DROP_FROM_DMZ, "nothing comes in from a dmz zone but neighbour discovery")
		return true, nil
	}
	if e.g.active.Gateway == nil || e.in == nil {
		return false, nil
	}
	if e.in.Role == RoleInternal {
		ok, err := sourceOK(e.rules, e.zoneNumber(e.in.Zone), e.packet.src)
		if err != nil {
			return false, err
		}
		if !ok {
			e.endFor(tapgateTgReasonTG_DROP_SPOOFED, "%s is none of zone %s: its networks are %s", e.packet.src, e.in.Zone,
				strings.TrimSpace(listed("", e.g.active.Gateway.Inside[e.in.Zone])))
			return true, nil
		}
	}
	if found, err := e.findFlow(); found || err != nil {
		return found, err
	}
	ours, err := e.rules.our(e.packet.dst)
	if err != nil || ours == nil {
		return false, err
	}
	switch e.in.Role {
	case RoleInternal:
		return e.hairpin(ours)
	case RoleExternal:
		return e.fromOutside(ours)
	}
	return false, nil
}

// findFlow looks for a flow that the packet belongs to, if the question says enough.
func (e *explainer) findFlow() (bool, error) {
	if e.packet.sport == 0 && protoHasPorts(e.packet.proto) {
		return false, nil
	}
	key := tapgateTgTuple{
		Src: e.packet.src.As16(), Dst: e.packet.dst.As16(), Sport: bigEndian(e.packet.sport), Dport: bigEndian(e.packet.dport), Proto: e.packet.proto,
	}
	list, err := e.g.readFlows(func(in, out *tapgateTgTuple, _ *tapgateTgSession) bool { return *in == key || *out == key })
	if err != nil || len(list) == 0 {
		return false, err
	}
	timers, err := e.g.timersInForce()
	if err != nil {
		return false, err
	}
	flow := list[0].describe(e.names, timers, bootTime())
	e.out.Flow = &flow
	e.step("flow", "%s: inside %s, outside %s, remote %s", flow.State, flow.Inside, flow.Outside, flow.Remote)
	e.endFor(tapgateTgReasonTG_PASS_FLOW, "it belongs to a flow (%s), so no rule is asked", flow.State)
	return true, nil
}

// forwardAsked notes a forward and gives the packet the inside destination.
func (e *explainer) forwardAsked(r *tapgateTgRule, hairpin bool) {
	inside, port := netip.AddrFrom16(r.Addr).Unmap(), r.To+(e.packet.dport-r.First)
	f := &ExplanationForward{Name: e.names.rules[r.Number+1], To: netip.AddrPortFrom(inside, port).String(), Hairpin: hairpin}
	e.out.Forward = f
	limit := ""
	if r.Rate > 0 {
		limit += fmt.Sprintf("; at most %d new flows a second", r.Rate)
	}
	if r.RateRemote > 0 {
		limit += fmt.Sprintf("; at most %d a second from each remote", r.RateRemote)
	}
	e.step("forward", "%s: %s becomes %s%s", f.Name, endpointText(e.packet.dst.As16(), bigEndian(e.packet.dport)), f.To, limit)
	e.packet.dst, e.packet.dport = inside, port
}

// hairpin is for an inside host that asks an outside address of ours.
func (e *explainer) hairpin(ours *tapgateTgOurAddr) (done bool, err error) {
	from := e.zoneNumber(e.in.Zone)
	forward, err := findForward(e.rules, ours.Zone, e.packet)
	if err != nil {
		return false, err
	}
	masquerade, _, err := findMasquerade(e.rules, from, ours.Zone, e.packet)
	if err != nil {
		return false, err
	}
	if masquerade == nil {
		return false, nil
	}
	switch binding, err := e.binding(ours.Zone); {
	case err != nil:
		return false, err
	case forward != nil:
		e.forwardAsked(forward, true)
	case binding != nil:
		e.mapped(binding)
	default:
		return false, nil
	}
	if err := e.masqueraded(masquerade, int(ours.Ifindex)); err != nil {
		return false, err
	}
	if done, err := e.route(true); done || err != nil {
		return done, err
	}
	e.endFor(tapgateTgReasonTG_PASS_HAIRPIN, "turned round to the inside host, both ends translated")
	if e.to != nil {
		_, err = e.copied(e.to, "egress", 0)
	}
	return true, err
}

// fromOutside is for a packet to an outside address of ours.
func (e *explainer) fromOutside(ours *tapgateTgOurAddr) (done bool, err error) {
	zone := e.zoneNumber(e.in.Zone)
	forward, err := findForward(e.rules, zone, e.packet)
	if err != nil {
		return false, err
	}
	if forward != nil {
		e.forwardAsked(forward, false)
		return false, nil
	}
	asked := e.packet
	binding, err := e.binding(zone)
	if err != nil {
		return false, err
	}
	if binding != nil {
		open, err := e.admits(binding, asked)
		if err != nil {
			return false, err
		}
		if !open {
			e.endFor(tapgateTgReasonTG_DROP_UNSOLICITED, "the port is %s's, which has not sent to %s; a connection of the gateway's own that has the same port passes",
				endpointText(binding.Other.Addr, binding.Other.Port), asked.src)
			return true, nil
		}
		e.mapped(binding)
		return false, nil
	}
	if ours.Assigned == 0 {
		return false, nil // the route says what becomes of it
	}
	near, err := e.nearForward(zone)
	if err != nil {
		return false, err
	}
	if near != "" {
		e.step("forward", "%s", near)
	}
	text := "no forward and no mapping of an inside host has it: the gateway's own services and firewall decide"
	if asked.proto == protoTCP {
		text += "; a connection that none of these answers is dropped without an answer (RFC 5382 REQ-4)"
	}
	e.endFor(tapgateTgReasonTG_PASS_TO_HOST, "%s", text)
	return true, nil
}

// binding is the mapping that an outside endpoint belongs to, or nil.
func (e *explainer) binding(zone uint8) (*tapgateTgBinding, error) {
	key := tapgateTgEndpoint{
		Addr: e.packet.dst.As16(), Port: bigEndian(e.packet.dport), Proto: e.packet.proto, Half: uint8(tapgateTgHalfTG_HALF_OUTSIDE), Scope: zone,
	}
	b, err := lookup[tapgateTgBinding](e.g.maps[tapgateMapTgBindings], key)
	if b == nil || err != nil || tapgateTgLife(b.Life) != tapgateTgLifeTG_LIFE_LIVE {
		return nil, err
	}
	return b, nil
}

// admits says whether a remote may come in by a mapping.
func (e *explainer) admits(b *tapgateTgBinding, asked endpoints) (bool, error) {
	if b.Flags&masqEIF != 0 && b.Sessions > 0 {
		return true, nil
	}
	if b.Remotes > 0 && b.Remote == asked.src.As16() {
		return true, nil
	}
	key := tapgateTgRemoteKey{Outside: asked.dst.As16(), Remote: asked.src.As16(), Port: bigEndian(asked.dport), Proto: asked.proto}
	r, err := lookup[tapgateTgRemote](e.g.maps[tapgateMapTgRemotes], key)
	return r != nil && r.Dead == 0, err
}

func (e *explainer) mapped(b *tapgateTgBinding) {
	inside := netip.AddrFrom16(b.Other.Addr).Unmap()
	e.step("mapping", "%s becomes %s, whose mapping it is", endpointText(e.packet.dst.As16(), bigEndian(e.packet.dport)), endpointText(b.Other.Addr, b.Other.Port))
	e.packet.dst, e.packet.dport = inside, bigEndian(b.Other.Port)
}

// route asks the host. own: as for packets of the gateway itself.
func (e *explainer) route(own bool) (done bool, err error) {
	opt := &netlink.RouteGetOptions{}
	if !own {
		opt.Iif, opt.SrcAddr = e.out.From.Interface, e.packet.src.AsSlice()
	}
	routes, err := netlink.RouteGetWithOptions(e.packet.dst.AsSlice(), opt)
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL) && !own && e.filteredBack():
		e.end(verdictDrop, "kernel_rp_filter", "the kernel's reverse path filter: the route back to %s does not lead to %s (sysctl rp_filter)", e.packet.src, e.out.From.Interface)
		return true, nil
	case errors.Is(err, unix.EINVAL) && !own:
		e.end(verdictDrop, "kernel_martian", "the kernel takes the source %s for impossible on %s", e.packet.src, e.out.From.Interface)
		return true, nil
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES), err == nil && len(routes) == 0,
		err == nil && slices.Contains([]int{unix.RTN_UNREACHABLE, unix.RTN_BLACKHOLE, unix.RTN_PROHIBIT}, routes[0].Type):
		e.unrouted(own)
		return true, nil
	case err != nil:
		return false, fmt.Errorf("ask for the route to %s: %w", e.packet.dst, err)
	}
	r := routes[0]
	way := &ExplanationWay{Interface: e.interfaceName(r.LinkIndex), Local: r.Type == unix.RTN_LOCAL}
	e.out.Way = way
	if way.Local {
		e.step("way", "%s is an address of the gateway", e.packet.dst)
		e.endFor(tapgateTgReasonTG_PASS_TO_HOST, "for the gateway itself: its own services and firewall decide")
		return true, nil
	}
	text := "on the link"
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		way.Nexthop = via.Unmap().String()
		text = "by way of " + way.Nexthop
	} else if v, ok := r.Via.(*netlink.Via); ok {
		way.Nexthop = v.Addr.String()
		text = "by way of " + way.Nexthop
	}
	e.to = e.memberAt(r.LinkIndex)
	if e.to == nil {
		e.out.To = &ExplanationEnd{Interface: way.Interface}
		e.step("way", "interface %s, which is in no zone, %s", way.Interface, text)
		return false, nil
	}
	end := endOf(e.to)
	e.out.To = &end
	direct := e.to == e.in && way.Nexthop == "" && e.out.Forward == nil
	e.step("way", "interface %s of zone %s, %s%s", way.Interface, zoneText(e.to), text,
		when(direct, ", as it came: the two reach each other without the gateway, and the tap sees nothing of that"))
	e.neighbour(r.LinkIndex)
	return false, nil
}

// unrouted says why the host has no way for the packet.
func (e *explainer) unrouted(own bool) {
	if off := e.forwardsOff(); off != "" && !own {
		e.end(verdictDrop, "kernel_no_forwarding", "the kernel does not forward: %s", off)
		return
	}
	e.end(verdictDrop, "kernel_no_route", "the kernel has no route to %s", e.packet.dst)
}
