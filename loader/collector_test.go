package loader

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func collectorStatus() *Status {
	ledger := Ledger{
		Matched: Count{3, 300}, Copied: Count{2, 200}, Refused: Count{1, 100},
		Skipped: map[string]Count{"too_big": {1, 100}},
	}
	target := TargetStatus{
		Target: "via 192.0.2.2", Interface: "eth2", Ingress: ledger, Egress: ledger,
		Neighbour: &NeighbourStatus{State: "failed", MAC: "02:00:00:00:00:01", Age: 7, Asks: 3},
	}
	s := &Status{
		Serial: 4, Applied: "2026-11-22T18:00:00Z",
		Members: []MemberStatus{
			{Interface: "eth3", Zone: "internal", Role: RoleInternal, Attached: "tcx", Ingress: &DirectionStatus{
				Seen: Count{5, 500}, Reasons: map[string]uint64{"pass_flow": 4, "drop_no_port": 1},
			}},
			{Interface: "eth\xff", Zone: "external", Role: RoleExternal},
		},
		// Both mirrors have the same next hop.
		Mirrors:  []MirrorStatus{{Name: "ids", Ingress: ledger, Egress: ledger, Targets: []TargetStatus{target}}, {Name: "rec", Targets: []TargetStatus{target}}},
		Links:    []LinkStatus{{Interface: "eth2", Up: true, Carrier: true, MTU: 1500, TxPackets: 8, TxDropped: 4, QdiscDrops: 6}},
		Problems: []string{"one"},
		Programs: []ProgramStatus{{Name: "tapgate_tap_in", ID: "9", Tag: "ab", Runs: 10, RunTime: 0.5}, {Name: "tapgate_ask", ID: "8", Tag: "cd"}},
		Gateway: &GatewayStatus{
			Flows: 10, MaxFlows: 100, Refused: map[string]uint64{"ports": 2}, Forwarding: ForwardingStatus{Mode: ForwardingKernel, Wanted: ForwardingFast},
			Outside:  []OutsideStatus{{Interface: "eth0", Zone: "external", IPv4: "203.0.113.1"}},
			Policies: []RuleStatus{{Name: "web", Flows: 3, Last: "2026-11-22T18:00:01Z"}},
		},
	}
	for i := range labelledRules + 2 {
		s.Gateway.Forwards = append(s.Gateway.Forwards, RuleStatus{Name: fmt.Sprintf("f%d", i), Flows: 2})
	}
	return s
}

