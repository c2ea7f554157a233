package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// stage has the programs as the loader loads them, but for what the kernel keeps to
// itself and a sequence must be able to repeat: the clock and the random numbers are
// the test's, and so is tc_index, which BPF_PROG_RUN neither takes nor gives.
// Its maps are its own, and hold nothing of the gateway that is attached.
type stage struct {
	programs map[string]*ebpf.Program
	maps     map[string]*ebpf.Map
	spec     *ebpf.CollectionSpec
	words    *ebpf.Map // as below
	memory   *ebpf.Memory
	seen     *ebpf.Memory // tg_seen
	scratch  *ebpf.Memory // tg_scratch
	ctx      []byte       // as the last run left it
	cb       []byte       // of that
}

// The words that test and programs share.
const (
	wordClock = 8 * iota
	wordDice
	wordGiven // tc_index before a run
	wordLeft  // and after it
	wordsSize
)

// tickShift makes ticks of nanoseconds: of 4.2 ms each.
const tickShift = 22

// object is what clang has made of the programs, the same that the loader embeds.
// Another one can be given, to see that errors are found.
func object() string {
	if name := os.Getenv("TAPGATE_RANDOM_OBJECT"); name != "" {
		return name
	}
	return "../../loader/tapgate_bpfel.o"
}

// stageRoom is how many elements the flow maps have: no sequence has so many flows,
// and what is small is quickly read.
const stageRoom = 8192

// newStage loads the programs; constants are those of programs that the loader has
// loaded.
func newStage(loaded *ebpf.Program) (s *stage, err error) {
	s = &stage{programs: map[string]*ebpf.Program{}, maps: map[string]*ebpf.Map{}, ctx: make([]byte, binary.Size(skb{}))}
	s.cb = s.ctx[cbAt:cbEnd]
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.spec, err = ebpf.LoadCollectionSpec(object()); err != nil {
		return s, err
	}
	constants, err := mapOf(loaded, ".rodata")
	if err != nil {
		return s, err
	}
	defer constants.Close()
	s.words, err = ebpf.NewMap(&ebpf.MapSpec{Name: "words", Type: ebpf.Array, KeySize: 4, ValueSize: wordsSize, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		return s, err
	}
	if s.memory, err = s.words.Memory(); err != nil {
		return s, err
	}
	wanted := map[string]string{"tapgate_tap_in": "in", "tapgate_tap_out": "out", "tapgate_sweep": "sweep", "tapgate_flush": "flush"}
	for name, p := range s.spec.Programs {
		if wanted[name] == "" {
			delete(s.spec.Programs, name)
			continue
		}
		s.give(p)
		if name == "tapgate_tap_in" || name == "tapgate_tap_out" {
			s.wrap(p)
		}
	}
	for _, m := range s.spec.Maps {
		if m.MaxEntries > stageRoom && (m.Type == ebpf.Hash || m.Type == ebpf.LRUHash || m.Type == ebpf.Queue) {
			m.MaxEntries = stageRoom
		}
		// One thread runs the programs: on whatever CPU, it goes on where it was.
		if m.Type == ebpf.PerCPUArray {
			m.Type, m.Flags = ebpf.Array, m.Flags|unix.BPF_F_MMAPABLE
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(s.spec, ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{".rodata": constants}})
	if err != nil {
		return s, err
	}
	for name, p := range coll.Programs {
		s.programs[wanted[name]] = p
	}
	s.maps = coll.Maps
	var err1, err2 error
	s.seen, err1 = s.maps["tg_seen"].Memory()
	s.scratch, err2 = s.maps["tg_scratch"].Memory()
	return s, errors.Join(err1, err2)
}

// mapOf opens a map that a program uses.
func mapOf(p *ebpf.Program, name string) (*ebpf.Map, error) {
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, err
		}
		if i, err := m.Info(); err == nil && i.Name == name {
			return m, nil
		}
		m.Close()
	}
	return nil, fmt.Errorf("the programs use no map %s", name)
}

