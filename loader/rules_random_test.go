package loader

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// ruleDice throws configurations and packets that meet often.
type ruleDice struct{ *rand.Rand }

// newRuleDice says its seed; TAPGATE_SEED repeats a run.
func newRuleDice(t *testing.T) ruleDice {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("TAPGATE_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("TAPGATE_SEED=%d", seed)
	return ruleDice{rand.New(rand.NewPCG(seed, 0))}
}

func pick[T any](d ruleDice, from ...T) T { return from[d.IntN(len(from))] }

// addr is of the inside networks or beyond, ours included.
func (d ruleDice) addr(family uint8) netip.Addr {
	low := byte(pick(d, 1, 2, 3, 4, 9, 128, d.IntN(256)))
	if family == 4 {
		return netip.AddrFrom4([4]byte(append(pick(d, []byte{192, 168, 3}, []byte{192, 168, 4}, []byte{10, 3, 7}, []byte{10, 3, 8}, []byte{203, 0, 113}, []byte{198, 51, 100}, []byte{0, 0, 0}), low)))
	}
	a := netip.MustParseAddr(pick(d, "2001:db8:3::", "2001:db8:4::", "2001:db8:3:8::", "2001:db8:ffff::", "2001:db8:ffff:8000::", "::", "fe80::")).As16()
	a[14], a[15] = byte(d.IntN(2)), low
	return netip.AddrFrom16(a)
}

func (d ruleDice) prefix(family uint8) netip.Prefix {
	a := d.addr(family)
	bits := pick(d, 0, 8, 16, 24, 25, 30, 31, 32, d.IntN(33))
	if family == 6 {
		bits = pick(d, 0, 16, 32, 48, 64, 120, 127, 128, d.IntN(129))
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func (d ruleDice) prefixes(family uint8, most int) (list []netip.Prefix) {
	for range d.IntN(most + 1) {
		f := family
		if f == 0 {
			f = pick[uint8](d, 4, 6)
		}
		if p := d.prefix(f); !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

func (d ruleDice) port() uint16 {
	return uint16(pick(d, 1, 80, 443, 1024, 7000, 7005, 7010, 65535, 1+d.IntN(65535), 7000+d.IntN(12)))
}

func (d ruleDice) ports() PortRange {
	r := PortRange{d.port(), d.port()}
	if r.First > r.Last {
		r.First, r.Last = r.Last, r.First
	}
	if d.IntN(3) == 0 {
		r.Last = r.First
	}
	return r
}

func (d ruleDice) forward(i int) Forward {
	family := pick[uint8](d, 4, 6)
	f := Forward{
		Name: fmt.Sprintf("f%d", i), In: pick(d, "wan", "wan", "wan2"), Proto: pick(d, "tcp", "udp"), Ports: d.ports(), ToPort: 1,
		To: netip.MustParseAddr("192.168.3.3"), Sources: d.prefixes(family, 2), Rate: uint32(d.IntN(3)),
	}
	if family == 6 {
		f.To = netip.MustParseAddr("2001:db8:4::9")
	}
	if d.IntN(2) == 0 {
		f.Address = netip.MustParseAddr(pick(d, "203.0.113.1", "203.0.113.2"))
		if family == 6 {
			f.Address = netip.MustParseAddr("2001:db8:ffff::1")
		}
	}
	return f
}

func (d ruleDice) masquerade(i int) Masquerade {
	m := Masquerade{Name: fmt.Sprintf("m%d", i), From: pick(d, "lan", "lab", "mgmt"), To: pick(d, "wan", "wan2"), IPv6: d.IntN(2) == 0}
	m.Sources = d.prefixes(4, 2)
	if m.IPv6 {
		m.Sources = append(m.Sources, d.prefixes(6, 2)...)
	}
	return m
}

func (d ruleDice) policy() Policy {
	zones := []string{"wan", "wan2", "lan", "lab", "mgmt"}
	p := Policy{
		From: pick(d, zones...), To: pick(d, zones...), Proto: pick(d, "", "", "tcp", "tcp", "udp", "icmp", "icmpv6", "47"),
		Sources: d.prefixes(0, 2), Destinations: d.prefixes(0, 3), Accept: d.IntN(2) == 0,
	}
	if p.Proto == "tcp" || p.Proto == "udp" {
		for range d.IntN(3) {
			p.Ports = append(p.Ports, d.ports())
		}
	}
	return p
}

// config leaves out what buildRules would refuse, as far as it looks at one rule.
// What it says of rules that do not go together is compared.
func (d ruleDice) config(t *testing.T) ruleInput {
	nat := &NAT{Exclude: d.prefixes(0, 3)}
	for i := range d.IntN(8) {
		f := d.forward(i)
		if i := slices.IndexFunc(nat.Forwards, func(o Forward) bool { return clash(o, f) }); i >= 0 {
			in := ruleTestInput(&NAT{Forwards: []Forward{nat.Forwards[i], f}})
			if _, err := buildRules(in); err == nil {
				t.Fatalf("not refused: %+v beside %+v", f, nat.Forwards[i])
			}
			continue
		}
		nat.Forwards = append(nat.Forwards, f)
	}
	for i := range d.IntN(5) {
		m := d.masquerade(i)
		same := func(o Masquerade) bool {
			return o.From == m.From && o.To == m.To && slices.ContainsFunc(m.networks(), func(p netip.Prefix) bool { return slices.Contains(o.networks(), p) })
		}
		if !slices.ContainsFunc(nat.Masquerades, same) {
			nat.Masquerades = append(nat.Masquerades, m)
		}
	}
	var policies []Policy
	for range pick(d, 0, 1, 5, 20, 100, 300) {
		if p := d.policy(); d.policyPossible(p) {
			policies = append(policies, p)
		}
	}
	return ruleTestInput(nat, policies...)
}

func (d ruleDice) policyPossible(p Policy) bool {
	_, err := buildRules(ruleTestInput(nil, p))
	return err == nil
}

// clash: neither forward is more specific than the other.
func clash(a, b Forward) bool {
	if a.In != b.In || a.Proto != b.Proto || a.Address != b.Address || a.To.Is4() != b.To.Is4() {
		return false
	}
	apart := a.Ports.Last < b.Ports.First || b.Ports.Last < a.Ports.First
	within := func(x, y PortRange) bool { return x != y && x.First >= y.First && x.Last <= y.Last }
	return !apart && !within(a.Ports, b.Ports) && !within(b.Ports, a.Ports)
}

func (m Masquerade) networks() []netip.Prefix {
	if len(m.Sources) > 0 {
		return m.Sources
	}
	if m.IPv6 {
		return []netip.Prefix{anyIPv4, anyIPv6}
	}
	return []netip.Prefix{anyIPv4}
}

// question is a packet between two zones: any, or one that a rule may be about.
func (d ruleDice) question(in ruleInput) (from, to uint8, e endpoints) {
	family := pick[uint8](d, 4, 6)
	from, to = uint8(1+d.IntN(5)), uint8(1+d.IntN(5))
	e = endpoints{
		src: d.addr(family), dst: d.addr(family), sport: d.port(), dport: d.port(),
		proto: pick[uint8](d, protoTCP, protoTCP, protoUDP, 1, 58, 47, 132),
	}
	switch d.IntN(3) {
	case 0:
		if len(in.nat.Forwards) == 0 {
			break
		}
		f := pick(d, in.nat.Forwards...)
		from = in.zones[f.In]
		e.proto, _ = protoNumber(f.Proto)
		e.dport = f.Ports.First + uint16(d.IntN(int(f.Ports.Last-f.Ports.First)+1))
		if e.dst = f.Address; !e.dst.IsValid() {
			e.dst = netip.MustParseAddr(pick(d, "203.0.113.1", "203.0.113.3", "203.0.113.9"))
			if f.To.Is6() {
				e.dst = netip.MustParseAddr(pick(d, "2001:db8:ffff::1", "2001:db8:ffff::4"))
			}
		}
		for e.src.Is4() != e.dst.Is4() {
			e.src = d.addr(familyOf(e.dst))
		}
	case 1:
		if len(in.nat.Masquerades) == 0 {
			break
		}
		m := pick(d, in.nat.Masquerades...)
		from, to = in.zones[m.From], in.zones[m.To]
	}
	return from, to, e
}

// The maps of random configurations say what a look at each rule says.
func TestRulesRandom(t *testing.T) {
	d := newRuleDice(t)
	var s seen
	for range 100 {
		in := d.config(t)
		r, err := buildRules(in)
		if err != nil {
			t.Fatal(err)
		}
		for key := range r.rules {
			if key != maskedKey(key) || key.Prefixlen < bitsZones {
				t.Fatalf("key %+v has bits behind its length", key)
			}
		}
		m := memoryMaps{r, testOurs}
		for range 200 {
			from, to, e := d.question(in)
			got, want := mapAnswers(t, m, from, to, e), linearAnswers(in, from, to, e)
			s.add(want)
			if got != want {
				t.Fatalf("from %d to %d: %s\nthe maps say %+v\none by one   %+v\nof %+v%s", from, to, e, got, want, in.nat, in.told(got, want))
			}
		}
	}
	s.enough(t)
}
