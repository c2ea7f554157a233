package main

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// stagedFile is the next content of a file, written and on the disk, but not yet in its
// place: what can fail has been done before anything depends on it.
type stagedFile struct {
	name, next string
}

// stageFile writes the next content of a file beside it, with the mode and the owner that
// the file has, or this mode if there is none. put or drop has to follow, and until then
// nobody else may stage the same file: the caller holds the gateway's lock, or one of the
// folder. What one that was killed in between has left is taken away.
func stageFile(name string, text []byte, mode os.FileMode) (*stagedFile, error) {
	dir, base := filepath.Split(name)
	s := &stagedFile{name: name, next: filepath.Join(dir, "."+base+".new")}
	var is unix.Stat_t
	err := unix.Stat(name, &is)
	exists := err == nil
	switch {
	case exists:
		mode = os.FileMode(is.Mode & 0o777)
	case !errors.Is(err, unix.ENOENT):
		return nil, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	// Nobody else's file, and not through a link that somebody else has put there.
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := os.OpenFile(s.next, flags, mode)
	if errors.Is(err, os.ErrExist) {
		if err := os.Remove(s.next); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(s.next, flags, mode)
	}
	if err != nil {
		return nil, err
	}
	if exists {
		if int(is.Uid) != os.Geteuid() || int(is.Gid) != os.Getegid() {
			err = f.Chown(int(is.Uid), int(is.Gid))
		}
		err = errors.Join(err, f.Chmod(mode)) // the umask does not count
	}
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, errors.Join(err, s.drop())
	}
	return s, nil
}

// put puts the content in its place, at once, also if the power fails.
func (s *stagedFile) put() error {
	if err := os.Rename(s.next, s.name); err != nil {
		return errors.Join(err, s.drop())
	}
	folder, err := os.Open(filepath.Dir(s.name))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// drop gives the content up.
func (s *stagedFile) drop() error {
	if err := os.Remove(s.next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
