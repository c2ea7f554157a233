package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// The folders of a gateway's state: <bpffs>/tapgate/<netns inode>/{maps,programs,links/<ifindex>}.
// Names in a BPF filesystem cannot hold dots, and interfaces' names can: hence indexes.
const (
	stateRoot   = "tapgate"
	mapsDir     = "maps"
	programsDir = "programs"
	linksDir    = "links"
)

// pinnedMaps are the maps with a pin: all of them, so that the programs of another
// build can take them over (upgrade.go), but for .rodata, which is of one build's
// programs, and inner maps, which live by the maps that hold them.
var pinnedMaps = []string{
	tapgateMapTgControl, tapgateMapTgMembers, tapgateMapTgTargets, tapgateMapTgNexthops, tapgateMapTgNeighs,
	tapgateMapTgMirrorLed, tapgateMapTgTargetLed, tapgateMapTgSeen, tapgateMapTgScratch, tapgateMapTgRecords,
	// of the gateway
	tapgateMapTgLog, tapgateMapTgLogLost,
	tapgateMapTgRules, tapgateMapTgPools, tapgateMapTgSets, tapgateMapTgSettings, tapgateMapTgOutside, tapgateMapTgOurs,
	tapgateMapTgSessions, tapgateMapTgBindings, tapgateMapTgRemotes, tapgateMapTgHosts, tapgateMapTgTable,
	tapgateMapTgFresh, tapgateMapTgSettled, tapgateMapTgDying, tapgateMapTgIdle, tapgateMapTgHits, tapgateMapTgEvents, tapgateMapTgGates,
	tapgateMapTgFragments, tapgateMapTgFragmentScratch, tapgateMapTgIpIds, tapgateMapTgReassembly, tapgateMapTgWayBack, tapgateMapTgWaiting,
	tapgateMapTgOwnPeers, tapgateMapTgRates, tapgateMapTgRemoteRates, tapgateMapTgAnswers,
}

// flowMaps are sized by the flows that there may be: these are the elements of two
// flows, and a quarter more for those that were ended to make room (headers/account.h).
var flowMaps = map[string]uint32{
	tapgateMapTgSessions: 5, tapgateMapTgBindings: 5, tapgateMapTgRemotes: 3,
	tapgateMapTgFresh: 1, tapgateMapTgSettled: 2, tapgateMapTgDying: 1, tapgateMapTgIdle: 2,
}

// preallocatedMaps are those whose memory nat.preallocate takes at once.
var preallocatedMaps = []string{tapgateMapTgSessions, tapgateMapTgBindings, tapgateMapTgRemotes}

// tableMaking is how the maps of flows are made.
type tableMaking struct {
	flows       uint32 // that there is room for
	preallocate bool
}

// sizeFlowMaps makes room for so many flows.
func sizeFlowMaps(spec *ebpf.CollectionSpec, t tableMaking) {
	for name, half := range flowMaps {
		spec.Maps[name].MaxEntries = max(1, uint32(uint64(t.flows)*uint64(half)/2))
	}
	if t.preallocate {
		for _, name := range preallocatedMaps {
			spec.Maps[name].Flags &^= unix.BPF_F_NO_PREALLOC
		}
	}
}

// makingOf is how sizeFlowMaps has made these.
func makingOf(maps map[string]*ebpf.Map) tableMaking {
	return tableMaking{flows: roomForFlows(maps), preallocate: maps[tapgateMapTgSessions].Flags()&unix.BPF_F_NO_PREALLOC == 0}
}

// memory is about how many bytes these maps take at once.
func (t tableMaking) memory() (bytes uint64) {
	spec, err := compiled()
	if err != nil || !t.preallocate {
		return 0
	}
	own := &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{}}
	for name := range flowMaps {
		own.Maps[name] = spec.Maps[name].Copy()
	}
	sizeFlowMaps(own, t)
	const head = 48 // struct htab_elem
	for _, name := range preallocatedMaps {
		m := own.Maps[name]
		bytes += uint64(m.MaxEntries) * uint64(head+(m.KeySize+7)&^7+(m.ValueSize+7)&^7)
	}
	return bytes
}

// roomForFlows is how many flows sizeFlowMaps has made room for: exactly so many go
// into the queue of the settled.
func roomForFlows(maps map[string]*ebpf.Map) uint32 { return maps[tapgateMapTgSettled].MaxEntries() }

