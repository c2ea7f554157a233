/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * retire.h: the end of flows and bindings. Every session stands in one of three
 * queues; a turn takes one out, looks at it and puts it where it belongs. New flows
 * do turns as long as something is due, and so does tapgate_sweep. See README.md,
 * "Life of a flow".
 */
#ifndef TG_RETIRE_H
#define TG_RETIRE_H

#include "account.h"
#include "flow.h"
#include "log.h"
#include "maps_gate.h"
#include "release.h"

/* So long a dead element stays: no program can still hold it. */
#define TG_GRACE 1000000000ULL

enum tg_turned {
	TG_TURN_NOTHING = 0, /* the queue is empty, or its head is too young */
	TG_TURN_LOOKED,
	TG_TURN_ROOM, /* there may be room now: a flow was answered, or has gone for another */
};

/* Which heads a turn takes. */
enum tg_turning {
	TG_TURN_DUE = 0, /* those that were not looked at for a while */
	TG_TURN_SOON,	 /* the same, but fresh ones come sooner */
	TG_TURN_ALL,
	TG_TURN_MAKE_ROOM, /* all, and an unanswered one may go for the flow that is laid out */
};

/* So long a living flow is left alone once it was looked at; for packets one that expires
 * meanwhile is gone all the same. Where room may be wanted, fresh ones only so long as an
 * answer takes: whoever looks for one that may go finds no answered ones before it then. */
#define TG_LOOK ((__s32)TG_COARSE(60000000000ULL))
#define TG_LOOK_SOON ((__s32)TG_COARSE(250000000ULL))

/* When nothing was due, it is not asked again for so long on this CPU. */
#define TG_TIDY_AGAIN 1000000ULL

/* A session must stand somewhere: where a queue is full, in another one. */
static __always_inline void tg_stand_in_settled(const struct tg_tuple *key)
{
	if (bpf_map_push_elem(&tg_settled, key, 0))
		bpf_map_push_elem(&tg_fresh, key, 0);
}

static __always_inline void tg_stand_in_dying(const struct tg_tuple *key)
{
	if (bpf_map_push_elem(&tg_dying, key, 0))
		tg_stand_in_settled(key);
}

/* LIVE to another life; 0 if it was not live. */
static __always_inline int tg_end(struct tg_session *out, struct tg_session *in, enum tg_life life,
				  __u64 now)
{
	int was;

	bpf_spin_lock(&out->lock);
	was = out->life == TG_LIFE_LIVE || out->life == TG_LIFE_NEW ||
	      (out->life == TG_LIFE_DYING && life == TG_LIFE_FLUSHED);
	if (was) {
		out->life = life;
		out->since = now;
		out->hint = 1;
		if (in)
			in->hint = 1;
	}
	bpf_spin_unlock(&out->lock);
	return was;
}

/* Whose account a flow is at, into g->turn_host. */
static __always_inline void tg_account_of(struct tg_gate *g, __u32 counted)
{
	if (counted == TG_COUNTED_SHARED)
		__builtin_memset(g->turn_host.addr, 0, sizeof(g->turn_host.addr));
	else
		tg_copy_addr(g->turn_host.addr, g->turn2.src);
}

/* Whoever owns the flow's place in its queue takes it off the accounts. */
static __always_inline void tg_uncount(struct tg_session *out, struct tg_gate *g, int whole)
{
	int fresh = tg_take_fresh(out), counted = out->counted;

	whole = whole && counted;
	if (!fresh && !whole)
		return;
	if (fresh)
		tg_leave_fresh(tg_from_outside(out->origin));
	if (whole)
		out->counted = TG_COUNTED_NOT;
	if (tg_from_outside(out->origin))
		return;
	tg_account_of(g, counted);
	tg_leave_host(&g->turn_host, fresh, whole);
}

