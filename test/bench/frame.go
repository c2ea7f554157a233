package main

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// frameSize is the smallest Ethernet frame: 64 bytes with the FCS, which no
// interface here carries.
const frameSize = 60

// udpFrame builds a frame of frameSize with right checksums.
func udpFrame(dst, src net.HardwareAddr, from, to netip.AddrPort) []byte {
	f := make([]byte, frameSize)
	copy(f[0:], dst)
	copy(f[6:], src)
	binary.BigEndian.PutUint16(f[12:], 0x0800)

	ip := f[14:34]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], frameSize-14)
	ip[8] = 64
	ip[9] = 17
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip))

	udp := f[34:]
	binary.BigEndian.PutUint16(udp[0:], from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	pseudo := sum(17+uint32(len(udp)), ip[12:20])
	binary.BigEndian.PutUint16(udp[6:], ^sum(uint32(pseudo), udp))
	return f
}

// sum is the ones' complement sum (RFC 1071) of b, of even length, and start.
func sum(start uint32, b []byte) uint16 {
	for i := 0; i < len(b); i += 2 {
		start += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for start>>16 != 0 {
		start = start&0xffff + start>>16
	}
	return uint16(start)
}
