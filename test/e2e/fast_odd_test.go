package e2e

import (
	"bytes"
	"fmt"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	pkt "tapgate/test/packet"
)

// odd are packets that a stack does not let through, or in its own way.
func (a *answers) odd() {
	a.g.t.Helper()
	v6 := a.d.a.Addr().Is6()
	type odd struct {
		what   string
		change func([]byte) []byte
	}
	longer := func(by int) func([]byte) []byte {
		return func(f []byte) []byte {
			if f[12] == 0x86 {
				f[19] += byte(by)
				return f
			}
			f[17] += byte(by)
			fixHeader(f)
			return f
		}
	}
	all := []odd{
		{"padded", func(f []byte) []byte { return append(f, make([]byte, 9)...) }},
		{"cut short", func(f []byte) []byte { return f[:len(f)-9] }},
		{"longer than it is", longer(5)},
		{"shorter than it is", longer(-5)},
		{"wrong checksum", func(f []byte) []byte { f[len(f)-1] ^= 0x55; return f }},
		{"to all", func(f []byte) []byte { copy(f, bytes.Repeat([]byte{0xff}, 6)); return f }},
		{"to a group", func(f []byte) []byte { copy(f, []byte{1, 0, 0x5e, 0, 0, 9}); return f }},
		{"to another MAC", func(f []byte) []byte { f[5] ^= 0x77; return f }},
		{"tagged", func(f []byte) []byte { return tagged(f, 0x8100, 7) }},
		{"another version", func(f []byte) []byte { f[14] ^= 0x20; return f }},
	}
	if !v6 {
		all = append(all, odd{"wrong header checksum", set(24, 0x11)}, odd{"reserved bit", func(f []byte) []byte { f[20] |= 0x80; fixHeader(f); return f }})
	}
	if a.d.proto == pkt.ProtoTCP {
		for _, flags := range []byte{0, pkt.PSH, 0x20 | pkt.ACK, 0xc0 | pkt.ACK} {
			all = append(all, odd{fmt.Sprintf("flags %#x", flags), func(f []byte) []byte {
				f[l4(f)+13] = flags
				finishSum(f, 14, l4(f), l4(f)+16, v6, false)
				return f
			}})
		}
		all = append(all, odd{"data offset 4", func(f []byte) []byte { f[l4(f)+12] = 0x40; finishSum(f, 14, l4(f), l4(f)+16, v6, false); return f }})
	} else {
		all = append(all, odd{"UDP length", func(f []byte) []byte { f[l4(f)+5] -= 3; return f }})
		if !v6 { // IPv6 has none
			all = append(all, odd{"no checksum", func(f []byte) []byte { f[l4(f)+6], f[l4(f)+7] = 0, 0; return f }})
		}
	}
	for _, way := range []int{wayOut, wayIn} {
		for _, o := range all {
			a.tell(o.what, way, a.data(way, 100, o.change))
		}
		a.tell("options", way, a.options(way))
	}
}

// options is a packet with IPv4 options or an IPv6 hop-by-hop header.
func (a *answers) options(way int) []byte {
	from, _, src, dst, _, _ := a.d.ends(way)
	var transport pkt.Layer = pkt.UDP(src.Port(), dst.Port())
	if a.d.proto == pkt.ProtoTCP {
		transport = pkt.Segment(src.Port(), dst.Port(), pkt.ACK|pkt.PSH, a.d.seq[way], a.d.seq[1-way], 0)
	}
	text := gopacket.Payload(noise(60))
	if dst.Addr().Is6() {
		return pkt.Frame(pkt.Ether(from.MAC, from.Gateway), pkt.IPv6(src.Addr(), dst.Addr()), pkt.DestinationOptions(0), transport, text)
	}
	ip := pkt.IPv4(src.Addr(), dst.Addr())
	ip.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	return pkt.Frame(pkt.Ether(from.MAC, from.Gateway), ip, transport, text)
}
