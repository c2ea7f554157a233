package loader

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// The flows of a lost address end when another one has been there for a moment, or when it
// has been away for long.
func TestLostAddress(t *testing.T) {
	const now = uint64(time.Hour)
	v4, v6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")
	with := func(zone string, a ...netip.Addr) []outsideRecord {
		o := outsideRecord{Zone: zone}
		for _, a := range a {
			if a.Is4() {
				o.V4 = a
			} else {
				o.V6 = a
			}
		}
		return []outsideRecord{{Zone: "third"}, o}
	}
	other4, other6 := netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8::2")
	for name, c := range map[string]struct {
		lost    netip.Addr
		away    time.Duration
		outside []outsideRecord
		want    bool
	}{
		"replaced just now":           {v4, 10 * time.Millisecond, with("wan", other4), false},
		"replaced":                    {v4, time.Second, with("wan", other4), true},
		"replaced, IPv6":              {v6, time.Second, with("wan", other6), true},
		"in another zone":             {v4, time.Second, with("wan2", other4), false},
		"of another version":          {v4, time.Second, with("wan", other6), false},
		"pulled":                      {v4, 50 * time.Second, with("wan"), false},
		"pulled for good":             {v4, 61 * time.Second, with("wan"), true},
		"pulled for good, other zone": {v6, 61 * time.Second, with("wan2", other6), true},
	} {
		l := lostAddress{Address: c.lost, Zone: "wan", Since: now - uint64(c.away)}
		if got := l.over(c.outside, now); got != c.want {
			t.Errorf("%s: over: %v", name, got)
		}
	}
}

// What is lost is kept with the time of its loss until it is back.
func TestStillLost(t *testing.T) {
	a, b, c := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")
	on := func(list ...netip.Addr) []outsideRecord { return []outsideRecord{{Zone: "wan", Addresses: list}} }
	r := &gatewayRecord{gatewayFacts: gatewayFacts{Outside: on(a, b)}}
	if list := r.stillLost(on(a, b)); len(list) != 0 {
		t.Errorf("nothing is lost: %+v", list)
	}
	r.Lost = r.stillLost(on(b))
	if len(r.Lost) != 1 || r.Lost[0].Address != a || r.Lost[0].Zone != "wan" || r.Lost[0].Since == 0 {
		t.Fatalf("one is lost: %+v", r.Lost)
	}
	r.Outside, r.Lost[0].Since = on(b), 5
	list := r.stillLost(on(c))
	if len(list) != 2 || list[0].Address != a || list[0].Since != 5 || list[1].Address != b {
		t.Errorf("another one is lost: %+v", list)
	}
	if list := r.stillLost(on(a, b)); len(list) != 0 {
		t.Errorf("all are back: %+v", list)
	}
}

// The addresses that count: networks inside, and in the dmz also which of them is ours.
func TestCountingAddresses(t *testing.T) {
	known := func(deprecated bool, prefixes ...string) (list []address) {
		for _, p := range prefixes {
			p := netip.MustParsePrefix(p)
			list = append(list, address{prefix: p, onlink: p, usable: !deprecated})
		}
		return list
	}
	one, same := known(false, "192.168.3.1/24", "fe80::1/64"), known(true, "192.168.3.77/24", "192.168.3.1/24")
	if !slices.Equal(counting(RoleInternal, one), counting(RoleInternal, same)) {
		t.Error("inside only the network counts")
	}
	if slices.Equal(counting(RoleDMZ, one), counting(RoleDMZ, known(false, "192.168.3.77/24", "fe80::1/64"))) {
		t.Error("in the dmz the address counts")
	}
	if slices.Equal(counting(RoleDMZ, known(false, "2001:db8::1/64")), counting(RoleDMZ, known(true, "2001:db8::1/64"))) {
		t.Error("in the dmz it counts whether it can be a sender")
	}
	if got := counting(RoleExternal, one); len(got) != 0 {
		t.Errorf("outside addresses are followed by themselves: %v", got)
	}
	m := memberRecord{Known: []knownAddress{{Prefix: one[0].prefix}, {Prefix: same[0].prefix, Gone: true}}}
	if got := m.knownNow(); len(got) != 1 || got[0].prefix != one[0].prefix || got[0].onlink != one[0].prefix {
		t.Errorf("what was gone already was not there: %+v", got)
	}
}

// A quarrel with somebody else is not fought at full speed, and goes on later.
func TestPace(t *testing.T) {
	var p pace
	now := time.Now()
	for i := range paceMost {
		if !p.may(now.Add(time.Duration(i) * time.Millisecond)) {
			t.Fatalf("the change number %d is refused", i+1)
		}
	}
	if p.may(now.Add(time.Second)) {
		t.Error("there is no end to it")
	}
	if !p.may(now.Add(paceSpan + time.Second)) {
		t.Error("it does not go on later")
	}
}

// News of interfaces that are none of ours are none.
func TestWatched(t *testing.T) {
	var w watched
	w.know(nil)
	if !w.concerns(77, "veth0") {
		t.Error("before it is known whose news they are all concern us")
	}
	w.know([]generation{{0, &record{Members: []memberRecord{{Interface: "eth3", Ifindex: 3}, {Interface: "eth2", Ifindex: 2, Written: "dmz0"}}}}})
	for _, c := range []struct {
		index int
		names []string
		want  bool
	}{{3, nil, true}, {3, []string{"lan0"}, true}, {77, []string{"eth3"}, true}, {78, []string{"x", "dmz0"}, true}, {79, []string{reassemblyNear}, true}, {77, []string{"veth0"}, false}, {0, nil, false}} {
		if got := w.concerns(c.index, c.names...); got != c.want {
			t.Errorf("%d %v: %v", c.index, c.names, got)
		}
	}
}
