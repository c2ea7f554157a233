/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * flow.h: the state of a flow, computed from its two halves, and the packet's way
 * to its half. See README.md, "A flow".
 */
#ifndef TG_FLOW_H
#define TG_FLOW_H

#include "account.h"
#include "maps_gate.h"
#include "tuple.h"

#define TG_TCP_FIN 0x01
#define TG_TCP_SYN 0x02
#define TG_TCP_RST 0x04
#define TG_TCP_ACK 0x10

static __always_inline const struct tg_setting *tg_setting_of(__u32 gen)
{
	return bpf_map_lookup_elem(&tg_settings, &gen);
}

static __always_inline __u64 tg_later_of(__u64 a, __u64 b)
{
	return a > b ? a : b;
}

/* Whether both sides have spoken as their protocol asks for; a flow that has not
 * come that far is "fresh". */
static __always_inline int tg_answered(const struct tg_session *in, const struct tg_session *out,
				       __u8 proto)
{
	if (proto == IPPROTO_TCP) {
		__u8 first = in->flags & TG_FLOW_INITIATOR ? in->tcp : out->tcp;

		return in->tcp & out->tcp & TG_SAW_SYN && first & TG_SAW_ACK;
	}
	return in->packets && out->packets;
}

/* Which timer runs, and since when. Go's flowState (loader/flows.go) says the same. */
static __always_inline enum tg_timer
tg_timer_of(const struct tg_session *in, const struct tg_session *out, __u8 proto, __u64 *since)
{
	__u64 last = tg_later_of(in->last, out->last), reset;

	/* RFC 7857 4: where everybody may send in, only the inside keeps it. */
	if (in->origin == TG_ORIGIN_EIF)
		last = in->last;
	*since = last;
	if (!((in->flags | out->flags) & TG_FLOW_LEFT))
		return TG_TIMER_PROVISIONAL;
	switch (proto) {
	case IPPROTO_TCP:
		reset = tg_later_of(in->reset, out->reset);
		if (reset && reset >= last) { /* RFC 7857 2.2: data makes it live again */
			*since = reset;
			return TG_TIMER_TCP_CLOSING;
		}
		if (in->tcp & out->tcp & TG_SAW_FIN)
			return TG_TIMER_TCP_CLOSING;
		return tg_answered(in, out, proto) ? TG_TIMER_TCP_ESTABLISHED
						   : TG_TIMER_TCP_OPENING;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return tg_answered(in, out, proto) ? TG_TIMER_UDP : TG_TIMER_UDP_UNANSWERED;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return TG_TIMER_ICMP;
	}
	return TG_TIMER_OTHER;
}

static __always_inline int tg_expired(const struct tg_session *in, const struct tg_session *out,
				      __u8 proto, const struct tg_setting *set, __u64 now)
{
	__u64 since;
	__u32 timer = tg_timer_of(in, out, proto, &since);

	if (timer >= TG_TIMERS)
		return 0;
	return now > since && now - since > set->timers[timer];
}

/* The half of a flow that is not simply live: NEW is as good as live, for another
 * CPU has just written both halves; DYING comes back. 0: absent, though taken. */
static __always_inline int tg_revive(struct tg_session *h)
{
	struct tg_session *anchor = h, *in;
	__u32 life;

	if (h->half != TG_HALF_OUTSIDE)
		anchor = bpf_map_lookup_elem(&tg_sessions, &h->other);
	if (!anchor)
		return 0;
	in = bpf_map_lookup_elem(&tg_sessions, &anchor->other);
	/* Hints change with the life, or one that is flushed meanwhile would be lost. */
	bpf_spin_lock(&anchor->lock);
	life = anchor->life;
	if (life == TG_LIFE_DYING) {
		anchor->life = TG_LIFE_LIVE;
		life = TG_LIFE_LIVE;
	}
	if (life == TG_LIFE_LIVE) {
		anchor->hint = 0;
		h->hint = 0;
		if (in)
			in->hint = 0;
	}
	bpf_spin_unlock(&anchor->lock);
	return life == TG_LIFE_LIVE || life == TG_LIFE_NEW;
}

enum tg_found {
	TG_ABSENT = 0,
	TG_FOUND,
	TG_TAKEN, /* its flow has been flushed: nobody's for a second */
};

