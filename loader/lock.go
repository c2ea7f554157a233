package loader

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a lock that is held is tried again.
const lockPoll = 20 * time.Millisecond

// dirLock is a lock on a folder, which the kernel takes back when the process ends.
type dirLock struct{ f *os.File }

// lockDir locks a folder, shared or exclusive, and waits for at most timeout. It
// fails with os.ErrNotExist if the folder is not there or was removed by whoever
// held the lock, and with ErrBusy, saying who holds it, when time is up.
func lockDir(dir string, exclusive bool, timeout time.Duration) (*dirLock, error) {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	for end := time.Now().Add(timeout); ; {
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		switch err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); {
		case err == nil:
			same, err := stillThere(f, dir)
			if same {
				return &dirLock{f}, nil
			}
			f.Close()
			if err != nil {
				return nil, fmt.Errorf("lock: %w", err)
			}
			continue // another folder has the name now: lock that one
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			if time.Now().After(end) {
				who := holders(f)
				f.Close()
				return nil, fmt.Errorf("%w: %s %s; waited %s", ErrBusy, who, dir, timeout)
			}
			time.Sleep(lockPoll)
		default:
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		f.Close()
	}
}

// unlock gives the lock back.
func (l *dirLock) unlock() error {
	if l == nil || l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return f.Close()
}

// stillThere says whether dir is the folder that f was opened as.
func stillThere(f *os.File, dir string) (bool, error) {
	locked, err := f.Stat()
	if err != nil {
		return false, err
	}
	now, err := os.Stat(dir)
	if err != nil {
		return false, err
	}
	return os.SameFile(locked, now), nil
}

// holders names the processes that hold a lock on f, ready for "... DIR".
func holders(f *os.File) string {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return "somebody holds"
	}
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
	locks, _ := os.ReadFile("/proc/locks")
	var found []string
	for line := range strings.Lines(string(locks)) {
		// "1: FLOCK  ADVISORY  WRITE 123 00:21:456 0 EOF"; a waiter has "->" in place of the kind
		fields := strings.Fields(line)
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[5] != want {
			continue
		}
		pid, err := strconv.Atoi(fields[4])
		if err != nil || pid <= 0 { // of a pid namespace that cannot be seen from here
			found = append(found, "a process of another pid namespace")
			continue
		}
		found = append(found, fmt.Sprintf("pid %d%s", pid, commandLine(pid)))
	}
	switch len(found) {
	case 0: // given back since, or not shown here
		return "somebody holds"
	case 1:
		return found[0] + " holds"
	}
	return strings.Join(found, ", ") + " hold"
}

// commandLine is " (tapgate apply -f x.yaml)", or "" for a process that is gone.
func commandLine(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	raw = bytes.TrimRight(raw, "\x00")
	if err != nil || len(raw) == 0 {
		return ""
	}
	args := strings.Split(string(raw), "\x00")
	args[0] = filepath.Base(args[0])
	line := strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.Join(args, " "))
	if r := []rune(line); len(r) > 160 {
		line = string(r[:160]) + "..."
	}
	return " (" + line + ")"
}
