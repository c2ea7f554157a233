package loader

import (
	"fmt"
	"time"
)

// timerRule is one timer: its name in the configuration, what it is if nothing is
// said, and the least that it may be with the RFC that says so.
type timerRule struct {
	number      tapgateTgTimer
	name        string // none: not for the user
	given       func(Timeouts) time.Duration
	std, lowest time.Duration
	rfc         string
}

func noTimeout(Timeouts) time.Duration { return 0 }

var timerRules = []timerRule{
	{tapgateTgTimerTG_TIMER_PROVISIONAL, "", noTimeout, 5 * time.Second, 0, ""},
	{tapgateTgTimerTG_TIMER_TCP_OPENING, "tcp_opening", func(t Timeouts) time.Duration { return t.TCPOpening },
		240 * time.Second, 240 * time.Second, "RFC 5382, REQ-5"},
	{tapgateTgTimerTG_TIMER_TCP_ESTABLISHED, "tcp_established", func(t Timeouts) time.Duration { return t.TCPEstablished },
		7440 * time.Second, 7440 * time.Second, "RFC 5382, REQ-5"},
	{tapgateTgTimerTG_TIMER_TCP_CLOSING, "tcp_closing", func(t Timeouts) time.Duration { return t.TCPClosing },
		240 * time.Second, 240 * time.Second, "RFC 5382, REQ-5"},
	{tapgateTgTimerTG_TIMER_UDP_UNANSWERED, "udp_unanswered", func(t Timeouts) time.Duration { return t.UDPUnanswered },
		120 * time.Second, 120 * time.Second, "RFC 4787, REQ-5"},
	{tapgateTgTimerTG_TIMER_UDP, "udp", func(t Timeouts) time.Duration { return t.UDP },
		300 * time.Second, 120 * time.Second, "RFC 4787, REQ-5"},
	{tapgateTgTimerTG_TIMER_ICMP, "icmp", func(t Timeouts) time.Duration { return t.ICMP },
		60 * time.Second, 60 * time.Second, "RFC 5508, REQ-2"},
	{tapgateTgTimerTG_TIMER_OTHER, "other", func(t Timeouts) time.Duration { return t.Other }, 600 * time.Second, time.Second, ""},
	{tapgateTgTimerTG_TIMER_LINGER, "", noTimeout, 120 * time.Second, 0, ""},
}

// timers are all of them in nanoseconds, by number.
func (t Timeouts) timers() (out [tapgateTgTimerTG_TIMERS]uint64) {
	for _, rule := range timerRules {
		d := rule.given(t)
		if d == 0 {
			d = rule.std
		}
		out[rule.number] = uint64(d)
	}
	return out
}

func (r *resolver) checkTimeouts(t Timeouts) {
	for _, rule := range timerRules {
		d := rule.given(t)
		if d == 0 || d >= rule.lowest {
			continue
		}
		why := "or leave it out for " + seconds(rule.std)
		if rule.rfc != "" {
			why = fmt.Sprintf("what %s asks for at least, since shorter ones break idle connections", rule.rfc)
		}
		r.fail("nat.timeouts."+rule.name, "%s is too short: %s is %s", seconds(d), seconds(rule.lowest), why)
	}
}
