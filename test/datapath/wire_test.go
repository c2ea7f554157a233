package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"tapgate/loader"
	"tapgate/test/packet"
)

const byFrags = 0xffff // GSO_BY_FRAGS: SCTP's segments are of any size

// wireCount is the model: what a GSO packet is on the wire, from the headers as
// gopacket finds them.
func wireCount(frame []byte, gsoSize, gsoSegs int) loader.Count {
	headers, payload := 0, 0
	for _, l := range gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy).Layers() {
		headers += len(l.LayerContents())
		payload = len(l.LayerPayload())
		switch l.LayerType() {
		case layers.LayerTypeTCP, layers.LayerTypeUDP, layers.LayerTypeSCTP:
			segs := gsoSegs
			if segs == 0 && gsoSize != byFrags {
				segs = (payload + gsoSize - 1) / gsoSize
			}
			segs = max(segs, 1)
			return count(segs, segs*headers+payload)
		}
	}
	// Headers that are not known repeat nothing that could be counted.
	segs := gsoSegs
	if segs == 0 {
		segs = (len(frame) + gsoSize - 1) / gsoSize
	}
	return count(segs, len(frame))
}

// What BPF_PROG_RUN is told to be a GSO packet has no gso_type, which kernels
// refuse to clone: only what was on the interface is looked at here, and the
// accounts have to hold whatever became of the copy.
func TestWireCount(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	payload := packet.Payload(2900)
	for _, c := range []struct {
		name       string
		frame      []byte
		size, segs int
	}{
		{"TCP", packet.Frame(fromServer(), outward(), packet.TCP(1, 2, false), payload), 1000, 3},
		{"TCP with options", packet.Frame(fromServer(), outward(), packet.TCP(1, 2, true), payload), 1448, 3},
		{"TCP, segments not known", packet.Frame(fromServer(), outward(), packet.TCP(1, 2, true), payload), 1000, 0},
		{"TCP, segments not known, no remainder", packet.Frame(fromServer(), outward(), packet.TCP(1, 2, true), packet.Payload(3000)), 1000, 0},
		{"TCP, segments not known, one", packet.Frame(fromServer(), outward(), packet.TCP(1, 2, true), packet.Payload(1000)), 1000, 0},
		{"TCP without payload", packet.Frame(fromServer(), outward(), packet.TCP(1, 2, true)), 1000, 0},
		{"UDP", packet.Frame(fromServer(), outward(), packet.UDP(1, 2), payload), 700, 5},
		{"UDP, segments not known", packet.Frame(fromServer(), outward(), packet.UDP(1, 2), payload), 700, 0},
		{"IPv6 TCP", packet.Frame(fromServer(), outward6(), packet.TCP(1, 2, true), payload), 1000, 3},
		{"IPv6 UDP, segments not known", packet.Frame(fromServer(), outward6(), packet.UDP(1, 2), payload), 1000, 0},
		{"VLAN TCP", packet.Frame(fromServer(), packet.Tag(7), outward(), packet.TCP(1, 2, false), payload), 1000, 0},
		{"QinQ TCP", packet.Frame(fromServer(), packet.ServiceTag(7), packet.Tag(8), outward(), packet.TCP(1, 2, false), payload), 1000, 3},
		{"SCTP by fragments", packet.Frame(fromServer(), outward(), packet.SCTP(1, 2), payload), byFrags, 4},
		{"neither TCP, UDP nor SCTP, as what a tunnel carries", packet.Frame(fromServer(), outward(), packet.Echo(1, 2), payload), 1000, 0},
	} {
		for _, program := range []string{"tap_in", "tap_out"} {
			t.Run(c.name+"/"+program, func(t *testing.T) {
				ctx := skb{Ifindex: internal, GsoSize: uint32(c.size), GsoSegs: uint32(c.segs)}
				got := gate.during(t, func() { gate.run(t, program, ctx, c.frame).unchanged(t, ctx, c.frame) })
				want := wireCount(c.frame, c.size, c.segs)
				if n := got.seen(internal, program); n != want {
					t.Errorf("seen %v, want %v", n, want)
				}
				a := difference(findMirror(got.before, "ids").Ledger, findMirror(got.after, "ids").Ledger)
				sum := a.copied
				for _, n := range a.skipped {
					sum.Packets, sum.Bytes = sum.Packets+n.Packets, sum.Bytes+n.Bytes
				}
				if a.matched != want || sum != want {
					t.Errorf("matched %v, copied and skipped %v, want %v", a.matched, sum, want)
				}
			})
		}
	}
	gate.viaEth2.take(t, 0, isCopy) // kernels that cloned them
}

// The VLAN tag beside a GSO packet is in each of its segments.
func TestWireCountTagBeside(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	frame := packet.Frame(fromServer(), outward(), packet.TCP(1, 2, false), packet.Payload(2900))
	ctx := skb{Ifindex: internal, GsoSize: 1000, GsoSegs: 3}
	got := gate.during(t, func() { gate.runPrepared(t, preparation{program: "tap_in", tag: 7}, ctx, frame) })
	want := wireCount(frame, 1000, 3)
	want.Bytes += 3 * 4
	if n := got.seen(internal, "tap_in"); n != want {
		t.Errorf("seen %v, want %v", n, want)
	}
	gate.viaEth2.take(t, 0, isCopy)
}

