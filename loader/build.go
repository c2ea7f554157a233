package loader

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/cilium/ebpf"
)

// compiled is the object of this binary, which takes a while to read. It is for
// looking at only: what is to be loaded is read by programSpecs.
var compiled = sync.OnceValues(loadTapgate)

// linked is compiled with its programs as they are handed to the kernel: calls of
// functions get their offsets when they are written out, and the comparison, which
// is by the kernel's tag, does not do that by itself.
var linked = sync.OnceValues(func() (*ebpf.CollectionSpec, error) {
	spec, err := compiled()
	if err != nil {
		return nil, err
	}
	for name, p := range spec.Programs {
		if err := p.Instructions.Marshal(io.Discard, binary.LittleEndian); err != nil {
			return nil, fmt.Errorf("look at program %s: %w", name, err)
		}
	}
	return spec, nil
})

// sameBuild says whether the pinned programs are those of this binary.
func sameBuild(programs map[string]*ebpf.Program) error {
	spec, err := linked()
	if err != nil {
		return err
	}
	for name, p := range programs {
		info, err := p.Info()
		if err != nil {
			return fmt.Errorf("look at program %s: %w", name, err)
		}
		if err := spec.Programs[name].Compatible(info); err != nil {
			return fmt.Errorf("%w: the running program %s is from another build: put this one's programs in place, "+
				"without a gap, with \"tapgate upgrade\", or use the tapgate that made it", ErrState, name)
		}
	}
	return nil
}

// buildOf is a short name for a set of programs: of their tags, which are the kernel's
// sums of their instructions.
func buildOf(programs map[string]*ebpf.Program) (string, error) {
	sum := sha256.New()
	for _, name := range pinnedPrograms {
		info, err := programs[name].Info()
		if err != nil {
			return "", fmt.Errorf("look at program %s: %w", name, err)
		}
		fmt.Fprintln(sum, name, info.Tag)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:4]), nil
}
