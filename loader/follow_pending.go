package loader

import (
	"errors"
	"slices"
	"strings"
)

// notWhileWaiting leaves for later what asks for another apply: while a change waits for
// confirmation there is no slot for it.
func (f *follower) notWhileWaiting(g *Gateway, back []string) []string {
	if len(back) == 0 || !g.waits() {
		f.held = ""
		return back
	}
	slices.Sort(back)
	changes := strings.Join(slices.Compact(back), "; ")
	if changes != f.held {
		f.held = changes
		f.log.Warn("interfaces have changed: applying again when the change that waits is confirmed or has gone back", "changes", changes, "until", g.Pending().Until)
	}
	return nil
}

// hasReturned says whether a change was not confirmed in time, and nobody has cleared up
// since: who opens the state to write does.
func (f *follower) hasReturned(g *Gateway) bool {
	if !g.expired() {
		return false
	}
	r := g.Returned()
	f.log.Info("a change was not confirmed in time: the configuration before it is in force again", "change", r.Serial, "since", r.At, Changed)
	return true
}

// clearUnconfirmed takes away what a first configuration has left that was not confirmed.
func (f *follower) clearUnconfirmed(why error) error {
	if _, err := ClearUnconfirmed(f.opt); err != nil {
		return errors.Join(err, why)
	}
	f.log.Info("the first configuration was not confirmed in time: cleared away", Changed)
	return why
}
