package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

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

func (f field) bytes(b []byte) []byte { return b[f.at : f.at+f.size] }

func addrOf(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)).Unmap() }

// fieldsOf are the members of a struct.
func fieldsOf(types *btf.Spec, name string) (map[string]field, error) {
	var s *btf.Struct
	if err := types.TypeByName(name, &s); err != nil {
		return nil, fmt.Errorf("struct %s: %w", name, err)
	}
	fields := map[string]field{}
	for _, m := range s.Members {
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			return nil, err
		}
		fields[m.Name] = field{m.Offset.Bytes(), uint32(size)}
	}
	return fields, nil
}

// enumOf are the names of an enum, without what they begin with and in small letters.
func enumOf(types *btf.Spec, name, prefix string) (map[string]uint64, error) {
	var e *btf.Enum
	if err := types.TypeByName(name, &e); err != nil {
		return nil, fmt.Errorf("enum %s: %w", name, err)
	}
	all := map[string]uint64{}
	for _, v := range e.Values {
		all[strings.ToLower(strings.TrimPrefix(v.Name, prefix))] = v.Value
	}
	return all, nil
}

// table reads all elements of a hash at once.
type table struct {
	m            *ebpf.Map
	keys, values reflect.Value // slices of arrays
}

func newTable(m *ebpf.Map) *table {
	room := int(m.MaxEntries())
	list := func(size uint32) reflect.Value {
		t := reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]()))
		return reflect.MakeSlice(t, room, room)
	}
	return &table{m: m, keys: list(m.KeySize()), values: list(m.ValueSize())}
}

// each calls f with every element. Nothing else may change the map meanwhile.
func (t *table) each(f func(key, value []byte)) error {
	var cursor ebpf.MapBatchCursor
	for {
		n, err := t.m.BatchLookup(&cursor, t.keys.Interface(), t.values.Interface(), nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("%v: %w", t.m, err)
		}
		for i := range n {
			f(t.keys.Index(i).Bytes(), t.values.Index(i).Bytes())
		}
		if err != nil {
			return nil
		}
	}
}
