package e2e

import (
	"testing"

	"tapgate/loader"
	"tapgate/test/kernels"
)

// The promise itself: under masquerade, whatever a server says and hears is at
// the sensor, bit for bit from the network layer up, once, in order.
func TestExactMix(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := masqueraded(t, kind)
		v := sensorView(g)
		w := watchCable(g, "eth3", g.Servers[0], v)
		g.apply(example)
		out, in := w.same(func() { mixed(t, g.Servers[0], g.Outside[0]) })
		if len(out) < 500 || len(in) < 500 {
			t.Errorf("only %d frames out and %d in: the test shows little", len(out), len(in))
		}
		v.account(g, "ids", 0)
	})
}
