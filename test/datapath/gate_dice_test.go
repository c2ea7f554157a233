package datapath

import (
	"math/rand/v2"
)

// dice are where a sequence's choices come from: a random generator, or the
// bytes of a fuzzer, which end.
type dice struct {
	rnd  *rand.Rand
	data []byte
	end  bool
}

// n is a number below limit.
func (d *dice) n(limit int) int {
	if d.rnd != nil {
		return d.rnd.IntN(limit)
	}
	if len(d.data) == 0 {
		d.end = true
		return 0
	}
	b := int(d.data[0])
	d.data = d.data[1:]
	if limit > 256 && len(d.data) > 0 {
		b |= int(d.data[0]) << 8
		d.data = d.data[1:]
	}
	return b % limit
}

// chance is true with so many percent.
func (d *dice) chance(percent int) bool { return d.n(100) < percent }

func pick[T any](d *dice, list []T) T { return list[d.n(len(list))] }
