package loader

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// What TCP flags a half has seen, and what a half is: headers/abi_gate.h.
const (
	sawSYN = 1
	sawFIN = 2
	sawRST = 4
	sawACK = 8

	flowInitiator = 1
	flowStillborn = 8
	flowLeft      = 2
)

// flowAnswered is tg_answered of headers/flow.h: whether both sides have spoken as
// their protocol asks for.
func flowAnswered(in, out *tapgateTgSession, proto uint8) bool {
	if proto != unix.IPPROTO_TCP {
		return in.Packets > 0 && out.Packets > 0
	}
	first := out.Tcp
	if in.Flags&flowInitiator != 0 {
		first = in.Tcp
	}
	return in.Tcp&out.Tcp&sawSYN != 0 && first&sawACK != 0
}

// atCoarse is the boot time, ns, of a time as TG_COARSE (headers/abi_gate.h) has it: in
// units of 2^24 ns, which come round after two years.
func atCoarse(coarse uint32, now uint64) uint64 {
	const bits = 24
	age := int32(uint32(now>>bits) - coarse)
	return uint64(int64(now>>bits)-int64(age)) << bits
}

// flowState is tg_timer_of of headers/flow.h: which timer runs, and since when. The
// state of a flow is computed from its halves and stored nowhere.
func flowState(in, out *tapgateTgSession, proto uint8) (timer tapgateTgTimer, since uint64) {
	since = max(in.Last, out.Last)
	// RFC 7857, 4: where everybody may send in, only the inside keeps it.
	if in.Origin == uint8(tapgateTgOriginTG_ORIGIN_EIF) {
		since = in.Last
	}
	if (in.Flags|out.Flags)&flowLeft == 0 {
		return tapgateTgTimerTG_TIMER_PROVISIONAL, since
	}
	switch proto {
	case unix.IPPROTO_TCP:
		// RFC 7857, 2.2: data after an RST makes it live again.
		if reset := max(in.Reset, out.Reset); reset > 0 && reset >= since {
			return tapgateTgTimerTG_TIMER_TCP_CLOSING, reset
		}
		switch {
		case in.Tcp&out.Tcp&sawFIN != 0:
			return tapgateTgTimerTG_TIMER_TCP_CLOSING, since
		case flowAnswered(in, out, proto):
			return tapgateTgTimerTG_TIMER_TCP_ESTABLISHED, since
		}
		return tapgateTgTimerTG_TIMER_TCP_OPENING, since
	case unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE:
		if flowAnswered(in, out, proto) {
			return tapgateTgTimerTG_TIMER_UDP, since
		}
		return tapgateTgTimerTG_TIMER_UDP_UNANSWERED, since
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return tapgateTgTimerTG_TIMER_ICMP, since
	}
	return tapgateTgTimerTG_TIMER_OTHER, since
}

func stateName(timer tapgateTgTimer, answered bool) string {
	switch timer {
	case tapgateTgTimerTG_TIMER_PROVISIONAL:
		return "provisional"
	case tapgateTgTimerTG_TIMER_TCP_OPENING:
		return "opening"
	case tapgateTgTimerTG_TIMER_TCP_ESTABLISHED:
		return "established"
	case tapgateTgTimerTG_TIMER_TCP_CLOSING:
		return "closing"
	}
	if answered {
		return "answered"
	}
	return "unanswered"
}

// timersInForce are those of the generation in force.
func (g *Gateway) timersInForce() (timers [tapgateTgTimerTG_TIMERS]uint64, err error) {
	var s tapgateTgSetting
	if err := g.maps[tapgateMapTgSettings].Lookup(g.slot, &s); err != nil {
		return timers, fmt.Errorf("read the settings in force: %w", err)
	}
	return s.Timers, nil
}
