package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"testing"

	"tapgate/test/lab"
)

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
	between := func() bool { return on[0] && on[1] && len(want[0]) > 0 && len(want[1]) > 0 }
	for n, f := range got {
		if v.dst != nil && !bytes.Equal(f.Data[:6], v.dst) {
			t.Errorf("%s: frame %d goes to %x, want %s", v.host.Name, n, f.Data[:6], v.dst)
			return
		}
		if ownTime(f.Data) {
			key := string(f.Data[12:])
			unordered[key]--
			if everything[key]--; everything[key] < 0 && between() {
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
		if !matched && between() {
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
