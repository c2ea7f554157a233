package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// followSettle is how long to wait after a change for those that come with it: an
	// address that is renewed may be gone for a moment.
	followSettle = 300 * time.Millisecond
	// followLook is how often to look without being told, which also finds that the
	// state is another one, or gone.
	followLook = 5 * time.Second
)

// Follow keeps outside addresses and interfaces as the kernel says they are, until
// ctx ends: it writes changed addresses to the maps, ends the flows of lost ones,
// and has the configuration put in force once more when an interface has come back
// with another number. Without it everything goes on as it was applied. While there
// is no gateway it waits for one. ErrBusy if somebody follows already.
func Follow(ctx context.Context, opt Options, hooks Follower) error {
	f := &follower{opt: opt, log: hooks.Log, reapply: hooks.Reapply, looked: hooks.Looked, again: hooks.Again}
	f.denied = &denyLog{log: f.log, opt: opt, asked: map[uint32]time.Time{}}
	if f.looked == nil {
		f.looked = func(bool) {}
	}
	for ctx.Err() == nil {
		err := f.untilGone(ctx)
		switch {
		case errors.Is(err, errNoNews):
			f.trouble(err)
		case err != nil && !errors.Is(err, ErrNotAttached):
			return err
		case ctx.Err() == nil && !f.waiting:
			f.waiting = true
			f.log.Info("there is no gateway here: waiting for one")
		}
		f.looked(false)
		select {
		case <-ctx.Done():
		case <-f.again:
		case <-time.After(followLook):
		}
	}
	return nil
}

// errNoNews: a subscription has to be made again.
var errNoNews = errors.New("the kernel's news of interfaces have ended")

// Follower is what Follow calls.
type Follower struct {
	Log *slog.Logger
	// Reapply puts the configuration in force in force again.
	Reapply func() error
	// Looked, if set, is told after each look, at least every few seconds, whether
	// there is a gateway. Who hears nothing knows that Follow hangs.
	Looked func(gateway bool)
	// Again, if set, asks for a look at once.
	Again <-chan struct{}
}

type follower struct {
	opt     Options
	log     *slog.Logger
	reapply func() error
	looked  func(bool)
	again   <-chan struct{}
	denied  *denyLog
	waiting bool   // for a gateway, and has said so
	told    string // the last trouble that was logged
}

// untilGone follows one state for as long as it is there.
func (f *follower) untilGone(ctx context.Context) error {
	ns, err := openNamespace(f.opt.Netns)
	if err != nil {
		return err
	}
	defer ns.close()
	folder := filepath.Join(f.opt.stateDir(ns), linksDir)
	// Status tries this lock for a moment, so it may be taken just now.
	lock, err := lockDir(folder, true, time.Second)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrNotAttached
	case errors.Is(err, ErrBusy):
		return fmt.Errorf("another agent follows here already: %w", err)
	case err != nil:
		return err
	}
	defer lock.unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed, lost, err := subscribe(ctx, ns)
	if err != nil {
		return err
	}
	ended, err := f.denied.follow(f.opt.stateDir(ns))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotAttached
	}
	if err != nil {
		return err
	}
	defer ended()
	f.waiting = false
	f.log.Info("following", "state", f.opt.stateDir(ns))

	settle := time.NewTimer(0) // look at once: much may have changed before
	defer settle.Stop()
	look := time.NewTicker(followLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-lost:
			return errNoNews
		case <-changed:
			settle.Reset(followSettle)
			continue
		case <-look.C:
			if same, _ := stillThere(lock.f, folder); !same {
				return ErrNotAttached
			}
		case <-f.again:
		case <-settle.C:
		}
		if err := f.catchUp(); err != nil {
			return err
		}
		f.looked(true)
	}
}

// subscribe tells of every change of links, addresses, routing rules and filters in
// the namespace. Which one it was does not matter: everything is looked at again.
func subscribe(ctx context.Context, ns *namespace) (changed <-chan struct{}, lost <-chan struct{}, err error) {
	handle := netns.NsHandle(ns.fd)
	links, addrs := make(chan netlink.LinkUpdate), make(chan netlink.AddrUpdate)
	news, failed := make(chan struct{}, 1), make(chan struct{}, 1)
	// An overrun says that there was much news, no more.
	trouble := func(error) { notify(news) }
	done := ctx.Done()
	stop := make(chan struct{})
	err = netlink.LinkSubscribeWithOptions(links, stop, netlink.LinkSubscribeOptions{Namespace: &handle, ErrorCallback: trouble})
	if err == nil {
		err = netlink.AddrSubscribeWithOptions(addrs, stop, netlink.AddrSubscribeOptions{Namespace: &handle, ErrorCallback: trouble})
	}
	if err == nil {
		err = subscribeRules(handle, stop, news)
	}
	if err != nil {
		close(stop)
		return nil, nil, fmt.Errorf("ask the kernel for news of interfaces: %w", err)
	}
	go func() {
		<-done
		close(stop)
	}()
	go func() {
		for links != nil || addrs != nil {
			var open bool
			select {
			case _, open = <-links:
				if !open {
					links = nil
				}
			case _, open = <-addrs:
				if !open {
					addrs = nil
				}
			}
			if !open && ctx.Err() == nil {
				notify(failed)
			}
			notify(news)
		}
	}()
	return news, failed, nil
}

