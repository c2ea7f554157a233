package datapath

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"tapgate/test/lab"
)

// arriveTime bounds the wait for frames; emulated kernels are slow.
const arriveTime = 20 * time.Second

// tap is what arrives at one interface of the sensor's host.
type tap struct {
	capture *lab.Capture
	host    *lab.Host
	taken   int // of the capture's frames
	fences  int
}

func newTap(host *lab.Host, ifname string) (*tap, error) {
	c, err := host.Capture(ifname, lab.Incoming)
	return &tap{capture: c, host: host}, err
}

// kernelTalk says whether the gateway's kernel sent a frame: multicast group reports.
func kernelTalk(f lab.Frame) bool {
	return len(f.Data) > 54 && f.Data[12] == 0x86 && f.Data[13] == 0xdd && bytes.Equal(f.Data[38:54],
		[]byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16})
}

// question says whether a frame is a neighbour question of the data plane: an
// ARP request or a solicitation from our own MAC with room behind it.
func question(f lab.Frame) bool {
	d := f.Data
	if len(d) < 60 || !bytes.Equal(d[6:12], gate.usMAC) {
		return false
	}
	arp := d[12] == 8 && d[13] == 6 && binary.BigEndian.Uint16(d[20:]) == 1 && bytes.Equal(d[22:28], gate.usMAC)
	return arp || d[12] == 0x86 && d[13] == 0xdd && d[20] == 58 && d[54] == 135 && bytes.Equal(d[22:38], us6.AsSlice())
}

// take waits for n more frames of a kind and takes them.
func (c *tap) take(t *testing.T, n int, want func(lab.Frame) bool) [][]byte {
	t.Helper()
	var found [][]byte
	all, err := c.capture.WaitFor(func(all []lab.Frame) bool {
		found = found[:0]
		for _, f := range all[c.taken:] {
			if want(f) {
				found = append(found, f.Data)
			}
		}
		return len(found) >= n
	}, arriveTime)
	if err != nil {
		t.Fatalf("%d frames arrived, want %d: %v", len(found), n, err)
	}
	c.taken = len(all)
	return found
}

// isCopy says whether a frame is neither the kernel's nor a question.
func isCopy(f lab.Frame) bool { return !kernelTalk(f) && !question(f) }

// copies waits for n copies, and fails if there are more.
func (c *tap) copies(t *testing.T, n int) [][]byte {
	t.Helper()
	found := c.take(t, n, isCopy)
	if len(found) != n {
		t.Errorf("%d copies arrived, want %d:\n%x", len(found), n, found)
	}
	return found
}

// questions waits for n neighbour questions.
func (c *tap) questions(t *testing.T, n int) [][]byte {
	t.Helper()
	found := c.take(t, n, question)
	if len(found) != n {
		t.Errorf("%d questions arrived, want %d:\n%x", len(found), n, found)
	}
	return found
}

// quiet fails if a copy has arrived that nobody took: it sends one frame of its
// own by the same cable, behind all others.
func (r *rig) quiet(t *testing.T) {
	t.Helper()
	r.passBy(t, func(ifname string, f lab.Frame) {
		if isCopy(f) {
			t.Errorf("a frame arrived at the other end of %s that should not exist:\n%x", ifname, f.Data)
		}
	})
}

// quietButCopies takes all copies that are on their way, however many.
func (r *rig) quietButCopies(t *testing.T) {
	t.Helper()
	r.passBy(t, func(string, lab.Frame) {})
}

func (r *rig) passBy(t *testing.T, look func(ifname string, f lab.Frame)) {
	t.Helper()
	for ifname, c := range map[string]*tap{"eth2": r.viaEth2, "eth6": r.viaEth6} {
		c.fences++
		fence := make([]byte, 64)
		copy(fence[12:], []byte{0x88, 0xb6, byte(c.fences >> 8), byte(c.fences), 'f', 'e', 'n', 'c', 'e'})
		s, err := r.Gateway.Sender(ifname)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Send(fence)
		s.Close()
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		all, err := c.capture.WaitFor(func(all []lab.Frame) bool {
			for i, f := range all[c.taken:] {
				if bytes.Equal(f.Data, fence) {
					found = c.taken + i
					return true
				}
			}
			return false
		}, arriveTime)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all[c.taken:found] {
			look(ifname, f)
		}
		c.taken = len(all)
	}
}
