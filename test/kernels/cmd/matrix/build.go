package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"tapgate/test/kernels"
)

// binary is a test binary to run on each kernel.
type binary struct {
	test   kernels.Test
	path   string
	folder string // of the package, with its testdata
}

// args are the binary's arguments, for output that test2json reads.
func (b *binary) args(program string) []string {
	// One test at a time: an emulated machine is slow, and traffic is not to wait for others.
	args := []string{program, "-test.v=test2json", "-test.paniconexit0", "-test.timeout=15m", "-test.parallel=1"}
	if b.test.Run != "" {
		args = append(args, "-test.run="+b.test.Run)
	}
	if b.test.Skip != "" {
		args = append(args, "-test.skip="+b.test.Skip)
	}
	return args
}

// build compiles the test binaries of the list, static.
func build(ctx context.Context, folder string, tests []kernels.Test) ([]binary, error) {
	var binaries []binary
	for i, t := range tests {
		dir, err := goCommand(ctx, "list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}", t.Package)
		if err != nil {
			return nil, err
		}
		if dir = strings.TrimSpace(dir); dir == "" {
			fmt.Fprintf(os.Stderr, "kernels: WARNING: %s has no tests: NOT RUN\n", t.Package)
			continue
		}
		b := binary{test: t, folder: dir, path: filepath.Join(folder, fmt.Sprintf("%d-%s.test", i, path.Base(t.Package)))}
		if _, err := goCommand(ctx, "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", b.path, t.Package); err != nil {
			return nil, err
		}
		binaries = append(binaries, b)
	}
	if len(binaries) == 0 {
		return nil, fmt.Errorf("kernels.json names no package that has tests")
	}
	return binaries, nil
}

func goCommand(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return output(cmd)
}

// common is what the initramfs of every kernel holds: init, tests, tools. An
// initramfs may be several archives in a row, so this one is made once.
func common(ctx context.Context, folder string, binaries []binary, tapgate string, tools []string) (*archive, error) {
	a := newArchive()
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run", "var/lib", "root", "modules"} {
		a.folder(dir)
	}
	a.link("var/run", "/run")
	for _, dir := range []string{"sbin", "usr/bin", "usr/sbin"} {
		a.folder(path.Dir(dir))
		a.link(dir, "/bin")
	}
	a.add("etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\ntcpdump:x:108:108::/:/bin/false\n"))
	a.add("etc/group", []byte("root:x:0:\ntcpdump:x:108:\n"))

	initPath := filepath.Join(folder, "init")
	if _, err := goCommand(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", initPath, "./test/kernels/init"); err != nil {
		return nil, err
	}
	if err := a.file("init", initPath); err != nil {
		return nil, err
	}
	if tapgate != "" {
		if err := a.file("bin/tapgate", tapgate); err != nil {
			return nil, err
		}
	}
	var jobs []map[string]any
	for _, b := range binaries {
		dir := "tests/" + strings.TrimPrefix(path.Clean(b.test.Package), "/")
		program := dir + "/" + filepath.Base(b.path)
		if err := a.file(program, b.path); err != nil {
			return nil, err
		}
		if err := testdata(a, dir, b.folder); err != nil {
			return nil, err
		}
		jobs = append(jobs, map[string]any{"package": b.test.Package, "dir": "/" + dir, "args": b.args("/" + program)})
	}
	text, err := json.Marshal(jobs)
	if err != nil {
		return nil, err
	}
	a.add("jobs.json", text)
	return a, addTools(a, tools)
}

func testdata(a *archive, dir, folder string) error {
	return filepath.WalkDir(filepath.Join(folder, "testdata"), func(p string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(folder, p)
		if err != nil {
			return err
		}
		return a.file(path.Join(dir, rel), p)
	})
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// addTools copies programs of this machine with the libraries they are linked to.
func addTools(a *archive, tools []string) error {
	done := map[string]bool{}
	for _, tool := range tools {
		program, err := exec.LookPath(tool)
		if err != nil {
			fmt.Fprintf(os.Stderr, "kernels: WARNING: no %s on this machine: guests go without it\n", tool)
			continue
		}
		if err := a.file("bin/"+tool, program); err != nil {
			return err
		}
		out, _ := exec.Command("ldd", program).Output() // fails for static programs
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			if done[m[1]] {
				continue
			}
			done[m[1]] = true
			if err := a.file(strings.TrimPrefix(m[1], "/"), m[1]); err != nil {
				return err
			}
		}
	}
	return nil
}
