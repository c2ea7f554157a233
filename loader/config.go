package loader

import (
	"net"
	"net/netip"
)

// Role says how a zone behaves.
type Role string

// The roles of zones.
const (
	RoleExternal Role = "external"
	RoleInternal Role = "internal"
	RoleDMZ      Role = "dmz"
	RoleMgmt     Role = "mgmt"
)

// Config is what a gateway shall do. Order is kept, and names are unique.
type Config struct {
	Zones   []Zone
	Mirrors []Mirror
	// NAT and Policies make the machine a gateway of ours: zones are judged and
	// flows translated. With NAT nil and no policies tapgate only taps, and
	// what may pass and how it is translated is the host's business.
	NAT      *NAT
	Policies []Policy
	// Forwarding is how such a gateway forwards the packets of known flows:
	// ForwardingFast, past the host's stack, which is the default, or
	// ForwardingKernel. Where the host's setup does not go with the fast path,
	// it is the kernel by itself.
	Forwarding string
	// Source is the text that the configuration came from. It is kept in the
	// kernel with the state and given back by Gateway.Source; the loader
	// does not look into it.
	Source string
	// File is where Source stands outside of the kernel, if anywhere. It is kept
	// beside Source; the loader does not look into that either.
	File SourceFile
}

// SourceFile is a configuration file that somebody edits.
type SourceFile struct {
	Path string `json:"path"` // absolute; "": there is none
	// Sum is what its content is told by, as it was when it was read or written
	// last; "" if what is in force never was its content.
	Sum string `json:"sum,omitempty"`
}

// Zone is a named set of interfaces that share a role.
type Zone struct {
	Name       string
	Role       Role
	Interfaces []string // names, as in "ip link"
	// Prefixes are networks behind routers of an internal zone. Its hosts may
	// use sources of these and of the interfaces' own networks, no others.
	Prefixes []netip.Prefix
}

// Mirror copies every packet of its zones, both directions, to each target.
type Mirror struct {
	Name    string
	Zones   []string
	Targets []Target
}

// Target is one place that copies go to: exactly one of Via and L2 is set.
type Target struct {
	Via netip.Addr       // next hop on a dmz interface, IPv4 or IPv6
	L2  string           // dmz interface that gets the frame as it is
	MAC net.HardwareAddr // with L2: destination MAC to write, or nil
}

// String is how people and status name the target: "via 192.168.4.2",
// "l2 eth2" or "l2 eth2 mac 02:00:00:00:00:01".
func (t Target) String() string {
	switch {
	case t.Via.IsValid():
		return "via " + t.Via.String()
	case t.MAC != nil:
		return "l2 " + t.L2 + " mac " + t.MAC.String()
	}
	return "l2 " + t.L2
}
