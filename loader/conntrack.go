package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter: what is not in the netlink library.
const (
	ctaNATSrc     = 6
	ctaNATDst     = 13
	ctaNATV4Min   = 1
	ctaNATV4Max   = 2
	ctaNATProto   = 3
	ctaNATV6Min   = 4
	ctaNATV6Max   = 5
	ctaPortMin    = 1
	ctaPortMax    = 2
	ctaICMPID     = 4
	ctaICMPType   = 5
	ctaICMPCode   = 6
	ctaICMPv6ID   = 7
	ctaICMPv6Type = 8
	ctaICMPv6Code = 9
	ctSeenReply   = 2
	ctAssured     = 4
	ctConfirmed   = 8
	ctSrcNAT      = 16
	ctDstNAT      = 32
	ctBeLiberal   = 8
	tcpEstablish  = 3
	tcpLastACK    = 6

	attrTypeMask = 0x3fff
)

// ctTuple is one direction of an entry of the kernel's connection tracking. Ports
// are 0 for protocols without.
type ctTuple struct {
	proto        uint8
	src, dst     netip.Addr
	sport, dport uint16
}

func (t ctTuple) reversed() ctTuple {
	return ctTuple{proto: t.proto, src: t.dst, dst: t.src, sport: t.dport, dport: t.sport}
}

// ctEntry is one connection of it.
type ctEntry struct {
	orig, reply ctTuple
	rawOrig     []byte // as the kernel wrote it
	status      uint32
	timeout     uint32 // seconds
	tcpState    uint8
	zone        uint16
}

// conntrack speaks to the kernel's connection tracking of the thread's namespace.
type conntrack struct {
	sockets map[int]*nl.SocketHandle
}

// openConntrack gives nil where connections are not tracked at all.
func openConntrack() (*conntrack, error) {
	if _, err := os.Stat(sysctlRoot + "net/netfilter/nf_conntrack_count"); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("ask for the kernel's connection tracking: %w", err)
	}
	return &conntrack{map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}}, nil
}

func (c *conntrack) close() {
	if c != nil {
		c.sockets[unix.NETLINK_NETFILTER].Socket.Close()
	}
}

func (c *conntrack) request(command, flags int, v6 bool) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|command, flags)
	req.Sockets = c.sockets
	req.AddData(&nl.Nfgenmsg{NfgenFamily: familyNumber(v6), Version: nl.NFNETLINK_V0})
	return req
}

func familyNumber(v6 bool) uint8 {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// list reads all entries.
func (c *conntrack) list() (entries []ctEntry, err error) {
	for _, v6 := range []bool{false, true} {
		messages, err := wholeDump(func() ([][]byte, error) {
			return c.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, v6).Execute(unix.NETLINK_NETFILTER, 0)
		})
		if err != nil {
			return nil, fmt.Errorf("list the kernel's tracked connections: %w", err)
		}
		for _, m := range messages {
			if e, ok := parseEntry(m); ok {
				entries = append(entries, e)
			}
		}
	}
	return entries, nil
}

// attributes gives those of a message or of a nested attribute by type.
func attributes(b []byte) map[uint16][]byte {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil
	}
	out := map[uint16][]byte{}
	for _, a := range list {
		out[attrType(a)] = a.Value
	}
	return out
}

func attrType(a syscall.NetlinkRouteAttr) uint16 { return a.Attr.Type & attrTypeMask }

func parseEntry(message []byte) (e ctEntry, ok bool) {
	const head = 4 // struct nfgenmsg
	if len(message) < head {
		return e, false
	}
	attrs := attributes(message[head:])
	e.rawOrig = attrs[nl.CTA_TUPLE_ORIG]
	var okOrig, okReply bool
	e.orig, okOrig = parseTuple(e.rawOrig)
	e.reply, okReply = parseTuple(attrs[nl.CTA_TUPLE_REPLY])
	e.status, e.timeout = number32(attrs[nl.CTA_STATUS]), number32(attrs[nl.CTA_TIMEOUT])
	if zone := attrs[nl.CTA_ZONE]; len(zone) >= 2 {
		e.zone = binary.BigEndian.Uint16(zone)
	}
	tcp := attributes(attributes(attrs[nl.CTA_PROTOINFO])[nl.CTA_PROTOINFO_TCP])
	if state := tcp[nl.CTA_PROTOINFO_TCP_STATE]; len(state) > 0 {
		e.tcpState = state[0]
	}
	return e, okOrig && okReply
}

