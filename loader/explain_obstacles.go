package loader

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What stands in a packet's way beside the rules in force: the host's own firewall,
// a full table, a neighbour that does not answer, a host that does not forward.

// hostFirewall asks the host's own rules, which judge the packet between the route
// and where it leaves. Only what is certain is a verdict.
func (e *explainer) hostFirewall() (done bool) {
	rules, steps := readHostRules(), hostSteps
	p := &hostPacket{
		v6: e.packet.src.Is6(), in: e.out.From.Interface, out: e.out.Way.Interface, state: "new",
		src: []hostSpan{{e.packet.src, e.packet.src}}, dst: []hostSpan{{e.packet.dst, e.packet.dst}},
		proto: hostProto(e.packet.proto), dports: PortRange{e.packet.dport, e.packet.dport},
	}
	finder := &hostFinder{rules: rules}
	for _, c := range baseChains(rules.tables, "filter", "forward", p.v6) {
		hit, drops := finalDrop(c.walk(p, &steps))
		if !drops || steps < 0 {
			continue
		}
		h := finder.describe(hit)
		if !h.Certain {
			e.step("firewall", "%s may drop it (%s: %s): whether it does depends on what cannot be known here", h.By, h.Where, h.Rule)
			continue
		}
		e.end(verdictDrop, "kernel_firewall", "the host's own firewall: %s drops it (%s: %s); \"tapgate check -f FILE\" prints the command that lets it through", h.By, h.Where, h.Rule)
		return true
	}
	for _, u := range rules.unseen {
		e.step("firewall", "%s", u)
	}
	return false
}

// hostProto is a protocol as conditions of the host's rules name it.
func hostProto(proto uint8) string {
	switch proto {
	case protoTCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	}
	return fmt.Sprint(proto)
}

// forwardsOff says that the host does not forward what comes in there, and by which setting.
func (e *explainer) forwardsOff() string {
	keys := []string{sysctlForward4, "net/ipv4/conf/" + e.out.From.Interface + "/forwarding"}
	if e.packet.dst.Is6() {
		keys = []string{sysctlForward6, "net/ipv6/conf/" + e.out.From.Interface + "/forwarding"}
	}
	for _, key := range keys {
		if now, err := readSysctl(sysctlRoot + key); err == nil && now == "0" {
			return fmt.Sprintf("%s is 0", strings.ReplaceAll(key, "/", "."))
		}
	}
	return ""
}

// filteredBack says whether the reverse path filter keeps the packet out: the kernel
// does not tell that from other sources that it takes for impossible.
func (e *explainer) filteredBack() bool {
	const strict, loose = "1", "2"
	mode := "0"
	for _, name := range []string{"all", e.out.From.Interface} {
		if now, err := readSysctl(sysctlRoot + "net/ipv4/conf/" + name + "/rp_filter"); err == nil {
			mode = max(mode, now)
		}
	}
	routes, err := netlink.RouteGet(e.packet.src.AsSlice())
	routed := err == nil && len(routes) > 0
	return mode == loose && !routed || mode == strict && (!routed || e.interfaceName(routes[0].LinkIndex) != e.out.From.Interface)
}

// neighbour tells when the next hop has not answered of late.
func (e *explainer) neighbour(ifindex int) {
	hop := e.packet.dst
	if e.out.Way.Nexthop != "" {
		hop, _ = netip.ParseAddr(e.out.Way.Nexthop)
	}
	list, err := netlink.NeighList(ifindex, netlink.FAMILY_ALL)
	if err != nil {
		return // it only adds to what is told anyhow
	}
	silent := slices.ContainsFunc(list, func(n netlink.Neigh) bool {
		ip, ok := netip.AddrFromSlice(n.IP)
		return ok && ip.Unmap() == hop && n.State&(unix.NUD_FAILED|unix.NUD_INCOMPLETE) != 0
	})
	if silent {
		e.step("neighbour", "%s does not answer on %s (\"ip neigh show %s\"): the packet goes nowhere until it does", hop, e.out.Way.Interface, hop)
	}
}

// room says whether the table has a place for the new flow of an inside host.
func (e *explainer) room(inside netip.Addr) error {
	var table tapgateTgTableState
	var setting tapgateTgSetting
	if err := e.g.maps[tapgateMapTgTable].Lookup(uint32(0), &table); err != nil {
		return fmt.Errorf("read the flow table's account: %w", err)
	}
	if err := e.g.maps[tapgateMapTgSettings].Lookup(e.g.slot, &setting); err != nil {
		return fmt.Errorf("read the settings in force: %w", err)
	}
	if table.Flows >= setting.MaxFlows {
		e.endFor(tapgateTgReasonTG_DROP_TABLE_FULL, "the flow table is full: %d flows of %d (nat: max_flows)", table.Flows, setting.MaxFlows)
		return nil
	}
	if e.out.Forward != nil {
		return nil // the outside began it: it is not the inside host's share
	}
	host, err := lookup[tapgateTgHost](e.g.maps[tapgateMapTgHosts], tapgateTgHostKey{Addr: inside.As16()})
	if host != nil && host.Flows >= setting.MaxPerHost {
		e.endFor(tapgateTgReasonTG_DROP_TABLE_FULL, "%s has %d flows, and one host may have %d (nat: max_flows_per_host)", inside, host.Flows, setting.MaxPerHost)
	}
	return err
}

// nearForward names a forward that would answer were it not for one thing.
func (e *explainer) nearForward(zone uint8) (text string, err error) {
	for _, proto := range []uint8{protoTCP, unix.IPPROTO_UDP} {
		t := e.packet
		t.proto = proto
		r, err := findForward(anySource{e.rules}, zone, t)
		if err != nil {
			return "", err
		}
		if r == nil {
			continue
		}
		var not []string
		if proto != e.packet.proto {
			not = append(not, "is for "+flowProtoName(proto))
		}
		if listed, err := findForward(e.rules, zone, t); err == nil && listed == nil {
			not = append(not, fmt.Sprintf("has sources, and %s is none of them", t.src))
		}
		return fmt.Sprintf("%s has this port, but %s", e.names.rules[r.Number+1], strings.Join(not, " and ")), nil
	}
	return "", nil
}

// anySource has forwards answer whoever asks.
type anySource struct{ kernelRules }

func (a anySource) rule(key tapgateTgRuleKey) (*tapgateTgRule, error) {
	if key.Kind == uint8(tapgateTgRuleKindTG_RULE_SOURCE) {
		return &tapgateTgRule{}, nil
	}
	return a.kernelRules.rule(key)
}
