package lab

import (
	"encoding/binary"
	"time"
)

// Frame is one captured Ethernet frame.
type Frame struct {
	Time     time.Time // when it was captured
	Data     []byte    // from the destination MAC on, VLAN tags in their place, no FCS
	Outgoing bool      // sent by the host it was captured on
	// Partial: the checksum was left to hardware that a veth does not have,
	// so it is not one. Not known for Tcpdump.
	Partial bool
}

// EtherType returns what follows the addresses and all VLAN tags, in host
// byte order, and where the payload begins; 0 if the frame is cut short.
func (f Frame) EtherType() (etherType uint16, offset int) {
	for offset = 12; offset+2 <= len(f.Data); offset += 4 {
		etherType = binary.BigEndian.Uint16(f.Data[offset:])
		if etherType != 0x8100 && etherType != 0x88a8 {
			return etherType, offset + 2
		}
	}
	return 0, len(f.Data)
}

// Payload returns what follows the addresses, VLAN tags and EtherType: the
// packet as the network layer made it.
func (f Frame) Payload() []byte {
	_, offset := f.EtherType()
	return f.Data[offset:]
}

// Payloads returns the payload of each frame, to be compared.
func Payloads(frames []Frame) [][]byte {
	all := make([][]byte, len(frames))
	for i, f := range frames {
		all[i] = f.Payload()
	}
	return all
}

// Select returns the frames for which keep is true.
func Select(frames []Frame, keep func(Frame) bool) []Frame {
	var kept []Frame
	for _, f := range frames {
		if keep(f) {
			kept = append(kept, f)
		}
	}
	return kept
}
