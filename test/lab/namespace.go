package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where "ip netns" and the --netns flag look for names.
const netnsDir = "/run/netns"

// labAlias marks the loopback of a lab's namespace, so that the sweep never
// takes a stranger's namespace that happens to have such a name.
const labAlias = "tapgate lab"

// namespace is a named network namespace. A shared lock is held on it as long
// as its owner lives: that, and not the pid in the name, is what RemoveStale
// goes by.
type namespace struct {
	name string
	file *os.File
}

func newNamespace(name string) (*namespace, error) {
	unlock, err := lockNetnsDir()
	if err != nil {
		return nil, err
	}
	defer unlock()

	path := filepath.Join(netnsDir, name)
	ns := &namespace{name: name}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace %q: %w", name, err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetAlias(lo, labAlias); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
		if err != nil {
			return err
		}
		f.Close()
		if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
			return errors.Join(fmt.Errorf("mount %s: %w", path, err), os.Remove(path))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if ns.file, err = os.Open(path); err != nil {
		return nil, errors.Join(err, removeName(path))
	}
	if err := unix.Flock(int(ns.file.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), ns.remove())
	}
	return ns, nil
}

// remove takes away the name; the kernel takes the rest with its last user.
func (ns *namespace) remove() error {
	return errors.Join(removeName(filepath.Join(netnsDir, ns.name)), ns.file.Close())
}

func removeName(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// do runs f in the namespace, on the caller's goroutine.
func (ns *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %q: %w", ns.name, err)
		}
		return f()
	})
}

// onThread keeps f on one thread and brings that thread back into the network
// namespace it was in. If it cannot be brought back it stays locked, so that
// the runtime never gives it to other code.
func onThread(f func() error) (err error) {
	runtime.LockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if back := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); back != nil {
			err = errors.Join(err, fmt.Errorf("return to the former network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		before.Close()
	}()
	return f()
}

// lockNetnsDir makes /run/netns as "ip netns" does, with mounts that other
// mount namespaces see, and keeps other labs and sweeps out until unlocked.
func lockNetnsDir() (unlock func(), err error) {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("share mounts of %s: %w", netnsDir, err)
	}
	return func() { dir.Close() }, nil
}
