package loader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
)

const (
	// translationsLook is how often the table is tidied up, so that what has expired
	// ends, and how long a new gateway may wait to be found.
	translationsLook = time.Second
	// translationsShare is how much longer than a look the time between two looks is.
	translationsShare = 9
)

// TranslationNews is what FollowTranslations tells.
type TranslationNews struct {
	Events []TranslationEvent
	// LostStarts and LostEnds are how many the programs could not tell since the news
	// before: those before them had not been read yet.
	LostStarts, LostEnds uint64
}

// FollowTranslations tells the start and end of every translation until ctx ends,
// and at its beginning, and when a gateway appears, which are present. The programs
// write them down themselves, none is too short; what comes faster than tell takes it
// is lost when the ring between them is full, and counted. After a caller that was
// killed it begins with what the programs have told meanwhile.
//
// tell is called by one goroutine at a time; trouble is told what goes wrong, and nil
// when it no longer does. There must be one at a time: the caller has to be the one
// for whom Follow works.
func FollowTranslations(ctx context.Context, opt Options, tell func(TranslationNews), trouble func(error)) {
	f := &translationFollower{opt: opt, tell: tell, maker: eventMaker{names: newKnownNames(opt)}}
	for {
		start := time.Now()
		trouble(f.look())
		if ctx.Err() != nil { // that was one last look
			trouble(f.leave())
			return
		}
		wait := time.NewTimer(max(translationsLook, translationsShare*time.Since(start)))
		select {
		case <-wait.C:
		case <-ctx.Done():
		}
		wait.Stop()
	}
}

type translationFollower struct {
	opt  Options
	ring *translationRing // nil: of no gateway

	// telling keeps events in order, and what the next ones hold.
	telling sync.Mutex
	tell    func(TranslationNews)
	maker   eventMaker
	behind  time.Time // since when the ring was never empty
}

// look finds the gateway that is there now, and tells what that means. Whoever is told
// may keep us: nobody else must wait for that, so the gateway is closed by then.
func (f *translationFollower) look() error {
	next, gone, err := f.find()
	if gone {
		return f.gone()
	}
	if next == nil || err != nil {
		return err
	}
	if f.ring != nil && f.ring.id != next.id {
		err = f.gone()
	}
	if f.ring != nil {
		err = errors.Join(err, f.ring.trouble())
		f.ring.close()
		f.ring = nil
	}
	return errors.Join(err, f.begin(next))
}

// find tidies up in the gateway whose ring is read. Of another one it returns the ring;
// gone says that there is none any more.
func (f *translationFollower) find() (next *translationRing, gone bool, err error) {
	g, err := Open(f.opt, ReadOnly)
	if errors.Is(err, ErrNotAttached) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer g.Close()
	live := g.live()
	if !slices.ContainsFunc(live, func(gen generation) bool { return gen.Gateway != nil }) {
		return nil, true, nil // it only taps, and no change waits that would keep flows of before
	}
	f.maker.names.know(live)
	id, err := mapID(g.maps[tapgateMapTgLog])
	if err != nil {
		return nil, false, err
	}
	if f.ring != nil && f.ring.id == id && f.ring.trouble() == nil {
		return nil, false, g.Sweep()
	}
	if next, err = newTranslationRing(g.maps, id); err != nil {
		return nil, false, fmt.Errorf("follow translations: %w", err)
	}
	return next, false, nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("look at a map: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// begin has the programs tell, and tells what is there already.
func (f *translationFollower) begin(r *translationRing) error {
	// What an earlier follower has left unread, and what comes while the table is read:
	// it is told with its own time, so it need not be told as present.
	present, err := translationsIn(r.sessions)
	if err != nil {
		r.close()
		return err
	}
	walked := bootTime()
	raw, err := r.unread(walked)
	if err != nil {
		r.close()
		return err
	}
	for i := range raw {
		forget(present, &raw[i].Flow)
	}
	f.ring = r
	f.deliver(r, raw, true)
	f.telling.Lock()
	f.maker.setClock()
	now := bootTime()
	var events []TranslationEvent
	for _, e := range present {
		e.Flow.When = now
		events = append(events, f.maker.event("present", e))
	}
	f.tell(TranslationNews{Events: events})
	f.telling.Unlock()
	// The start of a flow that was just being made may come behind the walk.
	late := walked + uint64(time.Second)
	r.read(func(raw []tapgateTgLogEnd, all bool) {
		if present != nil {
			raw = keepIf(raw, func(e tapgateTgLogEnd) bool {
				return tapgateTgLogWhat(e.Flow.What) != tapgateTgLogWhatTG_LOG_START || !forget(present, &e.Flow)
			})
			if bootTime() > late {
				present = nil
			}
		}
		f.deliver(r, raw, all)
	})
	return nil
}

// forget takes the flow out, and says whether it was in there.
func forget(present map[tapgateTgTuple]*tapgateTgLogEnd, f *tapgateTgLogStart) bool {
	p := present[f.Outside]
	if p == nil || p.Flow.Created != f.Created {
		return false
	}
	delete(present, f.Outside)
	return true
}

// deliver tells what the programs have told, and how much they could not: behind all
// that the full ring has held, unless that takes long.
func (f *translationFollower) deliver(r *translationRing, raw []tapgateTgLogEnd, all bool) {
	f.telling.Lock()
	defer f.telling.Unlock()
	f.maker.setClock()
	var news TranslationNews
	for i := range raw {
		what := "start"
		if tapgateTgLogWhat(raw[i].Flow.What) == tapgateTgLogWhatTG_LOG_END {
			what = "end"
		}
		news.Events = append(news.Events, f.maker.event(what, &raw[i]))
	}
	if f.behind.IsZero() {
		f.behind = time.Now()
	}
	told := func() {}
	if all || time.Since(f.behind) > translationsLook {
		news.LostStarts, news.LostEnds, told = r.lostSince()
		f.behind = time.Time{}
	}
	if len(news.Events) > 0 || news.LostStarts+news.LostEnds > 0 {
		f.tell(news)
		told()
	}
}

// leave has the programs tell no more, once all is told that they have.
func (f *translationFollower) leave() error {
	if f.ring == nil {
		return nil
	}
	err := f.ring.end()
	f.deliver(f.ring, nil, true) // what was lost of the last ones
	f.ring.close()
	f.ring = nil
	return err
}

// gone tells the ends of all: there is no gateway any more that translates.
func (f *translationFollower) gone() error {
	r := f.ring
	if r == nil {
		return nil
	}
	err := r.end()
	all, walkErr := translationsIn(r.sessions)
	now := bootTime()
	ends := make([]tapgateTgLogEnd, 0, len(all))
	for _, e := range all {
		e.Flow.When, e.Flow.What = now, uint8(tapgateTgLogWhatTG_LOG_END)
		ends = append(ends, *e)
	}
	f.deliver(r, ends, true)
	r.close()
	f.ring = nil
	return errors.Join(err, walkErr)
}
