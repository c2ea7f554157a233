/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * tuple.h: what a packet is to the gateway: its kind, and the endpoints of the
 * flow it belongs to. Needs nothing but the packet.
 */
#ifndef TG_TUPLE_H
#define TG_TUPLE_H

#include "maps.h"
#include "maps_gate.h"
#include "packet.h"
#include "skb.h"

#ifndef IPPROTO_UDPLITE
#define IPPROTO_UDPLITE 136
#endif

/* ICMP types: linux/icmp.h needs the C library's headers. */
enum {
	TG_ICMP_ECHO_REPLY = 0,
	TG_ICMP_UNREACHABLE = 3,
	TG_ICMP_ECHO = 8,
	TG_ICMP_TIME_EXCEEDED = 11,
	TG_ICMP_PARAMETER = 12,
	TG_ICMP_TIMESTAMP = 13,
	TG_ICMP_TIMESTAMP_REPLY = 14,
	TG_ICMP_INFO = 15,
	TG_ICMP_INFO_REPLY = 16,
	TG_ICMP_MASK = 17,
	TG_ICMP_MASK_REPLY = 18,
	TG_ICMP6_UNREACHABLE = 1,
	TG_ICMP6_TOO_BIG = 2,
	TG_ICMP6_TIME_EXCEEDED = 3,
	TG_ICMP6_PARAMETER = 4,
	TG_ICMP6_ECHO = 128,
	TG_ICMP6_ECHO_REPLY = 129,
};

/* As much as is pulled where a driver left headers in page fragments: an ICMP
 * error quotes another packet's. */
#define TG_PULL_GATE TG_HEADROOM

static __always_inline void tg_map_ipv4(__u8 *to, __be32 addr)
{
	__u32 *w = (__u32 *)to;

	w[0] = 0;
	w[1] = 0;
	w[2] = bpf_htonl(0xffff);
	w[3] = addr;
}

static __always_inline void tg_copy_addr(__u8 *to, const __u8 *from)
{
	__u32 *t = (__u32 *)to;
	const __u32 *f = (const __u32 *)from;

	t[0] = f[0];
	t[1] = f[1];
	t[2] = f[2];
	t[3] = f[3];
}

/* ::ffff:a.b.c.d stands for an IPv4 address here, and never on the wire (RFC 4291
 * 2.5.5.2, RFC 6890). */
static __always_inline int tg_is_mapped(const __u8 *addr)
{
	const __u32 *w = (const __u32 *)addr;

	return !w[0] && !w[1] && w[2] == bpf_htonl(0xffff);
}

static __always_inline int tg_same_addr(const __u8 *a, const __u8 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline int tg_same_tuple(const struct tg_tuple *a, const struct tg_tuple *b)
{
	return tg_same_addr(a->src, b->src) && tg_same_addr(a->dst, b->dst) &&
	       a->sport == b->sport && a->dport == b->dport && a->proto == b->proto;
}

/* The tuple of the packets that go the other way. */
static __always_inline void tg_turn_round(struct tg_tuple *to, const struct tg_tuple *from)
{
	tg_copy_addr(to->src, from->dst);
	tg_copy_addr(to->dst, from->src);
	to->sport = from->dport;
	to->dport = from->sport;
	to->proto = from->proto;
	to->pad[0] = 0;
	to->pad[1] = 0;
	to->pad[2] = 0;
}

static __always_inline void tg_set_tuple(struct tg_tuple *to, const struct tg_tuple *from)
{
	tg_copy_addr(to->src, from->src);
	tg_copy_addr(to->dst, from->dst);
	to->sport = from->sport;
	to->dport = from->dport;
	to->proto = from->proto;
	to->pad[0] = 0;
	to->pad[1] = 0;
	to->pad[2] = 0;
}

static __always_inline int tg_proto_has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_UDPLITE ||
	       proto == IPPROTO_SCTP || proto == IPPROTO_DCCP;
}

/* 1: a request with an id, 2: the answer to one, 3: an error, 0: something else. */
static __always_inline int tg_icmp_class(__u32 family, __u8 type)
{
	if (family == 4) {
		switch (type) {
		case TG_ICMP_ECHO:
		case TG_ICMP_TIMESTAMP:
		case TG_ICMP_INFO:
		case TG_ICMP_MASK:
			return 1;
		case TG_ICMP_ECHO_REPLY:
		case TG_ICMP_TIMESTAMP_REPLY:
		case TG_ICMP_INFO_REPLY:
		case TG_ICMP_MASK_REPLY:
			return 2;
		case TG_ICMP_UNREACHABLE:
		case TG_ICMP_TIME_EXCEEDED:
		case TG_ICMP_PARAMETER:
			return 3;
		}
		return 0;
	}
	switch (type) {
	case TG_ICMP6_ECHO:
		return 1;
	case TG_ICMP6_ECHO_REPLY:
		return 2;
	case TG_ICMP6_UNREACHABLE:
	case TG_ICMP6_TOO_BIG:
	case TG_ICMP6_TIME_EXCEEDED:
	case TG_ICMP6_PARAMETER:
		return 3;
	}
	return 0;
}

