package main

import (
	"context"
	"fmt"
	"slices"
)

// gateTest is one measurement of a scenario.
type gateTest struct {
	name, unit string
	scale      float64 // units for each packet that came through
	measure    func(context.Context, *gateLab, int) (sample, error)
}

var packetTests = []gateTest{
	{"out", "Mpps", 1, func(ctx context.Context, l *gateLab, n int) (sample, error) { return l.packets(ctx, outbound, n) }},
	{"both ways", "Mpps", 1, func(ctx context.Context, l *gateLab, n int) (sample, error) { return l.packets(ctx, alternating, n) }},
}

// A flow is a packet and its answer.
var freshTests = []gateTest{
	{"flow and answer", "M flows/s", 0.5, func(ctx context.Context, l *gateLab, n int) (sample, error) {
		return l.newFlows(ctx, n)
	}},
}

func (s scenario) tests() []gateTest {
	if s.fresh {
		return freshTests
	}
	return packetTests
}

// fleet is one gateway, or so many as it takes to hold all flows.
type fleet []*gateLab

func (f fleet) close() {
	for _, l := range f {
		l.close()
	}
}

func newFleet(ctx context.Context, set *settings, m gateMode, s scenario) (f fleet, err error) {
	parts := 1
	if limit := conntrackMax(); m.kernel && limit > 0 {
		for parts < s.flows && s.flows/parts > limit/10*9 {
			parts *= 2
		}
	}
	defer func() {
		if err != nil {
			f.close()
			f = nil
		}
	}()
	for range parts {
		l, err := newGateLab(ctx, set, m, s, s.flows/parts)
		if err != nil {
			return f, err
		}
		f = append(f, l)
	}
	return f, nil
}

func (f fleet) memory() (sum memory) {
	for _, l := range f {
		sum = sum.add(l.memory)
	}
	return sum
}

// measure takes one sample of a test; gateways of a fleet take turns.
func (f fleet) measure(ctx context.Context, t gateTest) (sum sample, err error) {
	n := f[0].set.packets / len(f)
	if f[0].scenario.fresh {
		n = min(freshFlows, f[0].set.packets)
	}
	for _, l := range f {
		err := within("", l.set.cpu, func() error {
			s, err := t.measure(ctx, l, n)
			sum.Units += s.Units * t.scale
			sum.Sent += s.Sent * t.scale
			sum.CPU += s.CPU
			sum.Frames += s.Frames
			return err
		})
		if err != nil {
			return sum, err
		}
	}
	if sum.Units == 0 {
		return sum, fmt.Errorf("no packet came through the gateway")
	}
	return sum, nil
}

// runGate is the benchmark of the gateway.
func runGate(ctx context.Context, set *settings) error {
	note("rates per second of CPU time; generator, gateway and both ends share CPU %d", set.cpu)
	rep := newGateReport(set)
	for i := range set.rounds {
		for _, s := range set.scenarios {
			note("round %d of %d: %s", i+1, set.rounds, s.name)
			if err := gateRound(ctx, set, rep, s, i); err != nil {
				return err
			}
		}
	}
	rep.finish()
	fmt.Print(rep.table(set.markdown))
	if set.json != "" {
		if err := writeJSON(set.json, rep); err != nil {
			return err
		}
	}
	if set.profile {
		if err := gateProfile(ctx, set); err != nil {
			return err
		}
	}
	return rep.failed()
}

// spare is the memory that a run must leave: what a flow takes, twice over.
const spare = 2048

func gateRound(ctx context.Context, set *settings, rep *gateReport, s scenario, number int) error {
	var fleets []fleet
	defer func() {
		for _, f := range fleets {
			f.close()
		}
	}()
	for _, m := range set.gateModes {
		if m.tap && (s.forwards > 0 || s.flows > 1<<16) {
			continue // the tap costs what it costs elsewhere
		}
		key := s.name + ", " + m.name
		if rep.Missing[key] != "" {
			continue
		}
		free, err := meminfo("MemAvailable")
		if err == nil && !m.direct && free < float64(s.room())*spare {
			err = fmt.Errorf("%.0f MB of memory are too little", free/1e6)
		}
		var f fleet
		if err == nil {
			f, err = newFleet(ctx, set, m, s)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			note("%s is left out: %v", key, err)
			rep.Missing[key] = err.Error()
			continue
		}
		rep.note(s, m, f)
		fleets = append(fleets, f)
	}
	if number%2 == 1 {
		slices.Reverse(fleets)
	}
	for pass := range passes {
		for _, t := range s.tests() {
			for _, f := range fleets {
				got, err := f.measure(ctx, t)
				if err != nil {
					return fmt.Errorf("%s, %s with %s: %w", s.name, t.name, f[0].mode.name, err)
				}
				rep.add(number*passes+pass, s.name, t.name, f[0].mode.name, got)
			}
		}
	}
	return nil
}
