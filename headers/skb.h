/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * skb.h: the TC context: the only header that knows struct __sk_buff's fields
 * for the topics above it.
 */
#ifndef TG_SKB_H
#define TG_SKB_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "packet.h"

static __always_inline void tg_skb_pointers(struct __sk_buff *skb, struct tg_packet *p)
{
	p->start = (void *)(long)skb->data;
	p->end = (void *)(long)skb->data_end;
}

/* Headers within this many bytes are found also where a driver left them in
 * page fragments: two tags, IPv6, TCP. The stack would pull them next. */
#define TG_PULL 96

/* Fills the cursor and finds the headers. */
static __always_inline void tg_skb_parse(struct __sk_buff *skb, struct tg_packet *p)
{
	__u32 want = skb->len < TG_PULL ? skb->len : TG_PULL;

	__builtin_memset(p, 0, sizeof(*p));
	p->len = skb->len;
	p->gso_size = skb->gso_size;
	p->gso_segs = skb->gso_segs;
	p->outer_tag = skb->vlan_present ? 1 : 0;
	if ((void *)(long)skb->data + want > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, want);
	tg_skb_pointers(skb, p);
	tg_parse(p);
}

#endif
