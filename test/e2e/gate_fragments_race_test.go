package e2e

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"tapgate/test/kernels"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// A network interface may give first fragments to one CPU and later ones to
// another: whichever is faster, the datagram arrives.
func TestGateFragmentsRace(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	t.Parallel()
	const rounds = 2000
	g := newGate(t, gateBoth)
	g.families(func(g *gate, v6 bool) {
		in, out := g.pair()
		ext := g.mapUDP(in, 5000, out, 9000, v6)
		for name, way := range map[string]struct {
			host     *lab.Host
			from, to *peer
			make     func(b []byte) datagram
		}{
			"in":  {g.out[0], out, in, func(b []byte) datagram { return out.cutUDP(9000, ext, b) }},
			"out": {g.in[0], in, out, func(b []byte) datagram { return in.cutUDP(5000, out.at(v6, 9000), b) }},
		} {
			before := len(way.to.Frames())
			var parts [2][][]byte
			for i := range rounds {
				d := way.make(g.big(200))
				d.id, d.size = uint32(i), 104
				for n, f := range d.cut(g.t) {
					parts[n] = append(parts[n], f)
				}
			}
			var turn atomic.Int64
			errs := make(chan error, 2)
			for cpu := range parts {
				go func() {
					errs <- onCPU(cpu, func() error {
						s, err := way.host.Sender("eth0")
						if err != nil {
							return err
						}
						defer s.Close()
						for i, f := range parts[cpu] {
							// Both begin each round at the same time.
							for turn.Add(1); turn.Load() < int64(2*i+2); {
							}
							if err := s.Send(f); err != nil {
								return err
							}
						}
						return nil
					})
				}()
			}
			for range parts {
				if err := <-errs; err != nil {
					g.t.Fatal(err)
				}
			}
			g.fence(way.from)
			count := func(frames []lab.Frame) (n int) {
				all, _ := wholes(frames[before:])
				for _, p := range all {
					if len(p.Payload) == 200 {
						n++
					}
				}
				return n
			}
			if frames, err := way.to.WaitFor(func(frames []lab.Frame) bool { return count(frames) >= rounds }, gateWait); err != nil {
				g.t.Errorf("%s: %d of %d datagrams arrived", name, count(frames), rounds)
			}
		}
	})
}

// onCPU runs f on one CPU, modulo those there are.
func onCPU(cpu int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	one.Set(cpu % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return errors.Join(f(), unix.SchedSetaffinity(0, &before))
}

// REQ-14a of RFC 4787: floods of fragments from one side or the other take nothing
// from datagrams of others, in order or not.
func TestGateFragmentsFlood(t *testing.T) {
	kernels.Require(t, "netfilter_defrag")
	t.Parallel()
	const flood = 10_000
	g := newGate(t, gateBoth)
	for _, f := range []struct {
		name    string
		inside  bool // the flood comes from there
		part    func(all [][]byte) []byte
		mapping bool // and is for a flow
		waits   bool // for others that never come
	}{
		{"first fragments of a flow", false, func(all [][]byte) []byte { return all[0] }, true, false},
		{"first fragments of none", false, func(all [][]byte) []byte { return all[0] }, false, false},
		{"later fragments", false, func(all [][]byte) []byte { return all[1] }, true, true},
		{"first fragments from inside", true, func(all [][]byte) []byte { return all[0] }, true, false},
		{"later fragments from inside", true, func(all [][]byte) []byte { return all[1] }, true, false},
	} {
		t.Run(f.name, func(t *testing.T) {
			g := g.with(t)
			in, out := g.pair()
			bad := g.station(atOutside, 1)
			if f.inside {
				bad = g.station(atInside, 1)
			}
			ext := g.mapUDP(in, 5000, out, 9000, false)
			target := out.at(false, 9000)
			if !f.inside {
				target = netip.AddrPortFrom(ext.Addr(), 7)
				if f.mapping {
					in.udp(5000, bad.at(false, 9000), "let it in")
					bad.wantText("let it in")
					target = ext
				}
			}
			d := bad.cutUDP(9000, target, noise(1000))
			d.size = 512
			before := g.strays()
			x := fragExchange{"UDP",
				func(b []byte) datagram { return in.cutUDP(5000, out.at(false, 9000), b) },
				func(b []byte, to *pkt.Parsed) datagram { return out.cutUDP(9000, to.Src, b) },
			}
			for n := range flood {
				d.id = uint32(n)
				if err := bad.Send(f.part(d.cut(t))); err != nil {
					t.Fatal(err)
				}
				if n%500 == 0 {
					x.across(g, in, out, "in order", inOrder, inOrder)
					x.across(g, in, out, "reversed", fragOrders[0].of, fragOrders[0].of)
				}
			}
			x.across(g, in, out, "shuffled", rand.Perm, rand.Perm)
			if dropped := g.strays() - before; f.waits && dropped < flood/2 {
				t.Errorf("%d of %d later fragments without a first one were refused", dropped, flood)
			}
		})
	}
}

// strays is how many fragments from outside were refused.
func (g *gate) strays() uint64 {
	g.t.Helper()
	for _, m := range g.status().Members {
		if m.Interface == "eth0" {
			return m.Ingress.Reasons["drop_fragment"]
		}
	}
	return 0
}
