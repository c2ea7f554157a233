/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * gate_external.h: the external interfaces: source NAT on the way out, reverse NAT
 * and forwards on the way in.
 */
#ifndef TG_GATE_EXTERNAL_H
#define TG_GATE_EXTERNAL_H

#include "gate.h"
#include "limit.h"
#include "rules.h"

static __always_inline int tg_keeps_ports(const struct tg_gate *g)
{
	/* SCTP's checksum is a CRC over the whole packet. */
	return g->kind == TG_KIND_OTHER || g->tuple.proto == IPPROTO_SCTP;
}

/* Peers that the gateway itself speaks to in a protocol without ports: its own
 * tunnels (ESP, GRE, 6in4). An inside host must not get their packets. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct tg_tuple);
	__type(value, __u64);
} tg_own_peers SEC(".maps");

static __always_inline void tg_note_own(struct tg_gate *g)
{
	if (!bpf_map_lookup_elem(&tg_own_peers, &g->tuple))
		bpf_map_update_elem(&tg_own_peers, &g->tuple, &g->now, BPF_ANY);
}

/* The keys of a new flow from inside, g->tuple being the inside half's. Returns 0
 * or why there is none. */
static __always_inline int tg_lay_out(struct __sk_buff *skb, struct tg_gate *g)
{
	int why;

	tg_set_tuple(&g->key, &g->tuple);
	tg_turn_round(&g->key2, &g->tuple);
	g->bound = 0;
	g->number = g->policy;
	g->initiator = TG_HALF_INSIDE;
	g->left = 1;
	g->inside_zone = g->from_zone;
	g->outside_zone = g->to_zone;
	if (g->to_role != TG_ROLE_EXTERNAL || !tg_find_masquerade())
		return 0;
	if (tg_keeps_ports(g)) {
		tg_endpoint_of(&g->endpoint, g->tuple.src, g->tuple.sport, g->tuple.proto,
			       TG_HALF_INSIDE, g->to_zone);
		if (!tg_pick_address(g))
			return TG_DROP_NO_PORT;
		tg_set_tuple(&g->to, &g->tuple);
		tg_copy_addr(g->to.src, g->endpoint2.addr);
		if (bpf_map_lookup_elem(&tg_own_peers, &g->to))
			return TG_DROP_NO_PORT;
	} else {
		why = tg_claim(skb);
		if (why)
			return why;
		g->bound = 1;
		g->key2.dport = g->endpoint2.port;
	}
	tg_copy_addr(g->key2.dst, g->endpoint2.addr);
	if (g->rule.flags & TG_MASQ_CLAMP_MSS)
		g->clamp = 1;
	if (g->origin == TG_ORIGIN_ALLOWED)
		g->origin = TG_ORIGIN_MASQUERADE;
	g->number = g->rule.number + 1;
	tg_hit(g->rule.number);
	return 0;
}

/* A packet from inside that begins a flow, or none. */
__noinline int tg_begin_out(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	int reason;

	if (!g)
		return TG_DROP_ERROR;
	if (!tg_may_begin(g, g->from_role == TG_ROLE_INTERNAL || g->from_role == TG_ROLE_MGMT))
		return TG_DROP_NO_FLOW;
	reason = tg_judge();
	if (reason != TG_PASS_ALLOWED)
		return reason;
	reason = tg_lay_out(skb, g);
	if (reason) {
		if (reason == TG_DROP_NO_PORT)
			tg_refuse(TG_REFUSED_PORTS);
		return reason;
	}
	return tg_open_or_find(g, TG_HALF_INSIDE);
}

/* A later fragment whose first was not seen: the paired address is the same. */
static __always_inline enum tg_reason tg_stray_out(struct __sk_buff *skb, struct tg_gate *g)
{
	enum tg_reason reason = tg_judge();

	if (reason != TG_PASS_ALLOWED)
		return reason;
	if (!tg_find_masquerade())
		return TG_PASS_ALLOWED;
	tg_endpoint_of(&g->endpoint, g->tuple.src, 0, g->tuple.proto, TG_HALF_INSIDE, g->to_zone);
	if (!tg_pick_address(g))
		return TG_DROP_NO_PORT;
	tg_set_tuple(&g->to, &g->tuple);
	tg_copy_addr(g->to.src, g->endpoint2.addr);
	if (tg_fragment_claim(skb) < 0)
		return TG_DROP_FRAGMENT;
	return tg_rewrite(skb) < 0 ? TG_DROP_ERROR : TG_PASS_FRAGMENT;
}

/* No inside host may send with an address of ours: the host's own NAT has been here
 * before, as it does until its rules are removed at a change of gateways. */
