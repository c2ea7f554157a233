/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * tap.h: the copies of one packet. Nothing here decides about the packet: what
 * becomes of a copy goes to counters and nowhere else.
 */
#ifndef TG_TAP_H
#define TG_TAP_H

#include "abi.h"
#include "copy.h"
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

static __always_inline __u32 tg_skip_of(__u32 outcome, long result)
{
	switch (outcome) {
	case TG_OUTCOME_COPIED:
		return TG_SKIP_REASONS;
	case TG_OUTCOME_UNRESOLVED:
		return TG_SKIP_UNRESOLVED;
	case TG_OUTCOME_TOO_BIG:
		return TG_SKIP_TOO_BIG;
	case TG_OUTCOME_FAILED:
		return TG_SKIP_CLONE_ERROR;
	}
	return result < 0 ? TG_SKIP_CLONE_ERROR : TG_SKIP_UNDELIVERED;
}

/* Sends one more clone, which delivery turns into a question for the next hop. */
static __always_inline void tg_ask(struct __sk_buff *skb, __u32 ifindex, __u32 number, __u64 now)
{
	struct tg_neigh *n = bpf_map_lookup_elem(&tg_neighs, &number);
	long result;

	if (!n || !tg_neigh_claim_ask(n, now))
		return;
	skb->cb[TG_CB_MAGIC] = TG_COPY_MAGIC;
	skb->cb[TG_CB_ASK] = 1;
	result = bpf_clone_redirect(skb, ifindex, 0);
	skb->cb[TG_CB_ASK] = 0;
	tg_neigh_asked(n, result);
}

/* Makes the copies of a member, but for mirrors in `without`. Packet pointers
 * are invalid afterwards. The original is as it was: bpf_clone_redirect gives
 * it its own data, and mark and cb are put back. */
static __always_inline void tg_tap(struct __sk_buff *skb, __u32 gen, const struct tg_member *m,
				   __u64 without, enum tg_direction dir, const struct tg_wire *w)
{
	__u32 bytes = skb->len;
	__u32 skipped = TG_SKIP_REASONS; /* first skip among the targets of a mirror */
	struct tg_original original;
	struct tg_report *report;
	__u32 zero = 0, i;

	report = bpf_map_lookup_elem(&tg_report, &zero);
	if (!report)
		return;
	tg_dress(skb, &original, w->l3_len);
	for (i = 0; i < TG_MAX_COPIES; i++) {
		const struct tg_copy *c = &m->copies[i];
		__u32 skip;
		long result;

		if (i >= m->ncopies)
			break;
		if (without & 1ULL << (c->mirror & 63))
			continue;
		report->outcome = TG_OUTCOME_NONE;
		report->ask = 0;
		skb->cb[TG_CB_TARGET] = gen << 16 | c->target;
		result = bpf_clone_redirect(skb, c->ifindex, 0);

		skip = tg_skip_of(report->outcome, result);
		tg_account(&tg_target_led, c->target, dir, skip, &w->count);
		if (skip != TG_SKIP_REASONS && skipped == TG_SKIP_REASONS)
			skipped = skip;
		if (result && skip == TG_SKIP_REASONS) {
			tg_refused(&tg_target_led, c->target, dir, bytes);
			tg_refused(&tg_mirror_led, c->mirror, dir, bytes);
		}
		if (c->last) {
			tg_account(&tg_mirror_led, c->mirror, dir, skipped, &w->count);
			skipped = TG_SKIP_REASONS;
		}
		if (report->ask)
			tg_ask(skb, c->ifindex, report->neigh, report->now);
	}
	tg_undress(skb, &original);
}

#endif
