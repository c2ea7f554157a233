package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// stateDir is where the gateway keeps its state.
func (g *gateway) stateDir() string {
	g.t.Helper()
	return filepath.Join(g.bpffs, "tapgate", strconv.FormatUint(inodeOf(g.t, g.Gateway.Path()), 10))
}

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// pins are the pinned maps and programs of the gateway.
func (g *gateway) pins(folders ...string) (pins []string) {
	g.t.Helper()
	for _, folder := range folders {
		found, err := filepath.Glob(filepath.Join(g.stateDir(), folder, "*"))
		if err != nil || len(found) < 4 {
			g.t.Fatalf("%d pins in %s, %v", len(found), folder, err)
		}
		pins = append(pins, found...)
	}
	return pins
}

// refuses fails unless state that was damaged is refused by everybody, nothing
// is touched, the data plane goes on, and force clears it away.
func (g *gateway) refuses(what string) {
	g.t.Helper()
	before := tree(g.t, g.bpffs)
	check := func(name string, r result) {
		g.t.Helper()
		for _, want := range []string{"state that this tapgate does not understand", g.stateDir(), "detach --force"} {
			if r.code != 1 || strings.Count(r.stderr, want) != 1 {
				g.t.Errorf("%s: %s does not say %q once, or has another exit code: %s", what, name, want, r)
			}
		}
	}
	check("status", g.tapgate("status"))
	check("apply", g.tapgateIn(example, "apply", "-f", "-"))
	check("detach", g.tapgate("detach"))
	if after := tree(g.t, g.bpffs); strings.Join(after, "\n") != strings.Join(before, "\n") {
		g.t.Errorf("%s: refused, and yet changed:\n%s", what, lineDiff(strings.Join(before, "\n"), strings.Join(after, "\n")))
	}
	if n, err := g.Servers[0].Ping(g.Context(), g.Outside[0].Addr, 1); err != nil || n != 1 {
		g.t.Errorf("%s: the ping was not answered, %v", what, err)
	}
	if r := g.tapgate("detach", "--force"); r.code != 0 || !strings.Contains(r.stdout, "removed state of another tapgate") {
		g.t.Errorf("%s: detach --force: %s", what, r)
	}
	g.nothingLeft()
	if r := g.tapgate("status"); r.code != 3 {
		g.t.Errorf("%s: status after detach --force: %s", what, r)
	}
}

func TestHygieneStateWithoutAPin(t *testing.T) {
	g := newGateway(t, lab.RoutedOutside())
	g.apply(example)
	for i, pin := range g.pins("maps", "programs") {
		if g.kind = loader.AttachAuto; i%2 == 1 {
			g.kind = loader.AttachClsact
		}
		g.apply(example)
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
		g.refuses("without " + filepath.Base(pin))
	}
}

// A link that lost its pin is off its interface; that can be put right.
func TestHygieneStateWithoutALink(t *testing.T) {
	kernels.Require(t, "tcx")
	g := newGateway(t, lab.RoutedOutside())
	g.apply(example)
	g.resolved()
	links, err := filepath.Glob(filepath.Join(g.stateDir(), "links", "*", "*"))
	if err != nil || len(links) != 4 {
		t.Fatalf("links %q, %v", links, err)
	}
	for _, pin := range links {
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string { // the kernel takes it off a moment later
			problems := g.status().Problems
			if len(problems) != 1 || !strings.Contains(problems[0], filepath.Base(pin)+" is not attached to") {
				return fmt.Sprintf("without link %s status tells the problems %q", pin, problems)
			}
			return ""
		})
		g.apply(example)
		g.wantProblems()
		g.copies("a link was put back")
	}
	g.must("detach")
	g.nothingLeft()
}

func TestHygieneStateOfAnotherMapByOurName(t *testing.T) {
	g := newGateway(t, lab.RoutedOutside())
	g.apply(example)
	foreign, err := ebpf.NewMap(&ebpf.MapSpec{Name: "foreign", Type: ebpf.Hash, KeySize: 3, ValueSize: 5, MaxEntries: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	for _, pin := range g.pins("maps") {
		g.apply(example)
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
		if err := foreign.Pin(pin); err != nil {
			t.Fatal(err)
		}
		g.refuses("another map as " + filepath.Base(pin))
		if err := foreign.Unpin(); err != nil { // it thinks that it is still pinned
			t.Fatal(err)
		}
	}
}

// Programs of another build: they can be looked at and taken away, but not changed.
func TestHygieneStateOfAnotherBuild(t *testing.T) {
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		g.exchange()
		before := g.list()
		g.apply(example)
		pin := filepath.Join(g.stateDir(), "programs", "tapgate_ask")
		if err := os.Remove(pin); err != nil {
			t.Fatal(err)
		}
		if err := newStranger(t, "programs").prog.Pin(pin); err != nil {
			t.Fatal(err)
		}
		const want = `the running program tapgate_ask is from another build: change it with the tapgate that made it, or run "tapgate detach" and apply again`
		for what, r := range map[string]result{
			"apply":      g.tapgateIn(strings.Replace(example, "name: ids", "name: other", 1), "apply", "-f", "-"),
			"mirror add": g.tapgate("mirror", "add", "more", "--zone", "internal", "--l2", "eth2"),
		} {
			if r.code != 1 || !strings.Contains(r.stderr, want) {
				t.Errorf("%s: %s", what, r)
			}
		}
		g.wantKind(kind)
		g.must("detach")
		g.unchanged(before, "after detach")
	})
}

