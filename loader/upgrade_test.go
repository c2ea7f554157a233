package loader

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"tapgate/test/kernels"
)

// upgradeConfig has all kinds of programs, on all kinds of interfaces.
func upgradeConfig() Config {
	cfg := natConfig()
	cfg.Zones = append(cfg.Zones, Zone{Name: "dmz", Role: RoleDMZ, Interfaces: []string{"eth2"}})
	cfg.Mirrors = []Mirror{{Name: "ids", Zones: []string{"internal"}, Targets: []Target{{Via: netip.MustParseAddr("192.168.4.2")}}}}
	return cfg
}

// everyKind runs a test on a gateway that is attached by each.
func everyKind(t *testing.T, test func(t *testing.T, b *natBench)) {
	for _, kind := range []AttachKind{AttachTCX, AttachClsact} {
		t.Run(string(kind), func(t *testing.T) {
			if kind == AttachTCX {
				kernels.Require(t, "tcx")
			}
			b := newNATBench(t)
			b.opt.Attach = kind
			b.apply(upgradeConfig())
			test(t, b)
		})
	}
}

// running are the programs on all interfaces, by place.
func (g *Gateway) running() (map[string]ebpf.ProgramID, error) {
	all := map[string]ebpf.ProgramID{}
	for _, m := range g.active.Members {
		for _, program := range m.Programs {
			h := hookOf(program, m.Ifindex, m.Interface)
			_, id, _, err := attachedKind(program, h, g.linkDir(m.Ifindex))
			if err != nil {
				return nil, err
			}
			all[h.String()] = id
		}
	}
	return all, nil
}

// wantRunning fails unless these run, and the state has nothing of an upgrade.
func (g *Gateway) wantRunning(programs map[string]*ebpf.Program) error {
	running, err := g.running()
	if err != nil {
		return err
	}
	if len(running) < 8 {
		return fmt.Errorf("only %v run: the test sees too little", running)
	}
	var want []ebpf.ProgramID
	for _, p := range programs {
		id, err := programID(p)
		if err != nil {
			return err
		}
		want = append(want, id)
	}
	for place, id := range running {
		if !slices.Contains(want, id) {
			return fmt.Errorf("on %s there is program %d, want one of %v", place, id, want)
		}
	}
	if cutShort(g.dir) {
		return errors.New("the state has the folders of an upgrade")
	}
	return nil
}

// Every map has a pin, so that an upgrade leaves none behind.
func TestUpgradeEveryMapIsPinned(t *testing.T) {
	spec, err := compiled()
	if err != nil {
		t.Fatal(err)
	}
	for name := range spec.Maps {
		if strings.HasSuffix(name, "_0") || name == ".rodata" { // inner maps; constants of one build
			continue
		}
		if !slices.Contains(pinnedMaps, name) {
			t.Errorf("%s has no pin", name)
		}
	}
	for name := range spec.Programs {
		if !slices.Contains(pinnedPrograms, name) {
			t.Errorf("program %s has no pin", name)
		}
	}
}

// Programs take each other's place under traffic: the same ones again, on every kernel.
func TestUpgradeInPlace(t *testing.T) {
	everyKind(t, func(t *testing.T, b *natBench) {
		b.pingOut(1)
		const pings = 500
		answered := make(chan error, 1)
		go func() {
			n, err := b.Servers[0].Ping(b.Context(), b.Outside[0].Addr, pings)
			if err == nil && n != pings {
				err = fmt.Errorf("%d of %d pings were answered", n, pings)
			}
			answered <- err
		}()
		for i := range 4 {
			b.open(func(g *Gateway) error {
				return g.ns.do(func() error {
					g.journal.Handover -= i % 2 // as if they did not understand each other
					before, secret := maps.Clone(g.programs), g.journal.Secret
					old, err := mapsOf(before)
					if err != nil {
						return err
					}
					if _, err := g.replacePrograms(true); err != nil {
						return err
					}
					if err := g.wantRunning(before); err != nil {
						return fmt.Errorf("after a dry run: %w", err)
					}
					if _, err := g.replacePrograms(false); err != nil {
						return err
					}
					now, err := mapsOf(g.programs)
					if err != nil {
						return err
					}
					if !maps.Equal(old, now) {
						t.Errorf("the programs had the maps %v, and have %v", old, now)
					}
					if g.journal.Secret != secret || secret == 0 || g.journal.Handover != Handover {
						t.Errorf("the journal has secret %d, before %d, and handover %d", g.journal.Secret, secret, g.journal.Handover)
					}
					return g.wantRunning(g.programs)
				})
			})
		}
		if err := <-answered; err != nil {
			t.Error(err)
		}
		b.wantFast()
	})
}

