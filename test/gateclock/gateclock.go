// Package gateclock lets time pass for flows of a gateway: it moves the times
// that stand in their elements back, which to the data plane is the same as
// having been idle for so long. Nothing waits, and every timer can be tried to
// the second.
//
// Fields are found by name in the types that the kernel keeps with the maps.
package gateclock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tapgate/test/maptypes"
)

// Clock is the time of the flows in a gateway's maps.
type Clock struct {
	tables   []*table
	settings *ebpf.Map
	opened   []*ebpf.Map
}

// table is a map whose values hold times.
type table struct {
	m      *ebpf.Map
	times  []uint32 // offsets of boot times, ns; 0 is "not yet"
	coarse []uint32 // the same of those in units of 2^24 ns, which come round
	other  uint32   // offset of the twin's key
	addrs  int      // bytes of addresses that a key begins with
}

// What holds times: the flows and the bindings. Their keys begin with addresses.
var timed = []struct {
	name, value string
	times       []string
	coarse      []string
	addrs       int
}{
	{"tg_sessions", "tg_session", []string{"last", "reset", "since"}, []string{"created", "looked", "stacked"}, 32},
	{"tg_bindings", "tg_binding", []string{"since"}, nil, 16},
}

// Pinned opens the maps of a state folder, <bpffs>/tapgate/<inode>.
func Pinned(dir string) (*Clock, error) {
	maps := map[string]*ebpf.Map{}
	var opened []*ebpf.Map
	for _, name := range []string{"tg_sessions", "tg_bindings", "tg_settings"} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", name), nil)
		if err != nil {
			closeAll(opened)
			return nil, fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		maps[name] = m
		opened = append(opened, m)
	}
	c, err := New(maps)
	if err != nil {
		closeAll(opened)
		return nil, err
	}
	c.opened = opened
	return c, nil
}

// New is a clock of maps that the caller has open, by name.
func New(maps map[string]*ebpf.Map) (*Clock, error) {
	c := &Clock{settings: maps["tg_settings"]}
	for _, what := range timed {
		t, err := newTable(maps[what.name], what.value, what.times, what.coarse)
		if err != nil {
			return nil, fmt.Errorf("times of %s: %w", what.name, err)
		}
		t.addrs = what.addrs
		c.tables = append(c.tables, t)
	}
	return c, nil
}

func newTable(m *ebpf.Map, value string, times, coarse []string) (*table, error) {
	members, err := maptypes.Members(m, value)
	if err != nil {
		return nil, err
	}
	t := &table{m: m}
	for _, name := range slices.Concat(times, coarse) {
		member, ok := members[name]
		if !ok {
			return nil, fmt.Errorf("struct %s has no member %s", value, name)
		}
		if slices.Contains(coarse, name) {
			t.coarse = append(t.coarse, member.At)
		} else {
			t.times = append(t.times, member.At)
		}
	}
	other, ok := members["other"]
	if !ok {
		return nil, fmt.Errorf("struct %s does not name its twin", value)
	}
	t.other = other.At
	return t, nil
}

// longest is more than any test has go by for one flow; longer timers are set
// shorter with SetTimer.
const longest = 10 * time.Minute

// Await returns when the machine has been up for long enough for Pass: a machine
// that was made for the tests may just have booted. Call it before there are flows.
func Await() error { return await(longest) }

func await(d time.Duration) error {
	for {
		var up unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
			return err
		}
		if time.Duration(up.Nano()) >= d {
			return nil
		}
		time.Sleep(time.Second)
	}
}

// lookedAgain is longer than any flow stands in its queue before it is looked at again.
const lookedAgain = 70 * time.Second

// Due has so much time go by that all flows are due in their queues, and what has
// ended may leave them: again and again, what is older than the machine's boot then
// being from the moment of it. It waits for a machine that has just booted.
func (c *Clock) Due() error {
	if err := await(lookedAgain); err != nil {
		return err
	}
	for _, t := range c.tables {
		err := t.change(nil, func(value []byte) error {
			for _, at := range t.times {
				field := value[at : at+8]
				if was := binary.NativeEndian.Uint64(field); was != 0 {
					binary.NativeEndian.PutUint64(field, max(was, uint64(lookedAgain)+1)-uint64(lookedAgain))
				}
			}
			t.passCoarse(value, uint64(lookedAgain))
			return nil
		})
		if err != nil {
			return fmt.Errorf("have all be due: %w", err)
		}
	}
	return nil
}

