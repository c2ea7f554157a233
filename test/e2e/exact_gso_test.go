package e2e

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

const gsoSize = 1400 // payload of UDP segments

// burstUDP sends segments with one call, as UDP_SEGMENT lets a sender do, and
// has each echoed.
func burstUDP(t *testing.T, from *lab.Host, addr string, segments, size int) {
	t.Helper()
	var c net.Conn
	err := from.Do(func() (err error) { c, err = net.Dial("udp", addr); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	outer := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
	})
	if outer != nil || err != nil {
		t.Fatal(outer, err)
	}
	talkConn(t, c, segments, size)
}

func talkConn(t *testing.T, c net.Conn, segments, size int) {
	t.Helper()
	if _, err := c.Write(noise(segments * size)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65536)
	for got := 0; got < segments*size; {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
}

func bulk(t *testing.T, server, outside *lab.Host) {
	t.Helper()
	for _, a := range []netip.Addr{outside.Addr, outside.Addr6} {
		talkTCP(t, server, echoTCP(t, outside, netip.AddrPortFrom(a, 0).String()), 1_000_000)
		burstUDP(t, server, echoUDP(t, outside, netip.AddrPortFrom(a, 0).String()), 20, gsoSize)
	}
}

func largest(frames []lab.Frame) (n int) {
	for _, f := range frames {
		n = max(n, len(f.Data))
	}
	return n
}

// T5 and T7: senders leave segments and checksums to hardware that is not
// there. The sensor gets what a wire would have carried.
func TestT05SegmentsAndT07Checksums(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newGateway(t)
		g.kind = kind
		if err := g.Masquerade(); err != nil {
			t.Fatal(err)
		}
		v := sensorView(g)
		w := watchLarge(g, "eth3", g.Servers[0], offload, v)
		w.finish = segmenter(t, 1500, gsoSize)
		g.apply(example)
		out, in := w.same(func() { bulk(t, g.Servers[0], g.Outside[0]) })
		if largest(out) < 10000 || largest(in) < 10000 {
			t.Errorf("largest frame %d out and %d in: no GSO, nothing shown", largest(out), largest(in))
		}
		v.account(g, "ids", 0)
	})
}

// The same where the gateway itself puts received segments together (GRO) and
// its interfaces cut them again: server and sensor then see wires.
func TestT05ReceiveOffload(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := masqueraded(t, kind)
		for _, ifname := range []string{"eth0", "eth3"} {
			tool(t, g.Gateway, "ethtool", "-K", ifname, "gro", "on", "rx-udp-gro-forwarding", "on")
		}
		if err := g.Gateway.SetTxChecksum("eth3", false); err != nil {
			t.Fatal(err)
		}
		v := sensorView(g)
		w := watchCable(g, "eth3", g.Servers[0], v)
		g.apply(example)
		out, in := w.same(func() { bulk(t, g.Servers[0], g.Outside[0]) })
		if largest(out) > 1514 || largest(in) > 1514 {
			t.Errorf("largest frame %d out and %d in: the server sees no wire", largest(out), largest(in))
		}
		v.account(g, "ids", 0)
		for _, m := range g.status().Members {
			if m.Interface != "eth3" {
				continue
			}
			for name, d := range map[string]*loader.DirectionStatus{"ingress": m.Ingress, "egress": m.Egress} {
				if d.Reasons["pass_tapped"] == 0 || d.Reasons["pass_tapped"]*2 > d.Seen.Packets {
					t.Errorf("%s: %d packets in %v buffers: no GRO, nothing shown", name, d.Seen.Packets, d.Reasons)
				}
			}
		}
	})
}

// A guest's GSO packet comes in from a tap device without a number of segments.
func TestT05GuestSegments(t *testing.T) {
	kernels.Require(t, "tun")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t)
		g.kind = kind
		tap := openTun(t, g, "tap0", unix.IFF_TAP|unix.IFF_VNET_HDR)
		v := sensorView(g)
		v.dump, v.base = dump(g, v.host, onWire, "-Q", "in"), droppedBefore(g)
		g.apply("zones:\n  internal: {interfaces: [tap0]}\n  dmz: {interfaces: [eth2]}\n" +
			"mirrors:\n  - name: ids\n    zones: [internal]\n    targets: [{via: 192.168.4.2}]\n")
		j := outward(g)
		frame := bigTCP(t, j, 20000)
		// struct virtio_net_hdr: needs checksum, GSO TCPv4.
		header := []byte{1, 1, 54, 0, gsoSize & 0xff, gsoSize >> 8, 34, 0, 16, 0}
		if _, err := tap.Write(append(header, frame...)); err != nil {
			t.Fatal(err)
		}
		want := cutTCP(frame, gsoSize)
		frames, err := v.dump.WaitFor(func(frames []lab.Frame) bool { return len(tcpOnly(frames)) >= len(want) }, exactWait)
		if err != nil {
			t.Error(err)
		}
		got := tcpOnly(frames)
		for i, f := range got {
			if i < len(want) && string(f.Data[14:]) != string(want[i][14:]) {
				t.Errorf("segment %d: %s\nwant %s", i, brief(f.Data), brief(want[i]))
			}
		}
		if len(got) != len(want) || len(want) != 15 {
			t.Errorf("%d segments, want %d", len(got), len(want))
		}
		v.account(g, "ids", 0)
	})
}

// openTun makes a tun or tap device in the gateway, up, that ends with the test.
func openTun(t *testing.T, g *gateway, name string, flags uint16) *os.File {
	t.Helper()
	var f *os.File
	// The device appears in the namespace that the file was opened in.
	err := g.Gateway.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		t.Cleanup(func() { f.Close() })
		var req [40]byte
		copy(req[:], name)
		*(*uint16)(unsafe.Pointer(&req[unix.IFNAMSIZ])) = flags | unix.IFF_NO_PI
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		t.Fatalf("make %s: %v", name, err)
	}
	if err := g.Gateway.SetUp(name, true); err != nil {
		t.Fatal(err)
	}
	return f
}
