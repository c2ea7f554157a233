package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// anotherBPFFS mounts a BPF filesystem in a folder of its own.
func anotherBPFFS(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "other")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("test", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// Two folders of state for one namespace: the second would copy everything
// twice, or take the hooks of the first. It is refused, with nothing half done.
func TestMendedTwoFoldersForOneNamespace(t *testing.T) {
	t.Parallel()
	kinds := []loader.AttachKind{loader.AttachTCX, loader.AttachClsact}
	eachKind(t, func(t *testing.T, first loader.AttachKind) {
		for _, second := range kinds {
			if has, err := kernels.Has("tcx"); err != nil || second == loader.AttachTCX && !has {
				continue
			}
			t.Run("then "+string(second), func(t *testing.T) {
				g := newGateway(t, lab.RoutedOutside(), lab.SecondInternal())
				g.kind = first
				g.exchange()
				bare := g.list()
				g.apply(example)
				g.resolved()
				other := &gateway{Lab: g.Lab, t: t, bpffs: anotherBPFFS(t), kind: second}
				otherBefore := tree(t, other.bpffs)
				before := g.list()
				for what, config := range map[string]string{
					"the same": example,
					// Delivery on eth5 and eth4 comes first, and has to go again.
					"the same tap, another dmz": strings.NewReplacer("[eth2]", "[eth5]", "192.168.4.2", "192.168.6.2").Replace(example),
					"the same dmz, another tap": strings.NewReplacer("[eth3]", "[eth5]").Replace(example),
				} {
					r := other.tapgateIn(config, "apply", "-f", "-")
					state := filepath.Join(other.bpffs, "tapgate")
					if r.code != 1 || !strings.Contains(r.stderr, "of another tapgate already") || !strings.Contains(r.stderr, state) ||
						!strings.Contains(r.stderr, "is there another --bpffs folder? Detach that one first") {
						t.Errorf("%s: %s", what, r)
					}
					g.unchanged(before, "refused: "+what)
					if after := tree(t, other.bpffs); strings.Join(after, "\n") != strings.Join(otherBefore, "\n") {
						t.Errorf("%s: left in the other folder: %q", what, after)
					}
				}
				g.wantProblems()
				g.copies("the other was refused")
				if r := other.tapgate("status"); r.code != 3 {
					t.Errorf("status of the other: %s", r)
				}
				if r := other.tapgate("detach"); r.code != 0 {
					t.Errorf("detach of the other: %s", r)
				}
				g.wantProblems()
				// The first can change all the same, and once it is gone the second is welcome.
				g.apply(strings.Replace(example, "name: ids", "name: again", 1))
				g.must("detach")
				g.unchanged(bare, "after detach")
				other.apply(example)
				other.wantProblems()
				other.must("detach")
				g.unchanged(bare, "after detach of the other")
			})
		}
	})
}

// State of a namespace that was deleted goes with the next detach of anybody on
// that BPF filesystem; that of one that lives stays, with or without interfaces.
func TestMendedSweepOfTheDead(t *testing.T) {
	kernels.Require(t, "tcx") // filters leave nothing that tells the dead from the living
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	dirOf := func(s *space) string {
		return filepath.Join(g.bpffs, "tapgate", strconv.FormatUint(inodeOf(t, "/run/netns/"+s.name), 10))
	}
	dead, bare, nameless, reborn := newSpace(t, true), newSpace(t, true), newSpace(t, true), newSpace(t, true)
	for _, s := range []*space{dead, bare, nameless, reborn} {
		if r := g.tapgateAt(s.name, attachSpace...); r.code != 0 {
			t.Fatal(r)
		}
	}
	deadDir, bareDir, namelessDir := dirOf(dead), dirOf(bare), dirOf(nameless)
	for _, s := range []*space{bare, nameless} {
		for _, dev := range []string{"eth2", "eth3"} {
			sh(t, "ip -n "+s.name+" link del "+dev)
		}
	}
	// Only a process holds this one.
	holder := exec.Command("ip", "netns", "exec", nameless.name, "sh", "-c", "echo in; exec sleep 300")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	nameless.remove(t)
	dead.remove(t)
	// Somebody else has the number of the last by now.
	other := newSpace(t, false)
	if err := os.Rename(dirOf(reborn), dirOf(other)); err != nil {
		t.Fatal(err)
	}
	reborn.remove(t)
	there := func(dir string) bool { _, err := os.Stat(dir); return err == nil }
	if !there(deadDir) || !there(bareDir) || !there(namelessDir) {
		t.Fatal("states are missing before the sweep")
	}
	detach := func() {
		g.apply(example)
		g.must("detach")
	}
	eventually(t, func() string { // the kernel takes a namespace apart a moment later
		detach()
		if there(deadDir) {
			return "the state of a namespace that is gone is still there"
		}
		if there(dirOf(other)) {
			return "the state of a namespace whose number another one has is still there"
		}
		return ""
	})
	detach()
	if !there(bareDir) || !there(namelessDir) {
		t.Errorf("state of a namespace that lives, without interfaces, was swept: by name kept: %v, by a process: %v", there(bareDir), there(namelessDir))
	}
	for _, netns := range []string{bare.name, "/proc/" + strconv.Itoa(holder.Process.Pid) + "/ns/net"} {
		if r := g.tapgateAt(netns, "status"); r.code != 0 || !strings.Contains(r.stdout, "eth3 is not there any more") {
			t.Errorf("status of %s: %s", netns, r)
		}
		if r := g.tapgateAt(netns, "detach"); r.code != 0 {
			t.Errorf("detach of %s: %s", netns, r)
		}
	}
	g.nothingLeft()
}
