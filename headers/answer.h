/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * answer.h: what the sender of a packet is told when there is no room for its flow
 * (RFC 5508 REQ-8): destination unreachable, communication administratively
 * prohibited. The refused packet itself becomes the answer and goes back by the
 * interface it came in on.
 *
 * Its source is what a router's would be: the address of that interface where
 * tg_outside or the kernel's routes tell it (bpf_fib_lookup does since 6.7), else the
 * address that the packet was sent to.
 */
#ifndef TG_ANSWER_H
#define TG_ANSWER_H

#include <linux/pkt_cls.h>
#include "abi.h"
#include "copy.h"
#include "icmp.h"
#include "limit.h"
#include "maps_gate.h"
#include "route.h"
#include "tuple.h"

#define TG_ANSWER_RATE 100 /* a second, for the whole gateway */
#define TG_ANSWER_BURST 50

/* In cb[TG_CB_TASK] of an answer on its way, whose tc_index is 0: that of a packet
 * which came in by an interface of ours and through the stack is not. */
#define TG_ANSWER_MAGIC 0x616e7377u /* "answ" */

#define TG_ANSWER_TTL 64
#define TG_ANSWER_TOS 0xc0 /* internetwork control: RFC 1812 4.3.2.5 */
#define TG_ICMP_PROHIBITED 13
#define TG_ICMP6_PROHIBITED 1

#define TG_ANSWER_QUOTE 96 /* of the refused packet, at most */
/* Cut out behind the Ethernet header, to get rid of a checksum to be completed. */
#define TG_ANSWER_CUT 192

/* linux/bpf.h may be older than these. */
#define TG_FIB_OUTPUT (1u << 1)
#define TG_FIB_SKIP_NEIGH (1u << 2)
#define TG_FIB_SRC (1u << 4)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tg_bucket);
} tg_answers SEC(".maps");

struct tg_icmp {
	__u8 type, code;
	__u16 sum;
	__be32 rest;
} __attribute__((packed));

/* The inside interface's egress program meets the answer, which is the gateway's own
 * though it came in by an interface. */
static __always_inline int tg_is_answer(const struct __sk_buff *skb)
{
	return skb->cb[TG_CB_TASK] == TG_ANSWER_MAGIC && !skb->tc_index;
}

/* Never about errors, to nobody in particular or to many (RFC 1122 3.2.2). */
static __always_inline int tg_may_answer(const struct __sk_buff *skb, const struct tg_gate *g)
{
	const __u8 *s = g->tuple.src;

	if (g->kind != TG_KIND_PORTS && g->kind != TG_KIND_QUERY && g->kind != TG_KIND_OTHER)
		return 0;
	/* Without an id: redirects and the like, which may be errors. */
	if (g->kind == TG_KIND_OTHER &&
	    (g->tuple.proto == IPPROTO_ICMP || g->tuple.proto == IPPROTO_ICMPV6))
		return 0;
	if (!g->ifindex_in || g->l3 != sizeof(struct ethhdr))
		return 0;
	/* Sent to many on its link: PACKET_BROADCAST, PACKET_MULTICAST. */
	if (skb->pkt_type == 1 || skb->pkt_type == 2)
		return 0;
	if (tg_is_local(g))
		return 0;
	if (g->family == 4)
		return s[12] != 0 && s[12] != 127 && s[12] < 224;
	return s[0] != 0xff && (*(const __u64 *)s || *(const __u32 *)(s + 8) ||
				bpf_ntohl(*(const __u32 *)(s + 12)) > 1);
}

/* Makes the frame one of `size` bytes behind the Ethernet header, with nothing of the
 * old one in it and without a checksum that anyone would complete, update or trust. */
