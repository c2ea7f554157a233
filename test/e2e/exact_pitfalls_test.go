package e2e

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// The pitfalls of bpf_clone_redirect that the project has on its list, and
// where each is tested:
//
//	T1  result as verdict           safety tests
//	T2  pointers after the call     TestT02ManyCopiesOfOnePacket
//	T3  NAT before or after         TestT03InsideAddresses, TestT03Hairpin
//	T4  MACs of the copy            TestT04Targets
//	T5  super-packets               TestT05*
//	T6  sensor MTU                  safety tests
//	T7  partial checksums           TestT05SegmentsAndT07Checksums
//	T8  VLAN tags                   TestT08ReplayedFrames
//	T9  no MAC header               TestT09DeviceWithoutEthernet
//	T10 loops                       safety tests
//	T11 order of programs           TestT11OtherPrograms
//	T12 tunnel keys                 not here: no target has a tunnel yet
//	T13 encapsulation               not here: no target has a tunnel yet
//	T14 congestion                  safety tests
//	T15 time stamps                 TestT15TimeStamps
//	T16 sent is not delivered       TestT16LinkDrops
//	T17 cost of a copy              TestT17NoCopyNoCost: filters come later
//	T18 shared data                 TestT18Fragments
//	T19 what TEE does               TestT19NotAsTEE

// T9: a tun device has no Ethernet header to copy: refused with a reason.
func TestT09DeviceWithoutEthernet(t *testing.T) {
	kernels.Require(t, "tun")
	t.Parallel()
	g := newGateway(t)
	openTun(t, g, "tun0", unix.IFF_TUN)
	for _, config := range []string{
		strings.Replace(example, "[eth3]", "[eth3, tun0]", 1),
		strings.Replace(example, "[eth2]", "[eth2, tun0]", 1),
	} {
		r := g.tapgateIn(config, "apply", "-f", "-")
		if r.code == 0 || !strings.Contains(r.stderr, `"tun0"`) || !strings.Contains(r.stderr, "no Ethernet frames") {
			t.Errorf("apply with a tun device: %s", r)
		}
	}
	if r := g.tapgate("status"); r.code != 3 {
		t.Errorf("something was left of it: %s", r)
	}
}

// counter is a stranger's program that counts what it sees and ends with a code.
type counter struct {
	program *ebpf.Program
	seen    *ebpf.Map
}

func newCounter(t *testing.T, code int32) *counter {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "stranger", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "stranger", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, m.FD()), asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "end"),
		asm.Mov.Imm(asm.R1, 1), asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, code).WithSymbol("end"), asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return &counter{p, m}
}

func (c *counter) count(t *testing.T) (n uint64) {
	t.Helper()
	if err := c.seen.Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// onClsact puts the counter on ingress of an interface of the gateway.
func (c *counter) onClsact(t *testing.T, g *gateway, ifname string) {
	t.Helper()
	err := g.Gateway.Do(func() error {
		l, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		err = netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index,
			Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 100, Protocol: unix.ETH_P_ALL},
			Fd: c.program.FD(), Name: "stranger", DirectAction: true})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// onTCX does so with TCX, before or after the programs that are there.
func (c *counter) onTCX(t *testing.T, g *gateway, ifname string, anchor link.Anchor) {
	t.Helper()
	err := g.Gateway.Do(func() error {
		i, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: i.Index, Program: c.program, Attach: ebpf.AttachTCXIngress, Anchor: anchor})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// T11: ours come first and have no opinion, so that others see every packet
// as before; one that puts itself in front and hides packets is told.
func TestT11OtherPrograms(t *testing.T) {
	t.Parallel()
	const next, pass = -1, 0
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		tcx, err := kernels.Has("tcx")
		if err != nil {
			t.Fatal(err)
		}
		onOneCPU(t)
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		wholeChecksums(g)
		v := sensorView(g)
		w := watchCable(g, "eth3", g.Servers[0], v)
		before, last := newCounter(t, next), newCounter(t, pass)
		last.onClsact(t, g, "eth3")
		if tcx {
			before.onTCX(t, g, "eth3", link.Tail())
		}
		g.apply(example)
		n, m := before.count(t), last.count(t)
		out, _ := w.same(func() { mixed(t, g.Servers[0], g.Outside[0]) })
		v.account(g, "ids", 0)
		if got := last.count(t) - m; got < uint64(len(out)) {
			t.Errorf("a stranger's clsact filter saw %d of %d frames", got, len(out))
		}
		if got := before.count(t) - n; tcx && got < uint64(len(out)) {
			t.Errorf("a stranger's TCX program saw %d of %d frames", got, len(out))
		}
		if !tcx {
			return
		}
		// clsact always runs behind TCX, so that there the one from before is in front.
		problems := strings.Join(g.status().Problems, "\n")
		if told := strings.Contains(problems, "eth3") && strings.Contains(problems, "before ours"); told != (kind == loader.AttachClsact) {
			t.Errorf("problems: %q", problems)
		}
		hides := newCounter(t, pass)
		hides.onTCX(t, g, "eth3", link.Head())
		ping(t, g.Servers[0], g.Outside[0].Addr)
		if hides.count(t) == 0 {
			t.Error("the hiding program saw nothing, nothing shown")
		}
		if !slices.ContainsFunc(g.status().Problems, func(s string) bool {
			return strings.Contains(s, "eth3") && strings.Contains(s, "before ours")
		}) {
			t.Errorf("nothing told of a program in front: %q", g.status().Problems)
		}
	})
}

