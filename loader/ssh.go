package loader

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// connection is an established TCP connection as this machine sees it.
type connection struct {
	local, peer netip.AddrPort
}

// sshConnections walks up from pid to the sshd that it came through. sudo and
// env clear SSH_CONNECTION; where it is set it helps those that left their sshd.
// Below tmux and screen the server is no child of an sshd, but its clients are.
// netns is where that sshd runs; 0 is anywhere.
func sshConnections(pid int, netns uint64) ([]connection, error) {
	above, err := ancestors(pid)
	if err != nil {
		return nil, err
	}
	for _, p := range above {
		if p.comm == "tmux: server" || p.comm == "screen" || p.comm == "SCREEN" {
			above = append(above, multiplexerClients(p)...)
			break
		}
	}
	var conns []connection
	for _, p := range above {
		// OpenSSH 9.8 and later: sshd-session.
		if !strings.HasPrefix(p.comm, "sshd") && p.comm != "dropbear" {
			continue
		}
		if inode, err := netnsOf(p.pid); err != nil || netns != 0 && inode != netns {
			continue
		}
		if c, ok := firstConnection(p.pid); ok && !slices.Contains(conns, c) {
			conns = append(conns, c)
		}
	}
	if c, ok := announcedConnection(os.Getenv("SSH_CONNECTION")); ok && !slices.Contains(conns, c) {
		conns = append(conns, c)
	}
	return conns, nil
}

type process struct {
	pid, parent int
	comm        string
	uid         uint32
}

func readProcess(pid int) (process, error) {
	p := process{pid: pid}
	dir := fmt.Sprintf("/proc/%d", pid)
	text, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return p, err
	}
	// "pid (comm) state ppid ...", and comm may hold anything.
	open, end := strings.IndexByte(string(text), '('), strings.LastIndexByte(string(text), ')')
	if open < 0 || end < open {
		return p, fmt.Errorf("%s/stat: unknown format", dir)
	}
	p.comm = string(text[open+1 : end])
	if fields := strings.Fields(string(text[end+1:])); len(fields) > 1 {
		p.parent, err = strconv.Atoi(fields[1])
	}
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil {
		p.uid = st.Uid
	}
	return p, err
}

// ancestors of pid, nearest first. One that ends meanwhile ends the list.
func ancestors(pid int) ([]process, error) {
	var list []process
	p, err := readProcess(pid)
	for err == nil && p.parent > 0 {
		if p, err = readProcess(p.parent); err == nil {
			list = append(list, p)
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return list, err
}

// multiplexerClients are the ancestors of all clients of server's user.
func multiplexerClients(server process) (list []process) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		p, err := readProcess(pid)
		if err != nil || p.pid == server.pid || p.uid != server.uid {
			continue
		}
		if p.comm == "tmux: client" || p.comm == "screen" {
			above, _ := ancestors(p.pid)
			list = append(list, above...)
		}
	}
	return list
}

func netnsOf(pid int) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st)
	return st.Ino, err
}

// firstConnection is the established TCP connection on the lowest descriptor of
// pid: sshd has its client's from the start, and those it forwards come later.
func firstConnection(pid int) (connection, bool) {
	dir := fmt.Sprintf("/proc/%d", pid)
	byInode := map[string]connection{}
	for _, table := range []string{"tcp", "tcp6"} {
		for inode, c := range establishedIn(dir + "/net/" + table) {
			byInode[inode] = c
		}
	}
	entries, _ := os.ReadDir(dir + "/fd")
	var fds []int
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			fds = append(fds, fd)
		}
	}
	slices.Sort(fds)
	for _, fd := range fds {
		text, _ := os.Readlink(fmt.Sprintf("%s/fd/%d", dir, fd))
		inode, ok := strings.CutPrefix(text, "socket:[")
		if !ok {
			continue
		}
		if c, ok := byInode[strings.TrimSuffix(inode, "]")]; ok {
			return c, true
		}
	}
	return connection{}, false
}

// announcedConnection takes SSH_CONNECTION ("client port server port"), if it
// is a connection of the calling thread's namespace and still there.
func announcedConnection(text string) (connection, bool) {
	f := strings.Fields(text)
	if len(f) != 4 {
		return connection{}, false
	}
	peer, err1 := addrPort(f[0], f[1])
	local, err2 := addrPort(f[2], f[3])
	if err1 != nil || err2 != nil {
		return connection{}, false
	}
	want := connection{local: local, peer: peer}
	for _, table := range []string{"tcp", "tcp6"} {
		for _, c := range establishedIn("/proc/thread-self/net/" + table) {
			if c == want {
				return want, true
			}
		}
	}
	return connection{}, false
}

func addrPort(host, port string) (netip.AddrPort, error) {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(addr.Unmap().WithZone(""), uint16(n)), err
}

// establishedIn reads a table as in /proc/net/tcp: connections by socket inode.
func establishedIn(path string) map[string]connection {
	conns := map[string]connection{}
	f, err := os.Open(path)
	if err != nil {
		return conns
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// sl, local, remote, state, queues, timer, retransmits, uid, timeout, inode
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != "01" {
			continue
		}
		local, ok1 := parseProcAddr(fields[1])
		peer, ok2 := parseProcAddr(fields[2])
		if ok1 && ok2 {
			conns[fields[9]] = connection{local: local, peer: peer}
		}
	}
	return conns
}

// parseProcAddr reads "0100007F:1F90": 32-bit words printed as numbers,
// then the port as a number.
func parseProcAddr(text string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if !ok || err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 { // no-op on a big-endian machine
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok && err == nil
}
