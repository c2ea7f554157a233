/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * rules.h: what the rules of the generation in force say of a packet: forwards,
 * masquerades, and the sources of inside hosts. One lookup finds the most specific
 * rule; the loader has settled what happens where several could match.
 */
#ifndef TG_RULES_H
#define TG_RULES_H

#include "abi_gate.h"
#include "maps_gate.h"
#include "tuple.h"

/* Counts a new flow that a forward, masquerade or policy has decided on. */
static __always_inline void tg_hit(__u32 number)
{
	struct tg_hit *h = bpf_map_lookup_elem(&tg_hits, &number);
	struct tg_gate *g = tg_own_gate();

	if (!h || !g)
		return;
	h->flows++;
	h->last = g->now;
}

/* Begins the key of a question; what follows in it is the caller's. */
static __always_inline void tg_rule_ask(struct tg_gate *g, enum tg_rule_kind kind, __u8 a, __u8 b,
					__u8 proto, __u32 bits)
{
	g->rule_key.prefixlen = bits;
	g->rule_key.kind = kind;
	g->rule_key.a = a;
	g->rule_key.b = b;
	g->rule_key.proto = proto;
	g->rule_key.port = 0;
	g->rule_key.pad[0] = 0;
	g->rule_key.pad[1] = 0;
}

static __always_inline const struct tg_rule *tg_rule_of(struct tg_gate *g)
{
	__u32 gen = g->generation;
	void *rules = bpf_map_lookup_elem(&tg_rules, &gen);

	return rules ? bpf_map_lookup_elem(rules, &g->rule_key) : NULL;
}

/* The rule for an address. proto is the family. */
static __always_inline const struct tg_rule *tg_rule_for(struct tg_gate *g, enum tg_rule_kind kind,
							 __u8 a, __u8 b, const __u8 *addr)
{
	tg_rule_ask(g, kind, a, b, g->family, TG_RULE_BITS_ADDR);
	tg_copy_addr(g->rule_key.addr, addr);
	return tg_rule_of(g);
}

/* The forward for an address of ours and the packet's port, if the packet's
 * source may use it. b: 0, or the family, for all addresses at once. */
static __always_inline int tg_forward_at(struct tg_gate *g, __u8 b, const __u8 *addr)
{
	const struct tg_rule *r;

	tg_rule_ask(g, TG_RULE_FORWARD, g->from_zone, b, g->tuple.proto, TG_RULE_BITS_PORT);
	tg_copy_addr(g->rule_key.addr, addr);
	g->rule_key.port = g->tuple.dport;
	r = tg_rule_of(g);
	if (!r)
		return 0;
	g->rule = *r;
	return !r->list || tg_rule_for(g, TG_RULE_SOURCE, r->list, r->list >> 8, g->tuple.src);
}

/*
 * Whether a forward answers at tuple.dst, asked from the external from_zone: one
 * of that very address, else one of any address of ours there. 1: g->rule is it.
 *
 * A forward that does not admit the remote is as if it were not there: the one of
 * any address may then count. A wider range of ports around it does not, for the
 * trie has given the narrower one.
 */
__noinline int tg_find_forward(void)
{
	static const __u8 any[16];
	struct tg_gate *g = tg_own_gate();
	const struct tg_our_addr *ours;

	if (!g || g->kind != TG_KIND_PORTS)
		return 0;
	if (tg_forward_at(g, 0, g->tuple.dst))
		return 1;
	ours = bpf_map_lookup_elem(&tg_ours, g->tuple.dst);
	if (!ours || ours->zone != g->from_zone)
		return 0;
	return tg_forward_at(g, g->family, any);
}

/* Whether flows from from_zone to to_zone are translated for this source and
 * destination. 1: g->rule says to what. */
__noinline int tg_find_masquerade(void)
{
	struct tg_gate *g = tg_own_gate();
	const struct tg_rule *r;

	if (!g)
		return 0;
	r = tg_rule_for(g, TG_RULE_MASQUERADE, g->from_zone, g->to_zone, g->tuple.src);
	if (!r)
		return 0;
	g->rule = *r;
	return !tg_rule_for(g, TG_RULE_EXCLUDE, 0, 0, g->tuple.dst);
}

/* A host that has no address yet (DHCP, duplicate address detection), or speaks
 * to its link only. */
static __always_inline int tg_source_needless(const struct tg_gate *g)
{
	const __u8 *s = g->rule_key.addr;
	const __u32 *w = (const __u32 *)s;

	if (g->family == 4)
		return !w[3];
	return (s[0] == 0xfe && (s[1] & 0xc0) == 0x80) || !(w[0] | w[1] | w[2] | w[3]);
}

/* At internal ingress: 1 if hosts of from_zone may use the packet's source. That
 * of an ICMP error is not in the tuple, which is the quoted packet's. */
__noinline int tg_source_ok(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();

	if (!g)
		return 1;
	if (g->family != 4 && g->family != 6)
		return 1;
	tg_rule_ask(g, TG_RULE_INSIDE, g->from_zone, 0, g->family, TG_RULE_BITS_ADDR);
	tg_copy_addr(g->rule_key.addr, g->tuple.src);
	if (g->kind == TG_KIND_ERROR) {
		long err;

		if (g->family == 4)
			err = bpf_skb_load_bytes(skb, g->l3 + 12, g->rule_key.addr + 12, 4);
		else
			err = bpf_skb_load_bytes(skb, g->l3 + 8, g->rule_key.addr, 16);
		if (err)
			return 0;
	}
	return tg_source_needless(g) || tg_rule_of(g);
}

#endif
