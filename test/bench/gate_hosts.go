package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const echoPort = 7

// ends makes hosts of the two ends: an iperf3 server and one who answers outside,
// and inside the sink lets the answers by.
func (l *gateLab) ends(ctx context.Context) error {
	if !l.scenario.hosts {
		return nil
	}
	echo, err := newEcho(echoPort)
	if err != nil {
		return err
	}
	if err := l.attachAt(l.outside, "eth0", echo, ebpf.AttachTCXIngress, link.Head()); err != nil {
		return err
	}
	admit, err := newAdmit(echoPort)
	if err != nil {
		return err
	}
	if err := l.attachAt(l.server, "eth0", admit, ebpf.AttachTCXIngress, link.Head()); err != nil {
		return err
	}
	return l.listen(ctx)
}

// latency measures round trips one at a time. All of a packet's way is done in
// its sender's system call, as everything is on one CPU, so that no scheduler and
// no interrupt is in it. Units are the two packets, and the "CPU time" is the
// median's time.
func latency(ctx context.Context, l *gateLab, n int) (s sample, err error) {
	if err := l.run(ctx, l.gateway, "ethtool -K eth3 gro on", "ethtool -K eth0 gro on"); err != nil {
		return s, err
	}
	err = within(l.server, l.set.cpu, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer unix.Close(fd)
		second := unix.NsecToTimeval(int64(time.Second))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &second); err != nil {
			return fmt.Errorf("set timeout: %w", err)
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: echoPort, Addr: outsideAddr.As4()}); err != nil {
			return fmt.Errorf("connect to %s: %w", net.JoinHostPort(outsideAddr.String(), "echo"), err)
		}
		packet := make([]byte, frameSize-42)
		const before = 512 // the first ones find their way
		times := make([]float64, 0, n/8)
		for i := range before + cap(times) {
			if i%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			start := time.Now()
			if _, err := unix.Write(fd, packet); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			got, err := unix.Read(fd, packet)
			took := time.Since(start)
			if i < before {
				continue
			}
			if err != nil || got != len(packet) {
				return fmt.Errorf("no answer to a packet: %d bytes, %w", got, err)
			}
			times = append(times, float64(took))
		}
		s = sample{Units: 2, Sent: 2, CPU: median(times)}
		return nil
	})
	return s, err
}

// bulk is the transfer of the bench of taps, in segments.
func bulk(ctx context.Context, l *gateLab, _ int) (sample, error) {
	s, err := tcp(false)(ctx, l.lab)
	if err == nil && l.mode.tap && s.Seen < 1 {
		err = refusal(fmt.Sprintf("the sensor saw %.1f %% of the bytes", 100*s.Seen))
	}
	s.Units /= segment
	return s, err
}
