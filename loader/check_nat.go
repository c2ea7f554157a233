package loader

// GatewayReport is what a configuration with NAT or policies would make of this machine.
type GatewayReport struct {
	Outside []OutsideStatus `json:"outside"`
	// Ports are used outside by masquerade rules that name none: those that the
	// host itself does not use.
	Ports    []string `json:"ports"`
	MaxFlows uint32   `json:"max_flows"`
	Memory   uint64   `json:"memory"`  // bytes that the flow table takes at once, with nat.preallocate
	Sysctls  []string `json:"sysctls"` // that apply sets and detach puts back
	// Forwarding is what the configuration and this machine would get.
	Forwarding ForwardingStatus `json:"forwarding"`
	// HostRules are what the host's own firewall does to its flows.
	HostRules []HostRule `json:"host_rules"`
	// Reassembly: fragments that come in out of order are put in order.
	Reassembly bool `json:"reassembly"`
}

func (g *resolvedGateway) report(features []Feature) *GatewayReport {
	if g == nil {
		return nil
	}
	r := &GatewayReport{Outside: []OutsideStatus{}, Ports: []string{}, Sysctls: []string{}, MaxFlows: g.nat.MaxFlows, Forwarding: g.forwarding}
	if g.nat.Preallocate {
		r.Memory = tableMaking{flows: g.nat.MaxFlows, preallocate: true}.memory()
	}
	for _, o := range g.facts.Outside {
		r.Outside = append(r.Outside, o.status())
	}
	for _, p := range g.facts.DefaultPorts {
		if p.First > 0 && p.Last >= p.First {
			r.Ports = append(r.Ports, p.String())
		}
	}
	for _, s := range g.sysctls {
		r.Sysctls = append(r.Sysctls, s.String()+" = "+s.Value)
	}
	for _, f := range features {
		r.Reassembly = r.Reassembly || f.Name == "netfilter_defrag" && f.Have
	}
	return r
}

func (o outsideRecord) status() OutsideStatus {
	return OutsideStatus{Interface: o.Interface, Zone: o.Zone, IPv4: addrText(o.V4), IPv6: addrText(o.V6)}
}
