package packet

import (
	"encoding/binary"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Query is an ICMP echo request, or with reply its answer.
func Query(v6, reply bool, id, seq uint16, data string) []Layer {
	rest := uint32(id)<<16 | uint32(seq)
	if v6 {
		kind := uint8(layers.ICMPv6TypeEchoRequest)
		if reply {
			kind = layers.ICMPv6TypeEchoReply
		}
		return Control(true, kind, 0, rest, []byte(data))
	}
	kind := uint8(layers.ICMPv4TypeEchoRequest)
	if reply {
		kind = layers.ICMPv4TypeEchoReply
	}
	return Control(false, kind, 0, rest, []byte(data))
}

// Control is any ICMP message: type, code, bytes 4 to 7, and what follows
// them, which of an error is the packet that it is about, as far as quoted.
func Control(v6 bool, kind, code uint8, rest uint32, body []byte) []Layer {
	if v6 {
		return []Layer{
			&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)},
			gopacket.Payload(binary.BigEndian.AppendUint32(nil, rest)), gopacket.Payload(body),
		}
	}
	return []Layer{
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code), Id: uint16(rest >> 16), Seq: uint16(rest)},
		gopacket.Payload(body),
	}
}

// Segment is a TCP segment with these flags; a SYN may carry an MSS option.
func Segment(src, dst uint16, flags uint8, seq, ack uint32, mss uint16) *layers.TCP {
	t := &layers.TCP{
		SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst), Seq: seq, Ack: ack, Window: 8192,
		FIN: flags&FIN != 0, SYN: flags&SYN != 0, RST: flags&RST != 0, PSH: flags&PSH != 0, ACK: flags&ACK != 0,
	}
	if mss != 0 {
		t.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4,
			OptionData: binary.BigEndian.AppendUint16(nil, mss)}}
	}
	return t
}
