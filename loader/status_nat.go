package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"
)

// GatewayStatus is what the gateway translates and judges.
type GatewayStatus struct {
	Flows      uint32 `json:"flows"`
	Fresh      uint32 `json:"fresh"`     // of these: never answered
	Forwarded  uint32 `json:"forwarded"` // of the fresh ones: let in by forwards
	MaxFlows   uint32 `json:"max_flows"`
	MaxFresh   uint32 `json:"max_fresh"`
	MaxPerHost uint32 `json:"max_flows_per_host"`
	// Memory is what the flow table takes although it is empty, in bytes: with
	// nat.preallocate; 0 where memory is taken as it is used.
	Memory   uint64 `json:"memory"`
	Bindings uint32 `json:"bindings"` // inside endpoints with an outside one
	Hosts    int    `json:"hosts"`    // inside hosts with flows
	Created  uint64 `json:"created"`  // flows, ever
	Expired  uint64 `json:"expired"`
	// Refused are new flows that there was no room, port or rate for, by reason.
	Refused map[string]uint64 `json:"refused"`
	// Adopting is for how many seconds TCP flows may still begin in the middle.
	Adopting    float64          `json:"adopting,omitempty"`
	Outside     []OutsideStatus  `json:"outside"`
	Forwarding  ForwardingStatus `json:"forwarding"`
	Followed    bool             `json:"followed"` // an agent follows the outside addresses
	Reorders    bool             `json:"reorders"` // fragments from outside may come in any order
	Forwards    []RuleStatus     `json:"forwards"`
	Masquerades []RuleStatus     `json:"masquerades"`
	Policies    []RuleStatus     `json:"policies"`
}

// OutsideStatus is an external interface and what its flows are translated to.
type OutsideStatus struct {
	Interface string `json:"interface"`
	Zone      string `json:"zone"`
	IPv4      string `json:"ipv4,omitempty"`
	IPv6      string `json:"ipv6,omitempty"`
}

// RuleStatus counts what a rule decided.
type RuleStatus struct {
	Name  string `json:"name"`
	Rule  string `json:"rule"`  // what it says
	Flows uint64 `json:"flows"` // new flows that it decided on
	Last  string `json:"last,omitempty"`
}

var refusalNames = map[tapgateTgRefusal]string{
	tapgateTgRefusalTG_REFUSED_FULL:  "full",
	tapgateTgRefusalTG_REFUSED_HOST:  "host",
	tapgateTgRefusalTG_REFUSED_PORTS: "ports",
	tapgateTgRefusalTG_REFUSED_RATE:  "rate",
}

