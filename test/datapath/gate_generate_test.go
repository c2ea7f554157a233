package datapath

import (
	"net/netip"
	"time"

	"tapgate/test/model"
)

// The generator: few hosts and few ports, so that what happens meets.

var (
	insidePorts  = []uint16{40, 500, 1000, 2000, 5000, 5001, 33000, 61000}
	remotePorts  = []uint16{22, 53, 80, 443, 1000, 5000}
	flowProtos   = []uint8{tcp, tcp, tcp, tcp, udp, udp, udp, udp, icmp4, icmp4, udplite, dccp, sctp, gre, esp}
	askedOutside = []uint16{3389, 3389, 13389, 7000, 7003, 7004, 8440, 8445, 5353, 22, 2000, 2001, 2002, 2003, 2004, 2005, 2006}
	usualFlags   = []uint8{fSYN | fACK, fSYN | fACK, fACK, fACK, fACK, fACK, fACK | fFIN, fRST | fACK, fRST, fSYN, 0, fACK | fSYN | fFIN}
)

// action is one thing that can happen.
type action struct {
	name   string
	weight int
	do     func(*world) error
}

var actions = []action{
	{"begin outward", 22, (*world).beginOutward},
	{"go on from inside", 14, (*world).goOn},
	{"answer from outside", 24, (*world).answerOutside},
	{"answer from inside", 14, (*world).answerInside},
	{"ask from outside", 9, (*world).askOutside},
	{"hairpin", 6, (*world).askHairpin},
	{"error from outside", 5, (*world).errorOutside},
	{"error from inside", 4, (*world).errorInside},
	{"error of the gateway", 2, (*world).errorGateway},
	{"between inner networks", 6, (*world).across},
	{"gateway's own", 2, (*world).own},
	{"spoofed", 2, (*world).spoofed},
	{"malformed", 2, (*world).malformed},
	{"fragments outward", 3, (*world).fragments},
	{"time", 2, (*world).time},
	{"flush", 1, (*world).someFlushed},
}

func (w *world) next() error {
	sum := 0
	for _, a := range actions {
		sum += a.weight
	}
	at := w.n(sum)
	for _, a := range actions {
		if at -= a.weight; at < 0 {
			return a.do(w)
		}
	}
	return nil
}

// insider is a host and the interface that it is behind.
func (w *world) insider() (netip.Addr, int) {
	switch n := w.n(10); {
	case n < 7:
		return pick(w.dice, insiders), internal
	case n < 9:
		return pick(w.dice, seconds), second
	}
	return pick(w.dice, managers), mgmt
}

func (w *world) remote(like netip.Addr) netip.Addr {
	for range 16 {
		if a := pick(w.dice, remotes); a.Is4() == like.Is4() {
			return a
		}
	}
	if like.Is4() {
		return remotes[0]
	}
	return remotes[3]
}

// shape gives a packet what does not matter to flows, or should not.
func (w *world) shape(p talk) talk {
	p.length = w.n(40)
	p.id = uint16(w.n(4) + 1)
	p.options = w.chance(5)
	p.noSum = p.proto == udp && p.src.Is4() && w.chance(10)
	if w.chance(3) {
		p.ttl = uint8(w.n(3) + 1)
	}
	return p
}

// speak makes a new packet between two addresses.
func (w *world) speak(src, dst netip.Addr, sport, dport uint16) talk {
	p := talk{src: src, dst: dst, proto: pick(w.dice, flowProtos), sport: sport, dport: dport, flags: fSYN}
	switch p.proto {
	case icmp4:
		p.kind, p.dport = 8, 0
		if src.Is6() {
			p.proto, p.kind = icmp6, 128
		}
	case gre, esp:
		p.sport, p.dport = 0, 0
	}
	if w.chance(6) {
		p.flags = pick(w.dice, usualFlags)
	}
	return w.shape(p)
}

func (w *world) emit(p talk, in int) error {
	if in != external && w.route(p.frame()) == 0 {
		p.ttl = 0 // known: a flow is made before the TTL is looked at
	}
	if in != external {
		w.sent = remember(w.sent, place{p, in})
	}
	return w.send(in, p.frame())
}

func (w *world) beginOutward() error {
	src, in := w.insider()
	return w.emit(w.speak(src, w.remote(src), pick(w.dice, insidePorts), pick(w.dice, remotePorts)), in)
}

// goOn sends one more packet like one that an inside host sent before.
func (w *world) goOn() error {
	if len(w.sent) == 0 {
		return w.beginOutward()
	}
	p := pick(w.dice, w.sent)
	again := w.shape(p.talk)
	if p.proto == tcp {
		again.flags = pick(w.dice, usualFlags)
	}
	again.more, again.offset = false, 0
	if w.chance(15) {
		again.dst = w.remote(again.src)
	}
	return w.emit(again, p.in)
}

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
		p.sport = pick(w.dice, remotePorts)
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
	return w.emit(p, w.behind(p.src))
}

