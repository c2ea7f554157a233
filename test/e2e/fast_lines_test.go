package e2e

import (
	"bytes"
	bin "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// line is one direction of a conversation of sockets: numbered datagrams, of which
// none may be lost, doubled or changed.
type line struct {
	name     string
	from     *net.UDPConn
	to       func() netip.AddrPort
	large    *atomic.Int64 // how large some of the datagrams are now; 0: none is large
	sent     uint64
	arrived  atomic.Uint64
	mu       sync.Mutex
	sizes    []int // by number
	seen     []bool
	problems []string
}

// lines are two hosts that send to each other through the gateway, IPv4 and IPv6.
type lines struct {
	g     *gate
	all   []*line
	large [2]atomic.Int64      // by family
	now   atomic.Value         // what is being done, for messages
	ends  [2][2]netip.AddrPort // by family: inside, remote
}

const (
	lineWindow = 24 // datagrams on their way: what a neighbour that is asked for keeps waiting
	lineTurn   = 4  // one of so many is large while some are
)

// sizeOf is the size of a datagram that was sent, by its number.
func (l *line) sizeOf(n uint64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n < uint64(len(l.sizes)) {
		return l.sizes[n]
	}
	return 16
}

// next is the datagram to be sent next.
func (l *line) next() []byte {
	size := 516 - int(l.sent*37%500)
	if large := int(l.large.Load()); large > 0 && l.sent%lineTurn == 0 {
		size = large + int(l.sent%50)
	}
	l.mu.Lock()
	l.sizes = append(l.sizes, size)
	l.mu.Unlock()
	return l.payload(l.sent)
}

func (l *line) payload(n uint64) []byte {
	b := make([]byte, l.sizeOf(n))
	for i := range b {
		b[i] = byte(n + uint64(i))
	}
	bin.BigEndian.PutUint64(b, n)
	return b
}

func (l *line) problem(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.problems) < 5 {
		l.problems = append(l.problems, l.name+": "+fmt.Sprintf(format, args...))
	}
}

// newLines opens the sockets and begins with a datagram there and one back.
func (g *gate) newLines() *lines {
	g.t.Helper()
	k := &lines{g: g}
	k.now.Store("at the beginning")
	for i, v6 := range []bool{false, true} {
		in := g.lineSocket(g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 5000))
		out := g.lineSocket(g.out[0], netip.AddrPortFrom(addrOf(g.out[0], v6), 9000))
		a, b := netip.AddrPortFrom(addrOf(g.in[0], v6), 5000), netip.AddrPortFrom(addrOf(g.out[0], v6), 9000)
		k.ends[i] = [2]netip.AddrPort{a, b}
		var front atomic.Pointer[netip.AddrPort]
		up := &line{name: fmt.Sprintf("up, IPv6 %v", v6), from: in, large: &k.large[i], to: func() netip.AddrPort { return b }}
		down := &line{name: fmt.Sprintf("down, IPv6 %v", v6), from: out, large: &k.large[i], to: func() netip.AddrPort { return *front.Load() }}
		known := make(chan struct{})
		go up.receive(out, func(src netip.AddrPort) {
			if front.CompareAndSwap(nil, &src) {
				close(known)
			} else if *front.Load() != src {
				up.problem("comes from %s, before from %s", src, *front.Load())
			}
		})
		go down.receive(in, func(src netip.AddrPort) {
			if src != b {
				down.problem("comes from %s", src)
			}
		})
		k.all = append(k.all, up, down)
		if err := up.run(1); err != nil {
			g.t.Fatal(err)
		}
		<-known
	}
	if err := k.exchange(1); err != nil {
		g.t.Fatal(err)
	}
	return k
}