/* The pair of the key in g->turn; in is NULL where half of it is missing. */
static __always_inline struct tg_session *tg_pair(struct tg_gate *g, struct tg_session **in)
{
	struct tg_session *out = bpf_map_lookup_elem(&tg_sessions, &g->turn);

	*in = NULL;
	if (!out)
		return NULL;
	tg_set_tuple(&g->turn2, &out->other);
	*in = bpf_map_lookup_elem(&tg_sessions, &g->turn2);
	if (*in && !tg_same_tuple(&(*in)->other, &g->turn))
		*in = NULL;
	return out;
}

/* 1: the pair must leave its queue of the living, and has. */
static __always_inline int tg_send_off(struct tg_gate *g, struct tg_session *out,
				       struct tg_session *in, const struct tg_setting *set)
{
	if (!in)
		tg_end(out, NULL, TG_LIFE_FLUSHED, g->now);
	else if (tg_expired(in, out, g->turn.proto, set, g->now))
		tg_end(out, in, TG_LIFE_DYING, g->now);
	if (out->life == TG_LIFE_LIVE || out->life == TG_LIFE_NEW)
		return 0;
	tg_uncount(out, g, 0);
	tg_stand_in_dying(&g->turn);
	return 1;
}

/* Whether the unanswered flow of a pair may go for one that g lays out: another one
 * of a forward's for one of a forward's; else one of the same host, or of a host
 * that has no fewer unanswered flows: the oldest goes. Those of a host with many more
 * go by a budget which hosts that scan do not share. */
static __always_inline int tg_may_go(struct tg_gate *g, const struct tg_session *out,
				     const struct tg_setting *set)
{
	const struct tg_host *mine, *theirs;

	if (tg_from_outside(out->origin) || tg_from_outside(g->origin))
		return tg_from_outside(out->origin) && tg_from_outside(g->origin) &&
		       tg_may_end(set, TG_END_FORWARDED);
	tg_account_of(g, out->counted);
	theirs = bpf_map_lookup_elem(&tg_hosts, &g->turn_host);
	mine = bpf_map_lookup_elem(&tg_hosts, &g->host_key);
	if (!theirs || !mine)
		return 0;
	if (theirs == mine)
		return tg_may_end(set, TG_END_OWN);
	if (theirs->fresh < mine->fresh)
		return 0;
	return tg_may_end(set, theirs->fresh / 2 < mine->fresh ? TG_END_OWN : TG_END_HEAVIER);
}

/* Whether the flow at the head of a queue, whose key is in g->turn, was looked at so
 * lately that it is not due. */
static __always_inline int tg_not_due(const struct tg_gate *g, __s32 after)
{
	const struct tg_session *out = bpf_map_lookup_elem(&tg_sessions, &g->turn);

	return out && out->life <= TG_LIFE_LIVE && TG_COARSE_AGE(g->now, out->looked) < after;
}

/* how: enum tg_turning. */
__noinline int tg_turn_fresh(__u32 whose, __u32 how)
{
	struct tg_gate *g = tg_gate_of(whose);
	struct tg_session *out, *in;
	const struct tg_setting *set;

	if (!g)
		return TG_TURN_NOTHING;
	set = tg_setting_of(g->generation);
	if (how <= TG_TURN_SOON && (bpf_map_peek_elem(&tg_fresh, &g->turn) ||
				    tg_not_due(g, how == TG_TURN_DUE ? TG_LOOK : TG_LOOK_SOON)))
		return TG_TURN_NOTHING;
	if (!set || bpf_map_pop_elem(&tg_fresh, &g->turn))
		return TG_TURN_NOTHING;
	out = bpf_map_lookup_elem(&tg_sessions, &g->turn);
	if (out && !out->fresh && out->life == TG_LIFE_LIVE) { /* its answer has said so */
		out->looked = TG_COARSE(g->now);
		tg_stand_in_settled(&g->turn);
		return TG_TURN_LOOKED;
	}
	out = tg_pair(g, &in);
	if (!out)
		return TG_TURN_LOOKED;
	if (tg_send_off(g, out, in, set))
		return TG_TURN_LOOKED;
	out->looked = TG_COARSE(g->now);
	if (in && tg_answered(in, out, g->turn.proto)) {
		tg_uncount(out, g, 0);
		tg_stand_in_settled(&g->turn);
		return TG_TURN_ROOM;
	}
	if (how == TG_TURN_MAKE_ROOM && tg_may_go(g, out, set) &&
	    tg_end(out, in, TG_LIFE_FLUSHED, g->now)) {
		tg_uncount(out, g, 1);
		tg_leave_early(tg_from_outside(out->origin));
		tg_stand_in_dying(&g->turn);
		return TG_TURN_ROOM;
	}
	if (bpf_map_push_elem(&tg_fresh, &g->turn, 0))
		tg_stand_in_settled(&g->turn);
	return TG_TURN_LOOKED;
}

