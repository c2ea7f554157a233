package datapath

import (
	"bytes"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"tapgate/test/lab"
	"tapgate/test/packet"
)

// tagReader reads skb->tc_index of what leaves by eth6: a copy still has what
// ingress gave its original for the way through the gateway.
type tagReader struct {
	found *ebpf.Map
}

func newTagReader(t *testing.T) *tagReader {
	t.Helper()
	found, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	const tcIndexOffset, key, value = 44, -4, -16
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "tag", Type: ebpf.SocketFilter, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, tcIndexOffset, asm.Word),
		asm.Add.Imm(asm.R2, 1<<16), // so that 0 is told from nothing
		asm.StoreMem(asm.R10, value, asm.R2, asm.DWord),
		asm.StoreImm(asm.R10, key, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, found.FD()),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, key),
		asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, value),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
		asm.Mov.Imm(asm.R0, 0), asm.Return(), // the socket gets nothing
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	fd := -1
	err = gate.Gateway.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, prog.FD()); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: dmz2}) // ETH_P_ALL, network order
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd); found.Close() })
	return &tagReader{found}
}

// of is the tag that tap_in gives a frame, or 0.
func (r *tagReader) of(t *testing.T, frame []byte) uint16 {
	t.Helper()
	if err := r.found.Put(uint32(0), uint64(0)); err != nil {
		t.Fatal(err)
	}
	gate.run(t, "tap_in", skb{Ifindex: internal}, frame)
	gate.viaEth6.take(t, 1, isCopy)
	var got uint64
	for end := time.Now().Add(arriveTime); got == 0 && time.Now().Before(end); {
		if err := r.found.Lookup(uint32(0), &got); err != nil {
			t.Fatal(err)
		}
	}
	if got == 0 {
		t.Fatal("no copy left by eth6")
	}
	return uint16(got)
}

// A packet routed between two interfaces of a mirror is copied once, as long as
// it wears the same headers; other mirrors have it from where they tap.
func TestDuplicates(t *testing.T) {
	gate.applyResolved(t, mirror("ids", []string{"internal", "second"}, l2), mirror("late", []string{"second"}, via))
	tags := newTagReader(t)
	plain := packet.Frame(fromServer(), outward(), packet.UDP(5000, 53), packet.Payload(40))
	routed := packet.Frame(toServer(), outward(), packet.UDP(5000, 53), packet.Payload(40))
	routed[14+8] = 63 // TTL: what routing changes
	snat := packet.Frame(toServer(), packet.IPv4(packet.Gateway, packet.Outside), packet.UDP(5000, 53), packet.Payload(40))
	dnat := packet.Frame(toServer(), packet.IPv4(packet.Server, packet.Gateway), packet.UDP(5000, 53), packet.Payload(40))
	ports := packet.Frame(toServer(), outward(), packet.UDP(5001, 53), packet.Payload(40))
	plain6 := packet.Frame(fromServer(), outward6(), packet.TCP(5000, 53, true))
	nat6 := packet.Frame(fromServer(), packet.IPv6(packet.Server6, packet.Server6.Next()), packet.TCP(5000, 53, true))
	arp := packet.ARPRequest(packet.ServerMAC, packet.Server, packet.Outside)

	for _, c := range []struct {
		name      string
		in, out   []byte
		from      uint32 // ingress_ifindex
		forged    uint16 // tc_index in place of what tap_in gave
		duplicate bool
	}{
		{"routed", plain, routed, internal, 0, true},
		{"routed, IPv6", plain6, plain6, internal, 0, true},
		{"source translated", plain, snat, internal, 0, false},
		{"destination translated", plain, dnat, internal, 0, false},
		{"port translated", plain, ports, internal, 0, false},
		{"translated, IPv6", plain6, nat6, internal, 0, false},
		{"from an interface without tap", plain, routed, external, 0, false},
		{"from the gateway itself", plain, routed, 0, 0, false},
		{"not IP", arp, arp, internal, 0, false},
		{"with a tag that is not ours", plain, routed, internal, 0xbad, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.from != 0 {
				requireIngressIfindex(t)
			}
			gate.setNeighs(t, fresh(t))
			tag := tags.of(t, c.in)
			if c.forged != 0 {
				tag = c.forged
			}
			ctx := skb{Ifindex: second, IngressIfindex: c.from}
			change := gate.during(t, func() {
				gate.runPrepared(t, preparation{program: "tap_out", tcIndex: tag}, ctx, c.out).unchanged(t, ctx, c.out)
			})
			n := count(1, len(c.out))
			want, duplicates, copies := copied(n), uint64(0), 1
			if c.duplicate {
				want, duplicates, copies = account{}, 1, 0
			}
			change.mirror(t, "ids", "tap_out", want)
			change.mirror(t, "late", "tap_out", copied(n))
			if got := change.duplicates(second); got != duplicates {
				t.Errorf("%d duplicates counted, want %d", got, duplicates)
			}
			gate.viaEth6.copies(t, copies)
			gate.viaEth2.copies(t, 1)
		})
	}
	gate.quiet(t)
}

