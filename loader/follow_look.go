package loader

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// found is what a look has found.
type found struct {
	// apart is why the configuration has to be applied again.
	apart []string
	// mend: something outside of the generations is not as they need it.
	mend bool
	// unfinished asks for another look soon.
	unfinished bool
	// trouble is what went wrong, and no reason not to follow.
	trouble error
}

// look holds the live generations against the interfaces, and mends what can be without
// another generation.
func (f *follower) look() (found, error) {
	// Most news do not concern us: a look without the writer's lock tells.
	g, err := Open(f.opt, ReadOnly)
	if errors.Is(err, ErrUnconfirmed) {
		return found{}, f.clearUnconfirmed(err)
	}
	if err != nil {
		return found{}, err
	}
	f.know(g)
	if err := f.whose(g); err != nil {
		return found{}, errors.Join(err, g.Close())
	}
	var is found
	if !f.logsFlows {
		is.trouble = g.dropTranslations()
	}
	is.trouble = errors.Join(is.trouble, f.tellRefused(g))
	err = g.ns.do(func() error {
		return g.ofEach(func() error { return g.compare(&is) })
	})
	is.mend = f.hasReturned(g) || is.mend
	for _, m := range g.moved {
		f.log.Warn(m, Changed)
	}
	is.apart = f.notWhileWaiting(g, is.apart)
	if err = errors.Join(err, g.Close()); err != nil || !is.mend && len(is.apart) == 0 {
		return is, err
	}
	if !f.pace.may(time.Now()) { // somebody else changes it back as often as we do
		is.apart, is.unfinished = nil, true
		return is, nil
	}
	if !is.mend || len(is.apart) > 0 {
		return is, nil // an apply looks at all of it as well
	}
	g, err = Open(f.opt, ReadWrite)
	if err != nil {
		return found{}, err
	}
	err = g.ns.do(func() error { return g.mend(f.log, &is) })
	f.know(g)
	return is, errors.Join(err, g.Close())
}

// know tells the others what is in force.
func (f *follower) know(g *Gateway) {
	f.denied.know(g.live())
	f.watch.know(g.live())
	f.asker.know(g)
}

// compare adds what is not as the generation in force needs it.
func (g *Gateway) compare(is *found) error {
	topo, err := readTopology()
	if err != nil {
		return err
	}
	apart, err := g.apart(topo)
	if err != nil {
		return err
	}
	is.apart = append(is.apart, apart...)
	if g.active.Gateway == nil {
		wrong, err := g.offloadsBack()
		is.mend = is.mend || len(wrong) > 0
		return err
	}
	for i, o := range g.outsideIn(topo) {
		is.mend = is.mend || !o.equal(g.active.Gateway.Outside[i])
	}
	due, left := g.dueAddresses(false)
	is.mend = is.mend || len(due) > 0
	is.unfinished = is.unfinished || len(left) > 0
	wrong, err := g.offloadsBack()
	is.mend = is.mend || len(wrong) > 0 || g.forwardingTurned() || len(g.changedSysctls()) > 0 || g.reassemblyFallen()
	return err
}

// mend makes what is outside of the generations as they need it.
func (g *Gateway) mend(log *slog.Logger, is *found) error {
	err := g.ofEach(func() error {
		return errors.Join(g.followOutside(log), g.followForwarding(log), g.mendSettings())
	})
	for _, m := range g.mended {
		log.Warn(m+": somebody had changed it", Changed)
	}
	for _, w := range g.warnings {
		log.Warn(w)
	}
	if r := g.active.Gateway; r != nil {
		is.unfinished = is.unfinished || len(r.Lost) > 0
	}
	return err
}

// mendSettings sets what somebody has changed back to what the generation needs, as an
// apply would: what it is to be put back to one day is noted first.
func (g *Gateway) mendSettings() error {
	wrong, err := g.offloadsBack()
	if err != nil {
		return err
	}
	for _, o := range wrong {
		g.journal.addOffloads(o.touched, o.Features)
	}
	changed := g.changedSysctls()
	if err := g.noteSysctls(changed); err != nil {
		return err
	}
	if len(wrong)+len(changed) > 0 {
		if err := g.writeJournal(); err != nil {
			return err
		}
	}
	var errs []error
	for _, o := range wrong {
		err := setFeatures(o.Interface, o.Features, false)
		if err == nil {
			g.mended = append(g.mended, fmt.Sprintf("checksum offload of %s switched off again, so that the sensor gets whole frames", o.Interface))
		}
		errs = append(errs, err)
	}
	if g.reassemblyFallen() {
		err := g.prepareReassembly(&g.active)
		if err == nil {
			g.mended = append(g.mended, "the reassembly of fragments set up again")
		}
		errs = append(errs, err)
	}
	if len(changed) > 0 {
		errs = append(errs, g.converge())
	}
	return errors.Join(errs...)
}

