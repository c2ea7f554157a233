package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"tapgate/test/model"
)

// gateMaps reads what the programs know of flows.
type gateMaps struct {
	*stage
	structs map[string]map[string]field
	timers  map[string]uint64 // enum tg_timer
	lives   map[string]uint64 // enum tg_life
	reasons []string          // enum tg_reason, as model.Outcome has it
	scope   uint8             // number of the external zone

	tables map[string]*table
}

func newGateMaps(s *stage) (g *gateMaps, err error) {
	g = &gateMaps{stage: s, structs: map[string]map[string]field{}, tables: map[string]*table{}}
	for _, name := range []string{
		"tg_session", "tg_binding", "tg_remote", "tg_host", "tg_table_state", "tg_setting", "tg_tuple",
		"tg_endpoint", "tg_remote_key", "tg_member_count", "tg_member", "tg_scratch",
	} {
		if g.structs[name], err = fieldsOf(s.spec.Types, name); err != nil {
			return g, err
		}
	}
	reasons, err1 := enumOf(s.spec.Types, "tg_reason", "TG_")
	var err2, err3 error
	g.timers, err2 = enumOf(s.spec.Types, "tg_timer", "TG_TIMER_")
	g.lives, err3 = enumOf(s.spec.Types, "tg_life", "TG_LIFE_")
	g.reasons = make([]string, len(reasons))
	for name, n := range reasons {
		g.reasons[n] = name
	}
	for _, name := range []string{"tg_sessions", "tg_bindings", "tg_remotes", "tg_hosts"} {
		g.tables[name] = newTable(s.maps[name])
	}
	return g, errors.Join(err1, err2, err3)
}

func (g *gateMaps) tuple(b []byte) model.Tuple {
	s := g.structs["tg_tuple"]
	return model.Tuple{
		Src: addrOf(s["src"].bytes(b)), Dst: addrOf(s["dst"].bytes(b)),
		Sport: binary.BigEndian.Uint16(b[s["sport"].at:]), Dport: binary.BigEndian.Uint16(b[s["dport"].at:]),
		Proto: b[s["proto"].at],
	}
}

func (g *gateMaps) key(t model.Tuple) []byte {
	s := g.structs["tg_tuple"]
	b := make([]byte, g.maps["tg_sessions"].KeySize())
	src, dst := t.Src.As16(), t.Dst.As16()
	copy(b[s["src"].at:], src[:])
	copy(b[s["dst"].at:], dst[:])
	binary.BigEndian.PutUint16(b[s["sport"].at:], t.Sport)
	binary.BigEndian.PutUint16(b[s["dport"].at:], t.Dport)
	b[s["proto"].at] = t.Proto
	return b
}

// forget empties a map.
func (g *gateMaps) forget(name string) error {
	t := g.tables[name]
	if t == nil {
		t = newTable(g.maps[name])
		g.tables[name] = t
	}
	var keys [][]byte
	err := t.each(func(key, _ []byte) { keys = append(keys, bytes.Clone(key)) })
	for _, key := range keys {
		err = errors.Join(err, g.maps[name].Delete(key))
	}
	return err
}

// session is a half as the kernel has it.
type session struct {
	key, other                            model.Tuple
	half, origin, tcp, bound, fresh, life uint64
	flags                                 uint64
	packets, bytes, last, reset           uint64
}

func (s session) String() string {
	return fmt.Sprintf("%v half %d origin %d tcp %d bound %d fresh %d life %d, %d packets, last %d reset %d", s.key, s.half, s.origin, s.tcp, s.bound, s.fresh, s.life, s.packets, s.last, s.reset)
}

func (g *gateMaps) sessions() (map[model.Tuple]session, error) {
	all := map[model.Tuple]session{}
	s := g.structs["tg_session"]
	other, half, origin, tcp, bound, fresh, life := s["other"], s["half"], s["origin"], s["tcp"], s["bound"], s["fresh"], s["life"]
	packets, bytes, last, reset, flags := s["packets"], s["bytes"], s["last"], s["reset"], s["flags"]
	return all, g.tables["tg_sessions"].each(func(k, v []byte) {
		t := g.tuple(k)
		all[t] = session{
			key: t, other: g.tuple(v[other.at:]),
			half: half.read(v), origin: origin.read(v), tcp: tcp.read(v), bound: bound.read(v), flags: flags.read(v),
			fresh: fresh.read(v), life: life.read(v), packets: packets.read(v), bytes: bytes.read(v),
			last: last.read(v), reset: reset.read(v),
		}
	})
}

// evicted says whether a flow has been ended before its time, and whether it is gone.
func (g *gateMaps) evicted(inside, outside model.Tuple) (ended, gone bool) {
	s := g.structs["tg_session"]
	v, err := g.maps["tg_sessions"].LookupBytes(g.key(outside))
	if err != nil || v == nil || s["half"].read(v) != 1 || g.tuple(s["other"].bytes(v)) != inside {
		return true, true
	}
	life := s["life"].read(v)
	return life == g.lives["flushed"] || life == g.lives["deleted"], false
}

