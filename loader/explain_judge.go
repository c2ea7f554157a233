package loader

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// protoHasPorts is tg_proto_has_ports of headers/tuple.h.
func protoHasPorts(proto uint8) bool {
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP:
		return true
	}
	return false
}

// egress is what happens where the packet leaves. done: it goes no further.
func (e *explainer) egress(own bool) (done bool, err error) {
	switch {
	case e.g.active.Gateway == nil:
		e.endFor(tapgateTgReasonTG_PASS_NOT_TAPPED, "tapgate only copies here: what may pass, and how it is translated, is the host's business")
		return false, nil
	case e.to == nil:
		e.endFor(tapgateTgReasonTG_PASS_NOT_MEMBER, "%s is in no zone, so tapgate does not look at what leaves there: the host's firewall decides", e.out.To.Interface)
		return true, nil
	case own:
		e.endFor(tapgateTgReasonTG_PASS_TO_HOST, "what the gateway itself sends is left to its own firewall")
		return false, nil
	case e.to.Role == RoleDMZ:
		e.endFor(tapgateTgReasonTG_DROP_ZONE, "nothing is routed into a dmz zone")
		return true, nil
	case e.out.Forward != nil:
		e.endFor(tapgateTgReasonTG_PASS_NEW_FLOW, "forward %s lets it in", e.out.Forward.Name)
		return false, nil
	case e.wasMapped():
		e.endFor(tapgateTgReasonTG_PASS_NEW_FLOW, "the mapping of the inside host lets it in")
		return false, nil
	}
	passes, err := e.judge()
	if !passes || err != nil {
		return true, err
	}
	return e.translate()
}

// wasMapped says whether a mapping has given the packet another destination.
func (e *explainer) wasMapped() bool {
	return endpointText(e.packet.dst.As16(), bigEndian(e.packet.dport)) != e.out.Dst
}

// judge asks the policies, then the zones' roles. What passes is not told before
// it is translated.
func (e *explainer) judge() (passes bool, err error) {
	if e.in == nil {
		e.endFor(tapgateTgReasonTG_DROP_ZONE, "interface %s is in no zone: it reaches none", e.out.From.Interface)
		return false, nil
	}
	d, err := findPolicy(e.rules, e.zoneNumber(e.in.Zone), e.zoneNumber(e.to.Zone), e.packet)
	if err != nil {
		return false, err
	}
	between := fmt.Sprintf("%s to %s", zoneText(e.in), zoneText(e.to))
	if d == nil {
		if zoneDefault(e.in.Role, e.to.Role) == tapgateTgReasonTG_PASS_ALLOWED {
			e.step("policy", "none is about it, and %s passes by default", between)
			return true, nil
		}
		e.step("policy", "none is about it")
		e.endFor(tapgateTgReasonTG_DROP_ZONE, "%s does not pass by default%s", between,
			when(e.in.Role == RoleExternal, ", but for replies and forwards"))
		return false, nil
	}
	e.out.Policy = e.names.rules[d.number+1]
	if d.accept {
		e.step("policy", "%s accepts it", e.out.Policy)
		return true, nil
	}
	e.step("policy", "%s drops it%s", e.out.Policy, when(d.log, " and logs it"))
	e.endFor(tapgateTgReasonTG_DROP_POLICY, "policy %s", e.out.Policy)
	return false, nil
}

// translate gives a packet that may pass its outside address.
func (e *explainer) translate() (done bool, err error) {
	if e.in.Role == RoleInternal && e.to.Role == RoleInternal {
		e.endFor(tapgateTgReasonTG_PASS_ALLOWED, "between internal zones no flow is needed")
		return false, nil
	}
	passed := "as it is; a flow lets the replies in"
	if e.packet.src.IsPrivate() && !e.packet.dst.IsPrivate() && e.to.Role == RoleExternal {
		passed = fmt.Sprintf("with its own address %s, which is private: no answer finds its way back from the internet", e.packet.src)
	}
	if e.to.Role == RoleExternal {
		r, excluded, err := findMasquerade(e.rules, e.zoneNumber(e.in.Zone), e.zoneNumber(e.to.Zone), e.packet)
		switch {
		case err != nil:
			return false, err
		case excluded:
			e.step("masquerade", "none, since %s is excluded", e.packet.dst)
		case r == nil:
			e.step("masquerade", "none translates %s from %s to %s", e.packet.src, e.in.Zone, e.to.Zone)
		default:
			if err := e.masqueraded(r, e.to.Ifindex); err != nil {
				return false, err
			}
			if len(e.out.Masquerade.Addresses) == 0 {
				e.endFor(tapgateTgReasonTG_DROP_NO_PORT, "masquerade %s has no outside address: %s has none of this IP version", e.out.Masquerade.Name, e.to.Interface)
				return true, nil
			}
			passed = "its source is translated by masquerade " + e.out.Masquerade.Name
		}
	}
	e.endFor(tapgateTgReasonTG_PASS_NEW_FLOW, "%s", passed)
	return false, nil
}

// masqueraded notes the rule, and gives the packet its outside address where there is only one.
func (e *explainer) masqueraded(r *tapgateTgRule, ifindex int) error {
	m := &ExplanationMasquerade{
		Name: e.names.rules[r.Number+1], Addresses: []string{}, Ports: []string{}, EndpointIndependent: r.Flags&masqEIF != 0,
	}
	var list []netip.Addr
	if r.Flags&masqOwnAddr != 0 {
		key := tapgateTgOutsideKey{Ifindex: uint32(ifindex), Family: uint32(familyOf(e.packet.src))}
		own, err := lookup[tapgateTgOutsideAddr](e.g.maps[tapgateMapTgOutside], key)
		if err != nil {
			return err
		}
		if own != nil {
			list = append(list, netip.AddrFrom16(own.Addr).Unmap())
		}
	} else {
		var err error
		if list, err = poolAddresses(e.rules.pools, *r); err != nil {
			return err
		}
	}
	for _, a := range list {
		m.Addresses = append(m.Addresses, a.String())
	}
	for i, hi := range r.Hi {
		if hi != 0 {
			m.Ports = append(m.Ports, PortRange{r.Lo[i], hi}.String())
		}
	}
	e.out.Masquerade = m
	to := "nothing: there is no address"
	switch {
	case len(list) == 1:
		to = list[0].String()
	case len(list) > 1:
		to = fmt.Sprintf("one of %d addresses from %s on, the same for all flows of the host", len(list), list[0])
	}
	e.step("masquerade", "%s: the source becomes %s%s", m.Name, to, when(m.EndpointIndependent, "; everybody may answer"))
	if len(list) == 1 {
		e.packet.src = list[0]
	}
	e.packet.sport = 0
	return nil
}
