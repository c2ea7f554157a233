/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * fast.h: packets of a known flow past the stack: translated and redirected where
 * they come in. Whatever is unusual is left to the stack. See README.md, "The fast
 * path".
 */
#ifndef TG_FAST_H
#define TG_FAST_H

#include "compat.h"
#include "copy.h"
#include "flow.h"
#include "maps.h"
#include "maps_gate.h"
#include "rewrite.h"
#include "way.h"

/* In cb[TG_CB_TASK], with tg_secret behind it, from ingress to egress: translated and
 * judged. The stack overwrites both; a veth peer can write them, and every ingress
 * program of ours clears them. */
#define TG_FAST_MAGIC 0x66617374u /* "fast" */

/* The first 38 bytes of an IPv4 frame, two bytes off so that the header is aligned. */
struct tg_fast_head {
	__u16 pad;
	__u8 dmac[6];
	__u8 smac[6];
	__be16 proto;
	struct iphdr ip;
	__be16 sport;
	__be16 dport;
};

#define TG_PADDED 64 /* the longest frame that is padded */

#define TG_FAST_HEAD (sizeof(struct tg_fast_head) - 2)

/* Boot time, as of the last tick of the kernel's clock: reading a clock costs as much
 * as a lookup. */
static __always_inline __u64 tg_tick_now(struct tg_scratch *s)
{
	__u32 tick = bpf_jiffies64();

	if (tick != s->tick || !s->now) {
		s->tick = tick;
		s->now = bpf_ktime_get_boot_ns();
	}
	return s->now;
}

/* What from and to differ by, as a checksum is told. */
static __always_inline __u64 tg_sum_diff(__u32 from, __u32 to)
{
	return (__u64)(__u32)~from + to;
}

