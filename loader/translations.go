package loader

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// TranslationEvent says that a translation has started or ended, or was there when
// somebody began to look.
type TranslationEvent struct {
	Time    time.Time `json:"time"`  // of the start; for "end" and "present", of the look that found it
	Event   string    `json:"event"` // "start", "end", "present"
	Proto   string    `json:"proto"`
	Inside  string    `json:"inside"`  // as in Flow
	Outside string    `json:"outside"` // what stands for the inside endpoint outside
	Remote  string    `json:"remote"`
	Asked   string    `json:"asked,omitempty"`

	InsideZone  string    `json:"inside_zone"`
	OutsideZone string    `json:"outside_zone"`
	Origin      string    `json:"origin"`
	Rule        string    `json:"rule,omitempty"`
	Started     time.Time `json:"started"`
	*TranslationTotals
}

// TranslationTotals are what the last look at a translation has seen of it.
type TranslationTotals struct {
	Last       time.Time `json:"last"` // its last packet
	PacketsOut uint64    `json:"packets_out"`
	BytesOut   uint64    `json:"bytes_out"`
	PacketsIn  uint64    `json:"packets_in"`
	BytesIn    uint64    `json:"bytes_in"`
}

// Translations finds starts and ends by comparing the flow table with what it was
// at the look before: what is shorter than the time between two looks is not seen.
type Translations struct {
	known map[tapgateTgTuple]*translation // by the outside half's key
	round uint64
	names flowNames
}

// NewTranslations knows of none: the first look finds those that are present.
func NewTranslations() *Translations {
	return &Translations{known: map[tapgateTgTuple]*translation{}}
}

// translation is what an event needs, some 200 bytes.
type translation struct {
	inKey                 tapgateTgTuple
	created               uint32 // of the outside half: another one is another flow
	started               int64  // the same by the wall clock, in ms, once it is told
	told                  bool
	round                 uint64 // of the look that has seen it last
	insideZone, outerZone uint8
	origin                uint8
	rule                  uint32
	in, out               halfTotals
}

type halfTotals struct {
	created              uint32
	last, packets, bytes uint64
}

func totalsOf(h *tapgateTgSession) halfTotals {
	return halfTotals{created: h.Created, last: h.Last, packets: h.Packets, bytes: h.Bytes}
}

func isTranslated(in, out *tapgateTgTuple) bool {
	return in.Src != out.Dst || in.Dst != out.Src || in.Sport != out.Dport || in.Dport != out.Sport
}

// Gone tells the ends of all: the gateway is no longer there.
func (t *Translations) Gone() (events []TranslationEvent) {
	c := newEventClock(t.names)
	for key, f := range t.known {
		if f.told {
			events = append(events, c.event("end", key, f))
		}
	}
	clear(t.known)
	return inOrder(events)
}

