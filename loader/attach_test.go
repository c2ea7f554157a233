package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapgate/test/kernels"
)

const testName = "tapgate_test"

// everyHook runs a test for both kinds on both directions, each on a fresh veth
// pair: frames that "far" sends come in at "near".
func everyHook(t *testing.T, test func(t *testing.T, b *plumbBench, kind AttachKind, h hook)) {
	for _, kind := range []AttachKind{AttachTCX, AttachClsact} {
		for _, egress := range []bool{false, true} {
			direction := map[bool]string{false: "ingress", true: "egress"}[egress]
			t.Run(fmt.Sprintf("%s/%s", kind, direction), func(t *testing.T) {
				b := newPlumbBench(t)
				if kind == AttachTCX {
					kernels.Require(t, "tcx")
				}
				test(t, b, kind, b.hook("near", egress))
			})
		}
	}
}

func TestAttachTwiceIsOnce(t *testing.T) {
	everyHook(t, func(t *testing.T, b *plumbBench, kind AttachKind, h hook) {
		p := newCounter(t, testName)
		for range 2 {
			b.attach(p, h, kind)
			b.wantAttached(h, kind, p)
		}
		b.wantOnHook(h, 1)
		b.send(h, 10)
		p.want(t, 10)
		for range 2 {
			b.must(func() error { return detachProgram(testName, h, b.pins) })
		}
		b.wantAttached(h, "", nil)
		b.wantOnHook(h, 0)
		b.send(h, 10)
		p.want(t, 10)
		b.wantPins(0)
	})
}

func TestReplaceLosesNothing(t *testing.T) {
	everyHook(t, func(t *testing.T, b *plumbBench, kind AttachKind, h hook) {
		one, two := newCounter(t, testName), newCounter(t, testName)
		b.attach(one, h, kind)
		sent := make(chan error)
		const frames = 20000
		go func() { sent <- b.ns.do(func() error { return sendFrames(sender(h), frames) }) }()
		for i := 0; ; i++ {
			select {
			case err := <-sent:
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("replaced %d times", i)
				waitUntil(t, func() error {
					if a, b := one.count(t), two.count(t); a+b != frames {
						return fmt.Errorf("counted %d + %d frames of %d", a, b, frames)
					}
					return nil
				})
				for _, last := range []*counter{one, two} {
					b.attach(last, h, kind)
					b.wantAttached(h, kind, last)
				}
				b.wantOnHook(h, 1)
				return
			default:
				b.attach([]*counter{two, one}[i%2], h, kind)
			}
		}
	})
}

// Ours go first at ingress and last at egress, and take nothing from anybody.
func TestStrangersStay(t *testing.T) {
	everyHook(t, func(t *testing.T, b *plumbBench, kind AttachKind, h hook) {
		filter, tcx := newCounter(t, "stranger"), newCounter(t, "stranger_tcx")
		b.must(func() error { _, err := addClsact(h.ifindex); return err })
		f := bpfFilter(h, "stranger", 10, filter.prog.FD())
		f.Handle = 1
		b.must(func() error { return netlink.FilterAdd(f) })
		b.tool("tc", "filter", "add", "dev", h.ifname, strings.Fields(h.String())[1], "prio", "5",
			"u32", "match", "u32", "1", "0xffffffff", "flowid", "1:1") // matches no frame of ours
		var want []string
		if haveTCX() {
			b.attachTCX(tcx, h, link.Tail())
			if kind == AttachClsact || h.egress {
				want = append(want, "stranger_tcx")
			}
		}
		if kind == AttachClsact && h.egress {
			want = append(want, "u32 filter with priority 5", "stranger")
		}

		p := newCounter(t, testName)
		b.attach(p, h, kind)
		b.wantInFront(h, want...)
		b.send(h, 10)
		for _, c := range []*counter{p, filter, tcx} {
			if c != tcx || haveTCX() {
				c.want(t, 10)
			}
		}
		b.must(func() error { return detachProgram(testName, h, b.pins) })
		b.must(func() error { return removeClsact(h.ifindex) })
		b.send(h, 10)
		p.want(t, 10)
		filter.want(t, 20)
		if haveTCX() {
			tcx.want(t, 20)
		}
	})
}

func TestInFrontWhenSomebodyComesLater(t *testing.T) {
	b := newPlumbBench(t)
	kernels.Require(t, "tcx")
	h := b.hook("near", false)
	b.attach(newCounter(t, testName), h, AttachTCX)
	b.wantInFront(h)
	b.attachTCX(newCounter(t, "newcomer"), h, link.Head())
	b.wantInFront(h, "newcomer")
}

func TestSwitchOfKindLeavesOne(t *testing.T) {
	everyHook(t, func(t *testing.T, b *plumbBench, kind AttachKind, h hook) {
		other := map[AttachKind]AttachKind{AttachTCX: AttachClsact, AttachClsact: AttachTCX}[kind]
		if other == AttachTCX {
			kernels.Require(t, "tcx")
		}
		p := newCounter(t, testName)
		b.attach(p, h, other)
		b.attach(p, h, kind)
		b.wantAttached(h, kind, p)
		b.wantOnHook(h, 1)
		b.send(h, 10)
		p.want(t, 10)
	})
}

