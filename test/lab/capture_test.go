package lab_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"tapgate/test/lab"
)

const patience = 10 * time.Second

// frame makes a frame of a type nobody knows, numbered, with VLAN tags given
// as (type, tag) pairs.
func frame(n int, tags ...uint16) []byte {
	f := []byte{2, 9, 9, 9, 9, 9, 2, 1, 1, 1, 1, 1}
	for _, v := range append(tags, 0x88b5) {
		f = binary.BigEndian.AppendUint16(f, v)
	}
	f = binary.BigEndian.AppendUint32(f, uint32(n))
	return append(f, bytes.Repeat([]byte{byte(n)}, 60)...)
}

// ours keeps the frames that frame made.
func ours(frames []lab.Frame) [][]byte {
	var all [][]byte
	for _, f := range frames {
		if etherType, _ := f.EtherType(); etherType == 0x88b5 {
			all = append(all, f.Data)
		}
	}
	return all
}

func atLeast(n int) func([]lab.Frame) bool {
	return func(frames []lab.Frame) bool { return len(ours(frames)) >= n }
}

func sameBytes(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%s: %d frames, want %d the same in order", what, len(got), len(want))
		for i := range min(len(got), len(want)) {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("first difference at %d:\n got %x\nwant %x", i, got[i], want[i])
				break
			}
		}
	}
}

func TestCaptureAndTcpdumpAgreeOnVLANs(t *testing.T) {
	l := lab.ForTest(t)
	sent := [][]byte{
		frame(1), frame(2, 0x8100, 0x6064), frame(3, 0x88a8, 7, 0x8100, 8), frame(4, 0x8100, 0), frame(5, 0x8100, 7, 0x8100, 9),
	}
	capture, err := l.Gateway.Capture("eth3", lab.Both)
	if err != nil {
		t.Fatal(err)
	}
	dump, err := l.Gateway.Tcpdump("eth3", "-Q", "in")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Servers[0].Send(sent...); err != nil {
		t.Fatal(err)
	}
	if _, err := capture.WaitFor(atLeast(len(sent)), patience); err != nil {
		t.Error(err)
	}
	if _, err := dump.WaitFor(atLeast(len(sent)), patience); err != nil {
		t.Error(err)
	}
	frames, err := capture.Stop()
	if err != nil {
		t.Error(err)
	}
	sameBytes(t, "capture", ours(frames), sent)
	if frames, err = dump.Stop(); err != nil {
		t.Error(err)
	}
	sameBytes(t, "tcpdump", ours(frames), sent)
}

func TestCaptureLosesNothingOfABurst(t *testing.T) {
	const count = 20000
	l := lab.ForTest(t, lab.Servers(2)) // a switch between them
	capture, err := l.Servers[1].Capture("eth0", lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	sender, err := l.Servers[0].Sender("eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	var sent [][]byte
	for i := range count {
		f := frame(i)
		copy(f, l.Servers[1].MAC)
		sent = append(sent, f)
		if err := sender.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := capture.WaitFor(atLeast(count), patience); err != nil {
		t.Error(err)
	}
	frames, err := capture.Stop()
	if err != nil || capture.Dropped() != 0 {
		t.Errorf("dropped %d, %v", capture.Dropped(), err)
	}
	sameBytes(t, "capture", ours(frames), sent)
}

func TestDirections(t *testing.T) {
	l := lab.ForTest(t)
	want := map[lab.Direction][2]int{lab.Both: {1, 1}, lab.Incoming: {1, 0}, lab.Outgoing: {0, 1}}
	captures := map[lab.Direction]*lab.Capture{}
	for d := range want {
		c, err := l.Gateway.Capture("eth3", d)
		if err != nil {
			t.Fatal(err)
		}
		captures[d] = c
	}
	toServer, err := l.Gateway.Sender("eth3")
	if err != nil {
		t.Fatal(err)
	}
	defer toServer.Close()
	if err := toServer.Send(frame(1)); err != nil {
		t.Fatal(err)
	}
	if err := l.Servers[0].Send(frame(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := captures[lab.Both].WaitFor(atLeast(2), patience); err != nil {
		t.Fatal(err)
	}
	for d, n := range want {
		if _, err := captures[d].WaitFor(atLeast(n[0]+n[1]), patience); err != nil {
			t.Errorf("direction %d: %v", d, err)
		}
		frames, err := captures[d].Stop()
		if err != nil {
			t.Error(err)
		}
		var in, out int
		for _, f := range frames {
			if etherType, _ := f.EtherType(); etherType != 0x88b5 {
				continue
			}
			if f.Outgoing {
				out++
			} else {
				in++
			}
			if since := time.Since(f.Time); since < 0 || since > time.Minute {
				t.Errorf("captured at %v", f.Time)
			}
		}
		if in != n[0] || out != n[1] {
			t.Errorf("direction %d: %d in, %d out, want %v", d, in, out, n)
		}
	}
}

func TestWaitForGivesUp(t *testing.T) {
	l := lab.ForTest(t)
	c, err := l.Sensor.Capture("eth0", lab.Both)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitFor(atLeast(1), time.Millisecond); err == nil {
		t.Error("saw a frame that nobody sent")
	}
	if _, err := c.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := c.WaitFor(atLeast(1), patience); err == nil {
		t.Error("a capture that ended waits on")
	}
	if _, err := l.Sensor.Capture("eth9", lab.Both); err == nil {
		t.Error("captures on an interface that is not there")
	}
}

// A veth leaves TCP checksums unfinished until it is told not to.
func TestTxChecksum(t *testing.T) {
	l := lab.ForTest(t)
	for _, on := range []bool{true, false} {
		if err := l.Servers[0].SetTxChecksum("eth0", on); err != nil {
			t.Fatal(err)
		}
		c, err := l.Gateway.Capture("eth3", lab.Incoming)
		if err != nil {
			t.Fatal(err)
		}
		if err := talk(l.Servers[0], l.Gateway, l.Gateway.Interface("eth3").Addr.Addr().String()); err != nil {
			t.Fatal(err)
		}
		frames, err := c.Stop()
		if err != nil {
			t.Error(err)
		}
		partial := lab.Select(frames, func(f lab.Frame) bool { return f.Partial })
		if (len(partial) > 0) != on {
			t.Errorf("tx checksum %v: %d of %d frames are partial", on, len(partial), len(frames))
		}
	}
}

// talk sends a few bytes by TCP from one host to another and waits for the end.
func talk(from, to *lab.Host, addr string) error {
	var listener net.Listener
	err := to.Do(func() (err error) { listener, err = net.Listen("tcp", addr+":0"); return err })
	if err != nil {
		return err
	}
	defer listener.Close()
	heard := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			var all []byte
			if all, err = io.ReadAll(conn); err == nil && string(all) != "hello" {
				err = fmt.Errorf("heard %q", all)
			}
			conn.Close()
		}
		heard <- err
	}()
	return from.Do(func() error {
		fd, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			return err
		}
		if _, err := fd.Write([]byte("hello")); err != nil {
			return err
		}
		if err := fd.Close(); err != nil {
			return err
		}
		return <-heard
	})
}
