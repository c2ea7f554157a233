/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * claim.h: how an inside endpoint gets its outside endpoint. Nobody else ever has
 * the same one: the element of the outside endpoint is made with BPF_NOEXIST, and
 * that is the claim. See README.md, "Claims".
 */
#ifndef TG_CLAIM_H
#define TG_CLAIM_H

#include "abi_gate.h"
#include "maps_gate.h"
#include "retire.h"
#include "rules.h"
#include "tuple.h"

/* Ports that are tried: some at random, then one after the other. */
#define TG_TRIES_RANDOM 32
#define TG_TRIES 96

/* Whether the gateway itself has a socket that packets from the remote to that
 * address and port would reach: a listener, or a connection of its own. */
static __always_inline int tg_socket_there(struct __sk_buff *skb, __u32 family, __u8 proto,
					   const __u8 *remote, __be16 remote_port, const __u8 *ours,
					   __be16 port)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk = NULL;
	__u32 len;

	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return 0;
	if (family == 4) {
		t.ipv4.saddr = *(const __u32 *)(remote + 12);
		t.ipv4.daddr = *(const __u32 *)(ours + 12);
		t.ipv4.sport = remote_port;
		t.ipv4.dport = port;
		len = sizeof(t.ipv4);
		if (proto == IPPROTO_TCP)
			sk = bpf_skc_lookup_tcp(skb, &t, len, BPF_F_CURRENT_NETNS, 0);
		else
			sk = bpf_sk_lookup_udp(skb, &t, len, BPF_F_CURRENT_NETNS, 0);
	} else {
		tg_copy_addr((__u8 *)t.ipv6.saddr, remote);
		tg_copy_addr((__u8 *)t.ipv6.daddr, ours);
		t.ipv6.sport = remote_port;
		t.ipv6.dport = port;
		len = sizeof(t.ipv6);
		if (proto == IPPROTO_TCP)
			sk = bpf_skc_lookup_tcp(skb, &t, len, BPF_F_CURRENT_NETNS, 0);
		else
			sk = bpf_sk_lookup_udp(skb, &t, len, BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return 0;
	bpf_sk_release(sk);
	return 1;
}

/* A forward of that outside port: packets for it go elsewhere. */
static __always_inline int tg_forward_there(struct tg_gate *g, __be16 port)
{
	if (!(g->rule.forwarded >> (bpf_ntohs(port) & 63) & 1))
		return 0;
	tg_rule_ask(g, TG_RULE_FORWARD, g->to_zone, 0, g->tuple.proto, TG_RULE_BITS_PORT);
	tg_copy_addr(g->rule_key.addr, g->endpoint2.addr);
	g->rule_key.port = port;
	if (tg_rule_of(g))
		return 1;
	tg_rule_ask(g, TG_RULE_FORWARD, g->to_zone, g->family, g->tuple.proto, TG_RULE_BITS_PORT);
	__builtin_memset(g->rule_key.addr, 0, sizeof(g->rule_key.addr));
	g->rule_key.port = port;
	return tg_rule_of(g) != NULL;
}

/* The next port to try: at random first (RFC 6056), then one after the other; even
 * stays even as long as that is found (RFC 4787 REQ-4). 0: not this one. */
static __always_inline int tg_next_port(struct tg_gate *g, __u32 try)
{
	__u32 n = g->range_n[0] + g->range_n[1], k = g->range_next;
	__u32 port = k < g->range_n[0] ? g->range_lo[0] + k : g->range_lo[1] + (k - g->range_n[0]);

	g->endpoint2.port = bpf_htons(port);
	if (try >= TG_TRIES_RANDOM) {
		g->range_next = k + 1 < n ? k + 1 : 0;
		return 1;
	}
	g->range_next = n ? bpf_get_prandom_u32() % n : 0;
	return g->tuple.proto != IPPROTO_UDP || !((port ^ bpf_ntohs(g->endpoint.port)) & 1);
}

/* The outside element of a binding, for the flow that is being made. */
static __always_inline struct tg_binding *tg_new_binding(struct tg_gate *g, __u32 rule, __u32 flags,
							 const __u8 *remote)
{
	struct tg_binding *b = (struct tg_binding *)g->binding;

	__builtin_memcpy(&b->other, &g->endpoint, sizeof(b->other));
	__builtin_memcpy(&b->self, &g->endpoint2, sizeof(b->self));
	b->rule = rule;
	b->flags = flags;
	b->since = 0;
	b->sessions = 1;
	b->life = TG_LIFE_NEW;
	b->queued = 0;
	b->remotes = 1;
	tg_copy_addr(b->remote, remote);
	return b;
}

/* Tries to claim g->endpoint2 with another port. 1: it is ours. */
__noinline int tg_try_port(struct __sk_buff *skb, __u32 try)
{
	struct tg_gate *g = tg_own_gate();

	if (!g || !tg_next_port(g, try) || tg_forward_there(g, g->endpoint2.port) ||
	    tg_socket_there(skb, g->family, g->tuple.proto, g->tuple.dst, g->tuple.dport,
			    g->endpoint2.addr, g->endpoint2.port))
		return 0;
	return !bpf_map_update_elem(
		&tg_bindings, &g->endpoint2,
		tg_new_binding(g, g->rule.number + 1, g->rule.flags, g->key2.src), BPF_NOEXIST);
}

/* Whether the remote is the one that stands in its binding. */
static __always_inline int tg_is_first_remote(struct tg_binding *b, const __u8 *remote)
{
	int is;

	bpf_spin_lock(&b->lock);
	is = b->remotes && tg_same_addr(b->remote, remote);
	bpf_spin_unlock(&b->lock);
	return is;
}

/* One more session on a binding that is there. 0: it is about to go, or its address
 * has gone, and nothing but its rest is left. NEW is as good as live: where the inside
 * key was found, the claim has been won. */
static __always_inline int tg_hold_binding(struct tg_gate *g)
{
	struct tg_binding *b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint2);
	int ours = bpf_map_lookup_elem(&tg_ours, g->endpoint2.addr) != NULL, ok;

	if (!b)
		return 0;
	bpf_spin_lock(&b->lock);
	ok = (b->life == TG_LIFE_LIVE || b->life == TG_LIFE_NEW) && (ours || b->sessions) &&
	     tg_same_endpoint(&b->other, &g->endpoint) && tg_same_endpoint(&b->self, &g->endpoint2);
	if (ok)
		b->sessions++;
	bpf_spin_unlock(&b->lock);
	return ok;
}

