package loader

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// adoptWindow is for how long after the gateway was switched on TCP flows from
// inside may begin in the middle: those that ran before.
const adoptWindow = 10 * time.Minute

// goneMax is how many names of rules that are gone are kept for flows that they made.
const goneMax = 1024

// Kinds of rules with hit counters.
const (
	kindForward    = "forward"
	kindMasquerade = "masquerade"
	kindPolicy     = "policy"
)

// gatewayRecord is what the record says of a generation that judges and translates.
type gatewayRecord struct {
	gatewayFacts
	AdoptUntil uint64       `json:"adopt_until"` // boot time, ns
	Text       string       `json:"text"`        // what it says beside the rules, for people
	Rules      []ruleRecord `json:"rules"`
	Pool       []poolRecord `json:"pool,omitempty"`
	Sysctls    []sysctl     `json:"sysctls,omitempty"`
	// Forwarding is how it forwards, and why.
	Forwarding ForwardingStatus `json:"forwarding"`
	// KeepSysctls: what they say is to be told, not set.
	KeepSysctls bool `json:"keep_sysctls,omitempty"`
	// Lost are outside addresses with flows that may go on if they come back.
	Lost []lostAddress `json:"lost,omitempty"`
}

// ruleRecord is a rule with a hit counter. Those that are gone stay for a while,
// last, so that flows tell which rule made them and nobody else counts there.
type ruleRecord struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Number uint32 `json:"number"`
	Text   string `json:"text"` // what it says, for people
	Gone   bool   `json:"gone,omitempty"`
}

// zoneRecord keeps a zone's number. Those of zones that are gone stay taken while
// there are others, since flows hold them.
type zoneRecord struct {
	Name   string `json:"name"`
	Role   Role   `json:"role"`
	Number uint8  `json:"number"`
	Gone   bool   `json:"gone,omitempty"`
}

// poolRecord are addresses of ours that no interface needs to have.
type poolRecord struct {
	Prefix  netip.Prefix `json:"prefix"`
	Zone    string       `json:"zone"`
	Ifindex int          `json:"ifindex"`
}

// gatewayPlan is the gateway's part of a plan.
type gatewayPlan struct {
	rules   *ruleset
	setting tapgateTgSetting
	outside map[tapgateTgOutsideKey]tapgateTgOutsideAddr
	ours    map[tapgateTgOursKey]tapgateTgOurAddr
	// Numbers whose hit counters start at zero.
	freshHits []uint32
}

// ruleNumbers gives the number of a rule by kind and name.
type ruleNumbers map[[2]string]uint32

func (n ruleNumbers) of(kind string) func(string) uint32 {
	return func(name string) uint32 { return n[[2]string{kind, name}] }
}

// ruleNames are the rules with hit counters in the order of the configuration.
func (g *resolvedGateway) ruleNames() (list []ruleRecord) {
	for _, f := range g.nat.Forwards {
		list = append(list, ruleRecord{Kind: kindForward, Name: f.Name, Text: f.text()})
	}
	for _, m := range g.nat.Masquerades {
		list = append(list, ruleRecord{Kind: kindMasquerade, Name: masqueradeName(m), Text: m.text()})
	}
	for i, p := range g.policies {
		list = append(list, ruleRecord{Kind: kindPolicy, Name: policyName(i, p), Text: p.text()})
	}
	return list
}

// rules lays the rules out with these numbers.
func (g *resolvedGateway) rules(zones map[string]uint8, numbers ruleNumbers) (*ruleset, error) {
	return buildRules(ruleInput{
		zones: zones, roles: g.roles, inside: g.facts.Inside, nat: &g.nat, policies: g.policies, defaultPorts: g.facts.DefaultPorts,
		forwardNumber: numbers.of(kindForward), masqueradeNumber: numbers.of(kindMasquerade), policyNumber: numbers.of(kindPolicy),
	})
}

// anyNumbers are for looking whether rules can be laid out at all.
func anyNumbers(cfg Config) (map[string]uint8, ruleNumbers) {
	zones := map[string]uint8{}
	for i, z := range cfg.Zones {
		zones[z.Name] = uint8(i%(limitZones-1) + 1)
	}
	return zones, nil
}

// placeZones numbers the zones; a name keeps its number.
func (p *plan) placeZones(old *record, zones []Zone) (map[string]uint8, error) {
	before := map[string]uint8{}
	n := newNumbers("zone", 1, limitZones)
	for _, z := range old.Zones {
		before[z.Name] = z.Number
		n.used[uint32(z.Number)] = true
	}
	now := map[string]uint8{}
	for _, z := range zones {
		number, known := before[z.Name]
		if !known {
			free, err := n.take()
			if err != nil {
				if free, err = p.takeGoneZone(old, zones, now); err != nil {
					return nil, err
				}
			}
			number = uint8(free)
		}
		now[z.Name] = number
		p.record.Zones = append(p.record.Zones, zoneRecord{Name: z.Name, Role: z.Role, Number: number})
	}
	for _, z := range old.Zones {
		taken := slices.ContainsFunc(p.record.Zones, func(o zoneRecord) bool { return o.Number == z.Number })
		if !taken {
			z.Gone = true
			p.record.Zones = append(p.record.Zones, z)
		}
	}
	return now, nil
}

// numberZones writes the zones' numbers to the interfaces.
func (p *plan) numberZones(zones map[string]uint8) {
	for _, r := range p.record.Members {
		m := p.members[uint32(r.Ifindex)]
		m.Zone = zones[r.Zone]
		p.members[uint32(r.Ifindex)] = m
	}
}

