package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/gateclock"
	"tapgate/test/lab"
)

// gateWait bounds waits for what another host does at once; machines may be slow.
const gateWait = 30 * time.Second

// gate is a gateway that translates, with two hosts inside and two outside, or one
// and the same.
type gate struct {
	*gateway
	in, out [2]*lab.Host

	stations *[3]atomic.Int32 // numbers given away, by enum below
	texts    *atomic.Int32
}

// gateZones are the networks of the lab and a mirror of the internal one.
const gateZones = example

// gateBoth translates IPv4 and IPv6. Inside hosts from .128 and ::80 on have
// endpoint-independent filtering, those below address-dependent.
const gateBoth = gateZones + `
nat:
  masquerade:
    - {from: internal, to: external, ipv6: true}
    - {name: open, from: internal, to: external, ipv6: true, filtering: endpoint-independent, sources: [192.168.3.128/25, "2001:db8:3::80/121"]}
`

// The numbers of stations whose filtering is endpoint-independent begin here.
const gateOpen = 128

// Where stations stand.
const (
	atInside = iota
	atOpen   // inside, with endpoint-independent filtering
	atOutside
)

// newGate puts a configuration in force in networks of its own.
func newGate(t *testing.T, config string, opts ...lab.Option) *gate {
	t.Helper()
	g := newGateLab(t, opts...)
	g.apply(config)
	return g
}

// fresh is newGate for a row that needs networks of its own, with programs attached
// and packets forwarded the same way.
func (g *gate) fresh(config string, opts ...lab.Option) *gate {
	g.t.Helper()
	n := g.freshLab(opts...)
	n.apply(config)
	return n
}

// freshLab is fresh before a configuration is in force.
func (g *gate) freshLab(opts ...lab.Option) *gate {
	g.t.Helper()
	n := newGateLab(g.t, opts...)
	n.kind, n.forwarding = g.kind, g.forwarding
	return n
}

// newGateLab are the networks before a configuration is in force.
func newGateLab(t *testing.T, opts ...lab.Option) *gate {
	t.Helper()
	g := &gate{
		gateway:  newGateway(t, append([]lab.Option{lab.Servers(2), lab.Outside(2)}, opts...)...),
		stations: &[3]atomic.Int32{}, texts: &atomic.Int32{},
	}
	g.in = [2]*lab.Host{g.Servers[0], g.Servers[len(g.Servers)-1]}
	g.out = [2]*lab.Host{g.Outside[0], g.Outside[len(g.Outside)-1]}
	g.stations[atInside].Store(20)
	g.stations[atOpen].Store(gateOpen)
	g.stations[atOutside].Store(20)
	return g
}

// awaitUptime is for tests that let time pass: call it before there are flows.
func awaitUptime(t *testing.T) {
	t.Helper()
	if err := gateclock.Await(); err != nil {
		t.Fatal(err)
	}
}

// with is the same gateway for another (sub)test.
func (g *gate) with(t *testing.T) *gate {
	inner, c := *g.gateway, *g
	inner.t = t
	c.gateway = &inner
	return &c
}

// families runs a test with IPv4 and IPv6.
func (g *gate) families(f func(g *gate, v6 bool)) {
	g.t.Run("ipv4", func(t *testing.T) { f(g.with(t), false) })
	g.t.Run("ipv6", func(t *testing.T) { f(g.with(t), true) })
}

// outside is the gateway's address on its external interface.
func (g *gate) outside(v6 bool) netip.Addr {
	i := g.Gateway.Interface("eth0")
	if v6 {
		return i.Addr6.Addr()
	}
	return i.Addr.Addr()
}

// text is a payload that no other packet has.
func (g *gate) text() string { return fmt.Sprintf("%s %d.", g.t.Name(), g.texts.Add(1)) }

// opened does something with the gateway's state.
func (g *gate) opened(f func(*loader.Gateway) error) {
	g.t.Helper()
	gw, err := loader.Open(loader.Options{Netns: g.Gateway.Name, BPFFS: g.bpffs, LockTimeout: gateWait}, loader.ReadOnly)
	if err == nil {
		err = errors.Join(f(gw), gw.Close())
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

// flows asks the gateway for the flows of an address, tidied up before.
func (g *gate) flows(of netip.Addr) (all []loader.Flow) {
	g.t.Helper()
	g.opened(func(gw *loader.Gateway) (err error) {
		all, err = gw.Flows(loader.FlowFilter{Addr: netip.PrefixFrom(of, of.BitLen())})
		return err
	})
	return all
}

// sweep lets the table clean itself, as any command of ours does.
func (g *gate) sweep() {
	g.t.Helper()
	g.opened((*loader.Gateway).Sweep)
}

// flowOf is the one flow of an inside endpoint and a remote one.
func (g *gate) flowOf(proto string, inside, remote netip.AddrPort) loader.Flow {
	g.t.Helper()
	all, far := g.flows(inside.Addr()), remote.String()
	if remote.Port() == 0 { // of an ICMP query
		far = remote.Addr().String()
	}
	for _, f := range all {
		if f.Proto == proto && f.Inside == inside.String() && f.Remote == far {
			return f
		}
	}
	g.t.Fatalf("no %s flow of %s and %s among %+v", proto, inside, remote, all)
	return loader.Flow{}
}

// expiresAtLeast fails unless the flow lives for that long from now on, but for
// the seconds that the test itself has taken.
func (g *gate) expiresAtLeast(f loader.Flow, d time.Duration) {
	g.t.Helper()
	if left := time.Duration(f.ExpiresIn * float64(time.Second)); left < d-gateWait || left > 2*24*time.Hour {
		g.t.Errorf("the flow of %s and %s (%s) expires in %v, want %v", f.Inside, f.Remote, f.State, left, d)
	}
}

// clock does something with the time of the flows. The maps are open no longer than that.
func (g *gate) clock(f func(*gateclock.Clock) error) {
	g.t.Helper()
	c, err := gateclock.Pinned(g.stateDir())
	if err != nil {
		g.t.Fatal(err)
	}
	defer c.Close()
	if err := f(c); err != nil {
		g.t.Fatal(err)
	}
}

// pass lets time go by for hosts, or for all.
func (g *gate) pass(d time.Duration, hosts ...netip.Addr) {
	g.t.Helper()
	g.clock(func(c *gateclock.Clock) error { return c.Pass(d, hosts...) })
}
