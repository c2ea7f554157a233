package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
)

// What an agent has left that was killed while it logged is there for the next one that
// logs, whatever is changed meanwhile. One that does not log has the programs tell no
// more, and counts what nobody has read, for whoever logs one day.
func TestFlowLogGivenUp(t *testing.T) {
	t.Parallel()
	g := newGate(t, masquerades)
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	file := filepath.Join(g.Dir, "flows.json")
	a := g.agent(nil, "--listen", "", "--log-flows", file)
	retry(t, func() error { return g.hasRing(true) })
	a.kill()
	for port := uint16(5000); port < 5003; port++ {
		g.mapUDP(in, port, out, 53, false)
	}
	g.flushPort(in.at(false, 5001))
	g.apply(masquerades)
	g.must("upgrade")
	if err := g.hasRing(true); err != nil {
		t.Errorf("before the next agent: %v", err)
	}

	a = g.agent(nil, "--listen", "")
	retry(t, func() error { return g.hasRing(false) })
	a.end()
	if lost := g.lostBy(); lost != [2]uint64{3, 1} {
		t.Errorf("lost are %d", lost)
	}
	g.mapUDP(in, 5003, out, 53, false) // is not told, so not lost
	g.agent(nil, "--listen", "", "--log-flows", file)
	g.flowLines(file, func(lines []loggedLine) error {
		present := 0
		var told []loggedLine
		for _, l := range lines {
			switch l.Event {
			case "present":
				present++
			case "lost":
				told = append(told, l)
			}
		}
		if present != 3 || len(told) != 1 || told[0].Starts != 3 || told[0].Ends != 1 || told[0].Reason != "behind" {
			return fmt.Errorf("%d are present, %+v", present, told)
		}
		return nil
	})
}
