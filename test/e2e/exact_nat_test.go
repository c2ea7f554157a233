package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// ipBetween keeps IP packets from one address to another.
func ipBetween(frames []lab.Frame, from, to netip.Addr) []lab.Frame {
	return lab.Select(frames, func(f lab.Frame) bool {
		src, dst, ok := addresses(f)
		return ok && src == from && dst == to
	})
}

// addresses of an IP packet without tags.
func addresses(f lab.Frame) (src, dst netip.Addr, ok bool) {
	p := f.Payload()
	switch kind, _ := f.EtherType(); {
	case kind == 0x0800 && len(p) >= 20:
		return netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20])), true
	case kind == 0x86dd && len(p) >= 40:
		return netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40])), true
	}
	return
}

// T3: the copy is made before source NAT and after its reverse: the sensor sees
// inside addresses only, the outside the gateway's only.
func TestT03InsideAddresses(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := masqueraded(t, kind)
		server, outside, gw := g.Servers[0], g.Outside[0], g.Gateway.Interface("eth0").Addr.Addr()
		v := sensorView(g)
		w := watchCable(g, "eth3", server, v)
		far := dump(g, outside, onWire)
		g.apply(example)
		w.same(func() {
			ping(t, server, outside.Addr)
			talkTCP(t, server, echoTCP(t, outside, outside.Addr.String()+":0"), 50_000)
			talkUDP(t, server, echoUDP(t, outside, outside.Addr.String()+":0"), 0, 100, 1400, 5000)
		})
		frames, err := v.dump.Frames()
		if err != nil {
			t.Fatal(err)
		}
		out, in := ipBetween(frames, server.Addr, outside.Addr), ipBetween(frames, outside.Addr, server.Addr)
		for proto, name := range map[byte]string{1: "ICMP", 6: "TCP", 17: "UDP"} {
			of := func(f lab.Frame) bool { return f.Payload()[9] == proto }
			if n, m := len(lab.Select(out, of)), len(lab.Select(in, of)); n == 0 || m == 0 {
				t.Errorf("%s: the sensor saw %d packets out and %d in with inside addresses", name, n, m)
			}
		}
		for _, f := range frames {
			if src, dst, ok := addresses(f); ok && (src == gw || dst == gw) {
				t.Fatalf("the sensor saw the gateway's outside address: %s", brief(f.Data))
			}
		}
		if frames, err = far.Frames(); err != nil || len(ipBetween(frames, gw, outside.Addr)) == 0 || len(ipBetween(frames, server.Addr, outside.Addr)) > 0 {
			t.Errorf("no masquerade, nothing shown: %d packets from the gateway, %d from the server, %v",
				len(ipBetween(frames, gw, outside.Addr)), len(ipBetween(frames, server.Addr, outside.Addr)), err)
		}
		v.account(g, "ids", 0)
	})
}

func ping(t *testing.T, from *lab.Host, to netip.Addr) {
	t.Helper()
	echoAll(t, from, to, 3, 56)
}

// A server that calls its own outside address: the packet comes back by the
// interface it went in, with other headers, and is seen both times.
func TestT03Hairpin(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newGateway(t)
		g.kind = kind
		wholeChecksums(g)
		server, gw := g.Servers[0], g.Gateway.Interface("eth0").Addr.Addr()
		nft(t, g, `table ip lab {
			chain pre { type nat hook prerouting priority dstnat
				ip daddr `+gw.String()+` udp dport 4000 dnat to `+server.Addr.String()+`:4001
				ip daddr `+gw.String()+` tcp dport 4000 dnat to `+server.Addr.String()+`:4001
			}
			chain post { type nat hook postrouting priority srcnat
				oifname { "eth0", "eth3" } masquerade
			}
		}`)
		v := sensorView(g)
		w := watchCable(g, "eth3", server, v)
		g.apply(example)
		echoTCP(t, server, server.Addr.String()+":4001")
		echoUDP(t, server, server.Addr.String()+":4001")
		to := netip.AddrPortFrom(gw, 4000).String()
		out, in := w.same(func() {
			talkUDP(t, server, to, 0, 100, 1400, 5000)
			talkTCP(t, server, to, 100_000)
		})
		inner := g.Gateway.Interface("eth3").Addr.Addr()
		for name, n := range map[string]int{
			"called":   len(ipBetween(out, server.Addr, gw)),
			"arrived":  len(ipBetween(in, inner, server.Addr)),
			"answered": len(ipBetween(out, server.Addr, inner)),
			"got back": len(ipBetween(in, gw, server.Addr)),
		} {
			if n == 0 {
				t.Errorf("no packet %s: no hairpin, nothing shown", name)
			}
		}
		v.account(g, "ids", 0)
	})
}

