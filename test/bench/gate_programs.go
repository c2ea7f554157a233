package main

import (
	"encoding/binary"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// What flow a packet is of follows from its number, so that a million of them
// need no table in the generator: only the way back does, which goes to
// whatever endpoint the gateway has chosen, and that the outside host notes.
const (
	gateHosts   = 64 // inside hosts
	gatePort    = 20000
	forwardPort = 10000 // the first port that is forwarded
	// Packets in a row of one direction: what the kernel runs in one go.
	gateBurst      = 64
	gateBurstShift = 6
)

var (
	gateInside  = netip.MustParseAddr("10.9.0.1") // the first of the hosts
	gateOutside = netip.MustParseAddr("198.18.0.1")
)

// Directions of generators of flows, beside alternating.
const (
	beginning = outbound
	answering = inbound
)

// flowShape says which flows a generator makes.
type flowShape struct {
	// Inside endpoints are 1 << bits; the rest of a flow's number is the
	// remote's address.
	bits int
	// Not 0: flows come from outside through so many forwards.
	forwards int
	// Where forwards are reached: the gateway, or the inside hosts themselves
	// where nothing is translated.
	direct bool
}

// gateState is what a generator reads for each packet, and user space sets. The
// flow of packet n is First + n*Step&Mask: with Step 1 flows come in the order in
// which they were made, which is that of their memory, with oddStep they do not.
type gateState struct{ Number, First, Mask, Learn, Step uint64 }

const oddStep = 2654435761

func hostOrder(a netip.Addr) uint32 { return binary.BigEndian.Uint32(a.AsSlice()) }

// setAddr puts an address in host order into a register.
func setAddr(r asm.Register, a netip.Addr) asm.Instruction {
	return asm.Mov.Imm32(r, int32(hostOrder(a)))
}

// newFlowGenerator loads an XDP program that sends the next packet of the next
// flow. R8 is the flow's number and R7 the direction; each way leaves source,
// destination and ports in host order in R2, R3 and R4.
func newFlowGenerator(shape flowShape, devices, state, noted *ebpf.Map, direction int) (*ebpf.Program, error) {
	begins, answers := int32(outbound), int32(inbound)
	if shape.forwards > 0 {
		begins, answers = inbound, outbound
	}
	first := begins
	if direction == answering {
		first = answers
	}
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R9, asm.R6, 0, asm.Word), // data
		asm.LoadMem(asm.R2, asm.R6, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.Add.Imm(asm.R1, frameSize),
		asm.JGT.Reg(asm.R1, asm.R2, "abort"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, state.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "abort"),
		asm.LoadMem(asm.R8, asm.R0, 0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
		asm.LoadMem(asm.R2, asm.R0, 8, asm.DWord),
		asm.LoadMem(asm.R3, asm.R0, 16, asm.DWord),
		asm.LoadMem(asm.R4, asm.R0, 32, asm.DWord),
		asm.Mov.Imm(asm.R7, first),
	}
	if direction == alternating {
		insns = append(insns,
			asm.Mov.Reg(asm.R1, asm.R8),
			asm.And.Imm(asm.R1, gateBurst),
			asm.JEq.Imm(asm.R1, 0, "same"),
			asm.Mov.Imm(asm.R7, answers),
			asm.Mov.Reg(asm.R1, asm.R8).WithSymbol("same"),
			asm.And.Imm(asm.R1, gateBurst-1),
			asm.RSh.Imm(asm.R8, gateBurstShift+1),
			asm.LSh.Imm(asm.R8, gateBurstShift),
			asm.Or.Reg(asm.R8, asm.R1),
		)
	}
	insns = append(insns,
		asm.Mul.Reg(asm.R8, asm.R4),
		asm.And.Reg(asm.R8, asm.R3),
		asm.Add.Reg(asm.R8, asm.R2),
	)
	template := udpFrame(insideMAC, serverMAC, netip.AddrPortFrom(zeroAddr, 0), netip.AddrPortFrom(zeroAddr, 0))
	insns = append(insns, writeFrame(template)...)
	insns = append(insns, asm.JNE.Imm(asm.R7, outbound, "in"))
	if shape.forwards > 0 {
		insns = append(insns, forwardWays(shape)...)
	} else {
		insns = append(insns, masqueradeWays(shape, noted)...)
	}
	insns = append(insns, finishFrame(template, devices)...)
	return load("bench_flows", ebpf.XDP, ebpf.AttachNone, insns)
}

var zeroAddr = netip.AddrFrom4([4]byte{})

// hostOf makes an inside address of the endpoint's number in R1.
func hostOf(r asm.Register) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(r, asm.R1),
		asm.And.Imm(r, gateHosts-1),
		asm.Add.Imm32(r, int32(hostOrder(gateInside))),
	}
}

// ports puts two ports together in R4, as they stand in the packet.
func ports(source, destination asm.Register) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R4, source),
		asm.LSh.Imm(asm.R4, 16),
		asm.Or.Reg(asm.R4, destination),
	}
}

