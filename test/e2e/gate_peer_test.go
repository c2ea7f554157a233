package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"tapgate/test/lab"
	pkt "tapgate/test/packet"
)

// peer is a station that sends and judges packets for a test.
type peer struct {
	*lab.Station
	g    *gate
	next int  // frames that were looked at
	lax  bool // gets packets whose checksums are wrong, by the test's will
}

// station puts a new one beside a host, i being 0 or 1.
func (g *gate) station(where, i int) *peer {
	g.t.Helper()
	n := int(g.stations[where].Add(1))
	switch limit := 250; {
	case where == atInside && n >= gateOpen, n >= limit:
		g.t.Fatalf("no number left for a station: %d", n)
		return nil
	case where == atOutside:
		return g.stationAt(g.out[i], n)
	default:
		return g.stationAt(g.in[i], n)
	}
}

// pair is a station inside and one outside.
func (g *gate) pair() (in, out *peer) {
	g.t.Helper()
	return g.station(atInside, 0), g.station(atOutside, 0)
}

// stationAt puts a station of that number beside a host.
func (g *gate) stationAt(h *lab.Host, number int) *peer {
	g.t.Helper()
	s, err := h.Station(number)
	if err != nil {
		g.t.Fatal(err)
	}
	p := &peer{Station: s, g: g}
	g.t.Cleanup(func() {
		frames, err := s.Stop()
		if err != nil {
			g.t.Error(err)
		}
		for _, f := range frames {
			if got, err := pkt.Parse(f.Data); err == nil && len(got.Bad) > 0 && !f.Partial && !p.lax {
				g.t.Errorf("%s got %s", s.Addr, got)
			}
		}
		if err := s.Close(); err != nil {
			g.t.Error(err)
		}
	})
	return p
}

// ip is the station's address.
func (p *peer) ip(v6 bool) netip.Addr {
	if v6 {
		return p.Addr6
	}
	return p.Addr
}

func (p *peer) at(v6 bool, port uint16) netip.AddrPort { return netip.AddrPortFrom(p.ip(v6), port) }

// frame is one to an address by way of the gateway.
func (p *peer) frame(to netip.Addr, all ...pkt.Layer) []byte {
	var ip pkt.Layer
	if to.Is6() {
		ip = pkt.IPv6(p.Addr6, to)
	} else {
		ip4 := pkt.IPv4(p.Addr, to)
		ip4.Id = uint16(p.g.texts.Add(1))
		ip = ip4
	}
	return pkt.Frame(append([]pkt.Layer{pkt.Ether(p.MAC, p.Gateway), ip}, all...)...)
}

// raw sends a frame and returns what it says.
func (p *peer) raw(frame []byte) *pkt.Parsed {
	p.g.t.Helper()
	if err := p.Send(frame); err != nil {
		p.g.t.Fatal(err)
	}
	sent, err := pkt.Parse(frame)
	if err != nil {
		p.g.t.Fatal(err)
	}
	return sent
}

func (p *peer) send(to netip.Addr, all ...pkt.Layer) *pkt.Parsed {
	p.g.t.Helper()
	return p.raw(p.frame(to, all...))
}

func (p *peer) udp(from uint16, to netip.AddrPort, text string) *pkt.Parsed {
	p.g.t.Helper()
	return p.send(to.Addr(), pkt.UDP(from, to.Port()), gopacket.Payload(text))
}

func (p *peer) tcp(from uint16, to netip.AddrPort, flags uint8, seq, ack uint32, text string) *pkt.Parsed {
	p.g.t.Helper()
	return p.send(to.Addr(), pkt.Segment(from, to.Port(), flags, seq, ack, 0), gopacket.Payload(text))
}

// query sends an ICMP echo request or reply.
func (p *peer) query(reply bool, id uint16, to netip.Addr, text string) *pkt.Parsed {
	p.g.t.Helper()
	return p.send(to, pkt.Query(to.Is6(), reply, id, 1, text)...)
}

// complain sends an ICMP error about a packet that this or another station got,
// quoting n bytes behind its IP header.
func (p *peer) complain(to netip.Addr, kind, code uint8, rest uint32, about *pkt.Parsed, n int) *pkt.Parsed {
	p.g.t.Helper()
	quote := about.IP[:min(len(about.IP), about.L4+n)]
	return p.send(to, pkt.Control(to.Is6(), kind, code, rest, quote)...)
}

