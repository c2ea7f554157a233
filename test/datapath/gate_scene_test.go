package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// A scene is what the loader makes of a configuration: the elements of the maps that
// say what the programs shall do. Each is applied to the gateway once, and its elements
// are put on the stage as often as it takes: as the loader does, into the slot that is
// not in force.
type scene struct {
	scenario scenario
	elements map[string]map[string][]byte // map -> key -> value
	setting  []byte
}

// What belongs to a generation, and what stands outside and is put there as well.
var (
	inGeneration      = []string{"tg_members", "tg_rules", "tg_pools", "tg_sets"}
	outsideGeneration = []string{"tg_outside", "tg_ours", "tg_reassembly"}
)

// takeScene applies a scenario to the gateway and reads what the loader has put in force.
func (g *gateway) takeScene(s scenario) (*scene, error) {
	if _, err := g.gw.Apply(s.config()); err != nil {
		return nil, fmt.Errorf("apply %s: %w", s.name, err)
	}
	sc := &scene{scenario: s, elements: map[string]map[string][]byte{}}
	pinned := func(name string, f func(m *ebpf.Map) error) error {
		m, err := ebpf.LoadPinnedMap(filepath.Join(g.dir, "maps", name), nil)
		if err != nil {
			return err
		}
		defer m.Close()
		return f(m)
	}
	var word uint64
	err := pinned("tg_control", func(m *ebpf.Map) error { return m.Lookup(uint32(0), &word) })
	slot := uint32(word & 1)
	for _, name := range inGeneration {
		err = errors.Join(err, pinned(name, func(m *ebpf.Map) error {
			var inner *ebpf.Map
			if err := m.Lookup(slot, &inner); err != nil {
				return err
			}
			defer inner.Close()
			sc.elements[name], err = elementsOf(inner)
			return err
		}))
	}
	for _, name := range outsideGeneration {
		err = errors.Join(err, pinned(name, func(m *ebpf.Map) (err error) {
			sc.elements[name], err = elementsOf(m)
			return err
		}))
	}
	err = errors.Join(err, pinned("tg_settings", func(m *ebpf.Map) (err error) {
		sc.setting, err = m.LookupBytes(slot)
		return err
	}))
	if err != nil {
		return nil, fmt.Errorf("read what %s has put in force: %w", s.name, err)
	}
	return sc, nil
}

// elementsOf reads a map; elements of an array that are zero are as good as none.
func elementsOf(m *ebpf.Map) (map[string][]byte, error) {
	all := map[string][]byte{}
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		if m.Type() == ebpf.Array && len(bytes.Trim(value, "\x00")) == 0 {
			continue
		}
		all[string(key)] = bytes.Clone(value)
	}
	return all, it.Err()
}

// slot is one of the two generations on the stage.
type slot struct {
	maps map[string]*ebpf.Map // inner ones
	has  map[string]map[string][]byte
}

// generations are both, and what is outside of them.
type generations struct {
	stage   *stage
	slots   [2]slot
	active  int
	serial  uint64 // of the next one
	outside map[string]map[string][]byte
}

func newGenerations(s *stage) (*generations, error) {
	g := &generations{stage: s, serial: 1, outside: map[string]map[string][]byte{}}
	for i := range g.slots {
		g.slots[i] = slot{maps: map[string]*ebpf.Map{}, has: map[string]map[string][]byte{}}
		for _, name := range inGeneration {
			inner, err := ebpf.NewMap(s.spec.Maps[name].InnerMap)
			if err != nil {
				return g, err
			}
			g.slots[i].maps[name] = inner
			if err := s.maps[name].Put(uint32(i), inner); err != nil {
				return g, err
			}
		}
	}
	return g, nil
}

func (g *generations) close() {
	for _, s := range g.slots {
		for _, m := range s.maps {
			m.Close()
		}
	}
}

// put has a scene in force.
func (g *generations) put(sc *scene, setting []byte) error {
	idle := 1 - g.active
	g.serial++
	s := &g.slots[idle]
	var err error
	for _, name := range inGeneration {
		err = errors.Join(err, replace(s.maps[name], s.has[name], sc.elements[name]))
		s.has[name] = sc.elements[name]
	}
	for _, name := range outsideGeneration {
		err = errors.Join(err, replace(g.stage.maps[name], g.outside[name], sc.elements[name]))
		g.outside[name] = sc.elements[name]
	}
	err = errors.Join(err, g.stage.maps["tg_settings"].Put(uint32(idle), setting))
	word := uint64(idle) | uint64(g.active)<<1
	g.active = idle
	return errors.Join(err, g.stage.maps["tg_control"].Put(uint32(0), word))
}

// replace makes a map's elements others.
func replace(m *ebpf.Map, old, now map[string][]byte) (err error) {
	for key, value := range old {
		if _, stays := now[key]; stays {
			continue
		}
		if m.Type() == ebpf.Array {
			err = errors.Join(err, m.Put([]byte(key), make([]byte, len(value))))
		} else {
			err = errors.Join(err, m.Delete([]byte(key)))
		}
	}
	for key, value := range now {
		if !bytes.Equal(old[key], value) {
			err = errors.Join(err, m.Put([]byte(key), value))
		}
	}
	if err != nil {
		return fmt.Errorf("%v: %w", m, err)
	}
	return nil
}

// interfaceSlots says where the interfaces of a scene are counted.
func (sc *scene) interfaceSlots(member map[string]field) (map[int]int, error) {
	slots := map[int]int{}
	for _, z := range gateZones {
		key := binary.NativeEndian.AppendUint32(nil, uint32(z.ifindex))
		v := sc.elements["tg_members"][string(key)]
		if v == nil {
			return nil, fmt.Errorf("interface %d is no member", z.ifindex)
		}
		slots[z.ifindex] = int(member["slot"].read(v))
	}
	return slots, nil
}

// zoneOf is the number of an interface's zone.
func (sc *scene) zoneOf(member map[string]field, ifindex int) uint8 {
	key := binary.NativeEndian.AppendUint32(nil, uint32(ifindex))
	return uint8(member["zone"].read(sc.elements["tg_members"][string(key)]))
}
