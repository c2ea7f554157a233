package loader

import (
	"fmt"
	"net/netip"
	"testing"

	"tapgate/test/lab"
)

// natBench is a gateway in networks of its own that translates.
type natBench struct {
	*lab.Lab
	t   *testing.T
	opt Options
}

func newNATBench(t *testing.T, opts ...lab.Option) *natBench {
	t.Helper()
	l := lab.ForTest(t, opts...)
	dir, err := l.MountBPFFS()
	if err != nil {
		t.Fatal(err)
	}
	b := &natBench{Lab: l, t: t, opt: Options{Netns: l.Gateway.Path(), BPFFS: dir}}
	t.Cleanup(func() {
		if _, err := Detach(b.opt); err != nil {
			t.Error(err)
		}
	})
	return b
}

func natConfig() Config {
	return Config{
		Zones: []Zone{
			{Name: "external", Role: RoleExternal, Interfaces: []string{"eth0"}},
			{Name: "internal", Role: RoleInternal, Interfaces: []string{"eth3"}},
			{Name: "mgmt", Role: RoleMgmt, Interfaces: []string{"eth4"}},
		},
		NAT: &NAT{Masquerades: []Masquerade{{From: "internal", To: "external"}}},
	}
}

func (b *natBench) apply(cfg Config) *Result {
	b.t.Helper()
	res, err := Apply(b.opt, cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	return res
}

// open runs f with the gateway open for writing.
func (b *natBench) open(f func(*Gateway) error) {
	b.t.Helper()
	g, err := Open(b.opt, ReadWrite)
	if err == nil {
		err = f(g)
		err = joinClose(err, g)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func joinClose(err error, g *Gateway) error {
	if cerr := g.Close(); err == nil {
		err = cerr
	}
	return err
}

// sysctls reads settings of the gateway's namespace.
func (b *natBench) sysctls(names ...string) (values string) {
	b.t.Helper()
	err := b.Gateway.Do(func() error {
		for _, name := range names {
			v, err := readSysctl(sysctlRoot + name)
			if err != nil {
				return err
			}
			values += v
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return values
}

func (b *natBench) setSysctl(name, value string) {
	b.t.Helper()
	if err := b.Gateway.Sysctl(name, value); err != nil {
		b.t.Fatal(err)
	}
}

// pingOut wants every echo request from inside to be answered.
func (b *natBench) pingOut(count int) {
	b.t.Helper()
	n, err := b.Servers[0].Ping(b.Context(), b.Outside[0].Interface("eth0").Addr.Addr(), count)
	if err != nil || n != count {
		b.t.Fatalf("%d of %d echo requests were answered: %v", n, count, err)
	}
}

func TestNATApply(t *testing.T) {
	b := newNATBench(t)
	b.apply(natConfig())
	outside := b.Gateway.Interface("eth0").Addr.Addr()
	b.open(func(g *Gateway) error {
		var addr tapgateTgOutsideAddr
		key := tapgateTgOutsideKey{Ifindex: uint32(g.active.Gateway.Outside[0].Ifindex), Family: 4}
		if err := g.maps[tapgateMapTgOutside].Lookup(key, &addr); err != nil {
			return err
		}
		if got := netip.AddrFrom16(addr.Addr).Unmap(); got != outside || addr.Mtu != 1500 {
			return fmt.Errorf("outside address %s mtu %d, want %s", got, addr.Mtu, outside)
		}
		return nil
	})
	b.pingOut(3)
}

func TestNATFlows(t *testing.T) {
	b := newNATBench(t)
	b.apply(natConfig())
	b.pingOut(3)
	server, remote := b.Servers[0].Interface("eth0").Addr.Addr(), b.Outside[0].Interface("eth0").Addr.Addr()
	b.open(func(g *Gateway) error {
		for _, f := range []FlowFilter{
			{}, {Proto: "icmp"}, {Zone: "internal"}, {Zone: "external"}, {Addr: netip.PrefixFrom(server, 32)}, {Addr: netip.PrefixFrom(remote, 24)},
			{Rule: "internal-external"}, {Origin: "masquerade"}, {Rule: "internal-external", Origin: "masquerade"},
		} {
			flows, err := g.Flows(f)
			if err != nil {
				return err
			}
			if len(flows) != 1 {
				return fmt.Errorf("%+v: %d flows, want 1", f, len(flows))
			}
		}
		for _, f := range []FlowFilter{{Proto: "tcp"}, {Zone: "mgmt"}, {Port: 1}, {Rule: "x"}, {Origin: "forward"}, {Addr: netip.MustParsePrefix("10.0.0.0/8")}} {
			flows, err := g.Flows(f)
			if err != nil {
				return err
			}
			if len(flows) != 0 {
				return fmt.Errorf("%+v: %d flows, want none", f, len(flows))
			}
		}
		if _, err := g.Flows(FlowFilter{Zone: "nowhere"}); err == nil {
			return fmt.Errorf("flows of a zone that is not there")
		}
		flows, err := g.Flows(FlowFilter{})
		if err != nil {
			return err
		}
		t.Logf("%+v", flows[0])
		f := flows[0]
		if f.Packets != 6 || f.PacketsOut != 3 || f.State != "answered" || f.InsideZone != "internal" || f.OutsideZone != "external" ||
			f.ExpiresIn < 50 || f.ExpiresIn > 60 || f.Remote != remote.String() || f.Asked != "" {
			return fmt.Errorf("not what was sent: %+v", f)
		}
		n, err := g.FlushFlows(FlowFilter{Addr: netip.PrefixFrom(server, 32)})
		if err == nil && n != 1 {
			err = fmt.Errorf("ended %d flows, want 1", n)
		}
		if err != nil {
			return err
		}
		s, err := g.Status()
		if err == nil && (s.Gateway.Flows != 0 || s.Gateway.Masquerades[0].Flows != 1 || s.Gateway.Masquerades[0].Last == "" || s.Gateway.Followed) {
			err = fmt.Errorf("status after a flush: %+v", s.Gateway)
		}
		t.Logf("%+v", s.Gateway)
		return err
	})
	b.pingOut(1)
}
