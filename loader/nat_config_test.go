package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapgate/test/lab"
)

// TestNATRefused: what cannot be is told with its place, all of it at once, and
// nothing is made.
func TestNATRefused(t *testing.T) {
	b := newNATBench(t, lab.SecondInternal())
	b.onGateway("eth0", func(l netlink.Link) error {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range addrs {
			err = errors.Join(err, netlink.AddrDel(l, &a))
		}
		return err
	})
	if err := b.Gateway.Do(func() error {
		return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun9"}, Mode: netlink.TUNTAP_MODE_TUN})
	}); err != nil {
		t.Fatal(err)
	}
	with := func(f func(*Config)) Config { cfg := natConfig(); f(&cfg); return cfg }
	for _, c := range []struct {
		cfg  Config
		path string
		text string
	}{
		{natConfig(), "nat.masquerade[0]", "no IPv4 address"},
		{with(func(c *Config) { c.NAT.Masquerades[0].IPv6 = true }), "nat.masquerade[0]", "no address"},
		{with(func(c *Config) { c.NAT.MaxFlows = 3 }), "nat.max_flows", "16 at least"},
		{with(func(c *Config) { c.NAT.MaxFlows, c.NAT.MaxFlowsPerHost = 100, 101 }), "nat.max_flows_per_host", "more (101) than all together (100)"},
		{with(func(c *Config) { c.NAT.Timeouts.TCPEstablished = time.Hour }), "nat.timeouts.tcp_established", "7440s is what RFC 5382, REQ-5"},
		{with(func(c *Config) { c.NAT.Timeouts.UDP = time.Minute }), "nat.timeouts.udp", "RFC 4787, REQ-5"},
		{with(func(c *Config) { c.NAT.Timeouts.ICMP = time.Second }), "nat.timeouts.icmp", "RFC 5508, REQ-2"},
		{with(func(c *Config) { c.Zones[0].Prefixes = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }), "zones.external.prefixes[0]", "internal"},
		{with(func(c *Config) { c.Zones[1].Prefixes = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")} }), "zones.internal.prefixes[0]", "10.0.0.0/8"},
		{with(func(c *Config) { c.Zones[0].Interfaces = []string{"tun9"} }), "zones.external.interfaces[0]", "no Ethernet frames"},
	} {
		_, err := Apply(b.opt, c.cfg)
		var found *ConfigError
		for _, e := range unjoin(err) {
			var ce *ConfigError
			if errors.As(e, &ce) && ce.Path == c.path {
				found = ce
			}
		}
		if found == nil || !strings.Contains(found.Err, c.text) {
			t.Errorf("%s: want %q, got: %v", c.path, c.text, err)
		}
	}
	if pathExists(b.opt.root()) {
		t.Error("refused, and state was made")
	}
	// Forced, it waits for the address that is to come.
	b.opt.Force = true
	res := b.apply(natConfig())
	if !slices.ContainsFunc(res.Warnings, func(w string) bool { return strings.Contains(w, "no IPv4 address") }) {
		t.Errorf("forced: %q", res.Warnings)
	}
}

func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var list []error
		for _, e := range j.Unwrap() {
			list = append(list, unjoin(e)...)
		}
		return list
	}
	return []error{err}
}

// TestNATNumbers: what keeps its name keeps its numbers; what is new starts at zero;
// what is gone still has its name for the flows that it made.
func TestNATNumbers(t *testing.T) {
	b := newNATBench(t)
	forward := func(name string, port uint16) Forward {
		return Forward{
			Name: name, In: "external", Proto: "tcp", Ports: PortRange{port, port},
			To: b.Servers[0].Interface("eth0").Addr.Addr(), ToPort: port,
		}
	}
	numbers := func() (m map[string]string) {
		m = map[string]string{}
		b.open(func(g *Gateway) error {
			for _, r := range g.active.Gateway.Rules {
				m[r.Kind+" "+r.Name] = fmt.Sprint(r.Number, r.Gone)
			}
			for _, z := range g.active.Zones {
				m["zone "+z.Name] = fmt.Sprint(z.Number, z.Gone)
			}
			return nil
		})
		return m
	}
	cfg := natConfig()
	cfg.NAT.Forwards = []Forward{forward("a", 80), forward("b", 81)}
	b.apply(cfg)
	b.pingOut(1)
	want := map[string]string{
		"zone external": "1 false", "zone internal": "2 false", "zone mgmt": "3 false",
		"forward a": "0 false", "forward b": "1 false", "masquerade internal-external": "2 false",
	}
	if got := numbers(); !reflect.DeepEqual(got, want) {
		t.Fatalf("at first: %v", got)
	}
	cfg.NAT.Forwards = []Forward{forward("c", 82), forward("b", 81)}
	cfg.Zones[2].Name = "admin"
	b.apply(cfg)
	want["forward a"], want["forward c"], want["zone mgmt"], want["zone admin"] = "0 true", "3 false", "3 true", "4 false"
	if got := numbers(); !reflect.DeepEqual(got, want) {
		t.Errorf("one replaced: %v", got)
	}
	b.open(func(g *Gateway) error {
		hits := make([]tapgateTgHit, 0)
		if err := g.maps[tapgateMapTgHits].Lookup(uint32(2), &hits); err != nil {
			return err
		}
		sum := uint64(0)
		for _, h := range hits {
			sum += h.Flows
		}
		if sum != 1 {
			return fmt.Errorf("the masquerade rule has %d hits, want its 1", sum)
		}
		return nil
	})

	// The same by Reduce, which does not look at interfaces.
	cfg.NAT.Forwards = []Forward{forward("b", 81)}
	b.open(func(g *Gateway) error {
		res, err := g.Reduce(cfg)
		if err == nil && !slices.Equal(res.Changes, []string{"- forward c: tcp 82 of zone external to 192.168.3.2:82"}) {
			err = fmt.Errorf("reduce tells %q", res.Changes)
		}
		return err
	})
	want["forward c"] = "3 true"
	if got := numbers(); !reflect.DeepEqual(got, want) {
		t.Errorf("reduced: %v", got)
	}
	b.pingOut(1)
	// And back.
	cfg.NAT.Forwards = []Forward{forward("b", 81), forward("a", 80)}
	b.apply(cfg)
	want["forward a"] = "0 false"
	if got := numbers(); !reflect.DeepEqual(got, want) {
		t.Errorf("back again: %v", got)
	}
}

// TestNATRoom: the table has the size of its making.
func TestNATRoom(t *testing.T) {
	b := newNATBench(t)
	b.apply(natConfig())
	cfg := natConfig()
	cfg.NAT.MaxFlows = DefaultMaxFlows + 1
	_, err := Apply(b.opt, cfg)
	var ce *ConfigError
	if !errors.As(err, &ce) || ce.Path != "nat.max_flows" || !strings.Contains(ce.Err, "tapgate detach") {
		t.Errorf("more flows than there is room for: %v", err)
	}
	cfg.NAT.MaxFlows = 1000
	b.apply(cfg)
	b.open(func(g *Gateway) error {
		s, err := g.Status()
		if err == nil && (s.Gateway.MaxFlows != 1000 || s.Gateway.MaxFresh != 500 || s.Gateway.MaxPerHost != 100) {
			err = fmt.Errorf("limits: %+v", s.Gateway)
		}
		return err
	})
	if _, err := Detach(b.opt); err != nil {
		t.Fatal(err)
	}
	cfg.NAT.MaxFlows = DefaultMaxFlows + 1
	b.apply(cfg)
	b.open(func(g *Gateway) error {
		if room := roomForFlows(g.maps); room != DefaultMaxFlows+1 {
			return fmt.Errorf("room for %d flows", room)
		}
		return nil
	})
}

// TestNATPreallocate: memory is taken as the configuration says when the table is
// made, and a change of that is refused with what to do.
func TestNATPreallocate(t *testing.T) {
	b := newNATBench(t)
	cfg := natConfig()
	cfg.NAT.Preallocate, cfg.NAT.MaxFlows = true, 1000
	b.apply(cfg)
	b.pingOut(1)
	b.open(func(g *Gateway) error {
		s, err := g.Status()
		if err == nil && s.Gateway.Memory < 1000*(2*200+2*100) {
			err = fmt.Errorf("memory of %d bytes for 1000 flows", s.Gateway.Memory)
		}
		for name, m := range g.maps {
			if slices.Contains(preallocatedMaps, name) && m.Flags()&unix.BPF_F_NO_PREALLOC != 0 {
				return fmt.Errorf("%s is not preallocated", name)
			}
		}
		return err
	})
	refused := func(path string, change func(*NAT)) {
		t.Helper()
		other := natConfig()
		*other.NAT = *cfg.NAT
		change(other.NAT)
		_, err := Apply(b.opt, other)
		var ce *ConfigError
		if !errors.As(err, &ce) || ce.Path != path || !strings.Contains(ce.Err, "tapgate detach") {
			t.Errorf("refused at %s: %v", path, err)
		}
	}
	refused("nat", func(n *NAT) { n.Preallocate = false })
	refused("nat.max_flows", func(n *NAT) { n.MaxFlows = 1001 })
	b.apply(cfg)
	if _, err := Detach(b.opt); err != nil {
		t.Fatal(err)
	}
	b.apply(natConfig())
	cfg.NAT.MaxFlows = 0
	refused("nat.preallocate", func(n *NAT) {})
	b.open(func(g *Gateway) error {
		s, err := g.Status()
		if err == nil && s.Gateway.Memory != 0 {
			err = fmt.Errorf("memory of %d bytes though it is taken as used", s.Gateway.Memory)
		}
		return err
	})
}

// TestNATManyForwards: ten thousand, whose record is compressed, in one apply.
func TestNATManyForwards(t *testing.T) {
	b := newNATBench(t)
	cfg := natConfig()
	for i := range 10_000 {
		cfg.NAT.Forwards = append(cfg.NAT.Forwards, Forward{
			Name: fmt.Sprintf("f%d", i), In: "external", Proto: "tcp", Ports: PortRange{uint16(i + 1), uint16(i + 1)},
			To: b.Servers[0].Interface("eth0").Addr.Addr(), ToPort: uint16(i + 1),
		})
		cfg.Source += fmt.Sprintf("    - {name: f%d, in: external, proto: tcp, port: %d, to: \"192.168.3.2:%d\"}\n", i, i+1, i+1)
	}
	begin := time.Now()
	b.apply(cfg)
	t.Logf("applied in %s", time.Since(begin))
	begin = time.Now()
	b.open(func(g *Gateway) error {
		if g.Source() != cfg.Source {
			return errors.New("the configuration's text is not what was applied")
		}
		s, err := g.Status()
		if err == nil && len(s.Gateway.Forwards) != 10_000 {
			err = fmt.Errorf("%d forwards", len(s.Gateway.Forwards))
		}
		return err
	})
	t.Logf("status in %s", time.Since(begin))
	b.apply(natConfig())
	b.pingOut(1)
}
