package loader

// hostHit is a rule that decides on packets: on how many of them.
type hostHit struct {
	rule *hostRule
	hostMatch
}

// hostWalk follows packets through a base chain.
type hostWalk struct {
	packet *hostPacket
	hits   []hostHit
	steps  *int // that are left
	depth  int
	// all: what translates does not end it, so that each such rule is found.
	all bool
}

// deepestJump is above what the kernel allows.
const deepestJump = 32

// walk returns the rules that decide, in order. The last one is the one that those
// packets meet which no other has taken.
func (c *hostChain) walk(p *hostPacket, steps *int) []hostHit {
	w := &hostWalk{packet: p, steps: steps, all: c.kind == "nat"}
	if left := w.through(c, matchAll); left != matchNone {
		w.hits = append(w.hits, hostHit{c.policy, left})
	}
	return w.hits
}

// through returns how many of the packets come out at the end.
func (w *hostWalk) through(c *hostChain, here hostMatch) (left hostMatch) {
	w.depth++
	defer func() { w.depth-- }()
	returned := matchNone
	for _, r := range c.rules {
		if *w.steps--; *w.steps < 0 || w.depth > deepestJump {
			return matchUnknown
		}
		m := r.match(w.packet)
		if m == matchNone || r.verdict == hostNothing {
			continue
		}
		mine := min(here, m)
		out := matchNone // of those that the rule matches
		switch r.verdict {
		case hostReturn:
			returned = max(returned, mine)
		case hostJump, hostGoto:
			out = mine
			if sub := c.table.chains[r.target]; sub != nil {
				out = w.through(sub, mine)
			}
			if r.verdict == hostGoto {
				returned, out = max(returned, out), matchNone
			}
		default:
			w.hits = append(w.hits, hostHit{r, mine})
			if w.all && (r.verdict == hostSource || r.verdict == hostDestination) {
				continue
			}
		}
		switch {
		case m == matchAll:
			here = out
		case out != mine: // some of them are no longer here
			here = mine
		}
		if here == matchNone {
			break
		}
	}
	return max(here, returned)
}
