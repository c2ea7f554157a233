package e2e

import (
	bin "encoding/binary"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// numbered is a UDP packet of a flow, by its source port, with a number in it.
func numbered(t *testing.T, j joint, flow int) []byte {
	return packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolUDP),
		&layers.UDP{SrcPort: layers.UDPPort(10000 + flow), DstPort: 9}, gopacket.Payload(noise(60+flow)))
}

// Senders on every CPU, both directions at once: no account loses an update,
// every frame of a flow is there once and in its place.
func TestAccountsOnAllCPUs(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		var cpus unix.CPUSet
		if err := unix.SchedGetaffinity(0, &cpus); err != nil {
			t.Fatal(err)
		}
		if cpus.Count() < 2 {
			t.Log("only one CPU: senders take turns")
		}
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		v := sensorView(g)
		w := watchCable(g, "eth3", g.Servers[0], v)
		g.apply(example)
		w.mark(true)

		const flows, frames = 4, 5000
		var all sync.WaitGroup
		start := make(chan struct{})
		for flow := range flows {
			host, ifname, f := g.Servers[0], "eth0", numbered(t, outward(g), flow)
			if flow%2 == 1 {
				host, ifname, f = g.Gateway, "eth3", numbered(t, inward(g), flow)
			}
			s, err := host.Sender(ifname)
			if err != nil {
				t.Fatal(err)
			}
			all.Go(func() {
				defer s.Close()
				// One thread, one CPU: the frames of a flow then arrive in order.
				runtime.LockOSThread() // never unlocked: the thread ends with its CPU
				var one unix.CPUSet
				for cpu, n := 0, flow/2%cpus.Count(); ; cpu++ {
					if cpus.IsSet(cpu) {
						if n == 0 {
							one.Set(cpu)
							break
						}
						n--
					}
				}
				if err := unix.SchedSetaffinity(0, &one); err != nil {
					t.Error(err)
					return
				}
				<-start
				for i := range frames {
					bin.BigEndian.PutUint32(f[len(f)-4:], uint32(i))
					if err := s.Send(f); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		close(start)
		all.Wait()
		w.mark(true)
		if drops := v.account(g, "ids", 0); drops > 0 {
			t.Fatalf("the sensor's link dropped %d copies: the test sends too fast", drops)
		}
		got, err := v.dump.Frames()
		if err != nil {
			t.Fatal(err)
		}
		var next [flows]int
		for _, f := range got {
			p := f.Payload()
			kind, _ := f.EtherType()
			if kind != 0x0800 || p[9] != 17 || be16(p[20:]) < 10000 || be16(p[20:]) >= 10000+flows {
				continue
			}
			flow, n := be16(p[20:])-10000, int(bin.BigEndian.Uint32(p[len(p)-4:]))
			if n != next[flow] {
				t.Fatalf("flow %d: frame %d comes where %d should", flow, n, next[flow])
			}
			next[flow]++
		}
		for flow, n := range next {
			if n != frames {
				t.Errorf("flow %d: %d frames of %d", flow, n, frames)
			}
		}
	})
}

// GSO packets of parallel connections: packets and bytes as on the wire.
func TestAccountsOfSegmentsOnAllCPUs(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t)
		g.kind = kind
		if err := g.Masquerade(); err != nil {
			t.Fatal(err)
		}
		v := sensorView(g)
		w := watchLarge(g, "eth3", g.Servers[0], offload, v)
		g.apply(example)
		w.mark(true)
		var all sync.WaitGroup
		for _, a := range []netip.Addr{g.Outside[0].Addr, g.Outside[0].Addr6, g.Outside[0].Addr, g.Outside[0].Addr6} {
			addr := echoTCP(t, g.Outside[0], netip.AddrPortFrom(a, 0).String())
			all.Go(func() { talkTCP(t, g.Servers[0], addr, 1_000_000) })
		}
		all.Wait()
		w.mark(true)
		if drops := v.account(g, "ids", 0); drops > 0 {
			t.Errorf("the sensor's link dropped %d", drops)
		}
		if s := g.status(); s.Mirrors[0].Copied.Packets < 5000 {
			t.Errorf("only %d packets", s.Mirrors[0].Copied.Packets)
		}
	})
}

// T16: handed to the link is not delivered. A link whose other end takes only
// smaller frames, and one with a queue that is too short: what is missing at
// the sensor stands beside the account, exactly.
func TestT16LinkDrops(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, g *gateway){
		"other end's MTU": func(t *testing.T, g *gateway) {
			if err := g.Sensor.SetMTU("eth0", 1000); err != nil {
				t.Fatal(err)
			}
		},
		"queue": func(t *testing.T, g *gateway) {
			kernels.Require(t, "tbf")
			tool(t, g.Gateway, "tc", "qdisc", "add", "dev", "eth2", "root", "tbf", "rate", "10mbit", "burst", "4000", "limit", "6000")
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachKind(t, func(t *testing.T, kind loader.AttachKind) {
				onOneCPU(t)
				g := newGateway(t, lab.RoutedOutside())
				g.kind = kind
				g.hushDmz()
				v := sensorView(g)
				w := watchCable(g, "eth3", g.Servers[0], v)
				g.apply(example)
				w.mark(true)
				spoil(t, g)
				talkUDP(t, g.Servers[0], echoUDP(t, g.Outside[0], g.Outside[0].Addr.String()+":0"), sizes(200)...)
				drops := v.account(g, "ids", 0)
				m := g.mirror("ids")
				if drops == 0 || drops != m.Refused.Packets {
					t.Errorf("the link dropped %d, refused are %d: want the same and some", drops, m.Refused.Packets)
				}
				if m.Copied != m.Matched {
					t.Errorf("what the link drops is copied all the same: %+v", m.Ledger)
				}
			})
		})
	}
}

// sizes are n datagrams from small to full.
func sizes(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = (i * 37) % 1473
	}
	return all
}