func TestAutoTakesTCXWhereThereIsOne(t *testing.T) {
	b := newPlumbBench(t)
	h := b.hook("near", false)
	want := AttachClsact
	if haveTCX() {
		want = AttachTCX
	}
	if kind := attachKindFor(AttachAuto); kind != want {
		t.Errorf("would attach as %q, want %q", kind, want)
	}
	p := newCounter(t, testName)
	b.must(func() error {
		kind, err := attachProgram(p.prog, testName, h, AttachAuto, b.pins)
		if err == nil && kind != want {
			err = fmt.Errorf("attached as %q, want %q", kind, want)
		}
		return err
	})
}

// An error that is not "not supported" must not lead to clsact.
func TestAttachErrorNamesInterface(t *testing.T) {
	b := newPlumbBench(t)
	h := hook{ifindex: 4711, ifname: "eth3", egress: true}
	err := b.ns.do(func() error {
		_, err := attachProgram(newCounter(t, testName).prog, testName, h, AttachAuto, b.pins)
		return err
	})
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), `attach tapgate_test to "eth3" egress: `) ||
		!strings.Contains(err.Error(), "the interface is gone") || strings.Contains(err.Error(), "clsact") && haveTCX() {
		t.Errorf("got %v", err)
	}
}

func TestPinOfAnotherKindIsRefused(t *testing.T) {
	b := newPlumbBench(t)
	kernels.Require(t, "tcx")
	p := newCounter(t, testName)
	if err := p.prog.Pin(filepath.Join(b.pins, testName)); err != nil {
		t.Fatal(err)
	}
	h := b.hook("near", false)
	err := b.ns.do(func() error {
		_, err := attachProgram(p.prog, testName, h, AttachTCX, b.pins)
		return err
	})
	if !errors.Is(err, ErrState) {
		t.Errorf("got %v, want ErrState", err)
	}
	b.wantPins(1)
}

func TestDetachAfterInterfaceIsDeleted(t *testing.T) {
	everyHook(t, func(t *testing.T, b *plumbBench, kind AttachKind, h hook) {
		p := newCounter(t, testName)
		b.attach(p, h, kind)
		b.ip("link", "del", "near")
		b.wantAttached(h, "", nil)
		b.wantMoved(h, false)
		b.must(func() error { return detachProgram(testName, h, b.pins) })
		b.must(func() error { return removeClsact(h.ifindex) })
		b.wantPins(0)
	})
}

func TestAttachAfterInterfaceIsMadeAnew(t *testing.T) {
	everyHook(t, func(t *testing.T, b *plumbBench, kind AttachKind, h hook) {
		p := newCounter(t, testName)
		b.attach(p, h, kind)
		b.ip("link", "del", "near")
		b.veth("near", "far", "index", fmt.Sprint(h.ifindex))
		b.wantAttached(h, "", nil)
		b.attach(p, h, kind)
		b.wantAttached(h, kind, p)
		b.send(h, 10)
		p.want(t, 10)
	})
}

func TestInterfaceMovedAway(t *testing.T) {
	everyHook(t, func(t *testing.T, b *plumbBench, kind AttachKind, h hook) {
		away := newTestNetns(t)
		p := newCounter(t, testName)
		b.attach(p, h, kind)
		b.wantMoved(h, false)
		b.ip("link", "set", "near", "netns", away)
		b.wantMoved(h, kind == AttachTCX)
		b.wantAttached(h, "", nil)

		// Another interface with its index is not it.
		b.veth("other", "otherpeer", "index", fmt.Sprint(h.ifindex))
		b.wantMoved(h, kind == AttachTCX)
		b.wantAttached(h, "", nil)
		b.ip("link", "del", "other")

		runTool(t, "ip", "-n", away, "link", "set", "near", "netns", b.name)
		b.ip("link", "set", "near", "up")
		if h2 := b.hook("near", h.egress); h2.ifindex != h.ifindex {
			t.Fatalf("came back as interface %d, was %d", h2.ifindex, h.ifindex)
		}
		b.wantMoved(h, false)
		if kind == AttachTCX { // the kernel throws qdiscs away, so filters go
			b.wantAttached(h, kind, p)
		}
		b.attach(p, h, kind)
		b.wantAttached(h, kind, p)
		b.send(h, 10)
		p.want(t, 10)
	})
}

