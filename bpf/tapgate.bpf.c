// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * tapgate.bpf.c: the entry points: the order of steps and nothing else. The
 * packet flow, the maps and the verdicts are told in README.md beside it.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "compat.h"
#include "copy.h"
#include "deliver.h"
#include "dmz.h"
#include "generation.h"
#include "maps.h"
#include "skb.h"
#include "tap.h"
#include "verdict.h"
#include "wire.h"

char tg_license[] SEC("license") = "Dual BSD/GPL";

/* A tapped interface, packets of its hosts: copied before anyone changes them. */
SEC("tc")
int tapgate_tap_in(struct __sk_buff *skb)
{
	struct tg_scratch *s = tg_own_scratch();
	struct tg_member *m;
	__u32 gen;

	/* Before the scratch is touched: the tap that made the copy may be waiting
	 * on this CPU with its own packet's figures in there. */
	if (tg_is_copy(skb))
		return tg_finish_copy(skb->len, TG_INGRESS);
	if (!s || tg_look(skb))
		return TC_ACT_UNSPEC;
	gen = tg_generation();
	m = tg_member(gen, skb->ifindex);
	if (!m)
		return tg_finish(0, TG_INGRESS, TG_PASS_NOT_MEMBER, &s->wire.count);
	/* A veth peer in another namespace can leave anything here; from now on
	 * it says which headers were copied. */
	skb->tc_index = s->tag;
	if (!m->ncopies)
		return tg_finish(m->slot, TG_INGRESS, TG_PASS_NOT_TAPPED, &s->wire.count);
	tg_tap(skb, s, gen, m, 0, TG_INGRESS);
	return tg_finish(m->slot, TG_INGRESS, TG_PASS_TAPPED, &s->wire.count);
}

/* A tapped interface, packets for its hosts: copied as the last step. */
SEC("tc")
int tapgate_tap_out(struct __sk_buff *skb)
{
	struct tg_scratch *s = tg_own_scratch();
	struct tg_member *m;
	__u64 without;
	__u32 gen;

	/* Before the scratch is touched: the tap that made the copy may be waiting
	 * on this CPU with its own packet's figures in there. */
	if (tg_is_copy(skb))
		return tg_finish_copy(skb->len, TG_EGRESS);
	if (!s || tg_look(skb))
		return TC_ACT_UNSPEC;
	gen = tg_generation();
	m = tg_member(gen, skb->ifindex);
	if (!m)
		return tg_finish(0, TG_EGRESS, TG_PASS_NOT_MEMBER, &s->wire.count);
	if (!m->ncopies)
		return tg_finish(m->slot, TG_EGRESS, TG_PASS_NOT_TAPPED, &s->wire.count);
	without = tg_copied_before(skb, s, gen) & m->mirrors;
	skb->tc_index = 0; /* it has done its work */
	if (without)
		tg_duplicate(m->slot);
	tg_tap(skb, s, gen, m, without, TG_EGRESS);
	return tg_finish(m->slot, TG_EGRESS, TG_PASS_TAPPED, &s->wire.count);
}

/* The sensor's side, outward: copies are finished for their target. */
SEC("tc")
int tapgate_dmz_out(struct __sk_buff *skb)
{
	struct tg_count seen = {.packets = 1, .bytes = skb->len};
	const struct tg_member *m;
	enum tg_reason reason;
	__u32 slot;

	if (tg_is_copy(skb)) {
		if (skb->cb[TG_CB_TASK] >> 8 != TG_COPY_MAGIC)
			return tg_finish_copy(skb->len, TG_EGRESS);
		slot = skb->cb[TG_CB_WHERE] >> 16 & 0xff;
		reason = tg_deliver(skb);
		return tg_finish(slot, TG_EGRESS, reason, &seen);
	}
	m = tg_member(tg_generation(), skb->ifindex);
	if (!m)
		return tg_finish(0, TG_EGRESS, TG_PASS_NOT_MEMBER, &seen);
	return tg_finish(m->slot, TG_EGRESS, TG_PASS_HOST, &seen);
}

/* The sensor's side, inward: nothing but the neighbour discovery of delivery. */
SEC("tc")
int tapgate_dmz_in(struct __sk_buff *skb)
{
	struct tg_scratch *s = tg_own_scratch();
	const struct tg_member *m;
	enum tg_reason reason;

	if (!s || tg_look(skb))
		return TC_ACT_SHOT;
	/* Learned even before the generation that needs it is in force. */
	reason = tg_dmz(skb);
	m = tg_member(tg_generation(), skb->ifindex);
	if (!m || m->role != TG_ROLE_DMZ)
		return tg_finish(0, TG_INGRESS, TG_PASS_NOT_MEMBER, &s->wire.count);
	return tg_finish(m->slot, TG_INGRESS, reason, &s->wire.count);
}

/* Run by the loader (BPF_PROG_RUN) with cb[TG_CB_WHERE]: asks for that target's
 * next hop, so that it is known before its first copy. */
SEC("tc")
int tapgate_ask(struct __sk_buff *skb)
{
	__u32 where = skb->cb[TG_CB_WHERE];
	const struct tg_target *t = tg_target(where >> 24 & 1, where & 0xffff);
	struct tg_neigh *n;

	if (!t || (t->kind != TG_TARGET_VIA4 && t->kind != TG_TARGET_VIA6))
		return TC_ACT_SHOT;
	n = bpf_map_lookup_elem(&tg_neighs, &t->neigh);
	if (!n)
		return TC_ACT_SHOT;
	skb->mark = TG_COPY_MARK;
	tg_ask(skb, t->ifindex, n, where, bpf_ktime_get_boot_ns());
	return TC_ACT_UNSPEC;
}