var pinnedPrograms = []string{
	tapgateProgTapgateTapIn, tapgateProgTapgateTapOut, tapgateProgTapgateDmzIn, tapgateProgTapgateDmzOut, tapgateProgTapgateAsk,
	tapgateProgTapgateSweep, tapgateProgTapgateFlush, tapgateProgTapgateOpen, tapgateProgTapgateBack,
}

func (o Options) bpffs() string {
	if o.BPFFS == "" {
		return DefaultBPFFS
	}
	return o.BPFFS
}

func (o Options) lockTimeout() time.Duration {
	if o.LockTimeout == 0 {
		return 5 * time.Second
	}
	return o.LockTimeout
}

func (o Options) root() string { return filepath.Join(o.bpffs(), stateRoot) }

func (o Options) stateDir(ns *namespace) string {
	return filepath.Join(o.root(), strconv.FormatUint(ns.inode, 10))
}

// loadInto makes maps and programs and pins them in a new folder beside dir,
// which then gets its name: the state is there as a whole or not at all. The
// folder is locked before anybody else can see it.
func loadInto(dir string, ns *namespace, table tableMaking, verbose bool) (lock *dirLock, err error) {
	tmp := filepath.Join(filepath.Dir(dir), fmt.Sprintf("new-%s-%d", filepath.Base(dir), os.Getpid()))
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("create state: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.unlock(), os.RemoveAll(tmp))
			lock = nil
		}
	}()
	if lock, err = lockDir(tmp, true, 0); err != nil {
		return nil, fmt.Errorf("create state: %w", err)
	}
	for _, sub := range []string{mapsDir, programsDir, linksDir} {
		if err := os.Mkdir(filepath.Join(tmp, sub), 0o700); err != nil {
			return nil, fmt.Errorf("create state: %w", err)
		}
	}

	secret := rand.Uint32()
	spec, err := programSpecs(secret)
	if err != nil {
		return nil, err
	}
	sizeFlowMaps(spec, table)
	// Before 5.11 maps count against RLIMIT_MEMLOCK. Where this is refused,
	// a map that does not fit says so below.
	_ = rlimit.RemoveMemlock()
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{})
	if err != nil {
		return nil, loadError(err, verbose)
	}
	defer coll.Close()
	if err := writeRecord(coll.Maps[tapgateMapTgRecords], journalKey, journal{
		Layout: Layout, Handover: Handover, Secret: secret, Inode: ns.inode, Cookie: ns.cookie,
	}); err != nil {
		return nil, err
	}
	for _, name := range pinnedMaps {
		if err := coll.Maps[name].Pin(filepath.Join(tmp, mapsDir, name)); err != nil {
			return nil, fmt.Errorf("create state: %w", err)
		}
	}
	if err := pinPrograms(coll.Programs, filepath.Join(tmp, programsDir)); err != nil {
		return nil, fmt.Errorf("create state: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, fmt.Errorf("create state: %w", err)
	}
	return lock, nil
}

