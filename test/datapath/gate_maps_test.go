package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"tapgate/test/model"
)

// The gateway's maps as user space finds them: by the programs that use them, with
// the types that the kernel keeps with them.

// field is where a member of a struct stands.
type field struct{ at, size uint32 }

func (f field) read(b []byte) uint64 {
	switch f.size {
	case 1:
		return uint64(b[f.at])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b[f.at:]))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b[f.at:]))
	}
	return binary.NativeEndian.Uint64(b[f.at:])
}

func (f field) write(b []byte, v uint64) {
	if f.size == 4 {
		binary.NativeEndian.PutUint32(b[f.at:], uint32(v))
		return
	}
	binary.NativeEndian.PutUint64(b[f.at:], v)
}

// gateMaps are the maps of the gateway and the layout of what is in them.
type gateMaps struct {
	maps    map[string]*ebpf.Map
	structs map[string]map[string]field
	timers  map[string]uint32 // enum tg_timer
	reasons []string          // enum tg_reason, as model.Outcome has it
	lives   map[string]uint64 // enum tg_life
	clocks  []clock
}

// clock is a map whose values hold boot times.
type clock struct {
	m     *ebpf.Map
	times []field
}

// Which values hold times; those of a map that is not there are left out.
var gateTimes = []struct {
	name, value string
	times       []string
}{
	{"tg_sessions", "tg_session", []string{"created", "last", "reset", "since"}},
	{"tg_bindings", "tg_binding", []string{"since"}},
	{"tg_fragments", "tg_fragment", []string{"when"}},
	{"tg_rates", "tg_bucket", []string{"until"}},
	{"tg_remote_rates", "tg_bucket", []string{"until"}},
}

func newGateMaps(programs map[string]*ebpf.Program) (*gateMaps, error) {
	g := &gateMaps{maps: map[string]*ebpf.Map{}, structs: map[string]map[string]field{}, timers: map[string]uint32{}, lives: map[string]uint64{}}
	var types typeList
	for _, p := range programs {
		info, err := p.Info()
		if err != nil {
			return nil, err
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				return nil, err
			}
			mi, err := m.Info()
			if err != nil {
				return nil, err
			}
			if g.maps[mi.Name] != nil {
				m.Close()
				continue
			}
			g.maps[mi.Name] = m
			if id, ok := mi.BTFID(); ok {
				h, err := btf.NewHandleFromID(id)
				if err != nil {
					return nil, err
				}
				spec, err := h.Spec(nil)
				if err != nil {
					return nil, err
				}
				types = append(types, spec)
				h.Close()
			}
		}
	}
	return g, g.learn(types)
}

// typeList finds a type among those of several maps: each has its own alone.
type typeList []*btf.Spec

// TypeByName is that of btf.Spec.
func (l typeList) TypeByName(name string, into any) error {
	err := errors.New("the kernel has no types of the maps")
	for _, s := range l {
		if err = s.TypeByName(name, into); err == nil {
			return nil
		}
	}
	return fmt.Errorf("type %s: %w", name, err)
}

func (g *gateMaps) learn(types typeList) error {
	for _, name := range []string{"tg_session", "tg_binding", "tg_remote", "tg_host", "tg_table_state", "tg_setting", "tg_tuple",
		"tg_endpoint", "tg_remote_key", "tg_fragment", "tg_bucket", "tg_member_count"} {
		var s *btf.Struct
		if err := types.TypeByName(name, &s); err != nil {
			return fmt.Errorf("struct %s: %w", name, err)
		}
		g.structs[name] = map[string]field{}
		for _, m := range s.Members {
			size, err := btf.Sizeof(m.Type)
			if err != nil {
				return err
			}
			g.structs[name][m.Name] = field{m.Offset.Bytes(), uint32(size)}
		}
	}
	var timers, reasons, lives *btf.Enum
	if err := errors.Join(types.TypeByName("tg_timer", &timers), types.TypeByName("tg_reason", &reasons), types.TypeByName("tg_life", &lives)); err != nil {
		return err
	}
	for _, v := range timers.Values {
		g.timers[v.Name] = uint32(v.Value)
	}
	for _, v := range lives.Values {
		g.lives[v.Name] = v.Value
	}
	g.reasons = make([]string, len(reasons.Values))
	for _, v := range reasons.Values {
		g.reasons[v.Value] = strings.ToLower(strings.TrimPrefix(v.Name, "TG_"))
	}
	for _, t := range gateTimes {
		m := g.maps[t.name]
		if m == nil {
			continue
		}
		c := clock{m: m}
		for _, name := range t.times {
			c.times = append(c.times, g.structs[t.value][name])
		}
		g.clocks = append(g.clocks, c)
	}
	return nil
}

func (g *gateMaps) close() {
	for _, m := range g.maps {
		m.Close()
	}
}

// each calls f with every element. Nothing else may change the map meanwhile.
func each(m *ebpf.Map, f func(key, value []byte) error) error {
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		if err := f(key, value); err != nil {
			return err
		}
	}
	return it.Err()
}

// pass lets time go by: all boot times move back. What would be before the boot is
// as early as can be; callers see to it that this is early enough.
func (g *gateMaps) pass(d uint64) error {
	for _, c := range g.clocks {
		// An element that is written moves within its bucket, so first all are read.
		changed := map[string][]byte{}
		err := each(c.m, func(key, value []byte) error {
			any := false
			for _, f := range c.times {
				if was := f.read(value); was != 0 {
					f.write(value, max(1, was-min(d, was-1)))
					any = true
				}
			}
			if any {
				changed[string(key)] = bytes.Clone(value)
			}
			return nil
		})
		for key, value := range changed {
			err = errors.Join(err, c.m.Put([]byte(key), value))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.m, err)
		}
	}
	return nil
}

