package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
)

// flowsEnded is what the agent says when it ends flows.
const flowsEnded = "addresses that are gone"

// Addresses of the interfaces change, by hand, as tools and network managers do it.
func TestAgentFollowAddresses(t *testing.T) {
	t.Parallel()
	f := newFollowed(t, loader.AttachAuto, followConfig)
	gw := func(line string) { f.t.Helper(); f.ip(f.Gateway, line) }
	others := []string{"203.0.113.71/24", "2001:db8:113::71/64"}
	own := []string{f.Gateway.Interface("eth0").Addr.String(), f.Gateway.Interface("eth0").Addr6.String()}
	change := func(from, to []string, addFirst bool) func() {
		return func() {
			for i := range from {
				add, del := "addr add "+to[i]+" dev eth0 nodad", "addr del "+from[i]+" dev eth0"
				if i == 1 {
					add = "-6 " + add
				}
				if addFirst {
					gw(add)
					gw(del)
					gw(strings.Replace(add, "addr add", "addr replace", 1)) // it may have gone with the other one
				} else {
					gw(del)
					gw(add)
				}
			}
			f.routed()
		}
	}
	if err := f.Gateway.Sysctl("net/ipv4/conf/eth0/promote_secondaries", "1"); err != nil {
		t.Fatal(err)
	}
	wantFrom := func(want []string) {
		t.Helper()
		for i, got := range f.outsides() {
			if p := netip.MustParsePrefix(want[i]); got.Addr() != p.Addr() {
				t.Errorf("comes from %s, want %s", got, p.Addr())
			}
		}
	}
	f.sameOutside("same addresses again", func() {
		f.resumes("outside addresses lost, and the same ones back at once", change(own, own, false))
		f.resumes("outside addresses lost, and the same ones back after 2 s", func() {
			gw("addr flush dev eth0 scope global")
			time.Sleep(2 * time.Second)
			f.addresses("eth0")
		})
	})
	if strings.Contains(f.agent.log.String(), flowsEnded) {
		t.Error("flows were ended though their addresses came back")
	}
	f.disown("IPv4", "IPv6")
	f.resumes("other outside addresses, the old ones away first", change(own, others, false))
	wantFrom(others)
	f.disown("IPv4", "IPv6")
	f.resumes("other outside addresses, the new ones there first", change(others, own, true))
	wantFrom(own)
	f.sameOutside("default routes", func() {
		f.resumes("default routes lost and back", func() {
			gw("route del default")
			gw("-6 route del default")
			time.Sleep(time.Second)
			f.routed()
		})
	})

	// A second network inside: its hosts may send as soon as the gateway has it.
	in := f.in[0]
	second := func(op string) {
		t.Helper()
		gw("addr " + op + " 192.168.33.1/24 dev eth3")
		gw("-6 addr " + op + " 2001:db8:33::1/64 dev eth3" + map[string]string{"add": " nodad"}[op])
	}
	f.ip(in, "addr add 192.168.33.2/24 dev eth0")
	reaches := func() bool {
		n, err := pingFrom(f.Context(), in, "192.168.33.2", f.out[0].Addr)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if reaches() {
		t.Error("a source of no inside network passes")
	}
	second("add")
	begun := time.Now()
	retry(t, func() error {
		if !reaches() {
			return fmt.Errorf("the second network does not get out: %q", f.status().Problems)
		}
		return nil
	})
	t.Logf("a second network inside: %d ms", time.Since(begun).Milliseconds())
	second("del")
	retry(t, func() error {
		if reaches() {
			return fmt.Errorf("the network that is gone may still send")
		}
		return nil
	})
	f.allFlows("with one network inside again", time.Now())

	// The gateway's own address in the dmz: questions are asked with it.
	f.resumes("another address of the gateway in the dmz", func() {
		gw("addr add 192.168.4.77/24 dev eth2")
		gw("addr del 192.168.4.1/24 dev eth2")
		gw("addr replace 192.168.4.77/24 dev eth2")
	})
	gw("addr flush dev eth2")
	f.allFlows("the dmz interface without address", time.Now())
	gw("addr add 192.168.4.1/24 dev eth2")
	f.rightly("with the old one again")
}

// pingFrom says whether a host is reached with this source.
func pingFrom(ctx context.Context, h *lab.Host, source string, to netip.Addr) (bool, error) {
	out, err := h.Command(ctx, "ping", "-n", "-c", "1", "-W", "0.2", "-I", source, to.String()).CombinedOutput()
	if err == nil {
		return true, nil
	}
	if strings.Contains(string(out), "100% packet loss") {
		return false, nil
	}
	return false, fmt.Errorf("ping: %w\n%s", err, out)
}
