package e2e

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/ipv6"

	"tapgate/loader"
	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

func words(command string) []string { return strings.Fields(command) }

// door is an address that the sensor would like to talk to.
type door struct {
	host *lab.Host
	addr netip.Addr
	tcp  net.Listener
	udp  net.PacketConn
	got  chan struct{} // one for each datagram
}

func newDoor(t *testing.T, h *lab.Host, addr netip.Addr) *door {
	t.Helper()
	d := &door{host: h, addr: addr, got: make(chan struct{}, 100)}
	err := h.Do(func() (err error) {
		if d.tcp, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String()); err == nil {
			d.udp, err = net.ListenPacket("udp", d.tcp.Addr().String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.tcp.Close(); d.udp.Close() })
	go func() {
		for buf := make([]byte, 100); ; {
			if _, _, err := d.udp.ReadFrom(buf); err != nil {
				return
			}
			d.got <- struct{}{}
		}
	}()
	return d
}

// open says by what the sensor gets through the door, "" for nothing.
func (d *door) open(t *testing.T, sensor *lab.Host, wait time.Duration) string {
	t.Helper()
	var ways []string
	var conn net.Conn
	err := sensor.Do(func() (err error) {
		conn, err = net.Dial("udp", d.tcp.Addr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("in?")) // no matter what an earlier ICMP told this socket
	conn.Close()
	err = sensor.Do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: wait}).Dial("tcp", d.tcp.Addr().String())
		return err
	})
	if err == nil {
		conn.Close()
		ways = append(ways, "TCP")
	} else if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
		ways = append(ways, "TCP answers "+err.Error())
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if n, _ := sensor.Ping(ctx, d.addr, 1); n > 0 {
		ways = append(ways, "ping")
	}
	select {
	case <-d.got:
		ways = append(ways, "UDP")
	case <-time.After(wait):
	}
	return strings.Join(ways, " ")
}

// Promise 5: the sensor's network cannot talk back, and everything it tries is
// counted; but it is told who has the gateway's address there.
func TestSafetyDmzIsolated(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		dmz := g.Gateway.Interface("eth2")
		var doors []*door
		for _, d := range []struct {
			host  *lab.Host
			iface lab.Interface
		}{
			{g.Gateway, dmz},
			{g.Gateway, g.Gateway.Interface("eth3")},
			{g.Servers[0], g.Servers[0].Interface("eth0")},
			{g.Outside[0], g.Outside[0].Interface("eth0")},
			{g.Mgmt, g.Mgmt.Interface("eth0")},
		} {
			doors = append(doors, newDoor(t, d.host, d.iface.Addr.Addr()))
			if d.iface.Addr6.IsValid() {
				doors = append(doors, newDoor(t, d.host, d.iface.Addr6.Addr()))
			}
		}
		for _, d := range doors {
			if got := d.open(t, g.Sensor, 10*time.Second); got != "TCP ping UDP" {
				t.Fatalf("before: the sensor reaches %s of %s by %q only: the test would see nothing", d.addr, d.host.Name, got)
			}
		}
		g.apply(example)
		for _, d := range doors {
			if got := d.open(t, g.Sensor, 300*time.Millisecond); got != "" {
				t.Errorf("the sensor reaches %s of %s by %s", d.addr, d.host.Name, got)
			}
		}
		g.dmzCounts(t)
		g.dmzNeighbours(t)
	})
}

// inReasons are the counted verdicts on what came from the dmz.
func (g *gateway) inReasons() map[string]uint64 {
	g.t.Helper()
	for _, m := range g.status().Members {
		if m.Interface == "eth2" && m.Ingress != nil {
			return m.Ingress.Reasons
		}
	}
	g.t.Fatal("status has no eth2")
	return nil
}

