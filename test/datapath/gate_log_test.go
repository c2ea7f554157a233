package datapath

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"tapgate/test/model"
)

// What the programs tell of translations, held against the flow table.

// flowLog reads tg_log of a stage.
type flowLog struct {
	w       *world
	reader  *ringbuf.Reader
	fields  map[string]field // of a start, which is the beginning of an end
	ends    map[string]field
	whats   map[string]uint64
	running map[model.Tuple]toldFlow // told the start and not the end, by the outside half's key
	starts  int
	stopped int
	// stillborn is how often a flow was met whose making had failed.
	stillborn int
}

// TG_FLOW_STILLBORN of headers/abi_gate.h.
const stillborn = 8

// toldFlow is what both events of a flow say.
type toldFlow struct {
	inside, outside                          model.Tuple
	created                                  uint64
	rule, origin, insideZone, outsideZone    uint64
	packetsOut, bytesOut, packetsIn, bytesIn uint64 // as the table has had them last
}

// newFlowLog has the programs of a world tell into a ring of that size.
func newFlowLog(t *testing.T, w *world, size uint32) *flowLog {
	t.Helper()
	l := &flowLog{w: w, running: map[model.Tuple]toldFlow{}}
	spec := w.stage.spec.Maps["tg_log"].InnerMap.Copy()
	spec.MaxEntries = size
	ring, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	if err := w.stage.maps["tg_log"].Put(uint32(0), ring); err != nil {
		t.Fatal(err)
	}
	if l.reader, err = ringbuf.NewReader(ring); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.reader.Close() })
	var err1, err2, err3 error
	l.fields, err1 = fieldsOf(w.stage.spec.Types, "tg_log_start")
	l.ends, err2 = fieldsOf(w.stage.spec.Types, "tg_log_end")
	l.whats, err3 = enumOf(w.stage.spec.Types, "tg_log_what", "TG_LOG_")
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return l
}

func translated(inside, outside model.Tuple) bool {
	return inside.Src != outside.Dst || inside.Dst != outside.Src || inside.Sport != outside.Dport || inside.Dport != outside.Sport
}

