/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * rewrite.h: writes what a packet shall become (g->to over g->tuple) into it, and
 * mends the checksums.
 *
 * A checksum of the transport may be whole, be completed by the device that sends
 * the packet (CHECKSUM_PARTIAL: the field holds the sum of the pseudo header), or
 * be known of the whole packet (CHECKSUM_COMPLETE: skb->csum). Only the kernel
 * knows which, so the field is never written by hand. What each change needs:
 *
 * IPv4 address: the header's own checksum makes up for it, the transport's then
 *   changes skb->csum: BPF_F_PSEUDO_HDR is right, and the store tells nobody.
 * IPv6 address: the transport's checksum makes up for it, so skb->csum must stay.
 *   BPF_F_PSEUDO_HDR takes the change off it all the same (unless told BPF_F_IPV6,
 *   6.16), and a store with BPF_F_RECOMPUTE_CSUM adds it again: right on every
 *   kernel, and also where no checksum makes up for the address (ESP, later
 *   fragments, UDP without checksum).
 * Port, id: made up for by the transport's checksum, which is not touched while
 *   partial. Without one, as in UDP with 0, the store says so.
 */
#ifndef TG_REWRITE_H
#define TG_REWRITE_H

#include "compat.h"
#include "maps_gate.h"
#include "tuple.h"

/* 1: n lies between lo and hi, and older verifiers see that it does: the compiler
 * would compare one register and use another. */
static __always_inline int tg_bound(__u64 *n, __u64 lo, __u64 hi)
{
	__u64 above = *n - lo;

	tg_barrier(above);
	if (above > hi - lo)
		return 0;
	*n = above + lo;
	return 1;
}

/* Where the checksum over the pseudo header stands in a transport header; 0: the
 * protocol has none. OSPF, PIM, VRRP and mobility headers of IPv6 have one, too,
 * but are not sent on by routers. */
static __always_inline __u32 tg_sum_at(__u32 family, __u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_DCCP:
		return 6;
	case IPPROTO_ICMPV6:
		return family == 6 ? 2 : 0;
	}
	return 0;
}

/* Of UDP, 0 says that there is no checksum, and a sum of 0 is written as 0xffff. */
static __always_inline int tg_sum_may_miss(__u8 proto)
{
	return proto == IPPROTO_UDP || proto == IPPROTO_UDPLITE;
}

static __always_inline __u64 tg_sum_flags(__u8 proto)
{
	return tg_sum_may_miss(proto) ? BPF_F_MARK_MANGLED_0 : 0;
}

static __always_inline __be32 tg_ipv4_of(const __u8 *addr)
{
	return *(const __be32 *)(addr + 12);
}

/* sum: offset of the transport's checksum in the frame, 0 for none. */
static __always_inline int tg_write_ipv4(struct __sk_buff *skb, __u32 l3, __u32 at, __be32 from,
					 __be32 to, __u32 sum, __u64 flags)
{
	if (from == to)
		return 0;
	if (bpf_l3_csum_replace(skb, l3 + offsetof(struct iphdr, check), from, to, 4))
		return -1;
	if (sum && bpf_l4_csum_replace(skb, sum, from, to, flags | BPF_F_PSEUDO_HDR | 4))
		return -1;
	return bpf_skb_store_bytes(skb, l3 + at, &to, sizeof(to), 0);
}

static __always_inline int tg_write_ipv6(struct __sk_buff *skb, __u32 at, __u8 *from, __u8 *to,
					 __u32 sum, __u64 flags)
{
	__u32 diff;

	if (tg_same_addr(from, to))
		return 0;
	if (sum) {
		diff = bpf_csum_diff((__be32 *)from, 16, (__be32 *)to, 16, 0);
		if (bpf_l4_csum_replace(skb, sum, 0, diff, flags | BPF_F_PSEUDO_HDR))
			return -1;
	}
	return bpf_skb_store_bytes(skb, at, to, 16, BPF_F_RECOMPUTE_CSUM);
}

