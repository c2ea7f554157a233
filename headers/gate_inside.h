/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * gate_inside.h: internal and mgmt interfaces: sources on the way in, zones and
 * flows on the way out.
 */
#ifndef TG_GATE_INSIDE_H
#define TG_GATE_INSIDE_H

#include "answer.h"
#include "gate.h"

/* A new flow without translation. The inside half is that of the side which is
 * not external; between others that of the side which begins. */
__noinline int tg_begin_inside(void)
{
	struct tg_gate *g = tg_own_gate();
	int reason, outside;

	if (!g)
		return TG_DROP_ERROR;
	outside = g->from_role == TG_ROLE_EXTERNAL || g->from_role == TG_ROLE_NONE;
	if (!tg_may_begin(g, !outside))
		return TG_DROP_NO_FLOW;
	reason = tg_judge();
	if (reason != TG_PASS_ALLOWED)
		return reason;
	g->bound = 0;
	g->number = g->policy;
	g->left = 1;
	if (outside) {
		tg_turn_round(&g->key, &g->tuple);
		tg_set_tuple(&g->key2, &g->tuple);
		g->initiator = TG_HALF_OUTSIDE;
		g->inside_zone = g->to_zone;
		g->outside_zone = g->from_zone;
	} else {
		tg_set_tuple(&g->key, &g->tuple);
		tg_turn_round(&g->key2, &g->tuple);
		g->initiator = TG_HALF_INSIDE;
		g->inside_zone = g->from_zone;
		g->outside_zone = g->to_zone;
	}
	return tg_open_or_find(g, outside ? TG_HALF_OUTSIDE : TG_HALF_INSIDE);
}

/* Internal and mgmt egress. Returns enum tg_reason. */
__noinline int tg_gate_inside_out(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	int found, reason;

	if (!g)
		return TG_DROP_ERROR;
	if (!g->ifindex_in)
		return TG_PASS_TO_HOST;
	if (tg_is_answer(skb)) {
		skb->cb[TG_CB_TASK] = 0;
		return TG_PASS_ICMP_ERROR;
	}
	if (g->kind == TG_KIND_BAD)
		return TG_DROP_MALFORMED;
	/* Translated on its way in. Not by whether its flow is known: so would be that
	 * of a packet which was sent to the inside address, past the translation. */
	if (skb->tc_index == TG_TAG_ADMITTED &&
	    (g->from_role == TG_ROLE_EXTERNAL || g->from_role == TG_ROLE_INTERNAL)) {
		if (g->kind == TG_KIND_LATER)
			return TG_PASS_FRAGMENT;
		if (g->kind == TG_KIND_ERROR)
			return TG_PASS_ICMP_ERROR;
		tg_came_through();
		return TG_PASS_FLOW;
	}
	/* Between internal zones nobody is asked for a flow, unless a policy may ask in
	 * the one direction and not in the other. */
	if (g->kind == TG_KIND_NONE || (g->from_role == TG_ROLE_INTERNAL &&
					g->to_role == TG_ROLE_INTERNAL && !tg_has_policies()))
		return tg_judge();
	if (g->kind == TG_KIND_LATER) {
		if (tg_fragment_find(skb) > 0)
			return TG_PASS_FRAGMENT;
		return tg_judge() == TG_PASS_ALLOWED ? TG_PASS_ALLOWED : TG_DROP_FRAGMENT;
	}
	found = tg_find_flow();
	if (g->kind == TG_KIND_ERROR)
		return found == TG_FOUND ? TG_PASS_ICMP_ERROR : TG_DROP_NO_FLOW;
	if (found == TG_TAKEN)
		return TG_DROP_BUSY;
	if (found == TG_FOUND) {
		g->changed = 0; /* a translated one would have been by now */
		if (tg_of_another_zone(g))
			return TG_DROP_SPOOFED;
		return tg_take_packet(skb, g, TG_PASS_FLOW);
	}
	reason = tg_begin_inside();
	if (reason != TG_PASS_NEW_FLOW && reason != TG_PASS_FLOW)
		return reason;
	return tg_take_packet(skb, g, reason);
}

#endif
