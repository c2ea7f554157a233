/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * tap.h: the copies of one packet. Nothing here decides about the packet: what
 * becomes of a copy goes to counters and nowhere else.
 */
#ifndef TG_TAP_H
#define TG_TAP_H

#include "abi.h"
#include "compat.h"
#include "copy.h"
#include "generation.h"
#include "maps.h"
#include "neigh.h"
#include "wire.h"

static __always_inline void tg_add(struct tg_count *to, const struct tg_count *n)
{
	to->packets += n->packets;
	to->bytes += n->bytes;
}

/* skip: enum tg_skip, or TG_SKIP_REASONS for a copy that was made. */
static __always_inline void tg_account(void *ledgers, __u32 number, enum tg_direction dir,
				       __u32 skip, const struct tg_count *n)
{
	__u32 key = number * TG_DIRECTIONS + dir;
	struct tg_ledger *l = bpf_map_lookup_elem(ledgers, &key);

	if (!l)
		return;
	tg_add(&l->matched, n);
	if (skip < TG_SKIP_REASONS)
		tg_add(&l->skipped[skip], n);
	else
		tg_add(&l->copied, n);
}

static __always_inline void tg_refused(void *ledgers, __u32 number, enum tg_direction dir,
				       __u32 bytes)
{
	__u32 key = number * TG_DIRECTIONS + dir;
	struct tg_ledger *l = bpf_map_lookup_elem(ledgers, &key);

	if (!l)
		return;
	l->refused.packets++;
	l->refused.bytes += bytes;
}

/* Sends a clone that delivery turns into a question for the next hop. */
static __always_inline long tg_send_question(struct __sk_buff *skb, __u32 ifindex, __u32 where)
{
	skb->cb[TG_CB_TASK] = TG_COPY_MAGIC << 8 | TG_TASK_ASK;
	skb->cb[TG_CB_WHERE] = where;
	return bpf_clone_redirect(skb, ifindex, 0);
}

/* The same, if nobody has for a second. */
static __always_inline void tg_ask(struct __sk_buff *skb, __u32 ifindex, struct tg_neigh *n,
				   __u32 where, __u64 now)
{
	if (tg_neigh_claim_ask(n, now))
		tg_neigh_asked(n, tg_send_question(skb, ifindex, where), 1);
}

/* The mirrors that have copied this packet where it came in, with the headers
 * that it still wears: it was routed here from an interface that they tap. */
static __always_inline __u64 tg_copied_before(const struct __sk_buff *skb,
					      const struct tg_scratch *s, __u32 gen)
{
	const struct tg_member *from;

	if (!skb->ingress_ifindex || !s->tag || skb->tc_index != s->tag)
		return 0;
	from = tg_member(gen, skb->ingress_ifindex);
	return from ? from->mirrors : 0;
}

/* What costs time and changes slowly, once in a tick of the kernel's clock (1 to
 * 10 ms): the MTU as it is now, and whether to ask for the next hop again. */
static __always_inline void tg_tap_tick(struct __sk_buff *skb, struct tg_copy *c,
					struct tg_neigh *n, __u32 where)
{
	__u32 tick = bpf_jiffies64(), mtu = 0;
	__u64 now;

	if (tick == c->tick)
		return;
	c->tick = tick;
	if (tg_have_check_mtu) {
		/* Called for the MTU that it writes; what it thinks of the length
		 * does not matter, since it knows nothing of tags and segments. */
		bpf_check_mtu(skb, c->ifindex, &mtu, 0, 0);
		if (mtu)
			c->mtu = mtu;
	}
	if (!n)
		return;
	now = bpf_ktime_get_boot_ns();
	if (!(n->mac & TG_MAC_VALID) || now > n->confirmed + TG_ASK_AFTER)
		tg_ask(skb, c->ifindex, n, where, now);
}

