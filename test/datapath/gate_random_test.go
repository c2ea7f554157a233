package datapath

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
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
	w.in, w.out, w.sent = nil, nil, nil
	if err := w.apply(w.n(len(scenarios))); err != nil {
		return err
	}
	end := w.runs + packets
	change := w.runs + packets/2
	for w.runs < end && !w.end {
		if err := w.next(); err != nil {
			return err
		}
		if w.runs > change && w.rnd != nil {
			change = end
			if err := w.compare(); err != nil {
				return err
			}
			if err := w.apply(w.n(len(scenarios))); err != nil {
				return err
			}
		}
	}
	if err := w.compare(); err != nil {
		return err
	}
	return w.expireAll()
}

// expireAll lets all timers run out, and looks whether anything is left.
func (w *world) expireAll() error {
	if err := w.settle(); err != nil {
		return err
	}
	for range 3 { // flows, then the mappings that they leave behind
		if err := w.jump(gateTimers.TCPEstablished + time.Second); err != nil {
			return err
		}
		if err := w.sweep(); err != nil {
			return err
		}
	}
	if err := w.compare(); err != nil {
		return err
	}
	return w.empty()
}

// story is what led to a difference.
func (w *world) story(err error) string {
	return fmt.Sprintf("%v\nscenario %s; the last steps:\n%s", err, scenarios[max(0, w.scenario)].name, strings.Join(w.log, "\n"))
}

// TestGatewayRandom runs random packets through program and model: always the same
// sequences, as far as the packets go; ports are the program's choice. It is for the
// running kernel: an emulated one is too slow for the model's short timers. The
// environment says how many packets, and from which seed:
// TAPGATE_MODEL_PACKETS=10000000 TAPGATE_MODEL_SEED=1.
func TestGatewayRandom(t *testing.T) {
	requireIngressIfindex(t)
	packets, seed := 12000, uint64(1)
	if s := os.Getenv("TAPGATE_MODEL_PACKETS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		packets = n
	}
	if s := os.Getenv("TAPGATE_MODEL_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	w := newTestWorld(t)
	start, last := time.Now(), time.Now()
	for n := uint64(0); w.runs < packets; n++ {
		w.dice = &dice{rnd: rand.New(rand.NewPCG(seed+n, 0))}
		err := gate.Gateway.Do(func() error { return w.sequence(min(perSequence, packets-w.runs)) })
		if err != nil {
			t.Fatalf("TAPGATE_MODEL_SEED=%d, after %d packets: %s", seed+n, w.runs, w.story(err))
		}
		if time.Since(last) > 10*time.Second {
			last = time.Now()
			t.Logf("%d packets, %.0f a second", w.runs, float64(w.runs)/time.Since(start).Seconds())
		}
	}
	t.Logf("seed %d: %d packets, %.0f a second: %v", seed, w.runs, float64(w.runs)/time.Since(start).Seconds(), w.did)
}

// newTestWorld is the shared gateway with an empty flow table; afterwards it only
// taps again.
func newTestWorld(t testing.TB) *world {
	t.Helper()
	w, err := newWorld(gate)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.close()
		if _, err := gate.gw.Apply(policy()); err != nil {
			t.Error(err)
		}
	})
	return w
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
	f.Fuzz(func(t *testing.T, data []byte) {
		requireIngressIfindex(t)
		w := newTestWorld(t)
		w.dice = &dice{data: data}
		if err := gate.Gateway.Do(func() error { return w.sequence(perSequence) }); err != nil {
			t.Fatal(w.story(err))
		}
	})
}
