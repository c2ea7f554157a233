/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * order.h: what user space asks of the flow table. It never changes an element by
 * itself: the programs do, under the same locks as for packets.
 */
#ifndef TG_ORDER_H
#define TG_ORDER_H

#include "claim.h"
#include "generation.h"
#include "open.h"
#include "retire.h"

#define TG_SWEEP_TURNS 32

static __always_inline struct tg_gate *tg_order_begin(void)
{
	struct tg_gate *g = tg_gate_of(TG_OF_ORDER);

	if (!g)
		return NULL;
	g->generation = tg_generation();
	g->now = bpf_ktime_get_boot_ns();
	return g;
}

/* 32 turns of each queue. Returns the number of elements that were looked at. With a
 * time behind the Ethernet header only what died before it is taken away, at once: the
 * loader has waited until no program can hold it. */
static __always_inline int tg_sweep(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_order_begin();
	int i, looked = 0, bury;
	__u64 died = 0;

	if (!g)
		return 0;
	bury = !bpf_skb_load_bytes(skb, ETH_HLEN, &died, sizeof(died)) && died;
	if (bury)
		g->now = died + TG_GRACE;
	for (i = 0; i < TG_SWEEP_TURNS; i++) {
		looked += tg_turn_dying(TG_OF_ORDER) != TG_TURN_NOTHING;
		if (bury)
			continue;
		looked += tg_turn_fresh(TG_OF_ORDER, TG_TURN_ALL) != TG_TURN_NOTHING;
		looked += tg_turn_settled(TG_OF_ORDER, TG_TURN_ALL) != TG_TURN_NOTHING;
		looked += tg_turn_idle(TG_OF_ORDER) != TG_TURN_NOTHING;
	}
	return looked;
}

static __always_inline int tg_flush(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_order_begin();
	struct tg_session *out, *in;

	if (!g || bpf_skb_load_bytes(skb, ETH_HLEN, &g->turn, sizeof(g->turn)))
		return 0;
	out = tg_pair(g, &in);
	/* Whoever takes it out of its queue next sends it off. */
	return out ? tg_end(out, in, TG_LIFE_FLUSHED, g->now) : 0;
}

/* Claims the very port that the flow has. */
static __always_inline int tg_claim_given(struct tg_gate *g, const struct tg_order *o)
{
	struct tg_binding *b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint);
	struct tg_table_state *t;

	if (b)
		return tg_same_endpoint(&b->other, &g->endpoint2) && tg_hold_binding(g);
	b = tg_new_binding(g, g->number, 0, o->outside.src);
	b->life = TG_LIFE_LIVE;
	if (bpf_map_update_elem(&tg_bindings, &g->endpoint2, b, BPF_NOEXIST))
		return 0;
	__builtin_memcpy(&b->other, &g->endpoint2, sizeof(b->other));
	__builtin_memcpy(&b->self, &g->endpoint, sizeof(b->self));
	if (bpf_map_update_elem(&tg_bindings, &g->endpoint, b, BPF_NOEXIST)) {
		bpf_map_delete_elem(&tg_bindings, &g->endpoint2);
		return 0;
	}
	t = tg_whole_table();
	if (t)
		__sync_fetch_and_add(&t->bindings, 1);
	g->claimed = 1;
	return 1;
}

/* What its packets would have left behind. */
static __always_inline void tg_adopted_half(struct tg_gate *g, const struct tg_tuple *key,
					    __u8 established)
{
	struct tg_session *h = bpf_map_lookup_elem(&tg_sessions, key);

	if (!h)
		return;
	h->last = g->now;
	h->packets = established;
	h->tcp = established ? TG_SAW_SYN | TG_SAW_ACK : 0;
}

static __always_inline int tg_adopt(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_order_begin();
	const struct tg_order *o;
	int reason;

	if (!g || bpf_skb_load_bytes(skb, ETH_HLEN, g->order, sizeof(*o)))
		return TG_DROP_ERROR;
	o = (const struct tg_order *)g->order;
	g->generation = o->generation & 1;
	tg_set_tuple(&g->key, &o->inside);
	tg_set_tuple(&g->key2, &o->outside);
	tg_set_tuple(&g->tuple, &o->inside);
	g->number = o->number;
	g->origin = TG_ORIGIN_ADOPTED;
	g->initiator = o->from_outside ? TG_HALF_OUTSIDE : TG_HALF_INSIDE;
	g->inside_zone = o->inside_zone;
	g->outside_zone = o->outside_zone;
	g->left = 1;
	g->clamp = 0;
	g->claimed = 0;
	g->bound = o->translated;
	if (g->bound) {
		tg_endpoint_of(&g->endpoint, o->inside.src, o->inside.sport, o->inside.proto,
			       TG_HALF_INSIDE, o->outside_zone);
		tg_endpoint_of(&g->endpoint2, o->outside.dst, o->outside.dport, o->outside.proto,
			       TG_HALF_OUTSIDE, o->outside_zone);
		if (!tg_claim_given(g, o))
			return TG_DROP_NO_PORT;
	}
	reason = tg_open(TG_OF_ORDER);
	if (reason != TG_PASS_NEW_FLOW) {
		if (g->bound)
			tg_unclaim(g);
		return reason;
	}
	tg_adopted_half(g, &g->key, o->established);
	tg_adopted_half(g, &g->key2, o->established);
	return reason;
}

#endif
