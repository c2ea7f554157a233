package model

import (
	"net/netip"
	"slices"
)

// step is one packet at one hook.
type step struct {
	*Model
	in    int // interfaces; out is 0 at ingress
	out   int
	now   int64
	did   Outcome
	frame []byte
	made  int  // flows that the program has ended to make room
	full  bool // a limit was reached
}

// The reasons of packets that the gateway leaves alone differ by where they are.
var leftAlone = []string{"pass_not_tapped", "pass_tapped", "pass_to_host", "pass_allowed", "pass_host", "pass_not_member"}

func (s *step) alone() *result { return pass(s.frame, leftAlone...) }

func (s *step) ingress(in int) (*result, error) {
	s.admitted = false
	zone := s.cfg.zoneOf(in)
	p := parse(s.frame)
	if zone == nil {
		return s.alone(), nil
	}
	if r := s.fast(p); r != nil {
		return r, nil
	}
	if zone.Role == External {
		return s.inbound(zone, p)
	}
	if zone.Role != Internal {
		return s.alone(), nil
	}
	if p.family != 0 && p.tuple.Src.IsValid() && !mayCome(zone, p.tuple.Src) {
		return drop("drop_spoofed"), nil
	}
	if p.kind == none {
		return s.alone(), nil
	}
	if p.kind == bad {
		return s.malformed()
	}
	if o := s.cfg.ours(p.tuple.Dst); o != nil {
		return s.hairpin(zone, o, p)
	}
	return s.alone(), nil
}

// malformed packets are dropped, or left to the kernel, which drops them.
func (s *step) malformed() (*result, error) {
	if s.did.Verdict == Drop {
		return drop("drop_malformed", "drop_no_flow", "drop_zone", "drop_policy", "drop_spoofed"), nil
	}
	return s.alone(), nil
}

// revive notes that a flow may have been known to be over, before it goes on.
func (s *step) revive(h *half) {
	if s.now >= h.deadline(s.cfg.Timers) {
		h.unsure = true
	}
}

// touch counts a packet of a flow that takes the stack.
func (s *step) touch(h *half, p *datagram) {
	s.revive(h)
	h.touch(s.now, p)
	s.stack(h, p)
}

// apply gives a packet of a flow its translation.
func (s *step) apply(h *half, p *datagram) {
	s.touch(h, p)
	p.translate(h.other().key.Turned())
}

// known handles a packet of a flow that exists. nil: there is none.
func (s *step) known(p *datagram, leaves bool) *half {
	h := s.lookup(s.now, p.tuple)
	if h == nil || h.flushed {
		return nil
	}
	s.revive(h)
	if leaves {
		h.left = true
	}
	if p.tuple.Proto == TCP && p.flags&(syn|ack|rst) == syn && h.closing() {
		h.restart()
	}
	s.apply(h, p)
	return h
}

// ending: a packet of a flow that is on its way out is dropped, and so is one of a flow
// that has expired, of whoever may not keep it alive then: who began it may go on with it.
func (s *step) ending(t Tuple) *result {
	if s.strays[t] && s.did.Reason == "drop_busy" {
		return drop("drop_busy")
	}
	h := s.lookup(s.now, t)
	if h == nil {
		return nil
	}
	keeps := h.side == inside || h.initiator == outside && h.origin != ByMapping
	if h.flushed && s.did.Reason == "drop_busy" || !h.flushed && !keeps && s.now >= h.deadline(s.cfg.Timers) {
		return drop("drop_busy")
	}
	return nil
}

// errorOfFlow translates an ICMP error about a packet of a flow.
func (s *step) errorOfFlow(p *datagram) bool {
	h := s.lookupFlow(p)
	if h == nil {
		return false
	}
	p.translateError(h.other().key.Turned())
	return true
}

