package loader

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

const (
	// translationRingSize holds some 15,000 starts and their ends. The memory is taken
	// while somebody logs, and when he was killed, until the next one ends.
	translationRingSize = 4 << 20
	// translationGather is how long to wait for what comes with an event: a burst is
	// told at once, and the kernel need not wake us for each.
	translationGather = 20 * time.Millisecond
	// translationBatch bounds what is told at once.
	translationBatch = 4096
)

// translationRing is where the programs of one gateway tell starts and ends. It keeps
// what it needs open, also when the gateway's state is removed.
type translationRing struct {
	id                  ebpf.MapID // of log
	log, lost, sessions *ebpf.Map
	ring                *ebpf.Map
	reader              *ringbuf.Reader
	running             sync.WaitGroup

	mu     sync.Mutex
	failed error // of reading, once
}

// newTranslationRing finds the ring of an earlier reader that was killed, or makes one.
func newTranslationRing(maps map[string]*ebpf.Map, id ebpf.MapID) (r *translationRing, err error) {
	r = &translationRing{id: id}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	for name, to := range map[string]**ebpf.Map{tapgateMapTgLog: &r.log, tapgateMapTgLogLost: &r.lost, tapgateMapTgSessions: &r.sessions} {
		if *to, err = maps[name].Clone(); err != nil {
			return nil, err
		}
	}
	err = r.log.Lookup(uint32(0), &r.ring)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = r.make()
	}
	if err != nil {
		return nil, err
	}
	r.reader, err = ringbuf.NewReader(r.ring)
	return r, err
}

func (r *translationRing) make() error {
	spec, err := compiled()
	if err != nil {
		return err
	}
	inner := spec.Maps[tapgateMapTgLog].InnerMap.Copy()
	inner.MaxEntries = translationRingSize
	if r.ring, err = ebpf.NewMap(inner); err != nil {
		return fmt.Errorf("make a ring: %w", err)
	}
	return r.log.Put(uint32(0), r.ring)
}

// take reads one event; os.ErrDeadlineExceeded at the deadline, ringbuf.ErrFlushed
// when all was read at the end.
func (r *translationRing) take(rec *ringbuf.Record, deadline time.Time) (tapgateTgLogEnd, error) {
	r.reader.SetDeadline(deadline)
	if err := r.reader.ReadInto(rec); err != nil {
		return tapgateTgLogEnd{}, err
	}
	return decodeTranslation(rec.RawSample)
}

// unread is what is in the ring, up to that boot time.
func (r *translationRing) unread(until uint64) (all []tapgateTgLogEnd, err error) {
	var rec ringbuf.Record
	for {
		e, err := r.take(&rec, time.Now())
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if all = append(all, e); e.Flow.When > until {
			return all, nil
		}
	}
}

// read calls f with what comes, until end or close, and says whether that was all
// that there was.
func (r *translationRing) read(f func(list []tapgateTgLogEnd, all bool)) {
	r.running.Go(func() {
		err := r.readAll(f)
		if !errors.Is(err, ringbuf.ErrFlushed) && !errors.Is(err, ringbuf.ErrClosed) {
			r.mu.Lock()
			r.failed = fmt.Errorf("read the programs' events: %w", err)
			r.mu.Unlock()
		}
	})
}

func (r *translationRing) readAll(f func(list []tapgateTgLogEnd, all bool)) error {
	var rec ringbuf.Record
	var batch []tapgateTgLogEnd
	for {
		first, err := r.take(&rec, time.Time{})
		if err != nil {
			return err
		}
		time.Sleep(translationGather)
		for batch = append(batch[:0], first); len(batch) < translationBatch; {
			var next tapgateTgLogEnd
			if next, err = r.take(&rec, time.Now()); err != nil {
				break
			}
			batch = append(batch, next)
		}
		f(batch, err != nil)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// trouble is why nothing is read any more.
func (r *translationRing) trouble() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// lostSince is what the programs could not tell and nobody was told, and told writes down that this was
// told: also for whoever follows next.
func (r *translationRing) lostSince() (starts, ends uint64, told func()) {
	var now, was tapgateTgLost
	if errors.Join(r.lost.Lookup(uint32(lostByPrograms), &now), r.lost.Lookup(uint32(lostTold), &was)) != nil {
		return 0, 0, func() {}
	}
	return now.Starts - was.Starts, now.Ends - was.Ends, func() { _ = r.lost.Put(uint32(lostTold), now) }
}

// Elements of tg_log_lost: TG_LOST_BY_PROGRAMS and TG_LOST_TOLD of headers/abi_log.h.
const lostByPrograms, lostTold = 0, 1

// dropTranslations has the programs tell no more to a reader that was killed, on behalf
// of one who does not log. What was not read counts as lost: whoever logs next says so.
func (g *Gateway) dropTranslations() error {
	var ring *ebpf.Map
	err := g.maps[tapgateMapTgLog].Lookup(uint32(0), &ring)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look whether flows are logged: %w", err)
	}
	defer ring.Close()
	r, err := newTranslationRing(g.maps, 0)
	if err != nil {
		return fmt.Errorf("end the log of flows: %w", err)
	}
	defer r.close()
	var unread tapgateTgLost
	r.read(func(list []tapgateTgLogEnd, _ bool) {
		for i := range list {
			if tapgateTgLogWhat(list[i].Flow.What) == tapgateTgLogWhatTG_LOG_START {
				unread.Starts++
			} else {
				unread.Ends++
			}
		}
	})
	err = errors.Join(r.end(), r.trouble())
	// Nobody else counts any more: no program has the ring.
	var lost tapgateTgLost
	if err == nil {
		err = r.lost.Lookup(uint32(lostByPrograms), &lost)
	}
	if err == nil {
		lost.Starts, lost.Ends = lost.Starts+unread.Starts, lost.Ends+unread.Ends
		err = r.lost.Put(uint32(lostByPrograms), lost)
	}
	if err != nil {
		return fmt.Errorf("end the log of flows: %w", err)
	}
	return nil
}

// end has the programs tell no more, and returns when all is read that they have told:
// taking the ring out waits for those that run.
func (r *translationRing) end() error {
	err := r.log.Delete(uint32(0))
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	err = errors.Join(err, r.reader.Flush())
	r.running.Wait()
	return err
}

func (r *translationRing) close() {
	if r.reader != nil {
		_ = r.reader.Close()
	}
	r.running.Wait()
	for _, m := range []*ebpf.Map{r.log, r.lost, r.sessions, r.ring} {
		if m != nil {
			_ = m.Close()
		}
	}
}