static __always_inline int tg_translated_by_host(struct tg_gate *g)
{
	const struct tg_our_addr *ours = bpf_map_lookup_elem(&tg_ours, g->tuple.src);

	return ours && ours->zone == g->to_zone;
}

/* External egress. Returns enum tg_reason. */
__noinline int tg_gate_external_out(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	int own, found, reason;

	if (!g)
		return TG_DROP_ERROR;
	own = !g->ifindex_in;
	switch (g->kind) {
	case TG_KIND_NONE:
		return own ? TG_PASS_TO_HOST : tg_judge();
	case TG_KIND_BAD:
		return own ? TG_PASS_TO_HOST : TG_DROP_MALFORMED;
	case TG_KIND_ERROR:
		/* Also those that the gateway's own kernel makes of translated packets. */
		if (tg_find_flow() == TG_FOUND)
			return tg_take_error(skb, g);
		return own ? TG_PASS_TO_HOST : TG_DROP_NO_FLOW;
	case TG_KIND_LATER:
		if (own)
			return TG_PASS_TO_HOST;
		found = tg_fragment_find(skb);
		if (found <= 0)
			return found < 0 ? TG_DROP_FRAGMENT : tg_stray_out(skb, g);
		return g->changed && tg_rewrite(skb) < 0 ? TG_DROP_ERROR : TG_PASS_FRAGMENT;
	default:
		break;
	}
	found = tg_find_flow();
	if (own && found != TG_FOUND && tg_keeps_ports(g))
		tg_note_own(g);
	/* The host's firewall refuses in the name of an inside host (tcp reset). */
	if (own)
		return found == TG_FOUND && g->changed ? tg_take_packet(skb, g, TG_PASS_FLOW)
						       : TG_PASS_TO_HOST;
	if (found == TG_TAKEN)
		return TG_DROP_BUSY;
	if (found == TG_FOUND)
		return tg_of_another_zone(g) ? TG_DROP_SPOOFED
					     : tg_take_packet(skb, g, TG_PASS_FLOW);
	if (tg_translated_by_host(g)) {
		/* Sources of internal zones are checked where they come in. */
		reason = g->from_role == TG_ROLE_INTERNAL ? TG_PASS_ALLOWED : tg_judge();
		return reason == TG_PASS_ALLOWED ? TG_PASS_TO_HOST : reason;
	}
	reason = tg_begin_out(skb);
	if (reason != TG_PASS_NEW_FLOW && reason != TG_PASS_FLOW)
		return reason;
	return tg_take_packet(skb, g, reason);
}

/* Lays out a flow that a forward admits. */
static __always_inline void tg_lay_forward(struct tg_gate *g)
{
	tg_set_tuple(&g->key2, &g->tuple);
	tg_turn_round(&g->key, &g->tuple);
	tg_copy_addr(g->key.src, g->rule.addr);
	g->key.sport = bpf_htons(g->rule.to + (bpf_ntohs(g->tuple.dport) - g->rule.first));
	g->origin = TG_ORIGIN_FORWARD;
	g->number = g->rule.number + 1;
	g->inside_zone = g->rule.zone;
	g->bound = 0;
	if (g->rule.flags & TG_MASQ_CLAMP_MSS)
		g->clamp = 1;
}

/* A mapping that the packet is for: 1 if it may come in and its flow is laid out,
 * 0 if there is none, negative if it may not. */
static __always_inline int tg_lay_mapped(struct __sk_buff *skb, struct tg_gate *g)
{
	struct tg_binding *b;
	struct tg_remote *r;

	tg_endpoint_of(&g->endpoint2, g->tuple.dst, g->tuple.dport, g->tuple.proto, TG_HALF_OUTSIDE,
		       g->from_zone);
	b = bpf_map_lookup_elem(&tg_bindings, &g->endpoint2);
	if (!b || b->life != TG_LIFE_LIVE)
		return 0;
	tg_set_tuple(&g->key2, &g->tuple);
	tg_remote_key_of(&g->remote_key, &g->key2);
	r = bpf_map_lookup_elem(&tg_remotes, &g->remote_key);
	/* A socket of the gateway's own may have that port all the same, to another remote. */
	if (tg_socket_there(skb, g->family, g->tuple.proto, g->tuple.src, g->tuple.sport,
			    g->tuple.dst, g->tuple.dport))
		return 0;
	if (!(b->flags & TG_MASQ_EIF && b->sessions) && (!r || r->dead) &&
	    !tg_is_first_remote(b, g->tuple.src))
		return -TG_DROP_UNSOLICITED;
	if (tg_is_tcp(g) && !tg_is_syn(g))
		return -TG_DROP_NO_FLOW;
	__builtin_memcpy(&g->endpoint, &b->other, sizeof(g->endpoint));
	if (!tg_hold_binding(g))
		return -TG_DROP_BUSY;
	tg_turn_round(&g->key, &g->tuple);
	tg_copy_addr(g->key.src, g->endpoint.addr);
	g->key.sport = g->endpoint.port;
	g->number = b->rule;
	g->origin = TG_ORIGIN_EIF;
	g->claimed = 0;
	g->bound = 1;
	return 1;
}