// statusGateway is called in the gateway's namespace.
func (g *Gateway) statusGateway(s *Status) error {
	r := g.active.Gateway
	if r == nil {
		return nil
	}
	if err := g.Sweep(); err != nil {
		return err
	}
	var table tapgateTgTableState
	if err := g.maps[tapgateMapTgTable].Lookup(uint32(0), &table); err != nil {
		return fmt.Errorf("read the flow table's account: %w", err)
	}
	var setting tapgateTgSetting
	if err := g.maps[tapgateMapTgSettings].Lookup(g.slot, &setting); err != nil {
		return fmt.Errorf("read the settings in force: %w", err)
	}
	now := bootTime()
	gs := &GatewayStatus{
		Flows: table.Flows, Fresh: table.Fresh, Forwarded: table.Forwarded, Bindings: table.Bindings,
		MaxFlows: setting.MaxFlows, MaxFresh: setting.MaxFresh, MaxPerHost: setting.MaxPerHost,
		Created: table.Created, Expired: table.Expired, Refused: map[string]uint64{}, Adopting: secondsBetween(now, r.AdoptUntil),
		Forwarding: r.Forwarding, Followed: g.followed(), Outside: []OutsideStatus{}, Forwards: []RuleStatus{}, Masquerades: []RuleStatus{}, Policies: []RuleStatus{},
	}
	gs.Memory = makingOf(g.maps).memory()
	for number, name := range refusalNames {
		gs.Refused[name] = table.Refused[number]
	}
	err := eachElement(g.maps[tapgateMapTgHosts], func(_ *tapgateTgHostKey, h *tapgateTgHost) {
		if h.Flows > 0 {
			gs.Hosts++
		}
	})
	if err != nil {
		return fmt.Errorf("read the accounts of inside hosts: %w", err)
	}
	for _, o := range r.Outside {
		gs.Outside = append(gs.Outside, o.status())
	}
	if err := g.statusRules(gs, now); err != nil {
		return err
	}
	s.Gateway = gs
	if gs.Flows >= gs.MaxFlows {
		s.Problems = append(s.Problems, fmt.Sprintf("the flow table is full (%d flows): new connections are refused until some end; max_flows under nat makes it larger", gs.Flows))
	}
	var problem string
	if gs.Reorders, problem = g.statusReassembly(); problem != "" {
		s.Problems = append(s.Problems, problem)
	}
	return g.statusOutside(s)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (g *Gateway) statusRules(gs *GatewayStatus, now uint64) error {
	lists := map[string]*[]RuleStatus{kindForward: &gs.Forwards, kindMasquerade: &gs.Masquerades, kindPolicy: &gs.Policies}
	for _, r := range g.active.Gateway.Rules {
		if r.Gone {
			continue
		}
		var cpus []tapgateTgHit
		if err := g.maps[tapgateMapTgHits].Lookup(r.Number, &cpus); err != nil {
			return fmt.Errorf("read the hits of %s %s: %w", r.Kind, r.Name, err)
		}
		rs, last := RuleStatus{Name: r.Name, Rule: r.Text}, uint64(0)
		for _, c := range cpus {
			rs.Flows += c.Flows
			last = max(last, c.Last)
		}
		if last > 0 {
			rs.Last = time.Now().Add(-time.Duration(now - min(now, last))).UTC().Format(time.RFC3339)
		}
		*lists[r.Kind] = append(*lists[r.Kind], rs)
	}
	return nil
}

// statusOutside tells what keeps flows from being forwarded, as far as it can be
// seen from here.
func (g *Gateway) statusOutside(s *Status) error {
	now, err := g.outsideNow()
	if err != nil {
		return err
	}
	for i, was := range g.active.Gateway.Outside {
		if was.equal(now[i]) || s.Gateway.Followed {
			continue // the agent is about to see it too
		}
		if slices.ContainsFunc(g.active.Members, func(m memberRecord) bool { here, _ := m.stillHere(); return m.Ifindex == was.Ifindex && !here }) {
			continue // told among the members
		}
		if was.V4 == now[i].V4 && was.V6 == now[i].V6 && was.MTU == now[i].MTU && !lostAny(was, now[i]) {
			continue // one more is not in the way of what runs
		}
		s.Problems = append(s.Problems, fmt.Sprintf("interface %s has other addresses (%s) than when it was applied (%s): "+
			"flows go on with the old ones; \"tapgate agent\" would follow them: start it, or apply again",
			was.Interface, addrList(now[i].Addresses), addrList(was.Addresses)))
	}
	s.Problems = append(append(s.Problems, g.wrongSysctls()...), g.statusForwarding(s.Gateway)...)
	return nil
}

func lostAny(was, now outsideRecord) bool {
	return slices.ContainsFunc(was.Addresses, func(a netip.Addr) bool { return !slices.Contains(now.Addresses, a) })
}

func addrList(list []netip.Addr) string {
	if text := listed("", list); text != "" {
		return text[1:]
	}
	return "none"
}

// followed says whether an agent holds the lock of those that follow.
func (g *Gateway) followed() bool {
	lock, err := lockDir(filepath.Join(g.dir, linksDir), false, 0)
	if errors.Is(err, ErrBusy) {
		return true
	}
	lock.unlock()
	return false
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