// tap_in overwrites what a veth peer left, so that nobody can hide a packet.
func TestDuplicateTagIsOurs(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, l2))
	tags := newTagReader(t)
	frame := plainPacket()
	want := tags.of(t, frame)
	if want == 0 {
		t.Fatal("an IP packet has no tag")
	}
	if err := tags.found.Put(uint32(0), uint64(0)); err != nil {
		t.Fatal(err)
	}
	gate.runPrepared(t, preparation{program: "tap_in", tcIndex: want + 1}, skb{Ifindex: internal}, frame)
	gate.viaEth6.copies(t, 1)
	var got uint64
	if err := tags.found.Lookup(uint32(0), &got); err != nil {
		t.Fatal(err)
	}
	if uint16(got) != want {
		t.Errorf("the tag is %#x, want %#x, whatever came in", uint16(got), want)
	}
	if got := tags.of(t, packet.ARPRequest(packet.ServerMAC, packet.Server, packet.Outside)); got != 0 {
		t.Errorf("an ARP packet has tag %#x, want none", got)
	}
}

// The same for a packet that the kernel really routes, on every kernel.
func TestDuplicateRoutedByTheKernel(t *testing.T) {
	gate.applyResolved(t, mirror("ids", []string{"internal", "second"}, l2))
	server, host := gate.Servers[0], gate.Second
	arrived, err := host.Capture("eth0", lab.Incoming)
	if err != nil {
		t.Fatal(err)
	}
	// An answer that nobody asked for: nobody says anything to it.
	reply := packet.Echo(7, 7)
	reply.TypeCode = layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoReply, 0)
	frame := packet.Frame(packet.Ether(server.MAC, gate.Gateway.Interface("eth3").MAC), packet.IPv4(server.Addr, host.Addr), reply, packet.Payload(40))
	ours := func(f lab.Frame) bool { return bytes.HasSuffix(f.Data, frame[34:]) }
	send := func(n int) {
		t.Helper()
		if err := server.Send(frame); err != nil {
			t.Fatal(err)
		}
		_, err := arrived.WaitFor(func(all []lab.Frame) bool { return len(lab.Select(all, ours)) >= n }, arriveTime)
		if err != nil {
			t.Fatal(err)
		}
	}
	send(1) // with it the gateway learns the host's MAC
	gate.quietButCopies(t)
	change := gate.during(t, func() { send(2) })
	if got := change.duplicates(second); got != 1 {
		t.Errorf("%d duplicates counted, want 1", got)
	}
	copies := 0
	gate.passBy(t, func(_ string, f lab.Frame) {
		if ours(f) {
			copies++
		}
	})
	if copies != 1 {
		t.Errorf("%d copies of a routed packet, want 1", copies)
	}
}