// inbound is external ingress.
func (s *step) inbound(zone *Zone, p *datagram) (*result, error) {
	// What the gateway itself speaks without ports comes to it, not to a flow.
	if (p.kind == failure || p.kind == other) && s.own[p.flow().Turned()] && s.did.Reason == "pass_to_host" {
		return s.alone(), nil
	}
	ours := p.tuple.Dst.IsValid() && s.cfg.ours(p.tuple.Dst) != nil
	switch p.kind {
	case none:
		return s.alone(), nil
	case bad:
		return s.malformed()
	case later:
		return s.laterInbound(p, ours)
	case failure:
		if h := s.lookup(s.now, p.flow()); !ours && (h == nil || !h.translated()) {
			return s.alone(), nil
		}
		if !p.errorIsSound() {
			if s.did.Verdict == Drop {
				return drop("drop_malformed"), nil
			}
			// Not about a flow: the host checks for itself.
			if h := s.lookup(s.now, p.flow()); h == nil || h.flushed || s.now >= h.deadline(s.cfg.Timers) {
				return s.alone(), nil
			}
			return drop("drop_malformed"), nil
		}
		if s.errorOfFlow(p) {
			s.admitted = true
			return pass(p.frame, "pass_icmp_error"), nil
		}
		// It may be about a packet of the gateway's own.
		if ours && s.did.Verdict == Drop {
			return drop("drop_no_flow", "drop_unsolicited"), nil
		}
		return s.alone(), nil
	}
	if r := s.ending(p.tuple); r != nil {
		return r, nil
	}
	before := p.tuple
	if h := s.lookup(s.now, p.tuple); h != nil && !h.translated() { // known where it leaves
		return s.alone(), nil
	}
	if h := s.known(p, false); h != nil {
		s.admitted = true
		s.firstInbound(before, p)
		return pass(p.frame, "pass_flow"), nil
	}
	if !ours {
		return s.alone(), nil
	}
	if f := s.findForward(zone.Name, p.tuple); f != nil {
		return s.newForward(zone, f, p)
	}
	e := Endpoint{p.tuple.Dst, p.tuple.Dport, p.tuple.Proto, true, zone.Name}
	if b := s.mapping(s.now, e); b != nil && !p.unmapped() {
		return s.newByMapping(zone, b, p)
	}
	if p.tuple.Proto == TCP && p.flags&(syn|ack|rst) == syn {
		return drop("drop_silent_syn"), nil
	}
	return s.alone(), nil
}

func (s *step) egress(in, out int) (*result, error) {
	zone := s.cfg.zoneOf(out)
	p := parse(s.frame)
	if zone == nil || p.kind == none {
		return s.alone(), nil
	}
	if zone.Role == External {
		return s.outbound(in, out, zone, p)
	}
	return s.inward(in, zone, p)
}

// outbound is external egress.
func (s *step) outbound(in, out int, zone *Zone, p *datagram) (*result, error) {
	from := s.cfg.zoneOf(in)
	switch p.kind {
	case bad:
		return s.malformed()
	case later:
		return s.laterOutbound(from, zone, out, in == 0, p)
	case failure:
		if in == 0 && !p.errorIsSound() { // not one that a kernel makes
			return s.malformed()
		}
		if s.lookupFlow(p) != nil && !p.errorIsSound() {
			return drop("drop_malformed", "drop_no_flow"), nil
		}
		if s.errorOfFlow(p) {
			return pass(p.frame, "pass_icmp_error"), nil
		}
		if in == 0 {
			return s.alone(), nil
		}
		if !p.errorIsSound() {
			return drop("drop_malformed", "drop_no_flow", "drop_zone", "drop_policy", "drop_busy"), nil
		}
		return drop("drop_no_flow", "drop_malformed", s.judge(from, zone, p)), nil
	}
	before := p.tuple
	if r := s.ending(p.tuple); r != nil {
		return r, nil
	}
	if h := s.known(p, true); h != nil {
		if err := s.firstOutbound(before, p); err != nil {
			return nil, err
		}
		return pass(p.frame, "pass_flow"), nil
	}
	if in == 0 {
		if p.unmapped() {
			s.own[p.tuple] = true
		}
		return s.alone(), nil
	}
	if why := s.judge(from, zone, p); why != "" {
		return refused(p, why), nil
	}
	return s.newOutbound(from, zone, out, p)
}