// forget empties a map.
func (g *gateMaps) forget(name string) error {
	m := g.maps[name]
	if m == nil {
		return nil
	}
	var keys [][]byte
	err := each(m, func(key, _ []byte) error {
		keys = append(keys, bytes.Clone(key))
		return nil
	})
	for _, key := range keys {
		err = errors.Join(err, m.Delete(key))
	}
	return err
}

// settings changes both generations' settings.
func (g *gateMaps) settings(f func(set func(name string, v uint64), timer func(name string, v uint64))) error {
	m, s := g.maps["tg_settings"], g.structs["tg_setting"]
	for slot := range uint32(2) {
		value, err := m.LookupBytes(slot)
		if err != nil {
			return err
		}
		f(func(name string, v uint64) { s[name].write(value, v) }, func(name string, v uint64) {
			field{s["timers"].at + 8*g.timers[name], 8}.write(value, v)
		})
		if err := m.Put(slot, value); err != nil {
			return err
		}
	}
	return nil
}

func addrOf(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)).Unmap() }

func (g *gateMaps) tuple(b []byte) model.Tuple {
	s := g.structs["tg_tuple"]
	return model.Tuple{
		Src: addrOf(b[s["src"].at:]), Dst: addrOf(b[s["dst"].at:]),
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

// session is a half as the kernel has it.
type session struct {
	key, other                            model.Tuple
	half, origin, tcp, bound, fresh, life uint64
	packets, bytes, last, reset           uint64
}

func (s session) String() string {
	return fmt.Sprintf("%v half %d origin %d tcp %d bound %d fresh %d life %d, %d packets, last %d reset %d", s.key, s.half, s.origin, s.tcp, s.bound, s.fresh, s.life, s.packets, s.last, s.reset)
}

func (g *gateMaps) sessions() (map[model.Tuple]session, error) {
	all := map[model.Tuple]session{}
	s := g.structs["tg_session"]
	return all, each(g.maps["tg_sessions"], func(k, v []byte) error {
		t := g.tuple(k)
		all[t] = session{
			key: t, other: g.tuple(v[s["other"].at:]),
			half: s["half"].read(v), origin: s["origin"].read(v), tcp: s["tcp"].read(v), bound: s["bound"].read(v),
			fresh: s["fresh"].read(v), life: s["life"].read(v), packets: s["packets"].read(v), bytes: s["bytes"].read(v),
			last: s["last"].read(v), reset: s["reset"].read(v),
		}
		return nil
	})
}

// evicted says whether a flow has been ended before its time.
func (g *gateMaps) evicted(outside model.Tuple) bool {
	v, err := g.maps["tg_sessions"].LookupBytes(g.key(outside))
	if err != nil || v == nil {
		return true
	}
	life := g.structs["tg_session"]["life"].read(v)
	return life == g.lives["TG_LIFE_FLUSHED"] || life == g.lives["TG_LIFE_DELETED"]
}

// unbound says whether an outside endpoint is nobody's.
func (g *gateMaps) unbound(e model.Endpoint) bool {
	all, err := g.bindings()
	_, there := all[endpoint{e.Addr, e.Port, e.Proto}]
	return err == nil && !there
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
	twins                         int
}

func (m mapping) String() string {
	return fmt.Sprintf("%v=%v, %d sessions, since %d, life %d, queued %d, %d halves", m.inside, m.outside, m.sessions, m.since, m.life, m.queued, m.twins)
}

func (g *gateMaps) endpoint(b []byte) (endpoint, uint8) {
	s := g.structs["tg_endpoint"]
	return endpoint{addrOf(b[s["addr"].at:]), binary.BigEndian.Uint16(b[s["port"].at:]), b[s["proto"].at]}, b[s["half"].at]
}

// bindings are by their outside endpoint.
func (g *gateMaps) bindings() (map[endpoint]mapping, error) {
	all := map[endpoint]mapping{}
	s := g.structs["tg_binding"]
	return all, each(g.maps["tg_bindings"], func(k, v []byte) error {
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
		}
		all[out] = m
		return nil
	})
}

type permission struct {
	outside endpoint
	remote  netip.Addr
}

func (p permission) String() string { return fmt.Sprintf("%v from %v", p.outside, p.remote) }

func (g *gateMaps) remotes() (map[permission]uint64, error) {
	all := map[permission]uint64{}
	k, s := g.structs["tg_remote_key"], g.structs["tg_remote"]
	return all, each(g.maps["tg_remotes"], func(key, v []byte) error {
		e := endpoint{addrOf(key[k["outside"].at:]), binary.BigEndian.Uint16(key[k["port"].at:]), key[k["proto"].at]}
		all[permission{e, addrOf(key[k["remote"].at:])}] = s["sessions"].read(v)
		return nil
	})
}

// account is the whole table's.
func (g *gateMaps) account() (map[string]uint64, error) {
	v, err := g.maps["tg_table"].LookupBytes(uint32(0))
	if err != nil {
		return nil, err
	}
	all := map[string]uint64{}
	for _, name := range []string{"flows", "fresh", "forwarded", "bindings"} {
		all[name] = g.structs["tg_table_state"][name].read(v)
	}
	return all, nil
}

// hosts are the accounts of inside addresses: flows, and those that are fresh.
func (g *gateMaps) hosts() (map[netip.Addr][2]uint64, error) {
	all := map[netip.Addr][2]uint64{}
	s := g.structs["tg_host"]
	return all, each(g.maps["tg_hosts"], func(k, v []byte) error {
		all[addrOf(k)] = [2]uint64{s["flows"].read(v), s["fresh"].read(v)}
		return nil
	})
}
