/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * way.h: where a known flow's packets leave and with which MACs: asked of the kernel,
 * and kept in the flow's element for a moment.
 */
#ifndef TG_WAY_H
#define TG_WAY_H

#include "flow.h"
#include "generation.h"
#include "maps_gate.h"
#include "route.h"
#include "rules.h"

/* Routes, neighbours and links are looked at again after so long: units of 2^20 ns. */
#define TG_WAY_AGE 95

/* tg_fast's second argument, since a global function takes no pointer. */
#define TG_FAST_ZONE 0xffu
#define TG_FAST_INSIDE 0x100u /* the interface is an internal zone's */
#define TG_FAST_COPIED 0x200u /* a mirror of the interface takes the packet */

static __always_inline __u32 tg_fast_what(const struct tg_member *m)
{
	return m->zone | (m->role == TG_ROLE_INTERNAL ? TG_FAST_INSIDE : 0) |
	       (m->ncopies ? TG_FAST_COPIED : 0);
}

struct tg_fast_way {
	__u64 word[TG_WAY_WORDS];
};

static __always_inline __u64 tg_way_stamp(__u64 now)
{
	return (now >> 20 & 0xffff) << 48;
}

static __always_inline __u64 tg_way_serial(const struct tg_setting *set)
{
	return (__u64)(set->serial & 0x7fff) << 32;
}

/* The way of a half into w: 1 if it is whole, of this generation and not too old. */
static __always_inline int tg_way_holds(const struct tg_session *h, const struct tg_setting *set,
					__u64 now, struct tg_fast_way *w)
{
	const volatile __u64 *word = h->way;
	__u32 left;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < TG_WAY_WORDS; i++)
		w->word[i] = word[i];
	left = (__u32)w->word[TG_WAY_UNTIL] - (__u32)(now >> 20);
	if (left - 1 >= TG_WAY_AGE ||
	    (w->word[TG_WAY_UNTIL] & 0x7fffULL << 32) != tg_way_serial(set))
		return 0;
	return !(((w->word[TG_WAY_DMAC] ^ w->word[TG_WAY_SMAC]) |
		  (w->word[TG_WAY_DMAC] ^ w->word[TG_WAY_OUT]) |
		  (w->word[TG_WAY_DMAC] ^ w->word[TG_WAY_UNTIL])) >>
		 48);
}

/* Whether the flow may pass by the stack at all: both sides have spoken, the stack has
 * let packets of both through, it is not about to end, and it is no hairpin. */
static __always_inline int tg_fast_flow(const struct tg_gate *g, const struct tg_session *h,
					const struct tg_session *other,
					const struct tg_setting *set)
{
	const struct tg_session *in = h, *out = other;
	__u32 timer;
	__u64 since;

	if (h->half == TG_HALF_OUTSIDE) {
		in = other;
		out = h;
	}
	if (!in->ifindex || !out->ifindex || out->life != TG_LIFE_LIVE ||
	    in->origin == TG_ORIGIN_HAIRPIN || !tg_answered(in, out, g->tuple.proto))
		return 0;
	timer = tg_timer_of(in, out, g->tuple.proto, &since);
	if (timer == TG_TIMER_TCP_CLOSING || timer == TG_TIMER_PROVISIONAL || timer >= TG_TIMERS)
		return 0;
	return g->now <= since || g->now - since <= set->timers[timer];
}

static __always_inline __u64 tg_mac48(const __u8 *mac)
{
	return (__u64)mac[0] | (__u64)mac[1] << 8 | (__u64)mac[2] << 16 | (__u64)mac[3] << 24 |
	       (__u64)mac[4] << 32 | (__u64)mac[5] << 40;
}

/* A flow that had a way in this generation, and was used so lately that it has not
 * expired, needs no look at its other half: with many flows that is what costs. FIN and
 * RST take the way; what ends a flow sets the hint of both halves. */
