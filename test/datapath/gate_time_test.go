package datapath

import (
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"tapgate/test/model"
)

// jump lets time go by.
func (w *world) jump(d time.Duration) {
	w.note("%v go by", d)
	w.clock += int64(d)
	w.stage.setWord(wordClock, uint64(w.clock))
}

// settle sees to it that nothing expires while a sweep is under way, or soon after.
func (w *world) settle() {
	const margin = 3 * time.Second
	for {
		end := w.model.NextEnd(w.clock - int64(margin)/10)
		if end == 0 || end-w.clock > int64(margin) {
			return
		}
		w.jump(time.Duration(end-w.clock) + margin/10)
	}
}

// sweep takes away what has expired, as any command does. A flow lies for a second
// before it goes, and may stand behind one that was flushed only now: then for two.
func (w *world) sweep() error {
	w.note("sweep")
	w.model.Expire(w.clock)
	for i := range 3 {
		if i > 0 {
			w.jump(1100 * time.Millisecond)
		}
		if err := w.sweepOnce(); err != nil {
			return err
		}
	}
	w.model.Sweep(w.clock)
	return nil
}

// sweepOnce runs the program until it has looked at all that stands in a queue.
func (w *world) sweepOnce() error {
	table, err := w.maps.account()
	if err != nil {
		return err
	}
	const turns = 32 // of a run: TG_SWEEP_TURNS
	frame := make([]byte, 64)
	for range (table["flows"]+table["leaving"]+table["bindings"])/turns + 1 {
		looked, err := w.stage.programs["sweep"].Run(&ebpf.RunOptions{Data: frame})
		if err != nil {
			return fmt.Errorf("run sweep: %w", err)
		}
		if looked == 0 {
			break
		}
	}
	return w.model.Tidy(w.clock)
}

// flush ends the flows that match, as "flows flush" does.
func (w *world) flush(which func(in, out model.Tuple) bool) error {
	var keys [][]byte
	for out, f := range w.model.Flows() {
		if !f.Flushed && which(f.Inside, out) {
			keys = append(keys, w.maps.key(out))
		}
	}
	slices.SortFunc(keys, slices.Compare) // always the same order
	for _, key := range keys {
		did, err := w.stage.programs["flush"].Run(&ebpf.RunOptions{Data: append(make([]byte, 14), key...)})
		if err != nil {
			return fmt.Errorf("run flush: %w", err)
		}
		if did != 1 {
			return fmt.Errorf("flush of %v returns %d", w.maps.tuple(key), did)
		}
	}
	w.note("flush %d flows", len(keys))
	if got := w.model.Flush(which); got != len(keys) {
		return fmt.Errorf("the model flushes %d flows, the program %d", got, len(keys))
	}
	return nil
}

// expireAll lets all timers run out, and looks whether anything is left.
func (w *world) expireAll() error {
	w.settle()
	for range 3 { // flows, then the mappings that they leave behind
		w.jump(w.scene.scenario.timers().TCPEstablished + time.Second)
		if err := w.sweep(); err != nil {
			return err
		}
	}
	if err := w.compare(); err != nil {
		return err
	}
	return w.empty()
}
