// Package builds makes other builds of tapgate out of this tree, for tests of what
// happens when one takes over from another.
package builds

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Edit replaces text in a file of the repository, where it must stand exactly once.
type Edit struct{ File, Old, New string }

// The edits that tests ask for.
var (
	// Programs makes other programs, which do the same: more of a packet is pulled into
	// its linear part, where that has to be done.
	Programs = Edit{"headers/skb.h", "#define TG_PULL 96", "#define TG_PULL 97"}
	// FastMagic has programs know packets past the stack by another number, and Handover
	// says that they hand each other something else.
	FastMagic = Edit{"headers/fast.h", "#define TG_FAST_MAGIC 0x66617374u", "#define TG_FAST_MAGIC 0x66617375u"}
	Handover  = Edit{"loader/upgrade.go", "\nconst Handover = ", "\nconst Handover = 100 + "}
	// Layout has maps that are not those of before, as far as tapgate knows.
	Layout = Edit{"loader/record.go", "\nconst Layout = ", "\nconst Layout = 100 + "}
)

// Make builds a tapgate with these edits into dir, which keeps what was made on the
// way. It needs clang 19 if the edits are of the programs.
func Make(dir string, edits ...Edit) (binary string, err error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	root := strings.TrimSpace(string(out))
	replace := map[string]string{} // file of the repository -> what the compiler takes
	programs := false
	for _, e := range edits {
		text, err := os.ReadFile(filepath.Join(root, e.File))
		if err != nil {
			return "", err
		}
		if n := strings.Count(string(text), e.Old); n != 1 {
			return "", fmt.Errorf("%s has %q %d times", e.File, e.Old, n)
		}
		edited := filepath.Join(dir, e.File)
		err = os.MkdirAll(filepath.Dir(edited), 0o755)
		if err == nil {
			err = os.WriteFile(edited, []byte(strings.Replace(string(text), e.Old, e.New, 1)), 0o644)
		}
		if err != nil {
			return "", err
		}
		replace[filepath.Join(root, e.File)] = edited
		programs = programs || strings.HasPrefix(e.File, "headers/")
	}
	if programs {
		object := filepath.Join(dir, "tapgate_bpfel.o")
		if err := compile(root, dir, object); err != nil {
			return "", err
		}
		replace[filepath.Join(root, "loader/tapgate_bpfel.o")] = object
	}
	overlay := filepath.Join(dir, "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(overlay, text, 0o644)
	}
	if err != nil {
		return "", err
	}
	binary = filepath.Join(dir, "tapgate")
	build := exec.Command("go", "build", "-overlay", overlay, "-o", binary, "./cmd/tapgate")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build tapgate: %w\n%s", err, out)
	}
	return binary, nil
}

// compile is what scripts/generate.sh does, with the edited headers before the others.
func compile(root, dir, object string) error {
	headers := filepath.Join(dir, "headers")
	others, err := filepath.Glob(filepath.Join(root, "headers", "*.h"))
	if err != nil {
		return err
	}
	for _, h := range others { // a header looks for others beside itself first
		to := filepath.Join(headers, filepath.Base(h))
		if _, err := os.Stat(to); err == nil {
			continue
		}
		if err := os.Symlink(h, to); err != nil {
			return err
		}
	}
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	clang := exec.Command("clang-19", "-target", "bpfel", "-O2", "-g", "-mcpu=v3", "-I", headers,
		"-I", "/usr/include/"+arch+"-linux-gnu", "-c", filepath.Join(root, "bpf", "tapgate.bpf.c"), "-o", object)
	if out, err := clang.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the programs (scripts/deps.sh installs clang-19): %w\n%s", err, out)
	}
	return nil
}
