package loader

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// Apply puts cfg in force in the namespace of opt, creating what is missing.
// Either all of cfg is in force afterwards or what was before still is.
// Problems of cfg are *ConfigError, several of them joined.
func Apply(opt Options, cfg Config) (*Result, error) {
	// Told before anything is created.
	if err := precheck(opt, cfg); err != nil {
		return nil, err
	}
	g, err := openOrCreate(opt, cfg.table())
	if errors.Is(err, ErrBusy) {
		return nil, err
	}
	if err != nil { // folders that were made for it must not stay
		return nil, errors.Join(err, sweep(opt))
	}
	fresh := g.active.Serial == 0
	g.asked = true
	res, err := g.Apply(cfg)
	if err != nil && fresh {
		err = errors.Join(err, g.discard())
	}
	err = errors.Join(err, g.Close())
	if err != nil && fresh {
		err = errors.Join(err, sweep(opt))
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

func precheck(opt Options, cfg Config) error {
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return err
	}
	defer ns.close()
	return ns.do(func() error {
		_, err := judge(opt, ns, cfg)
		return err
	})
}

// judge says what cfg means on this machine, or why it cannot be.
func judge(opt Options, ns *namespace, cfg Config) (*resolved, error) {
	res, err := resolve(cfg, opt.Force)
	if err != nil {
		return nil, err
	}
	if !opt.Force {
		if err := lockOut(cfg, res, ns); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// Apply puts cfg in force. The steps are such that the process may be killed
// after any of them: before the control word is written the old configuration
// is in force and afterwards the new one, and converge clears up behind both.
func (g *Gateway) Apply(cfg Config) (result *Result, err error) {
	err = g.ns.do(func() error {
		result, err = g.apply(cfg)
		return err
	})
	return result, err
}

func (g *Gateway) apply(cfg Config) (*Result, error) {
	if err := g.stillWaits(); err != nil {
		return nil, err
	}
	res, err := g.judge(cfg)
	if err != nil {
		return nil, err
	}
	host, err := g.heldAgainstHost(res)
	if err != nil {
		return nil, err
	}
	result := &Result{Changes: g.moved, Warnings: append(res.warnings, host...)}
	if err := g.converge(); err != nil {
		return nil, err
	}
	result.Changes = append(result.Changes, g.mended...)
	if res.gateway != nil {
		if err := g.checkRoom(&res.gateway.nat); err != nil {
			return nil, err
		}
		res.gateway.settle(res.ingresses(), &g.journal)
		res.gateway.sysctls = g.ownSysctls(res.gateway.sysctls)
	}
	if g.opt.Confirm != 0 {
		if err := g.prepareFallBack(res); err != nil {
			return nil, err
		}
	}
	p, err := makePlan(&g.active, res, cfg.Source)
	if err == nil && g.opt.Confirm != 0 {
		err = g.canFallBack(p)
	}
	if err != nil {
		return nil, err
	}
	p.record.File = cfg.File
	if g.again { // it is no new change that somebody has made
		p.record.Returned, p.record.File = g.active.Returned, g.active.File
	}
	if g.opt.Planner != nil {
		g.opt.Planner.Planned(difference(&g.active, &p.record))
	}
	if err := g.prepare(p, res); err != nil {
		// What was prepared goes; what was in force was not touched.
		return nil, errors.Join(err, g.converge())
	}
	result.Warnings = append(result.Warnings, g.resolveNexthops(p)...)
	return g.putInForce(p, result)
}

// putInForce makes a plan that is prepared the generation in force, clears up
// behind the old one and completes the result.
func (g *Gateway) putInForce(p *plan, result *Result) (*Result, error) {
	before := g.active
	over := func(*Result) {}
	if g.opt.Confirm == 0 || p.record.Gateway != nil {
		over = g.cutOver(p)
	} // else the flows may have to go on
	if err := g.commit(p); err != nil {
		return nil, errors.Join(err, g.converge())
	}
	over(result)
	result.Serial = p.record.Serial
	result.Changes = append(result.Changes, append(g.reattached, lines(difference(&before, &p.record))...)...)
	if err := g.converge(); err != nil {
		return nil, fmt.Errorf("the new configuration is in force, but clearing up after the old one failed: %w", err)
	}
	if g.waits() {
		result.Until = g.Pending().Until
		g.warnFallBack(&before, result)
		result.Warnings = append(result.Warnings, append(g.warnings, g.wrongSysctls()...)...)
		return result, nil
	}
	if before.Gateway != nil && p.record.Gateway == nil {
		if err := g.endAll(); err != nil {
			result.Warnings = append(result.Warnings, err.Error())
		}
	}
	if before.Gateway != nil {
		ended, err := g.endDue(!g.again)
		if err != nil {
			return nil, fmt.Errorf("the new configuration is in force, but ending the flows of addresses that are gone failed: %w", err)
		}
		if ended > 0 {
			result.Changes = append(result.Changes, "ended "+counted(ended, "flow")+" of outside addresses that are gone")
		}
	}
	result.Warnings = append(result.Warnings, append(g.warnings, g.wrongSysctls()...)...)
	return result, nil
}

// prepare does all that packets do not see yet.
func (g *Gateway) prepare(p *plan, res *resolved) error {
	// First of all: what is undone after a failure must not be another's.
	for _, m := range p.record.Members {
		for _, name := range m.Programs {
			if err := g.aloneOn(name, hookOf(name, m.Ifindex, m.Interface)); err != nil {
				return err
			}
		}
	}
	if err := g.fillIdle(p); err != nil {
		return err
	}
	kind := attachKindFor(g.opt.Attach)
	if err := g.noteIntentions(p, res, kind); err != nil {
		return err
	}
	for _, m := range res.members {
		if m.role != RoleDMZ || m.absent {
			continue
		}
		if err := setFeatures(m.name, g.journal.offloads(m.touched()), false); err != nil {
			return fmt.Errorf("switch checksum offload of %s off, so that the sensor gets whole frames: %w", m.name, err)
		}
		stuck, err := txChecksumStuck(m.name)
		if err != nil {
			return err
		}
		if len(stuck) > 0 {
			g.warnings = append(g.warnings, offloadLeft(m.name, stuck))
		}
	}
	if err := g.prepareReassembly(&p.record); err != nil {
		return err
	}
	if err := g.setTracking(p.record.Gateway); err != nil {
		return err
	}
	// Delivery before the taps that rely on it.
	members := slices.Clone(p.record.Members)
	slices.SortStableFunc(members, func(a, b memberRecord) int { return dmzFirst(a) - dmzFirst(b) })
	for _, m := range members {
		if err := g.attachMember(m, kind); err != nil {
			return err
		}
	}
	return nil
}

func dmzFirst(m memberRecord) int {
	if m.Role == RoleDMZ {
		return 0
	}
	return 1
}

// noteIntentions writes into the journal what prepare is about to change.
func (g *Gateway) noteIntentions(p *plan, res *resolved, kind AttachKind) error {
	for _, m := range p.record.Members {
		if len(m.Programs) == 0 {
			continue
		}
		t := touched{Interface: m.Interface, Ifindex: m.Ifindex, MAC: m.MAC}
		g.journal.Touched = addTouched(g.journal.Touched, t)
		if kind == AttachClsact {
			have, err := ingressQdisc(m.Ifindex)
			if err != nil {
				return err
			}
			if have == "" {
				g.journal.Qdiscs = addTouched(g.journal.Qdiscs, t)
			}
		}
	}
	for _, m := range res.members {
		if m.role != RoleDMZ || m.absent {
			continue
		}
		on, err := txChecksumFeatures(m.name)
		if err != nil {
			return err
		}
		g.journal.addOffloads(m.touched(), on)
	}
	if p.record.Gateway != nil && !p.record.Gateway.KeepSysctls {
		if err := g.noteSysctls(p.record.Gateway.Sysctls); err != nil {
			return err
		}
	}
	return g.writeJournal()
}

func (g *Gateway) attachMember(m memberRecord, kind AttachKind) error {
	if len(m.Programs) == 0 {
		return nil
	}
	if err := os.MkdirAll(g.linkDir(m.Ifindex), 0o700); err != nil {
		return fmt.Errorf("create state: %w", err)
	}
	for _, name := range m.Programs {
		h := hookOf(name, m.Ifindex, m.Interface)
		if _, err := attachProgram(g.programs[name], name, h, kind, g.linkDir(m.Ifindex)); err != nil {
			return err
		}
	}
	return nil
}

// aloneOn refuses a hook that another tapgate has, with its state elsewhere, and
// notes a program of ours that should be there and is not.
func (g *Gateway) aloneOn(program string, h hook) error {
	other := fmt.Errorf("%s has %s of another tapgate already, whose state is not in %s: is there another --bpffs folder? Detach that one first", h, program, g.dir)
	own, err := programID(g.programs[program])
	if err != nil {
		return err
	}
	kind, attached, _, err := attachedKind(program, h, g.linkDir(h.ifindex))
	if err != nil {
		return err
	}
	if kind == AttachClsact && attached != own {
		return other
	}
	if kind == "" && slices.ContainsFunc(g.active.Members, func(m memberRecord) bool {
		return m.Ifindex == h.ifindex && slices.Contains(m.Programs, program)
	}) {
		g.reattached = append(g.reattached, fmt.Sprintf("%s attached to %s again, where it was missing", program, h))
	}
	programs, err := queryTCX(h)
	if err != nil {
		return err
	}
	for _, p := range programs {
		if p.ID != own && programName(p.ID) == program {
			return other
		}
	}
	return nil
}

// commit writes the record of the new generation and then the control word:
// the one store that is the change.
func (g *Gateway) commit(p *plan) error {
	idle := 1 - g.slot
	err := writeRecord(g.maps[tapgateMapTgRecords], idle, p.record)
	if errors.Is(err, errRecordFull) && p.record.Previous != "" {
		p.record.Previous = "" // not worth a change that cannot be made
		g.warnings = append(g.warnings, "there is no room to keep the configuration of before: \"tapgate rollback\" will not find it")
		err = writeRecord(g.maps[tapgateMapTgRecords], idle, p.record)
	}
	if err != nil {
		return err
	}
	word := controlWord{active: idle, fallback: g.slot}
	if g.opt.Confirm != 0 {
		word.deadline = (bootTime() + uint64(g.opt.Confirm)) &^ 3
	}
	if err := g.writeControl(word); err != nil {
		return err
	}
	if word.deadline != 0 {
		g.pending = &pending{deadline: word.deadline, other: g.active}
	}
	g.slot, g.active = idle, p.record
	return nil
}

func (m *member) touched() touched {
	return touched{Interface: m.name, Ifindex: m.index, MAC: m.mac.String()}
}

func addTouched(list []touched, t touched) []touched {
	if slices.Contains(list, t) {
		return list
	}
	return append(list, t)
}

// offloads are the features of an interface that we switch off.
func (j *journal) offloads(t touched) []string {
	for _, o := range j.Offloads {
		if o.touched == t {
			return o.Features
		}
	}
	return nil
}

// addOffloads adds what is on now to what was on before.
func (j *journal) addOffloads(t touched, on []string) {
	for i, o := range j.Offloads {
		if o.touched == t {
			for _, f := range on {
				if !slices.Contains(o.Features, f) {
					j.Offloads[i].Features = append(j.Offloads[i].Features, f)
				}
			}
			return
		}
	}
	if len(on) > 0 {
		j.Offloads = append(j.Offloads, offloadEntry{touched: t, Features: on})
	}
}
