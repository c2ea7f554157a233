package datapath

import (
	"net/netip"
)

// What is wrong, and what is said about it.

// complaint is an ICMP error about a packet that somebody got.
func (w *world) complaint(from netip.Addr, h heard) (talk, bool) {
	if h.failure() || from.Is4() != h.src.Is4() {
		return talk{}, false
	}
	p := talk{src: from, dst: h.src, proto: icmp4, kind: pick(w.dice, []uint8{3, 11, 12}), code: uint8(w.n(5))}
	header := int(h.ip[0]&15) * 4
	if from.Is6() {
		p.proto, p.kind = icmp6, uint8(w.n(4)+1)
		header = 40
	}
	quoted := append([]byte{}, h.ip[:min(len(h.ip), header+8+w.n(60))]...)
	if w.chance(5) {
		quoted = quoted[:min(len(quoted), w.n(header+8))] // too short to say anything
	}
	if len(quoted) > 0 && w.chance(5) {
		quoted[w.n(len(quoted))] ^= 1 << w.n(8)
	}
	p.payload = quoted
	return p, true
}

func (w *world) errorOutside() error {
	if len(w.out) == 0 {
		return nil
	}
	h := pick(w.dice, w.out)
	from := h.dst
	if w.chance(50) {
		from = w.remote(h.dst)
	}
	p, ok := w.complaint(from, h)
	if !ok {
		return nil
	}
	return w.sendBroken(p, external)
}

func (w *world) errorInside() error {
	if len(w.in) == 0 {
		return nil
	}
	h := pick(w.dice, w.in)
	from := h.dst
	if w.chance(20) && from.Is4() { // a router on the way
		from = insiders[2]
	}
	p, ok := w.complaint(from, h)
	if !ok {
		return nil
	}
	return w.sendBroken(p, behind(from))
}

// sendBroken sends an error, sometimes with a checksum that is wrong.
func (w *world) sendBroken(p talk, in int) error {
	frame := p.frame()
	if w.chance(5) {
		frame[14+20+2] ^= 0x10
		if p.src.Is6() {
			frame[14+20+2] ^= 0x10
			frame[14+40+2] ^= 0x10
		}
	}
	return w.send(in, frame)
}

// errorGateway: what the gateway's own kernel says about a packet that it
// translated before and could not deliver.
func (w *world) errorGateway() error {
	if len(w.in) == 0 {
		return nil
	}
	h := pick(w.dice, w.in)
	if behind(h.src) != external {
		return nil
	}
	from := outsideIP
	if h.src.Is6() {
		from = netip.MustParseAddr("2001:db8:113::1")
	}
	p, ok := w.complaint(from, h)
	if !ok {
		return nil
	}
	return w.sendOwn(external, p.frame())
}

// own is traffic of the gateway itself.
func (w *world) own() error {
	p := w.speak(outsideIP, w.remote(outsideIP), pick(w.dice, w.insidePorts)+45000, pick(w.dice, w.remotePorts))
	return w.sendOwn(external, p.frame())
}

func (w *world) spoofed() error {
	src := pick(w.dice, addrs("10.1.2.3", "203.0.113.8", "192.168.6.2", "192.168.4.9", "2001:db8:99::9", "fe80::1", "0.0.0.0"))
	return w.emit(w.speak(src, w.remote(src), pick(w.dice, w.insidePorts), pick(w.dice, w.remotePorts)), internal)
}

// malformed changes some bytes of headers that say how long they are.
func (w *world) malformed() error {
	src, in := w.insider()
	frame := w.speak(src, w.remote(src), pick(w.dice, w.insidePorts), pick(w.dice, w.remotePorts)).frame()
	switch w.n(4) {
	case 0: // nothing behind the IP header
		frame = frame[:14+20]
		if src.Is6() {
			return nil
		}
		copy(frame[16:], word(20))
	case 1: // a transport header that is cut
		if src.Is6() {
			return nil
		}
		cut := 14 + 20 + 4
		frame = frame[:min(len(frame), cut)]
		copy(frame[16:], word(len(frame)-14))
	case 2: // longer than it is
		if src.Is4() {
			copy(frame[16:], word(2000))
		} else {
			copy(frame[18:], word(2000))
		}
	case 3:
		frame[14] ^= 0x0f // the length of the IPv4 header, flow label of IPv6
	}
	return w.sendRaw(in, frame)
}

// damaged is a packet of a flow, padded, cut short or with a wrong checksum: the kernel
// takes padding away, and drops the others.
func (w *world) damaged() error {
	var p talk
	in := external
	if w.chance(50) && len(w.out) > 0 {
		var ok bool
		if p, ok = w.answer(pick(w.dice, w.out)); !ok {
			return nil
		}
	} else if len(w.sent) > 0 {
		old := pick(w.dice, w.sent)
		p, in = w.shape(old.talk), old.in
		p.more, p.offset = false, 0
	} else {
		return nil
	}
	p.options, p.ttl = false, 0
	if p.proto == tcp {
		p.flags = fACK
	}
	frame := p.frame()
	switch w.n(3) {
	case 0:
		return w.send(in, append(frame, make([]byte, 1+w.n(12))...))
	case 1:
		if p.src.Is6() {
			return nil
		}
		frame[14+10] ^= 1 << w.n(8)
	case 2:
		// What is translated at once is so before it is dropped.
		if in == external || w.route(frame) == 0 || len(frame) <= 14+60 {
			return nil
		}
		frame = frame[:len(frame)-1-w.n(12)]
	}
	mac := w.gateway.macs[in]
	copy(frame, mac[:])
	return w.sendRaw(in, frame)
}
