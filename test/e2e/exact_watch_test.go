package e2e

import (
	"bytes"
	bin "encoding/binary"
	"fmt"
	"maps"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapgate/loader"
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

// ownTime says whether the kernel sends such a frame by a timer: neighbour
// discovery and multicast reports. They come from any CPU, so that no order
// between them and others is the same everywhere.
func ownTime(f []byte) bool {
	switch {
	case len(f) < 14 || be16(f[12:]) == 0x0806:
		return true
	case be16(f[12:]) != 0x86dd || len(f) < 14+48:
		return false
	case f[20] == 58: // ICMPv6
		return f[54] >= 133 && f[54] <= 137
	}
	return f[20] == 0 && bytes.HasPrefix(f, []byte{0x33, 0x33, 0, 0, 0, 0x16}) || f[20] == 0 && bytes.Equal(f[38:54], net.ParseIP("ff02::16"))
}

// wanted is what the server's cable carried, by direction.
type wanted struct {
	ordered    [2][][]byte
	begin      [2][]byte      // the marks before which a direction is not compared
	unordered  map[string]int // frames sent by timers between the marks, from the EtherType on
	everything map[string]int // and those outside of them as well
}

// compare walks through what the sensor got: each frame must be the next of
// one of the directions.
func (v *sensorSide) compare(t *testing.T, got []lab.Frame, w wanted) {
	t.Helper()
	want, unordered, everything := w.ordered, maps.Clone(w.unordered), maps.Clone(w.everything)
	var on [2]bool
	total := len(want[0]) + len(want[1])
	for n, f := range got {
		if v.dst != nil && !bytes.Equal(f.Data[:6], v.dst) {
			t.Errorf("%s: frame %d goes to %x, want %s", v.host.Name, n, f.Data[:6], v.dst)
			return
		}
		if ownTime(f.Data) {
			key := string(f.Data[12:])
			unordered[key]--
			if everything[key]--; everything[key] < 0 {
				t.Errorf("%s: frame %d was never, or not so often, on the cable: %s", v.host.Name, n, brief(f.Data))
			}
			continue
		}
		matched := false
		for i := range on {
			if len(f.Data) > 14 && bytes.Equal(f.Data[14:], w.begin[i]) {
				on[i] = true
			}
			if !matched && on[i] && len(want[i]) > 0 && bytes.Equal(f.Data[v.from:], want[i][0][v.from:]) {
				want[i] = want[i][1:]
				matched = true
			}
		}
		// Before its first mark, and after its last, a direction is not looked at.
		if !matched && on[0] && on[1] && len(want[0]) > 0 && len(want[1]) > 0 {
			t.Errorf("%s: frame %d of %d of the sensor is none that comes next, %d of %d still missing\n got %s\nnext out %s (at the sensor: %d)\nnext in  %s (at the sensor: %d)",
				v.host.Name, n, len(got), len(want[0])+len(want[1]), total, brief(f.Data),
				briefOf(want[0]), indexOf(got, want[0][0][14:]), briefOf(want[1]), indexOf(got, want[1][0][14:]))
			return
		}
	}
	if left := len(want[0]) + len(want[1]); left > 0 {
		t.Errorf("%s: %d of %d frames are missing, the next\nout %s\nin  %s", v.host.Name, left, total, briefOf(want[0]), briefOf(want[1]))
	}
	for f, n := range unordered {
		if n > 0 {
			t.Errorf("%s: a frame is missing %d times: type and payload %x", v.host.Name, n, f)
		}
	}
}

func brief(f []byte) string {
	return fmt.Sprintf("%d bytes %x", len(f), f[:min(len(f), 90)])
}

func briefOf(frames [][]byte) string {
	if len(frames) == 0 {
		return "none"
	}
	return brief(frames[0])
}

// gatewayTalk says whether a frame is of the gateway's own: its neighbour
// discovery on a sensor's network, or a multicast report of its kernel. The
// dmz has the networks 4 and, with a second sensor, 5.
func gatewayTalk(g *gateway, f lab.Frame) bool {
	p := f.Payload()
	switch kind, _ := f.EtherType(); kind {
	case 0x0806:
		return len(p) >= 28 && p[14] == 192 && p[15] == 168 && (p[16] == 4 || p[16] == 5) && p[17] == 1
	case 0x86dd:
		if len(p) < 40 {
			return false
		}
		if bytes.Equal(p[8:24], net.ParseIP("2001:db8:4::1")) || bytes.Equal(p[8:24], net.ParseIP("2001:db8:5::1")) {
			return true
		}
		for _, ifname := range []string{"eth2", "eth4"} {
			mac := g.Gateway.Interface(ifname).MAC
			if bytes.Equal(p[8:24], []byte{0xfe, 0x80, 7: 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}) {
				return true
			}
		}
	}
	return false
}

// account waits until the accounts of a target of the mirror say exactly what
// the view captured, in packets and bytes, and requires that they add up. What
// the link itself dropped, which it counts in packets only, is returned.
func (v *sensorSide) account(g *gateway, mirror string, target int) (dropped uint64) {
	g.t.Helper()
	var m loader.MirrorStatus
	var seen loader.Count
	var drops uint64
	deadline := time.Now().Add(exactWait)
	if g.t.Failed() {
		deadline = time.Now() // what is missing will not come any more
	}
	for {
		// Frames first: a copy between the two reads then shows as a
		// difference that the next turn clears up, never hides one.
		frames, err := v.dump.Frames()
		if err != nil {
			g.t.Fatal(err)
		}
		seen = loader.Count{}
		for _, f := range v.copies(g, frames) {
			seen.Packets++
			seen.Bytes += uint64(len(f.Data))
		}
		s := g.status()
		for _, m = range s.Mirrors {
			if m.Name == mirror {
				break
			}
		}
		for _, l := range s.Links {
			if l.Interface == m.Targets[target].Interface {
				drops = l.TxDropped + l.QdiscDrops - v.base[l.Interface]
			}
		}
		if m.Targets[target].Copied.Packets == seen.Packets+drops || time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if got := m.Targets[target].Copied; got.Packets != seen.Packets+drops || drops == 0 && got != seen {
		g.t.Errorf("%s: target %q copied %+v, and %s captured %+v, the link dropped %d", mirror, m.Targets[target].Target, got, v.host.Name, seen, drops)
	}
	if m.Targets[target].Matched != m.Matched {
		g.t.Errorf("%s matched %+v, its target %q %+v", mirror, m.Matched, m.Targets[target].Target, m.Targets[target].Matched)
	}
	if sum := (loader.Count{Packets: m.Ingress.Copied.Packets + m.Egress.Copied.Packets, Bytes: m.Ingress.Copied.Bytes + m.Egress.Copied.Bytes}); sum != m.Copied {
		g.t.Errorf("%s: directions sum up to %+v of %+v", mirror, sum, m.Copied)
	}
	g.checkLedgers()
	return drops
}

// onOneCPU keeps this process, what it starts, and thereby the whole lab on
// one CPU: only then is the order in which frames were sent one fact that all
// captures agree on.
func onOneCPU(t *testing.T) {
	t.Helper()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	var one unix.CPUSet
	for cpu := 0; ; cpu++ {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	setThreads(t, &one)
	t.Cleanup(func() { setThreads(t, &before) })
}

// setThreads moves all threads; new ones inherit from those that make them.
func setThreads(t *testing.T, set *unix.CPUSet) {
	t.Helper()
	done := map[string]bool{}
	for more := true; more; {
		more = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range threads {
			if done[e.Name()] {
				continue
			}
			done[e.Name()], more = true, true
			tid, err := strconv.Atoi(e.Name())
			if err == nil {
				err = unix.SchedSetaffinity(tid, set)
			}
			if err != nil && err != unix.ESRCH {
				t.Fatalf("move thread %s: %v", e.Name(), err)
			}
		}
	}
}

// wholeChecksums has every sender finish its checksums, and so cut its own
// segments: what their captures show is then what is on the wire.
func wholeChecksums(g *gateway) {
	g.t.Helper()
	hosts := append(append([]*lab.Host{}, g.Servers...), g.Outside...)
	if g.Second != nil {
		hosts = append(hosts, g.Second)
	}
	for _, h := range hosts {
		if err := h.SetTxChecksum("eth0", false); err != nil {
			g.t.Fatal(err)
		}
	}
}

func be16(b []byte) int { return int(bin.BigEndian.Uint16(b)) }
