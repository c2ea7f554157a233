package loader

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The sources of mounts that tapgate made, so that it takes away no others; the
// second says that the folder below is ours as well.
const (
	mountSource     = "tapgate"
	mountSourceMade = "tapgate-made"
)

// ensureBPFFS makes dir a BPF filesystem: nothing to do if it is one (or a
// folder in one), else it is created and mounted.
func ensureBPFFS(dir string) error {
	if isBPFFS(dir) {
		return nil
	}
	source := mountSource
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		source = mountSourceMade
	} else if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make a place for the BPF filesystem: %w", err)
	}
	if err := coversNothing(dir); err != nil {
		return fmt.Errorf("mount the BPF filesystem on %s: %w", dir, err)
	}
	if filepath.Clean(dir) == DefaultBPFFS && mountIsPrivate(dir) {
		return fmt.Errorf("mount the BPF filesystem on %s: this process has a mount namespace of its own "+
			"(as under \"ip netns exec\"), and the mount would vanish with it; run tapgate from outside with "+
			"--netns NAME, or mount one (mount -t bpf bpf DIR) and name it with --bpffs DIR", dir)
	}
	if err := unix.Mount(source, dir, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount the BPF filesystem on %s: %w", dir, err)
	}
	return nil
}

// coversNothing refuses a place for a mount that would hide something, as /proc
// or somebody's files.
func coversNothing(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("it holds other things (%s), which the mount would hide; name an empty or new folder", entries[0].Name())
	}
	return nil
}

// isBPFFS says whether dir lies in a BPF filesystem.
func isBPFFS(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
}

// releaseBPFFS unmounts what ensureBPFFS mounted on dir once it is empty. A
// mount of somebody else, or one that is still in use, stays.
func releaseBPFFS(dir string) error {
	if !isBPFFS(dir) {
		return nil
	}
	real, err := filepath.EvalSymlinks(dir)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return fmt.Errorf("unmount the BPF filesystem: %w", err)
	}
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	source := ""
	for _, m := range mounts { // of several on one place the last one shows
		if m.point == real {
			source = m.source
		}
	}
	if source != mountSource && source != mountSourceMade {
		return nil
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return fmt.Errorf("unmount the BPF filesystem: %w", err)
	}
	for _, e := range entries {
		// Kernels with BPF_PRELOAD put these into every BPF filesystem.
		if e.Name() != "maps.debug" && e.Name() != "progs.debug" {
			return nil
		}
	}
	// Whoever is about to put something in holds a folder open (the lock),
	// and then the kernel says busy.
	err = unix.Unmount(real, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err == nil && source == mountSourceMade {
		err = os.Remove(real)
	}
	if err != nil {
		return fmt.Errorf("unmount the BPF filesystem on %s: %w", real, err)
	}
	return nil
}

// mountIsPrivate says whether the mount that dir lies on is unknown to pid 1. Where
// that cannot be told, it is not.
func mountIsPrivate(dir string) bool {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	id := ""
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(info)) {
		if rest, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id = strings.TrimSpace(rest)
		}
	}
	// Mount ids are unique over all mount namespaces. /proc/1/ns/mnt would say
	// it shorter, but needs more rights over pid 1 than a container may have.
	mounts, err := readMounts("/proc/1/mountinfo")
	if err != nil || id == "" || len(mounts) == 0 {
		return false
	}
	for _, m := range mounts {
		if m.id == id {
			return false
		}
	}
	return true
}

// mountEntry is one line of mountinfo.
type mountEntry struct{ id, point, source string }

func readMounts(path string) ([]mountEntry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []mountEntry
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // overlay options make long lines
	for lines.Scan() {
		// id parent dev root point options optional* - type source options
		before, after, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 2 {
			continue
		}
		mounts = append(mounts, mountEntry{
			id: left[0], point: unescape.Replace(left[4]),
			source: unescape.Replace(right[1]),
		})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return mounts, nil
}
