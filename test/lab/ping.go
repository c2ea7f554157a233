package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// pingWait is how long one reply is waited for; the next request follows a
// reply at once.
const pingWait = 2 * time.Second

// pings keeps the ids of pings at the same time apart.
var pings atomic.Uint32

// Ping sends count echo requests with 56 bytes of data to an IPv4 or IPv6
// address and returns how many were answered. A request without a reply is no
// error.
func (h *Host) Ping(ctx context.Context, dst netip.Addr, count int) (replies int, err error) {
	return h.PingSize(ctx, dst, count, 56)
}

// PingSize is Ping with that many bytes of data; large ones are sent as fragments.
func (h *Host) PingSize(ctx context.Context, dst netip.Addr, count, size int) (replies int, err error) {
	network, local := "ip4:icmp", "0.0.0.0"
	var request icmp.Type = ipv4.ICMPTypeEcho
	var reply icmp.Type = ipv4.ICMPTypeEchoReply
	proto := 1
	if dst.Is6() {
		network, local, proto = "ip6:ipv6-icmp", "::", 58
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var conn *icmp.PacketConn
	if err := h.Do(func() (err error) { conn, err = icmp.ListenPacket(network, local); return err }); err != nil {
		return 0, fmt.Errorf("ping from %s: %w", h.Name, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i)
	}
	id := int(uint16(os.Getpid()) + uint16(pings.Add(1)))
	buf := make([]byte, 65536)
	for seq := 1; seq <= count; seq++ {
		m := icmp.Message{Type: request, Body: &icmp.Echo{ID: id, Seq: seq, Data: data}}
		raw, err := m.Marshal(nil)
		if err != nil {
			return replies, err
		}
		if _, err := conn.WriteTo(raw, &net.IPAddr{IP: dst.AsSlice()}); err != nil {
			return replies, pingError(ctx, h, dst, err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(pingWait)); err != nil {
			return replies, pingError(ctx, h, dst, err)
		}
		for {
			n, from, err := conn.ReadFrom(buf)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				break
			}
			if err != nil {
				return replies, pingError(ctx, h, dst, err)
			}
			got, err := icmp.ParseMessage(proto, buf[:n])
			if err != nil || got.Type != reply || from.String() != dst.String() {
				continue
			}
			if echo, ok := got.Body.(*icmp.Echo); ok && echo.ID == id && echo.Seq == seq {
				replies++
				break
			}
		}
	}
	return replies, nil
}

func pingError(ctx context.Context, h *Host, dst netip.Addr, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("ping from %s to %s: %w", h.Name, dst, err)
}