// What is left on an interface that moved is taken off there.
func TestAttachAndDetachFollowMovedInterface(t *testing.T) {
	kernels.Require(t, "tcx")
	for _, again := range []bool{false, true} {
		b := newPlumbBench(t)
		away := newTestNetns(t)
		h := b.hook("near", false)
		p := newCounter(t, testName)
		b.attach(p, h, AttachTCX)
		b.ip("link", "set", "near", "netns", away)
		if again {
			b.veth("near", "newpeer", "index", fmt.Sprint(h.ifindex))
			b.attach(p, h, AttachTCX)
			b.wantAttached(h, AttachTCX, p)
		} else {
			b.must(func() error { return detachProgram(testName, h, b.pins) })
			b.wantPins(0)
		}
		there := openTestNetns(t, away)
		err := there.do(func() error {
			dev, err := netlink.LinkByName("near")
			if err != nil {
				return err
			}
			res, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: ebpf.AttachTCXIngress})
			if err == nil && len(res.Programs) != 0 {
				err = fmt.Errorf("%d programs left on the interface that moved", len(res.Programs))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestClsactIsAddedAndRemovedOnce(t *testing.T) {
	b := newPlumbBench(t)
	h := b.hook("near", true)
	for i, want := range []bool{true, false} {
		b.must(func() error {
			added, err := addClsact(h.ifindex)
			if err == nil && added != want {
				err = fmt.Errorf("call %d: added %v", i, added)
			}
			return err
		})
	}
	p := newCounter(t, testName)
	b.attach(p, h, AttachClsact)
	b.must(func() error { return removeClsact(h.ifindex) })
	b.wantAttached(h, AttachClsact, p) // a filter is in it, so it stayed
	b.must(func() error { return detachProgram(testName, h, b.pins) })
	for range 2 {
		b.must(func() error { return removeClsact(h.ifindex) })
	}
	b.must(func() error {
		kind, err := ingressQdisc(h.ifindex)
		if err == nil && kind != "" {
			err = fmt.Errorf("a %s qdisc is left", kind)
		}
		return err
	})
}

func TestIngressQdiscIsInTheWay(t *testing.T) {
	b := newPlumbBench(t)
	b.tool("tc", "qdisc", "add", "dev", "near", "ingress")
	h := b.hook("near", true)
	err := b.ns.do(func() error {
		_, err := attachProgram(newCounter(t, testName).prog, testName, h, AttachClsact, b.pins)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), `has an "ingress" qdisc`) {
		t.Errorf("got %v", err)
	}
	b.must(func() error { return removeClsact(h.ifindex) })
	b.must(func() error {
		if kind, err := ingressQdisc(h.ifindex); kind != "ingress" {
			return fmt.Errorf("the qdisc of somebody else became %q (%v)", kind, err)
		}
		return nil
	})
}

// Detached is detached, though somebody (bpftool, another tapgate) has the link open.
func TestDetachOfLinkThatIsHeldOpen(t *testing.T) {
	b := newPlumbBench(t)
	kernels.Require(t, "tcx")
	h := b.hook("near", false)
	b.attach(newCounter(t, testName), h, AttachTCX)
	l, err := link.LoadPinnedLink(filepath.Join(b.pins, testName), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b.must(func() error { return detachProgram(testName, h, b.pins) })
	b.wantOnHook(h, 0)
}

func TestOwnFilterIsToldFromOthers(t *testing.T) {
	own := tcFilter{kind: "bpf", name: testName, handle: filterHandle, priority: 7, protocol: unix.ETH_P_ALL}
	if got, ok := ownFilter([]tcFilter{{}, own}, testName); !ok || got != own {
		t.Errorf("got %v, %v", got, ok)
	}
	for _, change := range []func(f *tcFilter){
		func(f *tcFilter) { f.kind = "flower" },
		func(f *tcFilter) { f.name = "stranger" },
		func(f *tcFilter) { f.handle = 1 },
		func(f *tcFilter) { f.protocol = unix.ETH_P_IP },
		func(f *tcFilter) { f.chain = 1 },
	} {
		other := own
		change(&other)
		if _, ok := ownFilter([]tcFilter{other}, testName); ok {
			t.Errorf("%v is taken for ours", other)
		}
	}
}

func TestFreePriority(t *testing.T) {
	used := func(p ...uint16) (fs []tcFilter) {
		for _, p := range p {
			fs = append(fs, tcFilter{priority: p})
		}
		return fs
	}
	for _, c := range []struct {
		used  []tcFilter
		first bool
		want  uint16
	}{
		{nil, true, 1},
		{used(1, 2, 4), true, 3},
		{nil, false, lastPriority},
		{used(lastPriority), false, lastPriority + 1},
		{used(0xfff0, 0xfff1, 0xfff2, 0xfff3, 0xfff4, 0xfff5, 0xfff6, 0xfff7, 0xfff8, 0xfff9, 0xfffa, 0xfffb, 0xfffc,
			0xfffd, 0xfffe, 0xffff), false, 0xffef},
	} {
		if got, err := freePriority(c.used, c.first); err != nil || got != c.want {
			t.Errorf("first %v of %v: got %d, %v, want %d", c.first, c.used, got, err, c.want)
		}
	}
}

// wantPins wants so many pins in the bench's folder.
func (b *plumbBench) wantPins(want int) {
	b.t.Helper()
	entries, err := os.ReadDir(b.pins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(entries) != want {
		b.t.Errorf("%d pins, want %d (%v)", len(entries), want, err)
	}
}
