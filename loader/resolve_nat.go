package loader

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
)

// The limits of headers/abi_gate.h, and what is sensible of the rest.
const (
	limitZones    = 256 // numbers of one byte, 0 is none
	limitOurs     = 4096
	limitFlows    = 1 << 24
	floorMaxFlows = 16
)

// gateway says whether zones are judged and flows translated, or only copied.
func (c Config) gateway() bool { return c.NAT != nil || len(c.Policies) > 0 }

// maxFlows is how many flows the table shall have room for.
func (c Config) maxFlows() uint32 {
	if c.NAT == nil || c.NAT.MaxFlows == 0 {
		return DefaultMaxFlows
	}
	return c.NAT.MaxFlows
}

// table is how a new flow table is made.
func (c Config) table() tableMaking {
	t := tableMaking{flows: c.maxFlows(), preallocate: c.NAT != nil && c.NAT.Preallocate}
	if !t.preallocate { // memory is taken as it is used
		t.flows = max(t.flows, DefaultMaxFlows)
	}
	return t
}

// gatewayFacts are what the rules need to know of this machine. They are kept in
// the record, so that rules can be made again where an interface is missing.
type gatewayFacts struct {
	// Inside are the networks of each internal zone.
	Inside map[string][]netip.Prefix `json:"inside"`
	// Outside are the external interfaces.
	Outside []outsideRecord `json:"outside"`
	// DefaultPorts are those that the host itself does not use for connections.
	DefaultPorts [2]PortRange `json:"default_ports"`
}

// outsideRecord is an external interface and the addresses that it has, or had when
// somebody last looked.
type outsideRecord struct {
	Interface string       `json:"interface"`
	Ifindex   int          `json:"ifindex"`
	Zone      string       `json:"zone"`
	MTU       int          `json:"mtu"`
	V4        netip.Addr   `json:"v4"` // what masquerade uses, if valid
	V6        netip.Addr   `json:"v6"`
	Addresses []netip.Addr `json:"addresses"` // all that are ours
}

// resolvedGateway is the gateway's part of a Config that this machine can do.
type resolvedGateway struct {
	nat      NAT // with what is left out filled in
	policies []Policy
	roles    map[string]Role
	facts    gatewayFacts
	sysctls  []sysctl
	// forwarding is what is wanted, until settle has decided.
	forwarding ForwardingStatus
}

// newResolvedGateway fills in what the configuration leaves to us.
func newResolvedGateway(cfg Config, facts gatewayFacts) *resolvedGateway {
	g := &resolvedGateway{facts: facts, roles: map[string]Role{}, forwarding: ForwardingStatus{Wanted: cfg.forwarding()}}
	for _, z := range cfg.Zones {
		g.roles[z.Name] = z.Role
	}
	if cfg.NAT != nil {
		g.nat = *cfg.NAT
	}
	g.nat.MaxFlows = cfg.maxFlows()
	if g.nat.MaxFlowsPerHost == 0 {
		g.nat.MaxFlowsPerHost = max(1, g.nat.MaxFlows/10)
	}
	g.policies = cfg.Policies
	return g
}

// checkGateway finds what rules need to know, and holds them against it.
func (r *resolver) checkGateway() {
	r.checkPrefixes()
	if !r.cfg.gateway() {
		return
	}
	facts := gatewayFacts{Inside: r.insideNetworks()}
	for _, m := range r.out.members {
		if m.role == RoleExternal {
			facts.Outside = append(facts.Outside, m.outside())
		}
	}
	ports, err := hostPorts()
	if err != nil {
		r.errs = append(r.errs, err)
	}
	facts.DefaultPorts = ports
	g := newResolvedGateway(r.cfg, facts)
	r.checkFlowLimits(g)
	r.checkTimeouts(g.nat.Timeouts)
	r.checkOverlaps(facts)
	for i, m := range g.nat.Masquerades {
		r.checkMasquerade(fmt.Sprintf("nat.masquerade[%d]", i), m, facts)
	}
	for i, f := range g.nat.Forwards {
		if l := r.topo.owner(f.To); l != nil {
			r.fail(fmt.Sprintf("nat.forwards[%d].to", i), "%s is the gateway's own address (of %s): a forward leads to another host; what the gateway itself offers is its own firewall's business",
				f.To, l.Attrs().Name)
		}
	}
	g.sysctls = r.wantedSysctls(g)
	r.out.gateway = g
	if len(r.errs) > 0 {
		return // rules on top of them would only add noise
	}
	set, err := g.rules(anyNumbers(r.cfg))
	if err != nil {
		r.errs = append(r.errs, err)
		return
	}
	r.out.warnings = append(r.out.warnings, set.warnings...)
}

