package model

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Fragments: the first one has the ports and is translated as a whole packet is;
// later ones take its addresses and its id (RFC 4787 REQ-14, RFC 6864).

// fragmentLife is how long the pieces of a packet may be under way.
const fragmentLife = 30 * time.Second

type fragmentKey struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
	out      bool
}

// fragmented is a packet whose first fragment has been seen.
type fragmented struct {
	src, dst netip.Addr // what its addresses become
	id       uint32
	at       int64
}

// fragmentKey: the ids of IPv6 are those of all protocols (RFC 8200, section 4.5).
func (p *datagram) fragmentKey(out bool, t Tuple) fragmentKey {
	k := fragmentKey{t.Src, t.Dst, p.id, t.Proto, out}
	if p.family == 6 {
		k.proto = 0
	}
	return k
}

func (p *datagram) setID(id uint32) {
	if p.family == 4 {
		p.set(p.idAt, []byte{byte(id >> 8), byte(id)}, p.headerCheck())
	} else {
		binary.BigEndian.PutUint32(p.frame[p.idAt:], id)
	}
	p.id = id
}

// idOf reads the id of a frame that is as p is.
func (p *datagram) idOf(frame []byte) uint32 {
	if len(frame) < p.idAt+4 {
		return 0
	}
	if p.family == 4 {
		return uint32(binary.BigEndian.Uint16(frame[p.idAt:]))
	}
	return binary.BigEndian.Uint32(frame[p.idAt:])
}

// firstOutbound notes the first fragment of a packet that has been translated, and
// takes over the id that the program gave it: no two packets that are under way
// between the same two addresses may have the same one.
func (s *step) firstOutbound(was Tuple, p *datagram) error {
	if !p.first || s.did.Verdict != Pass {
		return nil
	}
	k := p.fragmentKey(true, was)
	return s.noteID(k, was.Src != p.tuple.Src, p)
}

func (s *step) noteID(k fragmentKey, translated bool, p *datagram) error {
	f := &fragmented{src: p.tuple.Src, dst: p.tuple.Dst, id: p.id, at: s.now}
	if translated {
		f.id = p.idOf(s.did.Frame)
		for other, g := range s.packets {
			if other != k && other.out && other.src != k.src && g.src == f.src && g.dst == f.dst && g.id == f.id &&
				other.proto == k.proto && s.now-g.at < int64(fragmentLife) {
				return differ("two packets from %s to %s have the id %d at once: of %s and %s", f.src, f.dst, f.id, k.src, other.src)
			}
		}
		p.setID(f.id)
	}
	s.remember(k, f)
	return nil
}

// remember: the time of a packet is that of the first one with its id.
func (s *step) remember(k fragmentKey, f *fragmented) {
	old := s.packets[k]
	if old != nil && s.now-old.at < int64(fragmentLife) && old.src == f.src && old.dst == f.dst {
		f.at = old.at
	}
	s.packets[k] = f
}

func (s *step) firstInbound(was Tuple, p *datagram) {
	if p.first {
		s.remember(p.fragmentKey(false, was), &fragmented{src: p.tuple.Src, dst: p.tuple.Dst, id: p.id, at: s.now})
	}
}

// piece finds the packet that a later fragment belongs to.
func (s *step) piece(p *datagram, out bool) *fragmented {
	k := p.fragmentKey(out, p.tuple)
	f := s.packets[k]
	if f != nil && s.now-f.at >= int64(fragmentLife) {
		delete(s.packets, k)
		return nil
	}
	return f
}

func (s *step) laterOutbound(from, zone *Zone, out int, own bool, p *datagram) (*result, error) {
	if own {
		return s.alone(), nil
	}
	if f := s.piece(p, true); f != nil {
		p.translate(Tuple{Src: f.src, Dst: f.dst, Proto: p.tuple.Proto})
		p.setID(f.id)
		return pass(p.frame, "pass_fragment", "pass_allowed"), nil
	}
	// Its first fragment was not seen: dropped, or sent by the address that the
	// host has anyway, where the zones let it.
	if s.did.Verdict == Drop {
		return drop("drop_fragment", "drop_no_flow", "drop_zone", "drop_policy"), nil
	}
	if why := s.judge(from, zone, p); why != "" {
		return drop("drop_fragment", why), nil
	}
	if rule := s.findMasquerade(from.Name, zone.Name, p.tuple); rule != nil {
		src, _, _, _ := endpointsOf(s.did.Frame)
		addrs := s.addresses(rule, out, p.family == 4)
		if a, ok := s.paired[pairKey{p.tuple.Src, rule.Name}]; ok && slices.Contains(addrs, a) {
			addrs = []netip.Addr{a}
		}
		if !slices.Contains(addrs, src) {
			return nil, differ("a later fragment leaves by %s, not one of %v", src, addrs)
		}
		k := p.fragmentKey(true, p.tuple)
		p.translate(Tuple{Src: src, Dst: p.tuple.Dst, Proto: p.tuple.Proto})
		if err := s.noteID(k, true, p); err != nil {
			return nil, err
		}
	}
	return pass(p.frame, "pass_fragment", "pass_allowed"), nil
}

func (s *step) laterInbound(p *datagram, ours bool) (*result, error) {
	if f := s.piece(p, false); f != nil {
		p.translate(Tuple{Src: f.src, Dst: f.dst, Proto: p.tuple.Proto})
		return pass(p.frame, "pass_fragment"), nil
	}
	if ours && s.did.Verdict == Drop {
		return drop("drop_fragment"), nil
	}
	return s.alone(), nil
}

func (s *step) laterInward(from, zone *Zone, p *datagram) (*result, error) {
	// Translated ones were known where they came in.
	for k, f := range s.packets {
		if !k.out && f.src == p.tuple.Src && f.dst == p.tuple.Dst && f.id == p.id {
			return pass(p.frame, "pass_fragment", "pass_allowed", "pass_flow"), nil
		}
	}
	if s.did.Verdict == Drop {
		return drop("drop_fragment", "drop_no_flow", "drop_zone", "drop_policy"), nil
	}
	if why := s.judge(from, zone, p); why != "" {
		return drop(why), nil
	}
	return pass(p.frame, "pass_fragment", "pass_allowed"), nil
}
