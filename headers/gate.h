/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * gate.h: what the gateway's steps at all interfaces share: where the packet comes
 * from and goes to, and what a new flow needs.
 */
#ifndef TG_GATE_H
#define TG_GATE_H

#include "flow.h"
#include "fragment.h"
#include "generation.h"
#include "icmp.h"
#include "maps_gate.h"
#include "open.h"
#include "reassembly.h"
#include "rewrite.h"
#include "zone.h"

/* The packet at hand, before its headers are looked at. */
static __always_inline void tg_gate_begin(struct tg_gate *g, __u32 gen)
{
	g->generation = gen;
	g->now = bpf_ktime_get_boot_ns();
	g->policy = 0;
	g->copied = 0;
	g->clamp = 0;
	g->number = 0;
	g->bound = 0;
	g->changed = 0;
	g->from_zone = 0;
	g->to_zone = 0;
	g->from_role = TG_ROLE_NONE;
	g->to_role = TG_ROLE_NONE;
	g->ifindex_in = 0;
	g->ifindex_out = 0;
}

/* At egress both interfaces are known. ifindex_in is 0 for the gateway's own. */
static __always_inline void tg_gate_ends(struct tg_gate *g, __u32 gen, __u32 ifindex_in,
					 __u32 ifindex_out, const struct tg_member *to)
{
	const struct tg_member *from = ifindex_in ? tg_member(gen, ifindex_in) : NULL;

	g->ifindex_in = ifindex_in;
	g->ifindex_out = ifindex_out;
	g->to_zone = to->zone;
	g->to_role = to->role;
	if (from) {
		g->from_zone = from->zone;
		g->from_role = from->role;
		/* The inside interface's mirrors: here, or where it came in. */
		g->copied = (from->role == TG_ROLE_EXTERNAL ? to : from)->ncopies > 0;
	}
}

static __always_inline int tg_is_tcp(const struct tg_gate *g)
{
	return g->kind == TG_KIND_PORTS && g->tuple.proto == IPPROTO_TCP;
}

static __always_inline int tg_is_syn(const struct tg_gate *g)
{
	return (g->tcp_flags & (TG_TCP_SYN | TG_TCP_ACK | TG_TCP_RST | TG_TCP_FIN)) == TG_TCP_SYN;
}

/* Whether the packet may begin a flow: a SYN, a request, or no such protocol.
 * Sets the origin, since for some minutes after the change from another gateway
 * connections are taken over in the middle. */
static __always_inline int tg_may_begin(struct tg_gate *g, int from_inside)
{
	const struct tg_setting *set;

	g->origin = TG_ORIGIN_ALLOWED;
	if (g->kind == TG_KIND_OTHER)
		return g->tuple.proto != IPPROTO_ICMP && g->tuple.proto != IPPROTO_ICMPV6;
	if (g->kind == TG_KIND_QUERY)
		return !g->tuple.dport;
	if (!tg_is_tcp(g) || tg_is_syn(g))
		return 1;
	if ((g->tcp_flags & (TG_TCP_RST | TG_TCP_SYN | TG_TCP_ACK)) != TG_TCP_ACK)
		return 0;
	/* Between internal zones a policy may come when connections are there. */
	set = tg_setting_of(g->generation);
	if (!(g->from_role == TG_ROLE_INTERNAL && g->to_role == TG_ROLE_INTERNAL) &&
	    (!set || !from_inside || g->now >= set->adopt_until))
		return 0;
	g->origin = TG_ORIGIN_ADOPTED;
	return 1;
}

/* At egress: mgmt interfaces do not check sources where packets come in, so a known flow
 * is no pass for whoever sends its tuple from there. Flows that came in by a mapping
 * (TG_ORIGIN_EIF) do not know their inside zone. */
static __always_inline int tg_of_another_zone(const struct tg_gate *g)
{
	return g->from_role == TG_ROLE_MGMT && g->flow_zone && g->flow_zone != g->from_zone;
}

/* To the MTU of the external interface, which both ways of a flow pass. */
static __always_inline void tg_clamp(struct __sk_buff *skb, struct tg_gate *g)
{
	struct tg_outside_key key = {.ifindex = skb->ifindex, .family = g->family};
	const struct tg_outside_addr *own = bpf_map_lookup_elem(&tg_outside, &key);

	if (!own)
		return;
	g->mtu = own->mtu;
	tg_clamp_mss(skb);
}

/* Remembers what becomes of a first fragment. 0, or where it has to go instead. */
static __always_inline enum tg_reason tg_take_first(struct __sk_buff *skb)
{
	int rc = tg_fragment_note(skb);

	if (rc < 0)
		return TG_DROP_FRAGMENT;
	return rc ? tg_fragment_hand(skb) : 0;
}

/* Counts, remembers and translates a packet of the flow that was found. */
static __always_inline enum tg_reason tg_take_packet(struct __sk_buff *skb, struct tg_gate *g,
						     enum tg_reason reason)
{
	tg_touch();
	if (g->fragment) {
		enum tg_reason why = tg_take_first(skb);

		if (why)
			return why;
	}
	if (g->clamp && tg_is_tcp(g) && g->tcp_flags & TG_TCP_SYN)
		tg_clamp(skb, g);
	if (g->changed && tg_rewrite(skb) < 0)
		return TG_DROP_ERROR;
	return reason;
}

/* Judges the packet as if it went straight to that inside endpoint. */
static __always_inline int tg_judge_towards(struct tg_gate *g, const __u8 *addr, __be16 port)
{
	int reason;

	tg_set_tuple(&g->to, &g->tuple);
	tg_copy_addr(g->tuple.dst, addr);
	g->tuple.dport = port;
	reason = tg_judge();
	tg_set_tuple(&g->tuple, &g->to);
	return reason;
}

/* An ICMP error about a flow, in the flow's direction. */
static __always_inline enum tg_reason tg_take_error(struct __sk_buff *skb, struct tg_gate *g)
{
	if (tg_check_error(skb))
		return TG_DROP_MALFORMED;
	if (g->changed && tg_rewrite_error(skb) < 0)
		return TG_DROP_ERROR;
	return TG_PASS_ICMP_ERROR;
}

/* Whether another CPU has just made, or is making, the very flow that the caller
 * has laid out. */
static __always_inline int tg_made_elsewhere(struct tg_gate *g)
{
	struct tg_session *h = bpf_map_lookup_elem(&tg_sessions, &g->key2);

	return h && (h->life == TG_LIFE_LIVE || h->life == TG_LIFE_NEW) &&
	       tg_same_tuple(&h->other, &g->key);
}

/* Opens the flow that the caller has laid out, and fills `to` for the packet at
 * hand, which is of the half `half`. */
static __always_inline enum tg_reason tg_open_or_find(struct tg_gate *g, enum tg_half half)
{
	enum tg_reason reason = tg_open(TG_OF_PACKET);

	if (reason != TG_PASS_NEW_FLOW && g->bound)
		tg_unclaim(g);
	if (reason == TG_DROP_BUSY && tg_made_elsewhere(g))
		reason = TG_PASS_FLOW;
	if (reason == TG_PASS_NEW_FLOW || reason == TG_PASS_FLOW) {
		tg_turn_round(&g->to, half == TG_HALF_INSIDE ? &g->key2 : &g->key);
		g->changed = !tg_same_tuple(&g->to, &g->tuple);
	}
	return reason;
}

#endif
