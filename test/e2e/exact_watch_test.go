package e2e

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tapgate/test/lab"
)

// exactWait bounds every wait; nothing here depends on how long a wait takes.
const exactWait = 30 * time.Second

// The header compared by a view begins here: what a target of that kind keeps.
const (
	fromEtherType = 12 // via: both MACs are delivery's
	fromSourceMAC = 6  // l2 with a MAC
	wholeFrame    = 0  // l2
)

// sensorSide is one sensor: what arrives there, as tcpdump sees it.
type sensorSide struct {
	host *lab.Host
	dump *lab.Tcpdump
	from int               // wholeFrame, fromSourceMAC or fromEtherType
	dst  net.HardwareAddr  // destination MAC that every copy wears, or nil
	base map[string]uint64 // what the gateway's links had dropped before the first copy
	pick func([]byte) bool // which frames are this target's, where several share a sensor
}

// copies leaves out what is no copy of this target.
func (v *sensorSide) copies(g *gateway, frames []lab.Frame) []lab.Frame {
	return lab.Select(frames, func(f lab.Frame) bool { return !gatewayTalk(g, f) && (v.pick == nil || v.pick(f.Data)) })
}

// cable compares what is on a server's cable with what its sensors get.
type cable struct {
	t       *testing.T
	g       *gateway
	ifname  string    // of the gateway, before the server
	server  *lab.Host // at the other end of that cable
	out, in *lab.Tcpdump
	views   []*sensorSide
	// finish turns a captured frame into what is on a wire: more than one
	// frame where the sender leaves segments to hardware. nil: as captured.
	finish func([]byte) [][]byte
	marks  int
}

// watchCable starts tcpdump on both directions of the server's cable and on each
// view. Start it before the first apply: the account then holds every copy.
func watchCable(g *gateway, ifname string, server *lab.Host, views ...*sensorSide) *cable {
	g.t.Helper()
	return watchLarge(g, ifname, server, onWire, views...)
}

// Largest frames: tcpdump's ring holds 64 MiB divided by that many of them.
const (
	onWire  = 2 << 10
	jumbo   = 10 << 10
	offload = 68 << 10
)

// watchLarge is watchCable for a server that has frames of that size.
func watchLarge(g *gateway, ifname string, server *lab.Host, size int, views ...*sensorSide) *cable {
	g.t.Helper()
	w := &cable{t: g.t, g: g, ifname: ifname, server: server, views: views}
	start := func(h *lab.Host, direction string, size int) *lab.Tcpdump { return dump(g, h, size, "-Q", direction) }
	w.out, w.in = start(server, "out", size), start(server, "in", size)
	dumps := map[*lab.Host]*lab.Tcpdump{}
	for _, v := range views {
		if dumps[v.host] == nil {
			dumps[v.host] = start(v.host, "in", max(onWire, size%offload))
		}
		v.dump, v.base = dumps[v.host], droppedBefore(g)
	}
	return w
}

// dump starts tcpdump on eth0 of a host; the test fails if it loses a frame.
func dump(g *gateway, h *lab.Host, size int, args ...string) *lab.Tcpdump {
	g.t.Helper()
	d, err := h.Tcpdump("eth0", append([]string{"-s", strconv.Itoa(size)}, args...)...)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if _, err := d.Stop(); err != nil {
			g.t.Errorf("%s: %v", h.Name, err)
		}
	})
	return d
}

// droppedBefore is what links have dropped by now: a link may come up before
// its other end does, and the kernel speaks at once.
func droppedBefore(g *gateway) map[string]uint64 {
	g.t.Helper()
	base := map[string]uint64{}
	err := g.Gateway.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if s := l.Attrs().Statistics; s != nil {
				base[l.Attrs().Name] = s.TxDropped
			}
		}
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return base
}

// sensorView is the lab's own sensor as a via target sees it.
func sensorView(g *gateway) *sensorSide {
	return &sensorSide{host: g.Sensor, from: fromEtherType, dst: g.Sensor.MAC}
}

// mark sends a frame that nobody mistakes for another, from the server or from
// the gateway to it, and waits until every view has it.
func (w *cable) mark(outward bool) []byte {
	w.t.Helper()
	w.marks++
	gw := w.g.Gateway.Interface(w.ifname).MAC
	f := append(append([]byte{}, gw...), w.server.MAC...)
	host, ifname := w.server, "eth0"
	if !outward {
		f = append(append([]byte{}, w.server.MAC...), gw...)
		host, ifname = w.g.Gateway, w.ifname
	}
	f = append(f, 0x88, 0xb6)
	f = append(f, fmt.Sprintf("tapgate mark %p %d", w, w.marks)...)
	f = append(f, make([]byte, max(0, 60-len(f)))...)
	sendRaw(w.t, host, ifname, f)
	for _, v := range w.views {
		if _, err := v.dump.WaitFor(func(frames []lab.Frame) bool { return indexOf(v.copies(w.g, frames), f[14:]) >= 0 }, exactWait); err != nil {
			w.t.Fatalf("a mark did not reach %s: %v\n%s", v.host.Name, err, w.g.must("status", "--json").stdout)
		}
	}
	return f[14:]
}

func sendRaw(t *testing.T, host *lab.Host, ifname string, frames ...[]byte) {
	t.Helper()
	s, err := host.Sender(ifname)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, f := range frames {
		if err := s.Send(f); err != nil {
			t.Fatal(err)
		}
	}
}

func indexOf(frames []lab.Frame, payload []byte) int {
	for i, f := range frames {
		if len(f.Data) > 14 && bytes.Equal(f.Data[14:], payload) {
			return i
		}
	}
	return -1
}

// same runs traffic and requires of every view: each frame that the cable
// carried, once, in order in each direction, bit for bit, and nothing else. It
// returns the frames of the cable: from the server and to it.
func (w *cable) same(traffic func()) (out, in []lab.Frame) {
	w.t.Helper()
	var begin, end [2][]byte
	begin[0], begin[1] = w.mark(true), w.mark(false)
	traffic()
	end[0], end[1] = w.mark(true), w.mark(false)
	want := wanted{begin: begin, everything: map[string]int{}, unordered: map[string]int{}}
	var raw [2][]lab.Frame
	for i, d := range []*lab.Tcpdump{w.out, w.in} {
		frames, err := d.WaitFor(func(frames []lab.Frame) bool { return indexOf(frames, end[i]) >= 0 }, exactWait)
		if err != nil {
			w.t.Fatal(err)
		}
		first, last := indexOf(frames, begin[i]), indexOf(frames, end[i])
		if first < 0 {
			w.t.Fatalf("the first mark is missing on the server's own cable")
		}
		for n, f := range frames {
			for _, f := range w.onWire(f.Data) {
				switch inside := n >= first && n <= last; {
				case ownTime(f):
					want.everything[string(f[12:])]++
					if inside {
						want.unordered[string(f[12:])]++
					}
				case inside:
					want.ordered[i] = append(want.ordered[i], f)
				}
			}
		}
		raw[i] = frames[first+1 : last]
	}
	for _, v := range w.views {
		frames, err := v.dump.Frames()
		if err != nil {
			w.t.Fatal(err)
		}
		v.compare(w.t, v.copies(w.g, frames), want)
	}
	return raw[0], raw[1]
}

func (w *cable) onWire(f []byte) [][]byte {
	if w.finish == nil {
		return [][]byte{f}
	}
	return w.finish(f)
}
