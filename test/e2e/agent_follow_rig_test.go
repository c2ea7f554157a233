package e2e

import (
	endian "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/lab"
)

// The network behind a router outside: what is there needs the default route.
var (
	farHost  = netip.MustParseAddr("198.51.100.8")
	farHost6 = netip.MustParseAddr("2001:db8:198::8")
)

const (
	// wordEvery is how often somebody inside says a word to the far host, which says it again.
	wordEvery = 5 * time.Millisecond
	wordPort  = 7001
	wordMark  = "follow me"
	// resumeWithin is what traffic and copies may take on a machine that is busy with
	// other tests; on a quiet one it is a fraction of a second, as the log tells. Without
	// the agent's news and questions it would be 3 to 5 s.
	resumeWithin = 2500 * time.Millisecond
)

// followed is a gateway with an agent, while somebody talks through it all the time.
type followed struct {
	*gate
	agent *runningAgent
	words map[string]*conversation // by IP version
}

// conversation is the account of one.
type conversation struct {
	mu      sync.Mutex
	next    uint32
	said    map[uint32]time.Time
	heard   map[uint32]time.Time // by whom they are said again
	copied  [2]map[uint32]time.Time
	outside netip.AddrPort // as the far host sees the inside one now
	// unheard is an address that is nobody's any more: words from there are not said again.
	unheard netip.Addr
}

func newConversation() *conversation {
	return &conversation{said: map[uint32]time.Time{}, heard: map[uint32]time.Time{}, copied: [2]map[uint32]time.Time{{}, {}}}
}

// newFollowed puts a configuration in force and has an agent follow it.
func newFollowed(t *testing.T, kind loader.AttachKind, config string, opts ...lab.Option) *followed {
	t.Helper()
	f := &followed{
		gate:  newGateLab(t, append([]lab.Option{lab.Servers(1), lab.Outside(1)}, opts...)...),
		words: map[string]*conversation{"IPv4": newConversation(), "IPv6": newConversation()},
	}
	f.kind = kind
	far := f.out[0]
	for _, a := range []netip.Addr{farHost, farHost6} {
		f.ip(far, "addr add "+a.String()+" dev lo")
	}
	f.impatient()
	f.routed()
	f.apply(config)
	f.startAgent()
	f.overhear()
	for name, w := range f.words {
		f.talks(name, w)
	}
	f.allFlows("at the beginning", time.Now())
	return f
}

// impatient has the kernels ask their neighbours again after 50 ms and not after a second,
// which they would with and without a tap: what is measured here is our time.
func (f *followed) impatient() {
	f.t.Helper()
	for _, h := range f.Hosts() {
		for _, dev := range []string{"eth0", "eth2", "eth3"} {
			for _, family := range []string{"ipv4", "ipv6"} {
				err := h.Sysctl("net/"+family+"/neigh/"+dev+"/retrans_time_ms", "50")
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					f.t.Fatal(err)
				}
			}
		}
	}
}

// startAgent starts one, attached as the gateway is.
func (f *followed) startAgent() {
	f.t.Helper()
	args := []string{"--listen", ""}
	if f.kind != loader.AttachAuto {
		args = append(args, "--attach-kind", string(f.kind))
	}
	f.agent = f.gate.agent(nil, args...)
}

// routed gives the gateway its default routes.
func (f *followed) routed() {
	f.t.Helper()
	f.ip(f.Gateway, "route replace default via "+f.out[0].Addr.String())
	f.ip(f.Gateway, "-6 route replace default via "+f.out[0].Addr6.String())
}

// talks begins a conversation, which ends with the test.
func (f *followed) talks(name string, w *conversation) {
	f.t.Helper()
	v6 := name == "IPv6"
	there := netip.AddrPortFrom(farHost, wordPort)
	if v6 {
		there = netip.AddrPortFrom(farHost6, wordPort)
	}
	listen := func(h *lab.Host, at netip.AddrPort) *net.UDPConn {
		var c *net.UDPConn
		err := h.Do(func() (err error) { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); return err })
		if err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { c.Close() })
		return c
	}
	far, near := listen(f.out[0], there), listen(f.in[0], netip.AddrPortFrom(addrOf(f.in[0], v6), 7000))
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := far.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			w.mu.Lock()
			w.outside = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			deaf := w.outside.Addr() == w.unheard
			w.mu.Unlock()
			if deaf {
				continue
			}
			_, _ = far.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, err := near.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if number, ok := wordIn(buf[:max(n, 0)]); ok && err == nil {
				w.note(w.heard, number)
			}
		}
	}()
	stop := make(chan struct{})
	f.t.Cleanup(func() { close(stop) })
	go func() {
		for {
			w.mu.Lock()
			w.next++
			number := w.next
			w.said[number] = time.Now()
			w.mu.Unlock()
			word := endian.BigEndian.AppendUint32([]byte(wordMark), number)
			_, _ = near.WriteToUDPAddrPort(word, there) // there may be no way just now
			select {
			case <-stop:
				return
			case <-time.After(wordEvery):
			}
		}
	}()
}