/* how: TG_TURN_ALL, or what is due. */
__noinline int tg_turn_settled(__u32 whose, __u32 how)
{
	struct tg_gate *g = tg_gate_of(whose);
	struct tg_session *out, *in;
	const struct tg_setting *set;

	if (!g)
		return TG_TURN_NOTHING;
	set = tg_setting_of(g->generation);
	if (how <= TG_TURN_SOON &&
	    (bpf_map_peek_elem(&tg_settled, &g->turn) || tg_not_due(g, TG_LOOK)))
		return TG_TURN_NOTHING;
	if (!set || bpf_map_pop_elem(&tg_settled, &g->turn))
		return TG_TURN_NOTHING;
	out = tg_pair(g, &in);
	if (!out)
		return TG_TURN_LOOKED;
	if (tg_send_off(g, out, in, set))
		return TG_TURN_LOOKED;
	out->looked = TG_COARSE(g->now);
	tg_stand_in_settled(&g->turn);
	return TG_TURN_LOOKED;
}

__noinline int tg_turn_dying(__u32 whose)
{
	struct tg_gate *g = tg_gate_of(whose);
	struct tg_session *out, *in;
	int counted;
	__u32 life;

	if (!g || bpf_map_peek_elem(&tg_dying, &g->turn))
		return TG_TURN_NOTHING;
	out = bpf_map_lookup_elem(&tg_sessions, &g->turn);
	if (out && out->life != TG_LIFE_LIVE && g->now < out->since + TG_GRACE)
		return TG_TURN_NOTHING;
	/* Another CPU may have been faster: this may be the one behind it. */
	if (bpf_map_pop_elem(&tg_dying, &g->turn))
		return TG_TURN_NOTHING;
	out = tg_pair(g, &in);
	if (!out)
		return TG_TURN_LOOKED;
	bpf_spin_lock(&out->lock);
	if (out->life == TG_LIFE_DYING && in && (in->last > out->since || out->last > out->since)) {
		/* A program that had found it before it began to die. */
		out->life = TG_LIFE_LIVE;
		out->hint = 0;
		in->hint = 0;
	} else if (out->life != TG_LIFE_LIVE && g->now >= out->since + TG_GRACE) {
		out->life = TG_LIFE_DELETED;
	}
	life = out->life;
	bpf_spin_unlock(&out->lock);
	if (life == TG_LIFE_LIVE) {
		tg_stand_in_settled(&g->turn);
		return TG_TURN_LOOKED;
	}
	if (life != TG_LIFE_DELETED) {
		tg_stand_in_dying(&g->turn);
		return TG_TURN_LOOKED;
	}
	counted = out->counted;
	tg_uncount(out, g, 1);
	tg_leave_place(counted, 1, tg_from_outside(out->origin));
	if (out->bound == TG_BOUND_REMOTE) {
		tg_remote_key_of(&g->remote_key, &g->turn);
		tg_release_remote(g);
	}
	if (out->bound != TG_BOUND_NOT) {
		tg_endpoint_of(&g->turn_endpoint, g->turn.dst, g->turn.dport, g->turn.proto,
			       TG_HALF_OUTSIDE, out->outside_zone);
		tg_release_binding(g, counted, out->bound == TG_BOUND_FIRST);
	}
	tg_log_end(g, in, out);
	if (in)
		bpf_map_delete_elem(&tg_sessions, &g->turn2);
	bpf_map_delete_elem(&tg_sessions, &g->turn);
	return TG_TURN_LOOKED;
}

