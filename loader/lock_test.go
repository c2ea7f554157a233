package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// helperProcess is this test binary again, as another process: see TestHelper.
func helperProcess(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append([]string{"-test.run=^TestHelper$", "--"}, args...)...)
	cmd.Env = append(os.Environ(), "TAPGATE_TEST_HELPER=1")
	return cmd
}

// TestHelper is what helper processes run; in a normal run it does nothing.
func TestHelper(t *testing.T) {
	if os.Getenv("TAPGATE_TEST_HELPER") == "" {
		return
	}
	var err error
	switch args := os.Args[len(os.Args)-2:]; args[0] {
	case "lock-exclusive", "lock-shared":
		var l *dirLock
		if l, err = lockDir(args[1], args[0] == "lock-exclusive", 0); err == nil {
			fmt.Println("locked")
			io.Copy(io.Discard, os.Stdin) // until the parent closes it
			err = l.unlock()
		}
	case "private-bpffs":
		err = helperPrivateBPFFS(args[1])
	}
	if err != nil {
		t.Fatal(err)
	}
}

// startHolder starts a process that holds a lock, until end or the test ends it.
func startHolder(t *testing.T, how, dir string) (pid int, end func()) {
	t.Helper()
	cmd := helperProcess(how, dir)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = func() { in.Close(); cmd.Wait() }
	t.Cleanup(end)
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "locked" {
		t.Fatalf("the other process did not get the lock: %q", lines.Text())
	}
	return cmd.Process.Pid, end
}

func lockFolder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(newTestBPFFS(t), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tryLock(t *testing.T, dir string, exclusive bool, timeout time.Duration) error {
	t.Helper()
	l, err := lockDir(dir, exclusive, timeout)
	if err == nil {
		err = l.unlock()
	}
	return err
}

func TestLockBusySaysWhoHoldsIt(t *testing.T) {
	dir := lockFolder(t)
	pid, end := startHolder(t, "lock-exclusive", dir)
	for _, exclusive := range []bool{false, true} {
		err := tryLock(t, dir, exclusive, 50*time.Millisecond)
		want := fmt.Sprintf("another tapgate is at work: pid %d (%s -test.run=^TestHelper$ -- lock-exclusive %s) holds %s; waited 50ms",
			pid, filepath.Base(os.Args[0]), dir, dir)
		if !errors.Is(err, ErrBusy) || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	end()
	if err := tryLock(t, dir, true, 0); err != nil {
		t.Error(err)
	}
}

func TestLockIsShared(t *testing.T) {
	dir := lockFolder(t)
	pid, _ := startHolder(t, "lock-shared", dir)
	own, err := lockDir(dir, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer own.unlock()
	err = tryLock(t, dir, true, 0)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d (", pid)) ||
		!strings.Contains(err.Error(), fmt.Sprintf("pid %d (", os.Getpid())) || !strings.Contains(err.Error(), ") hold ") {
		t.Errorf("got %v", err)
	}
}

// waitingLock calls lockDir, which waits for another process, then lets change do
// something, ends the other process, and returns what lockDir did.
func waitingLock(t *testing.T, dir string, change func()) (*dirLock, error) {
	t.Helper()
	_, end := startHolder(t, "lock-exclusive", dir)
	type result struct {
		l   *dirLock
		err error
	}
	got := make(chan result)
	opened := openFiles(t, dir)
	go func() {
		l, err := lockDir(dir, true, time.Minute)
		got <- result{l, err}
	}()
	waitUntil(t, func() error {
		if openFiles(t, dir) == opened {
			return errors.New("lockDir did not open the folder")
		}
		return nil
	})
	change()
	end()
	r := <-got
	return r.l, r.err
}

// openFiles counts descriptors of this process on a path.
func openFiles(t *testing.T, path string) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to == path {
			n++
		}
	}
	return n
}

func TestLockWaitsUntilItIsFree(t *testing.T) {
	dir := lockFolder(t)
	l, err := waitingLock(t, dir, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.unlock(); err != nil {
		t.Error(err)
	}
	if n := openFiles(t, dir); n != 0 {
		t.Errorf("%d descriptors are left open", n)
	}
}

func TestLockOfFolderThatWasReplaced(t *testing.T) {
	dir := lockFolder(t)
	l, err := waitingLock(t, dir, func() {
		if err := os.Rename(dir, dir+"-old"); err != nil {
			t.Error(err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.unlock()
	if err := tryLock(t, dir, true, 0); !errors.Is(err, ErrBusy) {
		t.Errorf("the new folder is not locked: %v", err)
	}
	if err := tryLock(t, dir+"-old", true, 0); err != nil {
		t.Errorf("the old folder is still locked: %v", err)
	}
}

// Between opening and locking the folder may become another one as well.
func TestStillThere(t *testing.T) {
	dir := lockFolder(t)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if same, err := stillThere(f, dir); !same || err != nil {
		t.Errorf("got %v, %v of the same folder", same, err)
	}
	if err := os.Rename(dir, dir+"-old"); err != nil {
		t.Fatal(err)
	}
	if same, err := stillThere(f, dir); same || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, %v of no folder", same, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if same, err := stillThere(f, dir); same || err != nil {
		t.Errorf("got %v, %v of another folder", same, err)
	}
}

func TestLockOfFolderThatWasRemoved(t *testing.T) {
	dir := lockFolder(t)
	_, err := waitingLock(t, dir, func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := tryLock(t, dir, true, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v of a folder that is not there", err)
	}
}