/* No flow whose outside half was used so lately has expired, with any timers. */
#define TG_SURELY_ALIVE 1000000000ULL

/* A flow that nobody has retired yet is at its end all the same: from outside nobody
 * keeps alive what only the inside may. */
static __always_inline int tg_over(const struct tg_gate *g, const struct tg_session *h)
{
	const struct tg_setting *set;
	const struct tg_session *in;

	if (h->half != TG_HALF_OUTSIDE)
		return 0;
	if (h->origin != TG_ORIGIN_EIF &&
	    (h->flags & TG_FLOW_INITIATOR || g->now < h->last + TG_SURELY_ALIVE))
		return 0;
	in = bpf_map_lookup_elem(&tg_sessions, &h->other);
	set = tg_setting_of(g->generation);
	return !in || !set || tg_expired(in, h, g->tuple.proto, set, g->now);
}

/* Looks for the flow of g->tuple. TG_FOUND: to, half, changed are filled. */
__noinline int tg_find_flow(void)
{
	struct tg_gate *g = tg_own_gate();
	struct tg_session *h;

	if (!g)
		return TG_ABSENT;
	/* ICMP without an id: redirects and the like belong to no flow. */
	if (g->kind == TG_KIND_OTHER &&
	    (g->tuple.proto == IPPROTO_ICMP || g->tuple.proto == IPPROTO_ICMPV6))
		return TG_ABSENT;
	h = bpf_map_lookup_elem(&tg_sessions, &g->tuple);
	if (!h)
		return TG_ABSENT;
	if (tg_over(g, h))
		return TG_TAKEN;
	if (h->hint && !tg_revive(h))
		return TG_TAKEN;
	tg_turn_round(&g->to, &h->other);
	g->flow_zone = h->half == TG_HALF_INSIDE ? h->inside_zone : h->outside_zone;
	g->clamp = (h->flags & TG_FLOW_CLAMP) != 0;
	g->changed = !tg_same_tuple(&g->to, &g->tuple);
	return TG_FOUND;
}

/* A SYN of a new connection with the ports of one that has ended (RFC 7857 2.1). */
static __always_inline void tg_reopen(struct tg_session *h, __u64 now)
{
	struct tg_session *other = bpf_map_lookup_elem(&tg_sessions, &h->other);

	if (!other)
		return;
	/* An RST counts as long as no data has come behind it. */
	if (!(h->tcp & other->tcp & TG_SAW_FIN) &&
	    tg_later_of(h->reset, other->reset) <= tg_later_of(h->last, other->last))
		return;
	h->tcp = 0;
	h->reset = 0;
	h->flags |= TG_FLOW_INITIATOR;
	other->tcp = 0;
	other->reset = 0;
	/* The translation goes on: the anchor tells since when. */
	if (h->half == TG_HALF_INSIDE)
		h->created = TG_COARSE(now);
	else
		other->created = TG_COARSE(now);
	other->flags &= ~TG_FLOW_INITIATOR;
}

static __always_inline void tg_touch_tcp(struct tg_session *h, struct tg_gate *g)
{
	__u32 flags = g->tcp_flags;
	struct tg_session *other = NULL;

	if (flags & (TG_TCP_RST | TG_TCP_FIN)) {
		/* What is about to end is not for the fast path. */
		other = bpf_map_lookup_elem(&tg_sessions, &h->other);
		h->way[TG_WAY_UNTIL] = 0;
		if (other)
			other->way[TG_WAY_UNTIL] = 0;
	}
	if (flags & TG_TCP_RST) {
		/* RFC 7857 2.2, and an RST that answers must not refresh. */
		h->tcp |= TG_SAW_RST;
		if (h->reset <= tg_later_of(h->last, other ? other->last : 0))
			h->reset = g->now; /* the first since there was data */
		return;
	}
	if ((flags & (TG_TCP_SYN | TG_TCP_ACK)) == TG_TCP_SYN)
		tg_reopen(h, g->now);
	if (h->origin == TG_ORIGIN_ADOPTED && flags & TG_TCP_ACK)
		h->tcp |= TG_SAW_SYN | TG_SAW_ACK; /* its SYN has passed another gateway */
	if (flags & TG_TCP_SYN)
		h->tcp |= TG_SAW_SYN;
	else if (flags & TG_TCP_ACK)
		h->tcp |= TG_SAW_ACK;
	if (flags & TG_TCP_FIN)
		h->tcp |= TG_SAW_FIN;
	h->last = g->now;
}