/* A binding without sessions keeps its port for a while (RFC 6888 REQ-8). */
__noinline int tg_turn_idle(__u32 whose)
{
	struct tg_gate *g = tg_gate_of(whose);
	const struct tg_setting *set;
	struct tg_binding *b;
	int gone = 0, keep = 0;

	if (!g)
		return TG_TURN_NOTHING;
	set = tg_setting_of(g->generation);
	if (!set || bpf_map_peek_elem(&tg_idle, &g->turn_endpoint))
		return TG_TURN_NOTHING;
	b = bpf_map_lookup_elem(&tg_bindings, &g->turn_endpoint);
	/* In order, but for those that were used again since they were queued. */
	if (b && !b->sessions && b->queued == tg_queued_at(b) &&
	    g->now < b->since + set->timers[TG_TIMER_LINGER])
		return TG_TURN_NOTHING;
	if (bpf_map_pop_elem(&tg_idle, &g->turn_endpoint))
		return TG_TURN_NOTHING;
	b = bpf_map_lookup_elem(&tg_bindings, &g->turn_endpoint);
	if (!b)
		return TG_TURN_LOOKED;
	bpf_spin_lock(&b->lock);
	if (b->sessions || b->life != TG_LIFE_LIVE) {
		b->queued = 0;
	} else if (g->now >= b->since + set->timers[TG_TIMER_LINGER]) {
		b->life = TG_LIFE_DELETED;
		gone = 1;
	} else {
		b->queued = tg_queued_at(b);
		keep = 1;
	}
	bpf_spin_unlock(&b->lock);
	if (keep)
		bpf_map_push_elem(&tg_idle, &g->turn_endpoint, 0);
	if (!gone)
		return TG_TURN_LOOKED;
	tg_delete_binding(g, b);
	return TG_TURN_LOOKED;
}

/* Whether there is room for everybody: a table less than half full, and fewer unanswered
 * flows in all than one host may have. */
static __always_inline int tg_has_room(const struct tg_gate *g)
{
	const struct tg_setting *set = tg_setting_of(g->generation);
	const struct tg_table_state *t = tg_whole_table();

	return set && t && t->flows < set->max_flows / 2 && t->fresh < set->max_fresh_host &&
	       t->forwarded < set->max_forwarded / 2;
}

/* What new flows do for the table as long as something is due: twice as much as they
 * add, but for settled ones, which are looked at several times, while there is room. */
static __always_inline void tg_tidy(__u32 whose, struct tg_gate *g, int room)
{
	__u32 how = room ? TG_TURN_DUE : TG_TURN_SOON;
	int turned = 0;

	if (g->now < g->tidy_at)
		return;
	if (tg_turn_dying(whose) != TG_TURN_NOTHING) {
		turned = 1;
		tg_turn_dying(whose);
	}
	if (tg_turn_fresh(whose, how) != TG_TURN_NOTHING) {
		turned = 1;
		tg_turn_fresh(whose, how);
	}
	if (tg_turn_settled(whose, how) != TG_TURN_NOTHING) {
		turned = 1;
		if (!room)
			tg_turn_settled(whose, how);
	}
	if (tg_turn_idle(whose) != TG_TURN_NOTHING) {
		turned = 1;
		tg_turn_idle(whose);
	}
	if (!turned)
		g->tidy_at = g->now + TG_TIDY_AGAIN;
}

#endif
