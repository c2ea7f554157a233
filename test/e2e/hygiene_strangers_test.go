package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// stranger is a program of somebody else that counts what passes it.
type stranger struct {
	where string
	count *ebpf.Map
	prog  *ebpf.Program
	link  link.Link // of TCX
}

func newStranger(t *testing.T, where string) *stranger {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "stranger", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "stranger", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"), // no opinion
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return &stranger{where: where, count: m, prog: p}
}

func (s *stranger) read(t *testing.T) (n uint64) {
	t.Helper()
	if err := s.count.Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// filter puts the stranger into a clsact qdisc, which it adds if asked to.
func (s *stranger) filter(g *gateway, ifname string, egress, qdisc bool) {
	g.t.Helper()
	err := g.Gateway.Do(func() error {
		index := g.Gateway.Interface(ifname).Index
		if qdisc {
			if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			}}); err != nil {
				return err
			}
		}
		parent := uint32(netlink.HANDLE_MIN_INGRESS)
		if egress {
			parent = netlink.HANDLE_MIN_EGRESS
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: 1, Priority: 77, Protocol: unix.ETH_P_ALL},
			Fd:          s.prog.FD(), Name: "stranger", DirectAction: true,
		})
	})
	if err != nil {
		g.t.Fatalf("filter of a stranger on %s: %v", s.where, err)
	}
}

// tcx links the stranger.
func (s *stranger) tcx(g *gateway, ifname string, egress bool) {
	g.t.Helper()
	attach := ebpf.AttachTCXIngress
	if egress {
		attach = ebpf.AttachTCXEgress
	}
	err := g.Gateway.Do(func() (err error) {
		s.link, err = link.AttachTCX(link.TCXOptions{Interface: g.Gateway.Interface(ifname).Index, Program: s.prog, Attach: attach})
		return err
	})
	if err != nil {
		g.t.Fatalf("TCX program of a stranger on %s: %v", s.where, err)
	}
	g.t.Cleanup(func() { s.link.Close() })
}

// strangers puts a clsact filter and, where the kernel has it, a TCX program on
// both sides of the tapped and the dmz interface.
func (g *gateway) strangers() (all []*stranger) {
	tcx, err := kernels.Has("tcx")
	if err != nil {
		g.t.Fatal(err)
	}
	for _, ifname := range []string{"eth3", "eth2"} {
		for _, egress := range []bool{false, true} {
			where := fmt.Sprintf("%s egress=%v", ifname, egress)
			s := newStranger(g.t, "clsact "+where)
			s.filter(g, ifname, egress, !egress)
			all = append(all, s)
			if tcx {
				s = newStranger(g.t, "tcx "+where)
				s.tcx(g, ifname, egress)
				all = append(all, s)
			}
		}
	}
	return all
}

// everybodyCounts fails unless every stranger sees some of an exchange.
func (g *gateway) everybodyCounts(all []*stranger, when string) {
	g.t.Helper()
	before := make([]uint64, len(all))
	for i, s := range all {
		before[i] = s.read(g.t)
	}
	g.exchange()
	for i, s := range all {
		if s.read(g.t) == before[i] {
			g.t.Errorf("%s: the program of a stranger on %s sees nothing any more", when, s.where)
		}
	}
}

func (g *gateway) attachedKinds() (kinds []string) {
	for _, m := range g.status().Members {
		if m.Ingress != nil {
			kinds = append(kinds, m.Interface+" "+m.Attached)
		}
	}
	return kinds
}

func (g *gateway) wantKind(kind loader.AttachKind) {
	g.t.Helper()
	want := []string{"eth3 " + string(kind), "eth2 " + string(kind)}
	got := g.attachedKinds()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		g.t.Errorf("attached are %q, want %q", got, want)
	}
	if table := g.must("status").stdout; !strings.Contains(table, string(kind)) {
		g.t.Errorf("status does not name %s:\n%s", kind, table)
	}
}

// Promise 7: whatever was done in between, after detach all is as it was, and
// programs of others on the same interfaces never missed anything.
func TestHygieneAmongStrangers(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		others := g.strangers()
		g.everybodyCounts(others, "before")
		before, ids := g.list(), bpfIDs{}
		step := func(what string, f func()) {
			t.Helper()
			f()
			ids.owned(t, g.bpffs)
			g.everybodyCounts(others, "after "+what)
		}
		step("attach", func() { g.must("attach", "--internal", "eth3", "--dmz", "eth2", "--sensor", "192.168.4.2") })
		g.wantKind(kind)
		if d := before.difference(g.list()); !strings.Contains(d, "tapgate") || !strings.Contains(d, "ethtool -k eth2") {
			t.Errorf("the listings do not show what attach did:\n%s", d)
		}
		step("apply", func() { g.apply(example) })
		step("mirror add", func() { g.must("mirror", "add", "second", "--zone", "internal", "--l2", "eth2") })
		step("mirror add of a target", func() { g.must("mirror", "add", "ids", "--l2", "eth2", "--mac", "02:00:00:00:00:99") })
		step("mirror del", func() { g.must("mirror", "del", "second") })
		step("apply with less", func() { g.apply(strings.Replace(example, "  mgmt:     {interfaces: [eth4]}\n", "", 1)) })
		step("apply of a tap on more", func() { g.apply(strings.Replace(example, "[internal]\n    t", "[internal, mgmt]\n    t", 1)) })
		step("apply that fails", func() {
			if r := g.tapgateIn(strings.ReplaceAll(example, "eth3", "eth9"), "apply", "-f", "-"); r.code != 2 {
				t.Errorf("apply with a missing interface: %s", r)
			}
		})
		g.checkLedgers()
		g.must("detach")
		g.everybodyCounts(others, "after detach")
		ids.gone(t)
		g.unchanged(before, "after detach")
		if r := g.tapgate("detach"); r.code != 0 || !strings.Contains(r.stderr, "already so") {
			t.Errorf("a second detach: %s", r)
		}
		g.unchanged(before, "after a second detach")
	})
}

