package loader

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"tapgate/test/kernels"
)

// stranger is a program of somebody else.
func stranger(t *testing.T, kind ebpf.ProgramType, verdict int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stranger", Type: kind, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// shell runs commands of the host's tools in the gateway's namespace.
func (b *natBench) shell(script string) {
	b.t.Helper()
	if out, err := b.Gateway.Command(b.Context(), "sh", "-ec", script).CombinedOutput(); err != nil {
		b.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func (b *natBench) forwarding() ForwardingStatus {
	b.t.Helper()
	var f ForwardingStatus
	b.open(func(g *Gateway) error {
		s, err := g.Status()
		if err == nil {
			f = s.Gateway.Forwarding
			err = settingSays(g, f.Mode == ForwardingFast)
		}
		return err
	})
	return f
}

// settingSays wants the programs to have been told.
func settingSays(g *Gateway, fast bool) error {
	var s tapgateTgSetting
	if err := g.maps[tapgateMapTgSettings].Lookup(g.slot, &s); err != nil {
		return err
	}
	if (s.Fast == 1) != fast || s.Serial == 0 {
		return errors.New("the settings in force are not what status says")
	}
	return nil
}

// asksForKernel are things that a host may have and the fast path does not go with:
// how they come, how they go, and what the reason says.
var asksForKernel = []struct {
	name     string
	do, undo func(b *natBench)
	why      string
}{
	{"mark", script("ip rule add fwmark 1 lookup 100 pref 900"), script("ip rule del fwmark 1"), `"ip rule" has a rule (900) that asks for the mark 0x1`},
	{"mark6", script("ip -6 rule add fwmark 2/0xff lookup 100 pref 900"), script("ip -6 rule del fwmark 2/0xff"), `"ip -6 rule" has a rule (900) that asks for the mark 0x2`},
	{"l3mdev", script("ip rule add l3mdev pref 1000"), script("ip rule del l3mdev pref 1000"), `"ip rule" has a rule (1000) that asks for the VRF`},
	{"netdev chain", script("nft 'add table netdev t; add chain netdev t c { type filter hook ingress device eth3 priority 0; }'"),
		script("nft delete table netdev t"), `nft chain c of table t filters at the ingress of "eth3"`},
	{"inet chain", script("nft 'add table inet t; add chain inet t c { type filter hook ingress devices = { eth4, eth0 } priority 0; }'"),
		script("nft delete table inet t"), `nft chain c of table t filters at the ingress of "eth0"`},
	{"filter", script("tc qdisc add dev eth3 clsact || true; tc filter add dev eth3 ingress protocol ip prio 7 u32 match u32 0 0"),
		script("tc filter del dev eth3 ingress prio 7"), `another filter on "eth3" ingress: u32, priority 7`},
	{"ipsec", script("ip xfrm policy add src 10.9.0.0/16 dst 10.8.0.0/16 dir out tmpl src 10.9.0.1 dst 10.8.0.1 proto esp mode tunnel"),
		script("ip xfrm policy flush"), "IPsec policies are installed"},
	{"xdp", func(b *natBench) {
		p := stranger(b.t, ebpf.XDP, 2)
		b.onGateway("eth4", func(l netlink.Link) error { return netlink.LinkSetXdpFdWithFlags(l, p.FD(), xdpGeneric) })
	}, func(b *natBench) {
		b.onGateway("eth4", func(l netlink.Link) error { return netlink.LinkSetXdpFdWithFlags(l, -1, xdpGeneric) })
	}, `"eth4" has an XDP program: stranger`},
}

const xdpGeneric = 1 << 1 // XDP_FLAGS_SKB_MODE

func script(s string) func(*natBench) { return func(b *natBench) { b.t.Helper(); b.shell(s) } }

// TestForwardingReasons: each of them is found where it is there, and only then; a
// change of the configuration decides anew.
func TestForwardingReasons(t *testing.T) {
	b := newNATBench(t)
	fast := ForwardingStatus{Mode: ForwardingFast, Wanted: ForwardingFast}
	b.apply(natConfig())
	if got := b.forwarding(); got != fast {
		t.Fatalf("on a plain host: %+v", got)
	}
	// None of these is in the way.
	b.shell(`ip rule add from 10.0.0.0/8 lookup 100
		nft 'add table inet host; add chain inet host forward { type filter hook forward priority 0; }; add rule inet host forward ct state invalid drop'
		tc qdisc add dev eth2 clsact || true; tc filter add dev eth2 ingress protocol ip u32 match u32 0 0
		tc qdisc add dev eth0 clsact || true; tc filter add dev eth0 egress protocol ip u32 match u32 0 0`)
	b.apply(natConfig())
	if got := b.forwarding(); got != fast {
		t.Fatalf("with rules that are not in the way: %+v", got)
	}
	for _, c := range asksForKernel {
		t.Run(c.name, func(t *testing.T) {
			outer := b.t
			b.t = t
			defer func() { b.t = outer }()
			c.do(b)
			b.until("a problem is told", func(s *Status) bool {
				return len(s.Problems) == 1 && strings.Contains(s.Problems[0], "forwarding is fast") && strings.Contains(s.Problems[0], c.why)
			})
			res := b.apply(natConfig())
			got := b.forwarding()
			if got.Mode != ForwardingKernel || got.Wanted != ForwardingFast || !strings.Contains(got.Reason, c.why) {
				t.Errorf("forwarding %+v, want the kernel, since %s", got, c.why)
			}
			if want := "~ forwarding: fast -> kernel (" + got.Reason + ")"; !strings.Contains(strings.Join(res.Changes, "\n"), want) {
				t.Errorf("changes %q, want %s", res.Changes, want)
			}
			b.pingOut(1)
			c.undo(b)
			if got := b.forwarding(); got.Mode != ForwardingKernel || !strings.HasSuffix(got.Reason, "that is so no longer, apply again") {
				t.Errorf("gone, and not applied: %+v", got)
			}
			b.apply(natConfig())
			if got := b.forwarding(); got != fast {
				t.Errorf("without it: %+v", got)
			}
		})
	}
}

// TestForwardingTCX: another TCX program behind ours, and one in front of it.
func TestForwardingTCX(t *testing.T) {
	kernels.Require(t, "tcx")
	b := newNATBench(t)
	b.apply(natConfig())
	p := stranger(t, ebpf.SchedCLS, -1)
	for _, at := range []link.Anchor{link.Tail(), link.Head()} {
		var l link.Link
		b.onGateway("eth3", func(dev netlink.Link) (err error) {
			l, err = link.AttachTCX(link.TCXOptions{Interface: dev.Attrs().Index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: at})
			return err
		})
		b.apply(natConfig())
		if got := b.forwarding(); got.Mode != ForwardingKernel || got.Reason != `another TCX program on "eth3" ingress: stranger` {
			t.Errorf("forwarding %+v", got)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		b.apply(natConfig())
		if got := b.forwarding(); got.Mode != ForwardingFast {
			t.Errorf("without it: %+v", got)
		}
	}
}

// TestForwardingClsact: our own filters are none of others.
func TestForwardingClsact(t *testing.T) {
	b := newNATBench(t)
	b.opt.Attach = AttachClsact
	b.apply(natConfig())
	b.apply(natConfig())
	if got := b.forwarding(); got.Mode != ForwardingFast {
		t.Fatalf("with our own filters: %+v", got)
	}
	b.shell("tc filter add dev eth3 ingress protocol ip prio 7 u32 match u32 0 0")
	b.apply(natConfig())
	if got := b.forwarding(); got.Mode != ForwardingKernel || got.Reason != `another filter on "eth3" ingress: u32, priority 7` {
		t.Errorf("with another's: %+v", got)
	}
	b.shell("tc filter del dev eth3 ingress prio 7")
	b.apply(natConfig())
	if got := b.forwarding(); got.Mode != ForwardingFast {
		t.Errorf("without it: %+v", got)
	}
}

// TestForwardingVRF: an interface in a VRF is refused, and told when it comes there
// later; one that only copies may be there.
func TestForwardingVRF(t *testing.T) {
	kernels.Require(t, "vrf")
	b := newNATBench(t)
	b.shell("ip link add blue type vrf table 77; ip link set blue up")
	b.apply(natConfig())
	// The kernel has made rules for it.
	if got := b.forwarding(); got.Mode != ForwardingKernel || !strings.Contains(got.Reason, "asks for the VRF") {
		t.Errorf("with a VRF: %+v", got)
	}
	b.shell("ip link set eth3 master blue")
	b.until("a problem is told", func(s *Status) bool {
		return strings.Contains(strings.Join(s.Problems, "\n"), `"eth3" is in VRF "blue"`)
	})
	_, err := Apply(b.opt, natConfig())
	var bad *ConfigError
	if !errors.As(err, &bad) || bad.Path != "zones.internal.interfaces[0]" || !strings.Contains(bad.Err, `"eth3" is in VRF "blue"`) {
		t.Errorf("applied in a VRF: %v", err)
	}
	tap := natConfig()
	tap.NAT = nil
	b.apply(tap)
}

// TestForwardingFollowed: with an agent nothing has to be applied again.
func TestForwardingFollowed(t *testing.T) {
	b := newNATBench(t)
	cfg := natConfig()
	b.setSysctl(sysctlLiberal, "0")
	b.apply(cfg)
	b.follow(cfg)
	b.until("an agent follows", func(s *Status) bool { return s.Gateway.Followed })
	for _, c := range asksForKernel {
		c.do(b)
		b.until("kernel for "+c.name, func(s *Status) bool {
			return strings.Contains(s.Gateway.Forwarding.Reason, c.why) && s.Gateway.Forwarding.Mode == ForwardingKernel && len(s.Problems) == 0
		})
		if got := b.sysctls(sysctlLiberal); got != "0" {
			t.Errorf("%s: be_liberal is %s without a fast path", c.name, got)
		}
		c.undo(b)
		b.until("fast after "+c.name, func(s *Status) bool { return s.Gateway.Forwarding.Mode == ForwardingFast })
		if got := b.sysctls(sysctlLiberal); got != "1" {
			t.Errorf("after %s: be_liberal is %s with a fast path", c.name, got)
		}
		b.forwarding() // what the programs are told
	}
	// Somebody changes what the fast path needs.
	b.setSysctl(sysctlLiberal, "0")
	b.until("no problem", func(s *Status) bool { return len(s.Problems) == 0 && b.sysctls(sysctlLiberal) == "1" })
	b.pingOut(1)
}

// TestForwardingSysctls: what connection tracking is told goes with the fast path.
func TestForwardingSysctls(t *testing.T) {
	b := newNATBench(t)
	b.setSysctl(sysctlLiberal, "0")
	names := []string{sysctlLiberal}
	want := "1"
	if err := b.Gateway.Do(func() error { _, err := readSysctl(sysctlRoot + sysctlInvalidRST); return err }); err == nil {
		b.setSysctl(sysctlInvalidRST, "0")
		names, want = append(names, sysctlInvalidRST), "11"
	}
	before := strings.Repeat("0", len(names))
	for _, name := range []string{sysctlUnacked, sysctlRetrans} {
		b.setSysctl(name, "300")
		names, before, want = append(names, name), before+"300", want+"7440"
	}
	is := func(when, want string) {
		t.Helper()
		if got := b.sysctls(names...); got != want {
			t.Errorf("%s: %s are %s, want %s", when, names, got, want)
		}
	}
	fast, kernel, keep := natConfig(), natConfig(), natConfig()
	kernel.Forwarding = ForwardingKernel
	keep.NAT.KeepSysctls = true
	tap := natConfig()
	tap.NAT = nil

	b.apply(kernel)
	is("forwarding by the kernel", before)
	b.apply(fast)
	is("fast", want)
	b.apply(fast)
	is("fast again", want)
	b.apply(kernel)
	is("back to the kernel", before)
	if got := b.forwarding(); got != (ForwardingStatus{Mode: ForwardingKernel, Wanted: ForwardingKernel, Reason: "the configuration says so"}) {
		t.Errorf("forwarding %+v", got)
	}
	b.apply(fast)
	b.apply(tap)
	is("only copying", before)
	b.apply(fast)

	// Ours is put back when sysctls are to be kept, so there is no fast path then.
	b.setSysctl(sysctlForward4, "1")
	b.apply(keep)
	is("sysctls kept", before)
	if got := b.forwarding(); got.Mode != ForwardingKernel || !strings.Contains(got.Reason, "nf_conntrack_tcp_be_liberal is 0, and sysctls are to be kept") {
		t.Errorf("with sysctls kept: %+v", got)
	}
	b.setSysctl(sysctlLiberal, "1")
	b.apply(keep)
	if got := b.forwarding(); got.Mode != ForwardingFast {
		t.Errorf("with sysctls kept that are right: %+v", got)
	}
	b.setSysctl(sysctlLiberal, "0")
	b.until("a problem is told", func(s *Status) bool {
		return strings.Contains(strings.Join(s.Problems, "\n"), "be_liberal is 0")
	})

	b.apply(fast)
	is("fast", want)
	if _, err := Detach(b.opt); err != nil {
		t.Fatal(err)
	}
	is("detached", before)

	// What somebody else has set stays.
	b.setSysctl(sysctlLiberal, "1")
	b.apply(fast)
	if _, err := Detach(b.opt); err != nil {
		t.Fatal(err)
	}
	if got := b.sysctls(sysctlLiberal); got != "1" {
		t.Errorf("what the host had set is %s", got)
	}
}

// TestForwardingReduced: a change that takes rules away decides anew as well.
func TestForwardingReduced(t *testing.T) {
	b := newNATBench(t)
	b.setSysctl(sysctlLiberal, "0")
	cfg := natConfig()
	cfg.Policies = []Policy{{Name: "gone", From: "mgmt", To: "external", Accept: true}}
	b.shell("ip rule add fwmark 1 lookup 100 pref 900")
	b.apply(cfg)
	if got := b.forwarding(); got.Mode != ForwardingKernel {
		t.Fatalf("with a rule for marks: %+v", got)
	}
	b.shell("ip rule del fwmark 1")
	cfg.Policies = nil
	b.open(func(g *Gateway) error { _, err := g.Reduce(cfg); return err })
	if got := b.forwarding(); got.Mode != ForwardingFast || b.sysctls(sysctlLiberal) != "1" {
		t.Errorf("forwarding %+v, be_liberal %s", got, b.sysctls(sysctlLiberal))
	}
	if _, err := Detach(b.opt); err != nil {
		t.Fatal(err)
	}
	if got := b.sysctls(sysctlLiberal); got != "0" {
		t.Errorf("be_liberal stays %s", got)
	}
}

// TestForwardingCutShort: whoever is killed after the record was written is finished
// by the next change.
func TestForwardingCutShort(t *testing.T) {
	b := newNATBench(t)
	b.setSysctl(sysctlLiberal, "0")
	b.apply(natConfig())
	b.open(func(g *Gateway) error {
		r := *g.active.Gateway
		r.Forwarding = ForwardingStatus{Mode: ForwardingKernel, Wanted: ForwardingFast, Reason: "test"}
		r.Sysctls = withoutTracking(r.Sysctls)
		g.active.Gateway = &r
		return writeRecord(g.maps[tapgateMapTgRecords], g.slot, g.active)
	})
	b.open(func(g *Gateway) error {
		return errors.Join(g.ns.do(g.converge), settingSays(g, false))
	})
	if got := b.sysctls(sysctlLiberal); got != "0" {
		t.Errorf("be_liberal is %s", got)
	}
	b.open(func(g *Gateway) error {
		return errors.Join(g.ns.do(func() error { return g.followForwarding(slog.New(slog.DiscardHandler)) }), settingSays(g, true))
	})
	if got := b.sysctls(sysctlLiberal); got != "1" {
		t.Errorf("be_liberal is %s", got)
	}
}

func TestForwardingUnknown(t *testing.T) {
	b := newNATBench(t)
	cfg := natConfig()
	cfg.Forwarding = "turbo"
	_, err := Apply(b.opt, cfg)
	var bad *ConfigError
	if !errors.As(err, &bad) || bad.Path != "forwarding" || !strings.Contains(err.Error(), "it is fast or kernel") {
		t.Errorf("%v", err)
	}
}
