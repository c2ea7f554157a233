// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * tapgate.bpf.c: the entry points: the order of steps and nothing else. The
 * packet flow, the maps and the verdicts are told in README.md beside it.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "answer.h"
#include "compat.h"
#include "copy.h"
#include "deliver.h"
#include "dmz.h"
#include "fast.h"
#include "gate_external.h"
#include "gate_inside.h"
#include "generation.h"
#include "hairpin.h"
#include "maps.h"
#include "maps_gate.h"
#include "order.h"
#include "reassembly.h"
#include "skb.h"
#include "tap.h"
#include "verdict.h"
#include "wire.h"

char tg_license[] SEC("license") = "Dual BSD/GPL";

/* The gateway's part at ingress. Returns enum tg_reason. */
static __always_inline int tg_gate_in(struct __sk_buff *skb, const struct tg_member *m, __u32 gen)
{
	struct tg_gate *g = tg_own_gate();

	if (!g)
		return TG_DROP_ERROR;
	tg_gate_begin(g, gen);
	g->ifindex_in = skb->ifindex;
	g->from_zone = m->zone;
	g->from_role = m->role;
	g->copied = m->role != TG_ROLE_EXTERNAL && m->ncopies > 0;
	if (tg_facts(skb))
		return TG_DROP_ERROR;
	if (g->tagged)
		return TG_PASS_TO_HOST;
	if (m->role == TG_ROLE_EXTERNAL)
		return tg_gate_external_in(skb);
	if (m->role == TG_ROLE_INTERNAL)
		return tg_gate_inside_in(skb);
	return TG_PASS_TO_HOST; /* mgmt: judged at egress */
}

/* The gateway's part at egress. Returns enum tg_reason. */
static __always_inline int tg_gate_out(struct __sk_buff *skb, const struct tg_member *m, __u32 gen)
{
	struct tg_gate *g = tg_own_gate();
	int reason;

	if (!g)
		return TG_DROP_ERROR;
	tg_gate_begin(g, gen);
	tg_gate_ends(g, gen, skb->ingress_ifindex, skb->ifindex, m);
	if (tg_facts(skb))
		return TG_DROP_ERROR;
	if (g->tagged)
		return TG_PASS_TO_HOST;
	if (m->role != TG_ROLE_EXTERNAL)
		return tg_gate_inside_out(skb);
	reason = tg_gate_external_out(skb);
	if (g->changed)
		skb->tc_index = 0; /* these headers were not copied yet */
	return reason;
}

/* Interfaces of all zones but dmz, inward: copied before anyone changes the packet. */
SEC("tc")
int tapgate_tap_in(struct __sk_buff *skb)
{
	struct tg_scratch *s = tg_own_scratch();
	struct tg_member *m;
	int reason, back;
	__u32 gen;

	/* Before the scratch is touched: the tap that made the copy may be waiting
	 * on this CPU with its own packet's figures in there. */
	if (tg_is_copy(skb))
		return tg_finish_copy(skb->len, TG_INGRESS);
	if (!s || tg_look(skb))
		return TC_ACT_UNSPEC;
	tg_forget_fast(skb);
	gen = tg_generation();
	m = tg_member(gen, skb->ifindex);
	if (!m)
		return tg_finish(0, TG_INGRESS, TG_PASS_NOT_MEMBER, &s->wire.count);
	/* A veth peer in another namespace can leave anything here; from now on
	 * it says which headers were copied. */
	skb->tc_index = s->tag;
	reason = TG_PASS_NOT_TAPPED;
	back = tg_is_reassembled(skb);
	if (m->ncopies && !back) {
		tg_tap(skb, s, m, 0, gen << 1 | TG_INGRESS);
		reason = TG_PASS_TAPPED;
	}
	if (m->gateway) {
		reason = back ? 0 : tg_fast(skb, gen, tg_fast_what(m));
		if (!reason)
			reason = tg_gate_in(skb, m, gen);
	}
	if (back) { /* seen before */
		s->wire.count.packets = 0;
		s->wire.count.bytes = 0;
	}
	return tg_finish(m->slot, TG_INGRESS, reason, &s->wire.count);
}

/* The same interfaces, outward: judged, translated, and copied as the last step. */
SEC("tc")
int tapgate_tap_out(struct __sk_buff *skb)
{
	struct tg_scratch *s = tg_own_scratch();
	int reason = TG_PASS_NOT_TAPPED, fast;
	struct tg_member *m;
	__u64 without;
	__u32 gen;

	/* Before the scratch is touched: the tap that made the copy may be waiting
	 * on this CPU with its own packet's figures in there. */
	if (tg_is_copy(skb))
		return tg_finish_copy(skb->len, TG_EGRESS);
	if (!s || tg_look(skb))
		return TC_ACT_UNSPEC;
	fast = tg_is_fast(skb);
	gen = tg_generation();
	m = tg_member(gen, skb->ifindex);
	if (!m)
		return tg_finish(0, TG_EGRESS, TG_PASS_NOT_MEMBER, &s->wire.count);
	if (m->gateway && !fast) {
		reason = tg_gate_out(skb, m, gen);
		if (tg_code(reason) == TC_ACT_SHOT) {
			tg_finish(m->slot, TG_EGRESS, reason, &s->wire.count);
			return tg_answer_refused(skb, reason);
		}
	}
	if (m->ncopies) {
		without = tg_copied_before(skb, s, gen) & m->mirrors;
		skb->tc_index = 0; /* it has done its work */
		if (without)
			tg_duplicate(m->slot);
		tg_tap(skb, s, m, without, gen << 1 | TG_EGRESS);
		if (!m->gateway)
			reason = TG_PASS_TAPPED;
	}
	if (fast) {
		tg_finish(m->slot, TG_EGRESS, TG_PASS_FAST, &s->wire.count);
		return TC_ACT_UNSPEC;
	}
	return tg_finish(m->slot, TG_EGRESS, reason, &s->wire.count);
}

/* Where fragments come back that the kernel has put in order. */
SEC("tc")
int tapgate_back(struct __sk_buff *skb)
{
	return tg_fragment_back(skb);
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
	if (m->gateway && skb->ingress_ifindex)
		return tg_finish(m->slot, TG_EGRESS, TG_DROP_ZONE, &seen);
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
	tg_neigh_asked(n, tg_send_question(skb, t->ifindex, where), 0);
	return TC_ACT_UNSPEC;
}

/* Run by the loader: turns the queues of flows and idle bindings as far as one run
 * may. Returns how many elements it looked at. */
SEC("tc")
int tapgate_sweep(struct __sk_buff *skb)
{
	return tg_sweep(skb);
}

/* Run by the loader with a tuple behind the Ethernet header: the outside half's key
 * of a flow that shall end. Returns 1 if it did. */
SEC("tc")
int tapgate_flush(struct __sk_buff *skb)
{
	return tg_flush(skb);
}

/* Run by the loader with a struct tg_order behind the Ethernet header: a flow of
 * the gateway before us. Returns enum tg_reason. */
SEC("tc")
int tapgate_open(struct __sk_buff *skb)
{
	return tg_adopt(skb);
}
