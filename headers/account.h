/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * account.h: who has how many flows: the table, and each inside host. Counts
 * change when a flow begins and when it leaves, never for each packet.
 */
#ifndef TG_ACCOUNT_H
#define TG_ACCOUNT_H

#include "maps_gate.h"
#include "tuple.h"

static __always_inline struct tg_table_state *tg_whole_table(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tg_table, &zero);
}

/* Flows that the outside began have shares of their own: they are not the inside
 * host's doing. */
static __always_inline int tg_from_outside(__u32 origin)
{
	return origin == TG_ORIGIN_FORWARD || origin == TG_ORIGIN_EIF;
}

/* The account of the inside host in g->host_key, made if need be. Where there is
 * no room for it, hosts share that of the address ::. */
static __always_inline struct tg_host *tg_host_of(struct tg_gate *g)
{
	struct tg_host *h = bpf_map_lookup_elem(&tg_hosts, &g->host_key);
	__u32 *w = (__u32 *)g->host_key.addr;

	if (h)
		return h;
	bpf_map_update_elem(&tg_hosts, &g->host_key, g->host, BPF_NOEXIST);
	h = bpf_map_lookup_elem(&tg_hosts, &g->host_key);
	if (h)
		return h;
	w[0] = w[1] = w[2] = w[3] = 0;
	bpf_map_update_elem(&tg_hosts, &g->host_key, g->host, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tg_hosts, &g->host_key);
}

static __always_inline void tg_refuse(enum tg_refusal why)
{
	struct tg_table_state *t = tg_whole_table();

	if (t && why < 4)
		__sync_fetch_and_add(&t->refused[why], 1);
}

/* Whether the maps have an element for one more flow. Those that were ended to make
 * room have left their place and keep their elements for a second: the maps are a
 * quarter larger than max_flows for them. */
static __always_inline int tg_has_elements(const struct tg_table_state *t,
					   const struct tg_setting *set)
{
	return t->flows + t->leaving < set->max_flows + set->max_flows / 4;
}

/* Whose flow is to be ended to make room for another. */
enum tg_ending {
	TG_END_OWN = 0,	  /* of the same host */
	TG_END_HEAVIER,	  /* of a host that has no fewer unanswered ones */
	TG_END_FORWARDED, /* one that a forward has admitted, for another such */
};

/* Whether it may be ended. Forwards have half of that quarter, so that a flood from
 * one side does not starve the other; who recycles his own may not use up what inside
 * hosts have. */
static __always_inline int tg_may_end(const struct tg_setting *set, enum tg_ending what)
{
	const struct tg_table_state *t = tg_whole_table();
	__u32 inside;

	if (!t)
		return 0;
	if (what == TG_END_FORWARDED)
		return t->leaving_forwarded < set->max_flows / 8;
	inside = t->leaving - t->leaving_forwarded;
	return inside < (what == TG_END_OWN ? set->max_recycled : set->max_flows / 8);
}

/* Takes a place in the table for a fresh flow: one winner for the last one. */
static __always_inline int tg_take_place(const struct tg_setting *set, int forwarded)
{
	struct tg_table_state *t = tg_whole_table();
	int ok;

	if (!t)
		return 0;
	bpf_spin_lock(&t->lock);
	/* Neither side's unanswered ones take the other's share. */
	ok = t->flows < set->max_flows && tg_has_elements(t, set) &&
	     (forwarded ? t->forwarded < set->max_forwarded
			: t->fresh - t->forwarded < set->max_fresh - set->max_forwarded);
	if (ok) {
		t->flows++;
		t->fresh++;
		t->forwarded += forwarded;
		t->created++;
	}
	bpf_spin_unlock(&t->lock);
	return ok;
}

/* The flow is no longer fresh: it was answered, or is about to leave. */
static __always_inline void tg_leave_fresh(int forwarded)
{
	struct tg_table_state *t = tg_whole_table();

	if (!t)
		return;
	bpf_spin_lock(&t->lock);
	if (t->fresh)
		t->fresh--;
	if (forwarded && t->forwarded)
		t->forwarded--;
	bpf_spin_unlock(&t->lock);
}

/* A flow that was ended to make room: its elements go later. */
static __always_inline void tg_leave_early(int forwarded)
{
	struct tg_table_state *t = tg_whole_table();

	if (!t)
		return;
	bpf_spin_lock(&t->lock);
	if (t->flows)
		t->flows--;
	t->leaving++;
	t->leaving_forwarded += forwarded;
	bpf_spin_unlock(&t->lock);
}

/* counted: it has not left its place before. */
static __always_inline void tg_leave_place(int counted, int expired, int forwarded)
{
	struct tg_table_state *t = tg_whole_table();

	if (!t)
		return;
	bpf_spin_lock(&t->lock);
	if (counted && t->flows)
		t->flows--;
	if (!counted && t->leaving)
		t->leaving--;
	if (!counted && forwarded && t->leaving_forwarded)
		t->leaving_forwarded--;
	t->expired += expired;
	bpf_spin_unlock(&t->lock);
}

/* The flow counts as fresh no longer: 1 for whoever says so first. */
static __always_inline int tg_take_fresh(struct tg_session *out)
{
	int was;

	if (!out->fresh)
		return 0;
	bpf_spin_lock(&out->lock);
	was = out->fresh;
	out->fresh = 0;
	bpf_spin_unlock(&out->lock);
	return was;
}

static __always_inline int tg_take_host_place(struct tg_host *h, const struct tg_setting *set)
{
	int ok;

	bpf_spin_lock(&h->lock);
	ok = !h->dead && h->flows < set->max_per_host && h->fresh < set->max_fresh_host;
	if (ok) {
		h->flows++;
		h->fresh++;
	}
	bpf_spin_unlock(&h->lock);
	return ok;
}

/* An account without flows goes: inside hosts may use any address of their network. */
static __always_inline void tg_leave_host(const struct tg_host_key *key, int fresh, int whole)
{
	struct tg_host *h = bpf_map_lookup_elem(&tg_hosts, key);
	int empty;

	if (!h)
		return;
	bpf_spin_lock(&h->lock);
	if (fresh && h->fresh)
		h->fresh--;
	if (whole && h->flows)
		h->flows--;
	empty = !h->flows;
	if (empty)
		h->dead = 1;
	bpf_spin_unlock(&h->lock);
	if (empty)
		bpf_map_delete_elem(&tg_hosts, key);
}

#endif
