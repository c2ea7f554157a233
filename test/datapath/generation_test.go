package datapath

import (
	"os"
	"path/filepath"
	"testing"

	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// tapped says by which interfaces copies of a packet leave.
func tapped(t *testing.T, ifindex int) (byEth2, byEth6 bool) {
	t.Helper()
	gate.setNeighs(t, fresh(t))
	gate.quiet(t)
	gate.run(t, "tap_in", skb{Ifindex: uint32(ifindex)}, plainPacket())
	gate.passBy(t, func(ifname string, f lab.Frame) {
		if isCopy(f) {
			byEth2, byEth6 = byEth2 || ifname == "eth2", byEth6 || ifname == "eth6"
		}
	})
	return byEth2, byEth6
}

// An apply fills the other slot and puts it in force; counters of what stays go on.
func TestGenerationChanges(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	if a, b := tapped(t, internal); !a || b {
		t.Fatalf("copied by eth2 %v, by eth6 %v; want by eth2 alone", a, b)
	}
	before := gate.status(t)
	gate.applyResolved(t, mirror("ids", inside, via, l2), mirror("more", []string{"second"}, l2))
	after := gate.status(t)
	if after.Slot != 1-before.Slot || after.Serial != before.Serial+1 {
		t.Errorf("slot %d serial %d after slot %d serial %d", after.Slot, after.Serial, before.Slot, before.Serial)
	}
	if b, a := findMirror(before, "ids"), findMirror(after, "ids"); a.Matched != b.Matched || a.Targets[0].Copied != b.Targets[0].Copied {
		t.Errorf("counters of a mirror that stays: %+v, were %+v", a.Ledger, b.Ledger)
	}
	if a, b := tapped(t, internal); !a || !b {
		t.Errorf("copied by eth2 %v, by eth6 %v; want both", a, b)
	}
	if a, b := tapped(t, second); a || !b {
		t.Errorf("second: copied by eth2 %v, by eth6 %v; want by eth6 alone", a, b)
	}
	gate.applyResolved(t, mirror("ids", inside, l2))
	if a, b := tapped(t, internal); a || !b {
		t.Errorf("copied by eth2 %v, by eth6 %v; want by eth6 alone", a, b)
	}
	if a, b := tapped(t, second); a || b {
		t.Errorf("second is copied by eth2 %v, by eth6 %v, after its mirror went", a, b)
	}
	if got := findMirror(gate.status(t), "more").Name; got != "" {
		t.Error("status has a mirror that went")
	}
}

// An apply that fails, wherever it does, leaves what was in force.
func TestGenerationStaysWhenApplyFails(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	before := gate.status(t)
	holds := func(t *testing.T) {
		t.Helper()
		after := gate.status(t)
		if after.Slot != before.Slot || after.Serial != before.Serial {
			t.Errorf("slot %d serial %d in force, want %d and %d", after.Slot, after.Serial, before.Slot, before.Serial)
		}
		if a, b := tapped(t, internal); !a || b {
			t.Errorf("copied by eth2 %v, by eth6 %v; want by eth2 alone", a, b)
		}
		if len(after.Problems) > 0 {
			t.Errorf("problems: %q", after.Problems)
		}
	}
	t.Run("bad policy", func(t *testing.T) {
		if _, err := gate.gw.Apply(policy(mirror("ids", []string{"nowhere"}, l2))); err == nil {
			t.Error("a mirror of an unknown zone was taken")
		}
		holds(t)
	})
	t.Run("attach fails", func(t *testing.T) {
		kernels.Require(t, "tcx") // clsact has no pins that could be in the way
		way := filepath.Join(gate.dir, "links", "15", "tapgate_tap_out", "in-the-way")
		if err := os.MkdirAll(way, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := gate.gw.Apply(policy(mirror("ids", []string{"internal", "second"}, l2)))
		if err == nil {
			t.Error("the apply went well, though a link cannot be pinned")
		}
		if err := os.RemoveAll(filepath.Join(gate.dir, "links", "15", "tapgate_tap_out")); err != nil {
			t.Fatal(err)
		}
		holds(t)
	})
}

// The programs go by the control word alone: active slot, and the fallback once
// the deadline has passed.
func TestGenerationDeadline(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via)) // in one slot
	gate.applyResolved(t, mirror("ids", inside, l2))  // in the other
	l2Slot := uint64(gate.status(t).Slot)
	viaSlot := 1 - l2Slot
	var word uint64
	if err := gate.maps["tg_control"].Lookup(uint32(0), &word); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := gate.maps["tg_control"].Put(uint32(0), word); err != nil {
			t.Error(err)
		}
	})
	past, future := now(t)-1e9, now(t)+3600e9
	for _, c := range []struct {
		name             string
		active, fallback uint64
		deadline         uint64
		l2               bool
	}{
		{"no deadline", l2Slot, viaSlot, 0, true},
		{"no deadline, the other", viaSlot, l2Slot, 0, false},
		{"before the deadline", l2Slot, viaSlot, future, true},
		{"behind the deadline", l2Slot, viaSlot, past, false},
		{"behind the deadline, the other", viaSlot, l2Slot, past, true},
		{"same slot", viaSlot, viaSlot, past, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := gate.maps["tg_control"].Put(uint32(0), c.active|c.fallback<<1|c.deadline&^3); err != nil {
				t.Fatal(err)
			}
			if byVia, byL2 := tapped(t, internal); byL2 != c.l2 || byVia == c.l2 {
				t.Errorf("copied via %v, l2 %v; want l2 %v", byVia, byL2, c.l2)
			}
		})
	}
}