// What a Status says comes out as metrics, and Prometheus has nothing to say against
// their names.
func TestCollector(t *testing.T) {
	status := collectorStatus()
	c := NewCollector(func() (*Status, error) { return status, nil })
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	want := `
# HELP tapgate_attached Whether a configuration is in force.
# TYPE tapgate_attached gauge
tapgate_attached 1
# HELP tapgate_config_applied_timestamp_seconds When what is in force was changed last.
# TYPE tapgate_config_applied_timestamp_seconds gauge
tapgate_config_applied_timestamp_seconds 1.7953704e+09
# HELP tapgate_flows_refused_total New flows that there was no room, port or rate for.
# TYPE tapgate_flows_refused_total counter
tapgate_flows_refused_total{reason="ports"} 2
# HELP tapgate_forwarding Whether known flows pass the machine this way.
# TYPE tapgate_forwarding gauge
tapgate_forwarding{mode="fast"} 0
tapgate_forwarding{mode="kernel"} 1
# HELP tapgate_forwarding_wanted Whether the configuration asks for this way.
# TYPE tapgate_forwarding_wanted gauge
tapgate_forwarding_wanted{mode="fast"} 1
tapgate_forwarding_wanted{mode="kernel"} 0
# HELP tapgate_interface_info Interfaces of the configuration, and how programs are attached to them.
# TYPE tapgate_interface_info gauge
tapgate_interface_info{attached="",interface="eth?",role="external",zone="external"} 1
tapgate_interface_info{attached="tcx",interface="eth3",role="internal",zone="internal"} 1
# HELP tapgate_mirror_refused_copies_total Copies for all its targets that the sensor's link did not take, in socket buffers.
# TYPE tapgate_mirror_refused_copies_total counter
tapgate_mirror_refused_copies_total{direction="egress",mirror="ids"} 1
tapgate_mirror_refused_copies_total{direction="egress",mirror="rec"} 0
tapgate_mirror_refused_copies_total{direction="ingress",mirror="ids"} 1
tapgate_mirror_refused_copies_total{direction="ingress",mirror="rec"} 0
# HELP tapgate_nexthop_state Whether the next hop of targets is in this state.
# TYPE tapgate_nexthop_state gauge
tapgate_nexthop_state{interface="eth2",state="failed",target="via 192.0.2.2"} 1
tapgate_nexthop_state{interface="eth2",state="incomplete",target="via 192.0.2.2"} 0
tapgate_nexthop_state{interface="eth2",state="probing",target="via 192.0.2.2"} 0
tapgate_nexthop_state{interface="eth2",state="reachable",target="via 192.0.2.2"} 0
# HELP tapgate_outside_address_info Addresses that flows are translated to, by external interface.
# TYPE tapgate_outside_address_info gauge
tapgate_outside_address_info{address="203.0.113.1",family="4",interface="eth0",zone="external"} 1
# HELP tapgate_program_run_seconds_total Time that a program ran, while the kernel's statistics were on.
# TYPE tapgate_program_run_seconds_total counter
tapgate_program_run_seconds_total{program="tapgate_tap_in"} 0.5
# HELP tapgate_rule_last_flow_timestamp_seconds When a rule decided on a flow last.
# TYPE tapgate_rule_last_flow_timestamp_seconds gauge
tapgate_rule_last_flow_timestamp_seconds{kind="policy",rule="web"} 1.795370401e+09
# HELP tapgate_sensor_link_dropped_packets_total Packets that the sensor's link dropped, since the interface exists.
# TYPE tapgate_sensor_link_dropped_packets_total counter
tapgate_sensor_link_dropped_packets_total{by="device",interface="eth2"} 4
tapgate_sensor_link_dropped_packets_total{by="qdisc",interface="eth2"} 6
# HELP tapgate_skipped_packets_total Packets that did not become a copy for a target, as on the wire.
# TYPE tapgate_skipped_packets_total counter
tapgate_skipped_packets_total{direction="egress",mirror="ids",reason="too_big",target="via 192.0.2.2"} 1
tapgate_skipped_packets_total{direction="egress",mirror="rec",reason="too_big",target="via 192.0.2.2"} 1
tapgate_skipped_packets_total{direction="ingress",mirror="ids",reason="too_big",target="via 192.0.2.2"} 1
tapgate_skipped_packets_total{direction="ingress",mirror="rec",reason="too_big",target="via 192.0.2.2"} 1
# HELP tapgate_target_resolved Whether the target's next hop is known and answers.
# TYPE tapgate_target_resolved gauge
tapgate_target_resolved{mirror="ids",target="via 192.0.2.2"} 0
tapgate_target_resolved{mirror="rec",target="via 192.0.2.2"} 0
`
	var names []string
	for line := range strings.Lines(want) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			names = append(names, strings.Fields(rest)[0])
		}
	}
	if err := testutil.CollectAndCompare(c, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

// A configuration of ten thousand forwards does not make as many series, and drops
// have a series before the first one.
func TestCollectorIsBounded(t *testing.T) {
	status := collectorStatus()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(func() (*Status, error) { return status, nil }))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			key := f.GetName()
			for _, l := range m.GetLabel() {
				key += "," + l.GetValue()
			}
			series[key] = m.GetCounter().GetValue()
		}
	}
	if v := series["tapgate_rule_flows_total,forward,(others)"]; v != 4 {
		t.Errorf("the rules beyond the limit: %v flows, want 4", v)
	}
	if _, there := series[fmt.Sprintf("tapgate_rule_flows_total,forward,f%d", labelledRules)]; there {
		t.Error("more rules have labels than the limit")
	}
	if _, there := series["tapgate_program_runs_total,tapgate_ask"]; there {
		t.Error("a program that was not measured has a count")
	}
	var drops int
	for key, v := range series {
		if strings.HasPrefix(key, "tapgate_verdicts_total,ingress,eth3,") {
			switch {
			case strings.HasSuffix(key, ",drop"):
				drops++
			case key != "tapgate_verdicts_total,ingress,eth3,flow,pass" || v != 4:
				t.Errorf("%s %v", key, v)
			}
		}
	}
	if v := series["tapgate_verdicts_total,ingress,eth3,no_port,drop"]; v != 1 || drops < 15 {
		t.Errorf("%d reasons for drops, no port left %v times", drops, v)
	}
}

// An error of the status is the collection's; no gateway is none.
func TestCollectorErrors(t *testing.T) {
	err := errors.New("gone")
	c := NewCollector(func() (*Status, error) { return nil, err })
	if _, err := testutil.CollectAndLint(c); err == nil {
		t.Error("an error of the status is lost")
	}
	err = fmt.Errorf("there: %w", ErrNotAttached)
	if got := testutil.ToFloat64(c); got != 0 {
		t.Errorf("tapgate_attached is %v without a gateway", got)
	}
}
