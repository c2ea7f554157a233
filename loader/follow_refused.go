package loader

import (
	"fmt"
	"time"
)

// refusedPause is the least time between two lines of the log about the same reason: a
// table that is full refuses thousands of flows a second.
const refusedPause = time.Minute

// placeless are the reasons that say that the gateway is too small for its hosts, and
// what helps. A forward's rate is not among them: it is meant to refuse.
var placeless = []struct {
	reason     tapgateTgRefusal
	what, help string
}{
	{tapgateTgRefusalTG_REFUSED_FULL, "the flow table has no room", `max_flows under nat makes it larger; "tapgate flows --limit 20" shows who has them`},
	{tapgateTgRefusalTG_REFUSED_HOST, "an inside host has used up its share", `max_flows_per_host under nat is the share; "tapgate flows --limit 20" shows who has most`},
	{tapgateTgRefusalTG_REFUSED_PORTS, "no outside port is left", "more addresses or ports for the masquerade rule"},
}

// refusals is what was refused of these, as far as the log has it.
type refusals struct {
	known map[tapgateTgRefusal]uint64
	told  map[tapgateTgRefusal]time.Time
}

// since is how many were refused since the log has said so last; 0 while it is too early
// to say so again. What was refused before the first look is nobody's news.
func (r *refusals) since(reason tapgateTgRefusal, count uint64, now time.Time) uint64 {
	if r.known == nil {
		r.known, r.told = map[tapgateTgRefusal]uint64{}, map[tapgateTgRefusal]time.Time{}
	}
	before, looked := r.known[reason]
	switch {
	case !looked:
		before = count
	case count < before: // another table, which began at 0
		before = 0
	}
	if told, ever := r.told[reason]; count == before || ever && now.Sub(told) < refusedPause {
		r.known[reason] = before
		return 0
	}
	r.known[reason], r.told[reason] = count, now
	return count - before
}

// tellRefused logs that new flows were refused since there was no place for them.
func (f *follower) tellRefused(g *Gateway) error {
	if g.active.Gateway == nil {
		return nil
	}
	var table tapgateTgTableState
	if err := g.maps[tapgateMapTgTable].Lookup(uint32(0), &table); err != nil {
		return fmt.Errorf("read the flow table's account: %w", err)
	}
	var set tapgateTgSetting
	if err := g.maps[tapgateMapTgSettings].Lookup(g.slot, &set); err != nil {
		return fmt.Errorf("read the settings in force: %w", err)
	}
	numbers := map[tapgateTgRefusal][]any{
		tapgateTgRefusalTG_REFUSED_FULL: {"flows", table.Flows, "max_flows", set.MaxFlows, "unanswered", table.Fresh, "max_unanswered", set.MaxFresh},
		tapgateTgRefusalTG_REFUSED_HOST: {"max_flows_per_host", set.MaxPerHost},
	}
	for _, p := range placeless {
		n := f.refused.since(p.reason, table.Refused[p.reason], time.Now())
		if n == 0 {
			continue
		}
		attrs := append([]any{"reason", refusalNames[p.reason], "refused", n}, numbers[p.reason]...)
		f.log.Warn("new flows are refused: "+p.what, append(attrs, "help", p.help)...)
	}
	return nil
}