// unreachable is type and code of an error for a port that nobody has.
func unreachable(v6 bool) (kind, code uint8) {
	if v6 {
		return uint8(layers.ICMPv6TypeDestinationUnreachable), layers.ICMPv6CodePortUnreachable
	}
	return uint8(layers.ICMPv4TypeDestinationUnreachable), layers.ICMPv4CodePort
}

// want waits for the next packet that is as described, and passes over others.
func (p *peer) want(what string, is func(*pkt.Parsed) bool) *pkt.Parsed {
	p.g.t.Helper()
	var found *pkt.Parsed
	frames, err := p.WaitFor(func(frames []lab.Frame) bool {
		for i := p.next; i < len(frames); i++ {
			if got, err := pkt.Parse(frames[i].Data); err == nil && is(got) {
				found, p.next = got, i+1
				return true
			}
		}
		return false
	}, gateWait)
	if err != nil {
		p.g.t.Fatalf("%s waits for %s: %v; it got:\n%s", p.Addr, what, err, strings.Join(brieflyAll(frames), "\n"))
	}
	return found
}

// wantText waits for a packet with this payload.
func (p *peer) wantText(text string) *pkt.Parsed {
	p.g.t.Helper()
	return p.want(text, func(got *pkt.Parsed) bool { return string(got.Payload) == text })
}

// wantError waits for an ICMP error.
func (p *peer) wantError(kind, code uint8) *pkt.Parsed {
	p.g.t.Helper()
	return p.want("an ICMP error", func(got *pkt.Parsed) bool {
		return got.Error() && got.Type == kind && got.Code == code
	})
}

// knock asks for the gateway's MAC and waits for the answer: what the station has
// sent before, by the same cable, has been handled by then.
func (p *peer) knock() {
	p.g.t.Helper()
	answers := func(frames []lab.Frame) (n int) {
		for _, f := range frames {
			if kind, _ := f.EtherType(); kind == 0x0806 {
				n++
			}
		}
		return n
	}
	before := answers(p.Frames())
	gw := p.Addr.As4()
	gw[3] = 1
	if err := p.Send(pkt.ARPRequest(p.MAC, p.Addr, netip.AddrFrom4(gw))); err != nil {
		p.g.t.Fatal(err)
	}
	if _, err := p.WaitFor(func(frames []lab.Frame) bool { return answers(frames) > before }, gateWait); err != nil {
		p.g.t.Fatalf("the gateway does not answer %s: %v", p.Addr, err)
	}
}

// never fails if such a packet has come: of what others have sent before.
func (p *peer) never(is func(*pkt.Parsed) bool, from ...*peer) {
	p.g.t.Helper()
	p.g.fence(append(from, p)...)
	if p.got(is) {
		p.g.t.Errorf("arrived at %s, and must not:\n%s", p.Addr, strings.Join(brieflyAll(p.Frames()), "\n"))
	}
}

// got says whether a packet of this kind has come, now or before.
func (p *peer) got(is func(*pkt.Parsed) bool) bool {
	return slices.ContainsFunc(p.Frames(), func(f lab.Frame) bool {
		got, err := pkt.Parse(f.Data)
		return err == nil && is(got)
	})
}

func brieflyAll(frames []lab.Frame) (all []string) {
	for _, f := range frames[max(0, len(frames)-12):] {
		got, err := pkt.Parse(f.Data)
		if err != nil {
			all = append(all, err.Error())
			continue
		}
		all = append(all, got.String())
	}
	return all
}

// quietFor waits in real time and fails if such a packet comes: for the few rows
// that are about silence.
func (p *peer) quietFor(d time.Duration, what string, is func(*pkt.Parsed) bool) {
	p.g.t.Helper()
	_, err := p.WaitFor(func([]lab.Frame) bool { return p.got(is) }, d)
	if err == nil {
		p.g.t.Errorf("%s got %s:\n%s", p.Addr, what, strings.Join(brieflyAll(p.Frames()), "\n"))
	}
}