// events calls f with all that was told since the last time.
func (l *flowLog) events(f func(raw []byte) error) error {
	var rec ringbuf.Record
	l.reader.SetDeadline(time.Now())
	for {
		err := l.reader.ReadInto(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err == nil {
			err = f(rec.RawSample)
		}
		if err != nil {
			return err
		}
	}
}

// take puts an event where it belongs.
func (l *flowLog) take(raw []byte) error {
	read := func(name string) uint64 { return l.fields[name].read(raw) }
	e := toldFlow{
		inside: l.w.maps.tuple(l.fields["inside"].bytes(raw)), outside: l.w.maps.tuple(l.fields["outside"].bytes(raw)), created: read("created"),
		rule: read("rule"), origin: read("origin"), insideZone: read("inside_zone"), outsideZone: read("outside_zone"),
	}
	was, runs := l.running[e.outside]
	when := read("when")
	switch what := read("what"); {
	case !translated(e.inside, e.outside):
		return fmt.Errorf("told of what is not translated: %+v", e)
	case int32(uint32(when>>24)-uint32(e.created)) < 0, when > uint64(l.w.clock):
		return fmt.Errorf("told at %d, now is %d: %+v", when, l.w.clock, e)
	case what == l.whats["start"]:
		if runs || when>>24 != e.created {
			return fmt.Errorf("a start at %d of what runs already, %v: %+v", when, runs, e)
		}
		l.running[e.outside] = e
		l.starts++
	case what == l.whats["end"]:
		same := was
		same.packetsOut, same.bytesOut, same.packetsIn, same.bytesIn = 0, 0, 0, 0
		if !runs || same != e {
			return fmt.Errorf("an end of another flow than has started: %+v, started was %+v", e, was)
		}
		for name, least := range map[string]uint64{
			"packets_out": was.packetsOut, "bytes_out": was.bytesOut, "packets_in": was.packetsIn, "bytes_in": was.bytesIn,
		} {
			if n := l.ends[name].read(raw); n < least {
				return fmt.Errorf("%s is %d at the end, and was %d: %+v", name, n, least, e)
			}
		}
		delete(l.running, e.outside)
		l.stopped++
	default:
		return fmt.Errorf("event %d: %+v", what, e)
	}
	return nil
}

// check holds what was told against the table: what is there runs, and what is not does not.
func (l *flowLog) check() error {
	if err := l.events(l.take); err != nil {
		return err
	}
	all, err := l.w.maps.sessions()
	if err != nil {
		return err
	}
	for key, out := range all {
		if out.half != 1 || !translated(out.other, key) {
			continue
		}
		f, runs := l.running[key]
		if born := out.flags&stillborn == 0; runs != born {
			return fmt.Errorf("a start was told: %v, of %v", runs, out)
		}
		if !runs {
			l.stillborn++
			continue
		}
		f.packetsIn, f.bytesIn = out.packets, out.bytes
		if in, ok := all[out.other]; ok {
			f.packetsOut, f.bytesOut = in.packets, in.bytes
		}
		l.running[key] = f
	}
	for key, f := range l.running {
		if _, there := all[key]; !there {
			return fmt.Errorf("no end was told of %+v", f)
		}
	}
	return nil
}

// Each flow that is translated has one start and one end, in order, whatever happens,
// and no other has any.
func TestTranslationsRandom(t *testing.T) {
	requireIngressIfindex(t)
	w := newTestWorld(t, newGateway(t))
	l := newFlowLog(t, w, 1<<20)
	for seed := uint64(1); seed <= 6; seed++ {
		w.dice = &dice{rnd: rand.New(rand.NewPCG(seed, 0))}
		w.stage.setWord(wordDice, seed)
		err := w.gateway.Gateway.Do(func() error {
			if err := errors.Join(w.reset(), func() error { w.focus(); return w.apply() }()); err != nil {
				return err
			}
			for i := range 1500 {
				if err := w.next(); err != nil {
					return err
				}
				if i%10 != 0 {
					continue
				}
				if err := l.check(); err != nil {
					return err
				}
			}
			return errors.Join(w.expireAll(), l.check())
		})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	if l.starts < 500 || l.starts != l.stopped || len(l.running) > 0 || l.stillborn == 0 {
		t.Errorf("%d starts, %d ends, %d run, %d were never born", l.starts, l.stopped, len(l.running), l.stillborn)
	}
	t.Logf("%d starts and ends of %d packets", l.starts, w.packets)
}

// What a full ring has no room for is counted, and so is nothing else; without a ring
// nothing is told and nothing is missed.
func TestTranslationsLost(t *testing.T) {
	requireIngressIfindex(t)
	w := newTestWorld(t, newGateway(t))
	l := newFlowLog(t, w, uint32(os.Getpagesize()))
	lost := func() (starts, ends uint64) {
		t.Helper()
		s, err := fieldsOf(w.stage.spec.Types, "tg_lost")
		if err != nil {
			t.Fatal(err)
		}
		v, err := w.stage.maps["tg_log_lost"].LookupBytes(uint32(0))
		if err != nil {
			t.Fatal(err)
		}
		return s["starts"].read(v), s["ends"].read(v)
	}
	// The same flows each time.
	run := func() (created uint64) {
		t.Helper()
		before, err := w.maps.maps["tg_table"].LookupBytes(uint32(0))
		if err != nil {
			t.Fatal(err)
		}
		if err := (play{seed: 3, packets: 1500}).run(w); err != nil {
			t.Fatal(err)
		}
		after, err := w.maps.maps["tg_table"].LookupBytes(uint32(0))
		if err != nil {
			t.Fatal(err)
		}
		f := w.maps.structs["tg_table_state"]["created"]
		return f.read(after) - f.read(before)
	}
	run()
	told := map[uint64]uint64{}
	if err := l.events(func(raw []byte) error { told[l.fields["what"].read(raw)]++; return nil }); err != nil {
		t.Fatal(err)
	}
	starts, ends := lost()
	if told[l.whats["start"]] == 0 || starts == 0 || ends == 0 || told[l.whats["start"]]+starts != told[l.whats["end"]]+ends {
		t.Errorf("told %v, lost %d starts and %d ends", told, starts, ends)
	}
	if err := w.stage.maps["tg_log"].Delete(uint32(0)); err != nil {
		t.Fatal(err)
	}
	if run() == 0 {
		t.Error("no flow was made")
	}
	if s, e := lost(); s != starts || e != ends {
		t.Errorf("without a ring %d and %d more are lost", s-starts, e-ends)
	}
	if err := l.events(func(raw []byte) error { return fmt.Errorf("told without a ring: %x", raw) }); err != nil {
		t.Error(err)
	}
}