// Without anybody else: the qdiscs are ours, and go.
func TestHygieneAlone(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		g.exchange()
		before, ids := g.list(), bpfIDs{}
		for range 2 { // the second time is like the first
			g.apply(example)
			ids.owned(t, g.bpffs)
			g.wantKind(kind)
			g.exchange()
			g.must("detach")
			g.unchanged(before, "after detach")
		}
		ids.gone(t)
	})
}

// The kind is chosen at each change; never both at the same time.
func TestHygieneSwitchKinds(t *testing.T) {
	kernels.Require(t, "tcx")
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	g.exchange()
	before := g.list()
	kinds := []loader.AttachKind{loader.AttachTCX, loader.AttachClsact, loader.AttachTCX, loader.AttachClsact}
	for i, kind := range kinds {
		g.kind = kind
		g.apply(example)
		g.wantKind(kind)
		copied := g.mirror("ids").Copied.Packets
		g.exchange()
		if m := g.mirror("ids"); m.Copied.Packets < copied+4 {
			t.Errorf("change %d to %s: %d packets copied, then %d", i, kind, copied, m.Copied.Packets)
		}
		tcx, clsact := 0, 0
		for _, ifname := range []string{"eth3", "eth2"} {
			for i, direction := range []string{"ingress", "egress"} {
				tcx += len(g.tcxPrograms(g.Gateway, ifname, i == 1))
				clsact += strings.Count(g.inGateway("tc", "filter", "show", "dev", ifname, direction), "name tapgate_")
			}
		}
		if kind == loader.AttachTCX && (tcx != 4 || clsact != 0) || kind == loader.AttachClsact && (tcx != 0 || clsact != 4) {
			t.Errorf("change %d to %s: %d programs by TCX and %d by clsact", i, kind, tcx, clsact)
		}
		if qdiscs := g.inGateway("tc", "qdisc"); strings.Contains(qdiscs, "clsact") != (kind == loader.AttachClsact) {
			t.Errorf("change %d to %s: qdiscs: %s", i, kind, qdiscs)
		}
	}
	g.must("detach")
	g.unchanged(before, "after detach")
}

// A clsact qdisc that somebody else needs stays, whoever made it.
func TestHygieneQdiscOfOthers(t *testing.T) {
	t.Parallel()
	t.Run("theirs and empty", func(t *testing.T) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = loader.AttachClsact
		g.inGateway("tc", "qdisc", "add", "dev", "eth3", "clsact")
		g.exchange()
		before := g.list()
		g.apply(example)
		g.must("detach")
		g.unchanged(before, "after detach")
	})
	t.Run("ours, and they moved in", func(t *testing.T) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = loader.AttachClsact
		g.exchange()
		g.apply(example)
		s := newStranger(t, "clsact eth3")
		s.filter(g, "eth3", false, false)
		g.everybodyCounts([]*stranger{s}, "in our qdisc")
		g.apply(example)
		g.must("detach")
		g.everybodyCounts([]*stranger{s}, "after detach")
		if qdiscs := g.inGateway("tc", "qdisc"); strings.Count(qdiscs, "clsact") != 1 {
			t.Errorf("after detach: %s", qdiscs)
		}
		if filters := g.inGateway("tc", "filter", "show", "dev", "eth3", "ingress"); !strings.Contains(filters, "stranger") || strings.Contains(filters, "tapgate") {
			t.Errorf("after detach: %s", filters)
		}
		// Put in force and taken away once more: now the qdisc is not ours.
		g.apply(example)
		g.must("detach")
		g.everybodyCounts([]*stranger{s}, "after the second detach")
	})
	t.Run("an ingress qdisc stands in the way", func(t *testing.T) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = loader.AttachClsact
		g.inGateway("tc", "qdisc", "add", "dev", "eth3", "ingress")
		g.exchange()
		before := g.list()
		r := g.tapgateIn(example, "apply", "-f", "-")
		if r.code != 1 || !strings.Contains(r.stderr, "eth3") || !strings.Contains(r.stderr, `"ingress" qdisc`) {
			t.Errorf("apply over an ingress qdisc: %s", r)
		}
		g.unchanged(before, "after an apply that was refused")
	})
}

// What was changed by somebody else meanwhile is not put back.
func TestHygieneOffloadOfOthers(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	if err := g.Gateway.SetTxChecksum("eth2", false); err != nil {
		t.Fatal(err)
	}
	g.exchange()
	before := g.list()
	g.apply(example)
	g.must("detach")
	g.unchanged(before, "an offload that was off before")
}
