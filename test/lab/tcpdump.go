package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gopacket/gopacket/pcapgo"
)

var captureFiles atomic.Int64

// Tcpdump is a running tcpdump: a second opinion on what Capture says.
type Tcpdump struct {
	File string // the pcap file, in the lab's folder

	cmd      *Cmd
	talk     *bytes.Buffer // complete once drained is closed
	drained  chan struct{}
	stopOnce sync.Once
	stopErr  error
}

// Tcpdump starts tcpdump on an interface and waits until it listens. Arguments
// are added to its command line: "-Q", "in", or a filter.
func (h *Host) Tcpdump(ifname string, args ...string) (*Tcpdump, error) {
	d := &Tcpdump{
		File:    filepath.Join(h.lab.Dir, fmt.Sprintf("%d-%s-%s.pcap", captureFiles.Add(1), h.Name, ifname)),
		talk:    &bytes.Buffer{},
		drained: make(chan struct{}),
	}
	line := append([]string{"-i", ifname, "-n", "-U", "-s", "0", "-B", "65536", "--immediate-mode", "-Z", "root", "-w", d.File}, args...)
	// Ended by Stop and not by the lab's context, so that it writes what it has.
	d.cmd = h.Command(context.Background(), "tcpdump", line...)
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("tcpdump on %s %s: %w", h.Name, ifname, err)
	}
	listening := make(chan struct{})
	go func() {
		defer close(d.drained)
		lines := bufio.NewReader(stderr)
		for {
			text, err := lines.ReadString('\n')
			d.talk.WriteString(text)
			if strings.Contains(text, "listening on") {
				close(listening)
				_, _ = io.Copy(d.talk, lines)
				return
			}
			if err != nil {
				return
			}
		}
	}()
	select {
	case <-listening:
	case <-d.drained:
		return nil, fmt.Errorf("tcpdump on %s %s: %w: %s", h.Name, ifname, d.cmd.Wait(), strings.TrimSpace(d.talk.String()))
	}
	if err := h.lab.onClose(func() { _, _ = d.Stop() }); err != nil {
		_, _ = d.Stop()
		return nil, err
	}
	return d, nil
}

// Frames reads what tcpdump has written until now, in order.
func (d *Tcpdump) Frames() ([]Frame, error) {
	f, err := os.Open(d.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var frames []Frame
	r, err := pcapgo.NewReader(bufio.NewReader(f))
	for err == nil {
		var frame Frame
		data, info, e := r.ReadPacketData()
		if err = e; err == nil {
			if info.CaptureLength != info.Length {
				return nil, fmt.Errorf("%s: tcpdump cut a frame of %d bytes to %d", d.File, info.Length, info.CaptureLength)
			}
			frame.Data, frame.Time = data, info.Timestamp
			frames = append(frames, frame)
		}
	}
	// The last frame may be half written while tcpdump runs.
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return frames, nil
	}
	return nil, fmt.Errorf("%s: %w", d.File, err)
}

// WaitFor waits until enough is true of the frames written until then.
func (d *Tcpdump) WaitFor(enough func([]Frame) bool, limit time.Duration) (frames []Frame, err error) {
	err = waitUntil(limit, func() (ok bool, err error) {
		frames, err = d.Frames()
		return err == nil && enough(frames), err
	})
	if err != nil {
		return frames, fmt.Errorf("tcpdump to %s: among %d frames: %w", d.File, len(frames), err)
	}
	return frames, nil
}

// Stop ends tcpdump and returns all it wrote. It is an error if tcpdump says
// that the kernel dropped any. Frames that the test needs should be waited for
// before: tcpdump throws away what it has not written yet.
func (d *Tcpdump) Stop() ([]Frame, error) {
	d.stopOnce.Do(func() {
		_ = d.cmd.Process.Signal(syscall.SIGINT) // has ended already: told by Wait
		<-d.drained
		d.stopErr = d.cmd.Wait()
		talk := d.talk.String()
		if d.stopErr != nil {
			d.stopErr = fmt.Errorf("tcpdump: %w: %s", d.stopErr, strings.TrimSpace(talk))
		} else if !strings.Contains(talk, "\n0 packets dropped by kernel") {
			d.stopErr = fmt.Errorf("tcpdump lost frames: %s", strings.TrimSpace(talk))
		}
	})
	frames, err := d.Frames()
	return frames, errors.Join(d.stopErr, err)
}
