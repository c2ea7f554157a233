package datapath

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"

	"tapgate/loader"
)

// limitCopies and limitMirrors are those of headers/abi.h. A policy within them
// is taken and works; one beyond is refused.
const (
	limitCopies  = 16
	limitMirrors = 64
)

// Every target of every mirror gets every packet once, in the order of the
// policy, and each has its account.
func TestSeveralMirrorsAndTargets(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via, l2), mirror("more", inside, l2with), mirror("elsewhere", []string{"second"}, l2))
	frame := plainPacket()
	n := count(1, len(frame))
	for _, program := range []string{"tap_in", "tap_out"} {
		gate.setNeighs(t, fresh(t))
		change := gate.during(t, func() { gate.run(t, program, skb{Ifindex: internal}, frame) })
		gate.viaEth2.copies(t, 1)
		if got := gate.viaEth6.copies(t, 2); len(got) == 2 && (!bytes.Equal(got[0], frame) || !bytes.Equal(got[1][:6], l2MAC)) {
			t.Errorf("%s: copies are\n%x, want those of ids and more", program, got)
		}
		change.mirror(t, "ids", program, copied(n))
		change.target(t, "ids", via, copied(n))
		change.target(t, "ids", l2, copied(n))
		change.mirror(t, "more", program, copied(n))
		change.mirror(t, "elsewhere", program, account{})
		if got := change.seen(internal, program); got != n {
			t.Errorf("%s: seen %v, want %v, however many copies", program, got, n)
		}
	}
	gate.quiet(t)
}

// A mirror has a packet once all its targets have it, and else the first reason.
func TestMirrorAccountOfSeveralTargets(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, l2, via), mirror("more", inside, l2with))
	gate.setNeighs(t, neigh{Asked: now(t)})
	frame := plainPacket()
	n := count(1, len(frame))
	change := gate.during(t, func() { gate.run(t, "tap_in", skb{Ifindex: internal}, frame) })
	change.mirror(t, "ids", "tap_in", skipped("unresolved", n))
	change.target(t, "ids", l2, copied(n))
	change.target(t, "ids", via, skipped("unresolved", n))
	change.mirror(t, "more", "tap_in", copied(n))
	gate.viaEth6.copies(t, 2)
	gate.quiet(t)
}

// l2Targets are n targets that differ.
func l2Targets(n int) (targets []loader.Target) {
	for i := range n {
		targets = append(targets, loader.Target{L2: "eth6", MAC: net.HardwareAddr{2, 0, 0, 0x5e, 7, byte(i)}})
	}
	return targets
}

func TestLimitOfCopies(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, l2Targets(limitCopies)...))
	frame := plainPacket()
	for _, program := range []string{"tap_in", "tap_out"} {
		change := gate.during(t, func() {
			ctx := skb{Ifindex: internal}
			gate.run(t, program, ctx, frame).unchanged(t, ctx, frame)
		})
		for i, got := range gate.viaEth6.copies(t, limitCopies) {
			if got[5] != byte(i) || !bytes.Equal(got[6:], frame[6:]) {
				t.Errorf("%s: copy %d is\n%x", program, i, got)
			}
		}
		change.mirror(t, "ids", program, copied(count(1, len(frame))))
	}
	_, err := gate.gw.Apply(policy(mirror("ids", inside, l2Targets(limitCopies+1)...)))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint(limitCopies)) {
		t.Errorf("%d copies of a packet: %v, want refused with the limit", limitCopies+1, err)
	}
	gate.quiet(t)
}

// All mirrors that there can be, spread over the zones that can be tapped.
func TestLimitOfMirrors(t *testing.T) {
	zones := map[int]string{external: "external", internal: "internal", second: "second", mgmt: "mgmt"}
	var mirrors []loader.Mirror
	for _, zone := range zones {
		for i := range limitMirrors / len(zones) {
			mirrors = append(mirrors, mirror(fmt.Sprintf("%s-%d", zone, i), []string{zone}, l2Targets(limitCopies)[i]))
		}
	}
	gate.apply(t) // numbers of mirrors that are being replaced count as well
	gate.applyResolved(t, mirrors...)
	frame := plainPacket()
	for ifindex, zone := range zones {
		change := gate.during(t, func() { gate.run(t, "tap_in", skb{Ifindex: uint32(ifindex)}, frame) })
		gate.viaEth6.copies(t, limitMirrors/len(zones))
		for _, m := range mirrors {
			want := account{}
			if m.Zones[0] == zone {
				want = copied(count(1, len(frame)))
			}
			change.mirror(t, m.Name, "tap_in", want)
		}
	}
	_, err := gate.gw.Apply(policy(append(mirrors, mirror("one-more", inside, l2))...))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint(limitMirrors)) {
		t.Errorf("%d mirrors: %v, want refused with the limit", limitMirrors+1, err)
	}
	gate.quiet(t)
	gate.apply(t)
}
