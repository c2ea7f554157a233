package e2e

import (
	"bytes"
	bin "encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"tapgate/loader"
	"tapgate/test/maptypes"
)

// element is an element of a pinned map, whose members are found by name in the
// types that the kernel keeps with the map.
type element struct {
	key, value []byte
	members    map[string]maptypes.Member
}

func (e element) number(name string) uint64 {
	m := e.members[name]
	switch b := e.value[m.At:]; m.Size {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(bin.NativeEndian.Uint16(b))
	case 4:
		return uint64(bin.NativeEndian.Uint32(b))
	case 8:
		return bin.NativeEndian.Uint64(b)
	}
	panic("no number " + name)
}

func (e element) bytes(name string) []byte {
	m := e.members[name]
	return e.value[m.At : m.At+m.Size]
}

// Keys of flows and bindings: struct tg_tuple and tg_endpoint of abi_gate.h.
func endpointAt(b []byte, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])).Unmap(), bin.BigEndian.Uint16(b[port:]))
}

func tupleText(k []byte) string {
	return fmt.Sprintf("%s > %s proto %d", endpointAt(k, 32), endpointAt(k[16:], 34-16), k[36])
}

func bindingText(k []byte) string {
	return fmt.Sprintf("%s proto %d side %d", endpointAt(k, 16), k[18], k[19])
}

// flowTable is everything that the gateway keeps of its flows, as it stands in
// the pinned maps.
type flowTable struct {
	sessions, bindings, remotes, hosts map[string]element
	account                            element
}

// readTable reads the maps, not at one moment.
func (g *gate) readTable() *flowTable {
	g.t.Helper()
	read := func(name, value string) map[string]element {
		g.t.Helper()
		all, err := readElements(filepath.Join(g.stateDir(), "maps", name), value)
		if err != nil {
			g.t.Fatalf("read %s: %v", name, err)
		}
		return all
	}
	t := &flowTable{
		sessions: read("tg_sessions", "tg_session"), bindings: read("tg_bindings", "tg_binding"),
		remotes: read("tg_remotes", "tg_remote"), hosts: read("tg_hosts", "tg_host"),
	}
	t.account = g.readAccount()
	return t
}

// readAccount reads the table's counts alone.
func (g *gate) readAccount() (account element) {
	g.t.Helper()
	all, err := readElements(filepath.Join(g.stateDir(), "maps", "tg_table"), "tg_table_state")
	if err != nil {
		g.t.Fatalf("read the table's account: %v", err)
	}
	for _, account = range all {
	}
	return account
}

// origins says how many flows there are, by origin, state and TCP flags of both sides.
func (t *flowTable) origins() string {
	n := map[string]int{}
	for _, out := range t.sessions {
		if out.number("half") == halfOutside {
			in := t.sessions[string(out.bytes("other"))]
			if in.value == nil {
				continue
			}
			n[fmt.Sprintf("proto %d origin %d life %d fresh %d tcp %x/%x", out.key[36], out.number("origin"), out.number("life"), out.number("fresh"),
				in.number("tcp"), out.number("tcp"))]++
		}
	}
	return fmt.Sprint(n)
}

func readElements(path, value string) (map[string]element, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	members, err := maptypes.Members(m, value)
	if err != nil {
		return nil, err
	}
	all := map[string]element{}
	var k, v []byte
	it := m.Iterate()
	for it.Next(&k, &v) {
		all[string(k)] = element{bytes.Clone(k), bytes.Clone(v), members}
	}
	return all, it.Err()
}

func (t *flowTable) size() string {
	return fmt.Sprintf("%d halves, %d sides of bindings, %d remotes; account: %d flows, %d fresh, %d forwarded, %d bindings",
		len(t.sessions), len(t.bindings), len(t.remotes), t.account.number("flows"), t.account.number("fresh"),
		t.account.number("forwarded"), t.account.number("bindings"))
}

const (
	halfInside = iota
	halfOutside
)

