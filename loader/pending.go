package loader

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// A change that waits for confirmation: the control word names the generation of
// before as the one to fall back to, and a time. The programs look at both, so the way
// back needs nobody. Until somebody has written a plain word again both slots are
// taken, and everything outside of them is kept for both (Gateway.live).

// ErrUnconfirmed comes with ErrNotAttached where the first configuration that was ever
// applied was not confirmed in time: it is out of force, and what it changed beside the
// programs' generations is there until "apply" or "detach".
var ErrUnconfirmed = errors.New("it was not confirmed in time")

// The limits of Options.Confirm.
const (
	ConfirmLeast = 5 * time.Second
	ConfirmMost  = time.Hour
)

// controlWord says which generation is in force: see headers/abi.h.
type controlWord struct {
	active, fallback uint32
	deadline         uint64 // boot time, ns; 0: none
}

func (w controlWord) pack() uint64 {
	return uint64(w.active) | uint64(w.fallback)<<1 | w.deadline&^3
}

func unpackControl(word uint64) controlWord {
	return controlWord{active: uint32(word & 1), fallback: uint32(word >> 1 & 1), deadline: word &^ 3}
}

// inForce is the slot that the programs take at this boot time.
func (w controlWord) inForce(now uint64) uint32 {
	if w.deadline != 0 && now >= w.deadline {
		return w.fallback
	}
	return w.active
}

// pending is a change that nobody has confirmed yet.
type pending struct {
	deadline uint64 // boot time, ns
	// expired: the deadline has passed, and nobody has cleared up since.
	expired bool
	// other is the record of the generation that is not in force: the one of before, or
	// once expired the one that was not confirmed.
	other record
}

// returned says that the last change was not confirmed.
type returned struct {
	Serial  uint64    `json:"serial"` // of the change
	At      time.Time `json:"at"`
	Expired bool      `json:"expired"` // by itself, and not by "rollback"
}

// generation is one that packets are judged by, or may be.
type generation struct {
	slot uint32
	*record
}

// live are the generations that are in force by the control word as it is: the one now
// in force, and while a change waits for confirmation the one that follows by itself.
func (g *Gateway) live() []generation {
	list := []generation{{g.slot, &g.active}}
	if g.waits() {
		list = append(list, generation{1 - g.slot, &g.pending.other})
	}
	return list
}

// waits says whether a change waits for confirmation.
func (g *Gateway) waits() bool { return g.pending != nil && !g.pending.expired }

// expired says whether a change was not confirmed, and nobody has cleared up since.
func (g *Gateway) expired() bool { return g.pending != nil && g.pending.expired }

// ofEach runs f with each of the live generations in the place of the one in force.
func (g *Gateway) ofEach(f func() error) error {
	err := f()
	if g.waits() {
		g.turn()
		err = errors.Join(err, f())
		g.turn()
	}
	return err
}

// turn has the two live generations change places, in here.
func (g *Gateway) turn() {
	g.slot = 1 - g.slot
	g.active, g.pending.other = g.pending.other, g.active
}

// until is when the change goes back, or went, on the wall's clock.
func (p *pending) until() time.Time {
	return time.Now().Add(time.Duration(int64(p.deadline) - int64(bootTime()))).Round(time.Second)
}

// nextSerial is the number of the change after this one.
func (r *record) nextSerial() uint64 {
	if r.Returned != nil {
		return max(r.Serial, r.Returned.Serial) + 1
	}
	return r.Serial + 1
}

// previousTo is what "rollback" goes back to from a configuration of this text: one that
// is applied again keeps what it had.
func (r *record) previousTo(source string) (text string, file SourceFile) {
	if source == r.Source {
		return r.Previous, r.PreviousFile
	}
	return r.Source, r.File
}

// stillWaits refuses another change while one waits: both slots are taken.
func (g *Gateway) stillWaits() error {
	if !g.waits() {
		return nil
	}
	return fmt.Errorf("a change waits for confirmation until %s: keep it with \"tapgate confirm\", or take it back with \"tapgate rollback\"",
		g.pending.until().Format(time.TimeOnly))
}

