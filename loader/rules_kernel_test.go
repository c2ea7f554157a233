package loader

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"
)

var ruleSteps = []string{"tg_find_forward", "tg_find_masquerade", "tg_source_ok", "tg_judge"}

// The programs say of packets and rules what a look at each rule says.
func TestRulesInKernel(t *testing.T) {
	r := newGateRig(t, ruleSteps...)
	for a, o := range testOurs {
		if err := r.maps["tg_ours"].Put(tapgateTgOursKey{Addr: a.As16()}, o); err != nil {
			t.Fatal(err)
		}
	}
	d := newRuleDice(t)
	var s seen
	for range 30 {
		in := d.config(t)
		rules, err := buildRules(in)
		if err != nil {
			t.Fatal(err)
		}
		r.fill(rules)
		for range 150 {
			from, to, e := d.question(in)
			want := linearAnswers(in, from, to, e)
			s.add(want)
			if got := r.answers(in, from, to, e); got != want {
				t.Fatalf("from %d to %d: %s\nthe programs say %+v\none by one       %+v\nof %+v%s", from, to, e, got, want, in.nat, in.told(got, want))
			}
		}
	}
	s.enough(t)
}

func (r *gateRig) answers(in ruleInput, from, to uint8, e endpoints) ruleAnswers {
	r.Helper()
	a := ruleAnswers{forward: -1, masquerade: -1, policy: -1}
	r.packet(from, to, e)
	if r.run("tg_find_forward") != 0 {
		a.forward = int(r.get32("rule.number"))
	}
	r.packet(from, to, e)
	if r.run("tg_find_masquerade") != 0 {
		a.masquerade = int(r.get32("rule.number"))
	}
	r.packet(from, to, e)
	a.source = r.run("tg_source_ok") != 0
	r.packet(from, to, e)
	verdict := tapgateTgReason(r.run("tg_judge"))
	a.policy = int(r.get32("policy")) - 1
	if a.policy >= 0 {
		a.accept = verdict == tapgateTgReasonTG_PASS_ALLOWED
		if !a.accept && verdict != tapgateTgReasonTG_DROP_POLICY {
			r.Fatalf("policy %d: verdict %d", a.policy, verdict)
		}
	} else if want := zoneDefault(ruleZones[from].Role, ruleZones[to].Role); verdict != want {
		r.Fatalf("from %v to %v: verdict %d, want %d", ruleZones[from], ruleZones[to], verdict, want)
	}
	return a
}

// Without policies, by role of the zones: rows from, columns to.
func TestZoneDefaults(t *testing.T) {
	r := newGateRig(t, "tg_judge")
	roles := []Role{"", RoleExternal, RoleInternal, RoleDMZ, RoleMgmt}
	pass := map[[2]Role]bool{{RoleInternal, RoleExternal}: true, {RoleInternal, RoleInternal}: true}
	e := endpoints{src: netip.MustParseAddr("192.0.2.1"), dst: netip.MustParseAddr("192.0.2.2"), proto: protoTCP}
	for _, from := range roles {
		for _, to := range roles {
			r.packet(1, 2, e)
			r.set32("from_role", uint32(roleNumber(from)))
			r.set32("to_role", uint32(roleNumber(to)))
			want := tapgateTgReasonTG_DROP_ZONE
			if pass[[2]Role{from, to}] {
				want = tapgateTgReasonTG_PASS_ALLOWED
			}
			if got := tapgateTgReason(r.run("tg_judge")); got != want {
				t.Errorf("from %q to %q: %d, want %d", from, to, got, want)
			}
		}
	}
}

// The source of an ICMP error is the packet's own, not that of the flow that it is about.
func TestSourceOfErrors(t *testing.T) {
	r := newGateRig(t, "tg_source_ok")
	rules, err := buildRules(ruleTestInput(nil))
	if err != nil {
		t.Fatal(err)
	}
	r.fill(rules)
	for _, c := range []struct {
		src  string
		want int
	}{
		{"192.168.3.77", 1}, {"10.3.255.1", 1}, {"192.168.4.1", 0}, {"203.0.113.1", 0}, {"0.0.0.0", 1},
		{"2001:db8:3::77", 1}, {"2001:db8:4::77", 0}, {"fe80::77", 1}, {"::", 1}, {"::ffff:192.168.3.77", 0},
	} {
		src := netip.MustParseAddr(c.src)
		flow, inside := "203.0.113.1", "192.168.3.3"
		at := 14 + 12
		if src.Is6() {
			flow, inside, at = "2001:db8:ffff::1", "2001:db8:3::3", 14+8
		}
		for _, e := range []endpoints{
			{src: netip.MustParseAddr(inside), dst: netip.MustParseAddr(flow), proto: protoTCP},
			{src: netip.MustParseAddr(flow), dst: netip.MustParseAddr(inside), proto: protoTCP},
		} {
			r.packet(3, 1, e)
			r.set32("kind", uint32(tapgateTgKindTG_KIND_ERROR))
			r.set32("l3", 14)
			clear(r.frame[14:])
			copy(r.frame[at:], src.AsSlice())
			if got := r.run("tg_source_ok"); got != c.want {
				t.Errorf("error from %s about %v: %d, want %d", src, e, got, c.want)
			}
		}
	}
}