/* The address of a binding without sessions has gone: so may the rest of it. Its
 * key stays in the queue of idle bindings, where nothing is found any more. */
static __always_inline int tg_drop_stale(struct tg_gate *g)
{
	struct tg_binding *b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint2);
	struct tg_table_state *t = tg_whole_table();
	int stale;

	if (!b || !t || bpf_map_lookup_elem(&tg_ours, g->endpoint2.addr))
		return 0;
	bpf_spin_lock(&b->lock);
	stale = b->life == TG_LIFE_LIVE && !b->sessions;
	if (stale)
		b->life = TG_LIFE_DELETED;
	bpf_spin_unlock(&b->lock);
	if (!stale)
		return 0;
	bpf_map_delete_elem(&tg_bindings, &g->endpoint);
	bpf_map_delete_elem(&tg_bindings, &g->endpoint2);
	__sync_fetch_and_sub(&t->bindings, 1);
	return 1;
}

/* The outside address: one host always gets the same (RFC 4787 REQ-2, RFC 6888
 * REQ-2), for as long as the pool stays as it is. 0: there is none. */
static __always_inline int tg_pick_address(struct tg_gate *g)
{
	struct tg_outside_key key = {.ifindex = g->ifindex_out, .family = g->family};
	const struct tg_outside_addr *own;
	const struct tg_pool_address *a;
	const __u32 *w = (const __u32 *)g->endpoint.addr;
	__u32 count = g->rule.pool_count, i;
	void *pool;

	if (g->rule.flags & TG_MASQ_OWN_ADDR) {
		own = bpf_map_lookup_elem(&tg_outside, &key);
		if (!own)
			return 0;
		tg_copy_addr(g->endpoint2.addr, own->addr);
		return 1;
	}
	pool = bpf_map_lookup_elem(&tg_pools, &g->generation);
	if (!pool || !count)
		return 0;
	/* Hosts next to each other shall not meet: a full avalanche of the address. */
	i = w[0] ^ w[1] ^ w[2] ^ w[3];
	i ^= i >> 16;
	i *= 0x7feb352d;
	i ^= i >> 15;
	i *= 0x846ca68b;
	i ^= i >> 16;
	i = g->rule.pool + i % count;
	a = bpf_map_lookup_elem(pool, &i);
	if (!a)
		return 0;
	tg_copy_addr(g->endpoint2.addr, a->addr);
	return 1;
}

