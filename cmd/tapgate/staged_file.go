package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// stagedFile is the next content of a file, written and on the disk, but not yet in its
// place: what can fail has been done before anything depends on it.
type stagedFile struct {
	name, next string
	file       *os.File // of next; its lock says that somebody is at work
}

// stageFile writes the next content of a file beside it, with the mode and the owner that
// the file has, or this mode if there is none. put or drop has to follow; until then nobody
// else can stage the same file, as for another gateway. What one that was killed in between
// has left is taken away.
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
		if err := removeStaged(s.next); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(s.next, flags, mode)
	}
	if err != nil {
		return nil, err
	}
	s.file = f
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && exists {
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
	if err != nil {
		return nil, errors.Join(err, s.drop())
	}
	return s, nil
}

// removeStaged takes away what one that was killed has left.
func removeStaged(next string) error {
	old, err := os.OpenFile(next, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		defer old.Close()
		if err := unix.Flock(int(old.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("another tapgate is writing %s: try again", next)
		}
	case errors.Is(err, os.ErrNotExist): // it was done just now
		return nil
	case !errors.Is(err, unix.ELOOP): // a link is nobody's
		return err
	}
	return os.Remove(next)
}

// put puts the content in its place, at once, also if the power fails.
func (s *stagedFile) put() error {
	if err := os.Rename(s.next, s.name); err != nil {
		return errors.Join(err, s.drop())
	}
	if err := s.file.Close(); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(s.name))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// drop gives the content up.
func (s *stagedFile) drop() error {
	err := os.Remove(s.next)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, s.file.Close())
}
