package datapath

import (
	"encoding/binary"
	"fmt"
	"strings"

	"tapgate/test/model"
)

// One packet at one hook.

// reason is the one that was counted at an interface and direction since the last look there.
func (w *world) reason(key int) (string, error) {
	f := w.maps.structs["tg_member_count"]["reasons"]
	size := (int(w.maps.maps["tg_seen"].ValueSize()) + 7) &^ 7
	now := make([]byte, f.size)
	if _, err := w.stage.seen.ReadAt(now, int64(key*size)+int64(f.at)); err != nil {
		return "", err
	}
	before := w.counted[key]
	w.counted[key] = now
	if before == nil {
		return "", nil
	}
	var changed []string
	for i := range len(now) / 8 {
		n := binary.NativeEndian.Uint64(now[8*i:]) - binary.NativeEndian.Uint64(before[8*i:])
		for range n {
			changed = append(changed, w.maps.reasons[i])
		}
	}
	if len(changed) != 1 {
		return "", fmt.Errorf("counts %q for one packet", changed)
	}
	return changed[0], nil
}

// run gives a frame to a program: out is 0 for ingress.
func (w *world) run(in, out int, frame []byte) (did model.Outcome, err error) {
	name, ifindex, dir := "in", in, 0
	if out != 0 {
		name, ifindex, dir = "out", out, 1
	}
	const ingressIfindexAt, ifindexAt = 36, 40
	binary.NativeEndian.PutUint32(w.ctx[ifindexAt:], uint32(ifindex))
	binary.NativeEndian.PutUint32(w.ctx[ingressIfindexAt:], 0)
	if out != 0 {
		binary.NativeEndian.PutUint32(w.ctx[ingressIfindexAt:], uint32(in))
	}
	counter := w.slots[ifindex]*2 + dir
	if w.counted[counter] == nil {
		if _, err := w.reason(counter); err != nil {
			return did, err
		}
	}
	w.steps++
	w.clock += 1000
	w.stage.setWord(wordClock, uint64(w.clock))
	code, left, made, err := w.stage.run(name, w.ctx, frame, w.made, w.tcIndex)
	clear(w.ctx[cbAt:cbEnd])
	if err != nil {
		return did, fmt.Errorf("run %s: %w", name, err)
	}
	w.tcIndex = left
	ends, mappings, err := w.maps.ends()
	if err != nil {
		return did, err
	}
	did = model.Outcome{Frame: made, Tidied: ends != w.ends, Mappings: mappings, Now: w.ticks()}
	w.ends = ends
	if did.Reason, err = w.reason(counter); err != nil {
		return did, fmt.Errorf("tap_%s %w", name, err)
	}
	w.did[did.Reason]++
	want := next
	const redirect = 7
	switch {
	case strings.HasPrefix(did.Reason, "drop_"):
		did.Verdict, want = model.Drop, shot
		// What is refused for want of room or ports is answered, and so turned round.
		if did.Reason == "drop_no_port" || did.Reason == "drop_table_full" {
			return did, nil
		}
	case did.Reason == "pass_hairpin" || did.Reason == "pass_fast" && out == 0:
		did.Verdict, want = model.Redirect, redirect
	}
	if code != want {
		return did, fmt.Errorf("tap_%s returns %d for %s", name, code, did.Reason)
	}
	return did, nil
}

// ticks is the time as the programs have it from the ticks of the clock; 0 if they
// have not asked in this one.
func (w *world) ticks() int64 {
	s := w.maps.structs["tg_scratch"]
	b := make([]byte, s["tick"].at+4)
	if _, err := w.stage.scratch.ReadAt(b, 0); err != nil || s["tick"].read(b) != uint64(uint32(w.clock>>tickShift)) {
		return 0
	}
	return int64(s["now"].read(b))
}

// step runs one packet at one hook through both. The frame of the outcome is good
// until the next step.
func (w *world) step(in, out int, frame []byte) (model.Outcome, error) {
	w.frame = append(w.frame[:0], frame...) // it may be what the last step has made
	frame = w.frame
	did, err := w.run(in, out, frame)
	if w.noting {
		w.note("%s: %s -> %s %s %s", hookName(in, out), show(frame), did.Verdict, did.Reason, showAfter(did))
	}
	if err != nil {
		return did, err
	}
	if err := w.model.Step(w.clock, in, out, frame, did); err != nil {
		return did, fmt.Errorf("%s of %s: %w\n(the frame: %x)", hookName(in, out), show(frame), err, frame)
	}
	if w.careful {
		err = w.compare()
	}
	return did, err
}
