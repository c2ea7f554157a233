package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
)

// User space never changes a flow: it asks a program to, which does it as it would
// for a packet, under the same locks.

// sweepTurns is TG_SWEEP_TURNS of headers/order.h.
const sweepTurns = 32

// sweepLimit bounds how long one command tidies up: the data plane does it by
// itself as new flows come.
const sweepLimit = 5 * time.Second

// FlushFlows ends the flows that filter selects and says how many. Their packets
// find no flow from then on.
func (g *Gateway) FlushFlows(filter FlowFilter) (int, error) {
	list, err := g.flowsOf(filter)
	if err != nil {
		return 0, err
	}
	return g.flush(list)
}

// flushTo ends the flows that are translated to an address outside.
func (g *Gateway) flushTo(addrs []netip.Addr) (int, error) {
	lost := map[[16]byte]bool{}
	for _, a := range addrs {
		lost[a.As16()] = true
	}
	list, err := g.readFlows(func(in, out *tapgateTgTuple, _ *tapgateTgSession) bool {
		return lost[out.Dst] && in.Src != out.Dst || lost[in.Dst] && in.Dst != out.Src
	})
	if err != nil {
		return 0, err
	}
	return g.flush(list)
}

func (g *Gateway) flush(list []flowHalves) (ended int, err error) {
	for i := range list {
		ret, err := g.order(tapgateProgTapgateFlush, list[i].outKey, 1)
		if err != nil {
			return ended, fmt.Errorf("end a flow: %w", err)
		}
		ended += int(ret)
	}
	if ended == 0 {
		return 0, nil
	}
	died := bootTime()
	if err := g.Sweep(); err != nil {
		return ended, err
	}
	// Their endpoints are free as soon as no program holds them, and not only after the
	// second that the data plane itself waits.
	if err := g.waitForPrograms(); err != nil {
		return ended, err
	}
	return ended, g.bury(died)
}

// bury deletes the flows that have died before this time (boot time, ns), and that no
// program holds any more.
func (g *Gateway) bury(died uint64) error {
	for end := time.Now().Add(sweepLimit); time.Now().Before(end); {
		looked, err := g.order(tapgateProgTapgateSweep, died, 1)
		if err != nil {
			return fmt.Errorf("sweep the flow table: %w", err)
		}
		if looked == 0 {
			break
		}
	}
	return nil
}

// Sweep goes through the table once: what has expired is retired, and what was
// retired a second ago is deleted.
func (g *Gateway) Sweep() error {
	var table tapgateTgTableState
	if err := g.maps[tapgateMapTgTable].Lookup(uint32(0), &table); err != nil {
		return fmt.Errorf("read the flow table's account: %w", err)
	}
	// In small steps, since each one holds its CPU.
	const step = 32
	end := time.Now().Add(sweepLimit)
	for turns := max(table.Flows, table.Bindings)/sweepTurns + 1; turns > 0 && time.Now().Before(end); turns -= min(turns, step) {
		looked, err := g.order(tapgateProgTapgateSweep, nil, min(turns, step))
		if err != nil {
			return fmt.Errorf("sweep the flow table: %w", err)
		}
		if looked == 0 {
			break
		}
	}
	return nil
}

// order runs a program on what is asked of it (a struct, or nil), behind an empty
// Ethernet header.
func (g *Gateway) order(program string, what any, times uint32) (uint32, error) {
	frame := make([]byte, 14)
	if what != nil {
		var err error
		if frame, err = binary.Append(frame, binary.NativeEndian, what); err != nil {
			return 0, fmt.Errorf("%s: %w", program, err)
		}
	}
	ret, err := g.programs[program].Run(&ebpf.RunOptions{Data: frame, Repeat: times})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", program, err)
	}
	return ret, nil
}
