package e2e

import (
	"bytes"
	"testing"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// teeRules are what the recipe does with TEE, by nft.
const teeRules = `table ip tee {
	chain pre { type filter hook prerouting priority mangle
		iifname "eth3" dup to 192.168.4.2 device "eth2"
	}
	chain inward { type filter hook forward priority mangle
		ip daddr 192.168.3.0/24 dup to 192.168.4.2 device "eth2"
	}
}`

// icmpErrors counts unreachable and too-big messages.
func icmpErrors(frames []lab.Frame) (n int) {
	for _, f := range frames {
		p := f.Payload()
		kind, _ := f.EtherType()
		if kind == 0x0800 && len(p) > 20 && p[9] == 1 && p[20] == 3 || kind == 0x86dd && len(p) > 40 && p[6] == 58 && p[40] < 4 {
			n++
		}
	}
	return n
}

// T19: what TEE does to copies and to production, in the same lab, and that
// ours does not.
func TestT19NotAsTEE(t *testing.T) {
	kernels.Require(t, "nft_dup")
	t.Parallel()
	for _, tee := range []bool{true, false} {
		name := map[bool]string{true: "TEE", false: "tapgate"}[tee]
		t.Run(name+", copies", func(t *testing.T) {
			g, w := teeOrOurs(t, tee)
			const pings = 5
			echoAll(t, g.Servers[0], g.Outside[0].Addr, pings, 56)
			echoAll(t, g.Servers[0], g.Outside[0].Addr6, pings, 56)
			server, outside := g.Servers[0], g.Outside[0]
			frames, err := w.WaitFor(func(frames []lab.Frame) bool {
				return len(ipBetween(frames, server.Addr, outside.Addr)) == pings &&
					(tee || len(ipBetween(frames, server.Addr6, outside.Addr6)) == pings)
			}, exactWait)
			if err != nil {
				t.Fatal(err)
			}
			changed := 0
			for _, f := range ipBetween(frames, server.Addr, outside.Addr) {
				if f.Payload()[8] != 64 {
					changed++
				}
			}
			missing := len(ipBetween(frames, server.Addr6, outside.Addr6)) == 0
			if tee != (changed == pings) || tee != missing {
				t.Errorf("%d of %d copies have another TTL; IPv6 missing: %v", changed, pings, missing)
			}
		})
		t.Run(name+", sensor MTU 1280", func(t *testing.T) {
			g, _ := teeOrOurs(t, tee)
			near := dump(g, g.Servers[0], offload, "-Q", "in")
			for _, h := range []struct {
				host   *lab.Host
				ifname string
			}{{g.Gateway, "eth2"}, {g.Sensor, "eth0"}} {
				if err := h.host.SetMTU(h.ifname, 1280); err != nil {
					t.Fatal(err)
				}
			}
			addr := echoUDP(t, g.Outside[0], g.Outside[0].Addr.String()+":0")
			if !tee {
				talkUDP(t, g.Servers[0], addr, sizes(60)...)
				echoAll(t, g.Servers[0], g.Outside[0].Addr, 3, 1472)
				echoAll(t, g.Servers[0], g.Outside[0].Addr6, 3, 1452)
				m := g.mirror("ids")
				if m.Skipped["too_big"].Packets == 0 {
					t.Errorf("nothing was too big: %+v", m)
				}
				g.checkLedgers()
			} else {
				echoOne(t, g.Servers[0], addr, 1472)
				if _, err := near.WaitFor(func(frames []lab.Frame) bool { return icmpErrors(frames) > 0 }, exactWait); err != nil {
					t.Error("TEE did not tell production of the sensor's MTU: ", err)
				}
				return
			}
			frames, err := near.Frames()
			if n := icmpErrors(frames); n > 0 || err != nil {
				t.Errorf("production got %d ICMP errors, %v", n, err)
			}
			route := tool(t, g.Servers[0], "ip", "route", "get", g.Outside[0].Addr.String())
			if bytes.Contains([]byte(route), []byte("mtu")) {
				t.Errorf("production's path MTU fell: %s", route)
			}
		})
		t.Run(name+", sensor unresolved", func(t *testing.T) {
			g, _ := teeOrOurs(t, tee, lab.SilentSensor())
			near := dump(g, g.Servers[0], onWire, "-Q", "in")
			addr := echoUDP(t, g.Outside[0], g.Outside[0].Addr.String()+":0")
			if !tee {
				talkUDP(t, g.Servers[0], addr, sizes(60)...)
				m := g.mirror("ids")
				if m.Skipped["unresolved"].Packets < 120 || m.Copied.Packets > 0 {
					t.Errorf("copies to nobody: %+v", m)
				}
				g.checkLedgers()
				frames, err := near.Frames()
				if n := icmpErrors(frames); n > 0 || err != nil {
					t.Errorf("production got %d ICMP errors, %v", n, err)
				}
				return
			}
			talkUDP(t, g.Servers[0], addr, 100)
			if _, err := near.WaitFor(func(frames []lab.Frame) bool { return icmpErrors(frames) > 0 }, exactWait); err != nil {
				t.Error("TEE did not tell production of the missing sensor: ", err)
			}
		})
	}
}

// teeOrOurs is a lab with one of the two taps, and the sensor's capture.
func teeOrOurs(t *testing.T, tee bool, opts ...lab.Option) (*gateway, *lab.Tcpdump) {
	t.Helper()
	g := newGateway(t, append(opts, lab.RoutedOutside())...)
	d := dump(g, g.Sensor, onWire, "-Q", "in")
	if tee {
		nft(t, g, teeRules)
	} else {
		g.kind = loader.AttachAuto
		g.apply(example)
	}
	return g, d
}
