/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * icmp.h: ICMP errors: the packet that they quote is translated, too (RFC 5508
 * REQ-4, 5), as far as it is there: eight bytes of its transport header at least.
 *
 * All changes are incremental. What was bad before is bad afterwards, so a
 * checksum that could not be verified here still fails where the error arrives.
 */
#ifndef TG_ICMP_H
#define TG_ICMP_H

#include "maps_gate.h"
#include "rewrite.h"
#include "tuple.h"

#define TG_ICMP_HEADER 8

/* Bytes of an error that are summed up here: what an Ethernet of 1500 holds.
 * Routers quote up to 576 bytes in all (1280 in IPv6); a longer error is
 * left to its receiver. */
#define TG_SUM_CHUNK 96
#define TG_SUM_CHUNKS 16
#define TG_SUM_MAX (TG_SUM_CHUNK * TG_SUM_CHUNKS)

/* The folded sum, in the byte order of the packet as all sums here. */
static __always_inline __u32 tg_sum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* RFC 1624: a checksum after what it covers has changed by diff. */
static __always_inline __u16 tg_sum_change(__u16 check, __u64 diff)
{
	return ~tg_sum_fold((__u16)~check + diff);
}

/* Sum of len bytes (not more than TG_SUM_MAX) from off on, and of seed. Negative:
 * they are not there. Uses g->bytes_of_packet. A global function, so that its loop
 * is verified once. */
__noinline int tg_sum_of(struct __sk_buff *skb, __u32 off, __u32 len, __u32 seed)
{
	struct tg_gate *g = tg_own_gate();
	__u64 sum = seed;
	int i;

	if (!g || len > TG_SUM_MAX)
		return -1;
	for (i = 0; i < TG_SUM_CHUNKS; i++) {
		__u64 n = len;

		if (!len)
			break;
		if (n > TG_SUM_CHUNK)
			n = TG_SUM_CHUNK;
		/* 1 to 96 in one register, so that kernels before 6.8 see it. */
		n--;
		asm volatile("%0 &= 0x7f" : "+r"(n));
		if (n >= TG_SUM_CHUNK)
			return -1;
		asm volatile("%0 += 1" : "+r"(n));
		if (n < TG_SUM_CHUNK)
			__builtin_memset(g->bytes_of_packet, 0, TG_SUM_CHUNK);
		if (bpf_skb_load_bytes(skb, off, g->bytes_of_packet, n))
			return -1;
		sum += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)g->bytes_of_packet, TG_SUM_CHUNK, 0);
		off += n;
		len -= n;
	}
	return tg_sum_fold(sum);
}

/* Where the IP packet in the frame ends: what follows is padding. 0: nowhere. */
static __always_inline __u32 tg_packet_end(struct __sk_buff *skb, const struct tg_gate *g)
{
	__u32 end = g->l3;
	__be16 len;

	if (g->family == 4) {
		if (bpf_skb_load_bytes(skb, g->l3 + offsetof(struct iphdr, tot_len), &len, 2))
			return 0;
	} else {
		if (bpf_skb_load_bytes(skb, g->l3 + offsetof(struct ipv6hdr, payload_len), &len, 2))
			return 0;
		end += sizeof(struct ipv6hdr);
	}
	end += bpf_ntohs(len);
	return end <= skb->len ? end : 0;
}

/* RFC 5508 REQ-3: not 0 if the error's checksum or that of the quoted IP header is
 * wrong. The quoted transport's is nobody's business (REQ-3c). What follows the
 * quoted packet (RFC 4884) is within the sum. */