// readControl reads the control word and the records of both slots, as the programs
// understand them at this moment.
func (g *Gateway) readControl() error {
	var word uint64
	if err := g.maps[tapgateMapTgControl].Lookup(uint32(0), &word); err != nil {
		return fmt.Errorf("read which generation is in force: %w", err)
	}
	w := unpackControl(word)
	now := bootTime()
	g.slot, g.pending, g.active = w.inForce(now), nil, record{}
	if w.deadline != 0 {
		g.pending = &pending{deadline: w.deadline, expired: now >= w.deadline}
		if err := readRecord(g.maps[tapgateMapTgRecords], 1-g.slot, &g.pending.other); err != nil {
			return stateError(g.dir, err)
		}
	}
	if err := readRecord(g.maps[tapgateMapTgRecords], g.slot, &g.active); err != nil {
		return stateError(g.dir, err)
	}
	return nil
}

func (g *Gateway) writeControl(w controlWord) error {
	if err := g.maps[tapgateMapTgControl].Put(uint32(0), w.pack()); err != nil {
		return fmt.Errorf("put generation %d in force: %w", w.active, err)
	}
	return nil
}

// settle clears up behind a change that was not confirmed. The control word comes last:
// as long as it tells of the deadline, whoever is cut short is finished by the next.
func (g *Gateway) settle() error {
	if !g.expired() {
		return nil
	}
	gone := &g.pending.other
	g.active.inherit(gone)
	if r := g.active.Returned; r == nil || r.Serial != gone.Serial {
		g.active.Returned = &returned{Serial: gone.Serial, At: g.pending.until().UTC(), Expired: true}
	}
	if err := writeRecord(g.maps[tapgateMapTgRecords], g.slot, g.active); err != nil {
		return err
	}
	if err := g.converge(); err != nil {
		return fmt.Errorf("clear up behind a change that was not confirmed: %w", err)
	}
	if err := g.endUnwanted(gone); err != nil {
		g.warnings = append(g.warnings, err.Error()) // no reason to stay
	}
	if err := g.writeControl(controlWord{active: g.slot}); err != nil {
		return err
	}
	g.pending = nil
	return nil
}

// forget makes what is in force so for good, whatever was to come of it.
func (g *Gateway) forget() error {
	if g.pending == nil {
		return nil
	}
	if err := g.writeControl(controlWord{active: g.slot}); err != nil {
		return err
	}
	g.pending = nil
	return nil
}

// endUnwanted ends the flows that cannot go on without a generation that is gone.
func (g *Gateway) endUnwanted(gone *record) error {
	if gone.Gateway == nil {
		return nil
	}
	if g.active.Gateway == nil {
		return g.endAll()
	}
	_, err := g.endLost(gone.Gateway.Outside)
	return err
}

// inherit takes over the numbers of zones and rules of a generation that is gone: its
// flows hold them, so they must not become others'.
func (r *record) inherit(gone *record) {
	for _, z := range gone.Zones {
		if !slices.ContainsFunc(r.Zones, func(o zoneRecord) bool { return o.Number == z.Number }) {
			z.Gone = true
			r.Zones = append(r.Zones, z)
		}
	}
	if r.Gateway == nil || gone.Gateway == nil {
		return
	}
	own := *r.Gateway
	last := slices.IndexFunc(own.Rules, func(o ruleRecord) bool { return o.Gone })
	if last < 0 {
		last = len(own.Rules)
	}
	for _, rule := range gone.Gateway.Rules {
		if !slices.ContainsFunc(own.Rules, func(o ruleRecord) bool { return o.Number == rule.Number }) {
			rule.Gone = true
			own.Rules = slices.Insert(slices.Clone(own.Rules), last, rule)
			last++
		}
	}
	r.Gateway = &own
}

// Pending is a change that waits for confirmation.
type Pending struct {
	// Until is when it goes back by itself, RFC 3339.
	Until string `json:"until"`
	// Left is how many seconds that is from now.
	Left float64 `json:"left"`
	// Serial is the change that would be in force again; 0 for none at all.
	Serial uint64 `json:"serial"`
}

// Returned is a last change that was not confirmed.
type Returned struct {
	Serial uint64 `json:"serial"`
	At     string `json:"at"`      // RFC 3339
	Itself bool   `json:"expired"` // by itself, and not by "rollback"
}

// Pending says whether what is in force waits for confirmation; nil if not.
func (g *Gateway) Pending() *Pending {
	if !g.waits() {
		return nil
	}
	return &Pending{
		Until: g.pending.until().UTC().Format(time.RFC3339), Left: secondsBetween(bootTime(), g.pending.deadline), Serial: g.pending.other.Serial,
	}
}

