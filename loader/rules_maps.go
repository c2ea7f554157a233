package loader

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// write fills new inner maps of tg_rules, tg_sets and tg_pools.
func (r *ruleset) write(rules, sets, pools *ebpf.Map) error {
	for key, rule := range r.rules {
		if err := rules.Put(key, rule); err != nil {
			return fmt.Errorf("write a rule: %w", err)
		}
	}
	for number, set := range r.sets {
		if err := sets.Put(number, set); err != nil {
			return fmt.Errorf("write a set of policies: %w", err)
		}
	}
	for i, addr := range r.pool {
		if err := pools.Put(uint32(i), tapgateTgPoolAddress{Addr: addr.As16()}); err != nil {
			return fmt.Errorf("write an outside address: %w", err)
		}
	}
	return nil
}

// poolAddresses reads the outside addresses of a masquerade rule.
func poolAddresses(pools *ebpf.Map, rule tapgateTgRule) (list []netip.Addr, err error) {
	for i := range rule.PoolCount {
		var a tapgateTgPoolAddress
		if err := pools.Lookup(rule.Pool+i, &a); err != nil {
			return nil, fmt.Errorf("read an outside address: %w", err)
		}
		list = append(list, netip.AddrFrom16(a.Addr).Unmap())
	}
	return list, nil
}
