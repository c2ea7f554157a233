package loader

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// lostKeep is how long the flows of an address are kept that its interface has lost
// without getting another: a cable that was pulled comes back with the same one.
const lostKeep = time.Minute

// lostAddress is one that an external interface had. Its flows may go on if it comes back.
type lostAddress struct {
	Address netip.Addr `json:"address"`
	Zone    string     `json:"zone"`
	Since   uint64     `json:"since"` // boot time, ns
}

// stillLost are the addresses that are lost when the interfaces have those of now.
func (r *gatewayRecord) stillLost(now []outsideRecord) (list []lostAddress) {
	has := func(a netip.Addr) bool {
		return slices.ContainsFunc(now, func(o outsideRecord) bool { return slices.Contains(o.Addresses, a) })
	}
	for _, l := range r.Lost {
		if !has(l.Address) {
			list = append(list, l)
		}
	}
	for _, o := range r.Outside {
		for _, a := range o.Addresses {
			if !has(a) && !slices.ContainsFunc(list, func(l lostAddress) bool { return l.Address == a }) {
				list = append(list, lostAddress{Address: a, Zone: o.Zone, Since: bootTime()})
			}
		}
	}
	return list
}

// over says whether the flows of a lost address cannot go on: there is another one,
// which they shall have, or it has been away for too long.
func (l lostAddress) over(outside []outsideRecord, now uint64) bool {
	away := time.Duration(now - min(now, l.Since))
	replaced := slices.ContainsFunc(outside, func(o outsideRecord) bool {
		return o.Zone == l.Zone && (l.Address.Is4() && o.V4.IsValid() || l.Address.Is6() && o.V6.IsValid())
	})
	return away > lostKeep || replaced && away > followSettle
}

// dueAddresses are those of the lost addresses whose flows are to be ended, and those
// that may come back. all: none may. While a change waits for confirmation they may be
// those of the configuration before, which may be in force again.
func (g *Gateway) dueAddresses(all bool) (due, left []lostAddress) {
	if g.active.Gateway == nil || g.waits() {
		return nil, nil
	}
	now := bootTime()
	for _, l := range g.active.Gateway.Lost {
		if all || l.over(g.active.Gateway.Outside, now) {
			due = append(due, l)
		} else {
			left = append(left, l)
		}
	}
	return due, left
}

// endDue ends the flows of lost addresses, and says how many. They are forgotten after
// that: whoever is cut short does it once more.
func (g *Gateway) endDue(all bool) (ended int, err error) {
	due, left := g.dueAddresses(all)
	if len(due) == 0 {
		return 0, nil
	}
	_, ours, err := outsideMaps(&g.active)
	if err != nil {
		return 0, err
	}
	var lost []netip.Addr
	for _, l := range due {
		if _, pool := ours[tapgateTgOursKey{Addr: l.Address.As16()}]; !pool {
			lost = append(lost, l.Address)
		}
	}
	if len(lost) > 0 {
		if ended, err = g.flushTo(lost); err != nil {
			return ended, err
		}
	}
	r := *g.active.Gateway
	r.Lost = left
	g.active.Gateway = &r
	return ended, writeRecord(g.maps[tapgateMapTgRecords], g.slot, g.active)
}

// followOutside takes the addresses that the external interfaces have now. The
// record first: whoever is cut short behind it is finished by the next.
func (g *Gateway) followOutside(log *slog.Logger) error {
	now, err := g.outsideNow()
	if err != nil || g.active.Gateway == nil {
		return err
	}
	was := g.active.Gateway.Outside
	if !slices.EqualFunc(was, now, outsideRecord.equal) {
		r := *g.active.Gateway
		r.Lost = r.stillLost(now)
		r.Outside = now
		g.active.Gateway = &r
		if err := writeRecord(g.maps[tapgateMapTgRecords], g.slot, g.active); err != nil {
			return err
		}
		if err := g.convergeOutside(); err != nil {
			return err
		}
	}
	for i, o := range now {
		if !o.equal(was[i]) {
			log.Info("outside addresses have changed", "interface", o.Interface, "before", addrList(was[i].Addresses), "now", addrList(o.Addresses), Changed)
		}
	}
	ended, err := g.endDue(false)
	if ended > 0 {
		log.Info("ended "+counted(ended, "flow")+" of addresses that are gone", "flows", ended, Changed)
	}
	return err
}

// endLost ends the flows of addresses that were ours and no longer are.
func (g *Gateway) endLost(was []outsideRecord) (ended int, err error) {
	if g.active.Gateway == nil {
		return 0, nil
	}
	_, ours, err := outsideMaps(&g.active)
	if err != nil {
		return 0, err
	}
	lost := lostAddresses(was, g.active.Gateway.Outside)
	lost = keepIf(lost, func(a netip.Addr) bool { _, pool := ours[tapgateTgOursKey{Addr: a.As16()}]; return !pool })
	if len(lost) == 0 {
		return 0, nil
	}
	return g.flushTo(lost)
}
