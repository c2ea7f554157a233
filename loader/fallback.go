package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
)

// What a change that may go back by itself asks of the generation before it: it must
// work beside the new one until somebody confirms, and alone afterwards, without any
// process that puts something right.

// canFallBack says whether the generation in force can stand beside a new one.
func (g *Gateway) canFallBack(p *plan) error {
	if g.opt.CutOver {
		return errors.New("a change that goes back by itself cannot take over the host's open connections: nobody could give them back")
	}
	var errs []error
	for _, was := range g.active.Members {
		for _, m := range p.record.Members {
			if m.Ifindex == was.Ifindex && (m.Role == RoleDMZ) != (was.Role == RoleDMZ) && len(m.Programs) > 0 && len(was.Programs) > 0 {
				errs = append(errs, configErrorf("zones."+m.Zone, "%q is in a zone of role %s now and would be of role %s: its programs differ, "+
					"so this cannot go back by itself; apply it without --confirm, or as a change of its own", m.Interface, was.Role, m.Role))
			}
		}
	}
	// The maps of addresses have one place for each.
	_, ours, err := outsideMaps(&g.active)
	if err != nil {
		return err
	}
	for key, was := range ours {
		if now, both := p.gateway.ours[key]; both && now.Zone != was.Zone {
			errs = append(errs, configErrorf("zones", "the outside address %s is in zone %q now and would be in zone %q: this cannot go back by itself; "+
				"apply it without --confirm, or as a change of its own", netip.AddrFrom16(key.Addr).Unmap(), zoneName(&g.active, was.Zone), zoneName(&p.record, now.Zone)))
		}
	}
	return errors.Join(errs...)
}

func zoneName(r *record, number uint8) string {
	for _, z := range r.Zones {
		if z.Number == number {
			return z.Name
		}
	}
	return ""
}

// prepareFallBack brings in order what a change may go back to.
func (g *Gateway) prepareFallBack(res *resolved) error {
	if g.active.Serial != 0 {
		// With the addresses of now, as the agent would.
		return g.followOutside(slog.New(slog.DiscardHandler))
	}
	return g.closeDoors(res)
}

// closeDoors is for a first configuration that switches IP forwarding on: going back from
// it must not leave a machine behind that forwards what nobody judges. So there is a
// generation to go back to, in which nothing is forwarded, as nothing was before; the
// machine itself is reached as it was. It has no record, and goes with the state.
func (g *Gateway) closeDoors(res *resolved) error {
	if res.gateway == nil || res.gateway.nat.KeepSysctls {
		return nil
	}
	for _, key := range []string{sysctlForward4, sysctlForward6} {
		now, err := sysctl{Key: key}.read()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read %s: %w", sysctl{Key: key}, err)
		}
		if now == "1" {
			return nil // forwarding is the host's own
		}
	}
	closed := &resolved{gateway: &resolvedGateway{roles: map[string]Role{}, nat: NAT{MaxFlows: 1, MaxFlowsPerHost: 1}}}
	for _, z := range res.zones {
		if z.Role == RoleDMZ {
			continue
		}
		z.Role = RoleMgmt // to and from which nothing passes, and whose sources are not looked at
		closed.zones = append(closed.zones, z)
		closed.gateway.roles[z.Name] = z.Role
	}
	for _, m := range res.members {
		if m.role != RoleDMZ {
			m := *m
			m.role = RoleMgmt
			closed.members = append(closed.members, &m)
		}
	}
	p, err := makePlan(&g.active, closed, "")
	if err != nil {
		return err
	}
	p.record = record{Layout: Layout}
	if err := g.fillIdle(p); err != nil {
		return err
	}
	if err := writeRecord(g.maps[tapgateMapTgRecords], 1-g.slot, p.record); err != nil {
		return err
	}
	if err := g.writeControl(controlWord{active: 1 - g.slot}); err != nil {
		return err
	}
	g.slot, g.active, g.closed = 1-g.slot, p.record, true
	return nil
}

// warnFallBack tells what going back would not put right by itself.
func (g *Gateway) warnFallBack(before *record, result *Result) {
	if before.Serial != 0 && before.Gateway == nil && g.active.Gateway != nil && g.journal.sysctl(sysctl{Key: sysctlForward4}) != nil {
		result.Warnings = append(result.Warnings, "if it is not confirmed, the machine goes on forwarding, which nobody judges then, "+
			"until the next command or the agent switches IP forwarding off again")
	}
	if before.Serial == 0 && !g.closed && (g.journal.sysctl(sysctl{Key: sysctlForward4}) != nil || g.journal.sysctl(sysctl{Key: sysctlForward6}) != nil) {
		result.Warnings = append(result.Warnings, "the host forwards one IP family by itself, so there is nothing closed to go back to: if it is not confirmed, the machine "+
			"forwards the other one as well, which nobody judges then, until the next command or the agent clears up")
	}
	if before.Gateway != nil && g.active.Gateway == nil {
		result.Warnings = append(result.Warnings, "until it is confirmed IP forwarding stays as it was, for the configuration before to work again: "+
			"what is forwarded now, tapgate does not judge")
	}
}
