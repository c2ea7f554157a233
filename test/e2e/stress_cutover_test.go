package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// chat is a conversation that goes on all the time: a word there and back, again
// and again.
type chat struct {
	name string
	say  func(n int) error // the nth word, and its echo
	mu   sync.Mutex
	said int
	err  error
}

// talk is all conversations of a test.
type talk struct {
	t     *testing.T
	chats []*chat
	stop  chan struct{}
	ended sync.WaitGroup
}

func newTalk(t *testing.T) *talk {
	k := &talk{t: t, stop: make(chan struct{})}
	t.Cleanup(k.end)
	return k
}

func (k *talk) end() {
	select {
	case <-k.stop:
	default:
		close(k.stop)
	}
	k.ended.Wait()
}

func (k *talk) add(name string, say func(int) error) {
	c := &chat{name: name, say: say}
	k.chats = append(k.chats, c)
	k.ended.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-k.stop:
				return
			default:
			}
			err := c.say(n)
			c.mu.Lock()
			c.err = err
			c.said++
			c.mu.Unlock()
			if err != nil {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
}

func (c *chat) state() (said int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said, c.err
}

// goOn requires that every conversation has gone on for some words by now, and
// that none is broken.
func (k *talk) goOn(when string) {
	k.t.Helper()
	for _, c := range k.chats {
		before, _ := c.state()
		eventually(k.t, func() string {
			said, err := c.state()
			switch {
			case err != nil:
				k.t.Fatalf("%s: %s is broken after %d words: %v", when, c.name, said, err)
			case said < before+5:
				return fmt.Sprintf("%s: %s stands still after %d words", when, c.name, said)
			}
			return ""
		})
	}
}

// addTCP has a connection opened now, by from to an echo.
func (k *talk) addTCP(g *gate, name string, from *lab.Host, v6 bool, at netip.AddrPort) {
	k.t.Helper()
	c, err := g.dial(from, netip.AddrPortFrom(addrOf(from, v6), 0), at)
	if err != nil {
		k.t.Fatalf("%s: %v", name, err)
	}
	k.add(name, func(n int) error {
		word := noise(1 + n*977%4000)
		_ = c.SetDeadline(time.Now().Add(2 * gateWait))
		if _, err := c.Write(word); err != nil {
			return err
		}
		got := make([]byte, len(word))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !slices.Equal(word, got) {
			return fmt.Errorf("%d bytes came back changed", len(word))
		}
		return nil
	})
}

// addUDP has datagrams go from a socket to another host's, and back to where they
// came from, which must never be another endpoint. One that is lost is sent again.
func (k *talk) addUDP(g *gate, name string, from, to *lab.Host, at netip.AddrPort, listen netip.AddrPort) {
	k.t.Helper()
	c := g.connectedUDP(from, netip.AddrPortFrom(from.Addr, 0), at)
	far := g.udpSocket(to, listen)
	if !at.IsValid() {
		k.t.Fatal("nowhere to send to")
	}
	_ = far.SetDeadline(time.Time{})
	go func() {
		buf := make([]byte, 2048)
		var seen netip.AddrPort
		for {
			n, src, err := far.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if !seen.IsValid() {
				seen = src
			}
			if src != seen {
				n = copy(buf, fmt.Sprintf("from %s, before from %s", src, seen))
			}
			_, _ = far.WriteToUDPAddrPort(buf[:n], src) // lost ones are asked for again
		}
	}()
	k.add(name, func(n int) error {
		word := fmt.Sprintf("%s %d", name, n)
		buf := make([]byte, 2048)
		for end := time.Now().Add(2 * gateWait); time.Now().Before(end); {
			if _, err := c.Write([]byte(word)); err != nil {
				return err
			}
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			m, err := c.Read(buf)
			if err == nil && string(buf[:m]) == word {
				return nil
			}
			if e, ok := err.(net.Error); err != nil && (!ok || !e.Timeout()) {
				return err
			}
			if err == nil && m > 4 && string(buf[:4]) == "from" {
				return fmt.Errorf("%s", buf[:m])
			}
		}
		return fmt.Errorf("no answer to %q", word)
	})
}

