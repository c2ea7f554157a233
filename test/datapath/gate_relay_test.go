package datapath

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// relay hands tc_index from the program at ingress to the one at egress, as the
// kernel does: BPF_PROG_RUN neither takes nor gives it. A program of the test
// sets it and goes on in the one under test by a tail call. Asked to run twice,
// the second run has the same packet, and tells what was left in it.
type relay struct {
	program *ebpf.Program
	calls   *ebpf.Map
	words   *ebpf.Map
	memory  *ebpf.Memory
}

// The words of a relay.
const (
	relayPhase = 4 * iota // 1: the program under test has run
	relayGiven
	relayLeft
	relayWhich // 0: ingress, 1: egress
	relaySize
)

func newRelay(in, out *ebpf.Program) (r *relay, err error) {
	r = &relay{}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	r.calls, err = ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 2,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: in}, {Key: uint32(1), Value: out}},
	})
	if err != nil {
		return r, fmt.Errorf("make relay: %w", err)
	}
	r.words, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: relaySize, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		return r, fmt.Errorf("make relay: %w", err)
	}
	if r.memory, err = r.words.Memory(); err != nil {
		return r, fmt.Errorf("make relay: %w", err)
	}
	const tcIndexAt, failed = 44, -99
	r.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "relay", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, r.words.FD()), asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "fail"),
		asm.LoadMem(asm.R1, asm.R0, relayPhase, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "second"),
		asm.StoreImm(asm.R0, relayPhase, 1, asm.Word),
		asm.LoadMem(asm.R2, asm.R0, relayGiven, asm.Word), asm.StoreMem(asm.R6, tcIndexAt, asm.R2, asm.Word),
		asm.LoadMem(asm.R3, asm.R0, relayWhich, asm.Word),
		asm.LoadMapPtr(asm.R2, r.calls.FD()), asm.Mov.Reg(asm.R1, asm.R6), asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, failed).WithSymbol("fail"), asm.Return(),
		asm.LoadMem(asm.R2, asm.R6, tcIndexAt, asm.Word).WithSymbol("second"), asm.StoreMem(asm.R0, relayLeft, asm.R2, asm.Word),
		asm.Mov.Imm(asm.R0, 0), asm.Return(),
	}})
	if err != nil {
		return r, fmt.Errorf("load relay: %w", err)
	}
	return r, nil
}

// run gives a frame to the program of a hook, with that tc_index.
func (r *relay) run(egress bool, tcIndex uint16, opts *ebpf.RunOptions) (code int32, left uint16, err error) {
	var b [relaySize]byte
	binary.NativeEndian.PutUint32(b[relayGiven:], uint32(tcIndex))
	opts.Repeat = 2
	if egress {
		binary.NativeEndian.PutUint32(b[relayWhich:], 1)
		opts.Repeat = 1
	}
	if _, err := r.memory.WriteAt(b[:], 0); err != nil {
		return 0, 0, err
	}
	n, err := r.program.Run(opts)
	if err != nil {
		return 0, 0, err
	}
	_, err = r.memory.ReadAt(b[:], 0)
	return int32(n), uint16(binary.NativeEndian.Uint32(b[relayLeft:])), err
}

func (r *relay) close() {
	if r.program != nil {
		r.program.Close()
	}
	for _, m := range []*ebpf.Map{r.calls, r.words} {
		if m != nil {
			m.Close()
		}
	}
}
