package loader

import (
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// enumNames are the names of an enum of headers/abi.h by value, lower case and
// without prefix, so that user space has no list of its own to forget.
func enumNames(enum, prefix string) func() []string {
	return sync.OnceValue(func() []string {
		spec, err := compiled()
		if err != nil {
			panic(err) // the object is part of this binary
		}
		var e *btf.Enum
		if err := spec.Types.TypeByName(enum, &e); err != nil {
			panic(err)
		}
		names := make([]string, len(e.Values))
		for _, v := range e.Values {
			names[v.Value] = strings.ToLower(strings.TrimPrefix(v.Name, prefix))
		}
		return names[:len(names)-1] // the last one is the count
	})
}

var (
	skipNames   = enumNames("tg_skip", "TG_SKIP_")
	reasonNames = enumNames("tg_reason", "TG_")
)

// counterKey is number * TG_DIRECTIONS + direction.
func counterKey(number uint32, d tapgateTgDirection) uint32 {
	return number*uint32(tapgateTgDirectionTG_DIRECTIONS) + uint32(d)
}

func sumLedgers(m *ebpf.Map, number uint32, d tapgateTgDirection) (sum tapgateTgLedger, err error) {
	var cpus []tapgateTgLedger
	if err := m.Lookup(counterKey(number, d), &cpus); err != nil {
		return sum, fmt.Errorf("read counters: %w", err)
	}
	for _, l := range cpus {
		addCount(&sum.Matched, l.Matched)
		addCount(&sum.Copied, l.Copied)
		addCount(&sum.Refused, l.Refused)
		for i := range l.Skipped {
			addCount(&sum.Skipped[i], l.Skipped[i])
		}
	}
	return sum, nil
}

func addCount(to *tapgateTgCount, n tapgateTgCount) {
	to.Packets += n.Packets
	to.Bytes += n.Bytes
}

func countOf(c tapgateTgCount) Count { return Count{Packets: c.Packets, Bytes: c.Bytes} }

func ledgerOf(l tapgateTgLedger) Ledger {
	out := Ledger{Matched: countOf(l.Matched), Copied: countOf(l.Copied), Refused: countOf(l.Refused), Skipped: map[string]Count{}}
	for i, name := range skipNames() {
		out.Skipped[name] = countOf(l.Skipped[i])
	}
	return out
}

func (l Ledger) plus(o Ledger) Ledger {
	sum := Ledger{Matched: l.Matched.plus(o.Matched), Copied: l.Copied.plus(o.Copied), Refused: l.Refused.plus(o.Refused), Skipped: map[string]Count{}}
	for name, c := range l.Skipped {
		sum.Skipped[name] = c.plus(o.Skipped[name])
	}
	return sum
}

func (c Count) plus(o Count) Count {
	return Count{Packets: c.Packets + o.Packets, Bytes: c.Bytes + o.Bytes}
}

// ledgersOf reads both directions of a mirror or target.
func ledgersOf(m *ebpf.Map, number uint32) (ingress, egress Ledger, err error) {
	in, err := sumLedgers(m, number, tapgateTgDirectionTG_INGRESS)
	if err != nil {
		return ingress, egress, err
	}
	out, err := sumLedgers(m, number, tapgateTgDirectionTG_EGRESS)
	return ledgerOf(in), ledgerOf(out), err
}

func (g *Gateway) directionStatus(slot uint32, d tapgateTgDirection) (*DirectionStatus, error) {
	var cpus []tapgateTgMemberCount
	if err := g.maps[tapgateMapTgSeen].Lookup(counterKey(slot, d), &cpus); err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	out := &DirectionStatus{Reasons: map[string]uint64{}}
	for _, c := range cpus {
		out.Seen = out.Seen.plus(countOf(c.Seen))
		out.Duplicates += c.Duplicates
		for i, name := range reasonNames() {
			if c.Reasons[i] > 0 {
				out.Reasons[name] += c.Reasons[i]
			}
		}
	}
	return out, nil
}

// clearCounters sets what fresh numbers count to zero.
func (g *Gateway) clearCounters(p *plan) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	clear := func(m *ebpf.Map, numbers []uint32, zero any) error {
		for _, n := range numbers {
			for d := range tapgateTgDirectionTG_DIRECTIONS {
				if err := m.Put(counterKey(n, d), zero); err != nil {
					return fmt.Errorf("clear counters: %w", err)
				}
			}
		}
		return nil
	}
	ledgers := make([]tapgateTgLedger, cpus)
	if err := clear(g.maps[tapgateMapTgMirrorLed], p.freshMirrors, ledgers); err != nil {
		return err
	}
	if err := clear(g.maps[tapgateMapTgTargetLed], p.freshTargets, ledgers); err != nil {
		return err
	}
	if err := clear(g.maps[tapgateMapTgSeen], p.freshSlots, make([]tapgateTgMemberCount, cpus)); err != nil {
		return err
	}
	for _, n := range p.gateway.freshHits {
		if err := g.maps[tapgateMapTgHits].Put(n, make([]tapgateTgHit, cpus)); err != nil {
			return fmt.Errorf("clear counters: %w", err)
		}
	}
	for _, n := range p.freshNeighs {
		if err := g.maps[tapgateMapTgNeighs].Put(n, tapgateTgNeigh{}); err != nil {
			return fmt.Errorf("clear next hop: %w", err)
		}
	}
	return nil
}
