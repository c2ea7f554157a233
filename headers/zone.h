/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * zone.h: whether a new flow may go from one zone to another: the policies in
 * their order, then what the zones' roles say by themselves.
 */
#ifndef TG_ZONE_H
#define TG_ZONE_H

#include "abi.h"
#include "abi_gate.h"
#include "limit.h"
#include "maps_gate.h"
#include "rules.h"
#include "tuple.h"

/* Entries in the log of each policy. */
#define TG_LOG_RATE 10
#define TG_LOG_DEPTH (10 * TG_SECOND) /* 100 at once */

/* Place of the lowest bit that is set; there is one. BPF has no instruction for it. */
static __always_inline __u32 tg_lowest_bit(__u64 word)
{
	__u64 low = word & -word;
	__u32 n = 0;

	n |= !!(low & 0xffffffff00000000ULL) << 5;
	n |= !!(low & 0xffff0000ffff0000ULL) << 4;
	n |= !!(low & 0xff00ff00ff00ff00ULL) << 3;
	n |= !!(low & 0xf0f0f0f0f0f0f0f0ULL) << 2;
	n |= !!(low & 0xccccccccccccccccULL) << 1;
	n |= !!(low & 0xaaaaaaaaaaaaaaaaULL);
	return n;
}

static __always_inline const struct tg_policy_set *tg_set(struct tg_gate *g, __u32 number)
{
	__u32 gen = g->generation;
	void *sets = bpf_map_lookup_elem(&tg_sets, &gen);

	return sets ? bpf_map_lookup_elem(sets, &number) : NULL;
}

/* The policies that the question in g->rule_key leads to. */
static __always_inline const struct tg_policy_set *tg_set_asked(struct tg_gate *g)
{
	const struct tg_rule *r = tg_rule_of(g);

	return r ? tg_set(g, r->number) : NULL;
}

static __always_inline const struct tg_policy_set *
tg_set_for(struct tg_gate *g, enum tg_rule_kind kind, const __u8 *addr)
{
	const struct tg_rule *r = tg_rule_for(g, kind, 0, 0, addr);

	return r ? tg_set(g, r->number) : NULL;
}

/* Whether policies name the two zones, in this direction or the other. */
static __always_inline int tg_has_policies(void)
{
	struct tg_gate *g = tg_own_gate();

	if (!g)
		return 0;
	tg_rule_ask(g, TG_RULE_POLICY_PAIR, g->from_zone, g->to_zone, 0, TG_RULE_BITS_ZONES);
	if (tg_rule_of(g))
		return 1;
	tg_rule_ask(g, TG_RULE_POLICY_PAIR, g->to_zone, g->from_zone, 0, TG_RULE_BITS_ZONES);
	return tg_rule_of(g) != NULL;
}

/* Place of the first policy that matches the tuple between the two zones, or -1. */
__noinline int tg_find_policy(void)
{
	static const __u8 any[16];
	const struct tg_policy_set *pair, *proto, *port, *src, *dst;
	struct tg_gate *g = tg_own_gate();
	__u32 i;

	if (!g)
		return -1;
	tg_rule_ask(g, TG_RULE_POLICY_PAIR, g->from_zone, g->to_zone, 0, TG_RULE_BITS_ZONES);
	pair = tg_set_asked(g);
	if (!pair)
		return -1;
	tg_rule_ask(g, TG_RULE_POLICY_PROTO, 0, 0, g->tuple.proto, TG_RULE_BITS_PROTO);
	proto = tg_set_asked(g);
	if (!proto)
		return -1;
	tg_rule_ask(g, TG_RULE_POLICY_PORT, 0, 0, g->tuple.proto, TG_RULE_BITS_PORT);
	tg_copy_addr(g->rule_key.addr, any);
	g->rule_key.port = g->tuple.dport;
	port = tg_set_asked(g);
	if (!port)
		return -1;
	src = tg_set_for(g, TG_RULE_POLICY_SRC, g->tuple.src);
	if (!src)
		return -1;
	dst = tg_set_for(g, TG_RULE_POLICY_DST, g->tuple.dst);
	if (!dst)
		return -1;
#pragma clang loop unroll(disable)
	for (i = 0; i < TG_SET_WORDS; i++) {
		__u64 word = pair->bits[i] & proto->bits[i] & port->bits[i] & src->bits[i] &
			     dst->bits[i];

		if (word)
			return i * 64 + tg_lowest_bit(word);
	}
	return -1;
}

static __always_inline int tg_set_holds(struct tg_gate *g, __u32 set, __u32 policy)
{
	const struct tg_policy_set *s = tg_set(g, set);

	return s && s->bits[policy / 64 & (TG_SET_WORDS - 1)] >> (policy & 63) & 1;
}

/* The hit counter of a policy by its place. */
static __always_inline __u32 tg_policy_number(struct tg_gate *g, __u32 policy)
{
	const struct tg_policy_set *s = tg_set(g, TG_SET_NUMBERS + policy / TG_SET_NUMBERS_EACH);

	if (!s)
		return 0;
	return s->bits[policy / 4 & (TG_SET_WORDS - 1)] >> (policy & 3) * 16 & 0xffff;
}

/* Tells user space of a packet that a policy has dropped. */
static __always_inline void tg_log_drop(struct tg_gate *g, __u32 number)
{
	struct tg_bucket *b = bpf_map_lookup_elem(&tg_rates, &number);
	struct tg_event *e;

	if (!b || !tg_take(b, TG_LOG_RATE, TG_LOG_DEPTH, g->now))
		return;
	e = bpf_ringbuf_reserve(&tg_events, sizeof(*e), 0);
	if (!e)
		return;
	e->when = g->now;
	tg_set_tuple(&e->tuple, &g->tuple);
	e->ifindex_in = g->ifindex_in;
	e->ifindex_out = g->ifindex_out;
	e->reason = TG_DROP_POLICY;
	e->policy = number + 1;
	bpf_ringbuf_submit(e, 0);
}

/*
 * Judges the packet of g->tuple, which belongs to no flow, from from_zone to
 * to_zone: enum tg_reason. The policy that decided is counted, and left in
 * g->policy as its number + 1; 0 if it was the zones' roles.
 */
__noinline int tg_judge(void)
{
	struct tg_gate *g = tg_own_gate();
	__u32 policy, number;

	if (!g)
		return TG_DROP_ZONE;
	g->policy = 0;
	/* No policy names zone 0, that of an interface in no zone. */
	policy = tg_find_policy();
	if (policy < TG_MAX_POLICIES) {
		number = tg_policy_number(g, policy);
		g->policy = number + 1;
		tg_hit(number);
		if (tg_set_holds(g, TG_SET_ACCEPT, policy))
			return TG_PASS_ALLOWED;
		if (tg_set_holds(g, TG_SET_LOG, policy))
			tg_log_drop(g, number);
		return TG_DROP_POLICY;
	}
	if (g->from_role == TG_ROLE_INTERNAL &&
	    (g->to_role == TG_ROLE_EXTERNAL || g->to_role == TG_ROLE_INTERNAL))
		return TG_PASS_ALLOWED;
	return TG_DROP_ZONE;
}

#endif
