package loader

import (
	"errors"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// descs are all metrics of the collector; scripts/monitoring/metrics.md lists them too.
var descs []*prometheus.Desc

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("tapgate_"+name, help, labels, nil)
	descs = append(descs, d)
	return d
}

// A label is a name of the configuration or of an interface, or one of a fixed few.
var (
	mirrorLabels = []string{"mirror", "direction"}
	targetLabels = []string{"mirror", "target", "direction"}

	descAttached = newDesc("attached", "Whether a configuration is in force.")
	descApplied  = newDesc("config_applied_timestamp_seconds", "When what is in force was changed last.")
	descChanges  = newDesc("config_changes_total", "Configurations put in force.")
	descProblems = newDesc("problems", "Problems that status tells.")

	descInterface  = newDesc("interface_info", "Interfaces of the configuration, and how programs are attached to them.", "interface", "zone", "role", "attached")
	descSeen       = newAccount("seen", "Packets on an interface with programs of tapgate", "interface", "direction")
	descVerdicts   = newDesc("verdicts_total", "Socket buffers by what became of them and why; drops by every reason, passes by those that happened.", "interface", "direction", "verdict", "reason")
	descDuplicates = newDesc("duplicate_packets_total", "Packets that a mirror passed over, since it copied them on another interface.", "interface", "direction")

	descMirror  = newLedger("mirror_", "for all its targets", mirrorLabels)
	descTarget  = newLedger("", "for a target", targetLabels)
	descNexthop = newDesc("target_resolved", "Whether the target's next hop is known and answers.", "mirror", "target")
	descState   = newDesc("nexthop_state", "Whether the next hop of targets is in this state.", "interface", "target", "state")
	descAnswer  = newDesc("nexthop_last_answer_seconds", "How long ago the next hop has answered last.", "interface", "target")
	descAsks    = newDesc("nexthop_questions_total", "Questions for the next hop that were handed to the link.", "interface", "target")
	descUnasked = newDesc("nexthop_refused_questions_total", "Of these, those that the link did not take.", "interface", "target")
	descMoves   = newDesc("nexthop_mac_changes_total", "Times that the next hop's MAC address became another one.", "interface", "target")

	descLink    = newDesc("sensor_link_dropped_packets_total", "Packets that the sensor's link dropped, since the interface exists.", "interface", "by")
	descLinkOut = newDesc("sensor_link_transmitted_packets_total", "Packets that the sensor's link has sent, since the interface exists.", "interface")
	descCarrier = newDesc("sensor_link_up", "Whether the sensor's link is up and has a carrier.", "interface")
	descMTU     = newDesc("sensor_link_mtu_bytes", "MTU of the sensor's link.", "interface")

	descProgram = newDesc("program_info", "Programs in the kernel.", "program", "id", "tag")
	descRuns    = newDesc("program_runs_total", "Times that a program ran, while the kernel's statistics were on.", "program")
	descRunTime = newDesc("program_run_seconds_total", "Time that a program ran, while the kernel's statistics were on.", "program")
)

// account describes packets as on the wire and their bytes.
type account struct{ packets, bytes *prometheus.Desc }

func newAccount(what, help string, labels ...string) account {
	return account{
		newDesc(what+"_packets_total", help+", as on the wire.", labels...),
		newDesc(what+"_bytes_total", help+", in bytes of the original frames.", labels...),
	}
}

// ledger describes a Ledger.
type ledger struct {
	matched, copied, skipped account
	refused, refusedBytes    *prometheus.Desc
}

func newLedger(prefix, whose string, labels []string) ledger {
	return ledger{
		matched:      newAccount(prefix+"matched", "Packets that a mirror wanted "+whose, labels...),
		copied:       newAccount(prefix+"copied", "Packets handed to the sensor's link "+whose, labels...),
		skipped:      newAccount(prefix+"skipped", "Packets that did not become a copy "+whose, append(labels[:len(labels):len(labels)], "reason")...),
		refused:      newDesc(prefix+"refused_copies_total", "Copies "+whose+" that the sensor's link did not take, in socket buffers.", labels...),
		refusedBytes: newDesc(prefix+"refused_bytes_total", "Bytes of the copies "+whose+" that the sensor's link did not take.", labels...),
	}
}

// collector makes metrics of a Status.
type collector struct{ read func() (*Status, error) }

