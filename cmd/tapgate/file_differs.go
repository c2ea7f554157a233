package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sys/unix"

	"tapgate/loader"
)

// The file that was applied is the user's. What is in force is in the kernel, and
// commands change it there, so the two may come to differ: "status" says so.

// fileState is the file of the configuration in force.
type fileState struct {
	Path    string `json:"path"`
	Differs bool   `json:"differs"` // from what is in force, in its meaning
	Note    string `json:"note,omitempty"`
}

// readRegular reads a configuration from a file that may have become anything since.
func readRegular(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not keep us
	if err != nil {
		return nil, err
	}
	defer f.Close()
	is, err := f.Stat()
	if err == nil && !is.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", name)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxConfig+1))
}

// sumOf tells the content of a file from another.
func sumOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// sourceFile is a file that was given for a configuration with this content, if it is one
// that can be found and written again: no pipe, and nothing of this process alone.
func sourceFile(name string, content []byte) loader.SourceFile {
	path, err := filepath.Abs(name)
	if err != nil || strings.HasPrefix(path, "/dev/") || strings.HasPrefix(path, "/proc/") {
		return loader.SourceFile{}
	}
	if is, err := os.Stat(path); err != nil || !is.Mode().IsRegular() {
		return loader.SourceFile{}
	}
	return loader.SourceFile{Path: path, Sum: sumOf(content)}
}

// fileBeside is the file of a configuration that was kept for the boot: people change
// that one, also if it is not what is applied.
func fileBeside(name string, kept loader.Config) loader.SourceFile {
	content, err := readRegular(name)
	if err != nil {
		return loader.SourceFile{}
	}
	file := sourceFile(name, content)
	if doc, err := parseConfig(name, content); err != nil || !sameMeaning(doc.Config, kept) {
		file.Sum = ""
	}
	return file
}

// lookAtFile compares the file with the text in force; nil if there is none.
func lookAtFile(file loader.SourceFile, source string) *fileState {
	if file.Path == "" {
		return nil
	}
	s := &fileState{Path: file.Path, Differs: true}
	content, err := readRegular(file.Path)
	if errors.Is(err, os.ErrNotExist) {
		s.Note = "it is gone; to write what is in force: tapgate config save"
		return s
	}
	if err != nil {
		s.Note = "it cannot be read: " + err.Error()
		return s
	}
	if strings.TrimPrefix(string(content), byteOrderMark) == source {
		s.Differs = false
		return s
	}
	doc, err := parseConfig(filepath.Base(file.Path), content)
	if err != nil {
		s.Note = "it is not understood: " + errorLines(err)[0]
		return s
	}
	inForce, err := parseConfig("", []byte(source))
	switch {
	case err == nil && sameMeaning(doc.Config, inForce.Config):
		s.Differs = false
	case sumOf(content) == file.Sum:
		s.Note = "it lacks what commands have changed since; to write that too: tapgate config save"
	default:
		s.Note = "it differs from what is in force, which was not made from it as it is now; what it would change: tapgate apply --dry-run -f " + file.Path
	}
	return s
}

// pairs are the file's lines among other facts.
func (s *fileState) pairs() []string {
	if s == nil {
		return nil
	}
	pairs := []string{"file", s.Path}
	for part := range strings.SplitSeq(s.Note, "; ") { // what to type gets a line
		for line := range strings.SplitSeq(text.WrapSoft(part, 80), "\n") {
			if line = strings.TrimSpace(line); line != "" {
				pairs = append(pairs, "", line)
			}
		}
	}
	return pairs
}
