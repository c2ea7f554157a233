package e2e

import (
	"bytes"
	"crypto/sha256"
	bin "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapgate/test/kernels"
	"tapgate/test/lab"
)

const (
	streamPort = 9000
	// streamWindow bounds the packets on their way in one direction: queues of
	// the kernel between two namespaces hold 1000 and drop silently beyond.
	streamWindow = 96
	streamBurst  = 16
	fastPace     = 200 * time.Microsecond
	lostAfter    = 5 * time.Second // without any arrival: what is missing is lost
	fullPayload  = 1472            // UDP payload that fills an MTU of 1500
)

// leastRate is how many packets a second a stream has at least under a test that asks for
// 20,000: so many it has on a machine that does nothing else.
const leastRate = 5000

// production is what the tap must never disturb: numbered UDP both ways between
// a server and a host outside, through the masquerading gateway, with DF set
// and full-sized packets among them; and an ear for any ICMP at both ends.
type production struct {
	t        *testing.T
	up, down *flow // from the server, and to it
	icmp     [2]*icmpEar
	paths    [2]*net.UDPConn // connected, for the path MTU
	server   *lab.Host
	outside  *lab.Host
}

// flow is one direction. Every packet is a number and bytes that follow from it.
type flow struct {
	name     string
	send     func([]byte) error
	pace     time.Duration // between bursts
	sent     uint64
	arrived  atomic.Uint64
	mu       sync.Mutex
	seen     []bool
	problems []string
}

// newProduction has the kernel translate, and makes streams.
func newProduction(g *gateway) *production {
	g.t.Helper()
	kernels.Require(g.t, "nft_masquerade")
	if err := g.Masquerade(); err != nil {
		g.t.Fatal(err)
	}
	return newStreams(g)
}

// newStreams starts listening at both ends; nothing is sent yet but the first packet
// of the flow, which makes the translation.
func newStreams(g *gateway) *production {
	g.t.Helper()
	p := &production{t: g.t, server: g.Servers[0], outside: g.Outside[0],
		up: &flow{name: "server to outside", pace: fastPace}, down: &flow{name: "outside to server", pace: fastPace}}

	outer := p.listen(p.outside, nil)
	inner := p.listen(p.server, &net.UDPAddr{IP: p.outside.Addr.AsSlice(), Port: streamPort})
	gatewayAddr := &net.UDPAddr{IP: g.Gateway.Interface("eth0").Addr.Addr().AsSlice(), Port: 1}
	p.paths = [2]*net.UDPConn{inner, p.dial(p.outside, gatewayAddr)}
	for i, h := range []*lab.Host{p.server, p.outside} {
		p.icmp[i] = newICMPEar(p.t, h)
	}

	// The outside knows the server only by the gateway's address.
	if _, err := inner.Write([]byte("hello")); err != nil {
		p.t.Fatal(err)
	}
	buf := make([]byte, 2048)
	_ = outer.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, seenAs, err := outer.ReadFromUDP(buf)
	if err != nil {
		p.t.Fatalf("the first packet did not get outside: %v", err)
	}
	if seenAs.IP.Equal(p.server.Addr.AsSlice()) {
		p.t.Fatalf("the outside sees the server as %v: not masqueraded", seenAs)
	}
	_ = outer.SetReadDeadline(time.Time{})
	p.up.send = func(b []byte) error { _, err := inner.Write(b); return err }
	p.down.send = func(b []byte) error { _, err := outer.WriteToUDP(b, seenAs); return err }
	go p.up.receive(outer)
	go p.down.receive(inner)
	return p
}

func (p *production) listen(h *lab.Host, to *net.UDPAddr) (conn *net.UDPConn) {
	p.t.Helper()
	if to != nil {
		return p.dial(h, to)
	}
	err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: h.Addr.AsSlice(), Port: streamPort})
		return err
	})
	return p.prepare(conn, err)
}

func (p *production) dial(h *lab.Host, to *net.UDPAddr) (conn *net.UDPConn) {
	p.t.Helper()
	err := h.Do(func() (err error) { conn, err = net.DialUDP("udp4", nil, to); return err })
	return p.prepare(conn, err)
}

// prepare sets DF, so that a path MTU that fell shows as an error, and room for
// all that may be on its way.
func (p *production) prepare(conn *net.UDPConn, err error) *net.UDPConn {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	control(p.t, conn, func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO))
	})
	return conn
}

func control(t *testing.T, conn *net.UDPConn, f func(fd int) error) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// payloadOf is the packet with that number: small ones, and every fourth full.
func payloadOf(n uint64) []byte {
	size := 18 + int(n*37%500)
	if n%4 == 0 {
		size = fullPayload
	}
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(n + uint64(i))
	}
	bin.BigEndian.PutUint64(b, n)
	return b
}

func (f *flow) problem(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.problems) < 10 {
		f.problems = append(f.problems, f.name+": "+fmt.Sprintf(format, args...))
	}
}

