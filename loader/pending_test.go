package loader

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tapgate/test/lab"
)

func TestControlWord(t *testing.T) {
	for _, c := range []struct {
		w    controlWord
		want uint64
	}{
		{controlWord{}, 0},
		{controlWord{active: 1}, 1},
		{controlWord{active: 1, fallback: 0, deadline: 1 << 40}, 1<<40 | 1},
		{controlWord{active: 0, fallback: 1, deadline: 1 << 40}, 1<<40 | 2},
	} {
		if got := c.w.pack(); got != c.want || unpackControl(got) != c.w {
			t.Errorf("%+v is %#x, want %#x, and back %+v", c.w, got, c.want, unpackControl(got))
		}
	}
	if w := (controlWord{deadline: 7}).pack(); w != 4 {
		t.Errorf("what is below the unit of the deadline gets into the slots: %#x", w)
	}
}

// expire has the deadline of a change that waits be long ago.
func (b *natBench) expire() {
	b.t.Helper()
	b.open(func(g *Gateway) error {
		if !g.waits() {
			return fmt.Errorf("nothing waits")
		}
		return g.writeControl(controlWord{active: g.slot, fallback: 1 - g.slot, deadline: 4})
	})
}

// The numbers of a change that has gone back are nobody else's, since flows have them; what
// it had outside of the slots goes.
func TestPendingNumbers(t *testing.T) {
	b := newNATBench(t, lab.SecondInternal())
	with := func(names ...string) Config {
		cfg := natConfig()
		for i, name := range names {
			cfg.NAT.Forwards = append(cfg.NAT.Forwards, Forward{
				Name: name, In: "external", Proto: "tcp", Ports: PortRange{uint16(80 + i), uint16(80 + i)},
				To: b.Servers[0].Interface("eth0").Addr.Addr(), ToPort: 80,
			})
		}
		cfg.Source = strings.Join(names, " ")
		return cfg
	}
	number := func(name string) (n uint32, gone bool) {
		b.t.Helper()
		n = 9999
		b.open(func(g *Gateway) error {
			for _, r := range g.active.Gateway.Rules {
				if r.Name == name {
					n, gone = r.Number, r.Gone
				}
			}
			return nil
		})
		return n, gone
	}
	b.apply(with("a"))
	b.opt.Confirm = ConfirmMost
	tried := with("a", "b")
	tried.Zones = append(tried.Zones, Zone{Name: "more", Role: RoleInternal, Interfaces: []string{"eth5"}})
	b.apply(tried)
	second, _ := number("b")
	if _, err := Apply(b.opt, with("c")); err == nil || !strings.Contains(err.Error(), "waits for confirmation until") {
		t.Errorf("another one while it waits: %v", err)
	}
	b.expire()
	g, err := Open(b.opt, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if r := g.Returned(); r == nil || r.Serial != 2 || !r.Itself || g.Pending() != nil || g.Source() != "a" || g.Previous() != "" {
		t.Errorf("after the deadline: %+v, source %q, previous %q", r, g.Source(), g.Previous())
	}
	if i := slices.IndexFunc(g.active.Zones, func(z zoneRecord) bool { return z.Name == "more" }); i < 0 || !g.active.Zones[i].Gone {
		t.Errorf("zones %+v", g.active.Zones)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if n, gone := number("b"); n != second || !gone {
		t.Errorf("forward b is number %d, gone: %v; it was number %d", n, gone, second)
	}
	b.opt.Confirm = 0
	b.apply(with("a", "c"))
	if n, _ := number("c"); n == second {
		t.Errorf("forward c counts where the flows of b do: %d", n)
	}
	b.open(func(g *Gateway) error {
		if g.active.Serial != 3 || g.Returned() != nil || g.Previous() != "a" {
			t.Errorf("the next change: serial %d, %+v, before %q", g.active.Serial, g.Returned(), g.Previous())
		}
		return nil
	})
	b.pingOut(1)
}

// A change can be made also where there is no room to keep the text of before.
func TestPendingNoRoom(t *testing.T) {
	b := newNATBench(t)
	rng := rand.NewChaCha8([32]byte{1})
	long := func() Config {
		raw := make([]byte, 150*1024) // of which nothing can be compressed
		_, _ = rng.Read(raw)
		cfg := natConfig()
		cfg.Source = "#" + base64.StdEncoding.EncodeToString(raw)
		return cfg
	}
	first, second := long(), long()
	b.apply(first)
	res := b.apply(second)
	if !slices.ContainsFunc(res.Warnings, func(w string) bool { return strings.Contains(w, "no room to keep the configuration of before") }) {
		t.Errorf("warnings: %q", res.Warnings)
	}
	b.open(func(g *Gateway) error {
		if g.Source() != second.Source || g.Previous() != "" {
			t.Errorf("source of %d bytes, previous of %d", len(g.Source()), len(g.Previous()))
		}
		return nil
	})
	// While one waits both are there, each in its slot.
	b.opt.Confirm = time.Minute
	b.apply(first)
	b.open(func(g *Gateway) error {
		if g.Source() != first.Source || g.Previous() != second.Source {
			t.Errorf("while it waits: source of %d bytes, previous of %d", len(g.Source()), len(g.Previous()))
		}
		return nil
	})
	if _, err := TakeBack(b.opt); err != nil {
		t.Fatal(err)
	}
	b.open(func(g *Gateway) error {
		if r := g.Returned(); g.Source() != second.Source || r == nil || r.Itself {
			t.Errorf("taken back: source of %d bytes, %+v", len(g.Source()), r)
		}
		return nil
	})
	if _, err := TakeBack(b.opt); err == nil {
		t.Error("taken back twice")
	}
}

// The addresses that a change which waits has given up may be in force again: their flows
// stay until it is confirmed.
func TestPendingKeepsLost(t *testing.T) {
	g := &Gateway{active: record{Gateway: &gatewayRecord{Lost: []lostAddress{{Address: netip.MustParseAddr("203.0.113.1"), Zone: "external"}}}}}
	if due, _ := g.dueAddresses(true); len(due) != 1 {
		t.Errorf("due without a change that waits: %v", due)
	}
	g.pending = &pending{}
	if due, _ := g.dueAddresses(true); len(due) != 0 {
		t.Errorf("due while a change waits: %v", due)
	}
}
