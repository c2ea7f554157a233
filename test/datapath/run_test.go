package datapath

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Verdicts.
const (
	next = int32(-1) // TC_ACT_UNSPEC and TCX_NEXT: no opinion
	shot = int32(2)  // TC_ACT_SHOT and TCX_DROP
)

const (
	copyMark  = 0x74617067 // TG_COPY_MARK
	copyMagic = 0x637079   // TG_COPY_MAGIC, above the byte of the task
)

// skb is struct __sk_buff as 5.10 has it, with room for newer ones. BPF_PROG_RUN takes Mark, Priority,
// Ifindex (since 5.9, in the namespace of the caller), IngressIfindex (since 5.16),
// Cb, Tstamp, WireLen, GsoSegs and GsoSize, and refuses all others, such as TcIndex.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TcIndex                                  uint32
	Cb                                                                          [5]uint32
	Hash, TcClassid, Data, DataEnd, NapiID                                      uint32
	Family, RemoteIP4, LocalIP4                                                 uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys, Tstamp                                                            uint64
	WireLen, GsoSegs                                                            uint32
	Sk                                                                          uint64
	GsoSize, Pad                                                                uint32
	Later                                                                       [8]uint64 // what newer kernels have behind it
}

// preparation is what BPF_PROG_RUN cannot give a packet. A program of the test
// does it and goes on in the one under test by a tail call.
type preparation struct {
	program string
	cut     int    // length of the frame, if not 0: PROG_RUN wants whole IP headers since 6.18
	tcIndex uint16 // as ingress left it
	tag     uint16 // id of a VLAN tag beside the frame, if not 0
}

func (r *rig) prepare(t *testing.T, p preparation) *ebpf.Program {
	t.Helper()
	if done := r.prepared[p]; done != nil {
		return done
	}
	calls, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: r.programs[p.program]}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { calls.Close() })
	const tcIndexOffset, failed = 44, -99
	ins := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	if p.tcIndex != 0 {
		ins = append(ins, asm.Mov.Imm(asm.R2, int32(p.tcIndex)), asm.StoreMem(asm.R6, tcIndexOffset, asm.R2, asm.Word))
	}
	if p.cut != 0 {
		ins = append(ins, asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, int32(p.cut)), asm.Mov.Imm(asm.R3, 0),
			asm.FnSkbChangeTail.Call(), asm.JNE.Imm(asm.R0, 0, "fail"))
	}
	if p.tag != 0 {
		ins = append(ins, asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0x0081), asm.Mov.Imm(asm.R3, int32(p.tag)),
			asm.FnSkbVlanPush.Call(), asm.JNE.Imm(asm.R0, 0, "fail"))
	}
	ins = append(ins, asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, calls.FD()), asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, failed).WithSymbol("fail"), asm.Return())
	done, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "prepare", Type: ebpf.SchedCLS, License: "GPL", Instructions: ins})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { delete(r.prepared, p); done.Close() })
	r.prepared[p] = done
	return done
}

// outcome is what a program made of a packet.
type outcome struct {
	verdict int32
	data    []byte
	ctx     skb
}

// run gives one packet to a program: tap_in, tap_out, dmz_in or dmz_out.
func (r *rig) run(t *testing.T, program string, ctx skb, frame []byte) outcome {
	t.Helper()
	return r.runPrepared(t, preparation{program: program}, ctx, frame)
}

func (r *rig) runPrepared(t *testing.T, p preparation, ctx skb, frame []byte) outcome {
	t.Helper()
	prog := r.programs[p.program]
	if p != (preparation{program: p.program}) {
		prog = r.prepare(t, p)
	}
	out := outcome{data: make([]byte, len(frame)+256)}
	opts := &ebpf.RunOptions{Data: frame, DataOut: out.data, Context: &ctx, ContextOut: &out.ctx}
	err := r.Gateway.Do(func() error {
		code, err := prog.Run(opts)
		out.verdict = int32(code)
		return err
	})
	if err != nil {
		t.Fatalf("run %s: %v", p.program, err)
	}
	out.data = opts.DataOut
	return out
}

// runCut is run for a frame that this kernel's BPF_PROG_RUN may find too short:
// it is then made from a longer one.
func (r *rig) runCut(t *testing.T, program string, ctx skb, frame []byte) outcome {
	t.Helper()
	opts := &ebpf.RunOptions{Data: frame, Context: &skb{}}
	_, err := r.programs["dmz_out"].Run(opts)
	if err == nil {
		return r.run(t, program, ctx, frame)
	}
	if !errors.Is(err, unix.EINVAL) {
		t.Fatalf("run %s: %v", program, err)
	}
	long := append(bytes.Clone(frame), make([]byte, 64)...)
	return r.runPrepared(t, preparation{program: program, cut: len(frame)}, ctx, long)
}

// unchanged fails unless the program left packet and context alone.
func (o outcome) unchanged(t *testing.T, ctx skb, frame []byte) {
	t.Helper()
	if o.verdict != next {
		t.Errorf("verdict %d, want %d: production traffic must go on", o.verdict, next)
	}
	if !bytes.Equal(o.data, frame) {
		t.Errorf("the packet was changed:\n%x, was\n%x", o.data, frame)
	}
	if o.ctx.Mark != ctx.Mark || o.ctx.Priority != ctx.Priority || o.ctx.Cb != ctx.Cb {
		t.Errorf("the context was changed: mark %#x priority %d cb %x, was %#x, %d, %x",
			o.ctx.Mark, o.ctx.Priority, o.ctx.Cb, ctx.Mark, ctx.Priority, ctx.Cb)
	}
}
