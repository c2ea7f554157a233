package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

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

// refresh makes all flows fast that are to be.
func (f fleet) refresh(ctx context.Context) error {
	for _, l := range f {
		if err := within("", l.set.cpu, func() error { return l.refresh(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// measure takes one sample of a load; gateways of a fleet take turns.
func (f fleet) measure(ctx context.Context, t gateLoad) (sum sample, err error) {
	n := f[0].set.packets / len(f)
	sum.Fast = 1
	for _, l := range f {
		err := within("", l.set.cpu, func() error {
			s, err := l.checked(ctx, t, n)
			sum.Units += s.Units
			sum.Sent += s.Sent
			sum.CPU += s.CPU
			sum.Frames += s.Frames
			sum.Fast = min(sum.Fast, s.Fast)
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

// sample measures what was made ready for it, and once more if the first one does
// not stand: something else may have kept the machine busy.
func (f fleet) sample(ctx context.Context, t gateLoad) (s sample, err error) {
	for range 2 {
		if err := f.refresh(ctx); err != nil {
			return s, err
		}
		s, err = f.measure(ctx, t)
		if refused := refusal(""); !errors.As(err, &refused) {
			return s, err
		}
		for _, l := range f {
			l.stacked.from = time.Time{}
		}
	}
	return s, err
}

// runGate is the benchmark of the gateway.
func runGate(ctx context.Context, set *settings) error {
	note("rates per second of CPU time; generator, gateway and both ends share CPU %d", set.cpu)
	rep := newGateReport(set)
	for i := range set.rounds {
		for _, g := range groups(set.scenarios) {
			note("round %d of %d: %s", i+1, set.rounds, names(g))
			if err := gateRound(ctx, set, rep, g, i); err != nil {
				return err
			}
		}
	}
	return conclude(ctx, set, rep, gateProfile)
}

// spare is the memory that a run must leave: what a flow takes, twice over.
const spare = 2048

// gateRound measures a group of scenarios: all gateways in turn, or all of one
// mode, then of the next.
func gateRound(ctx context.Context, set *settings, rep *gateReport, group []scenario, number int) error {
	turns := [][]gateMode{set.gateModes}
	if group[0].alone {
		turns = slices.Collect(slices.Chunk(set.gateModes, 1))
	}
	if number%2 == 1 {
		slices.Reverse(turns)
	}
	for _, modes := range turns {
		if err := gateTurn(ctx, set, rep, group, modes, number); err != nil {
			return err
		}
	}
	return nil
}

// gateTurn builds the gateways of a group in some modes side by side, and measures
// them in turn.
func gateTurn(ctx context.Context, set *settings, rep *gateReport, group []scenario, modes []gateMode, number int) error {
	var fleets []fleet
	defer func() {
		for _, f := range fleets {
			f.close()
		}
	}()
	for _, s := range group {
		for _, m := range modes {
			if !m.measures(s) || rep.Missing[missingKey(s.name, m)] != "" {
				continue
			}
			f, err := buildFleet(ctx, set, m, s)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				rep.leaveOut(s.name, m, err)
				continue
			}
			rep.note(s, m, f)
			fleets = append(fleets, f)
		}
	}
	if number%2 == 1 {
		slices.Reverse(fleets)
	}
	for pass := range passes {
		for _, f := range fleets {
			if err := measureFleet(ctx, rep, f, number*passes+pass); err != nil {
				return fmt.Errorf("%s with %s: %w", f[0].scenario.name, f[0].mode.name, err)
			}
		}
	}
	return nil
}

func buildFleet(ctx context.Context, set *settings, m gateMode, s scenario) (fleet, error) {
	if free, err := meminfo("MemAvailable"); err == nil && !m.direct && free < float64(s.room())*spare {
		return nil, fmt.Errorf("%.0f MB of memory are too little", free/1e6)
	}
	return newFleet(ctx, set, m, s)
}

// measureFleet takes a sample of each load. What is refused is left out from now on.
func measureFleet(ctx context.Context, rep *gateReport, f fleet, pass int) error {
	for _, t := range f[0].scenario.loads {
		if rep.Missing[missingKey(t.name, f[0].mode)] != "" {
			continue
		}
		got, err := f.sample(ctx, t)
		if refused := refusal(""); errors.As(err, &refused) {
			rep.leaveOut(t.name, f[0].mode, refused)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		rep.add(pass, t.name, f[0].mode.name, got)
	}
	return nil
}
