package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// gateLab is one gateway in one mode, or several side by side where one cannot
// hold all flows.
type gateLab struct {
	*lab
	mode     gateMode
	scenario scenario
	state    *ebpf.Map
	noted    *ebpf.Map
	flows    int // that are there before
	fresh    int // that were made so far
	position uint64
	// When each flow last had packets of both directions that took the stack.
	stacked span
	memory  memory
}

func newGateLab(ctx context.Context, set *settings, m gateMode, s scenario, flows int) (l *gateLab, err error) {
	l = &gateLab{lab: nameLab(set, mode{name: m.name}), mode: m, scenario: s, flows: flows}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.folder, err = os.MkdirTemp("", "tapgate-bench-"); err != nil {
		return l, err
	}
	l.onClose(func() { os.RemoveAll(l.folder) })
	for _, step := range []func(context.Context) error{
		l.network, l.behind, l.gateSinks, l.gateGenerators,
		func(ctx context.Context) error { return m.up(ctx, l) },
		l.forget,
		l.fill, l.ends,
	} {
		if err := step(ctx); err != nil {
			return l, err
		}
	}
	return l, nil
}

// forget empties the kernel's table of flows in the end: it would go with the
// network namespace, but some time later, and others have it too.
func (l *gateLab) forget(context.Context) error {
	if l.mode.kernel {
		l.onClose(func() {
			_ = within(l.gateway, -1, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
		})
	}
	return nil
}

// behind adds the networks of the many hosts. The range of the gateway's own
// ports is moved out of the way, since by default tapgate leaves it alone.
func (l *gateLab) behind(ctx context.Context) error {
	err := within(l.gateway, -1, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("60000 60999"), 0o644)
	})
	if err != nil {
		return err
	}
	if l.mode.direct {
		// Nothing hides the inside from whom it talks to.
		if err := l.run(ctx, l.outside, "ip route add 192.168.3.0/24 via 203.0.113.1"); err != nil {
			return err
		}
	}
	return l.run(ctx, l.gateway,
		"ip route add 10.9.0.0/24 via 192.168.3.2",
		"ip route add 198.18.0.0/16 via 203.0.113.8",
		"sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.eth3.rp_filter=0",
	)
}

func (l *gateLab) gateSinks(ctx context.Context) (err error) {
	for _, v := range []struct {
		m    **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&l.state, ebpf.MapSpec{Name: "bench_state", Type: ebpf.Array, KeySize: 4, ValueSize: 40, MaxEntries: 1}},
		{&l.noted, ebpf.MapSpec{Name: "bench_noted", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: uint32(max(l.flows, 1<<16))}},
	} {
		if *v.m, err = ebpf.NewMap(&v.spec); err != nil {
			return fmt.Errorf("create map: %w", err)
		}
		l.onClose(func() { (*v.m).Close() })
	}
	if err := l.sinks(ctx); err != nil {
		return err
	}
	// Before the one that only counts, which then sees nothing.
	prog, err := newSink(l.toOutside, true, &notes{l.state, l.noted})
	if err != nil {
		return err
	}
	return l.attachAt(l.outside, "eth0", prog, ebpf.AttachTCXIngress, link.Head())
}

func (l *gateLab) gateGenerators(context.Context) error {
	devices, err := l.devices()
	if err != nil {
		return err
	}
	defer devices.Close()
	// Not to be settled twice: the number of packets sent stands in the state.
	if l.sent, err = newTally(); err != nil {
		return err
	}
	l.onClose(func() { l.sent.Close() })
	for _, direction := range []int{beginning, answering, alternating} {
		prog, err := newFlowGenerator(l.scenario.shape(l.mode.direct), devices, l.state, l.noted, direction)
		if err != nil {
			return err
		}
		l.onClose(func() { prog.Close() })
		l.generators[direction] = prog
	}
	return nil
}

// send makes packets of the flows first to first+mask.
func (l *gateLab) send(ctx context.Context, direction, packets int, st gateState) (s sample, err error) {
	if err := l.state.Put(uint32(0), &st); err != nil {
		return s, err
	}
	before, err := l.settle()
	if err != nil {
		return s, err
	}
	clock, err := openClock(l.set.cpu)
	if err != nil {
		return s, err
	}
	defer clock.close()
	if err := l.generate(ctx, direction, packets); err != nil {
		return s, err
	}
	if s.CPU, err = clock.read(); err != nil {
		return s, err
	}
	after, err := l.settle()
	s.Sent = float64(packets)
	s.Units = float64(after.outside.Packets - before.outside.Packets + after.server.Packets - before.server.Packets)
	s.Frames = float64(after.sensor.Packets - before.sensor.Packets)
	return s, err
}

