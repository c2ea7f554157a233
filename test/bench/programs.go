package main

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The programs are a dozen instructions each, so they are written here and
// need no compiler.

// Directions of generated packets, also the keys of the device map.
const (
	outbound = iota // from the server
	inbound         // from the outside host
	alternating
)

// Results of programs on TCX (uapi/linux/bpf.h).
const (
	tcxNext = -1
	tcxPass = 0
	tcxDrop = 2
)

// tally is what a counting program saw.
type tally struct{ Packets, Bytes uint64 }

func newTally() (*ebpf.Map, error) {
	return ebpf.NewMap(&ebpf.MapSpec{
		Name: "bench_tally", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 16, MaxEntries: 1,
	})
}

func readTally(m *ebpf.Map) (sum tally, err error) {
	var all []tally
	if err := m.Lookup(uint32(0), &all); err != nil {
		return sum, fmt.Errorf("read counter: %w", err)
	}
	for _, t := range all {
		sum.Packets += t.Packets
		sum.Bytes += t.Bytes
	}
	return sum, nil
}

// addTally adds one packet and the length in R7 (0 if none), and jumps to fail
// if the map has no element. It leaves the number of the packet in R8.
func addTally(m *ebpf.Map, fail string) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, fail),
		asm.LoadMem(asm.R8, asm.R0, 0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, 8, asm.DWord),
		asm.Add.Reg(asm.R1, asm.R7),
		asm.StoreMem(asm.R0, 8, asm.R1, asm.DWord),
	}
}

// newGenerator loads an XDP program that writes a frame and sends it through
// the device map. It writes the whole frame each time, since the kernel
// recycles the pages, and they come back as the gateway left them. Alternating
// directions change every 32 packets, half of what the kernel runs in one go.
func newGenerator(frames [2][]byte, devices, sent *ebpf.Map, direction int) (*ebpf.Program, error) {
	size := int32(len(frames[outbound]))
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R9, asm.R6, 0, asm.Word), // data
		asm.LoadMem(asm.R2, asm.R6, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.Add.Imm(asm.R1, size),
		asm.JGT.Reg(asm.R1, asm.R2, "abort"),
		asm.Mov.Imm(asm.R7, 0),
	}
	insns = append(insns, addTally(sent, "abort")...)
	if direction == alternating {
		insns = append(insns, asm.RSh.Imm(asm.R8, 5), asm.And.Imm(asm.R8, 1))
	} else {
		insns = append(insns, asm.Mov.Imm(asm.R8, int32(direction)))
	}
	insns = append(insns, asm.JNE.Imm(asm.R8, outbound, "in"))
	insns = append(insns, writeFrame(frames[outbound])...)
	insns = append(insns, asm.Ja.Label("send"))
	in := writeFrame(frames[inbound])
	in[0] = in[0].WithSymbol("in")
	insns = append(insns, in...)
	insns = append(insns,
		asm.LoadMapPtr(asm.R1, devices.FD()).WithSymbol("send"),
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRedirectMap.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("abort"),
		asm.Return(),
	)
	return load("bench_generator", ebpf.XDP, ebpf.AttachNone, insns)
}

// writeFrame stores the frame, whose length is a multiple of 4, at R9.
func writeFrame(frame []byte) (out asm.Instructions) {
	for i := 0; i < len(frame); i += 4 {
		word := int64(int32(binary.NativeEndian.Uint32(frame[i:])))
		out = append(out, asm.StoreImm(asm.R9, int16(i), word, asm.Word))
	}
	return out
}

// notes is where a sink writes down from which endpoint a flow came, when the
// state says so: address and port, 32 bits each, in host order, by the flow's
// number.
type notes struct{ state, noted *ebpf.Map }

// newSink loads a TCX program that counts and drops: everything but ARP, or
// only UDP over IPv4, of which it may take notes. Not XDP: on a veth that copies
// every frame whose data is shared into a page first, and which frames those are
// depends on the tap.
func newSink(counter *ebpf.Map, onlyUDP bool, n *notes) (*ebpf.Program, error) {
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word), // len, with the Ethernet header
	}
	if onlyUDP {
		insns = append(insns, udpAt(46)...) // as far as the flow's number
	} else {
		insns = append(insns,
			asm.LoadMem(asm.R1, asm.R6, 16, asm.Word), // protocol, network order
			asm.JEq.Imm(asm.R1, int32(networkOrder(unix.ETH_P_ARP)), "pass"),
		)
	}
	insns = append(insns, addTally(counter, "pass")...)
	if n != nil {
		insns = append(insns, n.take()...)
	}
	return load("bench_sink", ebpf.SchedCLS, ebpf.AttachTCXIngress, append(insns,
		asm.Mov.Imm(asm.R0, tcxDrop).WithSymbol("drop"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"),
		asm.Return(),
	))
}