/* One copy for one target. *result is what bpf_clone_redirect returned. */
static __always_inline enum tg_skip tg_tap_one(struct __sk_buff *skb, struct tg_copy *c,
					       struct tg_scratch *s, __u32 gen, __u32 l3_len,
					       long *result)
{
	__u32 where = tg_where(gen, c->slot, c->target), number = c->neigh;
	struct tg_neigh *n = NULL;
	__u32 task = TG_TASK_AS_IS, before, outcome;
	__u64 mac;

	*result = 0;
	if (c->kind == TG_TARGET_VIA4 || c->kind == TG_TARGET_VIA6) {
		n = bpf_map_lookup_elem(&tg_neighs, &number);
		if (!n)
			return TG_SKIP_CLONE_ERROR;
		task = TG_TASK_MACS;
	} else if (c->kind == TG_TARGET_L2_MAC) {
		task = TG_TASK_DMAC;
	}
	tg_tap_tick(skb, c, n, where);
	if (l3_len > c->mtu)
		return TG_SKIP_TOO_BIG;
	if (n) {
		mac = *(volatile __u64 *)&n->mac;
		if (!(mac & TG_MAC_VALID) || n->unanswered >= TG_UNANSWERED_MAX)
			return TG_SKIP_UNRESOLVED;
		skb->cb[TG_CB_MACS] = mac;
		skb->cb[TG_CB_MACS + 1] = (mac >> 32 & 0xffff) | *(__u16 *)c->smac << 16;
		skb->cb[TG_CB_MACS + 2] = *(__u16 *)(c->smac + 2) | *(__u16 *)(c->smac + 4) << 16;
	} else if (task == TG_TASK_DMAC) {
		skb->cb[TG_CB_MACS] = *(__u16 *)c->dmac | *(__u16 *)(c->dmac + 2) << 16;
		skb->cb[TG_CB_MACS + 1] = *(__u16 *)(c->dmac + 4);
	}
	skb->cb[TG_CB_TASK] = TG_COPY_MAGIC << 8 | task;
	skb->cb[TG_CB_WHERE] = where;
	before = *(volatile __u32 *)&s->outcome;
	s->outcome = TG_OUTCOME_NONE;
	*result = bpf_clone_redirect(skb, c->ifindex, 0);
	outcome = *(volatile __u32 *)&s->outcome;
	s->outcome = before; /* of the tap that this one may have interrupted */
	switch (outcome) {
	case TG_OUTCOME_COPIED:
		return TG_SKIP_REASONS;
	case TG_OUTCOME_FAILED:
		return TG_SKIP_CLONE_ERROR;
	}
	return *result < 0 ? TG_SKIP_CLONE_ERROR : TG_SKIP_UNDELIVERED;
}

/* Counts a copy that was made or skipped, and the mirror after its last target. */
static __always_inline void tg_tap_account(const struct tg_copy *c, struct tg_scratch *s,
					   const struct tg_count *n, enum tg_direction dir,
					   long result, __u32 bytes)
{
	__u32 skip = *(volatile __u32 *)&s->skip;

	tg_account(&tg_target_led, c->target, dir, skip, n);
	if (skip < TG_SKIP_REASONS) {
		if (s->skipped == TG_SKIP_REASONS)
			s->skipped = skip;
	} else if (result) {
		tg_refused(&tg_target_led, c->target, dir, bytes);
		tg_refused(&tg_mirror_led, c->mirror, dir, bytes);
	}
	if (c->last) {
		tg_account(&tg_mirror_led, c->mirror, dir, *(volatile __u32 *)&s->skipped, n);
		s->skipped = TG_SKIP_REASONS;
	}
}

/* Makes the copies of a member, but for mirrors in `without`. The original is as
 * it was: bpf_clone_redirect gives it its own data, and mark and cb are put back.
 *
 * While a copy is sent, other packets may pass a tap on this CPU before we go on:
 * a tunnel's question for its next hop, what a queue below had waiting, the copy
 * itself on an interface below. So the scratch is put back after each.
 *
 * A function of its own, so that its stack is not under that of the gateway's. It may
 * have five arguments: gen_dir is generation << 1 | direction. */
static __noinline int tg_tap(struct __sk_buff *skb, struct tg_scratch *s, struct tg_member *m,
			     __u64 without, __u32 gen_dir)
{
	enum tg_direction dir = gen_dir & 1;
	__u32 gen = gen_dir >> 1;
	__u32 bytes = skb->len;
	const struct tg_wire wire = s->wire;
	struct tg_original original;
	__u32 i;

	tg_dress(skb, &original);
	s->skipped = TG_SKIP_REASONS;
	for (i = 0; i < TG_MAX_COPIES; i++) {
		struct tg_copy *c = &m->copies[i];
		__u32 skipped;
		long result;

		if (i >= m->ncopies)
			break;
		if (without & 1ULL << (c->mirror & 63))
			continue;
		skipped = *(volatile __u32 *)&s->skipped;
		s->skip = tg_tap_one(skb, c, s, gen, wire.l3_len, &result);
		s->skipped = skipped;
		tg_tap_account(c, s, &wire.count, dir, result, bytes);
	}
	s->wire = wire;
	tg_undress(skb, &original);
	return 0;
}

#endif
