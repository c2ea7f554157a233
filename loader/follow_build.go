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