static __always_inline int tg_answer_room(struct __sk_buff *skb, __u32 size)
{
	const __u32 left = sizeof(struct ethhdr) + sizeof(struct ipv6hdr);
	__u32 zero = 0;
	int i;

	for (i = 0; i < 3; i++) {
		if (!skb->vlan_present)
			break;
		if (bpf_skb_vlan_pop(skb))
			return -1;
	}
	/* No more GSO; and what grows has no skb->csum any more. */
	if (bpf_skb_change_tail(skb, left + TG_ANSWER_CUT - 4, 0) ||
	    bpf_skb_change_tail(skb, left + TG_ANSWER_CUT, 0))
		return -1;
	if (bpf_skb_adjust_room(skb, -TG_ANSWER_CUT, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	/* The header that was to be completed lies before the frame now. Kernels since 6.2
	 * have noticed; on others this store makes them look. */
	if (bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &zero, sizeof(zero),
				BPF_F_RECOMPUTE_CSUM))
		return -1;
	return bpf_skb_adjust_room(skb, size - sizeof(struct ipv6hdr), BPF_ADJ_ROOM_MAC, 0);
}

/* The answer's source, into g->key.src. */
static __always_inline void tg_answer_source(struct __sk_buff *skb, struct tg_gate *g)
{
	struct tg_outside_key key = {.ifindex = g->ifindex_in, .family = g->family};
	const struct tg_outside_addr *own = bpf_map_lookup_elem(&tg_outside, &key);
	struct bpf_fib_lookup fib = {};

	if (own) {
		tg_copy_addr(g->key.src, own->addr);
		return;
	}
	tg_copy_addr(g->key.src, g->tuple.dst);
	fib.ifindex = g->ifindex_in;
	if (g->family == 4) {
		fib.family = TG_FAMILY_IPV4;
		fib.ipv4_dst = tg_ipv4_of(g->tuple.src);
	} else {
		fib.family = TG_FAMILY_IPV6;
		tg_copy_addr((__u8 *)fib.ipv6_dst, g->tuple.src);
	}
	/* Kernels that do not know a flag refuse the call. */
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), TG_FIB_OUTPUT | TG_FIB_SKIP_NEIGH | TG_FIB_SRC))
		return;
	if (g->family == 4) {
		if (fib.ipv4_src)
			tg_map_ipv4(g->key.src, fib.ipv4_src);
	} else if (fib.ipv6_src[0]) {
		tg_copy_addr(g->key.src, (const __u8 *)fib.ipv6_src);
	}
}

static __always_inline int tg_answer_ipv4(struct __sk_buff *skb, struct tg_gate *g, __u32 quoted,
					  __u32 sum)
{
	struct {
		struct iphdr ip;
		struct tg_icmp icmp;
	} __attribute__((packed, aligned(4))) h = {};

	h.ip.version = 4;
	h.ip.ihl = 5;
	h.ip.tos = TG_ANSWER_TOS;
	h.ip.tot_len = bpf_htons(sizeof(h) + quoted);
	h.ip.frag_off = bpf_htons(0x4000); /* never cut, so it needs no id: RFC 6864 */
	h.ip.ttl = TG_ANSWER_TTL;
	h.ip.protocol = IPPROTO_ICMP;
	h.ip.saddr = tg_ipv4_of(g->key.src);
	h.ip.daddr = tg_ipv4_of(g->tuple.src);
	h.ip.check = ~tg_sum_fold((__u32)bpf_csum_diff(NULL, 0, (__be32 *)&h.ip, sizeof(h.ip), 0));
	h.icmp.type = TG_ICMP_UNREACHABLE;
	h.icmp.code = TG_ICMP_PROHIBITED;
	h.icmp.sum = ~tg_sum_fold(
		(__u64)sum + (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&h.icmp, sizeof(h.icmp), 0));
	return bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &h, sizeof(h), 0);
}

