package datapath

import (
	"net/netip"
)

// The generator: few hosts and few ports, so that what happens meets.

var (
	insidePorts  = []uint16{40, 500, 1000, 2000, 5000, 5001, 33000, 61000}
	remotePorts  = []uint16{22, 53, 80, 443, 1000, 5000}
	flowProtos   = []uint8{tcp, tcp, tcp, tcp, udp, udp, udp, udp, icmp4, icmp4, udplite, dccp, sctp, gre, esp}
	askedOutside = []uint16{3389, 3389, 13389, 7000, 7003, 7004, 8440, 8445, 5353, 22, 2000, 2001, 2002, 2003, 2004, 2005, 2006}
	usualFlags   = []uint8{fSYN | fACK, fSYN | fACK, fACK, fACK, fACK, fACK, fACK | fFIN, fRST | fACK, fRST, fSYN, 0, fACK | fSYN | fFIN}
)

// focus chooses what a sequence is about: the fewer there are, the more they meet.
func (w *world) focus() {
	w.insidePorts = some(w.dice, insidePorts)
	w.remotePorts = some(w.dice, remotePorts)
	w.flowProtos = some(w.dice, flowProtos)
}

// some are the first of a list from somewhere on, or all.
func some[T any](d *dice, list []T) []T {
	if d.chance(40) {
		return list
	}
	first := d.n(len(list))
	return list[first : first+1+d.n(len(list)-first)]
}

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
	{"conversation", 5, (*world).conversation},
	{"ask from outside", 9, (*world).askOutside},
	{"hairpin", 6, (*world).askHairpin},
	{"error from outside", 5, (*world).errorOutside},
	{"error from inside", 4, (*world).errorInside},
	{"error of the gateway", 2, (*world).errorGateway},
	{"between inner networks", 6, (*world).across},
	{"gateway's own", 2, (*world).own},
	{"spoofed", 2, (*world).spoofed},
	{"malformed", 2, (*world).malformed},
	{"damaged", 2, (*world).damaged},
	{"fragments outward", 3, (*world).fragments},
	{"time", 2, (*world).time},
	{"a while", 4, (*world).while},
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
	p := talk{src: src, dst: dst, proto: pick(w.dice, w.flowProtos), sport: sport, dport: dport, flags: fSYN}
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
	return w.emit(w.speak(src, w.remote(src), pick(w.dice, w.insidePorts), pick(w.dice, w.remotePorts)), in)
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

// fragments are those of one packet from inside, in order, or with pieces missing.
func (w *world) fragments() error {
	src, in := w.insider()
	p := w.speak(src, w.remote(src), pick(w.dice, w.insidePorts), pick(w.dice, w.remotePorts))
	if p.proto == sctp || p.proto == gre || p.proto == esp || p.proto == dccp || p.proto == udplite {
		p.proto, p.kind = udp, 0
		p.sport, p.dport = pick(w.dice, w.insidePorts), pick(w.dice, w.remotePorts)
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
