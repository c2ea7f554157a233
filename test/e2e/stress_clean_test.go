package e2e

import (
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"tapgate/loader"
	"tapgate/test/gateclock"
	pkt "tapgate/test/packet"
)

// timers is how many enum tg_timer has.
const timers = 9

// timersOver has all timers run out at once: those of what is there, and of what
// comes, until the next apply.
func (g *gate) timersOver() {
	g.t.Helper()
	g.clock(func(c *gateclock.Clock) error {
		for timer := range timers {
			if err := c.SetTimer(timer, time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	})
}

// elements is how many elements there are of what flows leave behind: halves,
// sides of bindings, remotes, hosts, and flows that have left their place.
func (t *flowTable) elements() int {
	return len(t.sessions) + len(t.bindings) + len(t.remotes) + len(t.hosts) +
		int(t.account.number("leaving")) + int(t.account.number("leaving_forwarded"))
}

// empty fails unless the table, whose timers are over, becomes empty: no half, no
// binding, no remote, no host's account stays, and every count is zero.
func (g *gate) empty() {
	g.t.Helper()
	g.timersOver()
	eventually(g.t, func() string {
		g.opened(func(gw *loader.Gateway) error { return gw.Sweep() })
		t := g.readTable()
		if t.elements() > 0 {
			return "the timers are over, and there are " + t.size()
		}
		return strings.Join(t.problems(), "\n")
	})
}

// swept fails unless new flows of one host alone, with no process of ours, clean the
// table once all timers are over: to the last element, but for those of the host's
// own last flows. The queues have lost nothing, and nothing is left in them.
func (g *gate) swept(broom *peer) {
	g.t.Helper()
	g.timersOver()
	out := g.station(atOutside, 0)
	port, flows := uint16(0), 0
	begin := func(n int) {
		for range n {
			port = (port + 1) % 60_000
			broom.raw(broom.opener(pkt.ProtoUDP, 1024+port, out.at(false, 9000), "broom"))
		}
		flows += n
	}
	// Each new flow looks at one or two of each queue, if they are due.
	const last = 16
	g.clock((*gateclock.Clock).Due) // waits where the machine has just booted
	left := g.readTable()
	for deadline := time.Now().Add(6 * gateWait); ; {
		begin(min(2000, 1+len(left.sessions)/8))
		g.fence(broom)
		g.clock((*gateclock.Clock).Due)
		begin(1)
		g.fence(broom)
		left = g.readTable()
		if left.elements() <= 6*last {
			break
		}
		if time.Now().After(deadline) {
			g.t.Errorf("%d new flows, all timers are over, and there are %s", flows, left.size())
			break
		}
	}
	left = g.consistent()
	a := broom.Addr.As16()
	for key, half := range left.sessions {
		inside := key
		if half.number("half") == halfOutside {
			inside = string(half.bytes("other"))
		}
		if inside[:16] != string(a[:]) {
			g.t.Errorf("a half of another host is left: %s", tupleText(half.key))
		}
	}
	for key := range left.hosts {
		if key != string(a[:]) {
			g.t.Errorf("the account of another host is left: % x", key)
		}
	}
	g.t.Logf("%d new flows left %s", flows, left.size())
	g.queued(left)
	g.must("detach")
}

// queued empties the queues, so it is the last that a gateway is asked for, and fails
// unless each flow of the table stood in one of three, and each binding without flows
// in that of the idle ones: all of them once, and nothing else.
func (g *gate) queued(t *flowTable) {
	g.t.Helper()
	stood := map[string]int{}
	for _, name := range []string{"tg_fresh", "tg_settled", "tg_dying"} {
		for _, key := range g.drain(name) {
			stood[string(key)]++
			if _, there := t.sessions[string(key)]; !there {
				g.t.Errorf("%s has %s, which is gone", name, tupleText(key))
			}
		}
	}
	for key, half := range t.sessions {
		if n := stood[key]; half.number("half") == halfOutside && n != 1 {
			g.t.Errorf("%s stands %d times in the queues", tupleText(half.key), n)
		}
	}
	idle := map[string]int{}
	for _, key := range g.drain("tg_idle") {
		idle[string(key)]++
		if _, there := t.bindings[string(key)]; !there {
			g.t.Errorf("tg_idle has %s, which is gone", bindingText(key))
		}
	}
	for key, b := range t.bindings {
		want := 0
		if b.number("queued") != 0 {
			want = 1
		}
		if n := idle[key]; n != want {
			g.t.Errorf("%s, of %d flows, stands %d times in the queue of idle ones, want %d", bindingText(b.key), b.number("sessions"), n, want)
		}
		if key[19] == halfOutside && b.number("sessions") == 0 && want == 0 {
			g.t.Errorf("%s has no flows and stands in no queue", bindingText(b.key))
		}
	}
}

// drain takes everything out of a queue.
func (g *gate) drain(name string) (keys [][]byte) {
	g.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(g.stateDir(), "maps", name), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	defer m.Close()
	for {
		key := make([]byte, m.ValueSize())
		err := m.LookupAndDelete(nil, key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return keys
		}
		if err != nil {
			g.t.Fatalf("empty %s: %v", name, err)
		}
		keys = append(keys, key)
	}
}
