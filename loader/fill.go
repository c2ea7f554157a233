package loader

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/cilium/ebpf"
)

// fillIdle makes the maps of the new generation and puts them into the slot
// that is not in force. The update of an outer map waits for programs that may
// still read the old inner map, so counters of free numbers are at rest then.
func (g *Gateway) fillIdle(p *plan) error {
	spec, err := compiled()
	if err != nil {
		return err
	}
	idle := 1 - g.slot
	members, err := ebpf.NewMap(spec.Maps[tapgateMapTgMembers].InnerMap)
	if err != nil {
		return fmt.Errorf("make the map of interfaces: %w", err)
	}
	defer members.Close()
	for ifindex, m := range p.members {
		if err := members.Put(ifindex, m); err != nil {
			return fmt.Errorf("fill the map of interfaces: %w", err)
		}
	}
	targets, err := ebpf.NewMap(spec.Maps[tapgateMapTgTargets].InnerMap)
	if err != nil {
		return fmt.Errorf("make the map of targets: %w", err)
	}
	defer targets.Close()
	for number, t := range p.targets {
		if err := targets.Put(number, t); err != nil {
			return fmt.Errorf("fill the map of targets: %w", err)
		}
	}
	inner := map[string]*ebpf.Map{tapgateMapTgMembers: members, tapgateMapTgTargets: targets}
	rules, err := makeRuleMaps(spec, p)
	defer closeMaps(rules)
	if err != nil {
		return err
	}
	maps.Copy(inner, rules)
	if err := g.putInner(idle, inner); err != nil {
		return err
	}
	set := p.gateway.setting
	if set.Gateway == 0 {
		// Flows of before may outlive it, while it waits for confirmation: without timers
		// whoever looks at them would find them all expired.
		if set.Timers, err = g.timersInForce(); err != nil {
			return err
		}
	}
	if err := g.maps[tapgateMapTgSettings].Put(idle, set); err != nil {
		return fmt.Errorf("fill generation %d: %w", idle, err)
	}
	if err := g.addOutside(p); err != nil {
		return err
	}
	if err := g.clearCounters(p); err != nil {
		return err
	}
	for key, hop := range p.nexthops {
		if err := g.maps[tapgateMapTgNexthops].Put(key, hop); err != nil {
			return fmt.Errorf("fill the map of next hops: %w", err)
		}
	}
	return nil
}

// makeRuleMaps makes the inner maps of a plan's rules; empty ones if nothing is
// judged. The caller closes them, also after an error.
func makeRuleMaps(spec *ebpf.CollectionSpec, p *plan) (made map[string]*ebpf.Map, err error) {
	made = map[string]*ebpf.Map{}
	for _, name := range []string{tapgateMapTgRules, tapgateMapTgSets, tapgateMapTgPools} {
		if made[name], err = ebpf.NewMap(spec.Maps[name].InnerMap); err != nil {
			delete(made, name)
			return made, fmt.Errorf("make a map for %s: %w", name, err)
		}
	}
	if p.gateway.rules == nil {
		return made, nil
	}
	return made, p.gateway.rules.write(made[tapgateMapTgRules], made[tapgateMapTgSets], made[tapgateMapTgPools])
}

func closeMaps(list map[string]*ebpf.Map) {
	for _, m := range list {
		m.Close()
	}
}

// putInner puts inner maps into their outer ones. Each of these updates waits for
// programs that may still read the old inner map, so all wait at once.
func (g *Gateway) putInner(slot uint32, inner map[string]*ebpf.Map) error {
	var all sync.WaitGroup
	errs := make([]error, 0, len(inner))
	var lock sync.Mutex
	for name, m := range inner {
		all.Go(func() {
			if err := g.maps[name].Put(slot, m); err != nil {
				lock.Lock()
				defer lock.Unlock()
				errs = append(errs, fmt.Errorf("fill generation %d of %s: %w", slot, name, err))
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// checkRoom holds max_flows and preallocate against the maps, which stay as they
// were made.
func (g *Gateway) checkRoom(nat *NAT) error {
	made, flows := makingOf(g.maps), nat.MaxFlows
	room := made.flows
	switch {
	case nat.Preallocate && !made.preallocate:
		return configErrorf("nat.preallocate", "the flow table was made without: \"tapgate detach\" and apply again makes one whose memory is taken at once; translated flows end with it")
	case !nat.Preallocate && made.preallocate:
		return configErrorf("nat", "the flow table was made with preallocate: true, and stays so until \"tapgate detach\"; translated flows end with it")
	case flows <= room:
		return nil
	}
	return configErrorf("nat.max_flows", "%d flows are more than the table has room for (%d), which was made for a smaller max_flows: "+
		"\"tapgate detach\" and apply again makes a larger one; translated flows end with it", flows, room)
}