// lineSocket is one that leaves fragmenting to itself and to routers, and sends IPv6
// in pieces that every link takes.
func (g *gate) lineSocket(h *lab.Host, at netip.AddrPort) *net.UDPConn {
	g.t.Helper()
	c := g.udpSocket(h, at)
	_ = c.SetDeadline(time.Time{})
	control(g.t, c, func(fd int) error {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		if at.Addr().Is6() {
			return errors.Join(err,
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT),
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU, narrow))
		}
		return errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT))
	})
	return c
}

// lostNumber is of datagrams that may be lost, and the first of them.
const lostNumber = 1 << 32

func (l *line) receive(c *net.UDPConn, from func(netip.AddrPort)) {
	buf := make([]byte, 65536)
	for {
		n, src, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 8 {
			l.problem("%d bytes, %v", n, err)
			continue
		}
		from(netip.AddrPortFrom(src.Addr().Unmap(), src.Port()))
		number := bin.BigEndian.Uint64(buf)
		if number >= lostNumber {
			continue
		}
		if number > 1<<24 || !bytes.Equal(buf[:n], l.payload(number)) {
			l.problem("datagram %d is not as it was sent", number)
			continue
		}
		l.mu.Lock()
		for uint64(len(l.seen)) <= number {
			l.seen = append(l.seen, false)
		}
		twice := l.seen[number]
		l.seen[number] = true
		l.mu.Unlock()
		if twice {
			l.problem("datagram %d arrived twice", number)
			continue
		}
		l.arrived.Add(1)
	}
}

// run sends n datagrams, never more than the window ahead of the receiver, and waits
// until all have arrived.
func (l *line) run(n int) error {
	end := l.sent + uint64(n)
	progress, last := time.Now(), l.arrived.Load()
	for l.sent < end || l.arrived.Load() < l.sent {
		if now := l.arrived.Load(); now != last {
			progress, last = time.Now(), now
		}
		if time.Since(progress) > gateWait {
			return fmt.Errorf("%s: %d of %d datagrams lost", l.name, l.sent-l.arrived.Load(), l.sent)
		}
		for range 4 {
			if l.sent == end || l.sent-l.arrived.Load() >= lineWindow {
				break
			}
			if _, err := l.from.WriteToUDPAddrPort(l.next(), l.to()); err != nil {
				return fmt.Errorf("%s: datagram %d: %w", l.name, l.sent, err)
			}
			l.sent++
		}
		time.Sleep(4 * time.Millisecond)
	}
	return nil
}

// exchange has n datagrams go on each line.
func (k *lines) exchange(n int) error {
	errs := make([]error, len(k.all))
	var all sync.WaitGroup
	for i, l := range k.all {
		all.Go(func() { errs[i] = l.run(n) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// begin has them flow until end.
func (k *lines) begin() (end func()) {
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				done <- nil
				return
			default:
				err = k.exchange(10)
			}
		}
		done <- err
	}()
	var once sync.Once
	return func() {
		k.g.t.Helper()
		once.Do(func() {
			close(stop)
			if err := <-done; err != nil {
				k.g.t.Fatalf("%v: %v", k.now.Load(), err)
			}
		})
	}
}

// waste sends what may be lost.
func (k *lines) waste(n int) {
	for i := range n {
		for _, l := range k.all {
			b := l.payload(lostNumber)
			bin.BigEndian.PutUint64(b, lostNumber+uint64(i))
			_, _ = l.from.WriteToUDPAddrPort(b, l.to()) // there may be no way at all
		}
	}
}

// check says what went wrong.
func (k *lines) check() {
	k.g.t.Helper()
	for _, l := range k.all {
		l.mu.Lock()
		for _, p := range l.problems {
			k.g.t.Error(p)
		}
		l.mu.Unlock()
		if l.arrived.Load() != l.sent {
			k.g.t.Errorf("%s: %d of %d datagrams arrived", l.name, l.arrived.Load(), l.sent)
		}
	}
}

// setLarge says how large some datagrams of each family are from now on.
func (k *lines) setLarge(v4, v6 int64) {
	k.large[0].Store(v4)
	k.large[1].Store(v6)
}

// Where packets come in.
var lineEnds = []string{"eth3 in", "eth0 in"}

// bothPaths requires that, since it was counted, packets have taken the fast path at
// these places, and some the stack.
func (k *lines) bothPaths(before map[string]buffers, places ...string) {
	k.g.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		after, complaint := k.g.counts(), ""
		for _, place := range places {
			fast := after[place].fast - before[place].fast
			slow := after[place].all - before[place].all - fast
			if k.g.fastly() && fast == 0 || slow == 0 {
				complaint = fmt.Sprintf("%v: %d packets took the fast path and %d the stack at %s", k.now.Load(), fast, slow, place)
			}
		}
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			k.g.t.Fatal(complaint)
		}
	}
}

