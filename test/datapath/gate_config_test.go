package datapath

import (
	"net/netip"
	"time"

	"tapgate/loader"
	"tapgate/test/model"
)

// Who is where.
var (
	insiders   = addrs("192.168.3.2", "192.168.3.3", "192.168.3.4", "2001:db8:3::2", "2001:db8:3::3")
	seconds    = addrs("192.168.6.2", "192.168.6.3", "2001:db8:6::2")
	managers   = addrs("192.168.5.2")
	remotes    = addrs("203.0.113.8", "203.0.113.9", "198.51.100.7", "2001:db8:113::8", "2001:db8:99::9")
	pool       = addrs("203.0.113.20", "203.0.113.21", "203.0.113.22")
	pool6      = addrs("2001:db8:113::20")
	outsideIP  = netip.MustParseAddr("203.0.113.1")
	outsideIP6 = netip.MustParseAddr("2001:db8:113::1")
)

func addrs(list ...string) []netip.Addr {
	all := make([]netip.Addr, len(list))
	for i, a := range list {
		all[i] = netip.MustParseAddr(a)
	}
	return all
}

func nets(list ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(list))
	for i, a := range list {
		all[i] = netip.MustParsePrefix(a)
	}
	return all
}

func hostsOf(list []netip.Addr) []netip.Prefix {
	all := make([]netip.Prefix, len(list))
	for i, a := range list {
		all[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return all
}

// gateZones are all networks that the zones have, by name.
var gateZones = map[string]struct {
	ifindex int
	nets    []netip.Prefix
}{
	"external": {external, nil},
	"internal": {internal, nets("192.168.3.0/24", "2001:db8:3::/64")},
	"second":   {second, nets("192.168.6.0/24", "2001:db8:6::/64")},
	"mgmt":     {mgmt, nets("192.168.5.0/24")},
}

// scenario is a configuration to run packets through.
type scenario struct {
	name     string
	nat      loader.NAT
	policies []loader.Policy
	limits   model.Limits
	adopt    bool
}

func ports(first, last uint16) loader.PortRange { return loader.PortRange{First: first, Last: last} }

var gateForwards = []loader.Forward{
	{Name: "rdp", In: "external", Proto: "tcp", Ports: ports(3389, 3389), To: insiders[1], ToPort: 3389},
	{Name: "rdp-again", In: "external", Proto: "tcp", Ports: ports(13389, 13389), To: insiders[1], ToPort: 3389},
	{Name: "game", In: "external", Proto: "udp", Ports: ports(7000, 7003), To: insiders[0], ToPort: 7000},
	{Name: "web", In: "external", Address: outsideIP, Proto: "tcp", Ports: ports(8440, 8445), To: seconds[0], ToPort: 440, Sources: nets("203.0.113.0/24", "192.168.0.0/16")},
}

// scenarios differ in all that a configuration can say.
var scenarios = []scenario{
	{
		name: "plain",
		nat: loader.NAT{
			Masquerades: []loader.Masquerade{{Name: "in", From: "internal", To: "external"}},
			Forwards:    gateForwards,
		},
	},
	{
		name: "rich",
		nat: loader.NAT{
			Masquerades: []loader.Masquerade{
				{Name: "in", From: "internal", To: "external", EndpointIndependent: true, Addresses: hostsOf(pool), Ports: []loader.PortRange{ports(2000, 2999), ports(40000, 40999)}},
				{Name: "in-one", From: "internal", To: "external", Sources: nets("192.168.3.4/32")},
				{Name: "second", From: "second", To: "external", Addresses: hostsOf(append(pool6, pool[0])), IPv6: true},
				{Name: "mgmt", From: "mgmt", To: "external"},
			},
			Exclude:  nets("198.51.100.0/24"),
			Forwards: append([]loader.Forward{{Name: "limited", In: "external", Proto: "udp", Ports: ports(5353, 5353), To: insiders[2], ToPort: 53, Rate: 8, RateHost: 4}}, gateForwards...),
		},
		policies: []loader.Policy{
			{Name: "updates", From: "mgmt", To: "external", Proto: "tcp", Ports: []loader.PortRange{ports(80, 80), ports(1000, 1100)}, Accept: true},
			{Name: "no-dns", From: "internal", To: "external", Proto: "udp", Destinations: nets("203.0.113.9/32"), Ports: []loader.PortRange{ports(53, 53)}},
			{Name: "ssh6", From: "external", To: "internal", Proto: "tcp", Destinations: nets("2001:db8:3::/64"), Ports: []loader.PortRange{ports(22, 22)}, Accept: true},
			{Name: "watch", From: "mgmt", To: "internal", Proto: "icmp", Accept: true},
			{Name: "look", From: "second", To: "mgmt", Sources: nets("192.168.6.2/32"), Accept: true},
			{Name: "apart", From: "second", To: "internal", Proto: "udp"},
		},
	},
	{
		name: "tight",
		nat: loader.NAT{
			Masquerades: []loader.Masquerade{
				{Name: "in", From: "internal", To: "external", Ports: []loader.PortRange{ports(2000, 2004)}},
				{Name: "second", From: "second", To: "external", Ports: []loader.PortRange{ports(2003, 2007)}},
			},
			Forwards: gateForwards,
		},
		adopt: true,
	},
	{
		name: "limits",
		nat: loader.NAT{
			Masquerades: []loader.Masquerade{{Name: "in", From: "internal", To: "external"}, {Name: "second", From: "second", To: "external"}},
			Forwards:    gateForwards,
		},
		limits: model.Limits{Flows: 24, Fresh: 12, PerHost: 8, FreshHost: 6, Forwarded: 3},
	},
}

// The timers are short, so that no jump goes back to before this machine's boot.
var gateTimers = model.Timers{
	Provisional: 5 * time.Second, TCPOpening: 24 * time.Second, TCPEstablished: 120 * time.Second, TCPClosing: 30 * time.Second,
	UDPUnanswered: 12 * time.Second, UDP: 40 * time.Second, ICMP: 16 * time.Second, Other: 60 * time.Second, Linger: 20 * time.Second,
}

func timerValues(t model.Timers) map[string]time.Duration {
	return map[string]time.Duration{
		"provisional": t.Provisional, "tcp_opening": t.TCPOpening, "tcp_established": t.TCPEstablished,
		"tcp_closing": t.TCPClosing, "udp_unanswered": t.UDPUnanswered, "udp": t.UDP,
		"icmp": t.ICMP, "other": t.Other, "linger": t.Linger,
	}
}

func (s scenario) timers() model.Timers { return gateTimers }

// config is what the loader gets.
func (s scenario) config() loader.Config {
	cfg := policy()
	for i := range cfg.Zones {
		z := &cfg.Zones[i]
		if z.Role == loader.RoleDMZ {
			z.Interfaces = []string{"eth2"}
		}
		if z.Role == loader.RoleInternal {
			z.Prefixes = gateZones[z.Name].nets
		}
	}
	nat := s.nat
	cfg.NAT, cfg.Policies = &nat, s.policies
	return cfg
}

var protocols = map[string]uint8{"": 0, "tcp": tcp, "udp": udp, "icmp": icmp4, "icmpv6": icmp6}

// model is what the model gets: the same in its own words.
func (s scenario) model(hostPorts []model.Ports) model.Config {
	c := model.Config{
		Exclude: s.nat.Exclude, Timers: s.timers(), Limits: s.limits, Adopt: s.adopt,
		Outside: map[int][2]netip.Addr{external: {outsideIP, outsideIP6}},
		Ours:    []model.Ours{{Addr: outsideIP, Zone: "external", Ifindex: external}, {Addr: outsideIP6, Zone: "external", Ifindex: external}},
	}
	roles := map[string]model.Role{"external": model.External, "internal": model.Internal, "second": model.Internal, "mgmt": model.Mgmt}
	for name, z := range gateZones {
		c.Zones = append(c.Zones, model.Zone{Name: name, Role: roles[name], Interfaces: []int{z.ifindex}, Prefixes: z.nets})
	}
	ranges := func(list []loader.PortRange) []model.Ports {
		var all []model.Ports
		for _, r := range list {
			all = append(all, model.Ports{First: r.First, Last: r.Last})
		}
		return all
	}
	known := map[netip.Addr]bool{}
	for _, m := range s.nat.Masquerades {
		r := model.Masquerade{Name: m.Name, From: m.From, To: m.To, Sources: m.Sources, IPv6: m.IPv6, Ports: ranges(m.Ports), EIF: m.EndpointIndependent}
		if len(r.Ports) == 0 {
			r.Ports = hostPorts
		}
		for _, p := range m.Addresses {
			r.Addresses = append(r.Addresses, p.Addr())
			if !known[p.Addr()] {
				known[p.Addr()] = true
				c.Ours = append(c.Ours, model.Ours{Addr: p.Addr(), Zone: m.To, Ifindex: external})
			}
		}
		c.Masquerades = append(c.Masquerades, r)
	}
	for _, f := range s.nat.Forwards {
		c.Forwards = append(c.Forwards, model.Forward{
			Name: f.Name, In: f.In, Address: f.Address, Proto: protocols[f.Proto], Ports: model.Ports{First: f.Ports.First, Last: f.Ports.Last},
			To: f.To, ToPort: f.ToPort, Sources: f.Sources, Rate: float64(f.Rate), RateHost: float64(f.RateHost),
		})
	}
	for _, p := range s.policies {
		c.Policies = append(c.Policies, model.Policy{
			Name: p.Name, From: p.From, To: p.To, Proto: protocols[p.Proto], Sources: p.Sources, Destinations: p.Destinations,
			Ports: ranges(p.Ports), Accept: p.Accept,
		})
	}
	return c
}
