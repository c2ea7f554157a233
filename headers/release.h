/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * release.h: what a flow gives back when it goes: its binding, which keeps the port for
 * a while, and its remote's permission.
 */
#ifndef TG_RELEASE_H
#define TG_RELEASE_H

#include "account.h"
#include "maps_gate.h"
#include "tuple.h"

/* When the binding got its place in the queue: about a second, never 0. */
static __always_inline __u32 tg_queued_at(const struct tg_binding *b)
{
	return (__u32)(b->since >> 30) | 1;
}

static __always_inline int tg_same_endpoint(const struct tg_endpoint *a,
					    const struct tg_endpoint *b)
{
	return tg_same_addr(a->addr, b->addr) && a->port == b->port && a->proto == b->proto &&
	       a->half == b->half && a->scope == b->scope;
}

/* Takes a binding whose life has been set to DELETED out of its map. */
static __always_inline void tg_delete_binding(struct tg_gate *g, const struct tg_binding *b)
{
	struct tg_table_state *t = tg_whole_table();
	struct tg_binding *inside;

	__builtin_memcpy(&g->turn_endpoint2, &b->other, sizeof(g->turn_endpoint2));
	inside = bpf_map_lookup_elem(&tg_bindings, &g->turn_endpoint2);
	if (inside && tg_same_endpoint(&inside->other, &g->turn_endpoint))
		bpf_map_delete_elem(&tg_bindings, &g->turn_endpoint2);
	bpf_map_delete_elem(&tg_bindings, &g->turn_endpoint);
	if (t)
		__sync_fetch_and_sub(&t->bindings, 1);
}

/* One session less on the binding of g->turn_endpoint; with `first` it was one that
 * permitted the remote in there. Without `linger` its port is free at once: the flow
 * was never answered and ended to make room, and whoever scans must not take the
 * ports from the others. */
static __always_inline void tg_release_binding(struct tg_gate *g, int linger, int first)
{
	struct tg_binding *b = bpf_map_lookup_elem(&tg_bindings, &g->turn_endpoint);
	int queue = 0, gone = 0;

	if (!b)
		return;
	bpf_spin_lock(&b->lock);
	if (b->sessions)
		b->sessions--;
	if (first && b->remotes)
		b->remotes--;
	if (!b->sessions && b->life == TG_LIFE_LIVE) {
		b->since = g->now;
		if (linger || b->queued) {
			queue = !b->queued;
			if (queue)
				b->queued = tg_queued_at(b);
		} else {
			b->life = TG_LIFE_DELETED;
			gone = 1;
		}
	}
	bpf_spin_unlock(&b->lock);
	if (gone)
		tg_delete_binding(g, b);
	else if (queue && bpf_map_push_elem(&tg_idle, &g->turn_endpoint, 0))
		b->queued = 0; /* no room there: the next one tries again */
}

/* One session less that lets the remote in g->remote_key in. */
static __always_inline void tg_release_remote(struct tg_gate *g)
{
	struct tg_remote *r = bpf_map_lookup_elem(&tg_remotes, &g->remote_key);
	int dead = 0;

	if (!r)
		return;
	bpf_spin_lock(&r->lock);
	if (r->sessions)
		r->sessions--;
	if (!r->sessions) {
		r->dead = 1;
		dead = 1;
	}
	bpf_spin_unlock(&r->lock);
	if (dead)
		bpf_map_delete_elem(&tg_remotes, &g->remote_key);
}

static __always_inline void tg_remote_key_of(struct tg_remote_key *k, const struct tg_tuple *out)
{
	tg_copy_addr(k->outside, out->dst);
	tg_copy_addr(k->remote, out->src);
	k->port = out->dport;
	k->proto = out->proto;
}

static __always_inline void tg_endpoint_of(struct tg_endpoint *e, const __u8 *addr, __be16 port,
					   __u8 proto, enum tg_half half, __u8 scope)
{
	tg_copy_addr(e->addr, addr);
	e->port = port;
	e->proto = proto;
	e->half = half;
	e->scope = scope;
	e->pad[0] = 0;
	e->pad[1] = 0;
	e->pad[2] = 0;
}

#endif
