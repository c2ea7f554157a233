package e2e

import (
	"net/netip"
	"testing"

	"tapgate/test/kernels"
	pkt "tapgate/test/packet"
)

// Rules of the host's own firewall in the forward chain decide as before, on new
// flows in both directions, while tapgate translates.
func TestStressHostRules(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	s := newServers(t)
	in := s.station(atInside, 0)
	nft(t, s.gateway, `table inet host {
		chain forward { type filter hook forward priority filter
			ct state established,related accept
			iifname "eth3" tcp dport 81 drop
			iifname "eth3" udp dport 81 drop
			iifname "eth3" ip saddr 192.168.3.99 drop
			iifname "eth0" oifname "eth3" ip daddr 192.168.3.200 tcp dport 8004 drop
			iifname "eth0" oifname "eth3" tcp dport 22 reject with tcp reset
		}
	}`)
	banned := s.stationAt(s.in[0], 99)
	// What it allows.
	web := s.connect(in, 5000, s.out, 80, false)
	web.talk()
	s.answerUDP(s.out, 9000, s.mapUDP(in, 5000, s.out, 9000, false), in, 5000)
	fine := s.accept(s.out, 9001, s.endpoint(false, 7003), s.one, 8003)
	fine.talk()
	// What it does not.
	text := s.text()
	in.tcp(5001, s.out.at(false, 81), pkt.SYN, 1, 0, text)
	in.udp(5001, s.out.at(false, 81), text)
	banned.udp(5001, s.out.at(false, 9000), text)
	s.unseen(text, s.out, in, banned)
	s.out.tcp(9002, s.endpoint(false, 7004), pkt.SYN, 1, 0, text)
	s.out.tcp(9002, s.endpoint(false, 22), pkt.SYN, 1, 0, text)
	s.unseen(text, s.one, s.out)
	// Its refusal is translated: from the port that was asked.
	rst := s.out.want("an RST", func(p *pkt.Parsed) bool { return p.Proto == pkt.ProtoTCP && p.Flags&pkt.RST != 0 })
	if rst.Src != s.endpoint(false, 22) || rst.Dst != netip.AddrPortFrom(s.out.Addr, 9002) {
		t.Errorf("refused by %s", rst)
	}
	// A rule that is new is the new flows' alone.
	nft(t, s.gateway, `insert rule inet host forward iifname "eth3" tcp dport 80 ct state new drop`)
	web.talk()
	in.tcp(5002, s.out.at(false, 80), pkt.SYN, 1, 0, text)
	s.unseen(text, s.out, in)
	fine.talk()
	s.consistent()
	s.empty()
}