func masqueradeWays(shape flowShape, noted *ebpf.Map) asm.Instructions {
	remote := func(r asm.Register) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(r, asm.R8),
			asm.RSh.Imm(r, int32(shape.bits)),
			asm.Add.Imm32(r, int32(hostOrder(gateOutside))),
		}
	}
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.And.Imm(asm.R1, 1<<shape.bits-1),
	}
	insns = append(insns, hostOf(asm.R2)...)
	insns = append(insns, remote(asm.R3)...)
	insns = append(insns, asm.Add.Imm(asm.R1, gatePort), asm.Mov.Imm(asm.R5, outsidePort))
	insns = append(insns, ports(asm.R1, asm.R5)...)
	insns = append(insns, asm.Ja.Label("finish"))

	insns = append(insns,
		asm.StoreMem(asm.RFP, -4, asm.R8, asm.Word).WithSymbol("in"),
		asm.LoadMapPtr(asm.R1, noted.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "abort"),
	)
	insns = append(insns, remote(asm.R2)...)
	insns = append(insns,
		asm.LoadMem(asm.R3, asm.R0, 0, asm.Word),
		asm.LoadMem(asm.R5, asm.R0, 4, asm.Word),
		asm.Mov.Imm(asm.R1, outsidePort),
	)
	return append(insns, ports(asm.R1, asm.R5)...)
}

func forwardWays(shape flowShape) asm.Instructions {
	// R0: the remote's port, R1: the forward's number, R5: its port.
	common := func() asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R8),
			asm.Mod.Imm(asm.R1, int32(shape.forwards)),
			asm.Mov.Reg(asm.R0, asm.R8),
			asm.And.Imm(asm.R0, 0x7fff),
			asm.Add.Imm(asm.R0, gatePort),
			asm.Mov.Reg(asm.R5, asm.R1),
			asm.Add.Imm(asm.R5, forwardPort),
		}
	}
	remote := func(r asm.Register) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(r, asm.R8),
			asm.And.Imm(r, gateHosts-1),
			asm.Add.Imm32(r, int32(hostOrder(gateOutside))),
		}
	}
	insns := common()
	insns = append(insns, hostOf(asm.R2)...)
	insns = append(insns, remote(asm.R3)...)
	insns = append(insns, ports(asm.R5, asm.R0)...)
	insns = append(insns, asm.Ja.Label("finish"))

	in := common()
	in[0] = in[0].WithSymbol("in")
	insns = append(insns, in...)
	insns = append(insns, remote(asm.R2)...)
	if shape.direct {
		insns = append(insns, hostOf(asm.R3)...)
	} else {
		insns = append(insns, setAddr(asm.R3, gatewayAddr))
	}
	return append(insns, ports(asm.R0, asm.R5)...)
}

// finishFrame writes addresses, ports, flow number, checksums and MACs into the
// template at R9 and sends it.
func finishFrame(template []byte, devices *ebpf.Map) asm.Instructions {
	words := func(b []byte) (s int32) {
		for i := 0; i < len(b); i += 2 {
			s += int32(binary.NativeEndian.Uint16(b[i:]))
		}
		return s
	}
	// fold makes a checksum of the sum in r and stores it.
	fold := func(r asm.Register, offset int16) (out asm.Instructions) {
		for _, bits := range []int32{32, 16, 16, 16} {
			out = append(out, asm.Mov.Reg(asm.R1, r), asm.RSh.Imm(asm.R1, bits))
			if bits == 32 {
				out = append(out, asm.Mov.Reg32(r, r))
			} else {
				out = append(out, asm.And.Imm(r, 0xffff))
			}
			out = append(out, asm.Add.Reg(r, asm.R1))
		}
		return append(out, asm.Xor.Imm(r, 0xffff), asm.StoreMem(asm.R9, offset, r, asm.Half))
	}
	udp := append([]byte{0, 17}, template[38:40]...) // of the pseudo header
	udp = append(udp, template[38:40]...)
	insns := asm.Instructions{
		asm.HostTo(asm.BE, asm.R2, asm.Word).WithSymbol("finish"),
		asm.HostTo(asm.BE, asm.R3, asm.Word),
		asm.HostTo(asm.BE, asm.R4, asm.Word),
		asm.StoreMem(asm.R9, 26, asm.R2, asm.Word),
		asm.StoreMem(asm.R9, 30, asm.R3, asm.Word),
		asm.StoreMem(asm.R9, 34, asm.R4, asm.Word),
		asm.StoreMem(asm.R9, 42, asm.R8, asm.Word),
		asm.Add.Reg(asm.R2, asm.R3), // 64 bits hold the carry
		asm.Mov.Reg32(asm.R5, asm.R8),
		asm.Add.Reg(asm.R4, asm.R5),
		asm.Add.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R2, words(append(append([]byte{}, template[14:24]...), template[26:34]...))),
		asm.Add.Imm(asm.R4, words(udp)+words(template[42:])),
	}
	insns = append(insns, fold(asm.R2, 24)...)
	insns = append(insns, fold(asm.R4, 40)...)
	insns = append(insns, asm.JEq.Imm(asm.R7, outbound, "send"))
	macs := append(append([]byte{}, gatewayMAC...), outsideMAC...)
	insns = append(insns, writeFrame(macs)...)
	return append(insns,
		asm.LoadMapPtr(asm.R1, devices.FD()).WithSymbol("send"),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRedirectMap.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("abort"),
		asm.Return(),
	)
}