static __always_inline __u32 tg_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline __u16 tg_fold16(__u64 sum)
{
	sum = tg_fold32(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* What the stack does not take either. */
static __always_inline int tg_fast_sum_ok(const struct iphdr *ip)
{
	const __u32 *w = (const __u32 *)ip;

	return tg_fold16((__u64)w[0] + w[1] + w[2] + w[3] + w[4]) == 0xffff;
}

/* Reads the headers into g->tuple, and the IPv4 frame's start into head. Returns the
 * length from the network header on, without the padding of short frames; of a GSO
 * packet 1. 0: not for the fast path. */
static __always_inline __u32 tg_fast_look(struct __sk_buff *skb, struct tg_gate *g,
					  struct tg_fast_head *head)
{
	const struct ethhdr *eth;
	struct tg_span span;
	const __u8 *l4;
	__u32 len;
	__u8 proto;

	tg_skb_span(skb, &span);
	eth = span.start;
	if ((const void *)(eth + 1) > span.end)
		return 0;
	g->l3 = ETH_HLEN;
	g->kind = TG_KIND_PORTS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = (const void *)(eth + 1);

		l4 = (const void *)(ip + 1);
		if ((const void *)(l4 + 8) > span.end || *(const __u8 *)ip != 0x45 ||
		    ip->frag_off & bpf_htons(0x3fff) || ip->ttl <= 1)
			return 0;
		proto = ip->protocol;
		head->proto = eth->h_proto;
		head->ip = *ip;
		if (!tg_fast_sum_ok(&head->ip))
			return 0;
		len = bpf_ntohs(ip->tot_len);
		g->family = 4;
		g->l4 = ETH_HLEN + sizeof(*ip);
		tg_map_ipv4(g->tuple.src, ip->saddr);
		tg_map_ipv4(g->tuple.dst, ip->daddr);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = (const void *)(eth + 1);

		l4 = (const void *)(ip + 1);
		if ((const void *)(l4 + 8) > span.end || ip->version != 6 || ip->hop_limit <= 1)
			return 0;
		proto = ip->nexthdr;
		head->ip.ttl = ip->hop_limit;
		len = sizeof(*ip) + bpf_ntohs(ip->payload_len);
		g->family = 6;
		g->l4 = ETH_HLEN + sizeof(*ip);
		tg_copy_addr(g->tuple.src, (const __u8 *)&ip->saddr);
		tg_copy_addr(g->tuple.dst, (const __u8 *)&ip->daddr);
		if (tg_is_mapped(g->tuple.src) || tg_is_mapped(g->tuple.dst))
			return 0;
	} else {
		return 0;
	}
	if (proto == IPPROTO_TCP) {
		if ((const void *)(l4 + sizeof(struct tcphdr)) > span.end ||
		    l4[13] & (TG_TCP_SYN | TG_TCP_FIN | TG_TCP_RST) || !(l4[13] & TG_TCP_ACK) ||
		    l4[12] < 0x50)
			return 0;
	} else if (proto != IPPROTO_UDP || !*(const __u16 *)(l4 + 6)) {
		return 0; /* UDP without a checksum: rewrite.h knows how */
	}
	g->tuple.proto = proto;
	g->tuple.sport = *(const __be16 *)l4;
	g->tuple.dport = *(const __be16 *)(l4 + 2);
	g->tuple.pad[0] = 0;
	g->tuple.pad[1] = 0;
	g->tuple.pad[2] = 0;
	if (skb->gso_size)
		return 1;
	if (len + ETH_HLEN < g->l4 + 8)
		return 0;
	/* A frame that ends before its packet is the stack's to drop, and one with more behind
	 * it than a short frame's padding the stack's to cut. */
	if (len + ETH_HLEN > skb->len || (len + ETH_HLEN < skb->len && skb->len > TG_PADDED))
		return 0;
	return len;
}

/* Writes an IPv4 frame's start in one go. h->other turned round is what it becomes.
 * Negative: the packet must be dropped. */
static __always_inline int tg_fast_ipv4(struct __sk_buff *skb, struct tg_gate *g,
					const struct tg_session *h, struct tg_fast_head *head)
{
	__u32 at = ETH_HLEN + sizeof(struct iphdr) + tg_sum_at(4, g->tuple.proto);
	__be32 src = tg_ipv4_of(h->other.dst), dst = tg_ipv4_of(h->other.src);
	__u64 addresses, ports, flags = tg_sum_flags(g->tuple.proto);
	__u16 life, sum;

	head->sport = h->other.dport;
	head->dport = h->other.sport;
	addresses = tg_sum_diff(head->ip.saddr, src) + tg_sum_diff(head->ip.daddr, dst);
	ports = tg_sum_diff(g->tuple.sport, head->sport) + tg_sum_diff(g->tuple.dport, head->dport);
	if (head->ip.saddr != src || head->ip.daddr != dst) {
		if (bpf_l4_csum_replace(skb, at, 0, tg_fold32(addresses), flags | BPF_F_PSEUDO_HDR))
			return -1;
		head->ip.saddr = src;
		head->ip.daddr = dst;
	} else {
		addresses = 0;
	}
	if ((g->tuple.sport != head->sport || g->tuple.dport != head->dport) &&
	    bpf_l4_csum_replace(skb, at, 0, tg_fold32(ports), flags))
		return -1;
	life = *(__u16 *)&head->ip.ttl;
	head->ip.ttl--;
	sum = ~head->ip.check;
	head->ip.check = ~tg_fold16((__u64)sum + tg_fold32(addresses) + (__u16)~life +
				    *(__u16 *)&head->ip.ttl);
	return bpf_skb_store_bytes(skb, 0, head->dmac, TG_FAST_HEAD, 0);
}

static __always_inline int tg_fast_ipv6(struct __sk_buff *skb, struct tg_gate *g,
					const struct tg_session *h, struct tg_fast_head *head)
{
	__u8 hops = head->ip.ttl - 1;

	tg_turn_round(&g->to, &h->other);
	if (!tg_same_tuple(&g->to, &g->tuple) && tg_rewrite(skb) < 0)
		return -1;
	if (bpf_skb_store_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, hop_limit), &hops, 1,
				BPF_F_RECOMPUTE_CSUM))
		return -1;
	return bpf_skb_store_bytes(skb, 0, head->dmac, 2 * ETH_ALEN, 0);
}