// subscribeRules is for what asks for another forwarding. What is missed of it is
// seen by the next look.
func subscribeRules(ns netns.NsHandle, stop <-chan struct{}, news chan<- struct{}) error {
	s, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_TC)
	if err != nil {
		return err
	}
	go func() {
		<-stop
		s.Close()
	}()
	go func() {
		for {
			if _, _, err := s.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			notify(news)
		}
	}()
	return nil
}

func notify(news chan<- struct{}) {
	select {
	case news <- struct{}{}:
	default: // there is news already
	}
}

// catchUp makes the state what the interfaces are. What goes wrong is logged, once,
// and tried again later; an error is the end.
func (f *follower) catchUp() error {
	back, err := f.look()
	switch {
	case errors.Is(err, ErrNotAttached), errors.Is(err, ErrState):
		return err
	case err != nil:
		f.trouble(err)
		return nil
	}
	if len(back) > 0 {
		f.log.Info("interfaces have come back: applying again", "interfaces", strings.Join(back, ", "))
		if err := f.reapply(); err != nil {
			f.trouble(fmt.Errorf("apply again: %w", err))
			return nil
		}
	}
	f.told = ""
	return nil
}

// trouble logs what goes wrong, unless it is what went wrong before.
func (f *follower) trouble(err error) {
	if text := err.Error(); text != f.told {
		f.told = text
		f.log.Warn("trying again later", "error", text)
	}
}

// look follows addresses, and says which interfaces have come back.
func (f *follower) look() (back []string, err error) {
	// Most news do not concern us: a look without the writer's lock tells.
	g, err := Open(f.opt, ReadOnly)
	if err != nil {
		return nil, err
	}
	f.denied.know(&g.active)
	var differs, turned bool
	err = g.ns.do(func() error {
		now, err := g.outsideNow()
		for i := range now {
			differs = differs || !now[i].equal(g.active.Gateway.Outside[i])
		}
		if err == nil {
			back, err = g.comeBack()
		}
		turned = g.forwardingTurned()
		return err
	})
	for _, m := range g.moved {
		f.log.Warn(m)
	}
	if err = errors.Join(err, g.Close()); err != nil || !differs && !turned || len(back) > 0 {
		return back, err // an apply looks at addresses and forwarding as well
	}
	g, err = Open(f.opt, ReadWrite)
	if err != nil {
		return nil, err
	}
	err = g.ns.do(func() error { return errors.Join(g.followOutside(f.log), g.followForwarding(f.log)) })
	return nil, errors.Join(err, g.Close())
}

// followOutside takes the addresses that the external interfaces have now. The
// record first: whoever is cut short behind it is finished by the next.
func (g *Gateway) followOutside(log *slog.Logger) error {
	now, err := g.outsideNow()
	if err != nil || g.active.Gateway == nil {
		return err
	}
	was := g.active.Gateway.Outside
	r := *g.active.Gateway
	r.Outside = now
	g.active.Gateway = &r
	if err := writeRecord(g.maps[tapgateMapTgRecords], g.slot, g.active); err != nil {
		return err
	}
	if err := g.convergeOutside(); err != nil {
		return err
	}
	for i, o := range now {
		if !o.equal(was[i]) {
			log.Info("outside addresses have changed", "interface", o.Interface, "before", addrList(was[i].Addresses), "now", addrList(o.Addresses))
		}
	}
	ended, err := g.endLost(was)
	if ended > 0 {
		log.Info("ended "+counted(ended, "flow")+" of addresses that are gone", "flows", ended)
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

// comeBack lists interfaces of the generation in force that are there again by name
// but are others, and those that have lost our programs.
func (g *Gateway) comeBack() (names []string, err error) {
	topo, err := readTopology()
	if err != nil {
		return nil, err
	}
	for _, m := range g.active.Members {
		l := topo.byIndex[m.Ifindex]
		gone := l == nil || l.Attrs().Name != m.Interface && l.Attrs().HardwareAddr.String() != m.MAC
		if gone {
			if topo.find(m.Interface) != nil {
				names = append(names, m.Interface)
			}
			continue
		}
		for _, program := range m.Programs {
			kind, _, _, err := attachedKind(program, hookOf(program, m.Ifindex, m.Interface), g.linkDir(m.Ifindex))
			if err != nil {
				return nil, err
			}
			if kind == "" {
				names = append(names, m.Interface)
				break
			}
		}
	}
	return names, nil
}