func (r *resolver) checkPrefixes() {
	for _, z := range r.cfg.Zones {
		for i, p := range z.Prefixes {
			path := fmt.Sprintf("%s.prefixes[%d]", zonePath(z), i)
			switch {
			case z.Role != RoleInternal:
				r.fail(path, "zone %q has the role %s: prefixes are for internal zones, whose hosts may use no other sources", z.Name, z.Role)
			case !p.IsValid():
				r.fail(path, "not a network: write it as 10.1.0.0/16")
			case p.Masked() != p:
				r.fail(path, "%s has bits beyond its length: %s is meant, or another length", p, p.Masked())
			}
		}
	}
}

// insideNetworks are what hosts of the internal zones may use as sources.
func (r *resolver) insideNetworks() map[string][]netip.Prefix {
	networks := map[string][]netip.Prefix{}
	for _, z := range r.cfg.Zones {
		if z.Role != RoleInternal {
			continue
		}
		list := slices.Clone(z.Prefixes)
		for _, m := range r.out.members {
			if m.zone != z.Name {
				continue
			}
			for _, a := range m.known {
				if !a.onlink.Addr().IsLinkLocalUnicast() {
					list = append(list, a.onlink.Masked())
				}
			}
		}
		slices.SortFunc(list, comparePrefixes)
		networks[z.Name] = slices.Compact(list)
		if len(list) == 0 {
			r.warn("zone %q: its interfaces have no address, so no source of its hosts is known and all is dropped: "+
				"give the interface its address and apply again, or name the zone's prefixes", z.Name)
		}
	}
	return networks
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// outside says which addresses an external interface has.
func (m *member) outside() outsideRecord {
	return outsideOf(m.name, m.index, m.zone, m.mtu, m.known)
}

func outsideOf(name string, index int, zone string, mtu int, known []address) outsideRecord {
	o := outsideRecord{Interface: name, Ifindex: index, Zone: zone, MTU: mtu, Addresses: []netip.Addr{}}
	for _, a := range known {
		addr := a.prefix.Addr()
		if addr.IsLinkLocalUnicast() && addr.Is6() {
			continue // no flow is translated to it, and every interface may have it
		}
		if !slices.Contains(o.Addresses, addr) {
			o.Addresses = append(o.Addresses, addr)
		}
		if !a.global || !a.primary || !a.usable {
			continue
		}
		if addr.Is4() && !o.V4.IsValid() {
			o.V4 = addr
		}
		if addr.Is6() && !o.V6.IsValid() {
			o.V6 = addr
		}
	}
	slices.SortFunc(o.Addresses, netip.Addr.Compare)
	return o
}

// hostPorts are the ports that the host's own connections never get by themselves:
// what lies beside ip_local_port_range. A range of {0, 0} is none.
func hostPorts() (ports [2]PortRange, err error) {
	const name = "net/ipv4/ip_local_port_range"
	text, err := os.ReadFile(sysctlRoot + name)
	if err != nil {
		return ports, fmt.Errorf("find the ports that the host leaves free: %w", err)
	}
	var lo, hi uint16
	if _, err := fmt.Sscan(string(text), &lo, &hi); err != nil {
		return ports, fmt.Errorf("find the ports that the host leaves free: %s: %w", name, err)
	}
	const first, last = 1024, 65535
	n := 0
	if lo > first {
		ports[n] = PortRange{First: first, Last: lo - 1}
		n++
	}
	if hi < last {
		ports[n] = PortRange{First: max(hi+1, first), Last: last}
	}
	return ports, nil
}

func (r *resolver) checkFlowLimits(g *resolvedGateway) {
	n := g.nat.MaxFlows
	if n < floorMaxFlows || n > limitFlows {
		r.fail("nat.max_flows", "%d flows: it is %d at least and %d at most", n, floorMaxFlows, limitFlows)
	}
	if host := g.nat.MaxFlowsPerHost; host > n {
		r.fail("nat.max_flows_per_host", "one host cannot have more (%d) than all together (%d)", host, n)
	}
}

// checkOverlaps: a source of an inside host that is an outside network's too
// makes two hosts one (RFC 4787, REQ-7).
func (r *resolver) checkOverlaps(facts gatewayFacts) {
	for _, m := range r.out.members {
		if m.role != RoleExternal {
			continue
		}
		for _, a := range m.known {
			network := a.onlink.Masked()
			if network.Addr().IsLinkLocalUnicast() {
				continue
			}
			for zone, inside := range facts.Inside {
				for _, p := range inside {
					if p.Overlaps(network) {
						r.warn("network %s of %q overlaps %s of zone %q: hosts of one cannot reach those of the other", network, m.name, p, zone)
					}
				}
			}
		}
	}
}

// checkMasquerade looks whether there is an address to translate to. What
// concerns the rule alone is buildRules' business.
func (r *resolver) checkMasquerade(path string, m Masquerade, facts gatewayFacts) {
	if z := r.zone(m.To); z == nil || z.Role != RoleExternal {
		return // told by buildRules
	}
	if len(m.Addresses) > 0 {
		r.warnUnassigned(m, facts)
		return
	}
	for _, o := range facts.Outside {
		if o.Zone != m.To || o.V4.IsValid() {
			continue
		}
		family := "IPv4 "
		if m.IPv6 {
			if o.V6.IsValid() {
				r.warn("%q has no IPv4 address: masquerade %q translates IPv6 only there", o.Interface, masqueradeName(m))
				continue
			}
			family = ""
		}
		what := fmt.Sprintf("%q has no %saddress to translate to", o.Interface, family)
		if r.force {
			r.warn("masquerade %q: %s: packets that leave there are dropped until it has one and \"tapgate agent\" or another apply sees it", masqueradeName(m), what)
			continue
		}
		r.fail(path, "%s: give it one, name addresses, or --force to go on without", what)
	}
}

// warnUnassigned tells which addresses of a pool this machine does not answer for.
func (r *resolver) warnUnassigned(m Masquerade, facts gatewayFacts) {
	for _, p := range m.Addresses {
		assigned := 0
		for _, o := range facts.Outside {
			if o.Zone != m.To {
				continue
			}
			for _, a := range o.Addresses {
				if p.Contains(a) {
					assigned++
				}
			}
		}
		if span := p.Addr().BitLen() - p.Bits(); span < 16 && assigned >= 1<<span {
			continue
		}
		if device := r.onlinkOutside(m.To, p); device != "" {
			r.warn("masquerade %q: %s is in a network of %q, but not all of it is among the addresses there: "+
				"nobody answers for these until \"ip address add\"", masqueradeName(m), p, device)
			continue
		}
		r.warn("masquerade %q: %s is not among the addresses of zone %q: replies come back only if the network routes it here", masqueradeName(m), p, m.To)
	}
}

func (r *resolver) onlinkOutside(zone string, p netip.Prefix) string {
	for _, m := range r.out.members {
		if m.zone == zone && slices.ContainsFunc(m.known, func(a address) bool { return a.onlink.Overlaps(p) }) {
			return m.name
		}
	}
	return ""
}

// usesIPv6 says whether IPv6 is forwarded for inside hosts.
func (g *resolvedGateway) usesIPv6() bool {
	for _, list := range g.facts.Inside {
		if slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			return true
		}
	}
	return false
}

