/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * copy.h: how a copy is known. The mark says that a packet is a copy of ours,
 * for as long as it lives: it survives qdiscs, tunnels and stacked interfaces
 * in this namespace, and only the copy wears it. cb tells delivery what to do,
 * for the moment between the clone and the egress hook of its interface.
 */
#ifndef TG_COPY_H
#define TG_COPY_H

#include <linux/bpf.h>
#include <linux/types.h>
#include "abi.h"

#define TG_COPY_MARK 0x74617067u /* "tapg" */
#define TG_COPY_MAGIC 0x637079u	 /* "cpy", above the byte of the task */

/* What delivery does with a copy: lowest byte of cb[TG_CB_TASK]. */
enum tg_task {
	TG_TASK_AS_IS = 0,
	TG_TASK_DMAC, /* write the first 6 of the MACs' bytes */
	TG_TASK_MACS, /* write all 12 */
	TG_TASK_ASK,  /* make it a question for the target's next hop */
};

/* The words of cb. */
enum {
	TG_CB_TASK = 0,	 /* TG_COPY_MAGIC << 8 | task */
	TG_CB_MACS,	 /* three words: destination and source MAC as in the frame */
	TG_CB_WHERE = 4, /* generation << 24 | counter slot << 16 | target */
};

static __always_inline __u32 tg_where(__u32 gen, __u32 slot, __u32 target)
{
	return gen << 24 | slot << 16 | target;
}

/* What a clone takes along and the original must not keep. */
struct tg_original {
	__u32 mark;
	__u32 cb[5];
};

static __always_inline int tg_is_copy(const struct __sk_buff *skb)
{
	return skb->mark == TG_COPY_MARK;
}

static __always_inline void tg_dress(struct __sk_buff *skb, struct tg_original *o)
{
	o->mark = skb->mark;
	o->cb[0] = skb->cb[0];
	o->cb[1] = skb->cb[1];
	o->cb[2] = skb->cb[2];
	o->cb[3] = skb->cb[3];
	o->cb[4] = skb->cb[4];
	skb->mark = TG_COPY_MARK;
}

static __always_inline void tg_undress(struct __sk_buff *skb, const struct tg_original *o)
{
	skb->mark = o->mark;
	skb->cb[0] = o->cb[0];
	skb->cb[1] = o->cb[1];
	skb->cb[2] = o->cb[2];
	skb->cb[3] = o->cb[3];
	skb->cb[4] = o->cb[4];
}

#endif