// Pass has d go by for the flows and bindings of these hosts, or of all if none
// are named. Their packets must be at rest. It is an error if the machine has
// not been up for that long: there is no time before boot.
func (c *Clock) Pass(d time.Duration, hosts ...netip.Addr) error {
	for _, t := range c.tables {
		if err := t.pass(uint64(d), hosts); err != nil {
			return fmt.Errorf("let %v pass: %w", d, err)
		}
	}
	return nil
}

func (t *table) pass(d uint64, hosts []netip.Addr) error {
	return t.change(hosts, func(value []byte) error {
		for _, at := range t.times {
			field := value[at : at+8]
			was := binary.NativeEndian.Uint64(field)
			if was != 0 && was <= d {
				return fmt.Errorf("the machine has not been up for so long at %v", time.Duration(was))
			}
			if was != 0 {
				binary.NativeEndian.PutUint64(field, was-d)
			}
		}
		t.passCoarse(value, d)
		return nil
	})
}

func (t *table) passCoarse(value []byte, d uint64) {
	for _, at := range t.coarse {
		field := value[at : at+4]
		binary.NativeEndian.PutUint32(field, binary.NativeEndian.Uint32(field)-uint32(d>>24))
	}
}

// change changes the values of these hosts' elements, or of all.
func (t *table) change(hosts []netip.Addr, f func(value []byte) error) error {
	var keys [][]byte
	var key, value []byte
	it := t.m.Iterate()
	for it.Next(&key, &value) {
		if t.concerns(key, value, hosts) {
			keys = append(keys, bytes.Clone(key))
		}
	}
	if err := it.Err(); err != nil {
		return err
	}
	for _, key := range keys {
		// In place and under the element's lock, so that a program which has
		// just looked it up does not work on a copy that is out of date.
		err := t.m.LookupWithFlags(key, &value, ebpf.LookupLock)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := f(value); err != nil {
			return err
		}
		if err := t.m.Update(key, value, ebpf.UpdateExist|ebpf.UpdateLock); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}

// concerns says whether an element, or its twin, has one of the addresses.
func (t *table) concerns(key, value []byte, hosts []netip.Addr) bool {
	for _, h := range hosts {
		a := h.As16()
		for _, where := range [][]byte{key, value[t.other:]} {
			for i := 0; i < t.addrs; i += 16 {
				if bytes.Equal(where[i:i+16], a[:]) {
					return true
				}
			}
		}
	}
	return len(hosts) == 0
}

// Timers, as enum tg_timer of headers/abi_gate.h numbers them.
const (
	TCPOpening     = 1
	TCPEstablished = 2
	TCPClosing     = 3
)

// SetTimer sets a timer in both generations, also below what a configuration may
// have: for those that are longer than the machine may have been up.
func (c *Clock) SetTimer(timer int, d time.Duration) error {
	members, err := maptypes.Members(c.settings, "tg_setting")
	if err != nil {
		return err
	}
	return c.set(members["timers"].At+8*uint32(timer), uint64(d))
}

// EndAdoption has the time be over during which connections are taken over in
// their middle.
func (c *Clock) EndAdoption() error {
	members, err := maptypes.Members(c.settings, "tg_setting")
	if err != nil {
		return err
	}
	return c.set(members["adopt_until"].At, 1)
}

// set writes a number into the settings of both generations.
func (c *Clock) set(at uint32, v uint64) error {
	for slot := range c.settings.MaxEntries() {
		var value []byte
		if err := c.settings.Lookup(slot, &value); err != nil {
			return err
		}
		binary.NativeEndian.PutUint64(value[at:], v)
		if err := c.settings.Put(slot, value); err != nil {
			return err
		}
	}
	return nil
}

// Close closes what Pinned has opened.
func (c *Clock) Close() { closeAll(c.opened) }

func closeAll(maps []*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}
