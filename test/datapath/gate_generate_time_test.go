package datapath

import (
	"net/netip"
	"time"

	"tapgate/test/model"
)

// Time, and what is done to the table.

// while lets some time go by, after which all goes on: what expires meanwhile is found
// by who looks for it.
func (w *world) while() error {
	most := []time.Duration{
		10 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 60 * time.Millisecond, 300 * time.Millisecond,
		2 * time.Second, 4 * time.Second, 12 * time.Second, 30 * time.Second,
	}
	w.jump(pick(w.dice, most) * time.Duration(1+w.n(250)) / 250)
	return nil
}

func (w *world) time() error {
	jumps := []time.Duration{time.Second, 4 * time.Second, 7 * time.Second, 13 * time.Second, 25 * time.Second, 31 * time.Second, 70 * time.Second, 125 * time.Second}
	w.jump(pick(w.dice, jumps))
	w.settle()
	// Packets of flows that have expired and were not swept yet bring them back.
	for range w.n(4) {
		if err := w.revive(); err != nil {
			return err
		}
	}
	w.settle()
	if err := w.sweep(); err != nil {
		return err
	}
	return w.compare()
}

// revive sends a packet of a flow that there is.
func (w *world) revive() error {
	flows := w.model.Flows()
	if w.chance(50) && len(w.out) > 0 {
		p, ok := w.answer(pick(w.dice, w.out))
		if ok && p.flags != fSYN {
			if _, known := flows[model.Tuple{Src: p.src, Dst: p.dst, Sport: p.sport, Dport: p.dport, Proto: p.proto}]; known {
				return w.emit(p, external)
			}
		}
		return nil
	}
	if len(w.sent) == 0 {
		return nil
	}
	p := pick(w.dice, w.sent)
	for _, f := range flows {
		if f.Inside == (model.Tuple{Src: p.src, Dst: p.dst, Sport: p.sport, Dport: p.dport, Proto: p.proto}) {
			p.flags = fACK
			return w.emit(p.talk, p.in)
		}
	}
	return nil
}

// someFlushed flushes flows, and sends some packets before they are swept.
func (w *world) someFlushed() error {
	if w.chance(70) {
		return nil
	}
	who := pick(w.dice, append(append([]netip.Addr{}, insiders...), remotes...))
	err := w.flush(func(in, out model.Tuple) bool { return in.Src == who || out.Src == who })
	if err != nil {
		return err
	}
	for range w.n(6) {
		if err := w.goOn(); err != nil {
			return err
		}
		if err := w.answerOutside(); err != nil {
			return err
		}
	}
	w.settle()
	if err := w.sweep(); err != nil {
		return err
	}
	return w.compare()
}
