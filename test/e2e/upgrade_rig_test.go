package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"tapgate/test/builds"
)

// madeBuilds are the other builds of tapgate, each made once, by the edits that it has.
var madeBuilds = struct {
	sync.Mutex
	dir    string
	binary map[string]string
}{binary: map[string]string{}}

// anotherBuild is a tapgate of this tree with these edits.
func anotherBuild(t *testing.T, edits ...builds.Edit) string {
	t.Helper()
	m := &madeBuilds
	m.Lock()
	defer m.Unlock()
	name := ""
	for _, e := range edits {
		name += e.File + e.New
	}
	if m.binary[name] != "" {
		return m.binary[name]
	}
	if m.dir == "" {
		dir, err := os.MkdirTemp("", "tapgate-builds-")
		if err != nil {
			t.Fatal(err)
		}
		m.dir = dir
	}
	dir := filepath.Join(m.dir, strconv.Itoa(len(m.binary)))
	err := os.Mkdir(dir, 0o755)
	if err == nil {
		m.binary[name], err = builds.Make(dir, edits...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m.binary[name]
}

func removeBuilds() {
	if madeBuilds.dir != "" {
		os.RemoveAll(madeBuilds.dir)
	}
}

// by is the same gateway, run with another build of tapgate.
func (g *gateway) by(build string) *gateway {
	other := *g
	other.build = build
	return &other
}

// by is the same gate, run with another build of tapgate.
func (g *gate) by(build string) *gate {
	other := *g
	other.gateway = g.gateway.by(build)
	return &other
}

// notOurs is what status says of the programs of another build.
const notOurs = "the programs in force are of another build"

// ranBy says which of two builds has its programs in force, "" if neither or both.
func (g *gateway) ranBy(one, two string) string {
	g.t.Helper()
	is := ""
	for _, build := range []string{one, two} {
		foreign := slices.ContainsFunc(g.by(build).status().Problems, func(p string) bool { return strings.Contains(p, notOurs) })
		if !foreign && is != "" {
			return ""
		}
		if !foreign {
			is = build
		}
	}
	return is
}

// allRun fails unless what runs on all interfaces are the programs that are pinned, and
// the state has nothing of an upgrade.
func (g *gateway) allRun(where string) {
	g.t.Helper()
	entries, err := os.ReadDir(g.stateDir())
	if err != nil {
		g.t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "programs-") {
			g.t.Errorf("%s: the state has %s", where, e.Name())
		}
	}
	pinned := map[string]ebpf.ProgramID{} // by name
	for _, name := range []string{"tapgate_tap_in", "tapgate_tap_out", "tapgate_dmz_in", "tapgate_dmz_out", "tapgate_back"} {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(g.stateDir(), "programs", name), nil)
		if err != nil {
			g.t.Fatal(err)
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			g.t.Fatal(err)
		}
		pinned[name], _ = info.ID()
	}
	runs := slices.Concat(g.linked(), g.filtered())
	if len(runs) < 8 {
		g.t.Errorf("%s: only %v run: the test sees too little", where, runs)
	}
	for _, r := range runs {
		if want := pinned[r.program]; want != r.id {
			g.t.Errorf("%s: %s runs as program %d, pinned is %d", where, r.program, r.id, want)
		}
	}
}

// onHook is a program of ours on an interface.
type onHook struct {
	program string
	id      ebpf.ProgramID
}

// linked are those on TCX links.
func (g *gateway) linked() (all []onHook) {
	g.t.Helper()
	pins, _ := filepath.Glob(filepath.Join(g.stateDir(), "links", "*", "*"))
	back := filepath.Join(g.stateDir(), "reassembly", "tapgate_back")
	if _, err := os.Stat(back); err == nil {
		pins = append(pins, back)
	}
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			g.t.Fatal(err)
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			g.t.Fatal(err)
		}
		all = append(all, onHook{filepath.Base(pin), info.Program})
	}
	return all
}

// filtered are those of clsact filters.
func (g *gateway) filtered() (all []onHook) {
	g.t.Helper()
	for _, device := range []string{"eth0", "eth2", "eth3", "eth4"} {
		for _, direction := range []string{"ingress", "egress"} {
			var filters []struct {
				Options struct {
					Name string `json:"bpf_name"`
					Prog struct {
						Name string         `json:"name"`
						ID   ebpf.ProgramID `json:"id"`
					} `json:"prog"`
				} `json:"options"`
			}
			text := inHost(g.t, g.Gateway, "tc", "-j", "filter", "show", "dev", device, direction)
			if err := json.Unmarshal([]byte(text), &filters); err != nil {
				g.t.Fatalf("tc: %v: %s", err, text)
			}
			for _, f := range filters {
				if f.Options.Prog.ID != 0 {
					all = append(all, onHook{f.Options.Name, f.Options.Prog.ID})
				}
			}
		}
	}
	return all
}

// passed counts, of an interface and in socket buffers, what the kernel has taken in and
// given out, and what our programs have seen of it.
type passed struct{ in, out, seenIn, seenOut uint64 }

func (g *gateway) passedBy(device string) (p passed) {
	g.t.Helper()
	var devices []struct {
		Stats struct{ Rx, Tx struct{ Packets uint64 } } `json:"stats64"`
	}
	text := inHost(g.t, g.Gateway, "ip", "-s", "-j", "link", "show", "dev", device)
	if err := json.Unmarshal([]byte(text), &devices); err != nil || len(devices) != 1 {
		g.t.Fatalf("ip: %v: %s", err, text)
	}
	p.in, p.out = devices[0].Stats.Rx.Packets, devices[0].Stats.Tx.Packets
	seen := g.counts()
	p.seenIn, p.seenOut = seen[device+" in"].all, seen[device+" out"].all
	return p
}
