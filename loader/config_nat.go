package loader

import (
	"net/netip"
	"time"
)

// NAT is what is translated, and how many flows there may be.
type NAT struct {
	Masquerades []Masquerade
	// Exclude are destinations towards which nothing is translated.
	Exclude  []netip.Prefix
	Forwards []Forward
	// MaxFlows is DefaultMaxFlows if 0.
	MaxFlows uint32
	// MaxFlowsPerHost is a tenth of MaxFlows if 0.
	MaxFlowsPerHost uint32
	// Preallocate takes the memory of the whole flow table at once, so that new
	// flows cost less. It counts when the table is made, by the first apply.
	Preallocate bool
	// ClampMSS lowers the MSS of TCP SYNs to what the way allows.
	ClampMSS bool
	Timeouts Timeouts
	// KeepSysctls leaves the forwarding sysctls as they are.
	KeepSysctls bool
}

// DefaultMaxFlows is the size of the flow table where the configuration says nothing.
const DefaultMaxFlows = 262144

// Masquerade translates the sources of flows from one zone to another.
type Masquerade struct {
	Name     string         // unique among masquerades; "FROM-TO" if empty
	From, To string         // zones
	Sources  []netip.Prefix // only these; all if empty
	// Addresses to use, single ones or ranges as prefixes; empty: the address of
	// the interface that a flow leaves by. Without IPv6 addresses here and
	// without IPv6 true, IPv6 is not translated.
	Addresses []netip.Prefix
	IPv6      bool
	// Ports that may be used outside, at most two ranges; empty: what lies
	// outside of the host's ip_local_port_range.
	Ports []PortRange
	// EndpointIndependent filtering: everybody may answer to a mapping. Else
	// only addresses that the inside endpoint has sent to.
	EndpointIndependent bool
}

// PortRange holds both ends.
type PortRange struct{ First, Last uint16 }

// Forward lets the outside reach an inside service.
type Forward struct {
	Name     string
	In       string     // external zone
	Address  netip.Addr // of ours, that is asked; any if invalid
	Proto    string     // "tcp" or "udp"
	Ports    PortRange
	To       netip.Addr
	ToPort   uint16         // first port of the range there
	Sources  []netip.Prefix // remotes that may use it; all if empty
	Rate     uint32         // new flows a second in all; 0: no limit
	RateHost uint32         // new flows a second for each remote address; 0: no limit
}

// Policy accepts or drops new flows between zones. The first that matches
// counts, in the order of the configuration; then the zones' defaults.
type Policy struct {
	Name         string // unique; "policy-N" if empty
	From, To     string
	Proto        string // "", "tcp", "udp", "icmp", "icmpv6" or a number
	Sources      []netip.Prefix
	Destinations []netip.Prefix
	Ports        []PortRange // destination ports, tcp and udp only
	Accept       bool
	Log          bool
}

// Timeouts of flows; zero means the default, which is at the RFC's floor or above.
type Timeouts struct {
	TCPOpening, TCPEstablished, TCPClosing time.Duration
	UDP, UDPUnanswered, ICMP, Other        time.Duration
}
