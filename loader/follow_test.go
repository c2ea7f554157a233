package loader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// followWait bounds waits for what the agent does within a second.
const followWait = 30 * time.Second

// follow runs an agent until the test ends.
func (b *natBench) follow(cfg Config) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(testWriter{b.t}, nil))
	go func() {
		ended <- Follow(ctx, b.opt, Follower{Log: log, Reapply: func() error { _, err := Apply(b.opt, cfg); return err }})
	}()
	b.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.t.Error(err)
		}
	})
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(text []byte) (int, error) {
	w.t.Log(string(text))
	return len(text), nil
}

// until waits for something that the status tells.
func (b *natBench) until(what string, ok func(*Status) bool) {
	b.t.Helper()
	var last *Status
	for end := time.Now().Add(followWait); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		g, err := Open(b.opt, ReadOnly)
		if err != nil {
			b.t.Fatal(err)
		}
		last, err = g.Status()
		if err = errors.Join(err, g.Close()); err != nil {
			b.t.Fatal(err)
		}
		if ok(last) {
			return
		}
	}
	b.t.Fatalf("not seen: %s; the last status: %+v %q", what, last.Gateway, last.Problems)
}

// onGateway changes an interface of the gateway.
func (b *natBench) onGateway(ifname string, f func(netlink.Link) error) {
	b.t.Helper()
	err := b.Gateway.Do(func() error {
		l, err := netlink.LinkByName(ifname)
		if err == nil {
			err = f(l)
		}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *natBench) readdress(from, to string) {
	b.t.Helper()
	b.onGateway("eth0", func(l netlink.Link) error {
		add, err := netlink.ParseAddr(to)
		if err == nil {
			err = netlink.AddrAdd(l, add)
		}
		del, perr := netlink.ParseAddr(from)
		if err = errors.Join(err, perr); err != nil {
			return err
		}
		// The new one would go with the old one as its secondary.
		if err := netlink.AddrDel(l, del); err != nil {
			return err
		}
		return netlink.AddrReplace(l, add)
	})
}

func TestFollowAddress(t *testing.T) {
	b := newNATBench(t)
	cfg := natConfig()
	b.apply(cfg)
	b.pingOut(1)
	b.follow(cfg)
	b.until("an agent follows", func(s *Status) bool { return s.Gateway.Followed })

	b.readdress("203.0.113.1/24", "203.0.113.77/24")
	b.until("the new address", func(s *Status) bool { return s.Gateway.Outside[0].IPv4 == "203.0.113.77" })
	b.until("the old flow's end", func(s *Status) bool { return s.Gateway.Flows == 0 })
	b.pingOut(1)
	b.open(func(g *Gateway) error {
		flows, err := g.Flows(FlowFilter{Proto: "icmp"})
		if err == nil && (len(flows) != 1 || netip.MustParseAddrPort(flows[0].Outside).Addr() != netip.MustParseAddr("203.0.113.77")) {
			err = fmt.Errorf("flows after the change: %+v", flows)
		}
		if err == nil {
			err = addressesAsRecorded(g)
		}
		return err
	})
}

// addressesAsRecorded wants the maps of addresses to be what the record says.
func addressesAsRecorded(g *Gateway) error {
	_, ours, err := outsideMaps(&g.active)
	if err != nil {
		return err
	}
	n := 0
	err = eachElement(g.maps[tapgateMapTgOurs], func(k *tapgateTgOursKey, v *tapgateTgOurAddr) {
		if ours[*k] == *v {
			n++
		} else {
			n = -1000
		}
	})
	if err == nil && n != len(ours) {
		err = fmt.Errorf("tg_ours is not what the record says: %d of %d", n, len(ours))
	}
	return err
}

func TestFollowSecondAgent(t *testing.T) {
	b := newNATBench(t)
	cfg := natConfig()
	b.apply(cfg)
	b.follow(cfg)
	b.until("an agent follows", func(s *Status) bool { return s.Gateway.Followed })
	err := Follow(b.Context(), b.opt, Follower{Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, ErrBusy) {
		t.Errorf("a second agent: %v", err)
	}
}

// TestUnfollowedAddress: without an agent status tells that an address has changed.
func TestUnfollowedAddress(t *testing.T) {
	b := newNATBench(t)
	cfg := natConfig()
	b.apply(cfg)
	b.pingOut(1)
	problems := func(n int) func(*Status) bool {
		return func(s *Status) bool { return len(s.Problems) == n && !s.Gateway.Followed }
	}
	b.until("no problem", problems(0))
	b.readdress("203.0.113.1/24", "203.0.113.77/24")
	b.until("a problem", problems(1))
	res := b.apply(cfg) // takes the new address, and the old one's flows end
	if len(res.Changes) != 1 || res.Changes[0] != "ended 1 flow of outside addresses that are gone" {
		t.Errorf("apply after the change: %q", res.Changes)
	}
	b.until("no problem", problems(0))
	b.pingOut(1)
	b.open(addressesAsRecorded)
}

// TestFollowLink: an interface that comes back under its name is taken in again.
func TestFollowLink(t *testing.T) {
	b := newNATBench(t)
	cfg := natConfig()
	cfg.Zones[1].Interfaces = append(cfg.Zones[1].Interfaces, "spare")
	spare := func() {
		b.t.Helper()
		err := b.Gateway.Do(func() error {
			v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "spare"}, PeerName: "spare-peer"}
			if err := netlink.LinkAdd(v); err != nil {
				return err
			}
			a, err := netlink.ParseAddr("192.168.77.1/24")
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(v, a), netlink.LinkSetUp(v))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	index := func(s *Status) (n int) {
		for _, m := range s.Members {
			if m.Interface == "spare" {
				n = m.Ifindex
			}
		}
		return n
	}
	spare()
	b.apply(cfg)
	b.follow(cfg)
	var before int
	b.until("an agent follows", func(s *Status) bool { before = index(s); return s.Gateway.Followed })
	b.onGateway("spare", netlink.LinkDel)
	spare()
	b.until("the new interface", func(s *Status) bool { return index(s) != before && len(s.Problems) == 0 })
	b.pingOut(1)
}
