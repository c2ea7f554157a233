package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapgate/test/kernels"
)

func TestNamespaceByNameAndPath(t *testing.T) {
	name := newTestNetns(t)
	byName := openTestNetns(t, name)
	byPath := openTestNetns(t, "/run/netns/"+name)
	other := openTestNetns(t, newTestNetns(t))
	own := openTestNetns(t, "")

	var st unix.Stat_t
	if err := unix.Stat("/run/netns/"+name, &st); err != nil {
		t.Fatal(err)
	}
	if byName.inode != st.Ino || byPath.inode != st.Ino {
		t.Errorf("inodes %d and %d, want %d", byName.inode, byPath.inode, st.Ino)
	}
	if byName.cookie != byPath.cookie {
		t.Errorf("one namespace has cookies %d and %d", byName.cookie, byPath.cookie)
	}
	if byName.cookie == 0 {
		kernels.Require(t, "netns_cookie")
		t.Fatal("the kernel has cookies of namespaces, and none was read")
	}
	if byName.cookie == other.cookie || byName.cookie == own.cookie || own.cookie == other.cookie {
		t.Errorf("cookies %d, %d, %d of three namespaces", byName.cookie, other.cookie, own.cookie)
	}
}

func TestNamespaceErrors(t *testing.T) {
	name := newTestNetns(t)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for arg, want := range map[string]string{
		"nosuchnamespace":   `there is no network namespace "nosuchnamespace"; there are: `,
		"..":                `there is no network namespace ".."`,
		"/nosuch/path":      "no such file",
		plain:               "is not a network namespace; there are: ",
		"/proc/self/ns/pid": "/proc/self/ns/pid is not a network namespace",
	} {
		n, err := openNamespace(arg)
		if err == nil {
			n.close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", arg, err, want)
		}
		if strings.HasSuffix(want, "there are: ") && err != nil && !strings.Contains(err.Error(), name) &&
			!strings.Contains(err.Error(), " more;") {
			t.Errorf("%q: %v does not tell of %s", arg, err, name)
		}
	}
}

func TestDoIsInTheNamespaceAndComesBack(t *testing.T) {
	name := newTestNetns(t)
	runTool(t, "ip", "-n", name, "link", "add", "onlyhere", "type", "veth", "peer", "name", "peer")
	n, own := openTestNetns(t, name), openTestNetns(t, "")
	has := func() error { _, err := netlink.LinkByName("onlyhere"); return err }
	for range 20 { // enough for a thread that stayed inside to be used again
		if err := n.do(has); err != nil {
			t.Fatal(err)
		}
		if err := has(); err == nil {
			t.Fatal("the interface shows outside of its namespace")
		}
	}
	err := n.do(func() error { // back out and in again from inside
		if err := own.do(has); err == nil {
			return errors.New("own namespace, asked for from inside, is the other one")
		}
		return n.do(has)
	})
	if err != nil {
		t.Fatal(err)
	}
	want := errors.New("mine")
	if err := n.do(func() error { return want }); err != want {
		t.Errorf("got %v, want the function's own error", err)
	}
}

func TestDoInOwnNamespaceStaysOnTheGoroutine(t *testing.T) {
	own := openTestNetns(t, "")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	err := own.do(func() error {
		if unix.Gettid() != tid {
			return fmt.Errorf("on thread %d, want %d", unix.Gettid(), tid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestDoWhenTheFunctionEndsItsGoroutine(t *testing.T) {
	n := openTestNetns(t, newTestNetns(t))
	if err := n.do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error")
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
	if err := n.do(func() error { return nil }); err == nil {
		t.Error("no error of a namespace that was closed")
	}
}
