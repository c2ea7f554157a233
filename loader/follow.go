package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"time"
)

const (
	// followGap is the least time from one look to the next. The first news is acted on
	// at once: each moment that an interface is there without programs costs packets.
	followGap = 50 * time.Millisecond
	// followSettle is how long an address may be gone that comes back, as one that is
	// renewed does: its flows are not ended before.
	followSettle = 300 * time.Millisecond
	// followLook is how often to look without being told, which also finds that the
	// state is another one, or gone, and settings that nobody tells of.
	followLook = 5 * time.Second
)

// Follow keeps the gateway as the kernel's interfaces are, until ctx ends: it writes
// changed addresses to the maps, ends the flows of lost ones, has the configuration
// put in force once more when an interface has come back or is another one, sets what
// somebody has changed back to what the configuration needs, and asks for next hops.
// Without it everything goes on as it was applied. While there is no gateway it waits
// for one. ErrBusy if somebody follows already.
func Follow(ctx context.Context, opt Options, hooks Follower) error {
	f := &follower{opt: opt, log: hooks.Log, reapply: hooks.Reapply, looked: hooks.Looked, again: hooks.Again, logsFlows: hooks.LogsFlows}
	f.denied = &denyLog{knownNames: newKnownNames(opt), log: f.log}
	if f.looked == nil {
		f.looked = func(error) {}
	}
	for ctx.Err() == nil {
		err := f.untilGone(ctx)
		var refused *refusedState
		switch {
		case errors.Is(err, errNoNews):
			f.trouble(err)
		case errors.As(err, &refused):
			if err = f.notUnderstood(refused); err != nil {
				return err
			}
		case err != nil && !errors.Is(err, ErrNotAttached):
			return err
		default:
			f.why, f.told = nil, ""
			if ctx.Err() == nil && !f.waiting {
				f.waiting = true
				f.log.Info("there is no gateway here: waiting for one")
			}
		}
		f.looked(f.why)
		select {
		case <-ctx.Done():
		case <-f.again:
		case <-time.After(followLook):
		}
	}
	return nil
}

// Follower is what Follow calls.
type Follower struct {
	Log *slog.Logger
	// Reapply puts the configuration in force in force again: by Gateway.Reapply.
	Reapply func() error
	// Looked, if set, is told after each look, at least every few seconds, what keeps
	// Follow from its work, nil if nothing does, as where there is no gateway. Who hears
	// nothing knows that Follow hangs.
	Looked func(why error)
	// Again, if set, asks for a look at once.
	Again <-chan struct{}
	// LogsFlows: FollowTranslations is called beside it. If not, the programs shall tell
	// of no flows, as they do after one who was killed while he followed those.
	LogsFlows bool
}

type follower struct {
	opt       Options
	log       *slog.Logger
	reapply   func() error
	looked    func(error)
	again     <-chan struct{}
	logsFlows bool
	denied    *denyLog
	watch     watched
	asker     asker
	refused   refusals
	pace      pace
	waiting   bool   // for a gateway, and has said so
	why       error  // what goes wrong, nil once it does not
	told      string // the last trouble that was logged
	held      string // interfaces that wait for a confirmation, as logged last
	// own: the programs in force were of this build; foreign: they are of another one.
	own, foreign bool
}

// untilGone follows one state for as long as it is there.
func (f *follower) untilGone(ctx context.Context) error {
	ns, err := openNamespace(f.opt.Netns)
	if err != nil {
		return err
	}
	defer ns.close()
	dir := f.opt.stateDir(ns)
	folder := filepath.Join(dir, linksDir)
	// Status tries this lock for a moment, so it may be taken just now.
	lock, err := lockDir(folder, true, time.Second)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrNotAttached
	case errors.Is(err, ErrBusy):
		return fmt.Errorf("another agent follows here already: %w", err)
	case err != nil:
		return err
	}
	defer lock.unlock()
	// Nothing of a state is read that is not understood. What else may be wrong is found
	// by the first look.
	switch g, err := Open(f.opt, ReadOnly); {
	case err == nil:
		_ = g.Close()
	case errors.Is(err, ErrState):
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.watch.know(nil) // everything is news until it is known what is not
	news, lost, err := subscribe(ctx, ns, &f.watch)
	if err != nil {
		return err
	}
	ended, err := f.denied.follow(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotAttached
	}
	if err != nil {
		return err
	}
	defer ended()
	f.asker = asker{dir: dir}
	f.waiting = false
	f.log.Info("following", "state", dir)
	return f.follow(ctx, news, lost, func() bool { same, _ := stillThere(lock.f, folder); return same })
}

// follow looks whenever there is news, and now and then.
func (f *follower) follow(ctx context.Context, news, lost <-chan struct{}, there func() bool) error {
	look, asks := time.NewTicker(followLook), time.NewTicker(askEvery)
	defer look.Stop()
	defer asks.Stop()
	soon := time.NewTimer(0) // much may have changed before
	defer soon.Stop()
	var due, last time.Time
	wake := func(at time.Time) {
		if due.IsZero() || at.Before(due) {
			due = at
			soon.Reset(time.Until(at))
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-lost:
			return errNoNews
		case <-news:
			wake(last.Add(followGap))
			continue
		case <-asks.C:
			current, err := f.asker.ask()
			if err != nil {
				f.trouble(err)
			}
			if current {
				continue
			}
		case <-look.C:
			if !there() {
				return ErrNotAttached
			}
		case <-f.again:
		case <-soon.C:
		}
		due = time.Time{}
		unfinished, err := f.catchUp()
		if err != nil {
			return err
		}
		last = time.Now()
		if unfinished {
			wake(last.Add(followSettle))
		}
		f.looked(f.why)
	}
}

// catchUp makes the state what the interfaces are. What goes wrong is logged, once,
// and tried again later; an error is the end. unfinished asks for another look soon.
func (f *follower) catchUp() (unfinished bool, err error) {
	found, err := f.look()
	switch {
	case errors.Is(err, ErrNotAttached), errors.Is(err, ErrState):
		return false, err
	case err != nil:
		f.trouble(err)
		return false, nil
	}
	if len(found.apart) > 0 {
		f.log.Info("interfaces have changed: applying again", "changes", strings.Join(found.apart, "; "))
		if err := f.reapply(); err != nil {
			f.trouble(fmt.Errorf("apply again: %w", err))
			return false, nil
		}
		found.unfinished = true // addresses that it has lost may come back
	}
	if _, err := f.asker.ask(); err != nil {
		f.trouble(err)
		return false, nil
	}
	if found.trouble != nil {
		f.trouble(found.trouble)
		return found.unfinished, nil
	}
	f.why, f.told = nil, ""
	return found.unfinished, nil
}

// trouble logs what goes wrong, unless it is what went wrong before.
func (f *follower) trouble(err error) {
	f.why = err
	if text := err.Error(); text != f.told {
		f.told = text
		f.log.Warn("trying again later", "error", text)
	}
}
