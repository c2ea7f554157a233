package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// tcp measures a bulk transfer from the server to the outside host. Both ends
// are on the CPU of the gateway: over two CPUs a veth delivers out of order.
func tcp(gso bool) func(context.Context, *lab) (sample, error) {
	return func(ctx context.Context, l *lab) (s sample, err error) {
		if err := l.offloads(ctx, gso); err != nil {
			return s, err
		}
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		err = within(l.server, l.set.cpu, func() error {
			before, err := l.settle()
			if err != nil {
				return err
			}
			clock, err := openClock(l.set.cpu, l.iperf)
			if err != nil {
				return err
			}
			defer clock.close()
			// A small window: what is still on its way when iperf3 stops is
			// copied, but not counted by iperf3.
			out, err := exec.CommandContext(ctx, "iperf3", "--client", outsideAddr.String(), "--json",
				"--bytes", strconv.FormatInt(l.set.bytes, 10), "--window", "200K", "--connect-timeout", "3000").Output()
			if err != nil {
				return iperfError(out, err)
			}
			if s.CPU, err = clock.read(); err != nil {
				return err
			}
			if s.Units, s.Retransmits, err = transferred(out); err != nil {
				return err
			}
			after, err := l.settle()
			s.Frames = float64(after.sensor.Packets - before.sensor.Packets)
			s.Seen = float64(after.sensor.Bytes-before.sensor.Bytes) / s.Units
			return err
		})
		return s, err
	}
}

// offloads lets the gateway see what TCP hands down, or frames of wire size.
func (l *lab) offloads(ctx context.Context, gso bool) error {
	state := "off"
	if gso {
		state = "on"
	}
	for _, ns := range []string{l.server, l.outside} {
		if err := l.run(ctx, ns, "ethtool -K eth0 tso "+state+" gso "+state); err != nil {
			return err
		}
	}
	// GRO would put frames of wire size together again.
	return l.run(ctx, l.gateway, "ethtool -K eth3 gro off", "ethtool -K eth0 gro off")
}

type iperfReport struct {
	Error string `json:"error"`
	End   struct {
		Sent struct {
			Retransmits float64 `json:"retransmits"`
		} `json:"sum_sent"`
		Received struct {
			Bytes float64 `json:"bytes"`
		} `json:"sum_received"`
	} `json:"end"`
}

func transferred(out []byte) (bytes, retransmits float64, err error) {
	var r iperfReport
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, 0, fmt.Errorf("iperf3 report: %w", err)
	}
	if r.End.Received.Bytes == 0 {
		return 0, 0, errors.New("iperf3 transferred nothing")
	}
	return r.End.Received.Bytes, r.End.Sent.Retransmits, nil
}

func iperfError(out []byte, err error) error {
	var r iperfReport
	if json.Unmarshal(out, &r) == nil && r.Error != "" {
		return fmt.Errorf("iperf3: %s", r.Error)
	}
	return fmt.Errorf("iperf3: %w", err)
}
