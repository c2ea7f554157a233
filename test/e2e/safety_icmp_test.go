package e2e

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"tapgate/test/lab"
)

// icmpEar hears all ICMP that is for a host. Production here has none.
type icmpEar struct {
	t    *testing.T
	host *lab.Host

	mu    sync.Mutex
	heard map[icmp.Type]int
}

func newICMPEar(t *testing.T, h *lab.Host) *icmpEar {
	t.Helper()
	e := &icmpEar{t: t, host: h, heard: map[icmp.Type]int{}}
	listen := func(network, address string, parse func(byte) icmp.Type) {
		var conn net.PacketConn
		err := h.Do(func() (err error) { conn, err = net.ListenPacket(network, address); return err })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		go func() {
			buf := make([]byte, 2048)
			for {
				n, _, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				if n > 0 {
					e.mu.Lock()
					e.heard[parse(buf[0])]++
					e.mu.Unlock()
				}
			}
		}()
	}
	listen("ip4:icmp", "0.0.0.0", func(b byte) icmp.Type { return ipv4.ICMPType(b) })
	if h.Addr6.IsValid() {
		listen("ip6:ipv6-icmp", "::", func(b byte) icmp.Type { return ipv6.ICMPType(b) })
	}
	return e
}

// neighbourTalk are the messages of RFC 4861 and of multicast listeners, which
// belong to the link and not to production.
func neighbourTalk(t icmp.Type) bool {
	switch t {
	case ipv6.ICMPTypeRouterSolicitation, ipv6.ICMPTypeRouterAdvertisement, ipv6.ICMPTypeNeighborSolicitation,
		ipv6.ICMPTypeNeighborAdvertisement, ipv6.ICMPTypeMulticastListenerQuery, ipv6.ICMPTypeMulticastListenerReport,
		ipv6.ICMPTypeMulticastListenerDone, ipv6.ICMPTypeVersion2MulticastListenerReport:
		return true
	}
	return false
}

// check fails if any ICMP was heard, and proves that the ear is not deaf.
func (e *icmpEar) check() {
	e.t.Helper()
	e.mu.Lock()
	for kind, n := range e.heard {
		if !neighbourTalk(kind) {
			e.t.Errorf("%s got %d ICMP messages: %v", e.host.Name, n, kind)
		}
	}
	e.mu.Unlock()
	self := []netip.Addr{e.host.Addr}
	if e.host.Addr6.IsValid() {
		self = append(self, e.host.Addr6)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, addr := range self {
		if n, err := e.host.Ping(ctx, addr, 1); n != 1 || err != nil {
			e.t.Errorf("%s does not answer itself: %v", addr, err)
		}
	}
	waitFor(e.t, "the ear of "+e.host.Name+" hears a ping", func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.heard[ipv4.ICMPTypeEcho] > 0 && (len(self) == 1 || e.heard[ipv6.ICMPTypeEchoRequest] > 0)
	})
}

// waitFor waits until ok, or fails the test when half a minute has passed.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after half a minute: %s", what)
		}
	}
}
