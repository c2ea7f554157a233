package loader

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// Reduce puts cfg in force, which must be the configuration in force without
// some mirrors, targets, forwards, masquerades or policies. Interfaces are not
// looked at again, so that things can be stopped also where the rest of the
// configuration no longer fits. Its file stays that of the one in force.
func (g *Gateway) Reduce(cfg Config) (result *Result, err error) {
	err = g.ns.do(func() error {
		result, err = g.reduce(cfg)
		return err
	})
	return result, err
}

func (g *Gateway) reduce(cfg Config) (*Result, error) {
	if err := g.stillWaits(); err != nil {
		return nil, err
	}
	if err := g.converge(); err != nil {
		return nil, err
	}
	p, err := g.reducedPlan(cfg)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(g.fillIdle(p), g.noteTracking(p.record.Gateway), g.setTracking(p.record.Gateway)); err != nil {
		return nil, err
	}
	return g.putInForce(p, &Result{Changes: g.moved})
}

// reducedPlan copies the generation in force but for what cfg leaves out.
func (g *Gateway) reducedPlan(cfg Config) (*plan, error) {
	p := &plan{
		record:  g.active,
		members: map[uint32]tapgateTgMember{}, targets: map[uint32]tapgateTgTarget{},
	}
	p.record.Serial, p.record.Returned = g.active.nextSerial(), nil
	p.record.Previous, p.record.PreviousFile = g.active.previousTo(cfg.Source)
	p.record.Applied = time.Now().UTC().Truncate(time.Second)
	p.record.Source = cfg.Source
	p.record.Mirrors = nil
	targetStays := map[uint32]bool{}
	neighStays := map[uint32]bool{}
	for _, m := range cfg.Mirrors {
		i := slices.IndexFunc(g.active.Mirrors, func(r mirrorRecord) bool { return r.Name == m.Name })
		if i < 0 {
			return nil, fmt.Errorf("reduce: mirror %q is not in force", m.Name)
		}
		old := g.active.Mirrors[i]
		r := mirrorRecord{Name: old.Name, Number: old.Number, Zones: old.Zones}
		for _, t := range m.Targets {
			i := slices.IndexFunc(old.Targets, func(r targetRecord) bool { return r.Target == t.String() })
			if i < 0 {
				return nil, fmt.Errorf("reduce: target %q of mirror %q is not in force", t, m.Name)
			}
			r.Targets = append(r.Targets, old.Targets[i])
			targetStays[old.Targets[i].Number] = true
			if n := old.Targets[i].Neigh; n != nil {
				neighStays[*n] = true
			}
		}
		p.record.Mirrors = append(p.record.Mirrors, r)
	}
	p.record.Neighs = keepIf(slices.Clone(g.active.Neighs), func(n neighRecord) bool { return neighStays[n.Number] })
	p.record.Members = slices.Clone(g.active.Members)
	p.record.Zones, p.record.Gateway = nil, nil

	var members, targets *ebpf.Map
	if err := g.maps[tapgateMapTgMembers].Lookup(g.slot, &members); err != nil {
		return nil, fmt.Errorf("read the interfaces in force: %w", err)
	}
	defer members.Close()
	if err := g.maps[tapgateMapTgTargets].Lookup(g.slot, &targets); err != nil {
		return nil, fmt.Errorf("read the targets in force: %w", err)
	}
	defer targets.Close()
	var errs []error
	for number := range targetStays {
		var t tapgateTgTarget
		errs = append(errs, targets.Lookup(number, &t))
		p.targets[number] = t
	}
	for i, r := range p.record.Members {
		var m tapgateTgMember
		errs = append(errs, members.Lookup(uint32(r.Ifindex), &m))
		m = withoutCopies(m, targetStays)
		if m.Ncopies == 0 && r.Role != RoleDMZ && !cfg.gateway() {
			p.record.Members[i].Programs = nil
		}
		p.members[uint32(r.Ifindex)] = m
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("read the generation in force: %w", err)
	}
	return p, g.reduceGateway(p, cfg)
}

// reduceGateway makes the rules again from what was found out about this machine.
func (g *Gateway) reduceGateway(p *plan, cfg Config) error {
	zones, err := p.placeZones(&g.active, cfg.Zones)
	if err != nil {
		return err
	}
	p.numberZones(zones)
	if !cfg.gateway() {
		return nil
	}
	if g.active.Gateway == nil {
		return fmt.Errorf("reduce: no nat and no policies are in force")
	}
	gateway := newResolvedGateway(cfg, g.active.Gateway.gatewayFacts)
	gateway.sysctls = g.active.Gateway.Sysctls
	gateway.settle(g.active.ingresses(), &g.journal)
	return p.placeGateway(&g.active, gateway, zones)
}

// withoutCopies keeps the copies of an interface whose targets stay.
func withoutCopies(m tapgateTgMember, stays map[uint32]bool) tapgateTgMember {
	out := tapgateTgMember{Role: m.Role, Slot: m.Slot, Zone: m.Zone}
	for _, c := range m.Copies[:m.Ncopies] {
		if !stays[uint32(c.Target)] {
			continue
		}
		c.Last = 0
		out.Copies[out.Ncopies] = c
		out.Ncopies++
		out.Mirrors |= 1 << c.Mirror
	}
	for i := range out.Copies[:out.Ncopies] {
		if i+1 == int(out.Ncopies) || out.Copies[i+1].Mirror != out.Copies[i].Mirror {
			out.Copies[i].Last = 1
		}
	}
	return out
}
