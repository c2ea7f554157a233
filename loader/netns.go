package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// netnsFolders is where "ip netns" keeps names; on most systems one is the other.
var netnsFolders = []string{"/run/netns", "/var/run/netns"}

// threadNetns is the network namespace of the calling thread.
const threadNetns = "/proc/thread-self/ns/net"

// namespace is a network namespace held open.
type namespace struct {
	inode  uint64
	cookie uint64 // never reused, unlike the inode; 0 where the kernel has none (before 5.14)
	dev    uint64
	fd     int
}

// openNamespace opens a network namespace by name (as in "ip netns") or path; ""
// is the caller's.
func openNamespace(nameOrPath string) (*namespace, error) {
	path, what := nameOrPath, fmt.Sprintf("network namespace %q", nameOrPath)
	switch {
	case nameOrPath == "":
		path, what = threadNetns, "own network namespace"
	case !strings.Contains(nameOrPath, "/"):
		path = namedNetns(nameOrPath)
		if path == "" {
			return nil, fmt.Errorf("there is no %s; %s", what, knownNetns())
		}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", what, &os.PathError{Op: "open", Path: path, Err: err})
	}
	n := &namespace{fd: fd}
	// A name outlives its namespace as a plain file when its mount is lost.
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		return nil, fmt.Errorf("open %s: %s is not a network namespace; %s", what, path, knownNetns())
	}
	if n.dev, n.inode, err = nsIdentity(path, fd); err == nil {
		err = n.do(func() (err error) { n.cookie, err = netnsCookie(); return err })
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %s: %w", what, err)
	}
	return n, nil
}

// do calls f in the namespace. Links, addresses, qdiscs, sockets and /proc/sys/net
// are those of the namespace in there; /sys/class/net and /proc/net are not.
func (n *namespace) do(f func() error) error {
	// Threads that run ordinary goroutines never change their namespace, so
	// what is true here stays true for all of f.
	if dev, inode, err := nsIdentity(threadNetns, -1); err == nil && dev == n.dev && inode == n.inode {
		return f()
	}
	err := errors.New("the function called in a network namespace did not return")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		back, e := unix.Open(threadNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if e != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("open own network namespace: %w", e)
			return
		}
		defer unix.Close(back)
		if e := unix.Setns(n.fd, unix.CLONE_NEWNET); e != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("enter network namespace: %w", e)
			return
		}
		defer func() {
			if unix.Setns(back, unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			} // else the runtime ends the thread with this goroutine
		}()
		err = f()
	}()
	<-done
	return err
}

// close lets go of the namespace.
func (n *namespace) close() error {
	if n.fd < 0 {
		return nil
	}
	fd := n.fd
	n.fd = -1
	return unix.Close(fd)
}

// nsIdentity is what makes a namespace the same one while it lives: by fd, or by
// path if that is negative.
func nsIdentity(path string, fd int) (dev, inode uint64, err error) {
	var st unix.Stat_t
	if fd >= 0 {
		err = unix.Fstat(fd, &st)
	} else {
		err = unix.Stat(path, &st)
	}
	if err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return uint64(st.Dev), st.Ino, nil
}

// netnsCookie asks for the cookie of the thread's network namespace.
func netnsCookie() (uint64, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("read cookie of the network namespace: %w", err)
	}
	defer unix.Close(s)
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read cookie of the network namespace: %w", err)
	}
	return cookie, nil
}

func namedNetns(name string) string {
	for _, dir := range netnsFolders {
		if path := filepath.Join(dir, name); name != "." && name != ".." && pathExists(path) {
			return path
		}
	}
	return ""
}

func pathExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// knownNetns ends an error: what there is, or what to do.
func knownNetns() string {
	var names []string
	for _, dir := range netnsFolders {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	if len(names) == 0 {
		return "\"ip netns\" knows none, so make one (ip netns add NAME) or give a path such as /proc/PID/ns/net"
	}
	more := ""
	if len(names) > 10 {
		more = fmt.Sprintf(" and %d more", len(names)-10)
		names = names[:10]
	}
	return "there are: " + strings.Join(names, ", ") + more + "; a path such as /proc/PID/ns/net will do as well"
}
