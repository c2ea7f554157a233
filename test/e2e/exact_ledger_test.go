package e2e

import (
	"time"

	"tapgate/loader"
)

// account waits until the accounts of a target of the mirror say exactly what
// the view captured, in packets and bytes, and requires that they add up. What
// the link itself dropped, which it counts in packets only, is returned.
func (v *sensorSide) account(g *gateway, mirror string, target int) (dropped uint64) {
	g.t.Helper()
	var m loader.MirrorStatus
	var seen loader.Count
	var drops uint64
	deadline := time.Now().Add(10 * time.Second)
	if g.t.Failed() {
		deadline = time.Now() // what is missing will not come any more
	}
	for {
		// Frames first: a copy between the two reads then shows as a
		// difference that the next turn clears up, never hides one.
		frames, err := v.dump.Frames()
		if err != nil {
			g.t.Fatal(err)
		}
		seen = loader.Count{}
		for _, f := range v.copies(g, frames) {
			seen.Packets++
			seen.Bytes += uint64(len(f.Data))
		}
		s := g.status()
		for _, m = range s.Mirrors {
			if m.Name == mirror {
				break
			}
		}
		for _, l := range s.Links {
			if l.Interface == m.Targets[target].Interface {
				drops = l.TxDropped + l.QdiscDrops - v.base[l.Interface]
			}
		}
		// A question that the link refused was no copy.
		if n := m.Targets[target].Neighbour; n != nil {
			drops -= n.AsksRefused
		}
		if m.Targets[target].Copied.Packets == seen.Packets+drops || time.Now().After(deadline) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if got := m.Targets[target].Copied; got.Packets != seen.Packets+drops || drops == 0 && got != seen {
		g.t.Errorf("%s: target %q copied %+v, and %s captured %+v, the link dropped %d", mirror, m.Targets[target].Target, got, v.host.Name, seen, drops)
	}
	if m.Targets[target].Matched != m.Matched {
		g.t.Errorf("%s matched %+v, its target %q %+v", mirror, m.Matched, m.Targets[target].Target, m.Targets[target].Matched)
	}
	if sum := (loader.Count{Packets: m.Ingress.Copied.Packets + m.Egress.Copied.Packets, Bytes: m.Ingress.Copied.Bytes + m.Egress.Copied.Bytes}); sum != m.Copied {
		g.t.Errorf("%s: directions sum up to %+v of %+v", mirror, sum, m.Copied)
	}
	g.checkLedgers()
	return drops
}