/* A packet from outside that belongs to no flow. */
__noinline int tg_begin_in(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	const struct tg_our_addr *ours;
	int mapped;

	if (!g)
		return TG_DROP_ERROR;
	ours = bpf_map_lookup_elem(&tg_ours, &g->tuple.dst);
	if (!ours || g->kind != TG_KIND_PORTS)
		return TG_PASS_TO_HOST;
	g->initiator = TG_HALF_OUTSIDE;
	g->left = 0;
	g->inside_zone = 0;
	g->outside_zone = g->from_zone;
	if (tg_find_forward()) {
		if (tg_is_tcp(g) && !tg_is_syn(g))
			return TG_DROP_NO_FLOW;
		if (!tg_forward_rate_ok()) {
			tg_refuse(TG_REFUSED_RATE);
			return TG_DROP_RATE;
		}
		tg_lay_forward(g);
		/* It opens what the zones close, but not what a policy does. */
		g->to_zone = g->rule.zone;
		g->to_role = TG_ROLE_INTERNAL;
		if (tg_judge_towards(g, g->key.src, g->key.sport) == TG_DROP_POLICY)
			return TG_DROP_POLICY;
		tg_hit(g->rule.number);
	} else {
		mapped = tg_lay_mapped(skb, g);
		if (mapped < 0)
			return -mapped;
		if (!mapped) {
			/* RFC 5382 REQ-4: its own SYN may be on the way; an answer of
			 * the host's would end that connection. */
			if (tg_is_tcp(g) && tg_is_syn(g) &&
			    !tg_socket_there(skb, g->family, IPPROTO_TCP, g->tuple.src,
					     g->tuple.sport, g->tuple.dst, g->tuple.dport))
				return TG_DROP_SILENT_SYN;
			return TG_PASS_TO_HOST;
		}
	}
	return tg_open_or_find(g, TG_HALF_OUTSIDE);
}

/* Left to the host, or to be judged at egress: its fragments are in order, too. */
static __always_inline int tg_leave_in(struct __sk_buff *skb, struct tg_gate *g)
{
	int reason;

	if (!g->fragment)
		return TG_PASS_TO_HOST;
	g->changed = 0;
	reason = tg_take_first(skb);
	return reason ? reason : TG_PASS_TO_HOST;
}

/* A packet from outside that is whole, or the first of its fragments. */
static __always_inline int tg_admit_in(struct __sk_buff *skb, struct tg_gate *g)
{
	int found = tg_find_flow(), reason = TG_PASS_FLOW;

	if (found == TG_TAKEN)
		return TG_DROP_BUSY;
	if (found == TG_FOUND && !g->changed)
		return TG_PASS_TO_HOST; /* counted at egress */
	if (found != TG_FOUND)
		reason = tg_begin_in(skb);
	if (reason != TG_PASS_NEW_FLOW && reason != TG_PASS_FLOW)
		return reason;
	return tg_take_packet(skb, g, reason);
}

/* External ingress. Returns enum tg_reason. What is not of a flow with a
 * translation goes on as it is: to the host, or to be judged at egress. */
__noinline int tg_gate_external_in(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	int reason;

	if (!g)
		return TG_DROP_ERROR;
	if (g->fragment || g->kind == TG_KIND_LATER) {
		reason = tg_fragment_order(skb);
		if (reason)
			return reason;
	}
	switch (g->kind) {
	case TG_KIND_NONE:
	case TG_KIND_BAD:
		return tg_leave_in(skb, g);
	case TG_KIND_ERROR:
		if (tg_find_flow() != TG_FOUND || !g->changed)
			return TG_PASS_TO_HOST;
		reason = tg_take_error(skb, g);
		break;
	case TG_KIND_LATER:
		reason = tg_fragment_find(skb);
		if (reason <= 0 || !g->changed)
			return reason < 0 ? TG_DROP_FRAGMENT : TG_PASS_TO_HOST;
		reason = tg_rewrite(skb) < 0 ? TG_DROP_ERROR : TG_PASS_FRAGMENT;
		break;
	default:
		reason = tg_admit_in(skb, g);
		if (reason == TG_PASS_TO_HOST)
			return tg_leave_in(skb, g);
	}
	if (reason != TG_PASS_REASSEMBLED)
		skb->tc_index = TG_TAG_ADMITTED;
	return reason;
}

#endif
