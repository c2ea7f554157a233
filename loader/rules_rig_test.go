package loader

import (
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// gateRig runs single steps of the data plane, as they stand in the object, on
// facts of a packet that the test writes.
type gateRig struct {
	*testing.T
	maps  map[string]*ebpf.Map
	steps map[string]*ebpf.Program
	gate  map[string]uint32 // offsets of struct tg_gate
	raw   []byte            // the element of this CPU
	cpu   int
	frame []byte
}

// newGateRig makes a program of each global function: only a call of it.
func newGateRig(t *testing.T, steps ...string) *gateRig {
	t.Helper()
	_ = rlimit.RemoveMemlock()
	spec, err := loadTapgate()
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]*ebpf.ProgramSpec{}
	used := map[string]bool{"tg_gates": true, "tg_rules_0": true, "tg_sets_0": true, "tg_pools_0": true}
	for _, step := range steps {
		p := stepProgram(t, spec, step)
		programs[step] = p
		for _, ins := range p.Instructions {
			if ins.IsLoadFromMap() {
				used[ins.Reference()] = true
			}
		}
	}
	spec.Programs = programs
	for name := range spec.Maps {
		if !used[name] && !strings.HasPrefix(name, ".") {
			delete(spec.Maps, name)
		}
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(coll.Close)
	r := &gateRig{T: t, maps: coll.Maps, steps: coll.Programs, gate: map[string]uint32{}, frame: make([]byte, 64)}
	binary.BigEndian.PutUint16(r.frame[12:], 0x88b5)
	r.readLayout(spec)
	r.pin()
	return r
}

// stepProgram takes a function and all that it calls out of whatever program has it.
func stepProgram(t *testing.T, spec *ebpf.CollectionSpec, step string) *ebpf.ProgramSpec {
	t.Helper()
	for _, p := range spec.Programs {
		functions := map[string]asm.Instructions{}
		name := ""
		for _, ins := range p.Instructions {
			if btf.FuncMetadata(&ins) != nil {
				name = ins.Symbol()
			}
			functions[name] = append(functions[name], ins)
		}
		if functions[step] == nil {
			continue
		}
		first := p.Instructions[0]
		call := asm.Call.Label(step).WithSymbol(first.Symbol()).WithSource(first.Source())
		call = btf.WithFuncMetadata(call, btf.FuncMetadata(&first))
		out := p.Copy()
		out.Instructions = asm.Instructions{call, asm.Return()}
		todo, done := []string{step}, map[string]bool{}
		for ; len(todo) > 0; todo = todo[1:] {
			if done[todo[0]] {
				continue
			}
			done[todo[0]] = true
			for _, ins := range functions[todo[0]] {
				if ins.IsFunctionCall() {
					todo = append(todo, ins.Reference())
				}
				out.Instructions = append(out.Instructions, ins)
			}
		}
		return out
	}
	t.Fatalf("no program calls %s", step)
	return nil
}

func (r *gateRig) readLayout(spec *ebpf.CollectionSpec) {
	r.Helper()
	s, ok := spec.Maps["tg_gates"].Value.(*btf.Struct)
	if !ok {
		r.Fatal("no type of struct tg_gate")
	}
	for _, m := range s.Members {
		r.gate[m.Name] = m.Offset.Bytes()
		if inner, ok := btf.UnderlyingType(m.Type).(*btf.Struct); ok {
			for _, n := range inner.Members {
				r.gate[m.Name+"."+n.Name] = m.Offset.Bytes() + n.Offset.Bytes()
			}
		}
	}
	r.raw = make([]byte, r.maps["tg_gates"].ValueSize())
}

// pin keeps the thread on one CPU, whose element is written and read. The thread
// ends with the test.
func (r *gateRig) pin() {
	r.Helper()
	runtime.LockOSThread()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		r.Fatal(err)
	}
	for !set.IsSet(r.cpu) {
		r.cpu++
	}
	set.Zero()
	set.Set(r.cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		r.Fatal(err)
	}
}

func (r *gateRig) set32(field string, v uint32) {
	at, ok := r.gate[field]
	if !ok {
		r.Fatalf("struct tg_gate has no %s", field)
	}
	binary.NativeEndian.PutUint32(r.raw[at:], v)
}

func (r *gateRig) get32(field string) uint32 {
	at, ok := r.gate[field]
	if !ok {
		r.Fatalf("struct tg_gate has no %s", field)
	}
	return binary.NativeEndian.Uint32(r.raw[at:])
}

// packet writes the facts of one packet.
func (r *gateRig) packet(from, to uint8, e endpoints) {
	clear(r.raw)
	src, dst := e.src.As16(), e.dst.As16()
	copy(r.raw[r.gate["tuple.src"]:], src[:])
	copy(r.raw[r.gate["tuple.dst"]:], dst[:])
	binary.BigEndian.PutUint16(r.raw[r.gate["tuple.sport"]:], e.sport)
	binary.BigEndian.PutUint16(r.raw[r.gate["tuple.dport"]:], e.dport)
	r.raw[r.gate["tuple.proto"]] = e.proto
	r.set32("family", uint32(familyOf(e.src)))
	r.set32("kind", uint32(tapgateTgKindTG_KIND_OTHER))
	switch e.proto {
	case protoTCP, protoUDP, unix.IPPROTO_SCTP:
		r.set32("kind", uint32(tapgateTgKindTG_KIND_PORTS))
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		r.set32("kind", uint32(tapgateTgKindTG_KIND_QUERY))
	}
	r.set32("from_zone", uint32(from))
	r.set32("to_zone", uint32(to))
	r.set32("from_role", uint32(roleNumber(ruleZones[from].Role)))
	r.set32("to_role", uint32(roleNumber(ruleZones[to].Role)))
	r.set32("generation", 1)
}

func (r *gateRig) now(d time.Duration) {
	binary.NativeEndian.PutUint64(r.raw[r.gate["now"]:], uint64(d))
}

// run gives the packet to a step, and reads what it made of its facts.
func (r *gateRig) run(step string) int {
	r.Helper()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		r.Fatal(err)
	}
	elements := slices.Repeat([][]byte{r.raw}, cpus)
	if err := r.maps["tg_gates"].Put(uint32(0), elements); err != nil {
		r.Fatal(err)
	}
	code, err := r.steps[step].Run(&ebpf.RunOptions{Data: r.frame})
	if err != nil {
		r.Fatalf("run %s: %v", step, err)
	}
	all, err := r.maps["tg_gates"].LookupBytes(uint32(0))
	if err != nil {
		r.Fatal(err)
	}
	size := (len(r.raw) + 7) / 8 * 8
	copy(r.raw, all[r.cpu*size:])
	return int(int32(code))
}

// fill puts a ruleset into generation 1.
func (r *gateRig) fill(rules *ruleset) {
	r.Helper()
	spec, err := loadTapgate()
	if err != nil {
		r.Fatal(err)
	}
	var inner []*ebpf.Map
	for _, name := range []string{"tg_rules", "tg_sets", "tg_pools"} {
		m, err := ebpf.NewMap(spec.Maps[name].InnerMap)
		if err != nil {
			r.Fatal(err)
		}
		defer m.Close()
		if outer := r.maps[name]; outer != nil {
			if err := outer.Put(uint32(1), m); err != nil {
				r.Fatal(err)
			}
		}
		inner = append(inner, m)
	}
	if err := rules.write(inner[0], inner[1], inner[2]); err != nil {
		r.Fatal(err)
	}
}
