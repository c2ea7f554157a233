/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * copy.h: how a copy is known. The mark says that a packet is a copy of ours,
 * for as long as it lives: it survives qdiscs, tunnels and stacked interfaces
 * in this namespace, and only the copy wears it. cb names what delivery has to
 * do, for the moment between the clone and the egress hook of its interface.
 */
#ifndef TG_COPY_H
#define TG_COPY_H

#include <linux/bpf.h>
#include <linux/types.h>

#define TG_COPY_MARK 0x74617067u  /* "tapg" */
#define TG_COPY_MAGIC 0x6370792eu /* "cpy." */

/* The words of cb. */
enum {
	TG_CB_MAGIC = 0,
	TG_CB_TARGET, /* generation << 16 | target */
	TG_CB_L3_LEN, /* tg_wire.l3_len */
	TG_CB_ASK,    /* 1: turn the copy into a question for the next hop */
};

/* What a clone takes along and the original must not keep. */
struct tg_original {
	__u32 mark;
	__u32 cb[4];
};

static __always_inline int tg_is_copy(const struct __sk_buff *skb)
{
	return skb->mark == TG_COPY_MARK;
}

static __always_inline void tg_dress(struct __sk_buff *skb, struct tg_original *o, __u32 l3_len)
{
	o->mark = skb->mark;
	o->cb[0] = skb->cb[0];
	o->cb[1] = skb->cb[1];
	o->cb[2] = skb->cb[2];
	o->cb[3] = skb->cb[3];
	skb->mark = TG_COPY_MARK;
	skb->cb[TG_CB_MAGIC] = TG_COPY_MAGIC;
	skb->cb[TG_CB_L3_LEN] = l3_len;
	skb->cb[TG_CB_ASK] = 0;
}

static __always_inline void tg_undress(struct __sk_buff *skb, const struct tg_original *o)
{
	skb->mark = o->mark;
	skb->cb[0] = o->cb[0];
	skb->cb[1] = o->cb[1];
	skb->cb[2] = o->cb[2];
	skb->cb[3] = o->cb[3];
}

#endif
