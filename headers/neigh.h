/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * neigh.h: the state of a next hop. dmz ingress confirms it, the tap reads it
 * and asks again when it is old. No process of ours is needed.
 */
#ifndef TG_NEIGH_H
#define TG_NEIGH_H

#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "maps.h"

#define TG_SECOND 1000000000ULL
#define TG_ASK_AFTER (3 * TG_SECOND) /* age at which a MAC is asked for again */
#define TG_ASK_EVERY (1 * TG_SECOND) /* at the most */
#define TG_UNANSWERED_MAX 5	     /* questions without an answer: the next hop failed */

static __always_inline __u64 tg_mac_word(const __u8 *mac)
{
	return (__u64)mac[0] | (__u64)mac[1] << 8 | (__u64)mac[2] << 16 | (__u64)mac[3] << 24 |
	       (__u64)mac[4] << 32 | (__u64)mac[5] << 40 | TG_MAC_VALID;
}

/* An answer came: the MAC holds. A group address is nobody's. */
static __always_inline void tg_neigh_confirm(__u32 number, const __u8 *mac)
{
	struct tg_neigh *n = bpf_map_lookup_elem(&tg_neighs, &number);
	__u64 word = tg_mac_word(mac);
	__u64 now;

	if (!n || mac[0] & 1 || word == TG_MAC_VALID)
		return;
	now = bpf_ktime_get_boot_ns();
	bpf_spin_lock(&n->lock);
	if (n->mac & TG_MAC_VALID && n->mac != word)
		n->changes++;
	n->mac = word;
	n->confirmed = now;
	n->unanswered = 0;
	bpf_spin_unlock(&n->lock);
}

/* 1: the caller shall ask now; nobody else will within the second. */
static __always_inline int tg_neigh_claim_ask(struct tg_neigh *n, __u64 now)
{
	int mine = 0;

	bpf_spin_lock(&n->lock);
	if (!n->asked || now >= n->asked + TG_ASK_EVERY) {
		n->asked = now;
		mine = 1;
	}
	bpf_spin_unlock(&n->lock);
	return mine;
}

/* result: of the clone that carried the question. Only what the link took can
 * stay unanswered: a link that is down does not make the next hop fail. Nor do
 * questions that the loader asks beside those of the data plane: it may ask often. */
static __always_inline void tg_neigh_asked(struct tg_neigh *n, long result, int counts)
{
	bpf_spin_lock(&n->lock);
	n->asks++;
	if (result)
		n->refused++;
	else if (counts && n->unanswered < TG_UNANSWERED_MAX)
		n->unanswered++;
	bpf_spin_unlock(&n->lock);
}

#endif
