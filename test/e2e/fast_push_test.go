package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
)

// A flow is pushed between the fast path and the stack a hundred times, in every way
// there is, while numbered datagrams of all sizes go both ways: none is lost, doubled
// or changed, but for those sent while a link was down, which the kernel loses as
// well; and the sensor has each of them once. By the kernel's forwarding the same.
func TestFastPushed(t *testing.T) {
	t.Parallel()
	for _, forwarding := range []string{"", forwardKernel} {
		t.Run("forwarding "+forwarding, func(t *testing.T) {
			if forwarding == forwardKernel {
				pushed(t, loader.AttachClsact, forwarding, pushes/5)
				return
			}
			pushed(t, loader.AttachAuto, forwarding, pushes)
		})
	}
}

const pushes = 100

func pushed(t *testing.T, kind loader.AttachKind, forwarding string, n int) {
	g := newDirect(t)
	g.kind, g.forwarding = kind, forwarding
	for _, name := range []string{"all", "eth0", "eth3"} {
		if err := g.Gateway.Sysctl("net/ipv6/conf/"+name+"/keep_addr_on_down", "1"); err != nil {
			t.Fatal(err)
		}
	}
	const config = gateZones + "nat:\n  masquerade:\n    - {from: internal, to: external, ipv6: true}\n"
	g.apply(config)
	g.resolved() // the sensor is known before its first packet
	capture, err := g.Sensor.Capture("eth0", lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	k := g.newLines()
	end := k.begin()
	defer func() { end() }()

	hosts := map[string]*lab.Host{"eth0": g.out[0], "eth3": g.in[0]}
	ways := []struct {
		name string
		push func(ifname string)
		both bool // packets of both directions take the stack, and not only those that leave by the interface
	}{
		{"datagrams in fragments", func(string) {
			before := g.counts()
			k.setLarge(2000, 2000)
			k.bothPaths(before, lineEnds...)
			k.setLarge(0, 0)
		}, true},
		{"a route's MTU", func(ifname string) {
			k.setLarge(1400, 2000) // whole; in pieces, since IPv6 tells the sender and loses the packet
			g.narrowRoute(ifname, fmt.Sprintf(" mtu lock %d", narrow))
			k.bothPaths(g.counts(), otherEnd[ifname])
			g.narrowRoute(ifname, "")
			k.setLarge(0, 0)
		}, false},
		{"a neighbour lost", func(ifname string) {
			// The kernel loses a packet that is about to be sent to one just then.
			end()
			h := hosts[ifname]
			g.ip(g.Gateway, fmt.Sprintf("neigh del %s dev %s", h.Addr, ifname))
			g.ip(g.Gateway, fmt.Sprintf("neigh del %s dev %s", h.Addr6, ifname))
			end = k.begin()
		}, false},
		{"a link down and up", func(ifname string) {
			end()
			g.linkDown(ifname, func() { k.waste(10) })
			end = k.begin()
		}, false},
		{"forwarding by the kernel", func(string) {
			g.forwarding = forwardKernel
			g.apply(config)
			g.forwarding = forwarding
			g.apply(config)
		}, true},
	}
	for i := range n {
		w, ifname := ways[i%len(ways)], []string{"eth0", "eth3"}[i/len(ways)%2]
		places := lineEnds
		if !w.both {
			places = []string{otherEnd[ifname]}
		}
		k.now.Store(fmt.Sprintf("push %d, %s, %s", i, w.name, ifname))
		before := g.counts()
		w.push(ifname)
		k.bothPaths(before, places...)
		k.bothFast()
	}
	end()
	k.check()
	if t.Failed() {
		return
	}
	k.mirrored(capture)
	g.checkLedgers()
	sent := uint64(0)
	for _, l := range k.all {
		sent += l.sent
	}
	after := g.counts()
	t.Logf("%d datagrams, none lost; of %d buffers, %d took the fast path", sent, after["eth3 in"].all+after["eth0 in"].all, after["eth3 in"].fast+after["eth0 in"].fast)
	g.consistent()
}

// linkDown takes an interface of the gateway down, and up again after f, and waits
// until it carries packets.
func (g *gate) linkDown(ifname string, f func()) {
	g.t.Helper()
	if err := g.Gateway.SetUp(ifname, false); err != nil {
		g.t.Fatal(err)
	}
	f()
	if err := g.Gateway.SetUp(ifname, true); err != nil {
		g.t.Fatal(err)
	}
	// Some time after its carrier is back a link takes packets again.
	ctx := g.Context()
	for _, to := range []netip.Addr{g.out[0].Addr, g.out[0].Addr6} {
		eventually(g.t, func() string {
			if n, err := g.in[0].Ping(ctx, to, 1); err != nil || n != 1 {
				return fmt.Sprintf("%s does not answer after %s was down: %v", to, ifname, err)
			}
			return ""
		})
	}
}