__noinline int tg_check_error(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	__u32 end, len;
	__u64 seed = 0;
	__u8 first;
	int sum;

	if (!g || g->kind != TG_KIND_ERROR)
		return 1;
	end = tg_packet_end(skb, g);
	if (end < g->l4 + TG_ICMP_HEADER)
		return 1;
	len = end - g->l4;
	if (g->family == 6) {
		if (bpf_skb_load_bytes(skb, g->l3 + offsetof(struct ipv6hdr, saddr),
				       g->bytes_of_packet, 32))
			return 1;
		seed = (__u32)bpf_csum_diff(NULL, 0, (__be32 *)g->bytes_of_packet, 32, 0);
		seed += bpf_htons(len);
		seed += bpf_htons(IPPROTO_ICMPV6);
	}
	/* Of the first of several fragments there is but a part. */
	if (!g->fragment && len <= TG_SUM_MAX) {
		sum = tg_sum_of(skb, g->l4, len, tg_sum_fold(seed));
		if (sum != 0xffff)
			return 1;
	}
	if (g->family != 4)
		return 0;
	if (bpf_skb_load_bytes(skb, g->inner_l3, &first, 1))
		return 1;
	len = (first & 0xf) * 4;
	if (len < sizeof(struct iphdr) || g->inner_l3 + len > end)
		return 1;
	return tg_sum_of(skb, g->inner_l3, len, 0) != 0xffff;
}

/* What became of the quoted packet, as changes of sums. */
struct tg_quote {
	__u64 pseudo; /* its addresses and ports: what its transport's checksum covers */
	__u64 all;    /* everything: what the error's covers */
};

/* One word of 16 bits is now another. */
static __always_inline __u64 tg_word_change(__u16 from, __u16 to)
{
	return (__u64)(__u16)~from + to;
}

static __always_inline int tg_quote_ipv4(struct __sk_buff *skb, struct tg_gate *g,
					 struct tg_quote *q)
{
	__u32 at = g->inner_l3 + offsetof(struct iphdr, check);
	__u8 *from = g->tuple.dst + 12, *to = g->to.dst + 12;
	__be32 addr[2];
	__u16 was, check;

	if (bpf_skb_load_bytes(skb, at, &was, 2))
		return -1;
	q->pseudo = (__u32)bpf_csum_diff((__be32 *)from, 4, (__be32 *)to, 4, 0);
	from = g->tuple.src + 12;
	to = g->to.src + 12;
	q->pseudo += (__u32)bpf_csum_diff((__be32 *)from, 4, (__be32 *)to, 4, 0);
	check = tg_sum_change(was, q->pseudo);
	q->all = q->pseudo + tg_word_change(was, check);
	if (bpf_skb_store_bytes(skb, at, &check, 2, 0))
		return -1;
	addr[0] = tg_ipv4_of(g->to.dst);
	addr[1] = tg_ipv4_of(g->to.src);
	return bpf_skb_store_bytes(skb, at + 2, addr, sizeof(addr), 0);
}

static __always_inline int tg_quote_ipv6(struct __sk_buff *skb, struct tg_gate *g,
					 struct tg_quote *q)
{
	__u32 at = g->inner_l3 + offsetof(struct ipv6hdr, saddr);

	q->pseudo = (__u32)bpf_csum_diff((__be32 *)g->tuple.dst, 16, (__be32 *)g->to.dst, 16, 0);
	q->pseudo += (__u32)bpf_csum_diff((__be32 *)g->tuple.src, 16, (__be32 *)g->to.src, 16, 0);
	q->all = q->pseudo;
	if (bpf_skb_store_bytes(skb, at, g->to.dst, 16, 0))
		return -1;
	return bpf_skb_store_bytes(skb, at + 16, g->to.src, 16, 0);
}

/* The quoted transport header: its checksum may be cut off. */
static __always_inline int tg_quote_transport(struct __sk_buff *skb, struct tg_gate *g,
					      struct tg_quote *q, __u32 room)
{
	__u32 l4 = g->inner_l4, sum = tg_sum_at(g->family, g->tuple.proto);
	__u64 diff = q->pseudo;
	__u16 check, was;
	__be16 word[2];