// receive runs until the socket is closed by the test's end.
func (f *flow) receive(conn *net.UDPConn) {
	buf := make([]byte, 4096)
	for {
		n, _, err := conn.ReadFromUDP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // an ICMP error shows here, too
			f.problem("receive: %v", err)
			continue
		}
		if n < 8 {
			f.problem("a packet of %d bytes", n)
			continue
		}
		number := bin.BigEndian.Uint64(buf)
		if number > 1<<24 || !bytes.Equal(buf[:n], payloadOf(number)) {
			f.problem("packet %d is not as it was sent", number)
			continue
		}
		f.mu.Lock()
		for uint64(len(f.seen)) <= number {
			f.seen = append(f.seen, false)
		}
		twice := f.seen[number]
		f.seen[number] = true
		f.mu.Unlock()
		if twice {
			f.problem("packet %d arrived twice", number)
			continue
		}
		f.arrived.Add(1)
	}
}

// run sends n packets, never more than the window ahead of the receiver, and
// waits until all have arrived.
func (f *flow) run(n int) error {
	end := f.sent + uint64(n)
	progress, last := time.Now(), f.arrived.Load()
	for f.sent < end || f.arrived.Load() < f.sent {
		if now := f.arrived.Load(); now != last {
			progress, last = time.Now(), now
		}
		if time.Since(progress) > lostAfter {
			return fmt.Errorf("%s: %d of %d packets lost", f.name, f.sent-f.arrived.Load(), f.sent)
		}
		for range streamBurst {
			if f.sent == end || f.sent-f.arrived.Load() >= streamWindow {
				break
			}
			if err := f.send(payloadOf(f.sent)); err != nil {
				return fmt.Errorf("%s: packet %d: %w", f.name, f.sent, err)
			}
			f.sent++
		}
		time.Sleep(f.pace)
	}
	return nil
}

// exchange sends n packets each way, and fails the test unless all arrive.
func (p *production) exchange(n int) {
	p.t.Helper()
	if err := p.tryExchange(n); err != nil {
		p.t.Fatal(err)
	}
}

func (p *production) tryExchange(n int) error {
	down := make(chan error, 1)
	go func() { down <- p.down.run(n) }()
	return errors.Join(p.up.run(n), <-down)
}

// during runs f while packets flow both ways, before it, all the time, and after it.
func (p *production) during(f func()) {
	p.t.Helper()
	stop, done := make(chan struct{}), make(chan error, 1)
	flowing := make(chan struct{})
	go func() {
		var err error
		for first := true; err == nil; first = false {
			err = p.tryExchange(200)
			if first {
				close(flowing)
			}
			select {
			case <-stop:
				done <- errors.Join(err, p.tryExchange(200))
				return
			default:
			}
		}
		done <- err
	}()
	<-flowing
	// Also when f fails the test, which leaves this goroutine.
	defer func() {
		p.t.Helper()
		close(stop)
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	}()
	f()
}

// transfer sends n bytes over TCP each way at once and compares what arrived.
func (p *production) transfer(n int) {
	p.t.Helper()
	var listener *net.TCPListener
	err := p.outside.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: p.outside.Addr.AsSlice()})
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	defer listener.Close()
	deadline := time.Now().Add(time.Minute)
	_ = listener.SetDeadline(deadline)
	var client net.Conn
	err = p.server.Do(func() (err error) {
		client, err = (&net.Dialer{Deadline: deadline}).Dial("tcp4", listener.Addr().String())
		return err
	})
	if err != nil {
		p.t.Fatalf("TCP from the server to outside: %v", err)
	}
	defer client.Close()
	remote, err := listener.Accept()
	if err != nil {
		p.t.Fatal(err)
	}
	defer remote.Close()

	var wg sync.WaitGroup
	oneWay := func(name string, from, to net.Conn, seed byte) {
		data := make([]byte, n)
		_, _ = rand.NewChaCha8([32]byte{seed}).Read(data)
		want, got := sha256.Sum256(data), sha256.New()
		_ = errors.Join(from.SetDeadline(deadline), to.SetDeadline(deadline))
		wg.Go(func() {
			if _, err := from.Write(data); err != nil {
				p.t.Errorf("TCP %s: send: %v", name, err)
			}
			_ = from.(*net.TCPConn).CloseWrite()
		})
		wg.Go(func() {
			k, err := io.Copy(got, to)
			if err != nil || k != int64(n) || !bytes.Equal(got.Sum(nil), want[:]) {
				p.t.Errorf("TCP %s: %d of %d bytes arrived, checksum right: %v, %v", name, k, n, bytes.Equal(got.Sum(nil), want[:]), err)
			}
		})
	}
	oneWay("server to outside", client, remote, 1)
	oneWay("outside to server", remote, client, 2)
	wg.Wait()
}

// check says at the end of a test what production suffered: it shall be nothing.
func (p *production) check() {
	p.t.Helper()
	for _, f := range []*flow{p.up, p.down} {
		f.mu.Lock()
		for _, problem := range f.problems {
			p.t.Error(problem)
		}
		f.mu.Unlock()
		if f.arrived.Load() != f.sent {
			p.t.Errorf("%s: %d of %d packets arrived", f.name, f.arrived.Load(), f.sent)
		}
	}
	for i, conn := range p.paths {
		control(p.t, conn, func(fd int) error {
			mtu, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
			if err == nil && mtu != 1500 {
				err = fmt.Errorf("the path MTU of %s is %d now", []string{"the server", "the outside"}[i], mtu)
			}
			return err
		})
	}
	for _, ear := range p.icmp {
		ear.check()
	}
}