// lookupFlow finds the flow that an error is about. One that has expired may be known
// still, or not.
func (s *step) lookupFlow(p *datagram) *half {
	h := s.lookup(s.now, p.flow())
	if h == nil || h.flushed {
		return nil
	}
	if s.now >= h.deadline(s.cfg.Timers) && !slices.Contains([]string{"pass_icmp_error", "pass_hairpin", "drop_malformed"}, s.did.Reason) {
		return nil
	}
	return h
}

// inward is egress to internal and mgmt, behind all translation.
func (s *step) inward(in int, zone *Zone, p *datagram) (*result, error) {
	if in == 0 {
		return s.alone(), nil
	}
	from := s.cfg.zoneOf(in)
	switch p.kind {
	case bad:
		return s.malformed()
	case later:
		return s.laterInward(from, zone, p)
	case failure:
		if role(from) == Internal && role(zone) == Internal && !s.between(from, zone) {
			if s.did.Reason == "drop_malformed" && !p.errorIsSound() {
				return drop("drop_malformed"), nil
			}
			return pass(p.frame, "pass_allowed", "pass_icmp_error"), nil
		}
		// Its inner packet is one that the inside host sent, as it sent it.
		if h := s.lookup(s.now, p.inner.tuple); h != nil && !h.flushed && s.comes(h, from) && (s.now < h.deadline(s.cfg.Timers) || s.did.Verdict == Pass) {
			if !s.admitted && !p.errorIsSound() && s.did.Verdict == Drop {
				return drop("drop_malformed"), nil
			}
			return pass(p.frame, "pass_icmp_error"), nil
		}
		return drop("drop_no_flow", "drop_malformed", s.judge(from, zone, p)), nil
	}
	why := s.judge(from, zone, p)
	if role(from) == Internal && role(zone) == Internal && !s.between(from, zone) { // needs no flow
		return pass(p.frame, "pass_allowed", "pass_flow"), nil
	}
	if r := s.ending(p.tuple); r != nil {
		return r, nil
	}
	if r := s.ending(p.tuple.Turned()); r != nil && s.did.Reason == "drop_busy" {
		return r, nil
	}
	// Either as the flow's inside half turned round, or, of flows that began on
	// this side of the gateway, as its other half.
	if h := s.lookup(s.now, p.tuple.Turned()); h != nil && !h.flushed && s.comes(h, from) {
		s.passInward(h, from, p)
		return pass(p.frame, "pass_flow"), nil
	}
	if why != "" {
		return refused(p, why), nil
	}
	return s.newInward(from, zone, p)
}

// comes says whether a packet of the flow came by its way: what is translated is
// translated where it comes in, and nowhere else.
func (s *step) comes(h *half, from *Zone) bool {
	return role(from) != External || s.admitted || !h.translated()
}

// passInward: packets that were translated were counted there.
func (s *step) passInward(h *half, from *Zone, p *datagram) {
	s.revive(h)
	h.left = true
	if h.translated() {
		s.through(h.other(), p)
		return
	}
	if mine := s.sessions[p.tuple]; mine != nil {
		if p.tuple.Proto == TCP && p.flags&(syn|ack|rst) == syn && mine.closing() {
			mine.restart()
		}
		s.touch(mine, p)
	}
}

// refused: what could not begin a flow may be dropped for that reason as well.
func refused(p *datagram, why string) *result {
	if !p.begins() || !p.asks() {
		return drop(why, "drop_no_flow")
	}
	return drop(why)
}

// between says whether policies speak of two zones: then answers do not pass by
// themselves, and flows are needed.
func (s *step) between(a, b *Zone) bool {
	for _, q := range s.cfg.Policies {
		if q.From == a.Name && q.To == b.Name || q.From == b.Name && q.To == a.Name {
			return true
		}
	}
	return false
}

// dstOf is the destination that a program gave a frame, and its source.
func endpointsOf(frame []byte) (src, dst netip.Addr, sport, dport uint16) {
	p := parse(frame)
	return p.tuple.Src, p.tuple.Dst, p.tuple.Sport, p.tuple.Dport
}
