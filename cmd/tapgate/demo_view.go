package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"tapgate/test/lab"
)

// ping is an ICMP echo request or reply in an IPv4 packet.
type ping struct {
	time     time.Time
	packet   []byte // from the IP header on
	src, dst netip.Addr
	ttl      int
	reply    bool
	id, seq  int
	length   int // of the ICMP message
}

// String looks as tcpdump would print it, with the TTL.
func (p ping) String() string {
	kind := "request"
	if p.reply {
		kind = "reply"
	}
	return fmt.Sprintf("%s > %s: ICMP echo %s, id %d, seq %d, length %d, ttl %d", p.src, p.dst, kind, p.id, p.seq, p.length, p.ttl)
}

// pings picks the pings out of frames. Whatever cannot be read is not one.
func pings(frames []lab.Frame) []ping {
	var found []ping
	for _, f := range frames {
		if etherType, _ := f.EtherType(); etherType != 0x0800 {
			continue
		}
		packet := f.Payload()
		header, err := ipv4.ParseHeader(packet)
		if err != nil || header.Protocol != 1 || header.Len > len(packet) {
			continue
		}
		message, err := icmp.ParseMessage(1, packet[header.Len:])
		if err != nil {
			continue
		}
		echo, ok := message.Body.(*icmp.Echo)
		if !ok {
			continue
		}
		src, _ := netip.AddrFromSlice(header.Src.To4())
		dst, _ := netip.AddrFromSlice(header.Dst.To4())
		found = append(found, ping{
			time: f.Time, packet: packet, src: src, dst: dst, ttl: header.TTL,
			reply: message.Type == ipv4.ICMPTypeEchoReply, id: echo.ID, seq: echo.Seq, length: len(packet) - header.Len,
		})
	}
	return found
}

func lines(pings []ping) string {
	if len(pings) == 0 {
		return "  nothing\n"
	}
	var b strings.Builder
	for _, p := range pings {
		fmt.Fprintf(&b, "  %s IP %s\n", p.time.Format("15:04:05.000000"), p)
	}
	return b.String()
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + line)
	}
	return b.String()
}
