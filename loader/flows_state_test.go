package loader

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// TestFlowState: which timer runs, and since when, is the same in Go as in the
// program that retires flows, for thousands of random pairs of halves.
func TestFlowState(t *testing.T) {
	_ = rlimit.RemoveMemlock()
	spec, err := programSpecs(0)
	if err != nil {
		t.Fatal(err)
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	defer coll.Close()
	g := &Gateway{maps: coll.Maps, programs: coll.Programs}

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	d := rand.New(rand.NewPCG(seed, 0))
	// Times before the boot there are none, so a guest must have been up for a while.
	for bootTime() < uint64(time.Minute) {
		time.Sleep(time.Second)
	}
	now := bootTime()
	span := min(uint64(2*time.Minute), now-uint64(time.Second))
	margin := span / 30
	timers := [tapgateTgTimerTG_TIMERS]uint64{}
	for i := range timers { // far enough apart to tell which one ran
		timers[i] = uint64(i+1) * span / 12
	}
	if err := g.maps[tapgateMapTgSettings].Put(uint32(0), tapgateTgSetting{Gateway: 1, MaxFlows: 1 << 20, Timers: timers}); err != nil {
		t.Fatal(err)
	}
	const flows = 4000
	want := map[tapgateTgTuple]bool{}
	for i := uint32(0); len(want) < flows; i++ {
		f := randomFlow(d, now, span, i)
		timer, since := flowState(&f.in, &f.out, f.inKey.Proto)
		end := since + timers[timer]
		if end > now-margin && end < now+margin {
			continue // the clock goes on while the programs run
		}
		want[f.outKey] = end < now
		sessions := g.maps[tapgateMapTgSessions]
		err := errors.Join(sessions.Put(f.inKey, f.in), sessions.Put(f.outKey, f.out), g.maps[tapgateMapTgSettled].Put(nil, f.outKey))
		if err != nil {
			t.Fatal(err)
		}
	}
	for range flows/sweepTurns + 1 {
		if _, err := g.order(tapgateProgTapgateSweep, nil, 1); err != nil {
			t.Fatal(err)
		}
	}
	expired := 0
	for key, gone := range want {
		var out tapgateTgSession
		err := g.maps[tapgateMapTgSessions].Lookup(key, &out)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
		if got := err != nil || out.Life != uint8(tapgateTgLifeTG_LIFE_LIVE); got != gone {
			var in tapgateTgSession
			_ = g.maps[tapgateMapTgSessions].Lookup(out.Other, &in)
			timer, since := flowState(&in, &out, key.Proto)
			t.Fatalf("proto %d: the program says expired: %t, Go: %t (%s, %.1f s ago); in %+v, out %+v",
				key.Proto, got, gone, stateName(timer, false), float64(now-since)/1e9, in, out)
		}
		if gone {
			expired++
		}
	}
	if expired < flows/10 || expired > flows*9/10 {
		t.Errorf("%d of %d had expired: that says little", expired, flows)
	}
}

func randomFlow(d *rand.Rand, now, span uint64, i uint32) (f flowHalves) {
	protos := []uint8{unix.IPPROTO_TCP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, unix.IPPROTO_UDPLITE, unix.IPPROTO_GRE}
	f.inKey = tapgateTgTuple{Src: [16]byte{1, byte(i), byte(i >> 8), byte(i >> 16)}, Dst: [16]byte{2}, Sport: 3, Dport: 4, Proto: protos[d.IntN(len(protos))]}
	f.outKey = tapgateTgTuple{Src: [16]byte{2}, Dst: [16]byte{5, byte(i), byte(i >> 8), byte(i >> 16)}, Sport: 4, Dport: 6, Proto: f.inKey.Proto}
	ago := func(never int) uint64 {
		if d.IntN(never) == 0 {
			return 0
		}
		return now - d.Uint64N(span)
	}
	half := func(kind tapgateTgHalf) tapgateTgSession {
		return tapgateTgSession{
			Half: uint8(kind), Created: uint32(ago(1000) >> 24), Last: ago(4), Reset: ago(2), Packets: d.Uint64N(2), Tcp: uint8(d.UintN(16)),
			Flags: uint8(d.UintN(2)) * flowLeft, Life: uint8(tapgateTgLifeTG_LIFE_LIVE), Since: now,
		}
	}
	f.in, f.out = half(tapgateTgHalfTG_HALF_INSIDE), half(tapgateTgHalfTG_HALF_OUTSIDE)
	if d.IntN(3) > 0 { // most handshakes go well
		f.in.Tcp, f.out.Tcp = f.in.Tcp|sawSYN|sawACK, f.out.Tcp|sawSYN|sawACK
		f.in.Flags |= flowLeft
	}
	f.in.Other, f.out.Other = f.outKey, f.inKey
	f.in.Origin = uint8(d.UintN(uint(tapgateTgOriginTG_ORIGIN_ADOPTED) + 1))
	f.out.Origin = f.in.Origin
	if d.IntN(2) == 0 {
		f.in.Flags |= flowInitiator
	} else {
		f.out.Flags |= flowInitiator
	}
	return f
}
