package datapath

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// New flows look after the unanswered ones before them: after a minute while there is
// room for everybody, and soon where room may be wanted.
func TestUnansweredAreLookedAt(t *testing.T) {
	requireIngressIfindex(t)
	w := newTestWorld(t, newGateway(t))
	w.dice = &dice{rnd: rand.New(rand.NewPCG(1, 0))}
	w.gateway.scenes = slices.DeleteFunc(slices.Clone(w.gateway.scenes), func(s *scene) bool { return s.scenario.name != "limits" })
	if err := w.reset(); err != nil {
		t.Fatal(err)
	}
	if err := w.apply(); err != nil {
		t.Fatal(err)
	}
	began := uint16(0)
	begin := func() {
		t.Helper()
		began++
		// Two hosts in turn: none of them has as many as one may have.
		p := talk{src: insiders[began%2], dst: remotes[0], proto: udp, sport: 5000 + began, dport: 53}
		if err := w.gateway.Gateway.Do(func() error { return w.leave(internal, external, p.frame()) }); err != nil {
			t.Fatal(err)
		}
	}
	// When the oldest was looked at, on the programs' coarse clock.
	looked := func() (at uint64) {
		t.Helper()
		s, found := w.maps.structs["tg_session"], false
		if err := w.maps.tables["tg_sessions"].each(func(_, v []byte) {
			if s["half"].read(v) == 1 && w.maps.tuple(v[s["other"].at:]).Sport == 5001 {
				at, found = s["looked"].read(v), true
			}
		}); err != nil || !found {
			t.Fatalf("the oldest flow is not there: %v", err)
		}
		return at
	}
	coarse := func() uint64 { return uint64(uint32(w.clock >> 24)) }

	begin()
	first := looked()
	freshHost := w.scene.scenario.limits.FreshHost
	for int(began) < freshHost {
		w.jump(time.Second)
		begin()
	}
	if at := looked(); at != first {
		t.Errorf("the oldest of %d was looked at after %d units of 17 ms, though there is room", began, at-first)
	}
	w.jump(time.Second)
	begin()
	if at := looked(); at != coarse() {
		t.Errorf("with %d unanswered, as many as a host may have, the oldest was last looked at %d units of 17 ms ago", began-1, coarse()-at)
	}
}
