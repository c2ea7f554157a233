/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * open.h: a new flow: its place in the table, its two halves, and whom it lets
 * in. Whatever fails undoes what came before it.
 */
#ifndef TG_OPEN_H
#define TG_OPEN_H

#include "account.h"
#include "claim.h"
#include "log.h"
#include "maps_gate.h"
#include "retire.h"

/* How many of the host's, or of heavier hosts', unanswered flows are looked for. */
#define TG_ROOM_TURNS 16
/* How many of the settled ones are then. */
#define TG_FULL_TURNS 4

/* Another CPU may be faster with the room that was made. */
#define TG_ROOM_TRIES 3

/* Looks for room: what has been answered is no longer fresh, one that was not may go.
 * The caller tries again. 1: one has gone. */
static __always_inline int tg_make_room(__u32 whose)
{
	int i;

	for (i = 0; i < TG_ROOM_TURNS; i++) {
		int turned = tg_turn_fresh(whose, TG_TURN_MAKE_ROOM);

		if (turned == TG_TURN_ROOM)
			return 1;
		if (turned == TG_TURN_NOTHING)
			break;
	}
	/* What has expired and was not due to be looked at makes room for the next. */
	for (i = 0; i < TG_FULL_TURNS; i++)
		tg_turn_settled(whose, TG_TURN_ALL);
	return 0;
}

/* Takes a place, after room was looked for if need be. */
static __always_inline int tg_get_host_place(__u32 whose, struct tg_host *h,
					     const struct tg_setting *set)
{
	int i;

	for (i = 0; i < TG_ROOM_TRIES; i++) {
		if (tg_take_host_place(h, set))
			return 1;
		if (!tg_make_room(whose))
			break;
	}
	return tg_take_host_place(h, set);
}

static __always_inline int tg_get_place(__u32 whose, const struct tg_setting *set, int forwarded)
{
	int i;

	for (i = 0; i < TG_ROOM_TRIES; i++) {
		if (tg_take_place(set, forwarded))
			return 1;
		if (!tg_make_room(whose))
			break;
	}
	return tg_take_place(set, forwarded);
}

/* Takes places for the flow of g->key. What comes in by a forward is not the inside
 * host's doing: it has a share of its own. Returns 0 or why not. */
static __always_inline int tg_take_places(__u32 whose, struct tg_gate *g,
					  const struct tg_setting *set)
{
	int forwarded = tg_from_outside(g->origin);
	struct tg_host *host;

	tg_copy_addr(g->host_key.addr, g->key.src);
	if (!forwarded) {
		host = tg_host_of(g);
		if (!host)
			return TG_DROP_TABLE_FULL;
		if (!tg_get_host_place(whose, host, set)) {
			if (*(volatile __u32 *)&host->dead)
				return TG_DROP_BUSY;
			__sync_fetch_and_add(&host->refused, 1);
			tg_refuse(TG_REFUSED_HOST);
			return TG_DROP_TABLE_FULL;
		}
	}
	if (!tg_get_place(whose, set, forwarded)) {
		if (!forwarded)
			tg_leave_host(&g->host_key, 1, 1);
		tg_refuse(TG_REFUSED_FULL);
		return TG_DROP_TABLE_FULL;
	}
	return 0;
}

/* Both halves alike, as far as they are. */
static __always_inline struct tg_session *tg_new_half(struct tg_gate *g)
{
	struct tg_session *h = (struct tg_session *)g->session;

	h->created = TG_COARSE(g->now);
	h->last = 0;
	h->reset = 0;
	h->packets = 0;
	h->bytes = 0;
	h->copied = 0;
	h->rule = g->number;
	h->origin = g->origin;
	h->tcp = 0;
	h->inside_zone = g->inside_zone;
	h->outside_zone = g->outside_zone;
	h->hint = 1;
	h->bound = TG_BOUND_NOT;
	h->ifindex = 0;
	h->out = 0;
	h->whole = 0;
	h->fast = 0;
	h->stacked = TG_COARSE(g->now) - TG_STACK_EVERY; /* due */
	h->looked = TG_COARSE(g->now);
	h->way[0] = 0;
	h->way[1] = 0;
	h->way[2] = 0;
	h->way[3] = 0;
	h->since = g->now;
	h->life = TG_LIFE_NEW;
	return h;
}

static __always_inline __u8 tg_new_flags(const struct tg_gate *g, enum tg_half half)
{
	return (g->initiator == half ? TG_FLOW_INITIATOR : 0) | (g->left ? TG_FLOW_LEFT : 0) |
	       (g->clamp ? TG_FLOW_CLAMP : 0);
}

/* Lets the remote of g->key2 in, or counts it once more. The binding of g->endpoint2
 * is held. */
