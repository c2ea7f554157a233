package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// fillFast writes into settings whether there is a fast path. The serial makes what
// flows remember of their way worthless: it is another one in each generation.
func fillFast(s *tapgateTgSetting, fast bool) {
	s.Fast, s.Serial = 0, max(1, uint32(bootTime()/1e6))
	if fast {
		s.Fast = 1
	}
}

// switchFast changes the settings of a generation, and says whether they were others.
func (g *Gateway) switchFast(slot uint32, on bool) (switched bool, err error) {
	var s tapgateTgSetting
	if err := g.maps[tapgateMapTgSettings].Lookup(slot, &s); err != nil {
		return false, fmt.Errorf("read the settings of generation %d: %w", slot, err)
	}
	if s.Gateway == 0 || (s.Fast == 1) == on {
		return false, nil
	}
	fillFast(&s, on)
	if err := g.maps[tapgateMapTgSettings].Put(slot, s); err != nil {
		return false, fmt.Errorf("switch the fast path: %w", err)
	}
	return true, nil
}

// convergeSlow and convergeFast make the settings what the record says: off before
// what the fast path needs goes, on when it is there.
func (g *Gateway) convergeSlow() error { return g.convergeForwarding(false) }

func (g *Gateway) convergeFast() error { return g.convergeForwarding(true) }

func (g *Gateway) convergeForwarding(fast bool) error {
	var errs []error
	for _, gen := range g.live() {
		if gen.Gateway != nil && gen.Gateway.Forwarding.fast() == fast {
			_, err := g.switchFast(gen.slot, fast)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// setTracking sets what connection tracking must be told before there is a fast path.
// It is noted already.
func (g *Gateway) setTracking(r *gatewayRecord) error {
	if r == nil || r.KeepSysctls {
		return nil
	}
	for _, s := range r.Sysctls {
		if !s.ofTracking() || g.journal.sysctl(s) == nil {
			continue
		}
		if now, err := s.read(); err == nil && now != s.Value {
			if err := s.write(s.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepTracked has connection tracking be liberal with each TCP flow of ours by
// itself: it has not seen the windows of those that took the fast path move, and
// would take their next packets for invalid once it is strict again.
func (g *Gateway) keepTracked() error {
	if g.maps == nil {
		return nil
	}
	ct, err := openConntrack()
	if ct == nil || err != nil {
		return err
	}
	defer ct.close()
	if err := g.waitForPrograms(); err != nil { // the last ones may be on the fast path yet
		return err
	}
	list, err := g.readFlows(func(in, _ *tapgateTgTuple, _ *tapgateTgSession) bool { return in.Proto == unix.IPPROTO_TCP })
	if err != nil {
		return err
	}
	for i := range list {
		// Of the inside's packets: as the stack sees them, whoever began.
		err := ct.beLiberal(tupleOf(list[i].inKey))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("have the kernel's connection tracking go on with flows that took the fast path: %w", err)
		}
	}
	return nil
}

// beLiberal has no packet of a connection taken for invalid by its window.
func (c *conntrack) beLiberal(t ctTuple) error {
	req := c.request(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK, t.src.Is6())
	req.AddData(tupleAttr(nl.CTA_TUPLE_ORIG, t))
	info := nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, nil)
	tcp := info.AddRtAttr(nl.CTA_PROTOINFO_TCP|unix.NLA_F_NESTED, nil)
	tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, []byte{ctBeLiberal, ctBeLiberal})
	tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_FLAGS_REPLY, []byte{ctBeLiberal, ctBeLiberal})
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

// forwardingNow decides anew for the generation in force. It is called in its namespace.
func (g *Gateway) forwardingNow() (ForwardingStatus, []sysctl) {
	r := g.active.Gateway
	return forwardingOn(r.Forwarding.Wanted, g.active.ingresses(), r.KeepSysctls, &g.journal)
}

// forwardingTurned says whether what was decided does not fit any more.
func (g *Gateway) forwardingTurned() bool {
	r := g.active.Gateway
	if r == nil {
		return false
	}
	now, tracking := g.forwardingNow()
	if now != r.Forwarding {
		return true
	}
	for _, s := range tracking {
		if value, err := s.read(); err == nil && value != s.Value && !r.KeepSysctls || !slices.ContainsFunc(r.Sysctls, s.same) {
			return true
		}
	}
	return false
}

// followForwarding puts in force what forwardingNow says. The record first: whoever
// is cut short behind it is finished by the next.
func (g *Gateway) followForwarding(log *slog.Logger) error {
	if !g.forwardingTurned() {
		return nil
	}
	was := g.active.Gateway.Forwarding
	now, tracking := g.forwardingNow()
	r := *g.active.Gateway
	r.Forwarding = now
	r.Sysctls = append(withoutTracking(r.Sysctls), g.ownSysctls(tracking)...)
	if err := g.noteTracking(&r); err != nil {
		return err
	}
	g.active.Gateway = &r
	if err := writeRecord(g.maps[tapgateMapTgRecords], g.slot, g.active); err != nil {
		return err
	}
	if err := g.converge(); err != nil {
		return err
	}
	if now != was {
		log.Info("forwarding has changed", "before", was.String(), "now", now.String(), Changed)
	}
	return nil
}

// noteTracking writes down what setTracking is about to change.
func (g *Gateway) noteTracking(r *gatewayRecord) error {
	if r == nil || r.KeepSysctls {
		return nil
	}
	before := g.journal.entries()
	if err := g.noteSysctls(slices.DeleteFunc(slices.Clone(r.Sysctls), func(s sysctl) bool { return !s.ofTracking() })); err != nil {
		return err
	}
	if g.journal.entries() == before {
		return nil
	}
	return g.writeJournal()
}
