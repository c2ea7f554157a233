// Package model is a second opinion on the gateway: what RFC 4787, 5382, 5508,
// 6888 and 7857 and bpf/README.md ask of it, written without the programs in
// sight, in plain Go over plain maps. The harness in test/datapath runs the same
// packets through both and compares packets, verdicts and flows.
//
// The model has no clock and makes no random choice. Time is an argument. Where
// the program may choose (an outside port, or what to do when a limit is
// reached) the model judges whether the choice is one that it may make, and goes on
// from there.
package model

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Role says how a zone behaves.
type Role int

// The roles of zones. None is that of an interface in no zone.
const (
	None Role = iota
	External
	Internal
	DMZ
	Mgmt
)

// Zone is a named set of interfaces.
type Zone struct {
	Name       string
	Role       Role
	Interfaces []int          // ifindexes
	Prefixes   []netip.Prefix // sources of an internal zone, its networks included
}

// Ports is a range with both ends.
type Ports struct{ First, Last uint16 }

func (r Ports) has(p uint16) bool { return r.First <= p && p <= r.Last }

// Masquerade translates the sources of flows between two zones.
type Masquerade struct {
	Name     string
	From, To string
	Sources  []netip.Prefix
	// Addresses outside; empty: that of the interface that the flow leaves by.
	Addresses []netip.Addr
	IPv6      bool
	Ports     []Ports
	EIF       bool // endpoint-independent filtering
}

// Forward lets the outside reach an inside endpoint.
type Forward struct {
	Name     string
	In       string
	Address  netip.Addr // any of ours if invalid
	Proto    uint8
	Ports    Ports
	To       netip.Addr
	ToPort   uint16
	Sources  []netip.Prefix
	Rate     float64 // new flows a second, 0: no limit
	RateHost float64 // the same for each remote address
}

// Policy accepts or drops new flows.
type Policy struct {
	Name         string
	From, To     string
	Proto        uint8 // 0: any
	Sources      []netip.Prefix
	Destinations []netip.Prefix
	Ports        []Ports
	Accept       bool
}

// Ours is an address of the gateway on an external interface.
type Ours struct {
	Addr    netip.Addr
	Zone    string
	Ifindex int
}

// Timers of flows, as enum tg_timer.
type Timers struct {
	Provisional, TCPOpening, TCPEstablished, TCPClosing time.Duration
	UDPUnanswered, UDP, ICMP, Other, Linger             time.Duration
}

// Limits of the flow table; 0 is none.
type Limits struct{ Flows, Fresh, PerHost, FreshHost, Forwarded int }

// Way is how a packet leaves: the MAC addresses of the next hop and of the interface.
type Way struct{ To, From [6]byte }

// Config is what the gateway shall do.
type Config struct {
	Zones       []Zone
	Masquerades []Masquerade
	Exclude     []netip.Prefix
	Forwards    []Forward
	Policies    []Policy
	Ours        []Ours
	// Outside is each external interface's own address, IPv4 and IPv6.
	Outside map[int][2]netip.Addr
	Timers  Timers
	Limits  Limits
	// Adopt makes flows of mid-stream TCP from inside.
	Adopt bool
	// Fast lets packets of known flows go past the stack, by the way that the routes
	// say. MACs are those of the gateway's interfaces.
	Fast bool
	Way  func(dst netip.Addr) (Way, bool)
	MACs map[int][6]byte
}

func (c *Config) zoneOf(ifindex int) *Zone {
	for i := range c.Zones {
		if slices.Contains(c.Zones[i].Interfaces, ifindex) {
			return &c.Zones[i]
		}
	}
	return nil
}

// zoneOfAddr is the internal zone that has an address.
func (c *Config) zoneOfAddr(a netip.Addr) *Zone {
	for i := range c.Zones {
		if within(c.Zones[i].Prefixes, a) {
			return &c.Zones[i]
		}
	}
	return nil
}

