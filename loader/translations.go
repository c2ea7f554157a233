package loader

import (
	"fmt"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
)

// TranslationEvent says that a translation has started or ended, or was there when
// somebody began to look.
type TranslationEvent struct {
	Time    time.Time `json:"time"`  // of the packet that began it; "end": when it left the table; "present": of the look
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
	Started     time.Time `json:"started"` // to 17 ms, and the same in all events of one translation
	*TranslationTotals
}

// TranslationTotals are what there is to say of a translation that has ended.
type TranslationTotals struct {
	Last       time.Time `json:"last"` // its last packet
	PacketsOut uint64    `json:"packets_out"`
	BytesOut   uint64    `json:"bytes_out"`
	PacketsIn  uint64    `json:"packets_in"`
	BytesIn    uint64    `json:"bytes_in"`
}

// eventMaker makes events of what programs tell, with names, and with times of the
// wall clock.
type eventMaker struct {
	names *knownNames
	// base is the wall clock's time of boot time 0, ns since 1970.
	base int64
}

// clockSteady is how far the wall clock may move, since it is steered, before it
// counts as set: a translation has the same start in both its lines until then.
const clockSteady = 20 * time.Millisecond

func (m *eventMaker) setClock() {
	base := time.Now().UnixNano() - int64(bootTime())
	if d := time.Duration(base - m.base); d > clockSteady || d < -clockSteady {
		m.base = base
	}
}

func (m *eventMaker) at(boot uint64) time.Time {
	return time.Unix(0, m.base+int64(boot)).UTC().Round(time.Millisecond)
}

func (m *eventMaker) event(what string, e *tapgateTgLogEnd) TranslationEvent {
	f := &e.Flow
	names := m.names.names(f.Rule)
	event := TranslationEvent{
		Time: m.at(f.When), Event: what, Proto: flowProtoName(f.Inside.Proto),
		Inside: endpointText(f.Inside.Src, f.Inside.Sport), Outside: endpointText(f.Outside.Dst, f.Outside.Dport),
		Remote:     endpointText(f.Outside.Src, f.Outside.Sport),
		InsideZone: names.zones[f.InsideZone], OutsideZone: names.zones[f.OutsideZone], Origin: originName(f.Origin), Rule: names.rules[f.Rule],
		Started: m.at(atCoarse(f.Created, f.When)),
	}
	if asked := endpointText(f.Inside.Dst, f.Inside.Dport); asked != event.Remote {
		event.Asked = asked
	}
	if what == "end" {
		event.TranslationTotals = &TranslationTotals{
			Last: m.at(max(e.Last, atCoarse(f.Created, f.When))), PacketsOut: e.PacketsOut, BytesOut: e.BytesOut, PacketsIn: e.PacketsIn, BytesIn: e.BytesIn,
		}
	}
	return event
}

// decodeTranslation reads what programs tell: a start is the first part of an end. It
// is copied as it is, since package binary takes longer than all the rest.
func decodeTranslation(raw []byte) (e tapgateTgLogEnd, err error) {
	if len(raw) != int(unsafe.Sizeof(e)) && len(raw) != int(unsafe.Sizeof(e.Flow)) {
		return e, fmt.Errorf("an event of %d bytes: it is not of this tapgate's programs", len(raw))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)), raw)
	return e, nil
}

func isTranslated(in, out *tapgateTgTuple) bool {
	return in.Src != out.Dst || in.Dst != out.Src || in.Sport != out.Dport || in.Dport != out.Sport
}

// translationsIn reads the translations that have started and of which no end has
// been told, with what their halves have counted.
func translationsIn(sessions *ebpf.Map) (map[tapgateTgTuple]*tapgateTgLogEnd, error) {
	all := map[tapgateTgTuple]*tapgateTgLogEnd{} // by the outside half's key
	of := func(key tapgateTgTuple) *tapgateTgLogEnd {
		if all[key] == nil {
			all[key] = &tapgateTgLogEnd{}
		}
		return all[key]
	}
	err := eachElement(sessions, func(key *tapgateTgTuple, h *tapgateTgSession) {
		if !isTranslated(key, &h.Other) {
			return
		}
		if h.Half == uint8(tapgateTgHalfTG_HALF_INSIDE) {
			e := of(h.Other)
			e.Last, e.PacketsOut, e.BytesOut = max(e.Last, h.Last), h.Packets, h.Bytes
			return
		}
		if tapgateTgLife(h.Life) == tapgateTgLifeTG_LIFE_DELETED || h.Flags&flowStillborn != 0 {
			return
		}
		e := of(*key)
		e.Last, e.PacketsIn, e.BytesIn = max(e.Last, h.Last), h.Packets, h.Bytes
		e.Flow = tapgateTgLogStart{
			Created: h.Created, Inside: h.Other, Outside: *key,
			Rule: uint32(h.Rule), What: uint8(tapgateTgLogWhatTG_LOG_START), Origin: h.Origin, InsideZone: h.InsideZone, OutsideZone: h.OutsideZone,
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the flows: %w", err)
	}
	for key, e := range all {
		if e.Flow.What == 0 { // its outside half is not there, or not to be told
			delete(all, key)
		}
	}
	return all, nil
}
