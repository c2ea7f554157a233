package e2e

import (
	"bytes"
	bin "encoding/binary"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// ofProduction: a frame with an address of the server or of the host outside in it.
func (g *gateway) ofProduction(f lab.Frame) bool {
	p := f.Payload()
	kind, _ := f.EtherType()
	if kind != 0x0800 || len(p) < 20 {
		return false
	}
	for _, h := range []*lab.Host{g.Servers[0], g.Outside[0]} {
		if a := h.Addr.AsSlice(); bytes.Equal(p[12:16], a) || bytes.Equal(p[16:20], a) {
			return true
		}
	}
	return false
}

// While packets pass, programs come off and the dmz becomes another one: what
// reaches the sensors' networks is finished, with the sensor's MAC, or nothing.
func TestMendedNoUnfinishedCopies(t *testing.T) {
	t.Parallel()
	const (
		packets = 20_000 // at least, and changes meanwhile
		fewest  = 4
		burst   = 40
	)
	// Many copies of each packet, so that a tap is at work most of the time.
	first := strings.Replace(example, "  mgmt:     {interfaces: [eth4]}\n", "", 1)
	for n := range 6 {
		first += fmt.Sprintf("      - {l2: eth2, mac: \"02:00:5e:00:53:%02x\"}\n", n)
	}
	second := strings.NewReplacer("eth2", "eth5", "192.168.4.2", "192.168.6.2").Replace(first)
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		for _, c := range []struct {
			name string
			step func(g *gateway, n int)
		}{
			{"detach", func(g *gateway, _ int) {
				g.apply(first)
				g.must("detach")
			}},
			{"dmz changed", func(g *gateway, n int) { g.apply([]string{first, second}[n%2]) }},
			{"dmz and kind changed", func(g *gateway, n int) {
				g.kind = kind
				if n%4 > 1 && kind == loader.AttachTCX {
					g.kind = loader.AttachClsact
				}
				g.apply([]string{first, second}[n%2])
			}},
		} {
			t.Run(c.name, func(t *testing.T) {
				g := newGateway(t, lab.RoutedOutside(), lab.SecondInternal())
				g.kind = kind
				sinks := map[*lab.Host]*lab.Capture{}
				for _, h := range []*lab.Host{g.Sensor, g.Second} {
					var err error
					if sinks[h], err = h.Capture("eth0", lab.Incoming); err != nil {
						t.Fatal(err)
					}
				}
				server := g.Servers[0]
				s, err := server.Sender("eth0")
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				frame := pkt.Frame(pkt.Ether(server.MAC, g.Gateway.Interface("eth3").MAC),
					pkt.IPv4(server.Addr, g.Outside[0].Addr), pkt.UDP(5000, 9), pkt.Payload(60))
				var sent atomic.Int64
				var enough atomic.Bool
				defer enough.Store(true)
				done := make(chan error, 1)
				go func() {
					for n := 0; !enough.Load(); {
						for range burst {
							bin.BigEndian.PutUint64(frame[42:], uint64(n))
							if err := s.Send(frame); err != nil {
								done <- err
								return
							}
							n++
						}
						sent.Store(int64(n))
						time.Sleep(5 * time.Millisecond)
					}
					done <- nil
				}()
				steps := 0
				for ; (sent.Load() < packets || steps < fewest) && len(done) == 0 && !t.Failed(); steps++ {
					c.step(g, steps)
				}
				enough.Store(true)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				g.must("detach")
				g.nothingLeft()
				finished := 0
				for h, capture := range sinks {
					frames, err := capture.Stop()
					if err != nil {
						t.Fatal(err)
					}
					wrong := lab.Select(frames, func(f lab.Frame) bool {
						return g.ofProduction(f) && !bytes.Equal(f.Data[:6], h.MAC) && !bytes.HasPrefix(f.Data, []byte{2, 0, 0x5e, 0, 0x53})
					})
					if len(wrong) > 0 {
						t.Errorf("%d unfinished copies in the network of %s, as %x", len(wrong), h.Name, wrong[0].Data[:34])
					}
					finished += len(lab.Select(frames, g.ofProduction)) - len(wrong)
				}
				if finished < 100 || steps < fewest {
					t.Errorf("%d copies during %d steps: too few to show anything", finished, steps)
				}
				t.Logf("%d copies during %d steps", finished, steps)
			})
		}
	})
}