// mapsOf are the maps that programs use, by id, but for the constants of each build.
func mapsOf(programs map[string]*ebpf.Program) (map[ebpf.MapID]string, error) {
	all := map[ebpf.MapID]string{}
	for _, p := range programs {
		info, err := p.Info()
		if err != nil {
			return nil, err
		}
		ids, ok := info.MapIDs()
		if !ok {
			return nil, errors.New("the kernel does not tell the maps of a program")
		}
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				return nil, err
			}
			info, err := m.Info()
			m.Close()
			if err != nil {
				return nil, err
			}
			if !strings.Contains(info.Name, "rodata") {
				all[id] = info.Name
			}
		}
	}
	return all, nil
}

// wantFast fails unless status finds nothing wrong and the fast path is on where it may be.
func (b *natBench) wantFast() {
	b.t.Helper()
	b.open(func(g *Gateway) error {
		s, err := g.Status()
		if err != nil {
			return err
		}
		var set tapgateTgSetting
		if err := g.maps[tapgateMapTgSettings].Lookup(g.slot, &set); err != nil {
			return err
		}
		if len(s.Problems) > 0 || (set.Fast == 1) != (s.Gateway.Forwarding.Mode == ForwardingFast) {
			b.t.Errorf("problems %q; fast %d, and status says %s", s.Problems, set.Fast, s.Gateway.Forwarding)
		}
		return nil
	})
}

// What fails half-way is undone.
func TestUpgradeFails(t *testing.T) {
	everyKind(t, func(t *testing.T, b *natBench) {
		b.open(func(g *Gateway) error {
			return g.ns.do(func() error {
				next, err := g.loadBeside()
				if err != nil {
					return err
				}
				defer func() { closePins(nil, next) }()
				wrong, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "GPL",
					Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
				if err != nil {
					return err
				}
				next[tapgateProgTapgateTapOut].Close()
				next[tapgateProgTapgateTapOut] = wrong // tapgate_tap_in is swapped before it
				g.journal.Handover = Handover - 1
				if err := g.exchange(next); err == nil {
					t.Error("a program of the wrong kind was put on an interface")
				}
				if g.journal.Handover != Handover-1 {
					t.Errorf("the journal has handover %d", g.journal.Handover)
				}
				return g.wantRunning(g.programs)
			})
		})
		b.wantFast()
		b.pingOut(1)
	})
}

// What was cut short is put right by whoever comes next, also to read: undone before the
// programs are the gateway's, finished after that.
func TestUpgradeCutShort(t *testing.T) {
	everyKind(t, func(t *testing.T, b *natBench) {
		for _, c := range []struct {
			name string
			done bool
			cut  func(g *Gateway, aside string, next map[string]*ebpf.Program) error
		}{
			{"while pinning", false, func(g *Gateway, aside string, next map[string]*ebpf.Program) error {
				return next[tapgateProgTapgateTapIn].Pin(filepath.Join(aside, tapgateProgTapgateTapIn))
			}},
			{"while swapping", false, func(g *Gateway, aside string, next map[string]*ebpf.Program) error {
				half := maps.Clone(next)
				half[tapgateProgTapgateTapIn], half[tapgateProgTapgateDmzOut] = g.programs[tapgateProgTapgateTapIn], g.programs[tapgateProgTapgateDmzOut]
				_, err := g.throughKernel()
				return errors.Join(pinPrograms(next, aside), err, g.swap(g.programs, half))
			}},
			{"between the renames", true, func(g *Gateway, aside string, next map[string]*ebpf.Program) error {
				_, err := g.throughKernel()
				return errors.Join(pinPrograms(next, aside), err, g.swap(g.programs, next),
					os.Rename(filepath.Join(g.dir, programsDir), filepath.Join(g.dir, upgradeOldDir)))
			}},
			{"before the old ones went", true, func(g *Gateway, aside string, next map[string]*ebpf.Program) error {
				return errors.Join(pinPrograms(next, aside), g.swap(g.programs, next), g.renamePrograms())
			}},
		} {
			var before, next map[string]*ebpf.Program
			b.open(func(g *Gateway) (err error) {
				before, g.programs = g.programs, maps.Clone(g.programs)
				for name, p := range before { // the gateway closes its own
					if g.programs[name], err = p.Clone(); err != nil {
						return err
					}
				}
				return g.ns.do(func() error {
					aside := filepath.Join(g.dir, upgradeNewDir)
					if err := os.Mkdir(aside, 0o700); err != nil {
						return err
					}
					if next, err = g.loadBeside(); err != nil {
						return err
					}
					return c.cut(g, aside, next)
				})
			})
			want := before
			if c.done {
				want = next
			}
			g, err := Open(b.opt, ReadOnly)
			if err == nil {
				err = joinClose(g.ns.do(func() error { return g.wantRunning(want) }), g)
			}
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			closePins(nil, before)
			closePins(nil, next)
			b.wantFast()
			b.pingOut(1)
		}
	})
}