// dmzCounts sends frames of all kinds and expects each to be counted once as
// dropped, and to appear nowhere.
func (g *gateway) dmzCounts(t *testing.T) {
	t.Helper()
	sensor, dmz, server := g.Sensor, g.Gateway.Interface("eth2"), g.Servers[0]
	ether := func() *layers.Ethernet { return pkt.Ether(sensor.MAC, dmz.MAC) }
	frames := [][]byte{
		pkt.Frame(ether(), pkt.IPv4(sensor.Addr, server.Addr), pkt.Echo(1, 1), pkt.Payload(20)),
		pkt.Frame(ether(), pkt.IPv4(sensor.Addr, g.Outside[0].Addr), pkt.UDP(53, 53), pkt.Payload(20)),
		pkt.Frame(ether(), pkt.IPv4(sensor.Addr, dmz.Addr.Addr()), pkt.TCP(1, 22, false), pkt.Payload(20)),
		// A false sender, a false VLAN, a protocol of nobody, an ARP for another address.
		pkt.Frame(ether(), pkt.IPv4(server.Addr, g.Outside[0].Addr), pkt.UDP(53, 53), pkt.Payload(20)),
		pkt.Frame(ether(), pkt.Tag(7), pkt.IPv4(sensor.Addr, server.Addr), pkt.UDP(53, 53), pkt.Payload(20)),
		pkt.Frame(pkt.EtherOf(sensor.MAC, dmz.MAC, 0x88b5), pkt.Payload(46)),
		pkt.ARPRequest(net.HardwareAddr{2, 0, 0, 0, 0, 9}, netip.MustParseAddr("192.168.4.9"), server.Addr),
	}
	if g.Sensor.Addr6.IsValid() {
		frames = append(frames,
			pkt.Frame(ether(), pkt.IPv6(sensor.Addr6, server.Addr6), pkt.UDP(53, 53), pkt.Payload(20)),
			pkt.Frame(ether(), pkt.IPv6(sensor.Addr6, dmz.Addr6.Addr()), pkt.TCP(1, 22, false), pkt.Payload(20)))
	}
	const times = 50
	own, err := sensor.Capture("eth0", lab.Outgoing)
	if err != nil {
		t.Fatal(err)
	}
	before := g.inReasons()["drop_from_dmz"]
	watched := map[string]*lab.Capture{}
	for _, ifname := range []string{"eth0", "eth3", "eth4"} {
		c, err := g.Gateway.Capture(ifname, lab.Outgoing)
		if err != nil {
			t.Fatal(err)
		}
		watched[ifname] = c
	}
	for range times {
		if err := sensor.Send(frames...); err != nil {
			t.Fatal(err)
		}
	}
	want := uint64(times * len(frames))
	waitFor(t, "every frame from the sensor is counted", func() bool { return g.inReasons()["drop_from_dmz"]-before >= want })
	got := g.inReasons()["drop_from_dmz"] - before
	all, err := own.Stop()
	if err != nil {
		t.Fatal(err)
	}
	// The sensor's kernel may have spoken of its multicast groups meanwhile.
	if more := uint64(len(all)) - want; got < want || got > want+more {
		t.Errorf("%d frames from the dmz and %d of its kernel, %d dropped", want, more, got)
	}
	for ifname, c := range watched {
		sent, err := c.Stop()
		sent = lab.Select(sent, func(f lab.Frame) bool { return !aboutNeighbours(f) })
		if err != nil || len(sent) > 0 {
			t.Errorf("%s sent %d frames meanwhile: %s, %v", ifname, len(sent), hexOf(sent), err)
		}
	}
}

// aboutNeighbours: the gateway asks its own neighbours whether they are there.
func aboutNeighbours(f lab.Frame) bool {
	p := f.Payload()
	kind, _ := f.EtherType()
	return kind == 0x0806 || kind == 0x86dd && len(p) > 40 && p[6] == 58 && neighbourTalk(ipv6.ICMPType(p[40]))
}

// dmzNeighbours: who asks for the gateway's address there is answered.
func (g *gateway) dmzNeighbours(t *testing.T) {
	t.Helper()
	dmz := g.Gateway.Interface("eth2")
	capture, err := g.Sensor.Capture("eth0", lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	wants := [][]byte{pkt.ARPReply(dmz.MAC, dmz.Addr.Addr(), g.Sensor.MAC, g.Sensor.Addr)}
	asks := [][]byte{pkt.ARPRequest(g.Sensor.MAC, g.Sensor.Addr, dmz.Addr.Addr())}
	if dmz.Addr6.IsValid() {
		asks = append(asks, pkt.SolicitFrame(g.Sensor.MAC, g.Sensor.Addr6, g.Sensor.MAC, dmz.Addr6.Addr()))
	}
	before := g.inReasons()["pass_neighbour_question"]
	if err := g.Sensor.Send(asks...); err != nil {
		t.Fatal(err)
	}
	answered := func(frames []lab.Frame) bool {
		arp, nd := false, !dmz.Addr6.IsValid()
		for _, f := range frames {
			p := f.Payload()
			kind, _ := f.EtherType()
			arp = arp || kind == 0x0806 && string(p[:28]) == string(wants[0][14:42])
			nd = nd || kind == 0x86dd && len(p) > 40 && p[6] == 58 && p[40] == 136 && string(p[48:64]) == string(dmz.Addr6.Addr().AsSlice())
		}
		return arp && nd
	}
	if frames, err := capture.WaitFor(answered, patience); err != nil {
		t.Errorf("the gateway does not say who has its address: %v: %s", err, hexOf(frames))
	}
	if got := g.inReasons()["pass_neighbour_question"] - before; got < uint64(len(asks)) {
		t.Errorf("%d questions counted of %d", got, len(asks))
	}
}
