package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// generator prepares the programs that send, one for each direction. One
// program reaches both hosts' interfaces through a device map, which keeps the
// devices it was given in whatever namespace it runs later.
func (l *lab) generator(context.Context) error {
	devices, err := l.devices()
	if err != nil {
		return err
	}
	defer devices.Close()
	if l.sent, err = newTally(); err != nil {
		return err
	}
	l.onClose(func() { l.sent.Close() })
	server := netip.AddrPortFrom(serverAddr, serverPort)
	gateway := netip.AddrPortFrom(gatewayAddr, serverPort)
	outside := netip.AddrPortFrom(outsideAddr, outsidePort)
	frames := [2][]byte{
		outbound: udpFrame(insideMAC, serverMAC, server, outside),
		inbound:  udpFrame(gatewayMAC, outsideMAC, outside, gateway),
	}
	for _, direction := range []int{outbound, alternating} {
		prog, err := newGenerator(frames, devices, l.sent, direction)
		if err != nil {
			return err
		}
		l.onClose(func() { prog.Close() })
		l.generators[direction] = prog
	}
	return nil
}

// generate sends packets from the calling thread. The gateway's work, and that
// of all receivers, is done before the kernel starts the next 64.
func (l *lab) generate(ctx context.Context, direction, packets int) error {
	// In pieces, so that an interrupt is heard.
	for packets > 0 && ctx.Err() == nil {
		n := min(packets, 16384)
		_, err := l.generators[direction].Run(&ebpf.RunOptions{
			Data: make([]byte, frameSize), Repeat: uint32(n), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		})
		if err != nil {
			return fmt.Errorf("generate packets (XDP live frames, needs Linux 5.18): %w", err)
		}
		packets -= n
	}
	return ctx.Err()
}

// counts is what all counters of a lab say.
type counts struct{ sent, server, outside, sensor tally }

func (l *lab) counts() (c counts, err error) {
	for _, v := range []struct {
		m  *ebpf.Map
		to *tally
	}{{l.sent, &c.sent}, {l.toServer, &c.server}, {l.toOutside, &c.outside}, {l.toSensor, &c.sensor}} {
		t, err := readTally(v.m)
		if err != nil {
			return c, err
		}
		*v.to = t
	}
	return c, nil
}

// settle waits until nothing arrives any more.
func (l *lab) settle() (counts, error) {
	last, err := l.counts()
	for quiet := 0; quiet < 5 && err == nil; {
		time.Sleep(time.Millisecond)
		var now counts
		if now, err = l.counts(); now == last {
			quiet++
		} else {
			quiet, last = 0, now
		}
	}
	return last, err
}

// warm sends until packets arrive and the tap copies all of them: neighbours
// have to be found first. A tap that never does is measured all the same, and
// the table says how much it copied.
func (l *lab) warm() error {
	return within("", l.set.cpu, func() error {
		// The way out first: an answer that comes before the question would
		// take the port that the translation wants.
		if err := l.generate(context.Background(), outbound, 64); err != nil {
			return err
		}
		for range 50 {
			before, err := l.settle()
			if err != nil {
				return err
			}
			if err := l.generate(context.Background(), alternating, 512); err != nil {
				return err
			}
			after, err := l.settle()
			if err != nil {
				return err
			}
			arrived := after.outside.Packets - before.outside.Packets + after.server.Packets - before.server.Packets
			copied := after.sensor.Packets - before.sensor.Packets
			if arrived == 512 && (l.mode.up == nil || copied >= arrived) {
				return nil
			}
			time.Sleep(10 * time.Millisecond)
		}
		now, err := l.counts()
		if err == nil && now.outside.Packets+now.server.Packets == 0 {
			err = errors.New("no packet came through the gateway")
		}
		return err
	})
}

// udp measures packets that come through the gateway.
func udp(direction int) func(context.Context, *lab) (sample, error) {
	return func(ctx context.Context, l *lab) (s sample, err error) {
		if err := l.run(ctx, l.gateway, "ethtool -K eth3 gro on", "ethtool -K eth0 gro on"); err != nil {
			return s, err
		}
		err = within("", l.set.cpu, func() error {
			if err := l.generate(ctx, alternating, 1024); err != nil {
				return err
			}
			before, err := l.settle()
			if err != nil {
				return err
			}
			clock, err := openClock(l.set.cpu)
			if err != nil {
				return err
			}
			defer clock.close()
			if err := l.generate(ctx, direction, l.set.packets); err != nil {
				return err
			}
			if s.CPU, err = clock.read(); err != nil {
				return err
			}
			after, err := l.settle()
			s.Sent = float64(after.sent.Packets - before.sent.Packets)
			s.Units = float64(after.outside.Packets - before.outside.Packets + after.server.Packets - before.server.Packets)
			s.Frames = float64(after.sensor.Packets - before.sensor.Packets)
			s.Seen = s.Frames / s.Units
			return err
		})
		if err == nil && s.Units == 0 {
			err = errors.New("no packet came through the gateway")
		}
		return s, err
	}
}
