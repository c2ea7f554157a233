package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/lab"
)

// socketTime bounds everything that a socket waits for.
const socketTime = 30 * time.Second

// TestRewriteSockets: checksums that are still to be completed (CHECKSUM_PARTIAL), and
// GSO packets, which BPF_PROG_RUN cannot have: real sockets talk through the gateway.
// A receiver on a veth believes such a checksum unseen, so in turn the gateway's
// interfaces and the hosts' have to complete theirs.
func TestRewriteSockets(t *testing.T) {
	l := lab.ForTest(t, lab.Prefix("tgdp"), lab.NoSensor())
	bpffs, err := l.MountBPFFS()
	if err != nil {
		t.Fatal(err)
	}
	opt := loader.Options{Netns: l.Gateway.Name, BPFFS: bpffs}
	apply := func(t *testing.T, ports ...loader.PortRange) {
		t.Helper()
		_, err := loader.Apply(opt, loader.Config{
			Zones: []loader.Zone{
				{Name: "external", Role: loader.RoleExternal, Interfaces: []string{"eth0"}},
				{Name: "internal", Role: loader.RoleInternal, Interfaces: []string{"eth3"}},
			},
			NAT: &loader.NAT{
				Masquerades: []loader.Masquerade{{Name: "in", From: "internal", To: "external", IPv6: true, Ports: ports}},
				ClampMSS:    true,
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	p := &pair{inside: l.Servers[0], outside: l.Outside[0]}
	gw := l.Gateway.Interface("eth0")
	each := func(t *testing.T, test func(t *testing.T, from, seen, to netip.Addr)) {
		for _, v := range [][3]netip.Addr{
			{p.inside.Addr, gw.Addr.Addr(), p.outside.Addr}, {p.inside.Addr6, gw.Addr6.Addr(), p.outside.Addr6},
		} {
			if v[0].IsValid() { // a kernel without IPv6 has no such addresses
				t.Run(map[bool]string{true: "ipv4", false: "ipv6"}[v[0].Is4()], func(t *testing.T) { test(t, v[0], v[1], v[2]) })
			}
		}
	}
	apply(t)
	for _, completes := range []string{"nobody", "gateway", "hosts"} {
		for _, name := range []string{"eth0", "eth3"} {
			if err := l.Gateway.SetTxChecksum(name, completes == "nobody"); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range []*lab.Host{p.inside, p.outside} {
			if err := h.SetTxChecksum("eth0", completes != "hosts"); err != nil {
				t.Fatal(err)
			}
		}
		t.Run(completes+"_completes", func(t *testing.T) {
			each(t, func(t *testing.T, _, seen, to netip.Addr) {
				remote := netip.AddrPortFrom(to, 7000)
				p.tcp(t, seen, remote)
				p.udp(t, seen, remote)
			})
		})
	}
	apply(t, loader.PortRange{First: 2000, Last: 2000})
	for _, on := range []bool{true, false} {
		for _, h := range []*lab.Host{p.inside, l.Gateway} {
			for _, name := range []string{"eth0", "eth3"} {
				if h == l.Gateway || name == "eth0" {
					if err := h.SetTxChecksum(name, on); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		t.Run(fmt.Sprintf("no_port_left_tx_%v", on), func(t *testing.T) {
			each(t, func(t *testing.T, _, _, to netip.Addr) { p.refused(t, to) })
		})
	}
}

// pair are two hosts that talk.
type pair struct{ inside, outside *lab.Host }

func on(t *testing.T, h *lab.Host, f func() error) {
	t.Helper()
	if err := h.Do(f); err != nil {
		t.Fatal(err)
	}
}

// tcp sends two megabytes each way.
func (p *pair) tcp(t *testing.T, seen netip.Addr, remote netip.AddrPort) {
	t.Helper()
	var listener net.Listener
	on(t, p.outside, func() (err error) { listener, err = net.Listen("tcp", remote.String()); return err })
	defer listener.Close()
	data := bytes.Repeat([]byte("0123456789abcdefg"), 1<<17)
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			c, err := listener.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			if from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from != seen {
				return fmt.Errorf("the outside sees %v, not %v", from, seen)
			}
			if err := receive(c, data); err != nil {
				return err
			}
			_, err = c.Write(data)
			return err
		}()
	}()
	var c net.Conn
	on(t, p.inside, func() (err error) {
		c, err = net.DialTimeout("tcp", remote.String(), socketTime)
		return err
	})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(socketTime))
	if _, err := c.Write(data); err != nil {
		t.Fatalf("tcp: %v", err)
	}
	if err := receive(c, data); err != nil {
		t.Fatalf("tcp, inside: %v", err)
	}
	if err := <-done; err != nil {
		t.Fatalf("tcp, outside: %v", err)
	}
}

func receive(c net.Conn, want []byte) error {
	_ = c.SetDeadline(time.Now().Add(socketTime))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("other bytes than were sent")
	}
	return nil
}

// segments has a socket's writes sent as datagrams of so many bytes (UDP GSO).
func segments(t *testing.T, c *net.UDPConn, size int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// udp sends datagrams and gets them back; then nobody listens any more, and the
// socket is told so by the ICMP error.
func (p *pair) udp(t *testing.T, seen netip.Addr, remote netip.AddrPort) {
	t.Helper()
	var far, near *net.UDPConn
	on(t, p.outside, func() (err error) {
		far, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(remote))
		return err
	})
	defer far.Close()
	on(t, p.inside, func() (err error) {
		near, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(remote))
		return err
	})
	defer near.Close()
	deadline := time.Now().Add(socketTime)
	_, _ = far.SetDeadline(deadline), near.SetDeadline(deadline)
	buf := make([]byte, 65536)
	for _, size := range []int{0, 1, 2, 100, 1333, 1452, 4000} {
		if size > 1452 {
			segments(t, near, 1000)
		}
		_, err := near.Write(bytes.Repeat([]byte("xyz"), 2000)[:size])
		if errors.Is(err, unix.EIO) {
			continue // older kernels have no UDP GSO without checksum offload
		}
		if err != nil {
			t.Fatal(err)
		}
		for left := size; ; {
			n, from, err := far.ReadFromUDPAddrPort(buf)
			if err != nil || from.Addr() != seen {
				t.Fatalf("udp of %d bytes: the outside sees %v, not %v: %v", size, from, seen, err)
			}
			if _, err := far.WriteToUDPAddrPort(buf[:n], from); err != nil {
				t.Fatal(err)
			}
			if m, err := near.Read(buf); err != nil || m != n {
				t.Fatalf("udp of %d bytes: %d came back: %v", n, m, err)
			}
			if left -= n; left <= 0 {
				break
			}
		}
	}
	far.Close()
	segments(t, near, 0)
	if _, err := near.Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Read(buf); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("udp to nobody: %v", err)
	}
}

// refused: with the only port taken, sockets are told, and by packets that are as
// they shall be: nothing of the refused packet's offloads is left on them.
func (p *pair) refused(t *testing.T, to netip.Addr) {
	t.Helper()
	capture, err := p.inside.Capture("eth0", lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = capture.Stop() }()
	told := func(err error) bool { return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) }
	dial := func() (c *net.UDPConn) {
		on(t, p.inside, func() (err error) {
			c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 7001)))
			return err
		})
		_ = c.SetDeadline(time.Now().Add(socketTime))
		return c
	}
	first := dial() // takes the port, unless it is taken
	defer first.Close()
	if _, err := first.Write([]byte("mine")); err != nil {
		t.Fatal(err)
	}
	answers := 0
	for _, size := range []int{1, 100, 1400, 4000} {
		c := dial()
		if size > 1452 {
			segments(t, c, 1000)
		}
		_, err := c.Write(make([]byte, size))
		if errors.Is(err, unix.EIO) {
			c.Close()
			continue
		}
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		c.Close()
		if !told(err) {
			t.Fatalf("udp of %d bytes without a port: %v", size, err)
		}
		answers++
	}
	isAnswer := func(f lab.Frame) bool {
		kind, at := f.EtherType()
		d := f.Data[at:]
		switch {
		case kind == unix.ETH_P_IP && to.Is4():
			return len(d) > 48 && d[9] == unix.IPPROTO_ICMP && d[20] == 3 && d[21] == 13
		case kind == unix.ETH_P_IPV6 && to.Is6():
			return len(d) > 88 && d[6] == unix.IPPROTO_ICMPV6 && d[40] == 1 && d[41] == 1
		}
		return false
	}
	frames, err := capture.WaitFor(func(all []lab.Frame) bool { return len(lab.Select(all, isAnswer)) >= answers }, socketTime)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range lab.Select(frames, isAnswer) {
		_, at := f.EtherType()
		d := f.Data[at:]
		bad := f.Partial
		if to.Is4() {
			bad = bad || check(d[:20]) != 0 || check(d[20:]) != 0
		} else {
			e := ends{src: netip.AddrFrom16([16]byte(d[8:])), dst: netip.AddrFrom16([16]byte(d[24:]))}
			bad = bad || check(pseudoHeader(e, unix.IPPROTO_ICMPV6, len(d)-40), d[40:]) != 0
		}
		if bad {
			t.Errorf("answer with wrong checksums (left to the device: %v)\n%x", f.Partial, f.Data)
		}
	}
}