/* Where the outside port may be. RFC 4787 REQ-3a: the class of the port stays. */
static __always_inline void tg_set_range(struct tg_gate *g)
{
	__u32 port = bpf_ntohs(g->endpoint.port);

	g->range_lo[1] = 0;
	g->range_n[1] = 0;
	if (g->kind == TG_KIND_QUERY) { /* ids have no classes */
		g->range_lo[0] = 1;	/* 0 is what messages without an id have */
		g->range_n[0] = 65535;
	} else if (port < 1024) {
		g->range_lo[0] = 1;
		g->range_n[0] = 1023;
	} else {
		g->range_lo[0] = g->rule.lo[0];
		g->range_n[0] = g->rule.hi[0] ? g->rule.hi[0] - g->rule.lo[0] + 1 : 0;
		g->range_lo[1] = g->rule.lo[1];
		g->range_n[1] = g->rule.hi[1] ? g->rule.hi[1] - g->rule.lo[1] + 1 : 0;
	}
}

static __always_inline int tg_claim_port(struct __sk_buff *skb, struct tg_gate *g)
{
	__u32 n, i;

	tg_set_range(g);
	n = g->range_n[0] + g->range_n[1];
	if (!n)
		return 0;
	g->range_next = bpf_get_prandom_u32() % n;
	for (i = 0; i < TG_TRIES; i++) {
		if (tg_try_port(skb, i))
			return 1;
	}
	return 0;
}

/* The outside endpoint of g->tuple's source, into g->endpoint2, with one more
 * session on it. Needs the masquerade rule, and the remote in g->key2.src. Returns 0
 * or why not. */
__noinline int tg_claim(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	struct tg_table_state *t;
	struct tg_binding *b;

	if (!g)
		return TG_DROP_ERROR;
	g->claimed = 0;
	tg_endpoint_of(&g->endpoint, g->tuple.src, g->tuple.sport, g->tuple.proto, TG_HALF_INSIDE,
		       g->to_zone);
	b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint);
	if (b) {
		__builtin_memcpy(&g->endpoint2, &b->other, sizeof(g->endpoint2));
		if (tg_hold_binding(g))
			return 0;
		if (!tg_drop_stale(g))
			return TG_DROP_BUSY;
	}
	tg_endpoint_of(&g->endpoint2, g->tuple.src, 0, g->tuple.proto, TG_HALF_OUTSIDE, g->to_zone);
	if (!tg_pick_address(g))
		return TG_DROP_NO_PORT;
	if (!tg_claim_port(skb, g)) {
		/* What has expired may have them, and no new flow looks for it. */
		g->tidy_at = 0;
		tg_tidy(TG_OF_PACKET, g, 0);
		return TG_DROP_NO_PORT;
	}
	b = (struct tg_binding *)g->binding;
	__builtin_memcpy(&b->other, &g->endpoint2, sizeof(b->other));
	__builtin_memcpy(&b->self, &g->endpoint, sizeof(b->self));
	if (bpf_map_update_elem(&tg_bindings, &g->endpoint, b, BPF_NOEXIST)) {
		/* Another CPU was faster with the same inside endpoint, or no room. */
		bpf_map_delete_elem(&tg_bindings, &g->endpoint2);
		b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint);
		if (!b)
			return TG_DROP_TABLE_FULL;
		__builtin_memcpy(&g->endpoint2, &b->other, sizeof(g->endpoint2));
		return tg_hold_binding(g) ? 0 : TG_DROP_BUSY;
	}
	b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint2);
	if (b)
		b->life = TG_LIFE_LIVE;
	t = tg_whole_table();
	if (t)
		__sync_fetch_and_add(&t->bindings, 1);
	g->claimed = 1;
	return 0;
}

/* Gives back what tg_claim has taken. A binding that was made for this packet goes
 * with it, or a host without room would use up the ports all the same. */
static __always_inline void tg_unclaim(struct tg_gate *g)
{
	struct tg_binding *b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint2);
	struct tg_table_state *t = tg_whole_table();
	int gone = 0;

	if (b && t && g->claimed) {
		bpf_spin_lock(&b->lock);
		gone = b->life == TG_LIFE_LIVE && b->sessions == 1 &&
		       tg_same_endpoint(&b->self, &g->endpoint2);
		if (gone) {
			b->life = TG_LIFE_DELETED;
			b->sessions = 0;
		}
		bpf_spin_unlock(&b->lock);
	}
	if (gone) {
		bpf_map_delete_elem(&tg_bindings, &g->endpoint);
		bpf_map_delete_elem(&tg_bindings, &g->endpoint2);
		__sync_fetch_and_sub(&t->bindings, 1);
		return;
	}
	__builtin_memcpy(&g->turn_endpoint, &g->endpoint2, sizeof(g->turn_endpoint));
	tg_release_binding(g, 1, g->claimed);
}

#endif
