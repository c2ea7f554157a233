package loader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// errNoNews: a subscription has to be made again.
var errNoNews = errors.New("the kernel's news of interfaces have ended")

// watched are the interfaces whose news concern us: a host may have many others, which
// come and go all the time.
type watched struct {
	mu      sync.Mutex
	all     bool
	indexes map[int]bool
	names   map[string]bool
}

// know watches what these generations name; nil: everything.
func (w *watched) know(live []generation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all, w.indexes, w.names = live == nil, map[int]bool{}, map[string]bool{reassemblyNear: true}
	for _, gen := range live {
		for _, m := range gen.Members {
			w.indexes[m.Ifindex] = true
			w.names[m.Interface] = true
			w.names[m.writtenAs()] = true
		}
	}
}

func (w *watched) concerns(index int, names ...string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all || w.indexes[index] || slices.ContainsFunc(names, func(n string) bool { return w.names[n] })
}

// concernsMessage is for rules, which concern us all, and for filters and forwarding
// switches, which have an interface.
func (w *watched) concernsMessage(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER, unix.RTM_NEWTCLASS, unix.RTM_DELTCLASS:
		return len(m.Data) >= nl.SizeofTcMsg && w.concerns(int(nl.DeserializeTcMsg(m.Data).Ifindex))
	case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
		const head, netconfIfindex = 4, 1 // struct netconfmsg, NETCONFA_IFINDEX
		if len(m.Data) < head {
			return false
		}
		attrs, err := nl.ParseRouteAttr(m.Data[head:])
		for _, a := range attrs {
			if a.Attr.Type == netconfIfindex && len(a.Value) == 4 {
				index := int32(nl.NativeEndian().Uint32(a.Value))
				return index < 0 || w.concerns(int(index)) // below 0 is all, or the default
			}
		}
		return err != nil
	}
	return true
}

// subscribe tells of changes of links, addresses, routing rules, filters and forwarding
// switches in the namespace. Which one it was does not matter: everything is looked at
// again.
func subscribe(ctx context.Context, ns *namespace, w *watched) (changed <-chan struct{}, lost <-chan struct{}, err error) {
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
		err = subscribeRest(handle, stop, news, w)
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
			concerns, open := false, false
			select {
			case l, more := <-links:
				if open = more; !open {
					links = nil
				} else if l.Link != nil {
					a := l.Attrs()
					concerns = w.concerns(a.Index, append(slices.Clone(a.AltNames), a.Name)...)
				}
			case a, more := <-addrs:
				if open = more; !open {
					addrs = nil
				}
				concerns = w.concerns(a.LinkIndex)
			}
			if !open && ctx.Err() == nil {
				notify(failed)
			}
			if concerns || !open {
				notify(news)
			}
		}
	}()
	return news, failed, nil
}

// subscribeRest is for what asks for another forwarding, and for settings that are
// somebody else's too. What is missed of it is seen by the next look.
func subscribeRest(ns netns.NsHandle, stop <-chan struct{}, news chan<- struct{}, w *watched) error {
	s, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_TC,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return err
	}
	go func() {
		<-stop
		s.Close()
	}()
	go func() {
		for {
			all, _, err := s.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			if err != nil || slices.ContainsFunc(all, w.concernsMessage) {
				notify(news)
			}
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