func (c *Config) ours(a netip.Addr) *Ours {
	for i := range c.Ours {
		if c.Ours[i].Addr == a {
			return &c.Ours[i]
		}
	}
	return nil
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Verdict is what becomes of a packet.
type Verdict int

// Pass is "no opinion"; Redirect hands the packet to another interface.
const (
	Pass Verdict = iota
	Drop
	Redirect
)

func (v Verdict) String() string { return [...]string{"pass", "drop", "redirect"}[v] }

// Outcome is what a program did to a packet. Reason is the name of its enum
// tg_reason in lower case and without TG_, as in "pass_flow".
type Outcome struct {
	Verdict Verdict
	Reason  string
	Frame   []byte // as it is now; of dropped ones it does not matter
	// Tidied: the program has taken flows out of use while it looked at the packet.
	Tidied bool
	// Mappings are how many the program has afterwards.
	Mappings int
	// Now is the time as the program knew it if it did not read the clock but went by
	// its ticks; else 0.
	Now int64
}

// Difference is a way in which the program did not do what it must.
type Difference struct{ Text string }

func (d *Difference) Error() string { return d.Text }

func differ(format string, args ...any) error { return &Difference{fmt.Sprintf(format, args...)} }

// Model is the state of a gateway.
type Model struct {
	cfg      Config
	sessions map[Tuple]*half
	bindings map[Endpoint]*binding // by inside and by outside endpoint
	remotes  map[remoteKey]int     // flows that permit a remote
	hosts    map[netip.Addr]*host
	paired   map[pairKey]netip.Addr // outside address of an inside one
	packets  map[fragmentKey]*fragmented
	buckets  map[bucketKey]*bucket
	own      map[Tuple]bool // what the gateway itself speaks without ports
	admitted bool           // the packet that came in last was one of a flow, and translated
	strays   map[Tuple]bool // halves of flows that could not be made, which may still have their place

	// Parity is how many UDP ports have kept theirs (RFC 4787 REQ-4), and how many have
	// not, where there were enough to choose from.
	Parity [2]int

	// Keep lets flows and mappings that have expired stay until Sweep, as the
	// program does; else they are gone at once.
	Keep bool
	// Evicted says whether the program has ended a flow, by its halves' keys, and
	// whether its elements are gone. It is asked after steps that say Tidied: what
	// has expired may go at any time, and where a limit is reached what nobody has
	// answered may be ended. nil: neither happens.
	Evicted func(inside, outside Tuple) (ended, gone bool)
	// Unbound says whether the program has let go of a mapping. One that is due may lie for a while. nil: it is gone at once.
	Unbound func(inside, outside Endpoint) bool
}

// New is a gateway without flows.
func New(cfg Config) *Model {
	m := &Model{}
	m.Reset()
	m.Configure(cfg)
	return m
}

// Configure puts another configuration in force. Flows stay.
func (m *Model) Configure(cfg Config) { m.cfg = cfg }

// Reset forgets all flows.
func (m *Model) Reset() {
	m.sessions = map[Tuple]*half{}
	m.bindings = map[Endpoint]*binding{}
	m.remotes = map[remoteKey]int{}
	m.hosts = map[netip.Addr]*host{}
	m.paired = map[pairKey]netip.Addr{}
	m.packets = map[fragmentKey]*fragmented{}
	m.buckets = map[bucketKey]*bucket{}
	m.own = map[Tuple]bool{}
	m.strays = map[Tuple]bool{}
}

// result is what the model wants of a packet. Several reasons are given where
// the design leaves open which of them it is.
type result struct {
	verdict Verdict
	reasons []string
	frame   []byte
}

func pass(frame []byte, reasons ...string) *result { return &result{Pass, reasons, frame} }
func drop(reasons ...string) *result               { return &result{Drop, reasons, nil} }

// Step compares what the program did to a packet with what it must do, and
// follows. in is the interface that it came in by; out is 0 at that interface's
// ingress hook, and at an egress hook the interface that it leaves by, with in 0
// if it is the gateway's own.
func (m *Model) Step(now int64, in, out int, frame []byte, did Outcome) error {
	s := &step{Model: m, in: in, out: out, now: now, did: did, frame: slices.Clone(frame)}
	var want *result
	var err error
	if did.Tidied {
		if err := s.ended(); err != nil {
			return err
		}
	}
	if out == 0 {
		want, err = s.ingress(in)
	} else {
		want, err = s.egress(in, out)
	}
	if err != nil {
		return err
	}
	if s.made > 0 && !s.full {
		return differ("%d flows were ended to make room, and no limit was reached; limits %+v, there are %+v", s.made, s.cfg.Limits, s.figures(parse(frame).tuple.Src, true))
	}
	if err := compare(want, did); err != nil {
		return err
	}
	// What goes while a packet is looked at goes after it has been looked up.
	if did.Tidied {
		m.forget(now)
	}
	if did.Mappings != len(m.bindings)/2 {
		m.release(now)
	}
	return nil
}

func compare(want *result, did Outcome) error {
	if want.verdict != did.Verdict || len(want.reasons) > 0 && !slices.Contains(want.reasons, did.Reason) {
		return differ("%s %s; the model says %s %q", did.Verdict, did.Reason, want.verdict, want.reasons)
	}
	if did.Verdict == Drop {
		return nil
	}
	if where := unequal(did.Frame, want.frame); where >= 0 {
		return differ("frames differ from byte %d on:\n%x\nthe model says\n%x", where, did.Frame, want.frame)
	}
	return nil
}

// unequal is the first byte that differs, or -1.
func unequal(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}