/* One packet in so long takes the stack, in each direction: conntrack and neighbours
 * of the host forget what they do not see. */
#define TG_STACK_EVERY ((__s32)TG_COARSE(10000000000ULL))

/* At egress: the stack has let the half's packet through, whole or cut to that length.
 * bpf_fib_lookup does not know the MTU of a route unless it is locked. */
static __always_inline void tg_let_through(struct tg_session *h, const struct tg_gate *g)
{
	const struct tg_scratch *s = tg_own_scratch();

	if (h->ifindex != g->ifindex_in)
		h->ifindex = g->ifindex_in;
	if (h->out != g->ifindex_out)
		h->out = g->ifindex_out;
	if (!(h->flags & TG_FLOW_LEFT))
		h->flags |= TG_FLOW_LEFT;
	if (s && h->whole < s->wire.l3_len)
		h->whole = s->wire.l3_len < 0xffff ? s->wire.l3_len : 0xffff;
}

/* The packet is not on the fast path. */
static __always_inline void tg_took_stack(struct tg_session *h, const struct tg_gate *g)
{
	/* Not by each: the stack may drop some of them while others are fast. */
	if (TG_COARSE_AGE(g->now, h->stacked) >= TG_STACK_EVERY) {
		h->whole = 0; /* as the route is now */
		h->stacked = TG_COARSE(g->now);
	}
	if (h->fast)
		h->fast = 0;
	if (g->ifindex_out && g->ifindex_in)
		tg_let_through(h, g);
}

/* A flow that this packet has found answered leaves the accounts of the fresh ones now,
 * and not when its queue gets to it: hosts are judged by how many they have. */
static __always_inline void tg_note_answer(struct tg_gate *g, struct tg_session *out)
{
	const struct tg_session *in = bpf_map_lookup_elem(&tg_sessions, &out->other);

	if (!in || !tg_answered(in, out, g->tuple.proto) || !tg_take_fresh(out))
		return;
	tg_leave_fresh(tg_from_outside(out->origin));
	if (tg_from_outside(out->origin))
		return;
	if (out->counted == TG_COUNTED_SHARED)
		__builtin_memset(g->turn_host.addr, 0, sizeof(g->turn_host.addr));
	else
		tg_copy_addr(g->turn_host.addr, out->other.src);
	tg_leave_host(&g->turn_host, 1, 0);
}

/* Counts the packet at its half and lets it keep the flow alive. */
__noinline int tg_touch(void)
{
	struct tg_gate *g = tg_own_gate();
	struct tg_session *h;

	if (!g)
		return 0;
	h = bpf_map_lookup_elem(&tg_sessions, &g->tuple);
	if (!h)
		return 0;
	if (g->kind == TG_KIND_PORTS && g->tuple.proto == IPPROTO_TCP)
		tg_touch_tcp(h, g);
	else
		h->last = g->now;
	tg_took_stack(h, g);
	__sync_fetch_and_add(&h->packets, g->packets);
	__sync_fetch_and_add(&h->bytes, g->bytes);
	if (g->copied)
		__sync_fetch_and_add(&h->copied, g->packets);
	if (h->half == TG_HALF_OUTSIDE && h->fresh)
		tg_note_answer(g, h);
	return 0;
}

/* At inside egress, a packet that was translated on its way in: notes that the stack
 * has let it through, and that mirrors take it. */
__noinline int tg_came_through(void)
{
	struct tg_gate *g = tg_own_gate();
	struct tg_session *in, *out;

	if (!g)
		return 0;
	tg_turn_round(&g->key, &g->tuple);
	in = bpf_map_lookup_elem(&tg_sessions, &g->key);
	if (!in)
		return 0;
	if (!(in->flags & TG_FLOW_LEFT))
		in->flags |= TG_FLOW_LEFT;
	out = bpf_map_lookup_elem(&tg_sessions, &in->other);
	if (!out)
		return 0;
	tg_let_through(out, g);
	if (g->copied)
		__sync_fetch_and_add(&out->copied, g->packets);
	return 0;
}

#endif