// udpAt leaves the packet of the context in R6 in R9, and jumps to pass unless it
// is UDP over IPv4 without options and so many bytes are there.
func udpAt(bytes int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R1, asm.R6, 16, asm.Word), // protocol, network order
		asm.JNE.Imm(asm.R1, int32(networkOrder(unix.ETH_P_IP)), "pass"),
		asm.LoadMem(asm.R9, asm.R6, 76, asm.Word), // data
		asm.LoadMem(asm.R2, asm.R6, 80, asm.Word), // data_end
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.Add.Imm(asm.R3, bytes),
		asm.JGT.Reg(asm.R3, asm.R2, "pass"),
		asm.LoadMem(asm.R1, asm.R9, 23, asm.Byte),
		asm.JNE.Imm(asm.R1, unix.IPPROTO_UDP, "pass"),
	}
}

// take notes the source of the packet at R9.
func (n *notes) take() asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, n.state.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), // the key 0 is there still
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.LoadMem(asm.R1, asm.R0, 24, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "drop"),
		asm.LoadMem(asm.R1, asm.R9, 42, asm.Word),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.LoadMapPtr(asm.R1, n.noted.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.LoadMem(asm.R1, asm.R9, 26, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Word),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R9, 34, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(asm.R0, 4, asm.R1, asm.Word),
	}
}

// newEcho loads a TCX program that turns UDP for a port round and sends it back
// from where it came. The checksums hold, since they are sums.
func newEcho(port uint16) (*ebpf.Program, error) {
	insns := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, udpAt(42)...)
	insns = append(insns,
		asm.LoadMem(asm.R1, asm.R9, 36, asm.Half),
		asm.JNE.Imm(asm.R1, int32(networkOrder(port)), "pass"),
	)
	swap := func(a, b int16, size asm.Size) {
		insns = append(insns,
			asm.LoadMem(asm.R1, asm.R9, a, size), asm.LoadMem(asm.R2, asm.R9, b, size),
			asm.StoreMem(asm.R9, a, asm.R2, size), asm.StoreMem(asm.R9, b, asm.R1, size))
	}
	for _, word := range []int16{0, 2, 4} {
		swap(word, word+6, asm.Half)
	}
	swap(26, 30, asm.Word)
	swap(34, 36, asm.Half)
	return load("bench_echo", ebpf.SchedCLS, ebpf.AttachTCXIngress, append(insns,
		asm.LoadMem(asm.R1, asm.R6, 40, asm.Word), // ifindex
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"),
		asm.Return(),
	))
}

// newAdmit loads a TCX program that lets UDP from a port by the sink behind it.
func newAdmit(port uint16) (*ebpf.Program, error) {
	insns := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, udpAt(42)...)
	return load("bench_admit", ebpf.SchedCLS, ebpf.AttachTCXIngress, append(insns,
		asm.LoadMem(asm.R1, asm.R9, 34, asm.Half),
		asm.JNE.Imm(asm.R1, int32(networkOrder(port)), "pass"),
		asm.Mov.Imm(asm.R0, tcxPass),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"),
		asm.Return(),
	))
}

// newRawTap loads the least that copies: the clone and nothing around it.
func newRawTap(ifindex int, attach ebpf.AttachType) (*ebpf.Program, error) {
	return load("bench_raw_tap", ebpf.SchedCLS, attach, asm.Instructions{
		asm.Mov.Imm(asm.R2, int32(ifindex)),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnCloneRedirect.Call(),
		asm.Mov.Imm(asm.R0, tcxNext),
		asm.Return(),
	})
}

func load(name string, kind ebpf.ProgramType, attach ebpf.AttachType, insns asm.Instructions) (*ebpf.Program, error) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: kind, AttachType: attach, Instructions: insns, License: "GPL",
	})
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w", name, err)
	}
	return prog, nil
}

// networkOrder is what a host integer holds that was stored in network order.
func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
