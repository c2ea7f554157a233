package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
)

// archive is an initramfs in the making: the kernel's "newc" cpio format.
// Several archives one after the other are one initramfs.
type archive struct {
	w       *bytes.Buffer
	folders map[string]bool
}

func newArchive() *archive {
	return &archive{w: &bytes.Buffer{}, folders: map[string]bool{".": true, "": true}}
}

const (
	modeFolder = 0o040755
	modeFile   = 0o100755
	modeLink   = 0o120777
)

// add puts in a file at name (without leading slash), and the folders above it.
func (a *archive) add(name string, content []byte) { a.entry(name, modeFile, content) }

// link puts in a symbolic link.
func (a *archive) link(name, target string) { a.entry(name, modeLink, []byte(target)) }

// folder puts in an empty folder.
func (a *archive) folder(name string) {
	if !a.folders[name] {
		a.entry(name, modeFolder, nil)
		a.folders[name] = true
	}
}

// file puts in a file of this machine.
func (a *archive) file(name, source string) error {
	content, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	a.add(name, content)
	return nil
}

func (a *archive) entry(name string, mode int, content []byte) {
	if dir := path.Dir(name); !a.folders[dir] {
		a.folder(dir)
	}
	links := 1
	if mode == modeFolder {
		links = 2
	}
	// magic, inode (0: never hard links), mode, uid, gid, links, mtime, size, device x4, name size, checksum
	fmt.Fprintf(a.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		0, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.w.WriteString(name + "\x00")
	a.pad()
	a.w.Write(content)
	a.pad()
}

func (a *archive) pad() { a.w.Write(make([]byte, -a.w.Len()&3)) }

// bytes ends the archive and returns it.
func (a *archive) bytes() []byte {
	a.entry("TRAILER!!!", 0, nil)
	a.w.Write(make([]byte, -a.w.Len()&511))
	return a.w.Bytes()
}
