package loader

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// FlowRate is a flow and what went through it each second between two looks.
type FlowRate struct {
	Flow
	PacketRate float64 `json:"packets_per_second"` // both directions
	ByteRate   float64 `json:"bytes_per_second"`
}

// FlowOrder says which flows are the heaviest.
type FlowOrder string

// The orders. Those by total count since the flow began.
const (
	ByBytes        FlowOrder = "bytes"
	ByPackets      FlowOrder = "packets"
	ByTotalBytes   FlowOrder = "total-bytes"
	ByTotalPackets FlowOrder = "total-packets"
)

// FlowMeter remembers what flows had counted at the last look.
type FlowMeter struct {
	flows map[tapgateTgTuple]*meteredFlow // by the outside half's key
	at    time.Time
	round uint64
}

type meteredFlow struct {
	created         uint32
	now, was        Count
	round           uint64
	packets, octets uint64 // since the last look
}

// NewFlowMeter knows of no flow: its first look gives no rates.
func NewFlowMeter() *FlowMeter { return &FlowMeter{flows: map[tapgateTgTuple]*meteredFlow{}} }

// HeaviestFlows gives the first n flows in this order.
func (g *Gateway) HeaviestFlows(m *FlowMeter, n int, order FlowOrder) ([]FlowRate, error) {
	if g.active.Gateway == nil {
		return nil, nil
	}
	now := time.Now()
	span := now.Sub(m.at).Seconds()
	first := m.round == 0
	m.at = now
	m.round++
	if err := m.read(g.maps[tapgateMapTgSessions]); err != nil {
		return nil, fmt.Errorf("read the flows: %w", err)
	}
	type entry struct {
		key    tapgateTgTuple
		weight uint64
		*meteredFlow
	}
	var all []entry
	for key, f := range m.flows {
		if f.round != m.round {
			delete(m.flows, key)
			continue
		}
		f.packets, f.octets = f.now.Packets-min(f.now.Packets, f.was.Packets), f.now.Bytes-min(f.now.Bytes, f.was.Bytes)
		f.was = f.now
		if w := f.weight(order); w > 0 && f.created > 0 {
			all = append(all, entry{key, w, f})
		}
	}
	slices.SortFunc(all, func(a, b entry) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.created, b.created))
	})
	timers, err := g.timersInForce()
	if err != nil {
		return nil, err
	}
	names, boot := g.flowNames(), bootTime()
	rates := []FlowRate{}
	for _, e := range all {
		if len(rates) == n {
			break
		}
		h, err := g.flowAt(e.key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue // it has just ended
		}
		if err != nil {
			return nil, fmt.Errorf("read the flows: %w", err)
		}
		r := FlowRate{Flow: h.describe(names, timers, boot)}
		if !first && span > 0 {
			r.PacketRate, r.ByteRate = float64(e.packets)/span, float64(e.octets)/span
		}
		rates = append(rates, r)
	}
	return rates, nil
}

func (f *meteredFlow) weight(order FlowOrder) uint64 {
	switch order {
	case ByPackets:
		return f.packets
	case ByTotalBytes:
		return f.now.Bytes
	case ByTotalPackets:
		return f.now.Packets
	default:
		return f.octets
	}
}

// read adds up the halves of every flow.
func (m *FlowMeter) read(sessions *ebpf.Map) error {
	return eachElement(sessions, func(key *tapgateTgTuple, h *tapgateTgSession) {
		anchor, outside := key, h.Half == uint8(tapgateTgHalfTG_HALF_OUTSIDE)
		if !outside {
			anchor = &h.Other
		} else if life := tapgateTgLife(h.Life); life != tapgateTgLifeTG_LIFE_LIVE && life != tapgateTgLifeTG_LIFE_NEW {
			return
		}
		f := m.flows[*anchor]
		if f == nil {
			f = &meteredFlow{}
			m.flows[*anchor] = f
		}
		if f.round != m.round {
			f.round, f.now = m.round, Count{}
		}
		if outside && f.created != h.Created {
			f.created, f.was = h.Created, Count{} // another flow in its place
		}
		f.now = f.now.plus(Count{Packets: h.Packets, Bytes: h.Bytes})
	})
}

// flowAt reads the flow with this outside half.
func (g *Gateway) flowAt(key tapgateTgTuple) (f flowHalves, err error) {
	sessions := g.maps[tapgateMapTgSessions]
	f.outKey = key
	if err := sessions.Lookup(key, &f.out); err != nil {
		return f, err
	}
	f.inKey = f.out.Other
	return f, sessions.Lookup(f.inKey, &f.in)
}