/* A port or an id. sum: offset of the checksum over it in the frame, 0 for none. */
static __always_inline int tg_write_word(struct __sk_buff *skb, __u32 at, __be16 from, __be16 to,
					 __u32 sum, __u64 flags)
{
	if (from == to)
		return 0;
	if (sum && bpf_l4_csum_replace(skb, sum, from, to, flags | 2))
		return -1;
	return bpf_skb_store_bytes(skb, at, &to, sizeof(to), sum ? 0 : BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int tg_write_addresses(struct __sk_buff *skb, struct tg_gate *g, __u32 sum,
					      __u64 flags)
{
	__u32 l3 = g->l3;

	if (g->family == 4) {
		if (tg_write_ipv4(skb, l3, offsetof(struct iphdr, saddr), tg_ipv4_of(g->tuple.src),
				  tg_ipv4_of(g->to.src), sum, flags))
			return -1;
		return tg_write_ipv4(skb, l3, offsetof(struct iphdr, daddr),
				     tg_ipv4_of(g->tuple.dst), tg_ipv4_of(g->to.dst), sum, flags);
	}
	if (tg_write_ipv6(skb, l3 + offsetof(struct ipv6hdr, saddr), g->tuple.src, g->to.src, sum,
			  flags))
		return -1;
	return tg_write_ipv6(skb, l3 + offsetof(struct ipv6hdr, daddr), g->tuple.dst, g->to.dst,
			     sum, flags);
}

static __always_inline int tg_write_ports(struct __sk_buff *skb, struct tg_gate *g, __u32 sum,
					  __u64 flags)
{
	__be16 check;

	if (g->to.sport == g->tuple.sport && g->to.dport == g->tuple.dport)
		return 0;
	if (tg_sum_may_miss(g->tuple.proto)) {
		if (bpf_skb_load_bytes(skb, sum, &check, sizeof(check)))
			return -1;
		/* A partial one is never 0: it is a sum of what is not 0. */
		if (!check)
			sum = 0;
	}
	if (tg_write_word(skb, g->l4, g->tuple.sport, g->to.sport, sum, flags))
		return -1;
	return tg_write_word(skb, g->l4 + 2, g->tuple.dport, g->to.dport, sum, flags);
}

/* The id is the port of the side that asks; the other's is 0. */
static __always_inline __be16 tg_query_id(const struct tg_tuple *t)
{
	return t->sport | t->dport;
}

/* Only where `to` differs is anything written. Negative: it cannot be done, and the
 * packet must be dropped, since part of it may have been. */
__noinline int tg_rewrite(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	__u32 sum;
	__u64 flags;

	if (!g || (g->family != 4 && g->family != 6))
		return -1;
	switch (g->kind) {
	case TG_KIND_LATER:
		return tg_write_addresses(skb, g, 0, 0);
	case TG_KIND_PORTS:
		/* Its checksum is a CRC over the whole packet. */
		if (g->tuple.proto == IPPROTO_SCTP &&
		    (g->to.sport != g->tuple.sport || g->to.dport != g->tuple.dport))
			return -1;
		break;
	case TG_KIND_QUERY:
	case TG_KIND_OTHER:
		break;
	default:
		return -1;
	}
	flags = tg_sum_flags(g->tuple.proto);
	sum = tg_sum_at(g->family, g->tuple.proto);
	if (sum)
		sum += g->l4;
	if (tg_write_addresses(skb, g, sum, flags))
		return -1;
	if (g->kind == TG_KIND_PORTS)
		return tg_write_ports(skb, g, sum, flags);
	if (g->kind == TG_KIND_QUERY)
		return tg_write_word(skb, g->l4 + 4, tg_query_id(&g->tuple), tg_query_id(&g->to),
				     g->l4 + 2, 0);
	return 0;
}

#define TG_TCP_HEADER 20
#define TG_TCP_OPTIONS 40 /* at most */
#define TG_TCPOPT_END 0
#define TG_TCPOPT_NOP 1
#define TG_TCPOPT_MSS 2

/* Where the value of the MSS option stands in g->bytes_of_packet, which holds len
 * bytes of options; 0: there is none. */
static __always_inline __u32 tg_find_mss(struct tg_gate *g, __u64 len)
{
	__u64 off = 0;
	int i;

	for (i = 0; i < TG_TCP_OPTIONS; i++) {
		__u8 kind, size;

		if (off + 1 >= len)
			break;
		/* The compiler knows this bound, and older verifiers do not. */
		asm volatile("%0 &= 0x3f" : "+r"(off));
		kind = TG_FORGET(g->bytes_of_packet[off]);
		if (kind == TG_TCPOPT_END)
			break;
		if (kind == TG_TCPOPT_NOP) {
			off++;
			continue;
		}
		size = TG_FORGET(g->bytes_of_packet[off + 1]);
		if (size < 2)
			break;
		if (kind == TG_TCPOPT_MSS)
			return size == 4 && off + 4 <= len ? off + 2 : 0;
		off += size;
	}
	return 0;
}

/* Lowers the MSS that a SYN announces to what g->mtu has room for: the smallest
 * headers, without options. g->mtu 0: does nothing. Never raises it, and a SYN
 * without the option has the small default anyway. */
__noinline int tg_clamp_mss(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	__u32 headers, at;
	__be16 from, to;
	__u64 len;
	__u8 doff;

	if (!g || !g->mtu || g->kind != TG_KIND_PORTS || g->tuple.proto != IPPROTO_TCP ||
	    !(g->tcp_flags & 0x02))
		return 0;
	headers = (g->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) + TG_TCP_HEADER;
	if (g->mtu <= headers)
		return 0;
	if (bpf_skb_load_bytes(skb, g->l4 + 12, &doff, 1))
		return -1;
	len = (doff >> 4) * 4;
	if (len <= TG_TCP_HEADER)
		return 0;
	len -= TG_TCP_HEADER;
	if (!tg_bound(&len, 4, TG_TCP_OPTIONS))
		return 0;
	if (bpf_skb_load_bytes(skb, g->l4 + TG_TCP_HEADER, g->bytes_of_packet, len))
		return 0; /* longer than the packet: not ours to judge */
	at = tg_find_mss(g, len);
	if (!at)
		return 0;
	at += g->l4 + TG_TCP_HEADER;
	if (bpf_skb_load_bytes(skb, at, &from, sizeof(from)))
		return -1;
	if (bpf_ntohs(from) <= g->mtu - headers)
		return 0;
	to = bpf_htons(g->mtu - headers);
	if (bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0))
		return -1;
	/* Options need not be aligned: at an odd place the two bytes belong to the
	 * other halves of the checksum's words. */
	if ((at - g->l4) & 1) {
		from = __builtin_bswap16(from);
		to = __builtin_bswap16(to);
	}
	return bpf_l4_csum_replace(skb, g->l4 + 16, from, to, 2);
}

#endif
