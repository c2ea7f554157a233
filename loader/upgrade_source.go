package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// SourceInForce is the text of the configuration in force, also of state that this
// binary does not understand otherwise, as far as it can be read: whoever changes over
// to another layout needs it. ErrNotAttached if there is no state.
func SourceInForce(opt Options) (source string, err error) {
	ns, err := openNamespace(opt.Netns)
	if err != nil {
		return "", err
	}
	defer ns.close()
	dir := opt.stateDir(ns)
	lock, err := lockDir(dir, false, opt.lockTimeout())
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: no state in %s", ErrNotAttached, dir)
	}
	if err != nil {
		return "", err
	}
	defer lock.unlock()
	unreadable := func(err error) (string, error) {
		return "", fmt.Errorf("%w in %s: its configuration cannot be read: %w", ErrState, dir, err)
	}
	control, err := openArray(filepath.Join(dir, mapsDir, tapgateMapTgControl))
	if err != nil {
		return unreadable(err)
	}
	defer control.Close()
	records, err := openArray(filepath.Join(dir, mapsDir, tapgateMapTgRecords))
	if err != nil {
		return unreadable(err)
	}
	defer records.Close()
	var raw uint64
	if err := control.Lookup(uint32(0), &raw); err != nil {
		return unreadable(err)
	}
	word := unpackControl(raw)
	slot := word.active
	if word.deadline != 0 && bootTime() >= word.deadline {
		slot = word.fallback
	}
	var text struct {
		Source string `json:"source"`
	}
	if err := readRecord(records, slot, &text); err != nil {
		return unreadable(err)
	}
	if text.Source == "" {
		return unreadable(errors.New("there is none"))
	}
	return text.Source, nil
}

func openArray(pin string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return nil, err
	}
	if m.Type() != ebpf.Array || m.KeySize() != 4 {
		m.Close()
		return nil, fmt.Errorf("%s is not such a map as it was", pin)
	}
	return m, nil
}
