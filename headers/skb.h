/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * skb.h: the TC context: the only header that knows struct __sk_buff's fields
 * for the topics above it.
 */
#ifndef TG_SKB_H
#define TG_SKB_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "maps.h"
#include "packet.h"
#include "wire.h"

static __always_inline void tg_skb_span(struct __sk_buff *skb, struct tg_span *s)
{
	s->start = (void *)(long)skb->data;
	s->end = (void *)(long)skb->data_end;
}

/* How much is pulled into the linear part where a driver left headers in page
 * fragments: two tags, IPv6, TCP with options. The stack would pull them next.
 * Never where nothing is missing: pulling makes the kernel copy the head. */
#define TG_PULL 96

/* Leaves headers, wire counts and header tag of a packet in the scratch. A global
 * function: the verifier checks it once, by itself. */
__noinline int tg_look(struct __sk_buff *skb)
{
	struct tg_scratch *s = tg_own_scratch();
	struct tg_packet *p;
	struct tg_span span;

	if (!s)
		return -1;
	tg_skb_span(skb, &span);
	if (!skb->gso_size &&
	    tg_look_plain(&span, skb->len, skb->vlan_present ? 1 : 0, &s->wire, &s->tag))
		return 0;
	p = &s->packet;
	p->len = skb->len;
	p->gso_size = skb->gso_size;
	p->gso_segs = skb->gso_segs;
	p->outer_tag = skb->vlan_present ? 1 : 0;
	tg_parse(&span, p);
	if (TG_FORGET(p->elsewhere)) {
		/* Refused or not, the pointers are invalid then. */
		bpf_skb_pull_data(skb, skb->len < TG_PULL ? skb->len : TG_PULL);
		tg_skb_span(skb, &span);
		tg_parse(&span, p);
	}
	tg_wire_of(&span, p, &s->wire);
	s->tag = tg_header_tag(&span, p);
	return 0;
}

#endif
