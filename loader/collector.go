package loader

import "github.com/prometheus/client_golang/prometheus"

// Mirror, target and direction label every account; a reason is one of a fixed few.
var (
	accountLabels = []string{"mirror", "target", "direction"}

	descMatched = accountDesc("matched", "Packets that a mirror wanted for a target")
	descCopied  = accountDesc("copied", "Packets handed to the sensor's link")
	descSkipped = newAccount("skipped", "Packets that did not become a copy", []string{"mirror", "target", "direction", "reason"})
	descRefused = prometheus.NewDesc("tapgate_refused_copies_total",
		"Copies that the sensor's link did not take, in socket buffers.", accountLabels, nil)
	descSeen = newAccount("seen", "Packets on an interface with programs of tapgate", []string{"interface", "direction"})
	descLink = prometheus.NewDesc("tapgate_sensor_link_dropped_packets_total",
		"Packets that the sensor's link dropped, since the interface exists.", []string{"interface", "by"}, nil)
	descCarrier = prometheus.NewDesc("tapgate_sensor_link_up",
		"Whether the sensor's link is up and has a carrier.", []string{"interface"}, nil)
	descNexthop = prometheus.NewDesc("tapgate_target_resolved",
		"Whether the target's next hop is known and answers.", []string{"mirror", "target"}, nil)
	descProblems = prometheus.NewDesc("tapgate_problems", "Problems that status tells.", nil, nil)
)

// account describes packets as on the wire and their bytes.
type account struct{ packets, bytes *prometheus.Desc }

func accountDesc(what, help string) account { return newAccount(what, help, accountLabels) }

func newAccount(what, help string, labels []string) account {
	name := "tapgate_" + what
	return account{
		prometheus.NewDesc(name+"_packets_total", help+", as on the wire.", labels, nil),
		prometheus.NewDesc(name+"_bytes_total", help+", in bytes of the original frames.", labels, nil),
	}
}

// collector makes metrics of a Status.
type collector struct{ read func() (*Status, error) }

// NewCollector returns metrics of the gateway whose status read gives. read is
// called once for each collection; its error is the collection's.
func NewCollector(read func() (*Status, error)) prometheus.Collector { return collector{read} }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, a := range []account{descMatched, descCopied, descSkipped, descSeen} {
		ch <- a.packets
		ch <- a.bytes
	}
	for _, d := range []*prometheus.Desc{descRefused, descLink, descCarrier, descNexthop, descProblems} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s, err := c.read()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descProblems, err)
		return
	}
	gauge := func(d *prometheus.Desc, yes bool, labels ...string) {
		v := 0.0
		if yes {
			v = 1
		}
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, m := range s.Members {
		for direction, d := range map[string]*DirectionStatus{"ingress": m.Ingress, "egress": m.Egress} {
			if d != nil {
				descSeen.send(ch, d.Seen, m.Interface, direction)
			}
		}
	}
	for _, m := range s.Mirrors {
		for _, t := range m.Targets {
			sendLedger(ch, t.Ingress, m.Name, t.Target, "ingress")
			sendLedger(ch, t.Egress, m.Name, t.Target, "egress")
			if t.Neighbour != nil {
				gauge(descNexthop, t.Neighbour.MAC != "" && t.Neighbour.State != "failed", m.Name, t.Target)
			}
		}
	}
	for _, l := range s.Links {
		sendCounter(ch, descLink, l.TxDropped, l.Interface, "device")
		sendCounter(ch, descLink, l.QdiscDrops, l.Interface, "qdisc")
		gauge(descCarrier, l.Up && l.Carrier, l.Interface)
	}
	ch <- prometheus.MustNewConstMetric(descProblems, prometheus.GaugeValue, float64(len(s.Problems)))
}

func (a account) send(ch chan<- prometheus.Metric, c Count, labels ...string) {
	sendCounter(ch, a.packets, c.Packets, labels...)
	sendCounter(ch, a.bytes, c.Bytes, labels...)
}

func sendLedger(ch chan<- prometheus.Metric, l Ledger, labels ...string) {
	descMatched.send(ch, l.Matched, labels...)
	descCopied.send(ch, l.Copied, labels...)
	sendCounter(ch, descRefused, l.Refused.Packets, labels...)
	for reason, c := range l.Skipped {
		descSkipped.send(ch, c, append(labels[:len(labels):len(labels)], reason)...)
	}
}

func sendCounter(ch chan<- prometheus.Metric, d *prometheus.Desc, v uint64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}
