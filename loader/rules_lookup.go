package loader

import (
	"math/bits"
	"net/netip"
)

// ruleMaps is what the data plane's lookups find; nil where there is nothing.
type ruleMaps interface {
	rule(tapgateTgRuleKey) (*tapgateTgRule, error)
	set(number uint32) (*tapgateTgPolicySet, error)
	our(netip.Addr) (*tapgateTgOurAddr, error)
}

// endpoints is struct tg_tuple.
type endpoints struct {
	src, dst     netip.Addr
	sport, dport uint16
	proto        uint8
}

// findForward is tg_find_forward of headers/rules.h: the forward that answers at
// t.dst, asked from an external zone, or nil.
func findForward(m ruleMaps, zone uint8, t endpoints) (*tapgateTgRule, error) {
	if t.proto != protoTCP && t.proto != protoUDP {
		return nil, nil
	}
	key := tapgateTgRuleKey{
		Prefixlen: bitsPort, Kind: uint8(tapgateTgRuleKindTG_RULE_FORWARD), A: zone, Proto: t.proto,
		Addr: t.dst.As16(), Port: bigEndian(t.dport),
	}
	r, err := forwardAt(m, key, t.src)
	if r != nil || err != nil {
		return r, err
	}
	ours, err := m.our(t.dst)
	if ours == nil || err != nil || ours.Zone != zone {
		return nil, err
	}
	key.B, key.Addr = familyOf(t.dst), [16]byte{}
	return forwardAt(m, key, t.src)
}

func forwardAt(m ruleMaps, key tapgateTgRuleKey, src netip.Addr) (*tapgateTgRule, error) {
	r, err := m.rule(key)
	if r == nil || err != nil || r.List == 0 {
		return r, err
	}
	listed, err := m.rule(hostKey(tapgateTgRuleKindTG_RULE_SOURCE, uint8(r.List), uint8(r.List>>8), src))
	if listed == nil {
		return nil, err
	}
	return r, err
}

// findMasquerade is tg_find_masquerade. excluded: there is one, but for t.dst.
func findMasquerade(m ruleMaps, from, to uint8, t endpoints) (r *tapgateTgRule, excluded bool, err error) {
	r, err = m.rule(hostKey(tapgateTgRuleKindTG_RULE_MASQUERADE, from, to, t.src))
	if r == nil || err != nil {
		return nil, false, err
	}
	not, err := m.rule(hostKey(tapgateTgRuleKindTG_RULE_EXCLUDE, 0, 0, t.dst))
	if not != nil {
		return nil, true, err
	}
	return r, false, err
}

// sourceOK is tg_source_ok: whether hosts of an internal zone may use src.
func sourceOK(m ruleMaps, zone uint8, src netip.Addr) (bool, error) {
	if src.Unmap().IsUnspecified() || src.Is6() && src.IsLinkLocalUnicast() {
		return true, nil
	}
	r, err := m.rule(hostKey(tapgateTgRuleKindTG_RULE_INSIDE, zone, 0, src))
	return r != nil, err
}

// decision is what a policy says.
type decision struct {
	number      uint32 // of its hit counter
	accept, log bool
}

// findPolicy is tg_find_policy: the first policy that matches between two zones, or nil.
func findPolicy(m ruleMaps, from, to uint8, t endpoints) (*decision, error) {
	match := policySet{}
	for i := range match {
		match[i] = ^uint64(0)
	}
	for _, key := range []tapgateTgRuleKey{
		{Prefixlen: bitsZones, Kind: uint8(tapgateTgRuleKindTG_RULE_POLICY_PAIR), A: from, B: to},
		{Prefixlen: bitsProto, Kind: uint8(tapgateTgRuleKindTG_RULE_POLICY_PROTO), Proto: t.proto},
		{Prefixlen: bitsPort, Kind: uint8(tapgateTgRuleKindTG_RULE_POLICY_PORT), Proto: t.proto, Port: bigEndian(t.dport)},
		hostKey(tapgateTgRuleKindTG_RULE_POLICY_SRC, 0, 0, t.src),
		hostKey(tapgateTgRuleKindTG_RULE_POLICY_DST, 0, 0, t.dst),
	} {
		r, err := m.rule(key)
		if r == nil || err != nil {
			return nil, err
		}
		s, err := m.set(r.Number)
		if s == nil || err != nil {
			return nil, err
		}
		for i := range match {
			match[i] &= s.Bits[i]
		}
	}
	for i, word := range match {
		if word != 0 {
			return decisionOf(m, i*64+bits.TrailingZeros64(word))
		}
	}
	return nil, nil
}

func decisionOf(m ruleMaps, policy int) (*decision, error) {
	var sets [3]tapgateTgPolicySet
	for i, number := range []uint32{setAccept, setLog, setNumbers + uint32(policy)/setNumbersEach} {
		s, err := m.set(number)
		if err != nil {
			return nil, err
		}
		if s != nil {
			sets[i] = *s
		}
	}
	holds := func(s tapgateTgPolicySet) bool { return s.Bits[policy/64]>>(policy%64)&1 != 0 }
	return &decision{
		number: uint32(sets[2].Bits[policy%setNumbersEach/4] >> (policy % 4 * 16) & 0xffff),
		accept: holds(sets[0]), log: holds(sets[1]),
	}, nil
}

// hostKey asks for the longest entry around one address.
func hostKey(kind tapgateTgRuleKind, a, b uint8, addr netip.Addr) tapgateTgRuleKey {
	addr = addr.Unmap()
	return addrKey(kind, a, b, netip.PrefixFrom(addr, addr.BitLen()))
}

// zoneDefault is what tg_judge says where no policy matches.
func zoneDefault(from, to Role) tapgateTgReason {
	if from == RoleInternal && (to == RoleExternal || to == RoleInternal) {
		return tapgateTgReasonTG_PASS_ALLOWED
	}
	return tapgateTgReasonTG_DROP_ZONE
}