/* The part of the tuple that stands in the transport header at off. `round`: the
 * packet is quoted in an error, so its ends change places. */
static __always_inline enum tg_kind tg_transport(struct tg_span *span, struct tg_packet *p,
						 struct tg_gate *g, __u32 off, __u8 proto,
						 int round)
{
	__be16 from = 0, to = 0;

	if (tg_proto_has_ports(proto)) {
		const __be16 *ports = tg_at(span, p, off, 8);

		if (!ports)
			return TG_KIND_BAD;
		from = ports[0];
		to = ports[1];
	} else if (proto == (TG_FORGET(g->family) == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		const __u8 *icmp = tg_at(span, p, off, 8);
		int class;

		if (!icmp)
			return TG_KIND_BAD;
		class = tg_icmp_class(TG_FORGET(g->family), icmp[0]);
		if (class == 3)
			return TG_KIND_ERROR;
		if (class == 0)
			return TG_KIND_OTHER;
		if (class == 1)
			from = *(const __be16 *)(icmp + 4);
		else
			to = *(const __be16 *)(icmp + 4);
		g->tuple.sport = round ? to : from;
		g->tuple.dport = round ? from : to;
		return TG_KIND_QUERY;
	} else {
		return TG_KIND_OTHER;
	}
	g->tuple.sport = round ? to : from;
	g->tuple.dport = round ? from : to;
	return TG_KIND_PORTS;
}

/* The packet that an error quotes. Its kind stays with the error. */
static __always_inline enum tg_kind tg_quoted(struct tg_span *span, struct tg_packet *p,
					      struct tg_gate *g)
{
	__u32 off = TG_FORGET(g->l4) + 8;
	enum tg_kind kind;
	__u8 proto;
	int i;

	g->inner_l3 = off;
	if (TG_FORGET(g->family) == 4) {
		const struct iphdr *ip = tg_at(span, p, off, sizeof(*ip));

		if (!ip || ip->version != 4 || ip->ihl < 5 || ip->frag_off & bpf_htons(0x1fff))
			return TG_KIND_BAD;
		tg_map_ipv4(g->tuple.src, ip->daddr);
		tg_map_ipv4(g->tuple.dst, ip->saddr);
		proto = ip->protocol;
		g->inner_l4 = off + ip->ihl * 4;
	} else {
		const struct ipv6hdr *ip = tg_at(span, p, off, sizeof(*ip));

		if (!ip || ip->version != 6)
			return TG_KIND_BAD;
		tg_copy_addr(g->tuple.src, (const __u8 *)&ip->daddr);
		tg_copy_addr(g->tuple.dst, (const __u8 *)&ip->saddr);
		if (tg_is_mapped(g->tuple.src) || tg_is_mapped(g->tuple.dst))
			return TG_KIND_BAD;
		proto = ip->nexthdr;
		g->inner_l4 = off + sizeof(*ip);
		for (i = 0; i < 2; i++) {
			const __u8 *ext;

			off = TG_FORGET(g->inner_l4);
			if (proto != IPPROTO_HOPOPTS && proto != IPPROTO_ROUTING &&
			    proto != IPPROTO_DSTOPTS && proto != IPPROTO_FRAGMENT)
				break;
			ext = tg_at(span, p, off, 8);
			if (!ext)
				return TG_KIND_BAD;
			if (proto == IPPROTO_FRAGMENT) {
				if (*(const __be16 *)(ext + 2) & bpf_htons(0xfff8))
					return TG_KIND_BAD;
				g->inner_l4 = off + 8;
			} else {
				g->inner_l4 = off + (ext[1] + 1) * 8;
			}
			proto = ext[0];
		}
	}
	g->tuple.proto = proto;
	kind = tg_transport(span, p, g, TG_FORGET(g->inner_l4), proto, 1);
	/* No error about an error (RFC 1122 3.2.2): of no flow. */
	return kind == TG_KIND_BAD || kind == TG_KIND_ERROR ? TG_KIND_BAD : TG_KIND_ERROR;
}

/* Not for routers: stays on its link, or goes to many. */
static __always_inline int tg_is_local(const struct tg_gate *g)
{
	const __u8 *s = g->tuple.src, *d = g->tuple.dst;

	if (g->family == 4)
		return d[12] >= 224 || d[12] == 0 || d[12] == 127 || (d[12] == 169 && d[13] == 254);
	return d[0] == 0xff || (d[0] == 0xfe && (d[1] & 0xc0) == 0x80) ||
	       (s[0] == 0xfe && (s[1] & 0xc0) == 0x80);
}

/* The kind of an IP packet whose headers tg_parse has found. */
static __always_inline enum tg_kind tg_kind_of(struct tg_span *span, struct tg_packet *p,
					       struct tg_gate *g)
{
	__u32 l3 = TG_FORGET(p->l3), l4 = TG_FORGET(p->l4);
	enum tg_kind kind;
	int later = 0;
	__u8 proto;

	g->l3 = l3;
	g->l4 = l4;
	if (TG_FORGET(p->l3_proto) == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = tg_at(span, p, l3, sizeof(*ip));

		if (!ip || !l4)
			return TG_KIND_BAD;
		g->family = 4;
		tg_map_ipv4(g->tuple.src, ip->saddr);
		tg_map_ipv4(g->tuple.dst, ip->daddr);
		g->frag_id = bpf_ntohs(ip->id);
		later = (ip->frag_off & bpf_htons(0x1fff)) != 0;
	} else if (TG_FORGET(p->l3_proto) == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = tg_at(span, p, l3, sizeof(*ip));

		if (!ip || !l4)
			return TG_KIND_BAD;
		g->family = 6;
		tg_copy_addr(g->tuple.src, (const __u8 *)&ip->saddr);
		tg_copy_addr(g->tuple.dst, (const __u8 *)&ip->daddr);
		if (tg_is_mapped(g->tuple.src) || tg_is_mapped(g->tuple.dst))
			return TG_KIND_BAD;
		if (TG_FORGET(p->fragment_at)) {
			const __be32 *ext = tg_at(span, p, TG_FORGET(p->fragment_at), 8);

			if (!ext)
				return TG_KIND_BAD;
			g->frag_id = bpf_ntohl(ext[1]);
			later = (*(const __be16 *)((const __u8 *)ext + 2) & bpf_htons(0xfff8)) != 0;
		}
	} else {
		return TG_KIND_NONE;
	}
	proto = TG_FORGET(p->l4_proto);
	g->tuple.proto = proto;
	if (tg_is_local(g))
		return TG_KIND_NONE;
	if (later)
		return TG_KIND_LATER;
	g->fragment = TG_FORGET(p->fragment);
	kind = tg_transport(span, p, g, l4, proto, 0);
	if (kind == TG_KIND_ERROR) {
		/* Never cut by a router that knows its trade (576 or 1280 bytes). */
		if (TG_FORGET(g->fragment))
			return TG_KIND_BAD;
		/* It goes to the sender of what it quotes, and to nobody else. */
		tg_copy_addr(g->key.dst, g->tuple.dst);
		kind = tg_quoted(span, p, g);
		return tg_same_addr(g->key.dst, g->tuple.dst) ? kind : TG_KIND_BAD;
	}
	if (kind == TG_KIND_PORTS && proto == IPPROTO_TCP) {
		const __u8 *tcp = tg_at(span, p, l4, sizeof(struct tcphdr));

		if (!tcp)
			return TG_KIND_BAD;
		g->tcp_flags = tcp[13];
	}
	return kind;
}

/* Fills the packet's part of tg_gate. A global function: checked once. */
__noinline int tg_facts(struct __sk_buff *skb)
{
	struct tg_scratch *s = tg_own_scratch();
	struct tg_gate *g = tg_own_gate();
	struct tg_packet *p;
	struct tg_span span;

	if (!s || !g)
		return -1;
	p = &s->packet;
	p->len = skb->len;
	tg_skb_span(skb, &span);
	tg_parse(&span, p);
	g->family = 0;
	g->l3 = ETH_HLEN;
	g->fragment = 0;
	g->tcp_flags = 0;
	g->tuple.sport = 0;
	g->tuple.dport = 0;
	g->tuple.pad[0] = 0;
	g->tuple.pad[1] = 0;
	g->tuple.pad[2] = 0;
	g->kind = tg_kind_of(&span, p, g);
	if (TG_FORGET(p->elsewhere)) {
		bpf_skb_pull_data(skb, skb->len < TG_PULL_GATE ? skb->len : TG_PULL_GATE);
		tg_skb_span(skb, &span);
		tg_parse(&span, p);
		g->tuple.sport = 0;
		g->tuple.dport = 0;
		g->kind = tg_kind_of(&span, p, g);
	}
	/* A tagged frame is another network's, that of a VLAN interface above this one. */
	g->tagged = skb->vlan_present || g->l3 != ETH_HLEN;
	g->packets = s->wire.count.packets;
	g->bytes = s->wire.count.bytes;
	return 0;
}

#endif