// recipe is what a gateway does without tapgate.
const recipe = `table inet recipe {
	chain pre { type nat hook prerouting priority dstnat
		iifname "eth0" ip daddr 203.0.113.1 tcp dport 4000 dnat ip to 192.168.3.2:4000
		iifname "eth0" ip daddr 203.0.113.1 udp dport 4001 dnat ip to 192.168.3.3:4002
	}
	chain post { type nat hook postrouting priority srcnat
		oifname "eth0" ip saddr 192.168.3.0/24 masquerade fully-random
	}
	chain forward { type filter hook forward priority filter
		ct state established,related accept
		iifname "eth0" ct status dnat accept
		iifname "eth0" drop
	}
}`

const cutOver = gateZones + `
nat:
  masquerade:
    - {from: internal, to: external}
  forwards:
    - {name: tcp, in: external, proto: tcp, port: 4000, to: "192.168.3.2:4000"}
    - {name: udp, in: external, proto: udp, port: 4001, to: "192.168.3.3:4002"}
`

// From the kernel's rules to tapgate and back, with connections open in both
// directions and never silent: none breaks, and none changes its outside port.
func TestStressCutOver(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	g := newGateLab(t)
	nft(t, g.gateway, recipe)
	k := newTalk(t)
	k.addTCP(g, "TCP from inside", g.in[1], false, netip.MustParseAddrPort(echoTCP(t, g.out[0], g.out[0].Addr.String()+":0")))
	k.addTCP(g, "TCP from inside, IPv6", g.in[1], true, netip.MustParseAddrPort(echoTCP(t, g.out[0], netip.AddrPortFrom(g.out[0].Addr6, 0).String())))
	echoTCP(t, g.in[0], g.in[0].Addr.String()+":4000")
	front := netip.AddrPortFrom(g.outside(false), 4000)
	k.addTCP(g, "TCP from outside", g.out[1], false, front)
	k.addUDP(g, "UDP from inside", g.in[0], g.out[1], netip.AddrPortFrom(g.out[1].Addr, 5000), netip.AddrPortFrom(g.out[1].Addr, 5000))
	k.addUDP(g, "UDP from outside", g.out[0], g.in[1], netip.AddrPortFrom(g.outside(false), 4001), netip.AddrPortFrom(g.in[1].Addr, 4002))
	k.goOn("with the kernel's rules")

	for round := range uint16(2) {
		if r := g.tapgateIn(cutOver, "apply", "-f", "-"); r.code != 2 {
			t.Fatalf("apply beside the kernel's rules, without being asked to take over: %s", r)
		}
		r := g.tapgateIn(cutOver, "apply", "-f", "-", "--cut-over")
		if r.code != 0 || !strings.Contains(r.stderr, "nft delete rule inet recipe post handle ") {
			t.Fatalf("apply --cut-over: %s", r)
		}
		k.goOn("both")
		inHost(t, g.Gateway, "nft", "delete", "table", "inet", "recipe")
		k.goOn("with tapgate")
		k.addTCP(g, "TCP from inside, begun with tapgate", g.in[0], false, netip.MustParseAddrPort(echoTCP(t, g.out[0], g.out[0].Addr.String()+":0")))
		k.addTCP(g, "TCP from outside, begun with tapgate", g.out[1], false, front)
		udp := netip.AddrPortFrom(g.out[1].Addr, 5001+round)
		k.addUDP(g, "UDP from inside, begun with tapgate", g.in[1], g.out[1], udp, udp)
		k.goOn("with tapgate, and more of them")
		g.consistentOnceQuiet()
		// While both translate, what has begun with tapgate stands still.
		nft(t, g.gateway, recipe)
		if r := g.must("detach"); !strings.Contains(r.stderr, "this ends ") || !strings.Contains(r.stdout, "ended ") {
			t.Errorf("detach does not say beforehand that flows end, or not afterwards: %s", r)
		}
		k.goOn("with the kernel's rules again")
	}
}

// consistentOnceQuiet is consistent while conversations go on, which make no flows:
// a contradiction that is one stays.
func (g *gate) consistentOnceQuiet() {
	g.t.Helper()
	eventually(g.t, func() string { return strings.Join(g.readTable().problems(), "\n") })
}
