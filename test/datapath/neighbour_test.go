package datapath

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/packet"
)

// neigh is struct tg_neigh of headers/abi.h.
type neigh struct {
	MAC, Confirmed, Asked, Asks, Refused, Changes uint64
	Unanswered, Lock                              uint32
}

const macValid = 1 << 48

func macWord(mac net.HardwareAddr) uint64 {
	word := uint64(macValid)
	for i, b := range mac {
		word |= uint64(b) << (8 * i)
	}
	return word
}

// now is the clock of the data plane, in ns.
func now(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// fresh is a next hop that answered just now.
func fresh(t *testing.T) neigh {
	return neigh{MAC: macWord(sensorMAC), Confirmed: now(t), Asked: now(t)}
}

// setNeighs gives all next hops a state: time passes without waiting for it.
func (r *rig) setNeighs(t *testing.T, n neigh) {
	t.Helper()
	for number := range uint32(2) {
		if err := r.maps["tg_neighs"].Put(number, n); err != nil {
			t.Fatal(err)
		}
	}
}

// neighbour is what status tells of the next hop of a target of mirror ids.
func (r *rig) neighbour(t *testing.T, target loader.Target) loader.NeighbourStatus {
	t.Helper()
	for _, ts := range findMirror(r.status(t), "ids").Targets {
		if ts.Target == target.String() && ts.Neighbour != nil {
			return *ts.Neighbour
		}
	}
	t.Fatalf("mirror ids has no next hop %s", target)
	return loader.NeighbourStatus{}
}

// applyResolved puts mirrors in force whose next hops have answered. What the
// apply asked is taken from the sensor.
func (r *rig) applyResolved(t *testing.T, mirrors ...loader.Mirror) {
	t.Helper()
	r.apply(t, mirrors...)
	r.setNeighs(t, fresh(t))
	r.quiet(t)
}

// answer is the sensor's answer to an ARP question.
func answer() []byte { return packet.ARPReply(sensorMAC, sensor, gate.usMAC, us) }

// secondPasses makes all next hops ready to be asked again.
func (r *rig) secondPasses(t *testing.T) {
	t.Helper()
	for number := range uint32(2) {
		var n neigh
		if err := r.maps["tg_neighs"].Lookup(number, &n); err != nil {
			t.Fatal(err)
		}
		n.Asked = 1
		if err := r.maps["tg_neighs"].Put(number, n); err != nil {
			t.Fatal(err)
		}
	}
}

// runUntilAsked sends packets until one has made the data plane ask: it looks
// at most once in a tick of the kernel's clock.
func (r *rig) runUntilAsked(t *testing.T, target loader.Target, send func()) {
	t.Helper()
	before := r.neighbour(t, target).Asks
	err := waitUntil(func() bool {
		send()
		return r.neighbour(t, target).Asks > before
	})
	if err != nil {
		t.Fatalf("nobody asks for %s", target)
	}
	if got := r.neighbour(t, target).Asks; got != before+1 {
		t.Errorf("%d questions at once", got-before)
	}
}