static __always_inline int tg_had_way(const struct tg_gate *g, const struct tg_session *h,
				      const struct tg_setting *set)
{
	__u64 until = h->way[TG_WAY_UNTIL];
	enum tg_timer timer =
		g->tuple.proto == IPPROTO_TCP ? TG_TIMER_TCP_ESTABLISHED : TG_TIMER_UDP;

	return until && (until & 0x7fffULL << 32) == tg_way_serial(set) &&
	       h->origin != TG_ORIGIN_EIF && g->now < h->last + set->timers[timer];
}

static __always_inline int tg_may_have_way(const struct tg_gate *g, const struct tg_session *h,
					   const struct tg_setting *set)
{
	const struct tg_session *other = bpf_map_lookup_elem(&tg_sessions, &h->other);

	return other && tg_same_tuple(&other->other, &g->tuple) && tg_fast_flow(g, h, other, set);
}

/* Looks for the way of the packet in g->tuple, which belongs to the half h, and leaves it
 * there. len: from the network header on. 1: there is one. */
static __noinline int tg_find_way(struct __sk_buff *skb, struct tg_session *h,
				  const struct tg_setting *set, __u32 what, __u32 len)
{
	struct tg_gate *g = tg_own_gate();
	struct bpf_fib_lookup fib = {};
	const struct tg_member *to;
	__u64 stamp, copied;
	__be32 first; /* of the IP header: version, class or TOS, flow label */
	long found;
	__u8 zone;
	int had;

	if (!g)
		return 0;
	had = tg_had_way(g, h, set);
	if (!had && !tg_may_have_way(g, h, set))
		return 0;
	g->from_zone = what & TG_FAST_ZONE;
	zone = h->half == TG_HALF_INSIDE ? h->inside_zone : h->outside_zone;
	if (zone && zone != g->from_zone)
		return 0; /* the interface is another zone's by now */
	/* What it had has been judged by this generation. */
	if (!had && what & TG_FAST_INSIDE && !tg_source_ok(skb))
		return 0;
	/* Where the stack asks its routes: before source NAT, after destination NAT. */
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &first, sizeof(first)))
		return 0;
	if (g->family == 4)
		fib.tos = bpf_ntohl(first) >> 16;
	else
		fib.flowinfo = first & bpf_htonl(0x0fffffff);
	fib.l4_protocol = g->tuple.proto;
	fib.sport = g->tuple.sport;
	fib.dport = h->other.sport;
	fib.tot_len = len > h->whole ? len : h->whole;
	found = tg_route(skb, g, g->tuple.src, h->other.src, &fib);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED && len < h->whole) {
		/* It has become narrower, and the flow has learned it. */
		h->whole = len;
		fib.tot_len = len;
		found = tg_route(skb, g, g->tuple.src, h->other.src, &fib);
	}
	if (found)
		return 0;
	/* The stack may choose another one of several routes. */
	if (fib.ifindex != h->out)
		return 0;
	zone = h->half == TG_HALF_INSIDE ? h->outside_zone : h->inside_zone;
	if (had && (__u32)h->way[TG_WAY_OUT] == fib.ifindex) {
		copied = h->way[TG_WAY_UNTIL] >> 47 & 1;
	} else {
		to = tg_member(g->generation, fib.ifindex);
		if (!to || to->zone != zone || !to->gateway)
			return 0;
		copied = h->half == TG_HALF_INSIDE ? (what & TG_FAST_COPIED) != 0 : to->ncopies > 0;
	}
	stamp = tg_way_stamp(g->now);
	/* What the kernel has put in the place of tot_len is the MTU of the route; before
	 * 5.12 it is the length that was asked for. */
	h->way[TG_WAY_DMAC] = tg_mac48(fib.dmac) | stamp;
	h->way[TG_WAY_SMAC] = tg_mac48(fib.smac) | stamp;
	h->way[TG_WAY_OUT] = fib.ifindex | (__u64)fib.tot_len << 32 | stamp;
	h->way[TG_WAY_UNTIL] =
		(__u32)((g->now >> 20) + TG_WAY_AGE) | tg_way_serial(set) | copied << 47 | stamp;
	return 1;
}

#endif
