/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * hairpin.h: internal ingress: whose sources are right, and packets to an outside
 * address of ours that lead to another inside host (RFC 4787 REQ-9, RFC 5508
 * REQ-7). These are translated at both ends and sent back without the stack, which
 * would take a source that is ours for a martian.
 */
#ifndef TG_HAIRPIN_H
#define TG_HAIRPIN_H

#include <linux/pkt_cls.h>
#include "answer.h"
#include "gate.h"
#include "gate_external.h"
#include "route.h"
#include "rules.h"

/* Where the kernel would send a packet for that inside address; 0: nowhere. */
static __always_inline __u32 tg_way_to(struct __sk_buff *skb, const struct tg_gate *g,
				       const __u8 *src, const __u8 *dst)
{
	struct bpf_fib_lookup fib = {};
	long rc = tg_route(skb, g, src, dst, &fib);

	return rc == BPF_FIB_LKUP_RET_SUCCESS || rc == BPF_FIB_LKUP_RET_NO_NEIGH ? fib.ifindex : 0;
}

/* Whether zones and policies let the packet go straight to the host in g->key2: the
 * way by the outside address opens nothing that they close. */
__noinline int tg_judge_hairpin(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	const struct tg_member *to;

	if (!g)
		return TG_DROP_ERROR;
	to = tg_member(g->generation, tg_way_to(skb, g, g->tuple.src, g->key2.src));
	if (!to)
		return TG_DROP_ZONE;
	g->to_zone = to->zone;
	g->to_role = to->role;
	return tg_judge_towards(g, g->key2.src, g->key2.sport);
}

/* The inside host that the packet is for, into g->key2.src and sport: 1 by a forward,
 * 2 by a mapping, whose filtering is not asked between inside hosts. 0: there is none. */
static __always_inline int tg_hairpin_target(struct tg_gate *g, __u32 zone)
{
	struct tg_binding *b;

	g->from_zone = zone; /* as if it came from there */
	if (g->kind == TG_KIND_PORTS && tg_find_forward()) {
		tg_copy_addr(g->key2.src, g->rule.addr);
		g->key2.sport = bpf_htons(g->rule.to + (bpf_ntohs(g->tuple.dport) - g->rule.first));
		tg_hit(g->rule.number);
		return 1;
	}
	tg_endpoint_of(&g->endpoint2, g->tuple.dst, g->tuple.dport, g->tuple.proto, TG_HALF_OUTSIDE,
		       zone);
	b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint2);
	if (!b || b->life != TG_LIFE_LIVE)
		return 0;
	tg_copy_addr(g->key2.src, b->other.addr);
	g->key2.sport = b->other.port;
	return tg_same_endpoint(&b->self, &g->endpoint2) ? 2 : 0;
}

/* The first packet of a hairpin. Its sender gets its outside endpoint, which is
 * what the other one shall see (RFC 4787 REQ-9a). */
__noinline int tg_begin_hairpin(struct __sk_buff *skb, __u32 ifindex, __u32 zone)
{
	struct tg_gate *g = tg_own_gate();
	int reason, target;
	__u32 inside;

	if (!g)
		return TG_DROP_ERROR;
	inside = g->from_zone;
	if (tg_keeps_ports(g) || !tg_may_begin(g, 0))
		return TG_PASS_TO_HOST;
	target = tg_hairpin_target(g, zone);
	g->from_zone = inside;
	if (!target)
		return TG_PASS_TO_HOST;
	/* A forward opens what the zones close, but not what a policy does. */
	reason = tg_judge_hairpin(skb);
	if (reason != TG_PASS_ALLOWED && (target == 2 || reason == TG_DROP_POLICY))
		return reason;
	g->to_zone = zone;
	g->ifindex_out = ifindex;
	if (!tg_find_masquerade())
		return TG_PASS_TO_HOST;
	reason = tg_claim(skb);
	if (reason)
		return reason;
	tg_set_tuple(&g->key, &g->tuple);
	g->key2.proto = g->tuple.proto;
	g->key2.pad[0] = 0;
	g->key2.pad[1] = 0;
	g->key2.pad[2] = 0;
	tg_copy_addr(g->key2.dst, g->endpoint2.addr);
	g->key2.dport = g->endpoint2.port;
	g->origin = TG_ORIGIN_HAIRPIN;
	g->number = g->rule.number + 1;
	g->initiator = TG_HALF_INSIDE;
	g->inside_zone = inside;
	g->outside_zone = zone;
	g->bound = 1;
	g->left = 1;
	g->clamp = 0;
	return tg_open_or_find(g, TG_HALF_INSIDE);
}