// Limits admit a second's worth at once, and then their rate.
func TestForwardLimits(t *testing.T) {
	r := newGateRig(t, "tg_forward_rate_ok")
	number := uint32(0)
	for _, c := range []struct {
		name            string
		rate, remote    uint32
		remotes         []string
		atOnce, in500ms int
	}{
		{"in all", 100, 0, []string{"198.51.100.1", "198.51.100.2"}, 100, 50},
		{"of each", 0, 100, []string{"198.51.100.1", "198.51.100.2"}, 200, 100},
		{"of each IPv6 network", 0, 100, []string{"2001:db8:1::1", "2001:db8:1::ffff", "2001:db8:1:1::1"}, 200, 100},
		{"both", 30, 20, []string{"198.51.100.1", "198.51.100.2"}, 30, 15},
		{"both, one remote", 30, 20, []string{"198.51.100.1"}, 20, 10},
		{"one", 1, 0, []string{"198.51.100.1"}, 1, 0},
		{"none", 0, 0, []string{"198.51.100.1"}, 600, 600},
	} {
		t.Run(c.name, func(t *testing.T) {
			number++
			for _, at := range []struct {
				now  time.Duration
				want int
			}{{time.Hour, c.atOnce}, {time.Hour + 500*time.Millisecond, c.in500ms}, {2 * time.Hour, c.atOnce}} {
				admitted := 0
				for i := range 600 {
					src := netip.MustParseAddr(c.remotes[i%len(c.remotes)])
					r.packet(1, 3, endpoints{src: src, dst: src, proto: protoTCP})
					r.set32("rule.number", number)
					r.set32("rule.rate", c.rate)
					r.set32("rule.rate_remote", c.remote)
					r.now(at.now)
					admitted += r.run("tg_forward_rate_ok")
				}
				if admitted != at.want {
					t.Errorf("%d of 600 admitted at %v, want %d", admitted, at.now, at.want)
				}
			}
		})
	}
}

// What a policy drops is counted, and logged so often at most.
func TestPolicyLog(t *testing.T) {
	r := newGateRig(t, "tg_judge")
	rules, err := buildRules(ruleTestInput(nil,
		Policy{From: "lan", To: "wan", Proto: "tcp", Ports: []PortRange{{25, 25}}, Log: true},
		Policy{From: "lan", To: "wan", Proto: "udp"}))
	if err != nil {
		t.Fatal(err)
	}
	r.fill(rules)
	events, err := ringbuf.NewReader(r.maps["tg_events"])
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	e := endpoints{src: netip.MustParseAddr("192.168.3.3"), dst: netip.MustParseAddr("203.0.113.9"), sport: 4711, dport: 25, proto: protoTCP}
	silent := e
	silent.proto = protoUDP
	logged := 0
	for n, now := range []time.Duration{time.Hour, time.Hour + 5*time.Second} {
		for range 200 {
			for _, e := range []endpoints{e, silent} {
				r.packet(3, 1, e)
				r.set32("ifindex_in", 13)
				r.set32("ifindex_out", 10)
				r.now(now)
				if got := tapgateTgReason(r.run("tg_judge")); got != tapgateTgReasonTG_DROP_POLICY {
					t.Fatalf("verdict %d", got)
				}
			}
		}
		logged += 100 >> n // 10 a second, 100 at once
	}
	want := tapgateTgEvent{
		When: uint64(time.Hour), IfindexIn: 13, IfindexOut: 10, Reason: uint32(tapgateTgReasonTG_DROP_POLICY), Policy: 301,
		Tuple: tapgateTgTuple{Src: e.src.As16(), Dst: e.dst.As16(), Sport: bigEndian(4711), Dport: bigEndian(25), Proto: protoTCP},
	}
	events.SetDeadline(time.Now())
	for i := range logged {
		record, err := events.Read()
		if err != nil {
			t.Fatalf("%d log entries, want %d: %v", i, logged, err)
		}
		var got tapgateTgEvent
		if _, err := binary.Decode(record.RawSample, binary.NativeEndian, &got); err != nil {
			t.Fatal(err)
		}
		if i < 100 && got != want {
			t.Fatalf("log entry %+v, want %+v", got, want)
		}
	}
	if _, err := events.Read(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("more than %d log entries: %v", logged, err)
	}
	for number, want := range map[uint32]tapgateTgHit{300: {Flows: 400, Last: uint64(time.Hour + 5*time.Second)}, 301: {Flows: 400, Last: uint64(time.Hour + 5*time.Second)}, 302: {}} {
		var hits []tapgateTgHit
		if err := r.maps["tg_hits"].Lookup(number, &hits); err != nil || hits[r.cpu] != want {
			t.Errorf("hits of %d: %+v, want %+v; %v", number, hits[r.cpu], want, err)
		}
	}
}