	if (tg_proto_has_ports(g->tuple.proto)) {
		if (room < 4)
			return -1;
		diff += tg_word_change(g->tuple.dport, g->to.dport);
		diff += tg_word_change(g->tuple.sport, g->to.sport);
		q->all += tg_word_change(g->tuple.dport, g->to.dport);
		q->all += tg_word_change(g->tuple.sport, g->to.sport);
		word[0] = g->to.dport;
		word[1] = g->to.sport;
		if (bpf_skb_store_bytes(skb, l4, word, 4, 0))
			return -1;
	} else if (g->tuple.proto == (g->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		__be16 from = tg_query_id(&g->tuple), to = tg_query_id(&g->to);

		if (g->family == 4) {
			sum = 2;
			diff = 0; /* no pseudo header */
		}
		if (from != to) {
			if (room < 6)
				return -1;
			diff += tg_word_change(from, to);
			q->all += tg_word_change(from, to);
			if (bpf_skb_store_bytes(skb, l4 + 4, &to, 2, 0))
				return -1;
		}
	}
	if (!sum || room < sum + 2 || !diff)
		return 0;
	if (bpf_skb_load_bytes(skb, l4 + sum, &was, 2))
		return -1;
	if (tg_sum_may_miss(g->tuple.proto) && !was)
		return 0;
	check = tg_sum_change(was, diff);
	if (tg_sum_may_miss(g->tuple.proto) && !check)
		check = 0xffff;
	q->all += tg_word_change(was, check);
	return bpf_skb_store_bytes(skb, l4 + sum, &check, 2, 0);
}

/* The error's own addresses: it goes to whom the quoted packet came from. Its
 * source is translated only with the flow's: a router on the way keeps its own. */
static __always_inline int tg_error_addresses(struct __sk_buff *skb, struct tg_gate *g)
{
	__u32 l3 = g->l3, sum = g->l4 + 2;
	int source = !tg_same_addr(g->tuple.src, g->to.src);
	__be32 from[2];

	if (g->family == 4) {
		if (bpf_skb_load_bytes(skb, l3 + offsetof(struct iphdr, saddr), from, 8))
			return -1;
		if (source && tg_write_ipv4(skb, l3, offsetof(struct iphdr, saddr), from[0],
					    tg_ipv4_of(g->to.src), 0, 0))
			return -1;
		return tg_write_ipv4(skb, l3, offsetof(struct iphdr, daddr), from[1],
				     tg_ipv4_of(g->to.dst), 0, 0);
	}
	if (bpf_skb_load_bytes(skb, l3 + offsetof(struct ipv6hdr, saddr), g->bytes_of_packet, 32))
		return -1;
	if (source && tg_write_ipv6(skb, l3 + offsetof(struct ipv6hdr, saddr), g->bytes_of_packet,
				    g->to.src, sum, 0))
		return -1;
	return tg_write_ipv6(skb, l3 + offsetof(struct ipv6hdr, daddr), g->bytes_of_packet + 16,
			     g->to.dst, sum, 0);
}

/* g->tuple is the flow's in the direction of the error, which is that of the quoted
 * packet turned round; g->to what it shall become. Negative: to be dropped. */
__noinline int tg_rewrite_error(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	struct tg_quote q = {};
	__u32 end;

	if (!g || g->kind != TG_KIND_ERROR || (g->family != 4 && g->family != 6))
		return -1;
	end = tg_packet_end(skb, g);
	if (end < g->inner_l4)
		return -1;
	if (g->family == 4 ? tg_quote_ipv4(skb, g, &q) : tg_quote_ipv6(skb, g, &q))
		return -1;
	if (tg_quote_transport(skb, g, &q, end - g->inner_l4))
		return -1;
	/* Made up for within the packet: not of the pseudo header. */
	if (bpf_l4_csum_replace(skb, g->l4 + 2, 0, tg_sum_fold(q.all), 0))
		return -1;
	return tg_error_addresses(skb, g);
}

#endif