// NewCollector returns metrics of the gateway whose status read gives. read is
// called once for each collection; its error is the collection's, but for
// ErrNotAttached, which is a metric.
func NewCollector(read func() (*Status, error)) prometheus.Collector { return collector{read} }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	out := sink{ch}
	s, err := c.read()
	switch {
	case errors.Is(err, ErrNotAttached):
		out.yes(descAttached, false)
		return
	case err != nil:
		ch <- prometheus.NewInvalidMetric(descAttached, err)
		return
	}
	out.yes(descAttached, true)
	out.counter(descChanges, s.Serial)
	out.gauge(descProblems, float64(len(s.Problems)))
	out.when(descApplied, s.Applied)
	for _, m := range s.Members {
		out.gauge(descInterface, 1, m.Interface, m.Zone, string(m.Role), m.Attached)
		out.direction(m.Ingress, m.Interface, "ingress")
		out.direction(m.Egress, m.Interface, "egress")
	}
	out.mirrors(s.Mirrors)
	for _, l := range s.Links {
		out.counter(descLink, l.TxDropped, l.Interface, "device")
		out.counter(descLink, l.QdiscDrops, l.Interface, "qdisc")
		out.counter(descLinkOut, l.TxPackets, l.Interface)
		out.yes(descCarrier, l.Up && l.Carrier, l.Interface)
		out.gauge(descMTU, float64(l.MTU), l.Interface)
	}
	for _, p := range s.Programs {
		out.gauge(descProgram, 1, p.Name, p.ID, p.Tag)
		if p.Runs > 0 { // never with the kernel's statistics off
			out.counter(descRuns, p.Runs, p.Name)
			out.add(descRunTime, prometheus.CounterValue, p.RunTime, p.Name)
		}
	}
	if s.Gateway != nil {
		out.gateway(s.Gateway)
	}
}

// sink sends metrics.
type sink struct{ ch chan<- prometheus.Metric }

func (s sink) add(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "?") // the kernel lets a link have any name
	}
	s.ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
}

func (s sink) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s.add(d, prometheus.CounterValue, float64(v), labels...)
}

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.add(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) yes(d *prometheus.Desc, yes bool, labels ...string) {
	v := 0.0
	if yes {
		v = 1
	}
	s.gauge(d, v, labels...)
}

// when is a time as in RFC 3339; nothing for none.
func (s sink) when(d *prometheus.Desc, text string, labels ...string) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		s.gauge(d, float64(t.Unix()), labels...)
	}
}

func (s sink) account(a account, c Count, labels ...string) {
	s.counter(a.packets, c.Packets, labels...)
	s.counter(a.bytes, c.Bytes, labels...)
}

func (s sink) ledger(d ledger, l Ledger, labels ...string) {
	s.account(d.matched, l.Matched, labels...)
	s.account(d.copied, l.Copied, labels...)
	s.counter(d.refused, l.Refused.Packets, labels...)
	s.counter(d.refusedBytes, l.Refused.Bytes, labels...)
	for reason, c := range l.Skipped {
		s.account(d.skipped, c, append(labels[:len(labels):len(labels)], reason)...)
	}
}

const dropPrefix = "drop_"

// direction has every reason for a drop, so that the first of its kind is a change.
func (s sink) direction(d *DirectionStatus, labels ...string) {
	if d == nil {
		return
	}
	s.account(descSeen, d.Seen, labels...)
	s.counter(descDuplicates, d.Duplicates, labels...)
	for _, name := range reasonNames() {
		verdict, reason, _ := strings.Cut(name, "_")
		if n := d.Reasons[name]; n > 0 || strings.HasPrefix(name, dropPrefix) {
			s.counter(descVerdicts, n, append(labels[:len(labels):len(labels)], verdict, reason)...)
		}
	}
}

func (s sink) mirrors(mirrors []MirrorStatus) {
	told := map[[2]string]bool{} // targets of several mirrors share one next hop
	for _, m := range mirrors {
		s.ledger(descMirror, m.Ingress, m.Name, "ingress")
		s.ledger(descMirror, m.Egress, m.Name, "egress")
		for _, t := range m.Targets {
			s.ledger(descTarget, t.Ingress, m.Name, t.Target, "ingress")
			s.ledger(descTarget, t.Egress, m.Name, t.Target, "egress")
			if t.Neighbour == nil {
				continue
			}
			s.yes(descNexthop, t.Neighbour.MAC != "" && t.Neighbour.State != "failed", m.Name, t.Target)
			if key := [2]string{t.Interface, t.Target}; !told[key] {
				told[key] = true
				s.nexthop(t.Neighbour, t.Interface, t.Target)
			}
		}
	}
}

func (s sink) nexthop(n *NeighbourStatus, ifname, target string) {
	for _, state := range neighbourStates {
		s.yes(descState, n.State == state, ifname, target, state)
	}
	if n.MAC != "" {
		s.gauge(descAnswer, n.Age, ifname, target)
	}
	s.counter(descAsks, n.Asks, ifname, target)
	s.counter(descUnasked, n.AsksRefused, ifname, target)
	s.counter(descMoves, n.Changes, ifname, target)
}
