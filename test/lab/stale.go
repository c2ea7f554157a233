package lab

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var (
	spaceForm = regexp.MustCompile(`^[a-z][a-z0-9]*-[0-9]+-[0-9]+-(gw|srv[0-9]+|out[0-9]+|sensor|mgmt|second|sw-[a-z]+)$`)
	dirForm   = regexp.MustCompile(`^[a-z][a-z0-9]*-[0-9]+-[0-9]+-[0-9]+$`)
)

// RemoveStale removes what labs left behind whose process was killed, and
// returns what it removed. Labs in use, and namespaces that are not a lab's,
// are not touched.
func RemoveStale() (removed []string, err error) {
	unlock, err := lockNetnsDir()
	if err != nil {
		return nil, err
	}
	defer unlock()
	entries, err := os.ReadDir(netnsDir)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(netnsDir, e.Name())
		if spaceForm.MatchString(e.Name()) && isStale(path, isOurs) {
			errs = append(errs, removeName(path))
			removed = append(removed, path)
		}
	}
	// Folders after namespaces: a lab takes its folder first.
	entries, err = os.ReadDir(os.TempDir())
	if err != nil {
		return removed, err
	}
	for _, e := range entries {
		path := filepath.Join(os.TempDir(), e.Name())
		if dirForm.MatchString(e.Name()) && e.IsDir() && isStale(path, isOurDir) {
			errs = append(errs, removeDir(path))
			removed = append(removed, path)
		}
	}
	return removed, errors.Join(errs...)
}

// isStale says whether path is a lab's and nobody holds its lock.
func isStale(path string, ours func(*os.File) bool) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return ours(f) && unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil
}

func isOurs(f *os.File) bool {
	h, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()))
	if err != nil {
		return false
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	return err == nil && lo.Attrs().Alias == labAlias
}

// isOurDir: in a folder that all may write to, anybody may make such a name.
func isOurDir(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 {
		return false
	}
	_, err = os.Lstat(filepath.Join(f.Name(), markName))
	return err == nil
}