func pinPrograms(programs map[string]*ebpf.Program, dir string) error {
	for _, name := range pinnedPrograms {
		if err := programs[name].Pin(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// programSpecs is the compiled object with its constants set for this kernel. The
// secret is what all programs of a gateway know each other's packets by.
func programSpecs(secret uint32) (*ebpf.CollectionSpec, error) {
	spec, err := loadTapgate()
	if err != nil {
		return nil, fmt.Errorf("read the programs of this binary: %w", err)
	}
	err = features.HaveProgramHelper(ebpf.SchedCLS, asm.FnCheckMtu)
	if err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("probe bpf_check_mtu: %w", err)
	}
	have := uint8(0)
	if err == nil {
		have = 1
	}
	if err := spec.Variables[tapgateVarTgHaveCheckMtu].Set(have); err != nil {
		return nil, fmt.Errorf("set %s: %w", tapgateVarTgHaveCheckMtu, err)
	}
	if err := spec.Variables[tapgateVarTgSecret].Set(secret); err != nil {
		return nil, fmt.Errorf("set %s: %w", tapgateVarTgSecret, err)
	}
	return spec, nil
}

// removeLeftovers removes folders of a creation or removal that was cut short. The caller
// holds the lock of the folder above.
func removeLeftovers(dir string) (found bool, err error) {
	var errs []error
	for _, kind := range []string{"new", "old"} {
		names, err := filepath.Glob(filepath.Join(filepath.Dir(dir), kind+"-"+filepath.Base(dir)+"-*"))
		errs = append(errs, err)
		for _, name := range names {
			found = true
			errs = append(errs, os.RemoveAll(name))
		}
	}
	return found, errors.Join(errs...)
}

// openPins opens the pinned maps and programs and refuses what is not of this
// binary's layout.
func openPins(dir string) (maps map[string]*ebpf.Map, programs map[string]*ebpf.Program, err error) {
	maps, programs = map[string]*ebpf.Map{}, map[string]*ebpf.Program{}
	defer func() {
		if err != nil {
			closePins(maps, programs)
		}
	}()
	stranger, err := foreignIn(dir)
	if err == nil && stranger != "" {
		err = fmt.Errorf("%s is not of this tapgate's making", stranger)
	}
	if err != nil {
		return maps, programs, stateError(dir, err)
	}
	for _, name := range pinnedMaps {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, mapsDir, name), nil)
		if err != nil {
			return maps, programs, stateError(dir, fmt.Errorf("%s/%s: %w", mapsDir, name, err))
		}
		maps[name] = m
	}
	for _, name := range pinnedPrograms {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(dir, programsDir, name), nil)
		if err != nil {
			return maps, programs, stateError(dir, fmt.Errorf("%s/%s: %w", programsDir, name, err))
		}
		programs[name] = p
	}
	spec, err := compiled()
	if err != nil {
		return maps, programs, err
	}
	own := &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{}}
	for name := range maps {
		own.Maps[name] = spec.Maps[name].Copy()
	}
	sizeFlowMaps(own, makingOf(maps))
	for name, m := range maps {
		if err := own.Maps[name].Compatible(m); err != nil {
			return maps, programs, stateError(dir, fmt.Errorf("map %s: %w", name, err))
		}
	}
	var j journal
	if err := readRecord(maps[tapgateMapTgRecords], journalKey, &j); err != nil {
		return maps, programs, stateError(dir, err)
	}
	if j.Layout != Layout {
		return maps, programs, stateError(dir, fmt.Errorf("layout %d, and this tapgate knows %d", j.Layout, Layout))
	}
	return maps, programs, nil
}

// foreignIn finds something in the folder of a state that this tapgate does not put
// there: it is another version's or another program's, and not to be deleted unasked.
func foreignIn(dir string) (found string, err error) {
	files := map[string][]string{
		mapsDir: pinnedMaps, programsDir: pinnedPrograms, linksDir: slices.Concat(tapPrograms, dmzPrograms), reassemblyDir: pinnedReassembly,
		upgradeNewDir: pinnedPrograms, upgradeOldDir: pinnedPrograms,
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		parts := strings.Split(rel, string(filepath.Separator))
		known, ok := files[parts[0]]
		folders := 1 // above the files
		if parts[0] == linksDir {
			folders = 2
		}
		switch depth := len(parts); {
		case depth > folders:
			ok = ok && !d.IsDir() && slices.Contains(known, parts[depth-1])
		case depth == 2:
			_, err := strconv.Atoi(parts[1])
			ok = ok && d.IsDir() && err == nil
		default:
			ok = ok && d.IsDir()
		}
		if !ok {
			found = rel
			return fs.SkipAll
		}
		return nil
	})
	return found, err
}

// refusedState is state that this binary does not understand.
type refusedState struct {
	dir string
	why error
}

func (e *refusedState) Error() string {
	return fmt.Sprintf("%v in %s: %v; it was left as it is: use the tapgate that made it, "+
		"or take it away with \"tapgate detach --force\"", ErrState, e.dir, e.why)
}

func (e *refusedState) Unwrap() error { return ErrState }

func stateError(dir string, err error) error { return &refusedState{dir, err} }

func closePins(maps map[string]*ebpf.Map, programs map[string]*ebpf.Program) {
	for _, m := range maps {
		m.Close()
	}
	for _, p := range programs {
		p.Close()
	}
}

// linkPin is a pinned TCX link: links/<ifindex>/<program>.
type linkPin struct {
	ifindex int
	program string
}

func listLinkPins(dir string) ([]linkPin, error) {
	var pins []linkPin
	root := filepath.Join(dir, linksDir)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		index, name, ok := strings.Cut(rel, string(filepath.Separator))
		if n, err := strconv.Atoi(index); ok && err == nil {
			pins = append(pins, linkPin{n, name})
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return pins, nil
}
