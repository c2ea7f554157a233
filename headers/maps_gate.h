/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * maps_gate.h: the gateway's maps, and the scratch in which its steps hand a
 * packet's facts to each other. Inner maps of tg_rules, tg_pools and tg_sets
 * belong to a generation; all others stand outside.
 */
#ifndef TG_MAPS_GATE_H
#define TG_MAPS_GATE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi_gate.h"

struct tg_rules_inner {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, TG_MAX_RULES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tg_rule_key);
	__type(value, struct tg_rule);
} tg_rules_0 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct tg_rules_inner);
} tg_rules SEC(".maps") = {
	.values = {&tg_rules_0},
};

/* Outside addresses of masquerade rules that name them. */
struct tg_pool_address {
	__u8 addr[16];
};

struct tg_pools_inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TG_MAX_POOL);
	__type(key, __u32);
	__type(value, struct tg_pool_address);
} tg_pools_0 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct tg_pools_inner);
} tg_pools SEC(".maps") = {
	.values = {&tg_pools_0},
};

/* Not an array: one set takes 256 bytes, and most gateways need a handful. */
struct tg_sets_inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TG_MAX_SETS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct tg_policy_set);
} tg_sets_0 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct tg_sets_inner);
} tg_sets SEC(".maps") = {
	.values = {&tg_sets_0},
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct tg_setting);
} tg_settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * TG_MAX_MEMBERS);
	__type(key, struct tg_outside_key);
	__type(value, struct tg_outside_addr);
} tg_outside SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TG_MAX_OURS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tg_ours_key);
	__type(value, struct tg_our_addr);
} tg_ours SEC(".maps");

/* Flow maps take memory as they are used. The loader sets max_entries from the
 * largest max_flows that the gateway shall ever have. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * TG_DEFAULT_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tg_tuple);
	__type(value, struct tg_session);
} tg_sessions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * TG_DEFAULT_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tg_endpoint);
	__type(value, struct tg_binding);
} tg_bindings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TG_DEFAULT_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tg_remote_key);
	__type(value, struct tg_remote);
} tg_remotes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TG_MAX_HOSTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tg_host_key);
	__type(value, struct tg_host);
} tg_hosts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tg_table_state);
} tg_table SEC(".maps");

/* Every session stands in exactly one of three queues, by its outside half's key;
 * whoever has popped it owns its end. See README.md, "Life of a flow". */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, TG_DEFAULT_FLOWS);
	__uint(value_size, sizeof(struct tg_tuple));
} tg_fresh SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, TG_DEFAULT_FLOWS);
	__uint(value_size, sizeof(struct tg_tuple));
} tg_settled SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, TG_DEFAULT_FLOWS);
	__uint(value_size, sizeof(struct tg_tuple));
} tg_dying SEC(".maps");

/* Bindings without sessions, by their outside key. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, TG_DEFAULT_FLOWS);
	__uint(value_size, sizeof(struct tg_endpoint));
} tg_idle SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TG_MAX_COUNTED);
	__type(key, __u32);
	__type(value, struct tg_hit);
} tg_hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} tg_events SEC(".maps");

/* Types that stand in no map: in a variable, so that BTF has them. */
struct tg_gate_enums {
	enum tg_rule_kind rule_kind;
	enum tg_timer timer;
	enum tg_half half;
	enum tg_life life;
	enum tg_origin origin;
	enum tg_refusal refusal;
	enum tg_bound bound;
	struct tg_event event;
	struct tg_order order;
};

const volatile struct tg_gate_enums tg_gate_enums = {};

/* What a packet is to the gateway. */
enum tg_kind {
	TG_KIND_NONE = 0, /* not IP, or an IP packet that is never forwarded: left alone */
	TG_KIND_PORTS,	  /* TCP, UDP, UDP-Lite, SCTP, DCCP: ports at the start of the header */
	TG_KIND_QUERY,	  /* ICMP with an id */
	TG_KIND_ERROR,	  /* ICMP about another packet: the tuple is that one's, turned round */
	TG_KIND_OTHER,	  /* addresses alone */
	TG_KIND_LATER,	  /* a fragment without ports */
	TG_KIND_BAD,	  /* malformed */
};