// T15: a copy has no time stamp but the sensor's own, also where the original
// was given one that lies in the future.
func TestT15TimeStamps(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t)
		g.kind = kind
		v := sensorView(g)
		start := time.Now() // the gateway's kernel may speak as soon as tcpdump listens
		w := watchCable(g, "eth3", g.Servers[0], v)
		g.apply(example)
		w.same(func() {
			echoAll(t, g.Servers[0], g.Gateway.Interface("eth3").Addr.Addr(), 5, 56)
			sendLater(t, g, time.Hour)
		})
		frames, err := v.dump.Frames()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			// tcpdump writes microseconds.
			if f.Time.Before(start.Truncate(time.Microsecond)) || f.Time.After(time.Now()) {
				t.Errorf("captured at %v, between %v and now", f.Time, start)
			}
		}
	})
}

// sendLater sends a packet from the gateway to the server with a departure
// time. Nothing on the way waits for it: no qdisc here looks at it.
func sendLater(t *testing.T, g *gateway, delay time.Duration) {
	t.Helper()
	var c *net.UDPConn
	err := g.Gateway.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, &net.UDPAddr{IP: g.Servers[0].Addr.AsSlice(), Port: 9})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	outer := raw.Control(func(fd uintptr) {
		// UDP: a checksum would be left to the link, and the captures differ.
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			return
		}
		// struct sock_txtime: the clock and no flags.
		if err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_TXTIME, string([]byte{unix.CLOCK_MONOTONIC, 0, 0, 0, 0, 0, 0, 0})); err != nil {
			return
		}
		var now unix.Timespec
		if err = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return
		}
		control := make([]byte, unix.CmsgSpace(8))
		h := unix.Cmsghdr{Level: unix.SOL_SOCKET, Type: unix.SCM_TXTIME}
		h.SetLen(unix.CmsgLen(8))
		putControl(control, h, uint64(now.Nano())+uint64(delay))
		_, err = unix.SendmsgN(int(fd), noise(300), control, nil, 0)
	})
	if err := errors.Join(outer, err); err != nil {
		t.Fatal(fmt.Errorf("send with a departure time: %w", err))
	}
}

// T17: a copy costs the original a new head; where no mirror wants one, none
// is made.
func TestT17NoCopyNoCost(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.SecondInternal())
		g.kind = kind
		far := dump(g, g.Sensor, onWire, "-Q", "in")
		g.apply(strings.Replace(example, "  dmz:", "  quiet: {role: internal, interfaces: [eth5]}\n  dmz:", 1))
		second := g.Gateway.Interface("eth5").Addr.Addr()
		ping(t, g.Second, second)
		ping(t, g.Servers[0], g.Gateway.Interface("eth3").Addr.Addr())
		server := g.Servers[0].Addr
		frames, err := far.WaitFor(func(frames []lab.Frame) bool {
			return len(ipBetween(frames, server, g.Gateway.Interface("eth3").Addr.Addr())) == 3
		}, exactWait)
		if err != nil {
			t.Error(err)
		}
		if n := len(ipBetween(frames, g.Second.Addr, second)); n > 0 {
			t.Errorf("%d copies that no mirror asked for", n)
		}
		g.checkLedgers()
	})
}
