package loader

import (
	"slices"
	"sync"
	"time"
)

// knownNames are the names behind the numbers in what programs tell, for a process
// that runs for long: changes come meanwhile.
type knownNames struct {
	opt  Options
	mu   sync.Mutex
	seen *eventNames
	// asked is when names were asked for because of this rule.
	asked map[uint32]time.Time
}

// eventNames are the names of the generations that are live.
type eventNames struct {
	flowNames
	members map[uint32]memberRecord
}

func newKnownNames(opt Options) *knownNames {
	return &knownNames{opt: opt, asked: map[uint32]time.Time{}}
}

func (k *knownNames) know(live []generation) {
	n := &eventNames{flowNames: namesOf(live), members: map[uint32]memberRecord{}}
	for _, gen := range slices.Backward(live) {
		for _, m := range gen.Members {
			n.members[uint32(m.Ifindex)] = m
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = n
}

// names gives those that are known. A rule without a name may be newer than they
// are: they are asked for once more then, but not for each event.
func (k *knownNames) names(rule uint32) *eventNames {
	k.mu.Lock()
	n := k.seen
	stale := n == nil || rule != 0 && n.rules[rule] == ""
	if stale = stale && time.Since(k.asked[rule]) > time.Second; stale {
		k.asked[rule] = time.Now()
	}
	k.mu.Unlock()
	if stale {
		if g, err := Open(k.opt, ReadOnly); err == nil {
			k.know(g.live())
			_ = g.Close()
			k.mu.Lock()
			n = k.seen
			k.mu.Unlock()
		}
	}
	if n == nil {
		return &eventNames{}
	}
	return n
}
