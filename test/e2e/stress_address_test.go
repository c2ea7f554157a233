package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"

	"tapgate/loader"
	pkt "tapgate/test/packet"
)

// follow runs what "tapgate agent" runs, until the test ends.
func (g *gate) follow() {
	g.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var mu sync.Mutex
	var log bytes.Buffer
	opt := loader.Options{Netns: g.Gateway.Name, BPFFS: g.bpffs, LockTimeout: gateWait}
	go func() {
		done <- loader.Follow(ctx, opt, loader.Follower{
			Log:     slog.New(slog.NewTextHandler(&lockedWriter{&mu, &log}, nil)),
			Reapply: func() error { return errors.New("nothing has to be applied again") },
		})
	}()
	g.t.Cleanup(func() {
		cancel()
		err := <-done
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			g.t.Errorf("follow: %v", err)
		}
		if g.t.Failed() {
			g.t.Logf("follow said:\n%s", log.String())
		}
	})
	eventually(g.t, func() string {
		if !g.status().Gateway.Followed {
			return "nobody follows the addresses"
		}
		return ""
	})
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

// The outside address becomes another one, and another one, under load, as a DHCP
// lease would have it: flows of the old one go, their packets get out with the new
// one, and forwards answer there. Nothing leaves with an address that is gone.
func TestStressAddressChange(t *testing.T) {
	g := newGate(t, gateZones+`
nat:
  masquerade:
    - {from: internal, to: external}
  forwards:
    - {name: web, in: external, proto: tcp, port: 80, to: "192.168.3.200:80"}
`)
	g.follow()
	in, out, server := g.station(atInside, 0), g.station(atOutside, 0), g.stationAt(g.in[0], 200)
	crowd := g.station(atInside, 1)
	stop, stopped := make(chan struct{}), sync.WaitGroup{}
	halt := sync.OnceFunc(func() { close(stop); stopped.Wait() })
	defer halt()
	var sent atomic.Int64
	stopped.Go(func() { // old flows and new ones, all the time
		for n := uint16(0); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			for _, port := range []uint16{6000 + n%500, 10_000 + n%20_000} {
				frame := crowd.frame(out.Addr, pkt.UDP(port, 9001), gopacket.Payload("crowd"))
				if err := crowd.Send(frame); err != nil {
					t.Error(err)
					return
				}
				sent.Add(1)
			}
			time.Sleep(500 * time.Microsecond)
		}
	})
	if err := g.Gateway.Sysctl("net/ipv4/conf/eth0/promote_secondaries", "1"); err != nil {
		t.Fatal(err)
	}
	was := g.outside(false)
	for i, next := range []string{"203.0.113.51", "203.0.113.52"} {
		now := netip.MustParseAddr(next)
		ext := g.mapUDP(in, 5000, out, 9000, false)
		if ext.Addr() != was {
			t.Fatalf("came from %s, want %s", ext, was)
		}
		g.accept(out, 9002, netip.AddrPortFrom(was, 80), server, 80).talk()
		before := sent.Load()
		changes := []string{fmt.Sprintf("addr add %s/24 dev eth0", now), fmt.Sprintf("addr del %s/24 dev eth0", was)}
		if i > 0 { // for a moment there is none; the kernel forgets its neighbours
			changes[0], changes[1] = changes[1], changes[0]
			changes = append(changes, fmt.Sprintf("neigh replace %s lladdr %s nud permanent dev eth0", out.Addr, out.MAC))
		}
		for _, change := range changes {
			g.ip(g.Gateway, change)
		}
		// The same inside endpoint goes on sending, as a phone would.
		eventually(t, func() string {
			text := g.text()
			in.udp(5000, out.at(false, 9000), text)
			g.fenceBoth(in)
			for _, f := range out.Frames()[max(0, len(out.Frames())-2000):] {
				if got, err := pkt.Parse(f.Data); err == nil && string(got.Payload) == text {
					if got.Src.Addr() == now {
						return ""
					}
					return "still from " + got.Src.String()
				}
			}
			return "nothing comes"
		})
		// What has the old address is gone: the agent has ended it before.
		eventually(t, func() string {
			var flows []loader.Flow
			g.opened(func(gw *loader.Gateway) (err error) {
				flows, err = gw.Flows(loader.FlowFilter{Addr: netip.PrefixFrom(was, 32)})
				return err
			})
			if len(flows) > 0 {
				return fmt.Sprintf("%d flows have the old address %s, the first %+v", len(flows), was, flows[0])
			}
			return ""
		})
		ext = g.mapUDP(in, 5001, out, 9000, false)
		g.answerUDP(out, 9000, ext, in, 5001)
		s := g.connect(in, 5002, out, 9003, false)
		s.talk()
		if ext.Addr() != now || s.ext.Addr() != now {
			t.Errorf("new flows come from %s and %s, want %s", ext, s.ext, now)
		}
		g.accept(out, 9004, netip.AddrPortFrom(now, 80), server, 80).talk()
		if sent.Load() == before {
			t.Error("there was no load meanwhile")
		}
		was = now
	}
	halt()
	text := g.text()
	in.udp(5003, out.at(false, 9000), text)
	if got := out.wantText(text); got.Src.Addr() != was {
		t.Errorf("%s", got)
	}
	g.fenceBoth(crowd)
	g.consistent()
	g.empty()
}
