package loader

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// testOurs are addresses that both external zones have.
var testOurs = map[netip.Addr]tapgateTgOurAddr{
	netip.MustParseAddr("203.0.113.1"):      {Zone: 1},
	netip.MustParseAddr("203.0.113.3"):      {Zone: 2},
	netip.MustParseAddr("203.0.113.9"):      {Zone: 1},
	netip.MustParseAddr("2001:db8:ffff::1"): {Zone: 1},
	netip.MustParseAddr("2001:db8:ffff::4"): {Zone: 2},
}

// Linear answers from the configuration.

func containsAny(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// linearForward is the index of the forward that answers, or -1.
func linearForward(in ruleInput, zone uint8, t endpoints) int {
	ask := func(matches func(Forward) bool) int {
		best := -1
		for i, f := range in.nat.Forwards {
			number, _ := protoNumber(f.Proto)
			if in.zones[f.In] != zone || number != t.proto || f.To.Is4() != t.dst.Is4() || !matches(f) || t.dport < f.Ports.First || t.dport > f.Ports.Last {
				continue
			}
			if best < 0 || f.Ports.Last-f.Ports.First < in.nat.Forwards[best].Ports.Last-in.nat.Forwards[best].Ports.First {
				best = i
			}
		}
		if best >= 0 && (len(in.nat.Forwards[best].Sources) == 0 || containsAny(in.nat.Forwards[best].Sources, t.src)) {
			return best
		}
		return -1
	}
	if i := ask(func(f Forward) bool { return f.Address == t.dst }); i >= 0 {
		return i
	}
	if testOurs[t.dst].Zone != zone {
		return -1
	}
	return ask(func(f Forward) bool { return !f.Address.IsValid() })
}

// linearMasquerade is the index of the masquerade, or -1.
func linearMasquerade(in ruleInput, from, to uint8, t endpoints) int {
	best, longest := -1, -1
	for i, m := range in.nat.Masquerades {
		if in.zones[m.From] != from || in.zones[m.To] != to {
			continue
		}
		for _, p := range m.networks() {
			if p.Contains(t.src) && p.Bits() > longest {
				best, longest = i, p.Bits()
			}
		}
	}
	if containsAny(in.nat.Exclude, t.dst) {
		return -1
	}
	return best
}

// linearPolicy is the index of the policy, or -1.
func linearPolicy(in ruleInput, from, to uint8, t endpoints) int {
	return slices.IndexFunc(in.policies, func(p Policy) bool {
		number, _ := protoNumber(p.Proto)
		inPorts := slices.ContainsFunc(p.Ports, func(r PortRange) bool { return r.First <= t.dport && t.dport <= r.Last })
		return in.zones[p.From] == from && in.zones[p.To] == to && (p.Proto == "" || number == t.proto) &&
			(len(p.Sources) == 0 || containsAny(p.Sources, t.src)) &&
			(len(p.Destinations) == 0 || containsAny(p.Destinations, t.dst)) && (len(p.Ports) == 0 || inPorts)
	})
}

func linearSource(in ruleInput, zone uint8, src netip.Addr) bool {
	if src.IsUnspecified() || src.Is6() && src.IsLinkLocalUnicast() {
		return true
	}
	for name, list := range in.inside {
		if in.zones[name] == zone && containsAny(list, src) {
			return true
		}
	}
	return false
}

// ruleAnswers is all that the rules say of a packet; -1 or false for nothing.
type ruleAnswers struct {
	forward, masquerade, policy int // numbers of counters
	accept, source              bool
}

func linearAnswers(in ruleInput, from, to uint8, t endpoints) ruleAnswers {
	a := ruleAnswers{forward: -1, masquerade: -1, policy: -1, source: linearSource(in, from, t.src)}
	if i := linearForward(in, from, t); i >= 0 {
		a.forward = int(in.forwardNumber(in.nat.Forwards[i].Name))
	}
	if i := linearMasquerade(in, from, to, t); i >= 0 {
		a.masquerade = int(in.masqueradeNumber(masqueradeName(in.nat.Masquerades[i])))
	}
	if i := linearPolicy(in, from, to, t); i >= 0 {
		a.policy = int(in.policyNumber(policyName(i, in.policies[i])))
		a.accept = in.policies[i].Accept
	}
	return a
}

func mapAnswers(t *testing.T, m ruleMaps, from, to uint8, e endpoints) ruleAnswers {
	t.Helper()
	a := ruleAnswers{forward: -1, masquerade: -1, policy: -1}
	forward, err1 := findForward(m, from, e)
	if forward != nil {
		a.forward = int(forward.Number)
	}
	masquerade, _, err2 := findMasquerade(m, from, to, e)
	if masquerade != nil {
		a.masquerade = int(masquerade.Number)
	}
	policy, err3 := findPolicy(m, from, to, e)
	if policy != nil {
		a.policy, a.accept = int(policy.number), policy.accept
	}
	source, err4 := sourceOK(m, from, e.src)
	a.source = source
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// told are the policies that are spoken of.
func (in ruleInput) told(answers ...ruleAnswers) (text string) {
	for i, p := range in.policies {
		number := int(in.policyNumber(policyName(i, p)))
		if slices.ContainsFunc(answers, func(a ruleAnswers) bool { return a.policy == number }) {
			text += fmt.Sprintf("\n%d: %+v", number, p)
		}
	}
	return text
}

func (e endpoints) String() string {
	return fmt.Sprintf("%s:%d > %s:%d proto %d", e.src, e.sport, e.dst, e.dport, e.proto)
}

// seen counts answers, so that a test that met nothing fails.
type seen struct{ forwards, masquerades, policies, accepts, sources, asked int }

func (s *seen) add(a ruleAnswers) {
	s.asked++
	for n, hit := range map[*int]bool{&s.forwards: a.forward >= 0, &s.masquerades: a.masquerade >= 0, &s.policies: a.policy >= 0, &s.accepts: a.accept, &s.sources: a.source} {
		if hit {
			*n++
		}
	}
}

func (s *seen) enough(t *testing.T) {
	t.Helper()
	t.Logf("%+v", *s)
	for _, n := range []int{s.forwards, s.masquerades, s.policies, s.accepts, s.sources} {
		if n*100 < s.asked {
			t.Errorf("less than one in a hundred: the dice are bad")
		}
	}
}