// wantedSysctls are the settings that a gateway needs to forward.
func (r *resolver) wantedSysctls(g *resolvedGateway) []sysctl {
	var list []sysctl
	if g.usesIPv6() {
		// First what must not get lost by the second: with forwarding on, the
		// kernel keeps no default route from router advertisements unless told.
		for _, m := range r.out.members {
			if m.role != RoleExternal {
				continue
			}
			t := m.touched()
			s := sysctl{Key: "net/ipv6/conf/%s/accept_ra", On: &t, Value: "2"}
			if now, err := s.read(); err == nil && (now == "1" || now == "2") {
				list = append(list, s)
			}
		}
		list = append(list, sysctl{Key: sysctlForward6, Value: "1"})
	}
	return append(list, sysctl{Key: sysctlForward4, Value: "1"})
}

// natless says why no zone of a gateway can have the interface, or "".
func (r *resolver) natless(m *member) string {
	if a := m.link.Attrs(); a.EncapType != "ether" || len(a.HardwareAddr) != 6 {
		return fmt.Sprintf("%q (type %s) has no Ethernet frames (link/%s): with nat or policies that cannot be yet; "+
			"without both it can be in a zone that no mirror taps", m.name, m.link.Type(), a.EncapType)
	}
	if vrf := r.topo.vrfOf(m.link); vrf != "" {
		return fmt.Sprintf("%q is in VRF %q, and the kernel names the VRF as where its packets come from, so zones could not be judged: "+
			"with nat or policies take it out (ip link set dev %s nomaster); without both it can be tapped there", m.name, vrf, m.name)
	}
	return ""
}