func number32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func parseTuple(b []byte) (t ctTuple, ok bool) {
	attrs := attributes(b)
	ip, proto := attributes(attrs[nl.CTA_TUPLE_IP]), attributes(attrs[nl.CTA_TUPLE_PROTO])
	address := func(v4, v6 uint16) (netip.Addr, bool) {
		if a, have := ip[v4]; have {
			return netip.AddrFromSlice(a)
		}
		return netip.AddrFromSlice(ip[v6])
	}
	var okSrc, okDst bool
	t.src, okSrc = address(nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC)
	t.dst, okDst = address(nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST)
	number := proto[nl.CTA_PROTO_NUM]
	if !okSrc || !okDst || len(number) < 1 {
		return t, false
	}
	t.proto = number[0]
	if p := proto[nl.CTA_PROTO_SRC_PORT]; len(p) >= 2 {
		t.sport = binary.BigEndian.Uint16(p)
	}
	if p := proto[nl.CTA_PROTO_DST_PORT]; len(p) >= 2 {
		t.dport = binary.BigEndian.Uint16(p)
	}
	return t, true
}

// remove deletes the entry that a packet of this tuple, in either direction, belongs
// to. None is fine.
func (c *conntrack) remove(tuple *nl.RtAttr, v6 bool) error {
	req := c.request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, v6)
	req.AddData(tuple)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// removeEntry deletes an entry of list.
func (c *conntrack) removeEntry(e ctEntry) error {
	return c.remove(nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, e.rawOrig), e.orig.src.Is6())
}

// create makes an entry for a TCP or UDP connection that runs already. snat and dnat,
// where valid, are what its source and destination are translated to. One that is
// there already is an error.
func (c *conntrack) create(orig ctTuple, timeout uint32, snat, dnat netip.AddrPort) error {
	v6 := orig.src.Is6()
	req := c.request(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, v6)
	req.AddData(tupleAttr(nl.CTA_TUPLE_ORIG, orig))
	// Before translation: the kernel makes the rest of it by itself.
	req.AddData(tupleAttr(nl.CTA_TUPLE_REPLY, orig.reversed()))
	req.AddData(nl.NewRtAttr(nl.CTA_TIMEOUT, nl.BEUint32Attr(timeout)))
	req.AddData(nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(ctSeenReply|ctAssured|ctConfirmed)))
	if orig.proto == unix.IPPROTO_TCP {
		// Where its windows are nobody knows here.
		info := nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, nil)
		tcp := info.AddRtAttr(nl.CTA_PROTOINFO_TCP|unix.NLA_F_NESTED, nil)
		tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_STATE, []byte{tcpEstablish})
		tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, []byte{ctBeLiberal, ctBeLiberal})
		tcp.AddRtAttr(nl.CTA_PROTOINFO_TCP_FLAGS_REPLY, []byte{ctBeLiberal, ctBeLiberal})
		req.AddData(info)
	}
	if snat.IsValid() {
		req.AddData(natAttr(ctaNATSrc, snat))
	}
	if dnat.IsValid() {
		req.AddData(natAttr(ctaNATDst, dnat))
	}
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	return err
}

func tupleAttr(kind int, t ctTuple) *nl.RtAttr {
	src, dst := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if t.src.Is6() {
		src, dst = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	a := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	ip := a.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
	ip.AddRtAttr(src, t.src.AsSlice())
	ip.AddRtAttr(dst, t.dst.AsSlice())
	proto := a.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{t.proto})
	id, kind8, code, request := ctaICMPID, ctaICMPType, ctaICMPCode, byte(ipv4.ICMPTypeEcho)
	switch t.proto {
	case unix.IPPROTO_ICMPV6:
		id, kind8, code, request = ctaICMPv6ID, ctaICMPv6Type, ctaICMPv6Code, byte(ipv6.ICMPTypeEchoRequest)
		fallthrough
	case unix.IPPROTO_ICMP: // of a query: the id stands as the port of the side that asks
		proto.AddRtAttr(id, nl.BEUint16Attr(t.sport))
		proto.AddRtAttr(kind8, []byte{request})
		proto.AddRtAttr(code, []byte{0})
	default:
		proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(t.sport))
		proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(t.dport))
	}
	return a
}

func natAttr(kind int, to netip.AddrPort) *nl.RtAttr {
	low, high := ctaNATV4Min, ctaNATV4Max
	if to.Addr().Is6() {
		low, high = ctaNATV6Min, ctaNATV6Max
	}
	a := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	a.AddRtAttr(low, to.Addr().AsSlice())
	a.AddRtAttr(high, to.Addr().AsSlice())
	proto := a.AddRtAttr(ctaNATProto|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(ctaPortMin, nl.BEUint16Attr(to.Port()))
	proto.AddRtAttr(ctaPortMax, nl.BEUint16Attr(to.Port()))
	return a
}
