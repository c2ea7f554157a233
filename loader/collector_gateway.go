package loader

// Rules beyond so many of a kind share one label, so that ten thousand forwards do
// not make ten thousand series.
const (
	labelledRules = 1000
	otherRules    = "(others)"
)

var neighbourStates = []string{"incomplete", "reachable", "probing", "failed"}

var (
	descFlows       = newDesc("flows", "Flows in the table.")
	descFlowsMax    = newDesc("flows_limit", "Flows that the table may have.")
	descFresh       = newDesc("unanswered_flows", "Flows that were never answered.")
	descFreshMax    = newDesc("unanswered_flows_limit", "Flows without an answer that the table may have.")
	descForwarded   = newDesc("unanswered_forwarded_flows", "Flows that were never answered and that forwards let in.")
	descHostMax     = newDesc("host_flows_limit", "Flows that one inside host may have.")
	descMemory      = newDesc("preallocated_bytes", "Memory that the flow table takes although it is empty, with nat.preallocate.")
	descHosts       = newDesc("hosts", "Inside hosts with flows.")
	descMappings    = newDesc("mappings", "Inside endpoints with an outside one.")
	descCreated     = newDesc("flows_created_total", "Flows that were made.")
	descExpired     = newDesc("flows_expired_total", "Flows that ended.")
	descTurnedAway  = newDesc("flows_refused_total", "New flows that there was no room, port or rate for.", "reason")
	descAdopting    = newDesc("adopting_seconds", "For how long TCP flows may still begin in the middle.")
	descForwarding  = newDesc("forwarding", "Whether known flows pass the machine this way.", "mode")
	descWanted      = newDesc("forwarding_wanted", "Whether the configuration asks for this way.", "mode")
	descFollowed    = newDesc("followed", "Whether an agent follows the outside addresses.")
	descReassembles = newDesc("reassembly_available", "Whether fragments from outside may come in any order.")
	descOutside     = newDesc("outside_address_info", "Addresses that flows are translated to, by external interface.", "interface", "zone", "family", "address")
	descRuleFlows   = newDesc("rule_flows_total", "New flows that a rule decided on.", "kind", "rule")
	descRuleLast    = newDesc("rule_last_flow_timestamp_seconds", "When a rule decided on a flow last.", "kind", "rule")
)

func (s sink) gateway(g *GatewayStatus) {
	s.gauge(descFlows, float64(g.Flows))
	s.gauge(descFlowsMax, float64(g.MaxFlows))
	s.gauge(descFresh, float64(g.Fresh))
	s.gauge(descFreshMax, float64(g.MaxFresh))
	s.gauge(descForwarded, float64(g.Forwarded))
	s.gauge(descHostMax, float64(g.MaxPerHost))
	s.gauge(descMemory, float64(g.Memory))
	s.gauge(descHosts, float64(g.Hosts))
	s.gauge(descMappings, float64(g.Bindings))
	s.counter(descCreated, g.Created)
	s.counter(descExpired, g.Expired)
	for reason, n := range g.Refused {
		s.counter(descTurnedAway, n, reason)
	}
	s.gauge(descAdopting, g.Adopting)
	for _, mode := range []string{ForwardingFast, ForwardingKernel} {
		s.yes(descForwarding, g.Forwarding.Mode == mode, mode)
		s.yes(descWanted, g.Forwarding.Wanted == mode, mode)
	}
	s.yes(descFollowed, g.Followed)
	s.yes(descReassembles, g.Reorders)
	for _, o := range g.Outside {
		for family, address := range map[string]string{"4": o.IPv4, "6": o.IPv6} {
			if address != "" {
				s.gauge(descOutside, 1, o.Interface, o.Zone, family, address)
			}
		}
	}
	s.rules(kindForward, g.Forwards)
	s.rules(kindMasquerade, g.Masquerades)
	s.rules(kindPolicy, g.Policies)
}

func (s sink) rules(kind string, rules []RuleStatus) {
	var others uint64
	for i, r := range rules {
		if i >= labelledRules {
			others += r.Flows
			continue
		}
		s.counter(descRuleFlows, r.Flows, kind, r.Name)
		s.when(descRuleLast, r.Last, kind, r.Name)
	}
	if len(rules) > labelledRules {
		s.counter(descRuleFlows, others, kind, otherRules)
	}
}