// What somebody else keeps in our folder is not ours to delete.
func TestHygieneStateWithForeignPins(t *testing.T) {
	g := newGateway(t, lab.RoutedOutside())
	g.apply(example)
	index := strconv.Itoa(g.Gateway.Interface("eth3").Index)
	for _, where := range []string{"foreign", "maps/foreign", "programs/foreign", "links/foreign", "links/77", "links/" + index + "/foreign", "links/" + index + "/tapgate_dmz_out"} {
		for _, folder := range []bool{false, true} {
			if where == "links/77" && folder || where == "maps/foreign" && !folder || where == "programs/foreign" && folder {
				continue // the first is as it may be, the others save time
			}
			g.apply(example)
			path := filepath.Join(g.stateDir(), where)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if folder {
				if err := os.Mkdir(path, 0o700); err != nil {
					t.Fatal(err)
				}
			} else {
				foreign, err := ebpf.NewMap(&ebpf.MapSpec{Name: "foreign", Type: ebpf.Hash, KeySize: 3, ValueSize: 5, MaxEntries: 7})
				if err != nil {
					t.Fatal(err)
				}
				err = foreign.Pin(path)
				foreign.Close()
				if err != nil {
					t.Fatal(err)
				}
			}
			g.refuses(fmt.Sprintf("foreign %s (folder: %v)", where, folder))
		}
	}
}

// records opens the map that holds the records of the gateway.
func (g *gateway) records() *ebpf.Map {
	g.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(g.stateDir(), "maps", "tg_records"), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return m
}

// journal is the element behind those of the two generations.
const journal uint32 = 2

func TestHygieneStateOverwritten(t *testing.T) {
	g := newGateway(t, lab.RoutedOutside())
	g.apply(example)
	slot := uint32(g.status().Slot)
	for _, c := range []struct {
		name string
		key  uint32
		text func(old []byte) []byte
	}{
		{"journal of a newer layout", journal, func(old []byte) []byte {
			var fields map[string]any
			if err := json.Unmarshal(bytes.TrimRight(old, "\x00"), &fields); err != nil {
				t.Fatal(err)
			}
			fields["layout"] = 1000
			text, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}},
		{"journal of zeros", journal, func([]byte) []byte { return nil }},
		{"journal of garbage", journal, func([]byte) []byte { return bytes.Repeat([]byte{0xa5}, 100) }},
		{"journal cut short", journal, func(old []byte) []byte { return bytes.TrimRight(old, "\x00")[:20] }},
		{"record of garbage", slot, func([]byte) []byte { return bytes.Repeat([]byte("{"), 100) }},
		{"record of another type", slot, func([]byte) []byte { return []byte(`{"layout":"one"}`) }},
	} {
		g.apply(example)
		if slot := uint32(g.status().Slot); c.key != journal && slot != c.key {
			g.apply(example) // into the other slot
		}
		m := g.records()
		old, err := m.LookupBytes(c.key)
		if err != nil {
			t.Fatal(err)
		}
		raw := make([]byte, len(old))
		copy(raw, c.text(old))
		if err := m.Put(c.key, raw); err != nil {
			t.Fatal(err)
		}
		m.Close()
		g.refuses(c.name)
	}
}

// Force undoes also qdiscs and offloads where the journal still says which.
func TestHygieneForceUsesTheJournal(t *testing.T) {
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		g.exchange()
		before := g.list()
		g.apply(example)
		if err := os.Remove(filepath.Join(g.stateDir(), "programs", "tapgate_ask")); err != nil {
			t.Fatal(err)
		}
		g.must("detach", "--force")
		g.unchanged(before, "after detach --force")
	})
}

// space is a network namespace with a tapped and a dmz interface, for tests
// that need many namespaces or their end.
type space struct {
	name string
	lock *os.File // says to lab.RemoveStale that it is in use
}

var spaces int

func newSpace(t *testing.T, gateway bool) *space {
	t.Helper()
	spaces++
	s := &space{name: fmt.Sprintf("tghyg-%d-%d-gw", os.Getpid(), spaces)}
	t.Cleanup(func() { s.remove(t) })
	sh(t, "ip netns add "+s.name)
	var err error
	if s.lock, err = os.Open("/run/netns/" + s.name); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip -n "+s.name+" link set lo alias tapgate\\ lab") // so that the next run sweeps it if we are killed
	if gateway {
		for _, line := range []string{
			"link add eth3 index 13 type veth peer name peer3", "link add eth2 index 12 type veth peer name peer2",
			"addr add 192.168.4.1/24 dev eth2", "link set eth2 up", "link set eth3 up", "link set peer3 up", "link set peer2 up",
		} {
			sh(t, "ip -n "+s.name+" "+line)
		}
	}
	return s
}