/* Lowers the TTL as a router does. 0: it has run out, or the header is elsewhere. */
static __always_inline int tg_lower_ttl(struct __sk_buff *skb, const struct tg_gate *g)
{
	__u32 l3 = g->l3;
	__u16 from, to;
	__u8 ttl;

	if (g->family == 4) {
		if (bpf_skb_load_bytes(skb, l3 + 8, &from, sizeof(from)))
			return 0;
		ttl = *(__u8 *)&from;
		if (ttl <= 1)
			return 0;
		to = from;
		*(__u8 *)&to = ttl - 1;
		if (bpf_l3_csum_replace(skb, l3 + 10, from, to, 2))
			return 0;
		return !bpf_skb_store_bytes(skb, l3 + 8, &to, 1, 0);
	}
	if (bpf_skb_load_bytes(skb, l3 + 7, &ttl, 1) || ttl <= 1)
		return 0;
	ttl--;
	return !bpf_skb_store_bytes(skb, l3 + 7, &ttl, 1, BPF_F_RECOMPUTE_CSUM);
}

/* Sends the translated packet to its inside host. */
__noinline int tg_turn_back(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	__u32 ifindex;

	if (!g || !tg_lower_ttl(skb, g))
		return TG_DROP_ERROR;
	ifindex = tg_way_to(skb, g, g->to.src, g->to.dst);
	if (!ifindex)
		return TG_DROP_ERROR;
	skb->tc_index = TG_TAG_ADMITTED;
	/* Finds, or asks for, the neighbour by itself. */
	if (bpf_redirect_neigh(ifindex, NULL, 0, 0) != TC_ACT_REDIRECT)
		return TG_DROP_ERROR;
	return TG_PASS_HAIRPIN;
}

/* Internal ingress. Returns enum tg_reason. */
__noinline int tg_gate_inside_in(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	const struct tg_our_addr *ours;
	int found, reason;

	if (!g)
		return TG_DROP_ERROR;
	if (g->kind == TG_KIND_BAD)
		return TG_PASS_TO_HOST; /* dropped if it is forwarded */
	if (g->family && !tg_source_ok(skb))
		return TG_DROP_SPOOFED;
	if (g->kind == TG_KIND_NONE || g->kind == TG_KIND_OTHER)
		return TG_PASS_ALLOWED;
	/* Of an error: where the packet that it is about came from. */
	ours = bpf_map_lookup_elem(&tg_ours, &g->tuple.dst);
	if (!ours)
		return TG_PASS_ALLOWED;
	if (g->kind == TG_KIND_LATER) {
		if (tg_fragment_find(skb) <= 0 || !g->changed)
			return TG_PASS_TO_HOST;
		return tg_rewrite(skb) < 0 ? TG_DROP_ERROR : tg_turn_back(skb);
	}
	found = tg_find_flow();
	if (found == TG_TAKEN)
		return TG_DROP_BUSY;
	if (g->kind == TG_KIND_ERROR) {
		if (found != TG_FOUND || !g->changed)
			return TG_PASS_TO_HOST;
		reason = tg_take_error(skb, g);
	} else {
		reason = TG_PASS_FLOW;
		if (found != TG_FOUND)
			reason = tg_begin_hairpin(skb, ours->ifindex, ours->zone);
		if (reason != TG_PASS_NEW_FLOW && reason != TG_PASS_FLOW)
			return reason;
		reason = tg_take_packet(skb, g, reason);
	}
	if (reason != TG_PASS_NEW_FLOW && reason != TG_PASS_FLOW && reason != TG_PASS_ICMP_ERROR)
		return reason;
	return tg_turn_back(skb);
}

#endif