func wordIn(data []byte) (number uint32, ok bool) {
	i := strings.Index(string(data), wordMark)
	if i < 0 || len(data) < i+len(wordMark)+4 {
		return 0, false
	}
	return endian.BigEndian.Uint32(data[i+len(wordMark):]), true
}

// note keeps when a word came first.
func (w *conversation) note(in map[uint32]time.Time, number uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, again := in[number]; !again {
		in[number] = time.Now()
	}
}

// overhear listens to all that comes in to the sensor as its own, whatever interfaces
// it has then.
func (f *followed) overhear() {
	f.t.Helper()
	var fd int
	err := f.Sensor.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons16(unix.ETH_P_ALL)))
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	c := os.NewFile(uintptr(fd), "sensor")
	f.t.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		f.t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 65536)
		for {
			var n int
			var from unix.Sockaddr
			var got error
			if err := raw.Read(func(fd uintptr) bool {
				n, from, got = unix.Recvfrom(int(fd), buf, 0)
				return !errors.Is(got, unix.EAGAIN)
			}); err != nil {
				return
			}
			link, ok := from.(*unix.SockaddrLinklayer)
			if got != nil || !ok || link.Pkttype != unix.PACKET_HOST || n < 14 {
				continue
			}
			if number, ok := wordIn(buf[:n]); ok {
				name, offset := "IPv4", 14+20
				if endian.BigEndian.Uint16(buf[12:]) == unix.ETH_P_IPV6 {
					name, offset = "IPv6", 14+40
				}
				direction := 0
				if endian.BigEndian.Uint16(buf[offset:]) == wordPort {
					direction = 1
				}
				w := f.words[name]
				w.note(w.copied[direction], number)
			}
		}
	}()
}

func htons16(v uint16) uint16 { return v<<8 | v>>8 }

// since is when the first word that was said after a time is in an account.
func (w *conversation) since(in map[uint32]time.Time, after time.Time) (first time.Time, count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for number, when := range in {
		if w.said[number].Before(after) {
			continue
		}
		count++
		if first.IsZero() || when.Before(first) {
			first = when
		}
	}
	return first, count
}

// allFlows waits until words that are said after a time are said again, and copied in both
// directions, and says how long that took.
func (f *followed) allFlows(what string, after time.Time) (longest time.Duration) {
	f.t.Helper()
	const enough = 20
	for _, name := range []string{"IPv4", "IPv6"} {
		w := f.words[name]
		for _, account := range []struct {
			name string
			in   map[uint32]time.Time
		}{{"traffic", w.heard}, {"copies from inside", w.copied[0]}, {"copies to inside", w.copied[1]}} {
			var first time.Time
			for end := after.Add(2 * gateWait); ; time.Sleep(wordEvery) {
				var n int
				if first, n = w.since(account.in, after); n >= enough {
					break
				}
				if time.Now().After(end) {
					f.t.Fatalf("%s: %s, %s: %d words of those said since; status: %q", what, name, account.name, n, f.status().Problems)
				}
			}
			longest = max(longest, first.Sub(after))
			f.t.Logf("%-60s %s %-20s %4d ms", what, name, account.name, first.Sub(after).Milliseconds())
		}
	}
	return longest
}

// resumes has something happen and wants everything to flow again soon after its end.
func (f *followed) resumes(what string, happen func()) (took time.Duration) {
	f.t.Helper()
	happen()
	return f.resumed(what, time.Now())
}

// resumed wants everything to flow soon after that time.
func (f *followed) resumed(what string, since time.Time) (took time.Duration) {
	f.t.Helper()
	if took = f.allFlows(what, since); took > resumeWithin {
		f.t.Errorf("%s: it took %v until everything flowed again", what, took)
	}
	f.rightly(what)
	return took
}

// rightly waits until status has nothing to complain of.
func (f *followed) rightly(what string) {
	f.t.Helper()
	retry(f.t, func() error {
		if problems := f.status().Problems; len(problems) > 0 {
			return fmt.Errorf("%s: status tells %q", what, problems)
		}
		return nil
	})
}

// sameOutside wants the conversations to have the endpoints outside that they had before
// something happened: their flows have outlived it.
func (f *followed) sameOutside(what string, happen func()) {
	f.t.Helper()
	before := f.outsides()
	happen()
	if after := f.outsides(); !slices.Equal(before, after) {
		f.t.Errorf("%s: the flows came from %v, and come from %v now", what, before, after)
	}
}

// disown has the far host hear nothing more from the addresses that these conversations
// come from: they are about to be somebody else's.
func (f *followed) disown(names ...string) {
	f.t.Helper()
	for _, name := range names {
		w := f.words[name]
		w.mu.Lock()
		w.unheard = w.outside.Addr()
		w.mu.Unlock()
	}
}

func (f *followed) outsides() (list []netip.AddrPort) {
	for _, name := range []string{"IPv4", "IPv6"} {
		w := f.words[name]
		w.mu.Lock()
		list = append(list, w.outside)
		w.mu.Unlock()
	}
	return list
}