// vnetHeader is struct virtio_net_hdr: how a sender on a packet socket asks for
// checksum and segmentation.
type vnetHeader struct {
	flags, gsoType                           uint8
	headers, gsoSize, sumStart, sumFieldFrom uint16
}

// The values of virtio_net_hdr.
const (
	needsChecksum = 1
	gsoTCP4       = 1
	gsoTCP6       = 4
)

// sendOffloaded sends a frame from the server, with what its kernel shall still do.
func (r *rig) sendOffloaded(t *testing.T, v vnetHeader, frame []byte) {
	t.Helper()
	err := r.Servers[0].Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return err
		}
		b := []byte{v.flags, v.gsoType}
		for _, n := range []uint16{v.headers, v.gsoSize, v.sumStart, v.sumFieldFrom} {
			b = binary.NativeEndian.AppendUint16(b, n)
		}
		ifindex := r.Servers[0].Interface("eth0").Index
		return unix.Sendto(fd, append(b, frame...), 0, &unix.SockaddrLinklayer{Ifindex: ifindex})
	})
	if err != nil {
		t.Fatalf("send %d bytes from the server: %v", len(frame), err)
	}
}

// partial leaves the checksum of a frame to be finished, as a sender with
// checksum offload does: the field then holds the sum of the pseudo header.
func partial(frame []byte, l4, field int, v vnetHeader) (vnetHeader, []byte) {
	frame = bytes.Clone(frame)
	ip := frame[14:]
	var addrs []byte
	proto := ip[9]
	if ip[0]>>4 == 4 {
		addrs = ip[12:20]
	} else {
		addrs, proto = ip[8:40], ip[6]
	}
	sum := uint32(proto) + uint32(len(frame)-l4)
	for i := 0; i < len(addrs); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(addrs[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(frame[l4+field:], uint16(sum))
	v.flags, v.sumStart, v.sumFieldFrom = needsChecksum, uint16(l4), uint16(field)
	return v, frame
}

// A real GSO packet arrives at the sensor as the frames that it is on the wire,
// each with right checksums, and is skipped whole where those are too big.
func TestWireSegments(t *testing.T) {
	gate.applyResolved(t, mirror("ids", inside, via))
	for _, c := range []struct {
		name    string
		ip      func() packet.Layer
		l4      int
		gsoType uint8
		size    int
		copied  bool
	}{
		{"IPv4, segments of the MTU", func() packet.Layer { return outward() }, 34, gsoTCP4, 1500 - 52, true},
		{"IPv4, one byte more", func() packet.Layer { return outward() }, 34, gsoTCP4, 1500 - 51, false},
		{"IPv6, segments of the MTU", func() packet.Layer { return outward6() }, 54, gsoTCP6, 1500 - 72, true},
		{"IPv6, one byte more", func() packet.Layer { return outward6() }, 54, gsoTCP6, 1500 - 71, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			gate.setNeighs(t, fresh(t))
			const segments = 4
			frame := packet.Frame(fromServer(), c.ip(), packet.TCP(5000, 443, true), packet.Payload(segments*c.size-100))
			headers := c.l4 + 32
			v, out := partial(frame, c.l4, 16, vnetHeader{gsoType: c.gsoType, headers: uint16(headers), gsoSize: uint16(c.size)})
			want := count(segments, len(frame)+(segments-1)*headers)
			before := findMirror(gate.status(t), "ids").Matched.Packets
			change := gate.during(t, func() {
				gate.sendOffloaded(t, v, out)
				if c.copied {
					got := gate.viaEth2.copies(t, segments)
					checkSegments(t, got, frame, headers)
				} else {
					if err := waitUntil(func() bool { return findMirror(gate.status(t), "ids").Matched.Packets > before }); err != nil {
						t.Error(err)
					}
				}
			})
			if c.copied {
				change.mirror(t, "ids", "tap_in", copied(want))
			} else {
				change.mirror(t, "ids", "tap_in", skipped("too_big", want))
			}
		})
	}
	gate.quiet(t)
}

// checkSegments holds what arrived against the packet it was cut from.
func checkSegments(t *testing.T, got [][]byte, whole []byte, headers int) {
	t.Helper()
	var payload []byte
	for i, frame := range got {
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
		if err := wrongChecksums(p); err != nil {
			t.Errorf("segment %d: %v", i, err)
		}
		if len(frame) > headers {
			payload = append(payload, frame[headers:]...)
		}
	}
	if !bytes.Equal(payload, whole[headers:]) {
		t.Errorf("the segments do not make the packet: %d bytes, want %d", len(payload), len(whole)-headers)
	}
}

// wrongChecksums builds the packet again with checksums of its own.
func wrongChecksums(p gopacket.Packet) error {
	if p.ErrorLayer() != nil {
		return p.ErrorLayer().Error()
	}
	var all []packet.Layer
	for _, l := range p.Layers() {
		s, ok := l.(packet.Layer)
		if !ok {
			return fmt.Errorf("layer %v cannot be built", l.LayerType())
		}
		all = append(all, s)
	}
	was := bytes.Clone(p.Data())
	if again := packet.Frame(all...); !bytes.Equal(again, was) {
		return fmt.Errorf("is\n%x, with its own sums\n%x", was, again)
	}
	return nil
}