// behind says by which interface a host's packets come in.
func (w *world) behind(a netip.Addr) int {
	for _, z := range gateZones {
		for _, n := range z.nets {
			if n.Contains(a) {
				return z.ifindex
			}
		}
	}
	return external
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
	p := w.speak(w.remote(dst), dst, pick(w.dice, remotePorts), pick(w.dice, askedOutside))
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
	p := w.speak(src, dst, pick(w.dice, insidePorts), pick(w.dice, askedOutside))
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
	return w.sendBroken(p, w.behind(from))
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
	if w.behind(h.src) != external {
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
	return w.leave(0, external, p.frame())
}

func (w *world) across() error {
	src, in := w.insider()
	dst, out := w.insider()
	if in == out || src.Is4() != dst.Is4() {
		return nil
	}
	if w.chance(40) && len(w.in) > 0 {
		p, ok := w.answer(pick(w.dice, w.in))
		if ok && w.behind(p.dst) != external {
			return w.emit(p, w.behind(p.src))
		}
	}
	return w.emit(w.speak(src, dst, pick(w.dice, insidePorts), pick(w.dice, remotePorts)), in)
}

// own is traffic of the gateway itself.
func (w *world) own() error {
	p := w.speak(outsideIP, w.remote(outsideIP), pick(w.dice, insidePorts)+45000, pick(w.dice, remotePorts))
	return w.leave(0, external, p.frame())
}

func (w *world) spoofed() error {
	src := pick(w.dice, addrs("10.1.2.3", "203.0.113.8", "192.168.6.2", "192.168.4.9", "2001:db8:99::9", "fe80::1", "0.0.0.0"))
	return w.emit(w.speak(src, w.remote(src), pick(w.dice, insidePorts), pick(w.dice, remotePorts)), internal)
}

// malformed changes some bytes of headers that say how long they are.
func (w *world) malformed() error {
	src, in := w.insider()
	frame := w.speak(src, w.remote(src), pick(w.dice, insidePorts), pick(w.dice, remotePorts)).frame()
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

// sendRaw is send for what a kernel would not route.
func (w *world) sendRaw(in int, frame []byte) error {
	if _, err := w.step(in, 0, frame, true); err != nil {
		return err
	}
	return nil
}

// fragments are those of one packet from inside, in order, or with pieces missing.
func (w *world) fragments() error {
	src, in := w.insider()
	p := w.speak(src, w.remote(src), pick(w.dice, insidePorts), pick(w.dice, remotePorts))
	if p.proto == sctp || p.proto == gre || p.proto == esp || p.proto == dccp || p.proto == udplite {
		p.proto, p.kind = udp, 0
		p.sport, p.dport = pick(w.dice, insidePorts), pick(w.dice, remotePorts)
	}
	p.length, p.options, p.ttl = 64*2+w.n(40), false, 0
	pieces := 3
	if w.chance(10) {
		pieces = 2 // the last one is lost
	}
	for i := range pieces {
		if w.chance(3) {
			continue
		}
		piece := p
		piece.offset, piece.more = i*64, i < 2
		if err := w.send(in, piece.frame()); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) time() error {
	jumps := []time.Duration{time.Second, 4 * time.Second, 7 * time.Second, 13 * time.Second, 25 * time.Second, 31 * time.Second, 70 * time.Second, 125 * time.Second}
	if err := w.jump(pick(w.dice, jumps)); err != nil {
		return err
	}
	if err := w.settle(); err != nil {
		return err
	}
	// Packets of flows that have expired and were not swept yet bring them back.
	for range w.n(4) {
		if err := w.revive(); err != nil {
			return err
		}
	}
	if err := w.settle(); err != nil {
		return err
	}
	if err := w.sweep(); err != nil {
		return err
	}
	return w.compare()
}

// revive sends a packet of a flow that there is.
func (w *world) revive() error {
	flows := w.model.Flows()
	if w.chance(50) && len(w.out) > 0 {
		p, ok := w.answer(pick(w.dice, w.out))
		if ok && p.flags != fSYN {
			if _, known := flows[model.Tuple{Src: p.src, Dst: p.dst, Sport: p.sport, Dport: p.dport, Proto: p.proto}]; known {
				return w.emit(p, external)
			}
		}
		return nil
	}
	if len(w.sent) == 0 {
		return nil
	}
	p := pick(w.dice, w.sent)
	for _, f := range flows {
		if f.Inside == (model.Tuple{Src: p.src, Dst: p.dst, Sport: p.sport, Dport: p.dport, Proto: p.proto}) {
			p.flags = fACK
			return w.emit(p.talk, p.in)
		}
	}
	return nil
}

// someFlushed flushes flows, and sends some packets before they are swept.
func (w *world) someFlushed() error {
	if w.chance(70) {
		return nil
	}
	who := pick(w.dice, append(append([]netip.Addr{}, insiders...), remotes...))
	err := w.flush(func(in, out model.Tuple) bool { return in.Src == who || out.Src == who })
	if err != nil {
		return err
	}
	for range w.n(6) {
		if err := w.goOn(); err != nil {
			return err
		}
		if err := w.answerOutside(); err != nil {
			return err
		}
	}
	if err := w.settle(); err != nil {
		return err
	}
	if err := w.sweep(); err != nil {
		return err
	}
	return w.compare()
}
