package loader

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// forward is a Forward with its place in the configuration and in the keys.
type forward struct {
	Forward
	path string
	key  tapgateTgRuleKey // without port
	rule tapgateTgRule
}

// forwards enters the port forwards: exact outside addresses, and "any of ours"
// with the family where exact ones have 0. Where the ports of one lie within
// those of another, the narrower counts; all other overlaps are refused.
func (b *ruleBuilder) forwards() {
	names := map[string]bool{}
	groups := map[tapgateTgRuleKey][]forward{}
	for i, f := range b.nat.Forwards {
		path := fmt.Sprintf("nat.forwards[%d]", i)
		b.checkRuleName(path+".name", "forward", f.Name, false, names)
		if made, ok := b.forward(path, f); ok {
			groups[made.key] = append(groups[made.key], made)
		}
	}
	for _, group := range groups {
		b.forwardGroup(group)
	}
}

// forward checks one by itself.
func (b *ruleBuilder) forward(path string, f Forward) (forward, bool) {
	before := len(b.errs)
	in, _ := b.zone(path+".in", f.In, RoleExternal)
	f.Address, f.To = f.Address.Unmap(), f.To.Unmap()
	proto, known := map[string]uint8{"tcp": protoTCP, "udp": protoUDP}[f.Proto]
	if !known {
		b.fail(path+".proto", "protocol %q: forwards are for tcp or udp", f.Proto)
	}
	if b.checkRange(path+".port", f.Ports) {
		switch last := int(f.ToPort) + int(f.Ports.Last-f.Ports.First); {
		case f.ToPort == 0:
			b.fail(path+".to", "no port given: write ADDRESS:PORT")
		case last > 65535:
			b.fail(path+".to", "ports %s become %d-%d there, and 65535 is the last", f.Ports, f.ToPort, last)
		}
	}
	b.checkForwardTo(path+".to", f)
	if a := f.Address; a.IsValid() {
		switch {
		case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Zone() != "":
			b.fail(path+".address", "%s cannot be an outside address; without one, every address of zone %q counts", a, f.In)
		case f.To.IsValid() && familyOf(a) != familyOf(f.To):
			b.fail(path+".address", "%s and %s are not of one IP version, and tapgate does not translate between them", a, f.To)
		case b.zoneInside(a) != "":
			b.fail(path+".address", "%s belongs to internal zone %q: give an address of this machine in zone %q", a, b.zoneInside(a), f.In)
		}
	}
	for _, rate := range []struct {
		at    string
		value uint32
	}{{"rate", f.Rate}, {"per_remote", f.RateHost}} {
		if rate.value > limitRate {
			b.fail(path+".limit."+rate.at, "%d new flows a second is no limit: give up to %d, or leave it out", rate.value, limitRate)
		}
	}
	r := tapgateTgRule{
		Number: b.checkNumber(path, f.Name, b.forwardNumber(f.Name)), List: b.sourceList(path+".sources", f.Sources),
		Addr: f.To.As16(), First: f.Ports.First, To: f.ToPort,
		Zone: uint16(b.zones[b.zoneInside(f.To)]), Rate: f.Rate, RateRemote: f.RateHost,
	}
	if b.nat.ClampMSS {
		r.Flags |= masqClampMSS
	}
	key := tapgateTgRuleKey{Kind: uint8(tapgateTgRuleKindTG_RULE_FORWARD), A: in, Proto: proto}
	if f.Address.IsValid() {
		key.Addr = f.Address.As16()
	} else {
		key.B = familyOf(f.To)
	}
	return forward{Forward: f, path: path, key: key, rule: r}, len(b.errs) == before
}

// checkForwardTo: the inside address must be one that an internal zone reaches.
func (b *ruleBuilder) checkForwardTo(path string, f Forward) {
	switch to := f.To; {
	case !to.IsValid():
		b.fail(path, "no inside address given: write ADDRESS:PORT")
	case to.IsUnspecified() || to.IsMulticast() || to.IsLoopback() || to.IsLinkLocalUnicast() || to.Zone() != "":
		b.fail(path, "%s cannot be forwarded to: give the address of an inside host", to)
	case b.zoneInside(to) == "":
		b.fail(path, "%s is in no internal zone (%s): correct it, or add its network to the zone's prefixes", to, b.insideList())
	}
	for i, p := range f.Sources {
		if p.IsValid() && f.To.IsValid() && familyOf(p.Addr()) != familyOf(f.To) {
			b.fail(strings.TrimSuffix(path, "to")+fmt.Sprintf("sources[%d]", i), "%s is not of the IP version of %s: nobody could come from there", p, f.To)
		}
	}
}

