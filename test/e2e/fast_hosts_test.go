package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tapgate/test/lab"
)

// So much a TCP connection carries there and back four times a second, 100 MB in 130
// s: what conntrack does not see in between is more than any window.
const (
	burstOfTCP   = 205_000
	burstForward = 50_000
	burstEvery   = 250 * time.Millisecond
)

// begin opens the conversations: TCP from inside and outside, UDP from inside.
func (h *hostFlows) begin() {
	for _, v6 := range []bool{false, true} {
		far, own := addrOf(h.out[1], v6), addrOf(h.in[0], v6)
		name := func(what string) string { return fmt.Sprintf("%s: %s, IPv6 %v", h.name, what, v6) }
		h.addBursts(name("TCP from inside"), burstOfTCP, h.in[0], v6, netip.MustParseAddrPort(echoTCP(h.t, h.out[1], netip.AddrPortFrom(far, 0).String())))
		echoTCP(h.t, h.in[0], netip.AddrPortFrom(own, hostAdmits).String())
		h.addBursts(name("TCP from outside"), burstForward, h.out[1], v6, netip.AddrPortFrom(h.outside(v6), hostAdmits))
		h.addBeats(name("UDP from inside"), h.in[0], v6, netip.MustParseAddrPort(echoUDP(h.t, h.out[1], netip.AddrPortFrom(far, 0).String())))
	}
}

// addBursts is a TCP connection that carries much, and never stands still.
func (h *hostFlows) addBursts(name string, size int, from *lab.Host, v6 bool, at netip.AddrPort) {
	h.t.Helper()
	c, err := h.dial(from, netip.AddrPortFrom(addrOf(from, v6), 0), at)
	if err != nil {
		h.t.Fatalf("%s: %v", name, err)
	}
	h.talk.add(name, func(n int) error {
		if err := burst(c, size); err != nil {
			return err
		}
		h.talk.rest(burstEvery)
		return nil
	})
}

// burst sends n bytes over a connection and requires that they come back.
func burst(c net.Conn, n int) error {
	sent, got := noise(n), make([]byte, n)
	_ = c.SetDeadline(time.Now().Add(2 * gateWait))
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		wrote <- err
	}()
	if m, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("%d of %d bytes came back: %w", m, n, err)
	}
	if !slices.Equal(sent, got) {
		return fmt.Errorf("%d bytes came back changed", n)
	}
	return <-wrote
}

// addBeats is a UDP conversation of a datagram and its echo ten times a second, none
// of which may be lost.
func (h *hostFlows) addBeats(name string, from *lab.Host, v6 bool, at netip.AddrPort) {
	h.t.Helper()
	c := h.connectedUDP(from, netip.AddrPortFrom(addrOf(from, v6), 0), at)
	h.talk.add(name, func(n int) error {
		if err := echoed(c, 12+n%50); err != nil {
			return err
		}
		h.talk.rest(100 * time.Millisecond)
		return nil
	})
}

// echoed sends a datagram and requires that it comes back.
func echoed(c *net.UDPConn, size int) error {
	sent, got := noise(size), make([]byte, 65536)
	if _, err := c.Write(sent); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(gateWait))
	n, err := c.Read(got)
	if err == nil && !slices.Equal(sent, got[:n]) {
		err = fmt.Errorf("%d bytes came back as %d others", size, n)
	}
	return err
}

// rest sleeps, or until the talk ends.
func (k *talk) rest(d time.Duration) {
	select {
	case <-k.stop:
	case <-time.After(d):
	}
}

// goesOn requires that every conversation goes on, by the fast path or not at all by
// it, and that the host's rules have not thrown a packet away as invalid.
func (h *hostFlows) goesOn(when string) {
	h.t.Helper()
	before := h.counts()
	h.talk.allGoOn(h.name + ": " + when)
	after := h.counts()
	for _, place := range []string{"eth3 in", "eth0 out", "eth0 in", "eth3 out"} {
		fast, all := after[place].fast-before[place].fast, after[place].all-before[place].all
		if h.fastly() && fast*2 < all || !h.fastly() && fast > 0 {
			h.t.Errorf("%s: %s: %d of %d buffers took the fast path at %s", h.name, when, fast, all, place)
		}
	}
	if n := h.invalid(); n > 0 {
		h.t.Errorf("%s: %s: the host has dropped %d packets as invalid", h.name, when, n)
	}
}

// allGoOn is goOn for all at once.
func (k *talk) allGoOn(when string) {
	k.t.Helper()
	before := make([]int, len(k.chats))
	for i, c := range k.chats {
		before[i], _ = c.state()
	}
	for i, c := range k.chats {
		for deadline := time.Now().Add(2 * gateWait); ; time.Sleep(20 * time.Millisecond) {
			said, err := c.state()
			if err != nil || time.Now().After(deadline) {
				k.t.Fatalf("%s: %s has ended or stands still after %d words: %v", when, c.name, said, err)
			}
			if said >= before[i]+3 {
				break
			}
		}
	}
}

// carried waits until each TCP connection from inside has carried that many bytes.
func (h *hostFlows) carried(n int) {
	h.t.Helper()
	for _, c := range h.talk.chats {
		if !strings.Contains(c.name, "TCP from inside") {
			continue
		}
		for last, moved := 0, time.Now(); last*burstOfTCP < n; time.Sleep(burstEvery) {
			said, err := c.state()
			if err != nil || time.Since(moved) > 2*gateWait {
				h.t.Fatalf("%s has ended or stands still after %d bytes: %v", c.name, said*burstOfTCP, err)
			}
			if said != last {
				last, moved = said, time.Now()
			}
		}
	}
}

// invalid is how many packets the nft rules have dropped since conntrack could not
// place them.
func (h *hostFlows) invalid() (packets uint64) {
	if h.name != "nft" {
		return 0
	}
	var list struct {
		Nftables []struct {
			Rule struct {
				Expr []struct {
					Counter *struct{ Packets uint64 }
				}
			}
		}
	}
	text := inHost(h.t, h.Gateway, "nft", "-j", "list", "chain", "inet", "host", "forward")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		h.t.Fatalf("%v: %s", err, text)
	}
	for _, e := range list.Nftables {
		for _, x := range e.Rule.Expr {
			if x.Counter != nil { // of the first rule that counts
				return x.Counter.Packets
			}
		}
	}
	h.t.Fatalf("no counter: %s", text)
	return 0
}
