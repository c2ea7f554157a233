package loader

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var testNetnsCount atomic.Int32

// plumbBench is a network namespace with a veth pair "near" and "far", and a folder for pins.
type plumbBench struct {
	t    *testing.T
	name string
	ns   *namespace
	pins string
}

func newPlumbBench(t *testing.T) *plumbBench {
	t.Helper()
	b := &plumbBench{t: t, name: newTestNetns(t), pins: filepath.Join(newTestBPFFS(t), "pins")}
	if err := os.Mkdir(b.pins, 0o700); err != nil {
		t.Fatal(err)
	}
	b.ns = openTestNetns(t, b.name)
	b.veth("near", "far")
	return b
}

// newTestNetns makes a network namespace and returns its name.
func newTestNetns(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("tgplumb%d-%d", os.Getpid(), testNetnsCount.Add(1))
	runTool(t, "ip", "netns", "add", name)
	t.Cleanup(func() { runTool(t, "ip", "netns", "del", name) })
	return name
}

func openTestNetns(t *testing.T, name string) *namespace {
	t.Helper()
	ns, err := openNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.close() })
	return ns
}

// newTestBPFFS mounts a BPF filesystem in a folder of its own.
func newTestBPFFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("test", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func runTool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (b *plumbBench) ip(args ...string) {
	b.t.Helper()
	runTool(b.t, "ip", append([]string{"-n", b.name}, args...)...)
}

func (b *plumbBench) tool(args ...string) {
	b.t.Helper()
	runTool(b.t, "ip", append([]string{"netns", "exec", b.name}, args...)...)
}

// veth makes a pair that sends nothing by itself.
func (b *plumbBench) veth(name, peer string, more ...string) {
	b.t.Helper()
	b.ip(append(append([]string{"link", "add", name}, more...), "type", "veth", "peer", "name", peer)...)
	for _, dev := range []string{name, peer} {
		b.ip("link", "set", dev, "addrgenmode", "none")
		b.ip("link", "set", dev, "up")
	}
}

func (b *plumbBench) hook(ifname string, egress bool) hook {
	b.t.Helper()
	h := hook{ifname: ifname, egress: egress, first: !egress}
	b.must(func() error {
		dev, err := netlink.LinkByName(ifname)
		if err == nil {
			h.ifindex = dev.Attrs().Index
		}
		return err
	})
	return h
}

// must runs f in the namespace.
func (b *plumbBench) must(f func() error) {
	b.t.Helper()
	if err := b.ns.do(f); err != nil {
		b.t.Fatal(err)
	}
}

func (b *plumbBench) attach(p *counter, h hook, kind AttachKind) {
	b.t.Helper()
	b.must(func() error {
		got, err := attachProgram(p.prog, testName, h, kind, b.pins)
		if err == nil && got != kind {
			err = fmt.Errorf("attached as %q, want %q", got, kind)
		}
		return err
	})
}

// attachTCX attaches a program that is not ours, until the test ends.
func (b *plumbBench) attachTCX(p *counter, h hook, where link.Anchor) {
	b.t.Helper()
	b.must(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: h.ifindex, Program: p.prog, Attach: tcxAttach(h), Anchor: where})
		if err == nil {
			b.t.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// wantAttached wants our program to be p; kind "" wants none.
func (b *plumbBench) wantAttached(h hook, kind AttachKind, p *counter) {
	b.t.Helper()
	b.must(func() error {
		got, id, _, err := attachedKind(testName, h, b.pins)
		if err != nil {
			return err
		}
		want := ebpf.ProgramID(0)
		if p != nil {
			if want, err = programID(p.prog); err != nil {
				return err
			}
		}
		if got != kind || id != want {
			return fmt.Errorf("program %d is attached as %q, want %d as %q", id, got, want, kind)
		}
		return nil
	})
}

func (b *plumbBench) wantInFront(h hook, want ...string) {
	b.t.Helper()
	b.must(func() error {
		_, _, got, err := attachedKind(testName, h, b.pins)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("in front of ours: %q, want %q", got, want)
		}
		return err
	})
}

func (b *plumbBench) wantMoved(h hook, want bool) {
	b.t.Helper()
	b.must(func() error {
		got, err := movedAway(testName, b.pins, h)
		if err == nil && got != want {
			err = fmt.Errorf("moved away: %v, want %v", got, want)
		}
		return err
	})
}

// wantOnHook wants so many programs and filters on the hook, ours or not.
func (b *plumbBench) wantOnHook(h hook, want int) {
	b.t.Helper()
	b.must(func() error {
		tcx, err := queryTCX(h)
		if err != nil {
			return err
		}
		filters, err := listFilters(h)
		got := len(tcx)
		for _, f := range filters {
			if f.handle != 0 {
				got++
			}
		}
		if err == nil && got != want {
			err = fmt.Errorf("%d programs and filters on the hook, want %d: %v %v", got, want, tcx, filters)
		}
		return err
	})
}

// send sends frames that pass the hook.
func (b *plumbBench) send(h hook, n int) {
	b.t.Helper()
	b.must(func() error { return sendFrames(sender(h), n) })
}

// sender is the interface to send on for frames to pass the hook on "near".
func sender(h hook) string {
	if h.egress {
		return "near"
	}
	return "far"
}

func sendFrames(ifname string, n int) error {
	dev, err := netlink.LinkByName(ifname)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	frame := make([]byte, 60)
	copy(frame, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5})
	to := &unix.SockaddrLinklayer{Ifindex: dev.Attrs().Index}
	for range n {
		for {
			err := unix.Sendto(s, frame, 0, to)
			if err == nil {
				break
			}
			if err != unix.ENOBUFS && err != unix.EAGAIN {
				return err
			}
		}
	}
	return nil
}

// counter is a program without opinion that counts test frames.
type counter struct {
	prog *ebpf.Program
	m    *ebpf.Map
}

func newCounter(t *testing.T, name string) *counter {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	proto := make([]byte, 2)
	binary.BigEndian.PutUint16(proto, 0x88b5)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 16, asm.Word), // __sk_buff.protocol
			asm.JNE.Imm(asm.R2, int32(binary.NativeEndian.Uint16(proto)), "out"),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close(); m.Close() })
	return &counter{prog, m}
}

func (c *counter) count(t *testing.T) (n uint64) {
	t.Helper()
	if err := c.m.Lookup(uint32(0), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// want waits for a count. Frames arrive soon after they were sent.
func (c *counter) want(t *testing.T, want uint64) {
	t.Helper()
	waitUntil(t, func() error {
		if n := c.count(t); n != want {
			return fmt.Errorf("counted %d frames, want %d", n, want)
		}
		return nil
	})
}

// waitUntil tries until there is no error, and fails with the last one.
func waitUntil(t *testing.T, try func() error) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