static __always_inline void tg_put_mac(__u8 *to, __u64 mac)
{
	__u16 *w = (__u16 *)to;

	w[0] = mac;
	w[1] = mac >> 16;
	w[2] = mac >> 32;
}

/* What the stack makes of the TOS when it forwards: TC_PRIO_* by its throughput and delay
 * bits (RFC 1349). */
static __always_inline __u32 tg_priority_of(__u8 tos)
{
	switch (tos >> 3 & 3) {
	case 1:
		return 2; /* bulk */
	case 2:
		return 6; /* interactive */
	case 3:
		return 4; /* interactive bulk */
	}
	return 0;
}

/* Takes a packet past the stack. Returns TG_PASS_FAST, TG_DROP_ERROR, or 0 if it is
 * the stack's. what: TG_FAST_*. */
__noinline int tg_fast(struct __sk_buff *skb, __u32 gen, __u32 what)
{
	struct tg_scratch *s = tg_own_scratch();
	struct tg_gate *g = tg_own_gate();
	const struct tg_setting *set = tg_setting_of(gen);
	struct tg_fast_head head = {};
	struct tg_fast_way way;
	struct tg_session *h;
	__u32 len;
	__u64 now;

	/* PACKET_HOST; and a tagged frame is another network's. */
	if (!s || !g || !set || !set->fast || skb->pkt_type || skb->vlan_present)
		return 0;
	len = tg_fast_look(skb, g, &head);
	if (!len)
		return 0;
	if (skb->gso_size)
		len = s->wire.l3_len; /* of its segments */
	h = bpf_map_lookup_elem(&tg_sessions, &g->tuple);
	if (!h || h->hint || h->ifindex != skb->ifindex)
		return 0;
	now = tg_tick_now(s);
	if (TG_COARSE_AGE(now, h->stacked) >= TG_STACK_EVERY)
		return 0;
	if (!tg_way_holds(h, set, now, &way)) {
		g->now = now;
		g->generation = gen;
		if (!tg_find_way(skb, h, set, what, len) || !tg_way_holds(h, set, now, &way))
			return 0;
	}
	if (len > h->whole || len > (way.word[TG_WAY_OUT] >> 32 & 0xffff))
		return 0;
	tg_put_mac(head.dmac, way.word[TG_WAY_DMAC]);
	tg_put_mac(head.smac, way.word[TG_WAY_SMAC]);
	if ((g->family == 4 ? tg_fast_ipv4(skb, g, h, &head) : tg_fast_ipv6(skb, g, h, &head)) < 0)
		return TG_DROP_ERROR;
	if (now > h->last)
		h->last = now;
	if (!h->fast)
		h->fast = 1;
	__sync_fetch_and_add(&h->packets, s->wire.count.packets);
	__sync_fetch_and_add(&h->bytes, s->wire.count.bytes);
	if (way.word[TG_WAY_UNTIL] >> 47 & 1)
		__sync_fetch_and_add(&h->copied, s->wire.count.packets);
	if (g->family == 4)
		skb->priority = tg_priority_of(head.ip.tos);
	skb->cb[TG_CB_TASK] = TG_FAST_MAGIC;
	skb->cb[TG_CB_MACS] = tg_secret;
	return bpf_redirect((__u32)way.word[TG_WAY_OUT], 0) == TC_ACT_REDIRECT ? TG_PASS_FAST
									       : TG_DROP_ERROR;
}

/* At egress: whether ingress has done all but the copy. */
static __always_inline int tg_is_fast(struct __sk_buff *skb)
{
	if (skb->cb[TG_CB_TASK] != TG_FAST_MAGIC || skb->cb[TG_CB_MACS] != tg_secret)
		return 0;
	skb->cb[TG_CB_TASK] = 0;
	return 1;
}

/* At ingress: nobody else's mark counts. */
static __always_inline void tg_forget_fast(struct __sk_buff *skb)
{
	if (skb->cb[TG_CB_TASK] == TG_FAST_MAGIC)
		skb->cb[TG_CB_TASK] = 0;
}

#endif
