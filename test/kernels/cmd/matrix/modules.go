package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// modules adds the wanted kernel modules and what they depend on to the
// archive, with the order to load them in. Debian's packages hold no
// modules.dep, which is made at installation, so the modules themselves are
// asked. Modules that are not there are passed over: built in, or absent, and
// then the probes tell.
func modules(a *archive, folder string, wanted []string) error {
	found := map[string]string{}
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
			found[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	var order strings.Builder
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		path, ok := found[name]
		if !ok || done[name] {
			return nil
		}
		done[name] = true
		content, err := decompress(path)
		if err != nil {
			return err
		}
		needs, err := dependencies(content)
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		a.add("modules/"+name+".ko", content)
		fmt.Fprintln(&order, name+".ko")
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return err
		}
	}
	a.add("modules/order", []byte(order.String()))
	return nil
}

// moduleName is the name as the kernel writes it.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

func decompress(path string) ([]byte, error) {
	var tool string
	switch filepath.Ext(path) {
	case ".xz":
		tool = "xz"
	case ".zst":
		tool = "zstd"
	case ".gz":
		tool = "gzip"
	default:
		return os.ReadFile(path)
	}
	out, err := exec.Command(tool, "-dcq", path).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s with %s: %w", path, tool, err)
	}
	return out, nil
}

// dependencies reads "depends=" and "softdep=pre:" of a module's .modinfo.
func dependencies(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	info := f.Section(".modinfo")
	if info == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	data, err := info.Data()
	if err != nil {
		return nil, err
	}
	var needs []string
	for field := range strings.SplitSeq(string(data), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			needs = append(needs, strings.Split(list, ",")...)
		}
		if list, ok := strings.CutPrefix(field, "softdep=pre:"); ok {
			pre, _, _ := strings.Cut(list, "post:")
			needs = append(needs, strings.Fields(pre)...)
		}
	}
	return needs, nil
}
