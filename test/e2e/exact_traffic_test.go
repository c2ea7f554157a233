package e2e

import (
	"bytes"
	"context"
	bin "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapgate/test/lab"
)

// tcpWindow bounds what TCP has in flight, below what the queues of a veth hold.
const tcpWindow = 128 << 10

func smallWindow(_, _ string, c syscall.RawConn) error {
	var err error
	outer := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, tcpWindow)
	})
	if outer != nil {
		return outer
	}
	return err
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	_, _ = r.Read(b) // never fails
	return b
}

// echoConnections sends back what connections bring, until the listener is closed.
func echoConnections(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // the other side finds what is missing
		}()
	}
}

// echoTCP serves connections on addr of the host until the test ends.
func echoTCP(t *testing.T, h *lab.Host, addr string) string {
	t.Helper()
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = (&net.ListenConfig{Control: smallWindow}).Listen(context.Background(), "tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go echoConnections(l)
	return l.Addr().String()
}

// talkTCP sends n bytes, has them echoed, and compares.
func talkTCP(t *testing.T, from *lab.Host, addr string, n int) {
	t.Helper()
	var c net.Conn
	err := from.Do(func() (err error) {
		c, err = (&net.Dialer{Control: smallWindow, Timeout: exactWait}).Dial("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(exactWait)); err != nil {
		t.Fatal(err)
	}
	sent := noise(n)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- err
	}()
	got := make([]byte, n)
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("TCP to %s: %v", addr, err)
	}
	if err := <-wrote; err != nil {
		t.Fatalf("TCP to %s: %v", addr, err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("TCP to %s: %d bytes came back changed", addr, n)
	}
	// Ended in order, so that nothing is on the way when the test goes on.
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(got); err != io.EOF {
		t.Errorf("TCP to %s: ends with %v", addr, err)
	}
}

// echoUDP answers datagrams on addr of the host until the test ends.
func echoUDP(t *testing.T, h *lab.Host, addr string) string {
	t.Helper()
	var c net.PacketConn
	err := h.Do(func() (err error) { c, err = net.ListenPacket("udp", addr); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from) // the other side finds what is missing
		}
	}()
	return c.LocalAddr().String()
}

// talkUDP sends datagrams of these sizes, one after the other's echo.
func talkUDP(t *testing.T, from *lab.Host, addr string, sizes ...int) {
	t.Helper()
	var c net.Conn
	err := from.Do(func() (err error) { c, err = net.Dial("udp", addr); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 65536)
	for _, size := range sizes {
		sent := noise(size)
		if _, err := c.Write(sent); err != nil {
			t.Fatalf("UDP to %s, %d bytes: %v", addr, size, err)
		}
		if err := c.SetReadDeadline(time.Now().Add(exactWait)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("UDP to %s, %d bytes: %v", addr, size, err)
		}
		if !bytes.Equal(buf[:n], sent) {
			t.Errorf("UDP to %s: %d bytes came back changed", addr, size)
		}
	}
}

// echoAll sends echo requests that must all be answered.
func echoAll(t *testing.T, from *lab.Host, to netip.Addr, count, size int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), exactWait)
	defer cancel()
	if n, err := from.PingSize(ctx, to, count, size); err != nil || n != count {
		t.Fatalf("%d of %d pings of %d bytes to %s answered, %v", n, count, size, to, err)
	}
}

// mixed is traffic of every kind that sockets make, from a server to a host
// outside, IPv4 and IPv6, all of it answered.
func mixed(t *testing.T, server, outside *lab.Host) {
	t.Helper()
	for _, a := range []netip.Addr{outside.Addr, outside.Addr6} {
		for _, size := range []int{0, 56, 1400, 1472, 4000} {
			echoAll(t, server, a, 3, size)
		}
		tcp := echoTCP(t, outside, netip.AddrPortFrom(a, 0).String())
		udp := echoUDP(t, outside, netip.AddrPortFrom(a, 0).String())
		talkUDP(t, server, udp, 0, 1, 17, 18, 19, 100, 1400, 1452, 1472, 1473, 3000, 8000, 20000)
		for _, size := range []int{1, 1000, 300_000} {
			talkTCP(t, server, tcp, size)
		}
	}
}

// tool is a tool in a host that must succeed.
func tool(t *testing.T, h *lab.Host, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*exactWait)
	defer cancel()
	out, err := h.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s in %s: %v\n%s", name, h.Name, err, out)
	}
	return string(out)
}

// exactConfig is a configuration with eth3 internal and these targets. The lab's
// management network serves as that of a second sensor.
func exactConfig(targets ...string) string {
	s := "zones:\n  external: {interfaces: [eth0]}\n  internal: {interfaces: [eth3]}\n" +
		"  dmz:      {interfaces: [eth2, eth4]}\nmirrors:\n  - name: ids\n    zones: [internal]\n    targets:\n"
	for _, target := range targets {
		s += fmt.Sprintf("      - {%s}\n", target)
	}
	return s
}

// shout sends a datagram to each group address by an interface of the host.
func shout(t *testing.T, h *lab.Host, by lab.Interface, groups ...string) {
	t.Helper()
	for _, to := range groups {
		err := h.Do(func() error {
			addr, err := net.ResolveUDPAddr("udp", to)
			if err != nil {
				return err
			}
			local := &net.UDPAddr{}
			if addr.IP.To4() != nil {
				local.IP = by.Addr.Addr().AsSlice()
			}
			c, err := net.ListenUDP("udp", local)
			if err != nil {
				return err
			}
			defer c.Close()
			raw, err := c.SyscallConn()
			if err != nil {
				return err
			}
			outer := raw.Control(func(fd uintptr) {
				if addr.IP.To4() != nil {
					err = unix.SetsockoptInet4Addr(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, by.Addr.Addr().As4())
				} else {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, by.Index)
				}
			})
			if err := errors.Join(outer, err); err != nil {
				return err
			}
			_, err = c.WriteTo(noise(300), addr)
			return err
		})
		if err != nil {
			t.Fatalf("send to %s: %v", to, err)
		}
	}
}

// echoOne sends one datagram and does not care what becomes of it.
func echoOne(t *testing.T, from *lab.Host, addr string, size int) {
	t.Helper()
	var c net.Conn
	err := from.Do(func() (err error) { c, err = net.Dial("udp", addr); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(noise(size)); err != nil {
		t.Fatal(err)
	}
}

// putControl writes a control message with one number.
func putControl(b []byte, h unix.Cmsghdr, v uint64) {
	*(*unix.Cmsghdr)(unsafe.Pointer(&b[0])) = h
	bin.NativeEndian.PutUint64(b[unix.CmsgLen(0):], v)
}