// Returned says whether the last change was not confirmed, so that the one before it is
// in force again; nil if it was, or needed none.
func (g *Gateway) Returned() *Returned {
	switch r := g.active.Returned; {
	case g.expired():
		return &Returned{Serial: g.pending.other.Serial, At: g.pending.until().UTC().Format(time.RFC3339), Itself: true}
	case r != nil:
		return &Returned{Serial: r.Serial, At: r.At.Format(time.RFC3339), Itself: r.Expired}
	}
	return nil
}

// Previous is the text of the configuration that "rollback" would put in force: of the
// one before that in force, "" if there is none.
func (g *Gateway) Previous() string {
	if g.waits() {
		return g.pending.other.Source
	}
	return g.active.Previous
}

// PreviousFile is the file of Previous.
func (g *Gateway) PreviousFile() SourceFile {
	if g.waits() {
		return g.pending.other.File
	}
	return g.active.PreviousFile
}

// Confirm keeps the change that waits, and clears up behind the generation before it.
// Where nothing waits it only finishes what an earlier run may have left.
func (g *Gateway) Confirm() (result *Result, err error) {
	err = g.ns.do(func() error {
		result, err = g.confirm()
		return err
	})
	return result, err
}

func (g *Gateway) confirm() (*Result, error) {
	result := &Result{}
	waits := g.waits()
	var before record
	if waits {
		before = g.pending.other
		result.Changes = []string{fmt.Sprintf("confirmed: change %d stays in force", g.active.Serial)}
		if g.active.Gateway == nil && before.Gateway != nil {
			g.turn()
			told, err := g.handBack()
			g.turn()
			if err != nil { // no reason not to stay
				result.Warnings = append(result.Warnings, err.Error())
			}
			result.Changes = append(result.Changes, told...)
		}
		if err := g.forget(); err != nil {
			return nil, err
		}
	}
	if err := g.converge(); err != nil {
		return nil, fmt.Errorf("clear up behind the configuration of before: %w", err)
	}
	if waits {
		if err := g.endUnwanted(&before); err != nil {
			result.Warnings = append(result.Warnings, err.Error())
		}
	}
	result.Warnings = append(result.Warnings, g.warnings...)
	return result, nil
}

// ErrNoneWaits: no change waits for confirmation, or not any more.
var ErrNoneWaits = errors.New("no change waits for confirmation")

// TakeBack puts the generation in force again that was before a change which waits for
// confirmation. ErrNoneWaits if none does.
func TakeBack(opt Options) (result *Result, err error) {
	g, err := Open(opt, ReadWrite)
	if err != nil {
		return nil, err
	}
	gone := g.active
	if !g.waits() {
		return nil, errors.Join(ErrNoneWaits, g.Close())
	}
	result, err = g.takeBack()
	err = errors.Join(err, g.Close())
	if err != nil || g.active.Serial != 0 {
		return result, err
	}
	// There was nothing before.
	for _, m := range gone.Members {
		if len(m.Programs) > 0 {
			result.Changes = append(result.Changes, "detached from "+m.Interface)
		}
	}
	left, err := ClearUnconfirmed(opt)
	if left != nil {
		result.Warnings = append(result.Warnings, left.Warnings...)
	}
	return result, err
}

func (g *Gateway) takeBack() (*Result, error) {
	result := &Result{Changes: []string{fmt.Sprintf("taken back: change %d", g.active.Serial)}}
	to := &g.pending.other
	result.Changes = append(result.Changes, lines(difference(&g.active, to))...)
	to.inherit(&g.active)
	to.Returned = &returned{Serial: g.active.Serial, At: time.Now().UTC().Truncate(time.Second)}
	err := g.ns.do(func() error {
		if err := writeRecord(g.maps[tapgateMapTgRecords], 1-g.slot, *to); err != nil {
			return err
		}
		// The deadline is now: from here on it is as if nobody had come.
		if err := g.writeControl(controlWord{active: g.slot, fallback: 1 - g.slot, deadline: bootTime()}); err != nil {
			return err
		}
		if err := g.readControl(); err != nil {
			return err
		}
		if g.active.Serial == 0 {
			return nil
		}
		return g.settle()
	})
	result.Warnings = append(result.Warnings, g.warnings...)
	return result, err
}
