package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"tapgate/test/lab"
)

// A way in four parts, each of which may be the narrow one:
//
//	deep - in1 - eth3 gateway eth0 - out1 - far
//
// deep is in2's address behind in1, far is out2's behind out1. The way back from
// both does not pass in1 or out1.
const (
	narrow   = 1280
	mtuZones = `
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3], prefixes: [10.3.0.0/24, "2001:db8:300::/64"]}
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true}
  forwards:
    - {name: deep, in: external, proto: tcp, port: 4000, to: "10.3.0.2:4000"}
    - {name: deep6, in: external, proto: tcp, port: 4000, to: "[2001:db8:300::2]:4000"}
    - {name: near, in: external, proto: tcp, port: 4001, to: "192.168.3.3:4001"}
    - {name: near6, in: external, proto: tcp, port: 4001, to: "[2001:db8:3::3]:4001"}
`
)

var (
	deepAddr  = [2]netip.Addr{netip.MustParseAddr("10.3.0.2"), netip.MustParseAddr("2001:db8:300::2")}
	farAddr   = [2]netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:fa::2")}
	narrowIPs = [2][]string{{"10.3.0.1/24", "2001:db8:300::1/64"}, {"198.51.100.1/24", "2001:db8:fa::1/64"}}
)

func newNarrow(t *testing.T) *gate {
	g := newGateLab(t, lab.NoSensor())
	for i, pair := range [][2]*lab.Host{g.in, g.out} {
		router, end := pair[0], pair[1]
		far := [2][2]netip.Addr{deepAddr, farAddr}[i]
		sh(t, fmt.Sprintf("ip link add side mtu %d netns %s type veth peer name side mtu %d netns %s", narrow, router.Name, narrow, end.Name))
		for j, a := range narrowIPs[i] {
			g.ip(router, "addr add "+a+" dev side nodad")
			g.ip(end, fmt.Sprintf("addr add %s/%d dev side nodad", far[j], far[j].BitLen()))
			own := [2]netip.Addr{router.Addr, router.Addr6}[j]
			g.ip(g.Gateway, fmt.Sprintf("route add %s via %s", netip.MustParsePrefix(a).Masked(), own))
		}
		g.ip(router, "link set side up")
		g.ip(end, "link set side up")
		for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if err := router.Sysctl(name, "1"); err != nil {
				t.Fatal(err)
			}
		}
		// Both hosts see packets by ways other than their own.
		for _, h := range pair {
			for _, dev := range []string{"all", "eth0", "side"} {
				if err := h.Sysctl("net/ipv4/conf/"+dev+"/rp_filter", "0"); err != nil {
					t.Fatal(err)
				}
			}
			if err := h.Sysctl("net/ipv4/conf/all/send_redirects", "0"); err != nil {
				t.Fatal(err)
			}
		}
	}
	g.apply(mtuZones)
	return g
}

// wants fails unless a host has learned the size of the way to an address.
func (g *gate) learned(h *lab.Host, to, from netip.Addr, proto string) {
	g.t.Helper()
	route := inHost(g.t, h, "ip", "route", "get", to.String(), "from", from.String())
	if !strings.Contains(route, fmt.Sprintf("mtu %d", narrow)) {
		g.t.Errorf("%s has not learned that the way to %s is narrow, by %s: %s", h.Name, to, proto, route)
	}
}

// forget has all hosts forget what they have learned of ways.
func (g *gate) forget() {
	for _, h := range []*lab.Host{g.in[0], g.in[1], g.out[0], g.out[1], g.Gateway} {
		g.ip(h, "route flush cache")
		g.ip(h, "-6 route flush cache")
	}
}

// TCP gets through wherever the way is narrow, in both directions, with mappings
// and forwards, by the errors of the gateway's own kernel and those of others: the
// sender learns the size. No MSS is clamped.
func TestStressPathMTU(t *testing.T) {
	g := newNarrow(t)
	for _, where := range []string{"far", "eth0", "eth3", "deep"} {
		t.Run(where, func(t *testing.T) {
			g := g.with(t)
			if strings.HasPrefix(where, "eth") {
				g.narrowRoute(where, fmt.Sprintf(" mtu lock %d", narrow))
				defer g.narrowRoute(where, "")
			}
			g.families(func(g *gate, v6 bool) {
				g.t.Run("masquerade", func(t *testing.T) { g.with(t).narrowWay(where, v6, false) })
				g.forget()
				g.t.Run("forward", func(t *testing.T) { g.with(t).narrowWay(where, v6, true) })
				g.forget()
			})
		})
	}
}

// narrowRoute bounds what the gateway sends by an interface. The interface itself
// stays as it is: a veth drops larger frames that come in, and tells nobody.
func (g *gate) narrowRoute(ifname, bound string) {
	g.t.Helper()
	i := g.Gateway.Interface(ifname)
	g.ip(g.Gateway, fmt.Sprintf("route replace %s dev %s proto kernel scope link src %s%s", i.Addr.Masked(), ifname, i.Addr.Addr(), bound))
	g.ip(g.Gateway, fmt.Sprintf("-6 route replace %s dev %s proto kernel metric 256%s", i.Addr6.Masked(), ifname, bound))
}

func (g *gate) narrowWay(where string, v6, forward bool) {
	i := 0
	if v6 {
		i = 1
	}
	inside, outside := addrOf(g.in[1], v6), addrOf(g.out[1], v6)
	port := uint16(4001)
	if where == "deep" {
		inside, port = deepAddr[i], 4000
	}
	if where == "far" {
		outside = farAddr[i]
	}
	const size = 200_000
	if forward {
		echoTCP(g.t, g.in[1], netip.AddrPortFrom(inside, port).String())
		g.talkFrom(g.out[1], outside, netip.AddrPortFrom(g.outside(v6), port), size)
	} else {
		at := echoTCP(g.t, g.out[1], netip.AddrPortFrom(outside, 0).String())
		g.talkFrom(g.in[1], inside, netip.MustParseAddrPort(at), size)
	}
	switch {
	case where == "far" || where == "eth0":
		g.learned(g.in[1], outside, inside, "TCP")
	default:
		g.learned(g.out[1], g.outside(v6), outside, "TCP")
	}
}

// talkFrom is talkTCP from an address of the host.
func (g *gate) talkFrom(h *lab.Host, from netip.Addr, to netip.AddrPort, n int) {
	g.t.Helper()
	c, err := g.dial(h, netip.AddrPortFrom(from, 0), to)
	if err != nil {
		g.t.Fatal(err)
	}
	g.bounce(c, n)
}

// bounce sends n bytes over a connection to an echo and requires that they come back.
func (g *gate) bounce(c net.Conn, n int) {
	g.t.Helper()
	sent, got := noise(n), make([]byte, n)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- err
	}()
	for read := 0; read < n; {
		m, err := c.Read(got[read:])
		if err != nil {
			g.t.Fatalf("%s to %s: %d of %d bytes came back: %v", c.LocalAddr(), c.RemoteAddr(), read, n, err)
		}
		read += m
	}
	if err := <-wrote; err != nil {
		g.t.Fatal(err)
	}
	if string(got) != string(sent) {
		g.t.Errorf("%s to %s: %d bytes came back changed", c.LocalAddr(), c.RemoteAddr(), n)
	}
}
