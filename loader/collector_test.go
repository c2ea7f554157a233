package loader

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestCollector(t *testing.T) {
	ledger := Ledger{
		Matched: Count{3, 300}, Copied: Count{2, 200}, Refused: Count{1, 100},
		Skipped: map[string]Count{"too_big": {1, 100}},
	}
	status := &Status{
		Members: []MemberStatus{{Interface: "eth3", Ingress: &DirectionStatus{Seen: Count{5, 500}}}, {Interface: "eth0"}},
		Mirrors: []MirrorStatus{{Name: "ids", Targets: []TargetStatus{{
			Target: "via 192.0.2.2", Ingress: ledger, Egress: ledger, Neighbour: &NeighbourStatus{State: "failed", MAC: "02:00:00:00:00:01"},
		}}}},
		Links:    []LinkStatus{{Interface: "eth2", Up: true, Carrier: true, TxDropped: 4, QdiscDrops: 6}},
		Problems: []string{"one"},
	}
	c := NewCollector(func() (*Status, error) { return status, nil })
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	err := testutil.CollectAndCompare(c, strings.NewReader(`
# HELP tapgate_sensor_link_dropped_packets_total Packets that the sensor's link dropped, since the interface exists.
# TYPE tapgate_sensor_link_dropped_packets_total counter
tapgate_sensor_link_dropped_packets_total{by="device",interface="eth2"} 4
tapgate_sensor_link_dropped_packets_total{by="qdisc",interface="eth2"} 6
# HELP tapgate_skipped_packets_total Packets that did not become a copy, as on the wire.
# TYPE tapgate_skipped_packets_total counter
tapgate_skipped_packets_total{direction="egress",mirror="ids",reason="too_big",target="via 192.0.2.2"} 1
tapgate_skipped_packets_total{direction="ingress",mirror="ids",reason="too_big",target="via 192.0.2.2"} 1
# HELP tapgate_target_resolved Whether the target's next hop is known and answers.
# TYPE tapgate_target_resolved gauge
tapgate_target_resolved{mirror="ids",target="via 192.0.2.2"} 0
`), "tapgate_sensor_link_dropped_packets_total", "tapgate_skipped_packets_total", "tapgate_target_resolved")
	if err != nil {
		t.Error(err)
	}
	broken := NewCollector(func() (*Status, error) { return nil, errors.New("gone") })
	if _, err := testutil.CollectAndLint(broken); err == nil {
		t.Error("an error of the status is lost")
	}
}
