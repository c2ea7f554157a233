package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Of headers/neigh.h.
const (
	neighUnansweredMax = 5
	macValid           = 1 << 48
)

// askWait is how long an apply waits for next hops to answer. Copies to one
// that does not are skipped as unresolved, and asking goes on without us.
const askWait = 500 * time.Millisecond

// resolveNexthops asks for the next hops of a generation that is not in force
// yet, so that its first copies are delivered. It returns warnings only.
func (g *Gateway) resolveNexthops(p *plan) (warnings []string) {
	waiting := map[uint32]neighRecord{}
	for _, n := range p.record.Neighs {
		waiting[n.Number] = n
	}
	for number, t := range p.targets {
		if _, ok := waiting[t.Neigh]; ok && t.Kind != tapgateTgTargetKindTG_TARGET_L2 && t.Kind != tapgateTgTargetKindTG_TARGET_L2MAC {
			if err := g.ask(1-g.slot, number); err != nil {
				warnings = append(warnings, err.Error())
			}
		}
	}
	if g.again {
		return warnings // somebody's traffic waits for this
	}
	for end := time.Now().Add(askWait); len(waiting) > 0 && time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for number := range waiting {
			var n tapgateTgNeigh
			if err := g.maps[tapgateMapTgNeighs].Lookup(number, &n); err != nil || n.Mac&macValid != 0 {
				delete(waiting, number)
			}
		}
	}
	for _, n := range waiting {
		warnings = append(warnings, fmt.Sprintf("next hop %s does not answer yet: copies to it are skipped as unresolved until it does", n.Address))
	}
	return warnings
}

// ask makes the data plane ask for a target's next hop.
func (g *Gateway) ask(generation, number uint32) error {
	return askBy(g.programs[tapgateProgTapgateAsk], generation, number)
}

func askBy(program *ebpf.Program, generation, number uint32) error {
	// struct __sk_buff as far as cb; all but cb[TG_CB_WHERE] stays zero.
	const cb, size = 48, 68
	ctx := make([]byte, size)
	binary.NativeEndian.PutUint32(ctx[cb+4*4:], generation<<24|number)
	frame := make([]byte, 64)
	binary.BigEndian.PutUint16(frame[12:], 0x88b5) // IEEE 802: local experiments
	_, err := program.Run(&ebpf.RunOptions{Data: frame, Context: ctx})
	if err != nil {
		return fmt.Errorf("ask for next hop: %w", err)
	}
	return nil
}

// askEvery is how often a next hop is asked for while an agent runs: one that was replaced
// without a word is known as soon as that. The data plane itself asks less often.
const askEvery = 500 * time.Millisecond

// asker asks for the next hops of what is in force. It holds nothing of the state open.
type asker struct {
	dir     string
	slot    uint32
	numbers []uint32 // a target of each next hop
}

// know has the next hops of what is in force asked for.
func (a *asker) know(g *Gateway) {
	var numbers []uint32
	seen := map[uint32]bool{}
	for _, m := range g.active.Mirrors {
		for _, t := range m.Targets {
			if t.Neigh != nil && !seen[*t.Neigh] {
				seen[*t.Neigh] = true
				numbers = append(numbers, t.Number)
			}
		}
	}
	a.slot, a.numbers = g.slot, numbers
}

// ask asks for all of them, and says whether what is in force is still what it knows:
// where there is no delivery any more the questions would get out unfinished. What cannot
// be asked just now, since somebody changes the state, is asked for the next time.
func (a *asker) ask() (current bool, err error) {
	lock, err := lockDir(a.dir, false, 0)
	if errors.Is(err, ErrBusy) || errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return true, err
	}
	defer lock.unlock()
	control, err := ebpf.LoadPinnedMap(filepath.Join(a.dir, mapsDir, tapgateMapTgControl), nil)
	if err != nil {
		return true, fmt.Errorf("open what tells which generation is in force: %w", err)
	}
	defer control.Close()
	var word uint64
	if err := control.Lookup(uint32(0), &word); err != nil {
		return true, fmt.Errorf("read which generation is in force: %w", err)
	}
	if unpackControl(word).inForce(bootTime()) != a.slot {
		return false, nil
	}
	if len(a.numbers) == 0 {
		return true, nil
	}
	program, err := ebpf.LoadPinnedProgram(filepath.Join(a.dir, programsDir, tapgateProgTapgateAsk), nil)
	if err != nil {
		return true, fmt.Errorf("open the program that asks for next hops: %w", err)
	}
	defer program.Close()
	for _, n := range a.numbers {
		_ = askBy(program, a.slot, n) // the link may be down
	}
	return true, nil
}

func neighbourStatus(n tapgateTgNeigh) *NeighbourStatus {
	s := &NeighbourStatus{Asks: n.Asks, AsksRefused: n.Refused, Changes: n.Changes}
	if n.Mac&macValid != 0 {
		mac := make(net.HardwareAddr, 6)
		for i := range mac {
			mac[i] = byte(n.Mac >> (8 * i))
		}
		s.MAC = mac.String()
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) == nil && n.Confirmed != 0 {
		s.Age = max(0, time.Duration(now.Nano()-int64(n.Confirmed)).Seconds())
	}
	switch {
	case n.Unanswered >= neighUnansweredMax:
		s.State = "failed"
	case n.Mac&macValid == 0:
		s.State = "incomplete"
	case n.Unanswered > 1:
		s.State = "probing"
	default:
		s.State = "reachable"
	}
	return s
}
