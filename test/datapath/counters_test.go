package datapath

import (
	"maps"
	"slices"
	"testing"

	"tapgate/loader"
)

// count is packets and bytes.
func count(packets, bytes int) loader.Count {
	return loader.Count{Packets: uint64(packets), Bytes: uint64(bytes)}
}

func minus(a, b loader.Count) loader.Count {
	return loader.Count{Packets: a.Packets - b.Packets, Bytes: a.Bytes - b.Bytes}
}

// change is what happened between two readings.
type change struct{ before, after *loader.Status }

// during reads the counters around f.
func (r *rig) during(t *testing.T, f func()) change {
	t.Helper()
	c := change{before: r.status(t)}
	f()
	c.after = r.status(t)
	return c
}

func direction(s *loader.Status, ifindex int, program string) *loader.DirectionStatus {
	for _, m := range s.Members {
		if m.Ifindex == ifindex {
			if program == "tap_in" || program == "dmz_in" {
				return m.Ingress
			}
			return m.Egress
		}
	}
	return nil
}

// seen is what the programs of an interface and direction counted.
func (c change) seen(ifindex int, program string) loader.Count {
	return minus(direction(c.after, ifindex, program).Seen, direction(c.before, ifindex, program).Seen)
}

// reasons are those that were counted, and how often.
func (c change) reasons(ifindex int, program string) map[string]uint64 {
	before, after := direction(c.before, ifindex, program), direction(c.after, ifindex, program)
	changed := map[string]uint64{}
	for name, n := range after.Reasons {
		if n != before.Reasons[name] {
			changed[name] = n - before.Reasons[name]
		}
	}
	return changed
}

func (c change) duplicates(ifindex int) uint64 {
	return direction(c.after, ifindex, "tap_out").Duplicates - direction(c.before, ifindex, "tap_out").Duplicates
}

// only fails unless one reason was counted once and no other.
func (c change) only(t *testing.T, ifindex int, program, reason string) {
	t.Helper()
	if got := c.reasons(ifindex, program); len(got) != 1 || got[reason] != 1 {
		t.Errorf("reasons counted by %s on %s: %v, want %s", program, ifnames[ifindex], got, reason)
	}
}

// account is a ledger's change without the skips that did not happen.
type account struct {
	matched, copied, refused loader.Count
	skipped                  map[string]loader.Count
}

func difference(before, after loader.Ledger) account {
	a := account{
		matched: minus(after.Matched, before.Matched), copied: minus(after.Copied, before.Copied),
		refused: minus(after.Refused, before.Refused), skipped: map[string]loader.Count{},
	}
	for name, n := range after.Skipped {
		if n != before.Skipped[name] {
			a.skipped[name] = minus(n, before.Skipped[name])
		}
	}
	return a
}

func (a account) equal(b account) bool {
	return a.matched == b.matched && a.copied == b.copied && a.refused == b.refused && maps.Equal(a.skipped, b.skipped)
}

// copied and skipped are the accounts of packets that all went one way.
func copied(n loader.Count) account { return account{matched: n, copied: n} }

func skipped(reason string, n loader.Count) account {
	return account{matched: n, skipped: map[string]loader.Count{reason: n}}
}

func findMirror(s *loader.Status, name string) loader.MirrorStatus {
	i := slices.IndexFunc(s.Mirrors, func(m loader.MirrorStatus) bool { return m.Name == name })
	if i < 0 {
		return loader.MirrorStatus{}
	}
	return s.Mirrors[i]
}

// mirror checks the account of a mirror, and that the program's direction has all of it.
func (c change) mirror(t *testing.T, name, program string, want account) {
	t.Helper()
	before, after := findMirror(c.before, name), findMirror(c.after, name)
	if got := difference(before.Ledger, after.Ledger); !got.equal(want) {
		t.Errorf("mirror %s: %+v, want %+v", name, got, want)
	}
	b, a := before.Ingress, after.Ingress
	if program == "tap_out" {
		b, a = before.Egress, after.Egress
	}
	if got := difference(b, a); !got.equal(want) {
		t.Errorf("mirror %s, direction of %s: %+v, want %+v", name, program, got, want)
	}
}

// target does so for one target.
func (c change) target(t *testing.T, name string, target loader.Target, want account) {
	t.Helper()
	find := func(s *loader.Status) loader.Ledger {
		for _, ts := range findMirror(s, name).Targets {
			if ts.Target == target.String() {
				return ts.Ledger
			}
		}
		t.Fatalf("mirror %s has no target %s", name, target)
		return loader.Ledger{}
	}
	if got := difference(find(c.before), find(c.after)); !got.equal(want) {
		t.Errorf("target %s of mirror %s: %+v, want %+v", target, name, got, want)
	}
}