// otherEnd is where packets come in that leave by an interface.
var otherEnd = map[string]string{"eth0": "eth3 in", "eth3": "eth0 in"}

// bothFast requires that packets take the fast path now.
func (k *lines) bothFast() {
	k.g.t.Helper()
	before := k.g.counts()
	for deadline := time.Now().Add(patience); k.g.fastly(); time.Sleep(10 * time.Millisecond) {
		after := k.g.counts()
		if after["eth3 in"].fast > before["eth3 in"].fast && after["eth0 in"].fast > before["eth0 in"].fast {
			return
		}
		if time.Now().After(deadline) {
			k.g.t.Fatalf("after %v nothing takes the fast path: %+v, then %+v", k.now.Load(), before, after)
		}
	}
}

// mirrored requires that the sensor got each datagram once in each direction: whole,
// or every byte of it in fragments.
func (k *lines) mirrored(c *lab.Capture) {
	k.g.t.Helper()
	type datagram struct {
		number uint64
		bytes  int
	}
	var whole [4]map[uint64]int
	var pieces [4][]*datagram // in fragments
	look := func(frames []lab.Frame) string {
		var open [4]map[uint32]*datagram // by id, which comes again after some 65,000
		for i := range whole {
			whole[i], pieces[i], open[i] = map[uint64]int{}, nil, map[uint32]*datagram{}
		}
		for _, f := range frames {
			p, err := pkt.Parse(f.Data)
			if err != nil || p.Proto != pkt.ProtoUDP {
				continue
			}
			for i := range k.all {
				ends := k.ends[i/2]
				if p.Src.Addr() != ends[i%2].Addr() || p.Dst.Addr() != ends[1-i%2].Addr() {
					continue
				}
				number := uint64(0)
				if p.Offset == 0 {
					if len(p.Payload) < 8 {
						continue
					}
					if number = bin.BigEndian.Uint64(p.Payload); number >= lostNumber {
						continue
					}
				}
				if p.Offset == 0 && !p.More {
					whole[i][number]++
					continue
				}
				if p.Offset == 0 {
					open[i][p.ID] = &datagram{number: number}
					pieces[i] = append(pieces[i], open[i][p.ID])
				}
				if of := open[i][p.ID]; of != nil {
					of.bytes += len(p.IP) - p.L4
				}
			}
		}
		for i, l := range k.all {
			for _, of := range pieces[i] {
				if of.bytes != 8+l.sizeOf(of.number) {
					return fmt.Sprintf("%s: the sensor got %d bytes of datagram %d, which has %d", l.name, of.bytes, of.number, 8+l.sizeOf(of.number))
				}
				whole[i][of.number]++
			}
			for n := range l.sent {
				if whole[i][n] != 1 {
					return fmt.Sprintf("%s: the sensor got datagram %d of %d %d times", l.name, n, l.sent, whole[i][n])
				}
			}
		}
		return ""
	}
	var complaint string
	if _, err := c.WaitFor(func(frames []lab.Frame) bool { complaint = look(frames); return complaint == "" }, patience); err != nil {
		k.g.t.Errorf("%s: %v", complaint, err)
	}
}
