package e2e

import (
	bin "encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// Checksums that hosts leave to the hardware, that the gateway's driver finishes,
// and that are whole from the start: receivers that look at them get everything,
// of every size, by mappings, forwards and hairpin, whole and in fragments.
func TestStressChecksums(t *testing.T) {
	config := strings.NewReplacer("192.168.3.200", "192.168.3.2", "192.168.3.201", "192.168.3.3", "::c8", "::2").Replace(gateServers)
	for _, who := range []string{"nobody", "hosts", "gateway", "everybody"} {
		t.Run(who+" finishes them", func(t *testing.T) {
			g := newGate(t, config)
			off := map[string][]*lab.Host{
				"nobody": nil, "hosts": {g.in[0], g.in[1], g.out[0], g.out[1]}, "gateway": {g.Gateway},
				"everybody": {g.in[0], g.in[1], g.out[0], g.out[1], g.Gateway},
			}[who]
			for _, h := range off {
				for _, i := range h.Interfaces {
					if err := h.SetTxChecksum(i.Name, false); err != nil {
						t.Fatal(err)
					}
				}
			}
			mixed(t, g.in[0], g.out[0])
			g.families(func(g *gate, v6 bool) {
				front := func(port uint16) string { return netip.AddrPortFrom(g.outside(v6), port).String() }
				echoTCP(g.t, g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 3389).String())
				echoUDP(g.t, g.in[0], netip.AddrPortFrom(addrOf(g.in[0], v6), 5353).String())
				for _, from := range []*lab.Host{g.out[0], g.in[1], g.in[0]} {
					talkTCP(g.t, from, front(3389), 100_000)
					talkUDP(g.t, from, front(53), 0, 1, 100, 1400, 3000)
				}
			})
		})
	}
}

// udpSum is the checksum of a frame's UDP header.
func udpSum(frame []byte) []byte {
	at := 14 + 20
	if frame[12] == 0x86 {
		at = 14 + 40
	}
	return frame[at+6 : at+8]
}

// frameOf is the frame in which a packet was captured.
func (p *peer) frameOf(text string) []byte {
	for _, f := range p.Frames() {
		if got, err := pkt.Parse(f.Data); err == nil && string(got.Payload) == text {
			return f.Data
		}
	}
	return nil
}

// A datagram without a checksum stays without one, and one whose checksum becomes
// zero by the translation does not look as if it had none.
func TestStressZeroChecksum(t *testing.T) {
	g := newGate(t, gateBoth)
	in, out := g.pair()
	g.families(func(g *gate, v6 bool) {
		ext := g.mapUDP(in, 5000, out, 9000, v6)
		ways := []struct {
			from, at       *peer
			src, dst, port netip.AddrPort // as sent, and with what it arrives
		}{
			{in, out, in.at(v6, 5000), out.at(v6, 9000), ext},
			{out, in, out.at(v6, 9000), ext, in.at(v6, 5000)},
		}
		for i, w := range ways {
			if !v6 {
				text := g.text()
				frame := w.from.frame(w.dst.Addr(), pkt.UDP(w.src.Port(), w.dst.Port()), gopacket.Payload(text))
				copy(udpSum(frame), []byte{0, 0})
				if err := w.from.Send(frame); err != nil {
					g.t.Fatal(err)
				}
				w.at.wantText(text)
				if s := udpSum(w.at.frameOf(text)); s[0]|s[1] != 0 {
					g.t.Errorf("no checksum became % x", s)
				}
			}
			// The one that has the checksum as its last word sums up to zero.
			src, dst := w.port, w.dst
			if i == 1 {
				src, dst = w.src, w.port
			}
			text := fmt.Sprintf("%-40.40s", fmt.Sprint(i, g.text()))
			probe := pkt.Frame(pkt.Ether(in.MAC, in.Gateway), header(src.Addr(), dst.Addr()), pkt.UDP(src.Port(), dst.Port()),
				gopacket.Payload(text+"\x00\x00"))
			text += string(udpSum(probe))
			w.from.udp(w.src.Port(), w.dst, text)
			w.at.wantText(text)
			if s := udpSum(w.at.frameOf(text)); bin.BigEndian.Uint16(s) != 0xffff {
				g.t.Errorf("a checksum of zero became % x, want ff ff", s)
			}
		}
	})
}
