package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
)

// books holds what the copies of mirror "ids" are compared with: the capture at
// the sensor and the counters of the link to it.
type books struct {
	g       *gateway
	sensor  *lab.Host
	ifname  string // of the link on the gateway
	capture *lab.Capture
	// Copies, and questions of the data plane, captured by captures that ended.
	before, asked int
}

// entry is a state of all counters, taken while production pauses.
type entry struct {
	loader.Ledger
	link     loader.LinkStatus
	asks     uint64 // neighbour questions of the data plane that did not arrive
	host     uint64 // packets of the gateway itself that the link was given
	captured int
}

func newBooks(g *gateway) *books {
	g.t.Helper()
	b := &books{g: g, sensor: g.Sensor, ifname: "eth2"}
	g.hushDmz()
	b.open()
	return b
}

// hushDmz takes IPv6 from the sensor's network: multicast reports of the kernel
// would be among what a full link drops.
func (g *gateway) hushDmz() {
	g.t.Helper()
	if !g.Gateway.Addr6.IsValid() {
		return
	}
	for _, err := range []error{
		g.Gateway.Sysctl("net/ipv6/conf/eth2/disable_ipv6", "1"), g.Sensor.Sysctl("net/ipv6/conf/all/disable_ipv6", "1"),
	} {
		if err != nil {
			g.t.Fatal(err)
		}
	}
}

// reopen captures on the interface that replaces the one captured so far.
func (b *books) reopen() {
	b.g.t.Helper()
	b.before, b.asked = b.captured(), b.questions()
	b.open()
}

func (b *books) open() {
	b.g.t.Helper()
	var err error
	if b.capture, err = b.sensor.Capture("eth0", lab.Incoming); err != nil {
		b.g.t.Fatal(err)
	}
}

func (b *books) captured() int {
	return b.before + len(copiesOf(b.capture.Frames()))
}

// questions counts what the data plane asked and the sensor heard; the kernel's
// own frames are shorter.
func (b *books) questions() int {
	return b.asked + len(lab.Select(b.capture.Frames(), func(f lab.Frame) bool {
		kind, _ := f.EtherType()
		return kind == 0x0806 && len(f.Data) > 60 && len(copiesOf([]lab.Frame{f})) == 0
	}))
}

// read reads all counters once they stay as they are: hosts also speak of
// neighbours and multicast groups, and a capture is a moment late.
func (b *books) read() entry {
	b.g.t.Helper()
	var last entry
	waitFor(b.g.t, "the counters come to rest", func() bool {
		before := last
		last = b.glance()
		return b.g.backlog(b.ifname) == 0 && last.Matched == before.Matched && last.captured == before.captured
	})
	b.g.checkLedgers()
	return last
}

func (b *books) glance() entry {
	b.g.t.Helper()
	s := b.g.status()
	var e entry
	for _, m := range s.Mirrors {
		if m.Name == "ids" {
			e.Ledger = m.Ledger
			if n := m.Targets[0].Neighbour; n != nil {
				// A queue may drop a question and say nothing, or say so of
				// another packet: what arrived is what counts.
				e.asks = n.Asks - uint64(b.questions())
			}
		}
	}
	for _, m := range s.Members {
		if m.Interface == b.ifname && m.Egress != nil {
			e.host = m.Egress.Reasons["pass_host"]
		}
	}
	for _, l := range s.Links {
		if l.Interface == b.ifname {
			e.link = l
		}
	}
	e.captured = b.captured()
	return e
}

// backlog is the number of packets that the qdiscs of an interface hold.
func (g *gateway) backlog(ifname string) (packets int) {
	g.t.Helper()
	var qdiscs []struct {
		Dev  string `json:"dev"`
		Qlen int    `json:"qlen"`
	}
	out := inHost(g.t, g.Gateway, "tc", "-s", "-j", "qdisc", "show")
	if err := json.Unmarshal([]byte(out), &qdiscs); err != nil {
		g.t.Fatalf("tc: %v: %s", err, out)
	}
	for _, q := range qdiscs {
		if q.Dev == ifname {
			packets += q.Qlen
		}
	}
	return packets
}

// period is what happened between two entries.
type period struct {
	matched, copied, refused uint64
	skipped                  map[string]uint64
	drops                    uint64 // of the link, but for neighbour questions
	captured, host           uint64
}

func (e entry) since(o entry) period {
	p := period{
		matched: e.Matched.Packets - o.Matched.Packets, copied: e.Copied.Packets - o.Copied.Packets,
		refused: e.Refused.Packets - o.Refused.Packets, captured: uint64(e.captured - o.captured), host: e.host - o.host,
		drops:   e.link.TxDropped - o.link.TxDropped + e.link.QdiscDrops - o.link.QdiscDrops - (e.asks - o.asks),
		skipped: map[string]uint64{},
	}
	for reason, c := range e.Skipped {
		if n := c.Packets - o.Skipped[reason].Packets; n > 0 {
			p.skipped[reason] = n
		}
	}
	return p
}

// pass lets n packets pass each way and says what became of their copies. On a
// link that is up, copied = captured + drops, and on one that is down, captured
// + refused: a capture has a moment to catch up.
func (b *books) pass(p *production, n int, up bool) period {
	b.g.t.Helper()
	start := b.read()
	p.exchange(n)
	var is period
	balanced := func() bool {
		is = b.read().since(start)
		if up {
			// What the gateway itself said may have been dropped as well.
			return is.copied <= is.captured+is.drops && is.copied+is.host >= is.captured+is.drops
		}
		return is.copied == is.captured+is.refused
	}
	for end := time.Now().Add(10 * time.Second); !balanced(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.g.t.Errorf("copied = captured + what the link lost does not hold (link up: %v): %+v", up, is)
			break
		}
	}
	if is.matched < uint64(2*n) {
		b.g.t.Errorf("of %d packets %d matched", 2*n, is.matched)
	}
	return is
}

// copiesOf leaves out what the gateway itself says on the sensor's network:
// questions and answers about addresses there, and IPv6's multicast reports.
func copiesOf(frames []lab.Frame) []lab.Frame {
	return lab.Select(frames, func(f lab.Frame) bool {
		p := f.Payload()
		switch kind, _ := f.EtherType(); kind {
		case 0x0806:
			return len(p) < 28 || !bytes.Equal(p[14:18], []byte{192, 168, 4, 1})
		case 0x86dd:
			return f.Data[0]&1 == 0
		}
		return true
	})
}

// inHost runs a tool in a host; it must succeed.
func inHost(t *testing.T, h *lab.Host, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := h.Command(ctx, name, args...).Output()
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return string(out)
}

// hexOf shows the first of some frames.
func hexOf(frames []lab.Frame) string {
	if len(frames) == 0 {
		return "none"
	}
	return fmt.Sprintf("%x", frames[0].Data)
}

// lastTo says whether the newest copy went to that MAC.
func (b *books) lastTo(mac []byte) bool {
	frames := copiesOf(b.capture.Frames())
	return len(frames) > 0 && bytes.Equal(frames[len(frames)-1].Data[:6], mac)
}
