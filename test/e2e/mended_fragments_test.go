package e2e

import (
	"bytes"
	bin "encoding/binary"
	"fmt"
	"slices"
	"testing"

	"tapgate/loader"
	"tapgate/test/lab"
)

// pieces are the ICMP packets between two hosts among copies: where each begins
// and ends, in its datagram, in order of appearance.
func pieces(frames []lab.Frame, from, to *lab.Host) (all []string) {
	for _, f := range frames {
		p := f.Payload()
		if kind, _ := f.EtherType(); kind != 0x0800 || len(p) < 20 || p[9] != 1 ||
			!bytes.Equal(p[12:16], from.Addr.AsSlice()) || !bytes.Equal(p[16:20], to.Addr.AsSlice()) {
			continue
		}
		at := int(bin.BigEndian.Uint16(p[6:])&0x1fff) * 8
		all = append(all, fmt.Sprintf("%d-%d", at, at+int(bin.BigEndian.Uint16(p[2:]))-20))
	}
	return all
}

// A packet that the gateway cuts itself leaves as packets that nobody has seen:
// they are copied. Those that arrive cut and leave as they came are copied once.
func TestMendedFragments(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.SecondInternal())
		g.kind = kind
		g.apply(`
zones:
  internal: {interfaces: [eth3, eth5]}
  dmz:      {interfaces: [eth2]}
mirrors:
  - {name: ids, zones: [internal], targets: [{via: 192.168.4.2}]}
`)
		server, host := g.Servers[0], g.Second
		duplicates := func() (n uint64) {
			for _, m := range g.status().Members {
				if m.Egress != nil {
					n += m.Egress.Duplicates
				}
			}
			return n
		}
		capture, err := g.Sensor.Capture("eth0", lab.Incoming)
		if err != nil {
			t.Fatal(err)
		}
		taken := 0
		for _, c := range []struct {
			name         string
			mtu, size    int
			request      []string // as ICMP bytes of the datagram
			reply        []string
			notCopied    uint64 // at the second interface
			notCopiedWhy string
		}{
			{"cut by the gateway", 1000, 1400, []string{"0-1408", "0-976", "976-1408"}, []string{"0-976", "976-1408"}, 2, "the reply's fragments"},
			{"cut before", 1500, 3000, []string{"0-1480", "1480-2960", "2960-3008"}, []string{"0-1480", "1480-2960", "2960-3008"}, 6, "all fragments"},
			{"whole", 1500, 1400, []string{"0-1408"}, []string{"0-1408"}, 2, "both"},
		} {
			g.setMTU(g.Gateway, "eth5", c.mtu)
			g.setMTU(host, "eth0", c.mtu)
			before, ledger := duplicates(), g.mirror("ids")
			inHost(t, server, "ping", "-M", "dont", "-c", "1", "-W", "10", "-s", fmt.Sprint(c.size), host.Addr.String())
			var request, reply []string
			_, err := capture.WaitFor(func(frames []lab.Frame) bool {
				request, reply = pieces(frames[taken:], server, host), pieces(frames[taken:], host, server)
				return len(request) >= len(c.request) && len(reply) >= len(c.reply)
			}, patience)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			frames := capture.Frames()
			request, reply = pieces(frames[taken:], server, host), pieces(frames[taken:], host, server)
			taken = len(frames)
			if !slices.Equal(request, c.request) || !slices.Equal(reply, c.reply) {
				t.Errorf("%s: the sensor has %q and %q, want %q and %q", c.name, request, reply, c.request, c.reply)
			}
			if got := duplicates() - before; got != c.notCopied {
				t.Errorf("%s: %d packets were passed over as copied before, want %d: %s", c.name, got, c.notCopied, c.notCopiedWhy)
			}
			g.checkLedgers()
			want := uint64(len(c.request) + len(c.reply))
			// Neighbour discovery of the hosts is in it, too.
			if got := g.mirror("ids").Copied.Packets - ledger.Copied.Packets; got < want {
				t.Errorf("%s: %d packets are accounted as copied, want %d", c.name, got, want)
			}
		}
	})
}