// remove ends the namespace; again is fine.
func (s *space) remove(t *testing.T) {
	t.Helper()
	if s.lock != nil {
		s.lock.Close()
		s.lock = nil
		sh(t, "ip netns del "+s.name)
	}
}

func sh(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// end runs a command to its end.
func (g *gateway) end(cmd *exec.Cmd) result {
	g.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		g.t.Fatalf("%q: %v", cmd.Args, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// tapgateAt runs tapgate for another namespace than the lab's gateway.
func (g *gateway) tapgateAt(netns string, args ...string) result {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return g.end(exec.CommandContext(ctx, binary, append(args, "--netns", netns, "--bpffs", g.bpffs)...))
}

var attachSpace = []string{"attach", "--internal", "eth3", "--dmz", "eth2", "--sensor", "192.168.4.2"}

// The kernel gives a new namespace the number of one that is gone: the state
// by that number is then nobody's, and must not be taken for the new one's.
func TestHygieneStateOfANamespaceThatIsGone(t *testing.T) {
	g := newGateway(t)
	for _, way := range []string{"apply", "detach"} {
		old := newSpace(t, true)
		if r := g.tapgateAt(old.name, attachSpace...); r.code != 0 {
			t.Fatal(r)
		}
		inode := inodeOf(t, "/run/netns/"+old.name)
		old.remove(t)
		// It is the next number or one of the next; but others make namespaces
		// as well, and then the folder is called as if it were.
		var next *space
		for range 30 {
			if next = newSpace(t, false); inodeOf(t, "/run/netns/"+next.name) == inode {
				break
			}
		}
		if now := inodeOf(t, "/run/netns/"+next.name); now != inode {
			t.Logf("number %d was not used again; the state is renamed", inode)
			root := filepath.Join(g.bpffs, "tapgate")
			if err := os.Rename(filepath.Join(root, strconv.FormatUint(inode, 10)), filepath.Join(root, strconv.FormatUint(now, 10))); err != nil {
				t.Fatal(err)
			}
		}
		for _, line := range []string{"link add eth3 index 13 type veth peer name peer3", "link add eth2 index 12 type veth peer name peer2", "addr add 192.168.4.1/24 dev eth2"} {
			sh(t, "ip -n "+next.name+" "+line)
		}
		for _, args := range [][]string{{"status"}, {"mirror", "list"}, {"mirror", "del", "ids"}} {
			if r := g.tapgateAt(next.name, args...); r.code != 3 || !strings.Contains(r.stderr, "left over from a network namespace that is gone") {
				t.Errorf("%q on state of a namespace that is gone: %s", args, r)
			}
		}
		switch way {
		case "apply":
			if r := g.tapgateAt(next.name, attachSpace...); r.code != 0 {
				t.Errorf("attach over state of a namespace that is gone: %s", r)
			}
			r := g.tapgateAt(next.name, "status")
			if r.code != 0 || !strings.Contains(r.stdout, "eth3") || !strings.Contains(r.stdout, "change 1,") || strings.Contains(r.stdout, "apply again") {
				t.Errorf("status after attach: %s", r)
			}
		case "detach":
		}
		if r := g.tapgateAt(next.name, "detach"); r.code != 0 || r.stdout == "" {
			t.Errorf("detach: %s", r)
		}
		g.nothingLeft()
	}
}

// Two gateways on one BPF filesystem, made and taken away at the same time,
// know nothing of each other.
func TestHygieneTwoGateways(t *testing.T) {
	g := newGateway(t, lab.RoutedOutside())
	other := newSpace(t, true)
	for round := range 5 {
		both := func(first func(), second func()) {
			var wg sync.WaitGroup
			wg.Go(first)
			wg.Go(second)
			wg.Wait()
		}
		run := func(args ...string) func() {
			return func() {
				if r := g.tapgateAt(other.name, args...); r.code != 0 {
					t.Errorf("round %d: %q of the other gateway: %s", round, args, r)
				}
			}
		}
		both(func() {
			if r := g.tapgateIn(example, "apply", "-f", "-"); r.code != 0 {
				t.Errorf("round %d: %s", round, r)
			}
		}, run(attachSpace...))
		if round == 0 {
			g.resolved()
		}
		g.wantProblems()
		both(run("detach"), func() { g.tapgate("status") })
		if r := g.tapgateAt(other.name, "status"); r.code != 3 {
			t.Errorf("round %d: status of the gateway that was taken away: %s", round, r)
		}
		g.wantProblems()
		if round == 0 {
			g.copies("the other gateway was taken away")
		}
		run(attachSpace...)()
		both(run("detach"), func() {
			if r := g.tapgate("detach"); r.code != 0 {
				t.Errorf("round %d: %s", round, r)
			}
		})
		g.nothingLeft()
	}
}