// nft loads rules in the gateway.
func nft(t *testing.T, g *gateway, rules string) {
	t.Helper()
	tool(t, g.Gateway, "nft", rules)
}

// One mirror over two interfaces: what is routed from one to the other is
// copied where it comes in and not again, also when the gateway puts fragments
// and segments together on the way.
func TestExactRoutedBetweenInternal(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newGateway(t, lab.SecondInternal())
		g.kind = kind
		if err := g.Masquerade(); err != nil { // brings connection tracking with it
			t.Fatal(err)
		}
		wholeChecksums(g)
		for _, ifname := range []string{"eth3", "eth5"} {
			tool(t, g.Gateway, "ethtool", "-K", ifname, "gro", "on")
		}
		server, second := g.Servers[0], g.Second
		v := sensorView(g)
		w := watchLarge(g, "eth3", server, offload, v)
		far := dump(g, second, onWire, "-Q", "out")
		g.apply(strings.Replace(example, "[eth3]", "[eth3, eth5]", 1))
		w.mark(true)
		mixed(t, server, second)
		last := w.mark(true)
		for _, d := range []*lab.Tcpdump{w.out, v.dump} {
			if _, err := d.WaitFor(func(frames []lab.Frame) bool { return indexOf(frames, last) >= 0 }, exactWait); err != nil {
				t.Fatal(err)
			}
		}
		read := func(d *lab.Tcpdump) []lab.Frame {
			frames, err := d.Frames()
			if err != nil {
				t.Fatal(err)
			}
			return frames
		}
		for _, a := range [][2]netip.Addr{{server.Addr, second.Addr}, {server.Addr6, second.Addr6}} {
			out, back := ipBetween(read(w.out), a[0], a[1]), ipBetween(read(far), a[1], a[0])
			if len(out) < 200 || len(back) < 200 {
				t.Errorf("%d frames out and %d back: the test shows little", len(out), len(back))
			}
			interleaved(t, a[0].String(), ipBetween(read(v.dump), a[0], a[1]), out)
			interleaved(t, a[1].String(), ipBetween(read(v.dump), a[1], a[0]), back)
		}
		v.account(g, "ids", 0)
		for _, m := range g.status().Members {
			if m.Role == loader.RoleInternal && m.Egress.Duplicates == 0 {
				t.Errorf("%s has passed over no packet", m.Interface)
			}
		}
	})
}

// Two mirrors, one for each internal zone: each is complete by itself, as its
// zone's own cable shows it, with the hop limit of that side.
func TestExactRoutedBetweenMirrors(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newGateway(t, lab.SecondInternal())
		g.kind = kind
		wholeChecksums(g)
		one, two := sensorView(g), &sensorSide{host: g.Mgmt, from: wholeFrame}
		w1 := watchCable(g, "eth3", g.Servers[0], one)
		w2 := watchCable(g, "eth5", g.Second, two)
		g.apply(`
zones:
  internal: {interfaces: [eth3]}
  lab:      {role: internal, interfaces: [eth5]}
  dmz:      {interfaces: [eth2, eth4]}
mirrors:
  - name: ids
    zones: [internal]
    targets: [{via: 192.168.4.2}]
  - name: second
    zones: [lab]
    targets: [{l2: eth4}]
`)
		w1.same(func() { w2.same(func() { mixed(t, g.Servers[0], g.Second) }) })
		one.account(g, "ids", 0)
		two.account(g, "second", 0)
	})
}
