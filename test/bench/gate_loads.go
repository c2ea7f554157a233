package main

import "context"

// scenario is a gateway and what stands in it before its loads are measured.
type scenario struct {
	name string
	// Gateways of one group stand side by side, so that ratios between their loads
	// and modes are taken within one pass.
	group int
	// But for groups whose modes come one after the other: the kernel has one table
	// for the flows of all network namespaces, so that many flows of one gateway
	// slow the others down. 30,000 are not many: nf_conntrack_buckets is 262,144.
	alone    bool
	flows    int // a power of two
	forwards int // rules; the flows come through them
	fresh    bool
	hosts    bool // the ends are hosts, not only generators and sinks
	only     func(gateMode) bool
	loads    []gateLoad
}

func (s scenario) title() string { return s.name }

// gateLoad is one measurement of a scenario.
type gateLoad struct {
	name, what, unit string
	rate             float64 // from units per ns to the rate; 0: a time, in us
	measure          func(context.Context, *gateLab, int) (sample, error)
}

func (l gateLoad) title() string { return l.name }

// segment is the payload of a TCP packet of 1500 bytes.
const segment = 1448

func packetLoad(name, what string, direction, flows int) gateLoad {
	return gateLoad{name, what, "Mpps", 1e3, func(ctx context.Context, l *gateLab, n int) (sample, error) {
		s, err := l.packets(ctx, direction, n, min(flows, l.flows))
		if err == nil {
			err = l.wantCopies(s, s.Units)
		}
		return s, err
	}}
}

func newFlowLoad(name, what string) gateLoad {
	return gateLoad{name, what, "M flows/s", 1e3, func(ctx context.Context, l *gateLab, n int) (sample, error) {
		s, err := l.newFlows(ctx, min(n, freshFlows))
		if err == nil {
			err = l.wantCopies(s, s.Units)
		}
		s.Units /= 2 // a flow is a packet and its answer
		s.Sent /= 2
		return s, err
	}}
}

// freshFlows are made in each measurement of new flows.
const freshFlows = 8192

const (
	million  = 1 << 20
	thousand = 1 << 10
)

var allScenarios = []scenario{
	{name: "1k", flows: thousand, loads: []gateLoad{
		packetLoad("flows-1", "packets of one flow, from inside", outbound, 1),
		packetLoad("both-1", "packets of one flow, both directions", alternating, 1),
		packetLoad("flows-1k", "packets of 1,024 flows in turn, from inside", outbound, million),
		packetLoad("both-1k", "packets of 1,024 flows in turn, both directions", alternating, million),
	}},
	{name: "hosts", group: 1, flows: 1, hosts: true, loads: []gateLoad{
		{"latency", "a packet and its answer, half of the median round trip of UDP; the outside host answers in its driver", "us", 0, latency},
		{"tcp-1500", "iperf3, frames of 1500 bytes in the gateway", "Gbit/s", 8 * segment, bulk},
	}},
	{name: "new", group: 2, fresh: true, loads: []gateLoad{
		newFlowLoad("new", "new flows from inside and an answer to each, every one from an endpoint of its own"),
	}},
	{name: "new-forwards-10", group: 3, forwards: 10, fresh: true, only: mainModes, loads: []gateLoad{
		newFlowLoad("new-forwards-10", "new flows from outside through 10 forwards, and an answer to each"),
	}},
	{name: "new-forwards-10k", group: 3, forwards: 10_000, fresh: true, only: mainModes, loads: []gateLoad{
		newFlowLoad("new-forwards-10k", "new flows from outside through 10,000 forwards, and an answer to each"),
	}},
	{name: "forwards-10", group: 4, alone: true, flows: 1 << 14, forwards: 10, only: mainModes, loads: []gateLoad{
		packetLoad("forwards-10", "packets of 16,384 flows through 10 forwards, both directions", alternating, million),
	}},
	{name: "forwards-10k", group: 4, alone: true, flows: 1 << 14, forwards: 10_000, only: mainModes, loads: []gateLoad{
		packetLoad("forwards-10k", "packets of 16,384 flows through 10,000 forwards, both directions", alternating, million),
	}},
	{name: "100k", group: 5, alone: true, flows: 1 << 17, loads: []gateLoad{
		packetLoad("flows-100k", "packets of 131,072 flows in turn, from inside", outbound, million),
		packetLoad("both-100k", "the same, both directions", alternating, million),
	}},
	{name: "1M", group: 6, alone: true, flows: million, only: mainModes, loads: []gateLoad{
		packetLoad("flows-1M", "packets of 1,048,576 flows in turn, from inside: 4,096 inside endpoints, 256 remotes", outbound, million),
		packetLoad("both-1M", "the same, both directions", alternating, million),
	}},
	{name: "1k-again", group: 6, alone: true, flows: thousand, only: func(m gateMode) bool { return m.fast }, loads: []gateLoad{
		packetLoad("both-1k-again", "both-1k once more, in turn with both-1M on a gateway beside: what that is compared with", alternating, million),
	}},
}

// mainModes are enough where each takes much memory or time.
func mainModes(m gateMode) bool {
	return m.direct || m.fast || m.name == gateBaseline || m.name == gateRecipe
}

func allLoads() (out []gateLoad) {
	for _, s := range allScenarios {
		out = append(out, s.loads...)
	}
	return out
}

func (s scenario) shape(direct bool) flowShape {
	shape := flowShape{bits: 12, direct: direct, forwards: s.forwards}
	if s.fresh {
		shape.bits = 16
	}
	return shape
}

// room is how many flows a gateway of this scenario must hold.
func (s scenario) room() int {
	if s.fresh || s.forwards > 0 {
		return 1 << 17 // an eighth may be unanswered flows of forwards
	}
	return s.flows
}

// capacity is how many flows tapgate may hold: as many as the kernel's table, where
// that is enough.
func (s scenario) capacity() int { return max(s.room()*5/4, conntrackMax(), 1<<16) }

// groups are the scenarios that are measured in turn.
func groups(all []scenario) (out [][]scenario) {
	for _, s := range all {
		if n := len(out); n > 0 && out[n-1][0].group == s.group {
			out[n-1] = append(out[n-1], s)
		} else {
			out = append(out, []scenario{s})
		}
	}
	return out
}