// Translations tidies the flow table up and tells what has started and ended since
// the look before.
func (g *Gateway) Translations(t *Translations) (events []TranslationEvent, err error) {
	if g.active.Gateway == nil {
		return t.Gone(), nil
	}
	if err := g.Sweep(); err != nil {
		return nil, err
	}
	start := "start"
	if t.round == 0 {
		start = "present"
	}
	t.round++
	t.names = g.flowNames()
	c := newEventClock(t.names)
	err = eachElement(g.maps[tapgateMapTgSessions], func(key *tapgateTgTuple, h *tapgateTgSession) {
		if !isTranslated(key, &h.Other) {
			return
		}
		if h.Half == uint8(tapgateTgHalfTG_HALF_INSIDE) {
			t.seeInside(key, h)
		} else if ended := t.seeOutside(key, h); ended != nil {
			events = append(events, c.event("end", *key, ended))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the flows: %w", err)
	}
	for key, f := range t.known {
		switch here := f.round == t.round; {
		case here && !f.told:
			f.told, f.started = true, c.at(atCoarse(f.created, c.boot)).UnixMilli()
			events = append(events, c.event(start, key, f))
		case here:
		case f.told && g.stillLives(key, f.created): // the table moved while it was read
		default:
			if f.told {
				events = append(events, c.event("end", key, f))
			}
			delete(t.known, key)
		}
	}
	return inOrder(events), nil
}

// seeInside notes what the inside half has counted; which flow it belongs to, the
// outside half says.
func (t *Translations) seeInside(key *tapgateTgTuple, h *tapgateTgSession) {
	f := t.known[h.Other]
	if f == nil {
		f = &translation{inKey: *key}
		t.known[h.Other] = f
	}
	if !f.told || f.in.created == h.Created && f.inKey == *key {
		f.inKey, f.in = *key, totalsOf(h)
	}
}

// seeOutside notes that a flow is there. It returns the one that had its place.
func (t *Translations) seeOutside(key *tapgateTgTuple, h *tapgateTgSession) (ended *translation) {
	life, f := tapgateTgLife(h.Life), t.known[*key]
	switch {
	case life == tapgateTgLifeTG_LIFE_NEW, life == tapgateTgLifeTG_LIFE_LIVE:
	case life == tapgateTgLifeTG_LIFE_DYING && f != nil && f.told: // a packet may bring it back
	default:
		return nil
	}
	if f != nil && f.told && f.created != h.Created {
		ended, f = f, nil
	}
	if f == nil {
		f = &translation{inKey: h.Other}
		t.known[*key] = f
	}
	f.round, f.created, f.out = t.round, h.Created, totalsOf(h)
	f.insideZone, f.outerZone, f.origin, f.rule = h.InsideZone, h.OutsideZone, h.Origin, uint32(h.Rule)
	if !f.told {
		f.inKey = h.Other
	}
	return ended
}

// stillLives asks for one flow.
func (g *Gateway) stillLives(key tapgateTgTuple, created uint32) bool {
	var h tapgateTgSession
	err := g.maps[tapgateMapTgSessions].Lookup(key, &h)
	life := tapgateTgLife(h.Life)
	return !errors.Is(err, ebpf.ErrKeyNotExist) && h.Created == created &&
		(life == tapgateTgLifeTG_LIFE_NEW || life == tapgateTgLifeTG_LIFE_LIVE || life == tapgateTgLifeTG_LIFE_DYING)
}

// eventClock makes events, with times of the wall clock.
type eventClock struct {
	names flowNames
	now   time.Time
	boot  uint64
}

func newEventClock(names flowNames) eventClock {
	return eventClock{names, time.Now().UTC().Round(time.Millisecond), bootTime()}
}

func (c eventClock) at(boot uint64) time.Time {
	return c.now.Add(time.Duration(int64(boot) - int64(c.boot))).Round(time.Millisecond)
}

func (c eventClock) event(what string, key tapgateTgTuple, f *translation) TranslationEvent {
	e := TranslationEvent{
		Time: c.now, Event: what, Proto: flowProtoName(key.Proto),
		Inside: endpointText(f.inKey.Src, f.inKey.Sport), Outside: endpointText(key.Dst, key.Dport), Remote: endpointText(key.Src, key.Sport),
		InsideZone: c.names.zones[f.insideZone], OutsideZone: c.names.zones[f.outerZone], Origin: originName(f.origin), Rule: c.names.rules[f.rule],
		Started: time.UnixMilli(f.started).UTC(),
	}
	if asked := endpointText(f.inKey.Dst, f.inKey.Dport); asked != e.Remote {
		e.Asked = asked
	}
	switch what {
	case "start":
		e.Time = e.Started
	case "end":
		e.TranslationTotals = &TranslationTotals{
			Last: c.at(max(f.in.last, f.out.last, atCoarse(f.created, c.boot))), PacketsOut: f.in.packets, BytesOut: f.in.bytes, PacketsIn: f.out.packets, BytesIn: f.out.bytes,
		}
	}
	return e
}

// inOrder sorts by time: starts lie before the look that found them.
func inOrder(events []TranslationEvent) []TranslationEvent {
	slices.SortStableFunc(events, func(a, b TranslationEvent) int { return a.Time.Compare(b.Time) })
	return events
}
