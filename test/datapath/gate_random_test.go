package datapath

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// Two opinions on what a packet becomes: the programs', and that of test/model.
// Both get the same random packets, and must say the same of every one: verdict,
// reason, bytes, and afterwards the flows.

// perSequence is how many packets a sequence has, after which all is let expire.
const perSequence = 3000

// sequence runs packets until there were enough of them or the dice end.
func (w *world) sequence(packets int) error {
	if err := w.reset(); err != nil {
		return err
	}
	w.focus()
	if err := w.apply(); err != nil {
		return err
	}
	end := w.packets + packets
	change := w.packets + packets/2
	for w.packets < end && !w.end {
		if err := w.next(); err != nil {
			return err
		}
		if w.packets > change && w.rnd != nil {
			change = end
			if err := w.compare(); err != nil {
				return err
			}
			if err := w.apply(); err != nil {
				return err
			}
		}
	}
	if err := w.compare(); err != nil {
		return err
	}
	return w.expireAll()
}

// A play is a sequence that can be run again: by a seed, or by a fuzzer's choices.
type play struct {
	seed    uint64
	data    []byte // not nil: instead of a seed
	packets int
}

func (p play) run(w *world) error {
	w.dice = &dice{data: p.data}
	if p.data == nil {
		w.dice.rnd = rand.New(rand.NewPCG(p.seed, 0))
	}
	w.stage.setWord(wordDice, p.seed)
	return w.gateway.Gateway.Do(func() error { return w.sequence(p.packets) })
}

// newTestWorld is a world that goes with the test.
func newTestWorld(t testing.TB, g *gateway) *world {
	t.Helper()
	w, err := newWorld(g)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

// again runs a sequence that has shown a difference once more from its beginning, in
// a new world and looking at all flows after each packet: so the first
// difference is found, and what led to it is told.
func (p play) again(t testing.TB, g *gateway, first error) string {
	t.Helper()
	w := newTestWorld(t, g)
	w.noting, w.careful = true, true
	if err := p.run(w); err != nil {
		return fmt.Sprintf("%v\nand first of all:\n%s", first, w.story(err))
	}
	w = newTestWorld(t, g)
	w.noting = true
	if err := p.run(w); err != nil {
		return w.story(fmt.Errorf("%w\n(looking at all flows after each packet does not show it)", err))
	}
	return fmt.Sprintf("%v\n(run again, it does not happen)", first)
}

// number is one of the environment.
func number(t testing.TB, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestGatewayRandom runs random packets through program and model: always the same
// sequences. The environment says how many packets, and from which seed on, each
// sequence having one more than the one before:
//
//	TAPGATE_RANDOM_PACKETS=10000000 TAPGATE_RANDOM_SEED=1 go test -run TestGatewayRandom -timeout 4h ./test/datapath
func TestGatewayRandom(t *testing.T) {
	requireIngressIfindex(t)
	packets, seed := int(number(t, "TAPGATE_RANDOM_PACKETS", 100_000)), number(t, "TAPGATE_RANDOM_SEED", 1)
	g := newGateway(t)
	w := newTestWorld(t, g)
	start, told := time.Now(), time.Now()
	for p := (play{seed: seed}); w.packets < packets; p.seed++ {
		p.packets = min(perSequence, packets-w.packets)
		if err := p.run(w); err != nil {
			t.Fatalf("a difference after %d packets; TAPGATE_RANDOM_SEED=%d TAPGATE_RANDOM_PACKETS=%d shows it:\n%s", w.packets, p.seed, p.packets, p.again(t, g, err))
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			fmt.Printf("%s: %s, at seed %d\n", t.Name(), w.progress(start), p.seed)
		}
	}
	if kept, lost := w.model.Parity[0], w.model.Parity[1]; lost > kept/200+3 {
		t.Errorf("%d UDP ports have kept their parity, and %d have not", kept, lost)
	}
	t.Logf("from seed %d on: %s without a difference: %v", seed, w.progress(start), w.did)
}

func (w *world) progress(start time.Time) string {
	return fmt.Sprintf("%d packets (%d at hooks), %.0f a second", w.packets, w.steps, float64(w.packets)/time.Since(start).Seconds())
}

// FuzzGateway is the same with choices by a fuzzer.
func FuzzGateway(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		seed := make([]byte, 800)
		for i := range seed {
			seed[i] = byte(rnd.Uint32())
		}
		f.Add(seed)
	}
	g := newGateway(f)
	var w *world // for all of them, until there is a difference
	f.Cleanup(func() {
		if w != nil {
			w.close()
		}
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		if w == nil {
			var err error
			if w, err = newWorld(g); err != nil {
				t.Fatal(err)
			}
		}
		p := play{data: append([]byte{}, data...), packets: perSequence}
		if err := p.run(w); err != nil {
			w.close()
			w = nil
			t.Fatal(p.again(t, g, err))
		}
	})
}