static __always_inline int tg_answer_ipv6(struct __sk_buff *skb, struct tg_gate *g, __u32 quoted,
					  __u32 sum)
{
	struct {
		struct ipv6hdr ip;
		struct tg_icmp icmp;
	} __attribute__((packed, aligned(4))) h = {};
	__u64 all = sum;

	h.ip.version = 6;
	h.ip.payload_len = bpf_htons(sizeof(h.icmp) + quoted);
	h.ip.nexthdr = IPPROTO_ICMPV6;
	h.ip.hop_limit = TG_ANSWER_TTL;
	tg_copy_addr((__u8 *)&h.ip.saddr, g->key.src);
	tg_copy_addr((__u8 *)&h.ip.daddr, g->tuple.src);
	h.icmp.type = TG_ICMP6_UNREACHABLE;
	h.icmp.code = TG_ICMP6_PROHIBITED;
	all += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&h.ip.saddr, 32, 0);
	all += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&h.icmp, sizeof(h.icmp), 0);
	all += bpf_htons(sizeof(h.icmp) + quoted) + bpf_htons(IPPROTO_ICMPV6);
	h.icmp.sum = ~tg_sum_fold(all);
	return bpf_skb_store_bytes(skb, sizeof(struct ethhdr), &h, sizeof(h), 0);
}

/* Turns the packet into the answer. */
static __always_inline int tg_answer_build(struct __sk_buff *skb, struct tg_gate *g)
{
	__u32 headers = sizeof(struct tg_icmp), end = tg_packet_end(skb, g), sum;
	__u64 quoted;

	if (end < g->l4) /* a length that does not fit into 16 bits */
		end = skb->len;
	quoted = end - sizeof(struct ethhdr);
	headers += g->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	if (quoted > TG_ANSWER_QUOTE)
		quoted = TG_ANSWER_QUOTE;
	if (!tg_bound(&quoted, sizeof(struct iphdr), TG_ANSWER_QUOTE))
		return -1;
	__builtin_memset(g->bytes_of_packet, 0, sizeof(g->bytes_of_packet));
	if (bpf_skb_load_bytes(skb, sizeof(struct ethhdr), g->bytes_of_packet, quoted))
		return -1;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)g->bytes_of_packet, TG_ANSWER_QUOTE, 0);
	if (tg_answer_room(skb, headers + quoted))
		return -1;
	tg_answer_source(skb, g);
	if (g->family == 4 ? tg_answer_ipv4(skb, g, quoted, sum)
			   : tg_answer_ipv6(skb, g, quoted, sum))
		return -1;
	return bpf_skb_store_bytes(skb, sizeof(struct ethhdr) + headers, g->bytes_of_packet, quoted,
				   0);
}

/* The packet is refused: returns what the program must return, TC_ACT_SHOT or the
 * redirection that sends the answer. The packet's own bytes are gone either way. */
__noinline int tg_answer(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	struct tg_bucket *b;
	__u32 zero = 0;

	if (!g || !tg_may_answer(skb, g))
		return TC_ACT_SHOT;
	b = bpf_map_lookup_elem(&tg_answers, &zero);
	if (!b || !tg_take(b, TG_ANSWER_RATE, TG_ANSWER_BURST * (TG_SECOND / TG_ANSWER_RATE),
			   bpf_ktime_get_boot_ns()))
		return TC_ACT_SHOT;
	if (tg_answer_build(skb, g))
		return TC_ACT_SHOT;
	skb->tc_index = 0; /* was the refused packet's: the answer is not copied yet */
	skb->cb[TG_CB_TASK] = TG_ANSWER_MAGIC;
	return bpf_redirect_neigh(g->ifindex_in, NULL, 0, 0);
}

/* What a program returns that drops a packet for this reason. Rules that say drop
 * are obeyed in silence; the want of room is told. */
static __always_inline int tg_answer_refused(struct __sk_buff *skb, int reason)
{
	if (reason == TG_DROP_TABLE_FULL || reason == TG_DROP_NO_PORT)
		return tg_answer(skb);
	return TC_ACT_SHOT;
}

#endif
