/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * deliver.h: what the dmz interface's egress does with a copy: finish the frame
 * as its cb says, and report to the tap that waits for it.
 */
#ifndef TG_DELIVER_H
#define TG_DELIVER_H

#include "abi.h"
#include "copy.h"
#include "generation.h"
#include "maps.h"
#include "question.h"

static __always_inline long tg_write_macs(struct __sk_buff *skb, __u32 task)
{
	__u32 macs[3] = {skb->cb[TG_CB_MACS], skb->cb[TG_CB_MACS + 1], skb->cb[TG_CB_MACS + 2]};

	if (task == TG_TASK_MACS)
		return bpf_skb_store_bytes(skb, 0, macs, 12, 0);
	if (task == TG_TASK_DMAC)
		return bpf_skb_store_bytes(skb, 0, macs, 6, 0);
	return 0;
}

static __always_inline enum tg_reason tg_deliver_question(struct __sk_buff *skb, __u32 where)
{
	const struct tg_target *t = tg_target(where >> 24 & 1, where & 0xffff);

	if (!t || t->ifindex != skb->ifindex || tg_question(skb, t))
		return TG_DROP_COPY_FAILED;
	return TG_PASS_ASKED;
}

static __always_inline enum tg_reason tg_deliver(struct __sk_buff *skb)
{
	__u32 task = skb->cb[TG_CB_TASK] & 0xff, where = skb->cb[TG_CB_WHERE];
	struct tg_scratch *s;
	long failed;

	/* An interface below this one may be of the dmz as well: once is enough. */
	skb->cb[TG_CB_TASK] = 0;
	if (task == TG_TASK_ASK)
		return tg_deliver_question(skb, where);

	failed = tg_write_macs(skb, task);
	s = tg_own_scratch();
	if (!s)
		return TG_DROP_COPY_FAILED;
	s->outcome = failed ? TG_OUTCOME_FAILED : TG_OUTCOME_COPIED;
	return failed ? TG_DROP_COPY_FAILED : TG_PASS_DELIVERED;
}

#endif
