// Package maptypes finds the types of what stands in a map. The kernel keeps them
// with it, so tests know members and values of an enum by their names, as the
// programs that run have them.
package maptypes

import (
	"errors"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Find sets into, a pointer to a *btf.Struct, *btf.Enum or the like, to the type with
// this name.
func Find(m *ebpf.Map, name string, into any) error {
	if m == nil {
		return errors.New("no such map")
	}
	info, err := m.Info()
	if err != nil {
		return err
	}
	id, ok := info.BTFID()
	if !ok {
		return errors.New("the kernel has no types of it")
	}
	h, err := btf.NewHandleFromID(id)
	if err != nil {
		return err
	}
	defer h.Close()
	types, err := h.Spec(nil)
	if err != nil {
		return err
	}
	return types.TypeByName(name, into)
}

// Member is where a member of a struct stands, in bytes.
type Member struct{ At, Size uint32 }

// Members are those of the struct with this name.
func Members(m *ebpf.Map, name string) (map[string]Member, error) {
	var s *btf.Struct
	if err := Find(m, name, &s); err != nil {
		return nil, err
	}
	members := map[string]Member{}
	for _, f := range s.Members {
		size, err := btf.Sizeof(f.Type)
		if err != nil {
			return nil, err
		}
		members[f.Name] = Member{f.Offset.Bytes(), uint32(size)}
	}
	return members, nil
}
