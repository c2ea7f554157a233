package datapath

import (
	"net/netip"
)

// answer is a packet back.
func (w *world) answer(h heard) (talk, bool) {
	if h.failure() || h.offset > 0 {
		return talk{}, false
	}
	p := talk{src: h.dst, dst: h.src, proto: h.proto, sport: h.dport, dport: h.sport, kind: h.kind}
	switch h.proto {
	case tcp:
		p.flags = pick(w.dice, usualFlags)
		if h.flags&(fSYN|fACK) == fSYN && w.chance(60) {
			p.flags = fSYN | fACK
		}
	case icmp4, icmp6:
		switch h.kind {
		case 8:
			p.kind = 0
		case 128:
			p.kind = 129
		case 0:
			p.kind = 8
		case 129:
			p.kind = 128
		}
	}
	return w.shape(p), true
}

func (w *world) answerOutside() error {
	if len(w.out) == 0 {
		return w.askOutside()
	}
	p, ok := w.answer(pick(w.dice, w.out))
	if !ok {
		return nil
	}
	if w.chance(6) { // from another port
		p.sport = pick(w.dice, w.remotePorts)
	}
	if w.chance(6) { // from somebody else
		p.src = w.remote(p.dst)
	}
	if w.chance(5) { // to another port
		p.dport += uint16(w.n(3))
	}
	return w.emit(p, external)
}

func (w *world) answerInside() error {
	if len(w.in) == 0 {
		return w.beginOutward()
	}
	p, ok := w.answer(pick(w.dice, w.in))
	if !ok {
		return nil
	}
	return w.emit(p, behind(p.src))
}

func (w *world) asked() netip.Addr {
	if w.chance(70) {
		return outsideIP
	}
	return pick(w.dice, append(append([]netip.Addr{}, pool...), pool6...))
}

func (w *world) askOutside() error {
	dst := w.asked()
	if w.chance(20) { // somebody inside, directly
		dst = pick(w.dice, insiders)
	}
	p := w.speak(w.remote(dst), dst, pick(w.dice, w.remotePorts), pick(w.dice, askedOutside))
	if w.chance(30) && len(w.out) > 0 { // a port that is in use
		h := pick(w.dice, w.out)
		if h.src.Is4() == p.src.Is4() && h.sport != 0 {
			p.dst, p.dport, p.proto = h.src, h.sport, h.proto
			if p.proto == icmp4 || p.proto == icmp6 {
				p.proto = udp
			}
		}
	}
	return w.emit(p, external)
}

func (w *world) askHairpin() error {
	src, in := w.insider()
	dst := w.asked()
	if dst.Is4() != src.Is4() {
		dst = outsideIP
		src, in = insiders[0], internal
	}
	p := w.speak(src, dst, pick(w.dice, w.insidePorts), pick(w.dice, askedOutside))
	if w.chance(60) && len(w.out) > 0 {
		h := pick(w.dice, w.out)
		if h.src.Is4() && src.Is4() && h.sport != 0 {
			p.dst, p.dport, p.proto = h.src, h.sport, h.proto
			if p.proto == icmp4 {
				p.proto = udp
			}
		}
	}
	return w.emit(p, in)
}

func (w *world) across() error {
	src, in := w.insider()
	dst, out := w.insider()
	if in == out || src.Is4() != dst.Is4() {
		return nil
	}
	if w.chance(40) && len(w.in) > 0 {
		p, ok := w.answer(pick(w.dice, w.in))
		if ok && behind(p.dst) != external {
			return w.emit(p, behind(p.src))
		}
	}
	return w.emit(w.speak(src, dst, pick(w.dice, w.insidePorts), pick(w.dice, w.remotePorts)), in)
}

// conversation is what most packets are in the world: two hosts that go on talking,
// with nothing unusual.
func (w *world) conversation() error {
	if len(w.out) == 0 {
		return w.beginOutward()
	}
	h := pick(w.dice, w.out)
	for range 2 + w.n(6) {
		w.got = nil
		if err := w.reply(h, external); err != nil || w.got == nil || w.got.offset > 0 {
			return err
		}
		from := *w.got
		w.got = nil
		if err := w.reply(from, behind(from.dst)); err != nil || w.got == nil || w.got.offset > 0 {
			return err
		}
		h = *w.got
	}
	return nil
}

// reply is a plain answer by who got a packet.
func (w *world) reply(h heard, in int) error {
	p, ok := w.answer(h)
	if !ok {
		return nil
	}
	p.options, p.ttl, p.noSum = false, 0, false
	if p.proto == tcp {
		p.flags = fACK
		if h.flags&(fSYN|fACK) == fSYN {
			p.flags |= fSYN
		}
	}
	return w.emit(p, in)
}