// fill makes the flows that are there before.
func (l *gateLab) fill(ctx context.Context) error {
	return within("", l.set.cpu, func() error {
		if err := l.warmUp(ctx); err != nil {
			return err
		}
		before, err := l.measureMemory()
		if err != nil {
			return err
		}
		if l.scenario.fresh {
			const some = 4096
			if _, err := l.newFlows(ctx, some); err != nil {
				return err
			}
			after, err := l.measureMemory()
			l.memory = after.since(before, some)
			return err
		}
		l.stacked.from = time.Now()
		for first := 0; first < l.flows; first += fillStep {
			flows := min(fillStep, l.flows-first)
			s, err := l.open(ctx, flows, gateState{First: uint64(first), Mask: uint64(flows - 1)})
			if err != nil {
				return err
			}
			if s.Units < 0.999*s.Sent {
				return fmt.Errorf("%.0f of %.0f packets came through while flows %d to %d were made", s.Units, s.Sent, first, first+flows-1)
			}
		}
		l.stacked.to = time.Now()
		after, err := l.measureMemory()
		l.memory = after.since(before, l.flows)
		return err
	})
}

// fillStep flows are made before they are answered: few enough for the share
// of the table that unanswered flows may have.
const fillStep = 1 << 14

// open sends the first packet of each flow, and then their answers, which go to
// the endpoints that were noted.
func (l *gateLab) open(ctx context.Context, flows int, st gateState) (sum sample, err error) {
	st.Learn, st.Step = 1, 1
	for _, direction := range []int{beginning, answering} {
		s, err := l.send(ctx, direction, flows, st)
		if err != nil {
			return sum, err
		}
		sum.Units += s.Units
		sum.Sent += s.Sent
		sum.CPU += s.CPU
		sum.Frames += s.Frames
	}
	return sum, nil
}

// warmUp sends until neighbours are known and packets come through both ways.
func (l *gateLab) warmUp(ctx context.Context) error {
	for range 20 {
		open := func() (sample, error) { return l.open(ctx, 1, gateState{}) }
		if l.scenario.fresh {
			open = func() (sample, error) { return l.newFlows(ctx, gateBurst) }
		}
		s, err := open()
		if err != nil || s.Units == s.Sent && (!l.mode.tap || s.Frames >= s.Sent) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("packets do not come through the gateway")
}

// newFlows makes so many flows that were not there, one packet each way.
func (l *gateLab) newFlows(ctx context.Context, flows int) (sample, error) {
	if l.fresh+flows > 1<<15 {
		return sample{}, fmt.Errorf("no more than %d new flows on one gateway", 1<<15)
	}
	st := gateState{First: uint64(l.fresh), Mask: 1<<16 - 1}
	l.fresh += flows
	return l.open(ctx, flows, st)
}

// packets sends packets of the first so many of the flows that are there.
func (l *gateLab) packets(ctx context.Context, direction, packets, flows int) (sample, error) {
	packets = (packets + 2*gateBurst - 1) / (2 * gateBurst) * (2 * gateBurst)
	s, err := l.send(ctx, direction, packets, gateState{Number: l.position, Mask: uint64(flows - 1), Step: oddStep})
	l.position += uint64(packets)
	return s, err
}

// span is a time from its beginning to its end.
type span struct{ from, to time.Time }

// A fast flow's packet takes the stack if none has for so long.
const stackedFor = 10 * time.Second

// refresh makes sure that no flow's packet has to take the stack for the next two
// seconds, where flows are to be fast: of all flows one is due at about the same time,
// so that a short measurement would have all of them or none.
func (l *gateLab) refresh(ctx context.Context) error {
	if !l.mode.fast || l.flows == 0 || l.scenario.hosts || time.Since(l.stacked.from) < stackedFor-2*time.Second {
		return nil
	}
	// Before that it would be fast itself.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(l.stacked.to.Add(stackedFor + stackedFor/50))):
	}
	began := time.Now()
	for _, direction := range []int{beginning, answering} {
		s, err := l.send(ctx, direction, l.flows, gateState{Mask: uint64(l.flows - 1), Step: 1})
		if err != nil {
			return err
		}
		if s.Units < 0.999*s.Sent {
			return fmt.Errorf("%.0f of %.0f packets came through before a measurement", s.Units, s.Sent)
		}
	}
	l.stacked = span{began, time.Now()}
	return nil
}

// devices is what generators send to, by direction.
func (l *lab) devices() (*ebpf.Map, error) {
	devices, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "bench_devices", Type: ebpf.DevMap, KeySize: 4, ValueSize: 4, MaxEntries: 2,
	})
	if err != nil {
		return nil, fmt.Errorf("create device map: %w", err)
	}
	for key, ns := range map[uint32]string{outbound: l.server, inbound: l.outside} {
		err := within(ns, -1, func() error {
			ifc, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			return devices.Put(key, uint32(ifc.Index))
		})
		if err != nil {
			devices.Close()
			return nil, err
		}
	}
	return devices, nil
}

// conntrackMax is the machine's limit for the flows of one network namespace,
// which no namespace can change.
func conntrackMax() int {
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_max")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}