static __always_inline enum tg_bound tg_permit(struct tg_gate *g)
{
	struct tg_binding *b;
	struct tg_remote *r;
	int i, ok = 0;

	if (g->claimed) /* just made, with that remote in it */
		return TG_BOUND_FIRST;
	b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint2);
	if (!b)
		return TG_BOUND_NOT;
	bpf_spin_lock(&b->lock);
	if (!b->remotes)
		tg_copy_addr(b->remote, g->key2.src);
	if (tg_same_addr(b->remote, g->key2.src)) {
		b->remotes++;
		ok = 1;
	}
	bpf_spin_unlock(&b->lock);
	if (ok)
		return TG_BOUND_FIRST;
	tg_remote_key_of(&g->remote_key, &g->key2);
	for (i = 0; i < 2; i++) {
		r = bpf_map_lookup_elem(&tg_remotes, &g->remote_key);
		if (r) {
			bpf_spin_lock(&r->lock);
			ok = !r->dead;
			if (ok)
				r->sessions++;
			bpf_spin_unlock(&r->lock);
			return ok ? TG_BOUND_REMOTE : TG_BOUND_NOT;
		}
		r = (struct tg_remote *)g->remote;
		r->sessions = 1;
		r->dead = 0;
		if (!bpf_map_update_elem(&tg_remotes, &g->remote_key, r, BPF_NOEXIST))
			return TG_BOUND_REMOTE;
	}
	return TG_BOUND_NOT;
}

/* Makes the flow with the halves' keys g->key (inside) and g->key2 (outside).
 * Returns TG_PASS_NEW_FLOW or why not; a binding is the caller's to give back. */
__noinline int tg_open(__u32 whose)
{
	struct tg_gate *g = tg_gate_of(whose);
	struct tg_session *h, *in, *out;
	const struct tg_setting *set;
	enum tg_bound bound;
	int why;

	if (!g)
		return TG_DROP_ERROR;
	set = tg_setting_of(g->generation);
	if (!set)
		return TG_DROP_ERROR;
	tg_tidy(whose, g, tg_has_room(g));
	why = tg_take_places(whose, g, set);
	if (why)
		return why;

	h = tg_new_half(g);
	tg_set_tuple(&h->other, &g->key);
	h->half = TG_HALF_OUTSIDE;
	h->flags = tg_new_flags(g, TG_HALF_OUTSIDE);
	h->fresh = 1;
	/* At the host's own account, or at the one that those without one share. */
	h->counted =
		tg_same_addr(g->host_key.addr, g->key.src) ? TG_COUNTED_OWN : TG_COUNTED_SHARED;
	why = bpf_map_update_elem(&tg_sessions, &g->key2, h, BPF_NOEXIST);
	if (why) { /* another CPU was faster, or a flow that has just ended has it still */
		tg_leave_fresh(tg_from_outside(g->origin));
		tg_leave_place(1, 0, 0);
		if (!tg_from_outside(g->origin))
			tg_leave_host(&g->host_key, 1, 1);
		return why == -17 /* EEXIST */ ? TG_DROP_BUSY : TG_DROP_TABLE_FULL;
	}
	out = bpf_map_lookup_elem(&tg_sessions, &g->key2);
	tg_set_tuple(&h->other, &g->key2);
	h->half = TG_HALF_INSIDE;
	if (g->origin == TG_ORIGIN_EIF)
		h->last = g->now; /* it alone keeps the flow: see tg_timer_of */
	h->flags = tg_new_flags(g, TG_HALF_INSIDE);
	h->fresh = 0;
	h->counted = 0;
	why = bpf_map_update_elem(&tg_sessions, &g->key, h, BPF_NOEXIST);
	if (!why && g->bound) {
		bound = tg_permit(g);
		/* Its remote is just being forgotten: the flow goes, too. */
		if (bound == TG_BOUND_NOT)
			why = -1;
		else if (out)
			out->bound = bound;
	}
	if (why) {
		/* Others may hold the outside half: it ends as flows do. The binding is
		 * the caller's to give back. */
		if (out) {
			out->flags |= TG_FLOW_STILLBORN;
			tg_end(out, NULL, TG_LIFE_FLUSHED, g->now);
		}
		tg_stand_in_dying(&g->key2);
		return TG_DROP_BUSY;
	}
	tg_log_start(g);
	if (bpf_map_push_elem(&tg_fresh, &g->key2, 0))
		tg_stand_in_settled(&g->key2);
	in = bpf_map_lookup_elem(&tg_sessions, &g->key);
	if (out) {
		bpf_spin_lock(&out->lock);
		if (out->life == TG_LIFE_NEW) { /* and not flushed by now */
			out->life = TG_LIFE_LIVE;
			out->hint = 0;
			if (in)
				in->hint = 0;
		}
		bpf_spin_unlock(&out->lock);
	}
	return TG_PASS_NEW_FLOW;
}

#endif