/* Facts of the packet at hand. Its steps run on one CPU with bottom halves off,
 * and none of them runs inside another's bpf_clone_redirect. In a map for the
 * verifier's sake, as tg_scratch is. What user space orders has one of its own: up
 * to 6.2, BPF_PROG_RUN leaves bottom halves on, and packets come in between. */
enum tg_whose {
	TG_OF_PACKET = 0,
	TG_OF_ORDER,
	TG_GATES,
};

struct tg_gate {
	struct tg_tuple
		tuple; /* of the packet; of an ICMP error: of the flow in the error's direction */
	struct tg_tuple to; /* what it shall become */
	enum tg_kind kind;
	__u32 generation;
	__u32 family; /* 4 or 6 */
	__u32 l3;     /* offsets from the Ethernet header */
	__u32 l4;
	__u32 inner_l3; /* of an ICMP error */
	__u32 inner_l4;
	__u32 tagged;	 /* 1: a VLAN's frame, not ours to judge */
	__u32 fragment;	 /* 1: the first of several */
	__u32 frag_id;	 /* IPv4 id in host order, IPv6 fragment id */
	__u32 tcp_flags; /* byte 13 of the TCP header */
	__u32 from_zone;
	__u32 to_zone;
	__u32 from_role; /* enum tg_role */
	__u32 to_role;
	__u32 ifindex_in;
	__u32 ifindex_out;
	__u32 policy;	 /* number + 1 of the one that decided */
	__u32 verdict;	 /* enum tg_reason of a step that ends */
	__u32 clamp;	 /* 1: SYNs of this flow have their MSS clamped */
	__u32 mtu;	 /* to what this MTU allows; 0: not clamped */
	__u32 copied;	 /* 1: a mirror of the inside interface takes the packet */
	__u32 changed;	 /* 1: `to` differs from the tuple */
	__u32 flow_zone; /* that the packets of the half which was found come from */
	/* where the outside port may be, and which of them is tried next */
	__u32 range_lo[2];
	__u32 range_n[2];
	__u32 range_next;
	/* of the flow that is being made, whose halves have the keys key and key2 */
	__u32 origin;	 /* enum tg_origin */
	__u32 claimed;	 /* 1: tg_claim has made that binding for this very packet */
	__u32 bound;	 /* 1: has a binding, whose outside endpoint is key2's destination */
	__u32 number;	 /* of its rule + 1 */
	__u32 initiator; /* enum tg_half */
	__u32 left;	 /* 1: the packet is on its way out */
	__u32 inside_zone;
	__u32 outside_zone;
	__u64 now;
	__u64 tidy_at; /* boot time, ns: nothing is due in the queues before */
	__u64 bytes;
	__u64 packets;
	struct tg_rule rule; /* the one that applies */
	/* Keys and values that are too large for the stack. */
	struct tg_rule_key rule_key;
	struct tg_tuple key;
	struct tg_tuple key2;
	struct tg_endpoint endpoint;
	struct tg_endpoint endpoint2;
	/* Values to insert; as bytes, since a per-CPU map must not hold a spin lock. */
	__u64 session[sizeof(struct tg_session) / 8];
	__u64 binding[sizeof(struct tg_binding) / 8];
	__u64 host[sizeof(struct tg_host) / 8];
	__u64 remote[sizeof(struct tg_remote) / 8];
	struct tg_remote_key remote_key;
	struct tg_host_key host_key;
	/* of the flow that a queue gives out, while another one is being made */
	struct tg_tuple turn;
	struct tg_tuple turn2;
	struct tg_endpoint turn_endpoint;
	struct tg_endpoint turn_endpoint2;
	struct tg_host_key turn_host;
	__u64 order[sizeof(struct tg_order) / 8];
	__u8 bytes_of_packet[96]; /* headers that are read or built */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TG_GATES);
	__type(key, __u32);
	__type(value, struct tg_gate);
} tg_gates SEC(".maps");

static __always_inline struct tg_gate *tg_gate_of(__u32 whose)
{
	return bpf_map_lookup_elem(&tg_gates, &whose);
}

static __always_inline struct tg_gate *tg_own_gate(void)
{
	return tg_gate_of(TG_OF_PACKET);
}

#endif
