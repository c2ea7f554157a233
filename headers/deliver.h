/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * deliver.h: what the dmz interface's egress does with a copy: finish the frame
 * for its target, or drop it, and report which to the tap that waits for it.
 */
#ifndef TG_DELIVER_H
#define TG_DELIVER_H

#include "abi.h"
#include "compat.h"
#include "copy.h"
#include "generation.h"
#include "maps.h"
#include "neigh.h"
#include "question.h"

/* The next hop's MAC, or 0. Says in the report when it should be asked for. */
static __always_inline __u64 tg_deliver_mac(const struct tg_target *t, struct tg_report *report)
{
	const struct tg_neigh *n = bpf_map_lookup_elem(&tg_neighs, &t->neigh);
	__u64 mac, now;

	if (!n)
		return 0;
	mac = *(volatile const __u64 *)&n->mac;
	now = bpf_ktime_get_boot_ns();
	if (!(mac & TG_MAC_VALID) || now > n->confirmed + TG_ASK_AFTER) {
		report->ask = 1;
		report->now = now;
		report->neigh = t->neigh;
	}
	return n->unanswered < TG_UNANSWERED_MAX ? mac : 0;
}

static __always_inline __u32 tg_deliver_mtu(const struct tg_target *t, struct __sk_buff *skb)
{
	__u32 mtu = 0;

	if (!tg_have_check_mtu)
		return t->mtu;
	/* Called for the MTU that it writes; what it thinks of the length does
	 * not matter, since it knows nothing of tags and segments. */
	bpf_check_mtu(skb, 0, &mtu, 0, 0);
	return mtu;
}

/* Finishes the frame. */
static __always_inline enum tg_outcome
tg_deliver_frame(struct __sk_buff *skb, const struct tg_target *t, struct tg_report *report)
{
	__u8 macs[12];
	__u64 mac;
	int i;

	if (skb->cb[TG_CB_L3_LEN] > tg_deliver_mtu(t, skb))
		return TG_OUTCOME_TOO_BIG;
	switch (t->kind) {
	case TG_TARGET_VIA4:
	case TG_TARGET_VIA6:
		mac = tg_deliver_mac(t, report);
		if (!(mac & TG_MAC_VALID))
			return TG_OUTCOME_UNRESOLVED;
		for (i = 0; i < 6; i++)
			macs[i] = mac >> (8 * i);
		__builtin_memcpy(macs + 6, t->smac, 6);
		if (bpf_skb_store_bytes(skb, 0, macs, 12, 0))
			return TG_OUTCOME_FAILED;
		return TG_OUTCOME_COPIED;
	case TG_TARGET_L2_MAC:
		if (bpf_skb_store_bytes(skb, 0, t->dmac, 6, 0))
			return TG_OUTCOME_FAILED;
		return TG_OUTCOME_COPIED;
	case TG_TARGET_L2:
		return TG_OUTCOME_COPIED;
	case TG_TARGET_NONE:
		break;
	}
	return TG_OUTCOME_FAILED;
}

/* Ends a copy's way through cb; *slot is where to count. */
static __always_inline enum tg_reason tg_deliver(struct __sk_buff *skb, __u32 *slot)
{
	__u32 gen = skb->cb[TG_CB_TARGET] >> 16, number = skb->cb[TG_CB_TARGET] & 0xffff, zero = 0;
	struct tg_report *report = bpf_map_lookup_elem(&tg_report, &zero);
	const struct tg_target *t = tg_target(gen, number);

	if (!report)
		return TG_DROP_COPY_FAILED;
	if (!t || t->ifindex != skb->ifindex) {
		report->outcome = TG_OUTCOME_FAILED;
		return TG_DROP_COPY_FAILED;
	}
	*slot = t->slot;
	/* An interface below this one may be of the dmz as well: once is enough. */
	skb->cb[TG_CB_MAGIC] = 0;
	if (skb->cb[TG_CB_ASK])
		return tg_question(skb, t) ? TG_DROP_COPY_FAILED : TG_PASS_ASKED;

	report->outcome = tg_deliver_frame(skb, t, report);
	switch (report->outcome) {
	case TG_OUTCOME_COPIED:
		return TG_PASS_DELIVERED;
	case TG_OUTCOME_UNRESOLVED:
		return TG_DROP_COPY_UNRESOLVED;
	case TG_OUTCOME_TOO_BIG:
		return TG_DROP_COPY_TOO_BIG;
	}
	return TG_DROP_COPY_FAILED;
}

#endif
