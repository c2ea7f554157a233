package loader

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountAndReleaseBPFFS(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with space")
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
	if isBPFFS(dir) {
		t.Fatal("a folder that is not there is a BPF filesystem")
	}
	for range 2 {
		if err := ensureBPFFS(dir); err != nil {
			t.Fatal(err)
		}
	}
	wantMounts(t, dir, 1)

	sub := filepath.Join(dir, "tapgate")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	releaseMount(t, dir)
	wantMounts(t, dir, 1) // something is in it

	lock, err := lockDir(sub, true, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(sub); err != nil {
		t.Fatal(err)
	}
	releaseMount(t, dir)
	wantMounts(t, dir, 1) // somebody is at work in it
	if err := lock.unlock(); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		releaseMount(t, dir)
		wantMounts(t, dir, 0)
	}
}

func TestReleaseLeavesMountsOfOthers(t *testing.T) {
	dir := newTestBPFFS(t)
	if err := ensureBPFFS(dir); err != nil {
		t.Fatal(err)
	}
	releaseMount(t, dir)
	wantMounts(t, dir, 1)

	sub := filepath.Join(dir, "folder") // a folder in a BPF filesystem will do
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := ensureBPFFS(sub); err != nil {
		t.Fatal(err)
	}
	wantMounts(t, sub, 0)
}

// Under "ip netns exec" a mount on /sys/fs/bpf would be lost at once.
func TestDefaultBPFFSInPrivateMountNamespaceIsRefused(t *testing.T) {
	cmd := helperProcess("private-bpffs", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// helperPrivateBPFFS runs in a mount namespace of its own.
func helperPrivateBPFFS(dir string) error {
	for isBPFFS(DefaultBPFFS) { // the machine's, here only
		if err := unix.Unmount(DefaultBPFFS, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	err := ensureBPFFS(DefaultBPFFS)
	if err == nil || !strings.Contains(err.Error(), "--netns NAME") || !strings.Contains(err.Error(), "--bpffs") {
		return fmt.Errorf("got %v", err)
	}
	if isBPFFS(DefaultBPFFS) {
		return fmt.Errorf("%s was mounted all the same", DefaultBPFFS)
	}
	if err := ensureBPFFS(dir); err != nil {
		return err
	}
	if !isBPFFS(dir) {
		return fmt.Errorf("%s was not mounted", dir)
	}
	return releaseBPFFS(dir)
}

func TestMountIsPrivate(t *testing.T) {
	if mountIsPrivate("/sys") {
		t.Error("/sys is private, though these tests run beside pid 1")
	}
}

func releaseMount(t *testing.T, dir string) {
	t.Helper()
	if err := releaseBPFFS(dir); err != nil {
		t.Fatal(err)
	}
}

func wantMounts(t *testing.T, dir string, want int) {
	t.Helper()
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	for _, m := range mounts {
		if m.point == dir {
			got++
		}
	}
	if got != want {
		t.Errorf("%d mounts on %s, want %d", got, dir, want)
	}
}

// A place that holds anything is never covered: "--bpffs /proc" did so once.
func TestEnsureBPFFSCoversNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	if err := ensureBPFFS(dir); err == nil || !strings.Contains(err.Error(), "would hide") {
		t.Errorf("%v", err)
	}
	if isBPFFS(dir) {
		t.Error("mounted all the same")
	}
}