// problems are contradictions in a table at rest: halves without their other half,
// one outside endpoint for two inside ones, counts that are not what is there.
func (t *flowTable) problems() (all []string) {
	complain := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	bound, firsts, remotes := map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
	hostFlows, hostFresh := map[[16]byte]uint64{}, map[[16]byte]uint64{}
	var flows, fresh, forwarded uint64
	for key, half := range t.sessions {
		other, there := t.sessions[string(half.bytes("other"))]
		if !there || string(other.bytes("other")) != key || other.number("half") == half.number("half") {
			complain("half %d of %s has no other half %s", half.number("half"), tupleText(half.key), tupleText(half.bytes("other")))
			continue
		}
		if half.number("half") != halfOutside {
			continue
		}
		inside := [16]byte(half.bytes("other")[:16])
		// Forwards have a share of their own, not their servers'.
		forward := half.number("origin") == originForward
		if half.number("counted") != 0 {
			flows++
			if !forward {
				hostFlows[inside]++
			}
		}
		if half.number("fresh") != 0 {
			fresh++
			if forward {
				forwarded++
			} else {
				hostFresh[inside]++
			}
		}
		if k, how := half.key, half.number("bound"); how != boundNot {
			outside, remote := string(k[16:32])+string(k[34:37]), string(k[:16])
			bound[outside]++
			if how == boundFirst {
				firsts[outside+remote]++
			} else {
				remotes[outside[:16]+remote+outside[16:]]++
			}
		}
	}
	owners := map[string]string{}
	sides := uint64(0)
	for key, b := range t.bindings {
		other, there := t.bindings[string(b.bytes("other"))]
		if !there || string(other.bytes("other")) != key || string(b.bytes("self")) != key {
			complain("side %s of a binding has no other side %s", bindingText(b.key), bindingText(b.bytes("other")))
			continue
		}
		if b.key[19] == halfInside {
			outside := string(b.bytes("other"))
			if was, twice := owners[outside]; twice {
				complain("%s is the outside endpoint of %s and %s", bindingText(b.bytes("other")), was, bindingText(b.key))
			}
			owners[outside] = bindingText(b.key)
			continue
		}
		sides++
		if n := bound[key[:19]]; b.number("sessions") != n {
			complain("%s counts %d flows, and there are %d", bindingText(b.key), b.number("sessions"), n)
		}
		delete(bound, key[:19])
		// The remote in the binding itself, of as many flows.
		first := key[:19] + string(b.bytes("remote"))
		if n := firsts[first]; b.number("remotes") != n {
			complain("%s counts %d flows with its first remote, and there are %d", bindingText(b.key), b.number("remotes"), n)
		}
		delete(firsts, first)
	}
	for key, n := range firsts {
		complain("%d flows with the remote % x, which does not stand in the binding %s", n, key[19:], bindingText([]byte(key[:19]+"\x01")))
	}
	for key, n := range bound {
		complain("%d flows use %s, which nobody has claimed", n, bindingText([]byte(key+"\x01")))
	}
	for key, r := range t.remotes {
		if n := remotes[key[:35]]; r.number("sessions") != n || r.number("dead") != 0 {
			complain("remote % x counts %d flows (dead %d), and there are %d", key, r.number("sessions"), r.number("dead"), n)
		}
		delete(remotes, key[:35])
	}
	for key, n := range remotes {
		complain("%d flows have no permitted remote % x", n, key)
	}
	for key, h := range t.hosts {
		a := [16]byte([]byte(key))
		if h.number("flows") != hostFlows[a] || h.number("fresh") != hostFresh[a] {
			complain("host %s counts %d flows, %d fresh, and there are %d, %d", netip.AddrFrom16(a).Unmap(),
				h.number("flows"), h.number("fresh"), hostFlows[a], hostFresh[a])
		}
		delete(hostFlows, a)
	}
	for a, n := range hostFlows {
		complain("host %s has %d flows and no account", netip.AddrFrom16(a).Unmap(), n)
	}
	// What was ended to make room leaves the accounts of the hosts at once, and the
	// table's when it goes.
	if n := t.account.number("flows"); n < flows || n > uint64(len(t.sessions)/2) {
		complain("the table counts %d flows, and there are %d", n, flows)
	}
	for name, n := range map[string]uint64{"fresh": fresh, "forwarded": forwarded, "bindings": sides} {
		if t.account.number(name) != n {
			complain("the table counts %d %s, and there are %d", t.account.number(name), name, n)
		}
	}
	slices.Sort(all)
	return all
}

const originForward = 2 // TG_ORIGIN_FORWARD

// Where a flow's remote is permitted: enum tg_bound.
const (
	boundNot = iota
	boundFirst
)

// consistent fails unless the table, at rest, contradicts itself nowhere.
func (g *gate) consistent() *flowTable {
	g.t.Helper()
	t := g.readTable()
	if p := t.problems(); len(p) > 0 {
		g.t.Errorf("%d contradictions in the table (%s):\n%s", len(p), t.size(), strings.Join(p[:min(len(p), 12)], "\n"))
	}
	return t
}

// drops are the reasons for which packets were dropped so far, by interface.
func (g *gate) drops() string {
	g.t.Helper()
	var all []string
	for _, m := range g.status().Members {
		for way, d := range map[string]*loader.DirectionStatus{"in": m.Ingress, "out": m.Egress} {
			if d == nil {
				continue
			}
			for reason, n := range d.Reasons {
				if strings.HasPrefix(reason, "drop_") {
					all = append(all, fmt.Sprintf("%s %s %s %d", m.Interface, way, reason, n))
				}
			}
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