// zoneInside is the internal zone that an address belongs to, or "".
func (b *ruleBuilder) zoneInside(a netip.Addr) (zone string) {
	longest := -1
	for name, prefixes := range b.inside {
		for _, p := range prefixes {
			if p = unmapPrefix(p); p.Contains(a) && p.Bits() > longest {
				zone, longest = name, p.Bits()
			}
		}
	}
	return zone
}

func (b *ruleBuilder) insideList() string {
	var list []string
	for name, prefixes := range b.inside {
		var networks []string
		for _, p := range prefixes {
			if p = unmapPrefix(p); !p.Addr().IsLinkLocalUnicast() {
				networks = append(networks, p.Masked().String())
			}
		}
		list = append(list, strings.TrimSpace(name+" "+strings.Join(networks, " ")))
	}
	slices.Sort(list)
	if list == nil {
		return "there is none"
	}
	return strings.Join(list, ", ")
}

// sourceList gives the number of a list of networks; equal lists are one. 0 is everybody.
func (b *ruleBuilder) sourceList(path string, sources []netip.Prefix) uint32 {
	list := b.checkPrefixes(path, sources)
	if len(list) == 0 {
		return 0
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	content := fmt.Sprint(list)
	if number, known := b.lists[content]; known {
		return number
	}
	number := uint32(len(b.lists) + 1)
	if number > limitLists {
		b.fail(path, "more than %d lists of sources", limitLists)
		return 0
	}
	b.lists[content] = number
	for _, p := range list {
		b.out.rules[addrKey(tapgateTgRuleKindTG_RULE_SOURCE, uint8(number), uint8(number>>8), p)] = tapgateTgRule{}
	}
	return number
}

// forwardGroup enters forwards that are asked at the same place. Their ports are
// cut where any range begins or ends, and each piece is the narrowest forward's around it: so no
// block of a wide range is as long as one of a narrow range within it.
func (b *ruleBuilder) forwardGroup(group []forward) {
	slices.SortStableFunc(group, func(x, y forward) int {
		return cmp.Or(cmp.Compare(x.Ports.First, y.Ports.First), cmp.Compare(y.Ports.Last, x.Ports.Last))
	})
	if !b.nested(group) {
		return
	}
	var cuts []int
	for _, f := range group {
		cuts = append(cuts, int(f.Ports.First), int(f.Ports.Last)+1)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var around []forward // the narrowest last
	for i, cut := range cuts[:len(cuts)-1] {
		for len(around) > 0 && int(around[len(around)-1].Ports.Last) < cut {
			around = around[:len(around)-1]
		}
		for len(group) > 0 && int(group[0].Ports.First) == cut {
			around, group = append(around, group[0]), group[1:]
		}
		if len(around) > 0 {
			b.enterForward(around[len(around)-1], PortRange{uint16(cut), uint16(cuts[i+1] - 1)})
		}
	}
}

func (b *ruleBuilder) enterForward(f forward, ports PortRange) {
	for _, p := range portPrefixes(ports) {
		key := f.key
		key.Prefixlen, key.Port = uint32(bitsAddr+p.bits), bigEndian(p.port)
		b.out.rules[key] = f.rule
	}
}

// nested refuses ranges of which neither lies within the other. The group is
// sorted by where ranges begin, the wider first.
func (b *ruleBuilder) nested(group []forward) bool {
	good := true
	var around []forward // those that the next one may lie in, the narrowest last
	for _, f := range group {
		for len(around) > 0 && around[len(around)-1].Ports.Last < f.Ports.First {
			around = around[:len(around)-1]
		}
		if len(around) > 0 {
			if outer := around[len(around)-1]; f.Ports == outer.Ports || f.Ports.Last > outer.Ports.Last {
				b.fail(f.path+".port", "forward %q has %s %s, which forward %q has too (%s): give one of them other ports or another address",
					f.Name, f.Proto, f.Ports, outer.Name, outer.Ports)
				good = false
			}
		}
		around = append(around, f)
	}
	return good
}
