package model

import (
	"net/netip"
)

// bucket is a token bucket. Its level is known within bounds: which of two
// buckets a packet is charged to when the other one refuses it is not laid down.
type bucket struct {
	low, high float64
	at        int64
}

type bucketKey struct {
	rule   string
	remote netip.Addr // zero for all remotes together
}

// slack is how exact times are: the program reads its own clock.
const slack = 0.02 // seconds

func (m *Model) level(now int64, rate float64, k bucketKey) *bucket {
	b := m.buckets[k]
	burst := max(rate, 1)
	if b == nil {
		b = &bucket{low: burst, high: burst, at: now}
		m.buckets[k] = b
	}
	gone := float64(now-b.at) / 1e9
	b.low = min(burst, b.low+rate*max(0, gone-slack))
	b.high = min(burst, b.high+rate*(gone+slack))
	b.at = now
	return b
}

// rate is the limit of new flows by a forward: nil lets one pass.
func (s *step) rate(f *Forward, remote netip.Addr) *result {
	must, may := false, false
	var all []*bucket
	if f.Rate > 0 {
		all = append(all, s.level(s.now, f.Rate, bucketKey{rule: f.Name}))
	}
	if f.RateHost > 0 {
		all = append(all, s.level(s.now, f.RateHost, bucketKey{f.Name, remote}))
	}
	for _, b := range all {
		must = must || b.high < 1
		may = may || b.low < 1
	}
	if must || may && s.did.Verdict == Drop && s.did.Reason == "drop_rate" {
		for _, b := range all {
			b.low = max(0, b.low-1)
		}
		return drop("drop_rate")
	}
	for _, b := range all {
		b.low, b.high = max(0, b.low-1), max(0, b.high-1)
	}
	return nil
}
