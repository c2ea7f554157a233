package e2e

import "testing"

// A change to a tap alone that waits for confirmation ends no translation: taken back,
// those of before go on, and are told to their ends. Confirmed, it ends them all.
func TestTranslationsWhileTapOnlyWaits(t *testing.T) {
	t.Parallel()
	g := newGate(t, masquerades)
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	n := g.translations()
	ext := g.mapUDP(in, 5000, out, 53, false)
	n.wait(ext.String(), "start")
	g.try(example, "1h")
	g.says(g.must("flows", "--json"), `"rule": "all"`, `"outside_zone": "external"`)
	n.look()
	n.wait(ext.String(), "start")
	if err := g.hasRing(true); err != nil {
		t.Error(err)
	}
	g.must("rollback")
	g.answerUDP(out, 53, ext, in, 5000)
	g.flushPort(in.at(false, 5000))
	if end := n.wait(ext.String(), "start end")[1]; end.PacketsOut != 1 || end.PacketsIn != 1 || end.Rule != "all" {
		t.Errorf("taken back: %+v %+v", end, end.TranslationTotals)
	}
	n.stop()

	// Who begins while it waits knows what the rules of before are called.
	ext = g.mapUDP(in, 5001, out, 53, false)
	g.try(example, "1h")
	n = g.translations()
	if present := n.wait(ext.String(), "present"); present[0].Rule != "all" || present[0].OutsideZone != "external" {
		t.Errorf("while it waits: %+v", present[0])
	}
	g.must("confirm")
	n.look()
	n.wait(ext.String(), "present end")
	if err := g.hasRing(false); err != nil {
		t.Error(err)
	}
}