// takeGoneZone gives the number of a zone that is not there any more to another.
func (p *plan) takeGoneZone(old *record, zones []Zone, now map[string]uint8) (uint32, error) {
	for _, z := range old.Zones {
		stays := slices.ContainsFunc(zones, func(o Zone) bool { return o.Name == z.Name })
		taken := false
		for _, number := range now {
			taken = taken || number == z.Number
		}
		if z.Gone && !stays && !taken {
			return uint32(z.Number), nil
		}
	}
	return 0, fmt.Errorf("no room for another zone: %d is the limit, counting those that are being replaced", limitZones-1)
}

// placeGateway lays out rules, settings and addresses beside what is in force.
func (p *plan) placeGateway(old *record, g *resolvedGateway, zones map[string]uint8) error {
	before := old.Gateway
	if before == nil {
		before = &gatewayRecord{AdoptUntil: bootTime() + uint64(adoptWindow)}
	}
	r := &gatewayRecord{
		gatewayFacts: g.facts, AdoptUntil: before.AdoptUntil, Text: g.text(), Sysctls: g.sysctls, KeepSysctls: g.nat.KeepSysctls,
		Forwarding: g.forwarding, Lost: before.stillLost(g.facts.Outside),
	}
	p.record.Gateway = r
	numbers, err := p.placeRules(before, r, g.ruleNames())
	if err != nil {
		return err
	}
	if p.gateway.rules, err = g.rules(zones, numbers); err != nil {
		return err
	}
	r.Pool = g.pools()
	if p.gateway.outside, p.gateway.ours, err = outsideMaps(&p.record); err != nil {
		return err
	}
	p.gateway.setting = g.setting(r.AdoptUntil)
	for ifindex, m := range p.members {
		m.Gateway = 1
		p.members[ifindex] = m
	}
	return nil
}

// placeRules numbers the rules with hit counters. What is gone and comes back has
// its old number, and counts from zero again.
func (p *plan) placeRules(before, r *gatewayRecord, rules []ruleRecord) (ruleNumbers, error) {
	known := map[[2]string]ruleRecord{}
	n := newNumbers("forward, masquerade or policy", 0, limitCounted)
	for _, o := range before.Rules {
		known[[2]string{o.Kind, o.Name}] = o
		n.used[o.Number] = true
	}
	numbers := ruleNumbers{}
	for _, rule := range rules {
		key := [2]string{rule.Kind, rule.Name}
		if _, twice := numbers[key]; twice {
			continue // told by buildRules
		}
		o, had := known[key]
		switch {
		case had:
			rule.Number = o.Number
		default:
			number, err := n.take()
			for i := len(before.Rules) - 1; err != nil && i >= 0; i-- {
				// The oldest of those that are gone stands last.
				if o := before.Rules[i]; o.Gone && known[[2]string{o.Kind, o.Name}].Gone {
					delete(known, [2]string{o.Kind, o.Name})
					number, err = o.Number, nil
				}
			}
			if err != nil {
				return nil, err
			}
			rule.Number = number
		}
		if !had || o.Gone {
			p.gateway.freshHits = append(p.gateway.freshHits, rule.Number)
		}
		delete(known, key)
		numbers[key] = rule.Number
		r.Rules = append(r.Rules, rule)
	}
	gone := 0
	for _, o := range before.Rules {
		if _, left := known[[2]string{o.Kind, o.Name}]; left && gone < goneMax {
			gone++
			o.Gone = true
			r.Rules = append(r.Rules, o)
		}
	}
	return numbers, nil
}

// setting is the element of tg_settings.
func (g *resolvedGateway) setting(adoptUntil uint64) tapgateTgSetting {
	n, share := g.nat.MaxFlows, max(256, g.fewestPorts()/4)
	s := tapgateTgSetting{
		Gateway: 1, MaxFlows: n, MaxFresh: n / 2, MaxPerHost: g.nat.MaxFlowsPerHost, MaxForwarded: n / 8,
		MaxFreshHost: min(g.nat.MaxFlowsPerHost, share), MaxRecycled: min(max(1, n/16), share),
		AdoptUntil: adoptUntil, Timers: g.nat.Timeouts.timers(),
	}
	fillFast(&s, g.forwarding.fast())
	return s
}

// fewestPorts is what the masquerade rule with the fewest has for one address: a host
// that scans may have half of them, by a quarter in each of two limits, but for ranges
// so small that every host needs them.
func (g *resolvedGateway) fewestPorts() uint32 {
	fewest := uint32(math.MaxUint32)
	for _, m := range g.nat.Masquerades {
		ports, n := m.Ports, uint32(0)
		if len(ports) == 0 {
			ports = g.facts.DefaultPorts[:]
		}
		for _, p := range ports {
			if p.First > 0 && p.Last >= p.First {
				n += uint32(p.Last-p.First) + 1
			}
		}
		fewest = min(fewest, n)
	}
	return fewest
}

// pools are the addresses that rules name, whether an interface has them or not.
func (g *resolvedGateway) pools() (list []poolRecord) {
	add := func(zone string, p netip.Prefix) {
		r := poolRecord{Prefix: p, Zone: zone}
		for _, o := range g.facts.Outside {
			if o.Zone == zone && r.Ifindex == 0 {
				r.Ifindex = o.Ifindex
			}
		}
		if !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	for _, m := range g.nat.Masquerades {
		for _, p := range m.Addresses {
			add(m.To, p)
		}
	}
	for _, f := range g.nat.Forwards {
		if f.Address.IsValid() {
			add(f.In, netip.PrefixFrom(f.Address, f.Address.BitLen()))
		}
	}
	return list
}

// bootTime is the clock of the programs, in nanoseconds.
func bootTime() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic(err) // every kernel has it
	}
	return uint64(now.Nano())
}
