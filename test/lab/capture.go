package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Direction says which frames of an interface a capture keeps.
type Direction int

// The directions, as seen from the host that captures.
const (
	Both Direction = iota
	Incoming
	Outgoing
)

const (
	captureBuffer = 64 << 20 // bytes the kernel may keep for us; used only when needed
	largestFrame  = 256 << 10
)

// Capture records the frames of one interface. Frames are never taken from
// the host: it gets them as if nobody looked.
type Capture struct {
	where     string
	direction Direction
	file      *os.File
	done      chan struct{} // closed when the reader has ended
	arrived   chan struct{} // holds a token when there may be something new
	stopOnce  sync.Once
	stopErr   error

	mu      sync.Mutex
	frames  []Frame
	dropped uint64
	err     error
}

// Capture starts to record an interface of the host. What is sent after it
// returns is recorded.
func (h *Host) Capture(ifname string, direction Direction) (*Capture, error) {
	return h.capture(ifname, direction, nil)
}

// capture is Capture of what a filter lets through, if there is one.
func (h *Host) capture(ifname string, direction Direction, filter []unix.SockFilter) (*Capture, error) {
	where := h.Name + " " + ifname
	var fd int
	err := h.Do(func() (err error) { fd, err = captureSocket(ifname, direction, filter); return err })
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", where, err)
	}
	c := &Capture{
		where: where, direction: direction, file: os.NewFile(uintptr(fd), "capture"),
		done: make(chan struct{}), arrived: make(chan struct{}, 1),
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		c.file.Close()
		return nil, err
	}
	go c.read(fd, raw.Read)
	if err := h.lab.onClose(func() { _, _ = c.Stop() }); err != nil {
		_, _ = c.Stop()
		return nil, err
	}
	return c, nil
}

func captureSocket(ifname string, direction Direction, filter []unix.SockFilter) (fd int, err error) {
	iface, err := net.InterfaceByName(ifname)
	if err != nil {
		return -1, err
	}
	// Protocol 0 takes nothing until bind names the interface.
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	set := func(level, option, value int, what string) {
		if err == nil {
			if err = unix.SetsockoptInt(fd, level, option, value); err != nil {
				err = fmt.Errorf("set %s: %w", what, err)
			}
		}
	}
	set(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer, "SO_RCVBUFFORCE")
	set(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1, "SO_TIMESTAMPNS")
	set(unix.SOL_PACKET, unix.PACKET_AUXDATA, 1, "PACKET_AUXDATA")
	if direction == Incoming {
		set(unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING")
	}
	if err == nil && len(filter) > 0 {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: iface.Index})
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// read records until the socket's deadline is set, and then what is left in it.
func (c *Capture) read(fd int, wait func(func(fd uintptr) bool) error) {
	defer close(c.done)
	buf := make([]byte, largestFrame)
	control := make([]byte, 512)
	var fatal error
	drain := func(uintptr) bool {
		n := 0
		for fatal == nil {
			var more bool
			if more, fatal = c.receive(fd, buf, control); !more {
				break
			}
			n++
		}
		return n > 0 || fatal != nil
	}
	var err error
	for err == nil && fatal == nil {
		err = wait(drain)
	}
	if fatal == nil && errors.Is(err, os.ErrDeadlineExceeded) {
		// The descriptor is open until Stop closes it, which waits for us.
		drain(uintptr(fd))
		err = nil
	}
	if fatal == nil {
		fatal = err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if fatal != nil {
		c.err = fmt.Errorf("capture on %s: %w", c.where, fatal)
	}
}

// receive takes one frame; false if there is none now.
func (c *Capture) receive(fd int, buf, control []byte) (bool, error) {
	n, cn, _, from, err := unix.Recvmsg(fd, buf, control, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
		return true, nil // ENETDOWN is told once; the link may come back
	case err != nil:
		return false, err
	}
	if n > len(buf) {
		return false, fmt.Errorf("frame of %d bytes is larger than the buffer", n)
	}
	ll, ok := from.(*unix.SockaddrLinklayer)
	if !ok {
		return false, fmt.Errorf("frame from an address of type %T", from)
	}
	frame := Frame{Outgoing: ll.Pkttype == unix.PACKET_OUTGOING}
	if frame.Outgoing && c.direction == Incoming || !frame.Outgoing && c.direction == Outgoing {
		return true, nil
	}
	if err := frame.fill(buf[:n], control[:cn]); err != nil {
		return false, err
	}
	c.mu.Lock()
	c.frames = append(c.frames, frame)
	c.mu.Unlock()
	select {
	case c.arrived <- struct{}{}:
	default:
	}
	return true, nil
}

// fill puts together the frame as it was on the wire: the kernel keeps the
// outer VLAN tag beside the packet.
func (f *Frame) fill(data, control []byte) error {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return fmt.Errorf("parse control message: %w", err)
	}
	var tag []byte
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA &&
			len(m.Data) >= int(unsafe.Sizeof(unix.TpacketAuxdata{})):
			aux := (*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0]))
			f.Partial = aux.Status&unix.TP_STATUS_CSUMNOTREADY != 0
			if aux.Status&unix.TP_STATUS_VLAN_VALID != 0 {
				tpid := uint16(0x8100)
				if aux.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
					tpid = aux.Vlan_tpid
				}
				tag = binary.BigEndian.AppendUint16(nil, tpid)
				tag = binary.BigEndian.AppendUint16(tag, aux.Vlan_tci)
			}
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS &&
			len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})):
			ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			f.Time = time.Unix(ts.Unix())
		}
	}
	at := min(12, len(data))
	f.Data = make([]byte, 0, len(data)+len(tag))
	f.Data = append(f.Data, data[:at]...)
	f.Data = append(f.Data, tag...)
	f.Data = append(f.Data, data[at:]...)
	return nil
}

// Frames returns what was recorded until now, in order.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames[:len(c.frames):len(c.frames)]
}

// WaitFor waits until enough is true of the frames recorded until then. It
// returns those, with an error if the time is up or the capture ended first.
func (c *Capture) WaitFor(enough func([]Frame) bool, limit time.Duration) ([]Frame, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		frames := c.Frames()
		if enough(frames) {
			return frames, nil
		}
		select {
		case <-c.arrived:
		case <-c.done:
			if frames = c.Frames(); enough(frames) {
				return frames, nil
			}
			return frames, fmt.Errorf("capture on %s ended with %d frames, not those waited for", c.where, len(frames))
		case <-timer.C:
			return frames, fmt.Errorf("capture on %s: not those waited for among %d frames after %v", c.where, len(frames), limit)
		}
	}
}

// Stop ends the capture and returns all frames that had arrived, in order. It
// is an error if any was lost; call it again for the same answer.
func (c *Capture) Stop() ([]Frame, error) {
	c.stopOnce.Do(func() {
		c.stopErr = c.file.SetReadDeadline(time.Unix(1, 0))
		<-c.done
		if raw, err := c.file.SyscallConn(); err == nil {
			err = raw.Control(func(fd uintptr) {
				stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
				if err == nil {
					c.dropped = uint64(stats.Drops)
				}
				c.stopErr = errors.Join(c.stopErr, err)
			})
			c.stopErr = errors.Join(c.stopErr, err)
		}
		c.stopErr = errors.Join(c.stopErr, c.err, c.file.Close())
		if c.dropped > 0 {
			c.stopErr = errors.Join(c.stopErr, fmt.Errorf("capture on %s lost %d frames", c.where, c.dropped))
		}
	})
	return c.Frames(), c.stopErr
}

// Dropped returns how many frames the capture lost; known after Stop.
func (c *Capture) Dropped() uint64 { return c.dropped }
