package e2e

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapgate/test/lab"
)

// udpSocket opens a socket in a host, and closes it with the test.
func (g *gate) udpSocket(h *lab.Host, at netip.AddrPort) *net.UDPConn {
	g.t.Helper()
	var c *net.UDPConn
	err := h.Do(func() (err error) { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err })
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(2 * gateWait)); err != nil {
		g.t.Fatal(err)
	}
	return c
}

// receive reads one datagram, which has to be this text.
func (g *gate) receive(c *net.UDPConn, text string) netip.AddrPort {
	g.t.Helper()
	buf := make([]byte, 65536)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != text {
		g.t.Fatalf("%s got %.80q from %s, %v, want %.80q", c.LocalAddr(), buf[:n], from, err, text)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func (g *gate) sendTo(c *net.UDPConn, to netip.AddrPort, text string) {
	g.t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(text), to); err != nil {
		g.t.Fatal(err)
	}
}

// addrOf is a host's address.
func addrOf(h *lab.Host, v6 bool) netip.Addr {
	if v6 {
		return h.Addr6
	}
	return h.Addr
}

// mapSocket is the outside endpoint of a socket inside.
func (g *gate) mapSocket(c *net.UDPConn, out *peer, v6 bool) netip.AddrPort {
	g.t.Helper()
	text := g.text()
	g.sendTo(c, out.at(v6, 9000), text)
	return out.wantText(text).Src
}

// listen accepts TCP connections in a host; each is handed to the channel.
func (g *gate) listen(h *lab.Host, at netip.AddrPort) (netip.AddrPort, <-chan net.Conn) {
	g.t.Helper()
	var l *net.TCPListener
	err := h.Do(func() (err error) { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); return err })
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close() })
	accepted := make(chan net.Conn, 16)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort(), accepted
}

// take waits for the next connection.
func (g *gate) take(accepted <-chan net.Conn) net.Conn {
	g.t.Helper()
	select {
	case c := <-accepted:
		g.t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(gateWait)); err != nil {
			g.t.Fatal(err)
		}
		return c
	case <-time.After(gateWait):
		g.t.Fatalf("nobody connected within %v", gateWait)
		return nil
	}
}

// reuse lets several sockets have one local port.
func reuse(_, _ string, c syscall.RawConn) (err error) {
	outer := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	if err == nil {
		err = outer
	}
	return err
}

// dial connects from a local endpoint, which others may have, too.
func (g *gate) dial(h *lab.Host, from, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Control: reuse, Timeout: gateWait}
	var c net.Conn
	err := h.Do(func() (err error) { c, err = d.Dial("tcp", to.String()); return err })
	if err != nil {
		return nil, err
	}
	g.t.Cleanup(func() { c.Close() })
	return c, c.SetDeadline(time.Now().Add(gateWait))
}

// converse has text go one way over a connection and back.
func (g *gate) converse(a, b net.Conn) {
	g.t.Helper()
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		text := g.text()
		if _, err := way[0].Write([]byte(text)); err != nil {
			g.t.Fatal(err)
		}
		buf := make([]byte, len(text))
		for n := 0; n < len(buf); {
			m, err := way[1].Read(buf[n:])
			if err != nil {
				g.t.Fatal(err)
			}
			n += m
		}
		if string(buf) != text {
			g.t.Errorf("%q arrived as %q", text, buf)
		}
	}
}

// pour sends much one way over TCP, whose sender has to learn what the way takes.
func (g *gate) pour(from *lab.Host, to netip.AddrPort, accepted <-chan net.Conn) {
	g.t.Helper()
	c, err := g.dial(from, netip.AddrPortFrom(addrOf(from, to.Addr().Is6()), 0), to)
	if err != nil {
		g.t.Fatal(err)
	}
	far := g.take(accepted)
	sent, got := noise(300_000), make([]byte, 300_000)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- err
	}()
	if _, err := io.ReadFull(far, got); err != nil {
		g.t.Fatalf("of %d bytes that need a smaller size: %v", len(sent), err)
	}
	if err := <-wrote; err != nil || !bytes.Equal(sent, got) {
		g.t.Errorf("%d bytes arrived changed, or %v", len(sent), err)
	}
}
