package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketPrefix = "unix:"
	// socketPathMax is what the kernel has room for, less the zero at its end.
	socketPathMax = len(unix.RawSockaddrUnix{}.Path) - 1
	// socketWait bounds how long it takes to see whether somebody listens at a socket.
	socketWait = time.Second
)

// metricsSocket is a unix socket that metrics are served at.
type metricsSocket struct {
	path string
	gid  int // whose members may read, -1: root alone
}

// socket is where --listen says so, nil for an address.
func (f *agentFlags) socket() (*metricsSocket, error) {
	path, ok := strings.CutPrefix(f.listen, socketPrefix)
	switch {
	case !ok && f.listenGroup != "":
		return nil, usagef("--listen-group is for --listen %sPATH: everybody on the machine may read at an address", socketPrefix)
	case !ok:
		return nil, nil
	case !filepath.IsAbs(path):
		return nil, usagef("--listen %q: the path must begin with /", f.listen)
	case len(path) > socketPathMax:
		return nil, usagef("--listen %q: the path of a socket has %d bytes at most", f.listen, socketPathMax)
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
		return nil, usagef("--listen %q: there is no folder %s", f.listen, filepath.Dir(path))
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != fs.ModeSocket {
		return nil, usagef("--listen %q: there is something else, which is left as it is: name another path", f.listen)
	}
	s := &metricsSocket{path: path, gid: -1}
	if f.listenGroup == "" {
		return s, nil
	}
	number := f.listenGroup
	if group, err := user.LookupGroup(f.listenGroup); err == nil {
		number = group.Gid
	}
	gid, err := strconv.ParseUint(number, 10, 31)
	if err != nil {
		return nil, usagef("--listen-group %q: there is no such group", f.listenGroup)
	}
	s.gid = int(gid)
	return s, nil
}

// joinGroup makes this process a member of the group of --listen-group: it may then give
// the socket to it without any capability, of which an agent keeps as few as it can.
func (f *agentFlags) joinGroup() error {
	s, err := f.socket()
	if err != nil || s == nil || s.gid < 0 {
		return err
	}
	groups, err := os.Getgroups()
	if err != nil || os.Getegid() == s.gid || slices.Contains(groups, s.gid) {
		return err
	}
	if err := syscall.Setgroups(append(groups, s.gid)); err != nil {
		return fmt.Errorf("join the group %s of --listen-group: %w: in a systemd unit name it in SupplementaryGroups=", f.listenGroup, err)
	}
	return nil
}

// listen makes the socket, in place of one that an agent who was killed has left.
func (s *metricsSocket) listen() (l net.Listener, err error) {
	failed := func(err error) (net.Listener, error) {
		return nil, fmt.Errorf("listen at %s%s: %w", socketPrefix, s.path, err)
	}
	if err := s.clear(); err != nil {
		return failed(err)
	}
	// Nobody may connect before it is the group's.
	old := unix.Umask(0o177)
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return failed(err)
	}
	if s.gid < 0 {
		return socket, nil
	}
	err = os.Lchown(s.path, -1, s.gid)
	if err == nil {
		err = os.Chmod(s.path, 0o660)
	}
	if err != nil {
		return failed(errors.Join(err, socket.Close()))
	}
	return socket, nil
}

// clear removes a socket at which nobody listens. What else may be there was refused.
func (s *metricsSocket) clear() error {
	ctx, cancel := context.WithTimeout(context.Background(), socketWait)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(s.path)
	case err != nil:
		return fmt.Errorf("see whether somebody listens there already: %w", err)
	}
	return errors.Join(errors.New("somebody listens there already: another agent?"), c.Close())
}
