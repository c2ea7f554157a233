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

/* How much is pulled into the linear part where a driver left headers in page
 * fragments: two tags, IPv6, TCP with options. The stack would pull them next.
 * Never where nothing is missing: pulling makes the kernel copy the head. */
#define TG_PULL 96

/* Fills the cursor and finds the headers. */
static __always_inline void tg_skb_parse(struct __sk_buff *skb, struct tg_packet *p)
{
	int pass;

	__builtin_memset(p, 0, sizeof(*p));
	p->len = skb->len;
	p->gso_size = skb->gso_size;
	p->gso_segs = skb->gso_segs;
	p->outer_tag = skb->vlan_present ? 1 : 0;
	for (pass = 0; pass < 2; pass++) {
		p->start = (void *)(long)skb->data;
		p->end = (void *)(long)skb->data_end;
		tg_parse(p);
		if (!p->elsewhere || pass)
			break;
		/* Refused or not, the pointers are invalid now. */
		bpf_skb_pull_data(skb, p->len < TG_PULL ? p->len : TG_PULL);
	}
}

#endif
