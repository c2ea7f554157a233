package e2e

import (
	bin "encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// fragments cuts an IP packet of a frame into parts of size bytes, a multiple of 8.
func fragments(t *testing.T, frame []byte, id uint32, size int) [][]byte {
	t.Helper()
	v6 := be16(frame[12:]) == 0x86dd
	header, l3 := frame[:34], 20
	if v6 {
		header, l3 = frame[:54], 40
	}
	body := frame[14+l3:]
	var all [][]byte
	for at := 0; at < len(body); at += size {
		part := body[at:min(at+size, len(body))]
		more := at+size < len(body)
		f := append([]byte{}, header...)
		if v6 {
			f[20] = 44
			offset := uint16(at)
			if more {
				offset |= 1
			}
			f = append(f, header[20], 0)
			f = bin.BigEndian.AppendUint16(f, offset)
			f = bin.BigEndian.AppendUint32(f, id)
			f = append(f, part...)
			bin.BigEndian.PutUint16(f[18:], uint16(len(f)-54))
		} else {
			offset := uint16(at / 8)
			if more {
				offset |= 0x2000
			}
			f = append(f, part...)
			bin.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
			bin.BigEndian.PutUint16(f[18:], uint16(id))
			bin.BigEndian.PutUint16(f[20:], offset)
			bin.BigEndian.PutUint16(f[24:], 0)
			bin.BigEndian.PutUint16(f[24:], ^sum(0, f[14:34]))
		}
		all = append(all, f)
	}
	return all
}

// T18: fragments while the gateway's connection tracking puts packets together,
// translates them and cuts them again: no copy shares a byte with what is
// rewritten. In order and in every other, IPv4 and IPv6, tens of thousands.
func TestT18Fragments(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		onOneCPU(t)
		g := newGateway(t)
		g.kind = kind
		if err := g.Masquerade(); err != nil {
			t.Fatal(err)
		}
		// IPv6 has no masquerade here; a rule that asks for the state of a
		// connection brings its reassembly.
		nft(t, g, `table ip6 lab {
			chain pre { type filter hook prerouting priority 0
				ct state invalid drop
			}
		}`)
		v := sensorView(g)
		w := watchCable(g, "eth3", g.Servers[0], v)
		g.apply(example)
		const rounds, parts = 500, 6
		out, in := w.same(func() {
			sendFragments(t, g, rounds, false)
			sendFragments(t, g, rounds, true)
			for _, a := range []netip.Addr{g.Outside[0].Addr, g.Outside[0].Addr6} {
				echoAll(t, g.Servers[0], a, 20, 20000)
			}
		})
		if len(out) < 2*4*rounds*parts || len(in) < 2*4*rounds*2 {
			t.Errorf("%d frames out and %d in: too few", len(out), len(in))
		}
		v.account(g, "ids", 0)
	})
}

// sendFragments sends datagrams in pieces, in four orders, and waits for the
// echo of each, so that each was put together and translated rightly.
func sendFragments(t *testing.T, g *gateway, rounds int, v6 bool) {
	t.Helper()
	server, j := g.Servers[0], outward(g)
	from, to := j.src, j.dst
	if v6 {
		from, to = j.s6, j.d6
	}
	addr := netip.MustParseAddrPort(echoUDP(t, g.Outside[0], netip.AddrPortFrom(to, 0).String()))
	var c net.PacketConn
	if err := server.Do(func() (err error) {
		c, err = net.ListenPacket("udp", netip.AddrPortFrom(from, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(2 * exactWait)); err != nil {
		t.Fatal(err)
	}
	s, err := server.Sender("eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	udp := &layers.UDP{SrcPort: layers.UDPPort(c.LocalAddr().(*net.UDPAddr).Port), DstPort: layers.UDPPort(addr.Port())}
	orders := [][]int{{0, 1, 2, 3, 4, 5}, {5, 4, 3, 2, 1, 0}, {5, 0, 3, 1, 4, 2}, {1, 2, 3, 4, 5, 0}}
	buf := make([]byte, 4096)
	for n := range rounds * len(orders) {
		pay := noise(2392)
		copy(pay, fmt.Sprintf("datagram %d", n))
		var frame []byte
		if v6 {
			frame = packet(t, j.eth(layers.EthernetTypeIPv6), j.ip6(layers.IPProtocolUDP), udp, gopacket.Payload(pay))
		} else {
			frame = packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolUDP), udp, gopacket.Payload(pay))
		}
		all := fragments(t, frame, uint32(n+1), 400)
		for _, i := range orders[n%len(orders)] {
			if err := s.Send(all[i]); err != nil {
				t.Fatal(err)
			}
		}
		size, _, err := c.ReadFrom(buf)
		if err != nil || string(buf[:size]) != string(pay) {
			t.Fatalf("datagram %d, order %v: %d bytes came back, %v", n, orders[n%len(orders)], size, err)
		}
	}
}

// Fragments that fit nowhere: the sensor gets them all the same.
func TestExactBrokenFragments(t *testing.T) {
	t.Parallel()
	onOneCPU(t)
	g := newGateway(t, lab.RoutedOutside())
	v := sensorView(g)
	w := watchCable(g, "eth3", g.Servers[0], v)
	g.apply(example)
	j := outward(g)
	udp := &layers.UDP{SrcPort: 1, DstPort: 2}
	var sent [][]byte
	for id, frame := range [][]byte{
		packet(t, j.eth(layers.EthernetTypeIPv4), j.ip4(layers.IPProtocolUDP), udp, gopacket.Payload(noise(2000))),
		packet(t, j.eth(layers.EthernetTypeIPv6), j.ip6(layers.IPProtocolUDP), udp, gopacket.Payload(noise(2000))),
	} {
		all := fragments(t, frame, uint32(id+9), 504)
		// The last without the others, one twice, then again with other bytes.
		other := append([]byte{}, all[1]...)
		other[len(other)-1]++
		sent = append(sent, all[3], all[1], all[1], other, tagged(all[0], 0x8100, 5), all[2][:len(all[2])-1])
	}
	out, _ := w.same(func() { sendRaw(t, g.Servers[0], "eth0", sent...) })
	requireSent(t, out, sent)
	v.account(g, "ids", 0)
}
