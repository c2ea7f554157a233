package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

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

// refusedByAll fails unless state that was damaged is refused by everybody, nothing
// is touched, and the data plane goes on.
func (g *gateway) refusedByAll(what string) {
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
}

// refuses is refusedByAll, and force clears the state away.
func (g *gateway) refuses(what string) {
	g.t.Helper()
	g.refusedByAll(what)
	if r := g.tapgate("detach", "--force"); r.code != 0 || !strings.Contains(r.stdout, "removed state of another tapgate") {
		g.t.Errorf("%s: detach --force: %s", what, r)
	}
	g.nothingLeft()
	if r := g.tapgate("status"); r.code != 3 {
		g.t.Errorf("%s: status after detach --force: %s", what, r)
	}
}

// cornerstones are pins that tell commands the most: what clears the state away by
// force has to do without. All others are the same to it.
func cornerstones(pin string) bool {
	switch filepath.Base(pin) {
	case "tg_records", "tg_control", "tg_sessions", "tapgate_tap_in":
		return true
	}
	return false
}

func TestHygieneStateWithoutAPin(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, kind loader.AttachKind) {
		g := newGateway(t, lab.RoutedOutside())
		g.kind = kind
		g.apply(example)
		aside := filepath.Join(g.bpffs, "aside")
		for i, pin := range g.pins("maps", "programs") {
			if (i%2 == 1) != (kind == loader.AttachClsact) && !cornerstones(pin) {
				continue // one of the kinds
			}
			if err := os.Rename(pin, aside); err != nil {
				t.Fatal(err)
			}
			g.refusedByAll("without " + filepath.Base(pin))
			if err := os.Rename(aside, pin); err != nil {
				t.Fatal(err)
			}
			if cornerstones(pin) {
				if err := os.Remove(pin); err != nil {
					t.Fatal(err)
				}
				g.refuses("without " + filepath.Base(pin))
				g.apply(example)
			}
		}
		g.wantProblems()
		g.must("detach")
		g.nothingLeft()
	})
}

// A link that lost its pin is off its interface; that can be put right.
func TestHygieneStateWithoutALink(t *testing.T) {
	kernels.Require(t, "tcx")
	t.Parallel()
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
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	g.apply(example)
	foreign, err := ebpf.NewMap(&ebpf.MapSpec{Name: "foreign", Type: ebpf.Hash, KeySize: 3, ValueSize: 5, MaxEntries: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	aside := filepath.Join(g.bpffs, "aside")
	for _, pin := range g.pins("maps") {
		if err := os.Rename(pin, aside); err != nil {
			t.Fatal(err)
		}
		if err := foreign.Pin(pin); err != nil {
			t.Fatal(err)
		}
		g.refusedByAll("another map as " + filepath.Base(pin))
		if cornerstones(pin) {
			if err := os.Remove(aside); err != nil {
				t.Fatal(err)
			}
			g.refuses("another map as " + filepath.Base(pin))
			if err := foreign.Unpin(); err != nil { // it thinks that it is still pinned
				t.Fatal(err)
			}
			g.apply(example)
			continue
		}
		if err := foreign.Unpin(); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(aside, pin); err != nil {
			t.Fatal(err)
		}
	}
	g.wantProblems()
	g.must("detach")
	g.nothingLeft()
}

// Programs of another build: they can be looked at and taken away, but not changed.
func TestHygieneStateOfAnotherBuild(t *testing.T) {
	t.Parallel()
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
		const want = `the running program tapgate_ask is from another build: put this one's programs in place, without a gap, with "tapgate upgrade", or use the tapgate that made it`
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