// ends grows whenever a flow is ended to make room, and whenever one goes; mappings
// are how many there are.
func (g *gateMaps) ends() (ends uint64, mappings int, err error) {
	v, err := g.maps["tg_table"].LookupBytes(uint32(0))
	if err != nil {
		return 0, 0, err
	}
	s := g.structs["tg_table_state"]
	return s["leaving"].read(v) + 2*s["expired"].read(v), int(s["bindings"].read(v)), nil
}

// unbound says whether a mapping is gone.
func (g *gateMaps) unbound(inside, outside model.Endpoint) bool {
	s := g.structs["tg_endpoint"]
	b := make([]byte, g.maps["tg_bindings"].KeySize())
	addr := outside.Addr.As16()
	copy(b[s["addr"].at:], addr[:])
	binary.BigEndian.PutUint16(b[s["port"].at:], outside.Port)
	b[s["proto"].at], b[s["half"].at], b[s["scope"].at] = outside.Proto, 1, g.scope
	v, err := g.maps["tg_bindings"].LookupBytes(b)
	if err != nil || v == nil {
		return err == nil
	}
	is, _ := g.endpoint(g.structs["tg_binding"]["other"].bytes(v))
	return is != endpoint{inside.Addr, inside.Port, inside.Proto}
}

type endpoint struct {
	addr  netip.Addr
	port  uint16
	proto uint8
}

func (e endpoint) String() string { return fmt.Sprintf("%d/%s:%d", e.proto, e.addr, e.port) }

type mapping struct {
	inside, outside               endpoint
	sessions, since, life, queued uint64 // of the outside half
	remotes                       uint64 // sessions that permit the remote which stands in it
	remote                        netip.Addr
	twins                         int
}

func (m mapping) String() string {
	return fmt.Sprintf("%v=%v, %d sessions, since %d, life %d, queued %d, %d halves", m.inside, m.outside, m.sessions, m.since, m.life, m.queued, m.twins)
}

func (g *gateMaps) endpoint(b []byte) (endpoint, uint8) {
	s := g.structs["tg_endpoint"]
	return endpoint{addrOf(s["addr"].bytes(b)), binary.BigEndian.Uint16(b[s["port"].at:]), b[s["proto"].at]}, b[s["half"].at]
}

// bindings are by their outside endpoint.
func (g *gateMaps) bindings() (map[endpoint]mapping, error) {
	all := map[endpoint]mapping{}
	s := g.structs["tg_binding"]
	return all, g.tables["tg_bindings"].each(func(k, v []byte) {
		mine, half := g.endpoint(k)
		other, _ := g.endpoint(v[s["other"].at:])
		out := mine
		if half == 0 {
			out = other
		}
		m := all[out]
		m.twins++
		if half == 0 {
			m.inside = mine
		} else {
			m.outside, m.sessions = mine, s["sessions"].read(v)
			m.since, m.life, m.queued = s["since"].read(v), s["life"].read(v), s["queued"].read(v)
			m.remotes, m.remote = s["remotes"].read(v), addrOf(s["remote"].bytes(v))
		}
		all[out] = m
	})
}

type permission struct {
	outside endpoint
	remote  netip.Addr
}

func (p permission) String() string { return fmt.Sprintf("%v from %v", p.outside, p.remote) }

// remotes are how many sessions permit a remote: the first one stands in the binding.
func (g *gateMaps) remotes(bindings map[endpoint]mapping) (map[permission]uint64, error) {
	all := map[permission]uint64{}
	for e, b := range bindings {
		if b.remotes > 0 {
			all[permission{e, b.remote}] = b.remotes
		}
	}
	k, s := g.structs["tg_remote_key"], g.structs["tg_remote"]
	return all, g.tables["tg_remotes"].each(func(key, v []byte) {
		e := endpoint{addrOf(k["outside"].bytes(key)), binary.BigEndian.Uint16(key[k["port"].at:]), key[k["proto"].at]}
		all[permission{e, addrOf(k["remote"].bytes(key))}] += s["sessions"].read(v)
	})
}

// account is the whole table's.
func (g *gateMaps) account() (map[string]uint64, error) {
	v, err := g.maps["tg_table"].LookupBytes(uint32(0))
	if err != nil {
		return nil, err
	}
	all := map[string]uint64{}
	for _, name := range []string{"flows", "fresh", "forwarded", "bindings", "leaving"} {
		all[name] = g.structs["tg_table_state"][name].read(v)
	}
	return all, nil
}

// hosts are the accounts of inside addresses: flows, and those that are fresh.
func (g *gateMaps) hosts() (map[netip.Addr][2]uint64, error) {
	all := map[netip.Addr][2]uint64{}
	s := g.structs["tg_host"]
	return all, g.tables["tg_hosts"].each(func(k, v []byte) {
		all[addrOf(k)] = [2]uint64{s["flows"].read(v), s["fresh"].read(v)}
	})
}
