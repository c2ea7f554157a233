package e2e

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/kernels"
)

// The kernel begins to forward when everything is judged, and no sooner: at whichever
// step before that the first apply is killed, it does not forward.
func TestBootOrder(t *testing.T) {
	t.Parallel()
	kernels.Require(t, "tcx")
	g := newGateLab(t)
	g.kind = loader.AttachTCX
	keys := []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}
	for _, key := range keys {
		if err := g.Gateway.Sysctl(key, "0"); err != nil {
			t.Fatal(err)
		}
	}
	forwards := func() (list string) {
		for _, key := range keys {
			list += strings.TrimSpace(inHost(t, g.Gateway, "cat", "/proc/sys/"+key))
		}
		return list
	}
	k := killer{g: g.gateway, rng: rand.New(rand.NewPCG(1, 0))}
	apply := "apply -f " + g.file("boot.yaml", gateBoth)
	calls, _, said := k.traced(apply, -1)
	if is := forwards(); is != "11" {
		t.Fatalf("apply sets %s: %s", is, said)
	}
	g.must("detach")
	linked := -1
	for i, c := range calls {
		if c == "link_create" {
			linked = i
		}
	}
	inForce := linked + 1 + slices.Index(calls[linked+1:], "map_update")
	t.Logf("last link %d, then update %d, of %d: %v", linked, inForce, len(calls), calls[linked:])
	for _, at := range []int{linked, inForce} {
		if _, died, said := k.traced(apply, at); !died {
			t.Fatalf("not killed at call %d: %s", at, said)
		}
		if is := forwards(); is != "00" {
			t.Errorf("killed at call %d of %d (%s) the kernel forwards: %s", at, len(calls), calls[at], is)
		}
		g.must("detach")
	}
}
