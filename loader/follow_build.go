package loader

import (
	"errors"
	"fmt"
)

// whose fails where the programs in force are not those of this build: what the maps
// hold is then another build's to change. An agent whose own they were ends, since it
// was replaced: whatever starts it again starts what is installed now. One that comes
// to another build's gateway waits for an upgrade: to end would only have it started
// again and again.
func (f *follower) whose(g *Gateway) error {
	err := sameBuild(g.programs)
	switch {
	case err == nil:
		if f.foreign {
			f.log.Info("the programs in force are of this build now")
		}
		f.own, f.foreign = true, false
		return nil
	case !errors.Is(err, ErrState):
		return err
	case f.own:
		return fmt.Errorf("%w: the programs were replaced by those of another build (\"tapgate upgrade\"): "+
			"this agent ends, so that the one that is installed now is started", ErrState)
	}
	f.foreign = true
	return errors.New("the programs in force are of another build, so this agent changes nothing: \"tapgate upgrade\" puts its own in place")
}

// notUnderstood is for state of another layout. As with another build an agent whose own
// gateway it was ends, and one that comes to it waits: ended it would be started again for
// ever, and kept from that, it would not be there once the state is one of its own.
func (f *follower) notUnderstood(refused *refusedState) error {
	if f.own {
		return fmt.Errorf("%w; this agent ends, so that the one that is installed now is started", refused)
	}
	f.trouble(fmt.Errorf("%w in %s: %w; this agent changes nothing, and waits until that is another one. %s",
		ErrState, refused.dir, refused.why, replaceState))
	return nil
}