// give takes clock and random numbers from the words.
func (s *stage) give(p *ebpf.ProgramSpec) {
	const factor = 6364136223846793005 // of Knuth's MMIX generator
	given := []struct {
		helper asm.BuiltinFunc
		name   string
		body   asm.Instructions
	}{
		{asm.FnKtimeGetBootNs, "test_clock", asm.Instructions{
			asm.LoadMapValue(asm.R1, s.words.FD(), wordClock), asm.LoadMem(asm.R0, asm.R1, 0, asm.DWord), asm.Return(),
		}},
		{asm.FnJiffies64, "test_ticks", asm.Instructions{
			asm.LoadMapValue(asm.R1, s.words.FD(), wordClock), asm.LoadMem(asm.R0, asm.R1, 0, asm.DWord),
			asm.RSh.Imm(asm.R0, tickShift), asm.Return(),
		}},
		{asm.FnGetPrandomU32, "test_dice", asm.Instructions{
			asm.LoadMapValue(asm.R1, s.words.FD(), wordDice), asm.LoadMem(asm.R0, asm.R1, 0, asm.DWord),
			asm.LoadImm(asm.R2, factor, asm.DWord), asm.Mul.Reg(asm.R0, asm.R2), asm.Add.Imm(asm.R0, 12345),
			asm.StoreMem(asm.R1, 0, asm.R0, asm.DWord), asm.RSh.Imm(asm.R0, 32), asm.Return(),
		}},
	}
	number := &btf.Func{Type: &btf.FuncProto{Return: &btf.Int{Name: "unsigned long long", Size: 8}}, Linkage: btf.StaticFunc}
	for _, g := range given {
		called := false
		for i := range p.Instructions {
			if ins := &p.Instructions[i]; ins.IsBuiltinCall() && ins.Constant == int64(g.helper) {
				ins.Src, ins.Constant = asm.PseudoCall, -1
				*ins = ins.WithReference(g.name)
				called = true
			}
		}
		if called {
			p.Instructions = append(p.Instructions, function(p, g.name, number, g.body...)...)
		}
	}
}

// wrap hands tc_index in and out.
func (s *stage) wrap(p *ebpf.ProgramSpec) {
	const tcIndexAt = 44
	entry := &p.Instructions[0]
	all := function(p, "test_run", btf.FuncMetadata(entry),
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMapValue(asm.R2, s.words.FD(), wordGiven), asm.LoadMem(asm.R2, asm.R2, 0, asm.Word), asm.StoreMem(asm.R1, tcIndexAt, asm.R2, asm.Word),
		asm.Call.Label(entry.Symbol()),
		asm.LoadMem(asm.R2, asm.R6, tcIndexAt, asm.Word), asm.LoadMapValue(asm.R1, s.words.FD(), wordLeft), asm.StoreMem(asm.R1, 0, asm.R2, asm.Word),
		asm.Return())
	p.Instructions = append(all, p.Instructions...)
}

// function is a function of the test's among those of a program.
func function(p *ebpf.ProgramSpec, name string, like *btf.Func, body ...asm.Instruction) asm.Instructions {
	f := *like
	f.Name = name
	first := body[0].WithSymbol(name).WithSource(p.Instructions[0].Source())
	body[0] = btf.WithFuncMetadata(first, &f)
	return body
}

func (s *stage) word(at int) uint64 {
	var b [8]byte
	_, _ = s.memory.ReadAt(b[:], int64(at))
	return binary.NativeEndian.Uint64(b[:])
}

func (s *stage) setWord(at int, v uint64) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], v)
	_, _ = s.memory.WriteAt(b[:], int64(at))
}

// run gives a frame to the program of a hook: code, tc_index afterwards, frame.
func (s *stage) run(program string, ctx, frame, out []byte, tcIndex uint16) (code int32, left uint16, made []byte, err error) {
	s.setWord(wordGiven, uint64(tcIndex))
	opts := ebpf.RunOptions{Data: frame, DataOut: out, Context: ctx, ContextOut: s.ctx}
	n, err := s.programs[program].Run(&opts)
	return int32(n), uint16(s.word(wordLeft)), opts.DataOut, err
}

func (s *stage) close() error {
	var errs []error
	for _, p := range s.programs {
		errs = append(errs, p.Close())
	}
	for _, m := range s.maps {
		errs = append(errs, m.Close())
	}
	if s.words != nil {
		errs = append(errs, s.words.Close())
	}
	return errors.Join(errs...)
}