// offloadsBack are checksum offloads of dmz interfaces that are on, and should not be.
func (g *Gateway) offloadsBack() (list []offloadEntry, err error) {
	for _, m := range g.active.Members {
		if m.Role != RoleDMZ || m.Absent {
			continue
		}
		t := touched{Interface: m.Interface, Ifindex: m.Ifindex, MAC: m.MAC}
		l, err := t.link()
		if err != nil {
			return nil, err
		}
		if l == nil {
			continue
		}
		on, err := txChecksumFeatures(l.Attrs().Name)
		if err != nil {
			return nil, err
		}
		if len(on) > 0 {
			t.Interface = l.Attrs().Name
			list = append(list, offloadEntry{touched: t, Features: on})
		}
	}
	return list, nil
}

// changedSysctls are settings that are ours to set and not as they are needed.
func (g *Gateway) changedSysctls() []sysctl {
	return slices.DeleteFunc(g.neededSysctls(), func(s sysctl) bool {
		now, err := s.read()
		return err != nil || now == s.Value || s.ofTracking() && atLeast(now, s.Value)
	})
}

// reassemblyFallen says that the way for fragments was set up and is not whole any more.
func (g *Gateway) reassemblyFallen() bool {
	r := g.reassembly()
	var use tapgateTgReassemblyLink
	if !g.active.reassembles() || r.table.Lookup(uint32(0), &use) != nil || use.Ifindex == 0 {
		return false // nor where the kernel has no means
	}
	return r.standing() != nil
}

// apart tells which interfaces are not those any more, or not as they were, that the
// generation in force was made of.
func (g *Gateway) apart(topo *topology) (told []string, err error) {
	tell := func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) }
	for _, m := range g.active.Members {
		l, named := topo.byIndex[m.Ifindex], topo.find(m.writtenAs())
		if l != nil && (m.Absent || l.Attrs().Name != m.Interface && l.Attrs().HardwareAddr.String() != m.MAC) {
			l = nil // its number is another's now
		}
		switch {
		case l == nil && named == nil:
			continue // gone, until it comes back
		case l == nil:
			tell("%s has come back (index %d)", m.Interface, named.Attrs().Index)
			continue
		case named != nil && named.Attrs().Index != m.Ifindex:
			tell("%s is another one now (index %d, before %d)", m.Interface, named.Attrs().Index, m.Ifindex)
			continue
		}
		if mac := l.Attrs().HardwareAddr.String(); mac != m.MAC {
			tell("%s has the MAC %s, before %s", m.Interface, mac, m.MAC)
			continue
		}
		for _, program := range m.Programs {
			kind, _, _, err := attachedKind(program, hookOf(program, m.Ifindex, m.Interface), g.linkDir(m.Ifindex))
			if err != nil {
				return nil, err
			}
			if kind == "" {
				tell("%s has lost %s", m.Interface, program)
			}
		}
		if m.Role == RoleDMZ && l.Attrs().MTU != m.MTU {
			tell("the MTU of %s is %d, before %d", m.Interface, l.Attrs().MTU, m.MTU)
		}
		if now, same := m.sameAddresses(topo); !same {
			tell("%s has %s", m.Interface, now)
		}
	}
	if r := g.active.Gateway; r != nil {
		if ports, err := hostPorts(); err == nil && ports != r.DefaultPorts {
			tell("net.ipv4.ip_local_port_range is another one")
		}
	}
	return told, nil
}

// sameAddresses says whether an interface has the addresses that count, as it was applied,
// and which they are.
func (m memberRecord) sameAddresses(topo *topology) (now string, same bool) {
	has := counting(m.Role, topo.addrs[m.Ifindex])
	return cmp.Or(strings.Join(has, ", "), "no address"), slices.Equal(has, counting(m.Role, m.knownNow()))
}

// statusAddresses tells of internal interfaces whose networks are others than those that
// the generation in force looks at sources by. An agent follows them. What a next hop
// lacks is told with it.
func (g *Gateway) statusAddresses(s *Status) error {
	topo, err := readTopology()
	if err != nil {
		return err
	}
	for _, m := range g.active.Members {
		if m.Role != RoleInternal || g.active.Gateway == nil {
			continue
		}
		l := topo.byIndex[m.Ifindex]
		if l == nil || m.Absent || l.Attrs().Name != m.Interface && l.Attrs().HardwareAddr.String() != m.MAC {
			continue // told already
		}
		if now, same := m.sameAddresses(topo); !same {
			s.Problems = append(s.Problems, fmt.Sprintf("interface %s has other networks than when it was applied (now %s): apply again, or \"tapgate agent\" does", m.Interface, now))
		}
	}
	return nil
}

// pace bounds how often something is changed in a row.
type pace struct{ times []time.Time }

// paceMost changes in paceSpan are as many as a machine where all goes up and down may
// need; more are a quarrel with somebody who wants it otherwise.
const (
	paceMost = 10
	paceSpan = 5 * time.Second
)

func (p *pace) may(now time.Time) bool {
	p.times = slices.DeleteFunc(p.times, func(t time.Time) bool { return now.Sub(t) > paceSpan })
	if len(p.times) >= paceMost {
		return false
	}
	p.times = append(p.times, now)
	return true
}
