package datapath

import (
	"encoding/binary"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"tapgate/loader"
	"tapgate/test/maptypes"
)

// enum is an enum of headers/abi.h as the kernel has it, without the last value,
// which is the count.
func enum(t *testing.T, name string) []btf.EnumValue {
	t.Helper()
	info, err := gate.programs["tap_in"].Info()
	if err != nil {
		t.Fatal(err)
	}
	// The enums are in no map's value but that of the constants.
	ids, _ := info.MapIDs()
	var e *btf.Enum
	for _, id := range ids {
		if e, err = enumOfMap(id, name); err == nil {
			break
		}
	}
	if e == nil {
		t.Fatalf("no map of the programs has the type %s: %v", name, err)
	}
	values := slices.Clone(e.Values)
	slices.SortFunc(values, func(a, b btf.EnumValue) int { return int(a.Value) - int(b.Value) })
	return values[:len(values)-1]
}

func enumOfMap(id ebpf.MapID, name string) (*btf.Enum, error) {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var e *btf.Enum
	err = maptypes.Find(m, name, &e)
	return e, err
}

// Whatever the programs count has a name in status, its own.
func TestEveryReasonHasAName(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	reasons, skips := enum(t, "tg_reason"), enum(t, "tg_skip")
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	// Which slot the interface has is the loader's business, so all of them count.
	const seenWords, ledgerWords = 2, 4
	for _, name := range []string{"tg_seen", "tg_mirror_led"} {
		m := gate.maps[name]
		words := int(m.ValueSize()) / 8
		value := make([][]byte, cpus)
		for i := range value {
			value[i] = make([]byte, m.ValueSize())
		}
		for i := range words {
			binary.NativeEndian.PutUint64(value[0][8*i:], uint64(1000+i))
		}
		for key := range m.MaxEntries() {
			if err := m.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := gate.status(t)
	in := direction(s, internal, "tap_in")
	if len(in.Reasons) != len(reasons) {
		t.Errorf("status has %d reasons, the programs %d", len(in.Reasons), len(reasons))
	}
	for _, v := range reasons {
		name := strings.ToLower(strings.TrimPrefix(v.Name, "TG_"))
		if got, want := in.Reasons[name], 1000+seenWords+v.Value; got != want {
			t.Errorf("reason %s counts %d, want %d", name, got, want)
		}
	}
	ledger := findMirror(s, "ids").Ingress
	if len(ledger.Skipped) != len(skips) {
		t.Errorf("status has %d kinds of skips, the programs %d", len(ledger.Skipped), len(skips))
	}
	for _, v := range skips {
		name := strings.ToLower(strings.TrimPrefix(v.Name, "TG_SKIP_"))
		want := loader.Count{Packets: 1000 + ledgerWords + 2*v.Value, Bytes: 1001 + ledgerWords + 2*v.Value}
		if got := ledger.Skipped[name]; got != want {
			t.Errorf("skip %s counts %v, want %v", name, got, want)
		}
	}
	// Numbers that were in use start at zero after a while without them.
	gate.apply(t)
	gate.applyResolved(t, mirror("ids", inside, via))
}

// The limits of headers/abi.h are those of the maps, and the loader knows them:
// see also the tests of limits in mirrors_test.go.
func TestLimits(t *testing.T) {
	const directions, limitTargets, limitMembers = 2, 256, 256
	for name, want := range map[string]uint32{
		"tg_mirror_led": limitMirrors * directions, "tg_target_led": limitTargets * directions, "tg_seen": limitMembers * directions,
	} {
		if got := gate.maps[name].MaxEntries(); got != want {
			t.Errorf("%s has %d entries, want %d", name, got, want)
		}
	}
	cfg := policy()
	var names []string
	for range limitMembers {
		names = append(names, "eth99")
	}
	cfg.Zones = append(cfg.Zones, loader.Zone{Name: "many", Role: loader.RoleInternal, Interfaces: names})
	if _, err := gate.gw.Apply(cfg); err == nil || !strings.Contains(err.Error(), "255") {
		t.Errorf("more than %d interfaces: %v, want refused with the limit", limitMembers, err)
	}
	mirrors := []loader.Mirror{}
	for i := range limitTargets/limitCopies + 1 {
		mirrors = append(mirrors, mirror("m"+string(rune('a'+i)), inside, l2Targets(limitCopies)...))
	}
	if _, err := gate.gw.Apply(policy(mirrors...)); err == nil || !strings.Contains(err.Error(), "256") {
		t.Errorf("more than %d targets: %v, want refused with the limit", limitTargets, err)
	}
}

var stackDepth = regexp.MustCompile(`stack depth ([0-9+]+)`)

// mostVerified warns on newer kernels of what 5.10 would not load: it looks at
// more instructions than they do for the same program, and takes a million.
const mostVerified = 300_000

// What the verifier says of each program, to be watched from version to version.
func TestVerifierFigures(t *testing.T) {
	for name, p := range gate.programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		size, err := info.TranslatedSize()
		if err != nil {
			t.Fatal(err)
		}
		verified, known := info.VerifiedInstructions()
		t.Logf("%s: %d instructions, %d verified (known since 5.16: %v)", name, size/8, verified, known)
		if verified > mostVerified {
			t.Errorf("%s: the verifier looked at %d instructions, more than %d: 5.10 may refuse it", name, verified, mostVerified)
		}
	}
	// The object is at hand only in the checkout, not in an emulated kernel.
	spec, err := ebpf.LoadCollectionSpec("../../loader/tapgate_bpfel.o")
	if errors.Is(err, os.ErrNotExist) {
		t.Log("stack depth: not told without the object file")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	if err != nil {
		t.Fatal(err)
	}
	defer coll.Close()
	for name, p := range coll.Programs {
		depth := stackDepth.FindStringSubmatch(p.VerifierLog)
		if depth == nil {
			t.Errorf("%s: the verifier tells no stack depth:\n%s", name, p.VerifierLog)
			continue
		}
		t.Logf("%s: %s bytes of stack", name, depth[1])
	}
}
