/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * maps.h: every map. Names start with tg_, as people meet them in bpftool (which
 * shows 15 characters). Maps of a generation are inner maps of tg_members and
 * tg_targets; all others stand outside the generations.
 */
#ifndef TG_MAPS_H
#define TG_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "wire.h"

const volatile struct tg_enums tg_enums = {};

/* The control word: see abi.h. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} tg_control SEC(".maps");

/* Generation -> interfaces in it, by ifindex. */
struct tg_members_inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TG_MAX_MEMBERS);
	__type(key, __u32);
	__type(value, struct tg_member);
} tg_members_0 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct tg_members_inner);
} tg_members SEC(".maps") = {
	.values = {&tg_members_0},
};

/* Generation -> targets in it, by number. */
struct tg_targets_inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TG_MAX_TARGETS);
	__type(key, __u32);
	__type(value, struct tg_target);
} tg_targets_0 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct tg_targets_inner);
} tg_targets SEC(".maps") = {
	.values = {&tg_targets_0},
};

/* Addresses that dmz ingress knows: ours, and next hops to learn. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TG_MAX_NEXTHOPS);
	__type(key, struct tg_nexthop_key);
	__type(value, struct tg_nexthop);
} tg_nexthops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TG_MAX_NEIGHS);
	__type(key, __u32);
	__type(value, struct tg_neigh);
} tg_neighs SEC(".maps");

/* Accounts: one element per number and direction, number * TG_DIRECTIONS + direction. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TG_MAX_MIRRORS * TG_DIRECTIONS);
	__type(key, __u32);
	__type(value, struct tg_ledger);
} tg_mirror_led SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TG_MAX_TARGETS * TG_DIRECTIONS);
	__type(key, __u32);
	__type(value, struct tg_ledger);
} tg_target_led SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TG_MAX_MEMBERS * TG_DIRECTIONS);
	__type(key, __u32);
	__type(value, struct tg_member_count);
} tg_seen SEC(".maps");

/* Whether delivery ran inside the tap's bpf_clone_redirect. */
enum tg_outcome {
	TG_OUTCOME_NONE = 0,
	TG_OUTCOME_COPIED,
	TG_OUTCOME_FAILED,
};

/*
 * What one step leaves for the next: parsing for the tap, delivery for the tap.
 * All run on one CPU with bottom halves off. It lies in a map and not on the
 * stack because the verifier forgets what it knew of it: otherwise each copy of
 * the loop is checked once for every way that led there, and kernels before
 * 6.12 give up.
 */
struct tg_scratch {
	struct tg_packet packet;
	struct tg_wire wire;
	__u32 tag;     /* tg_header_tag */
	__u32 outcome; /* enum tg_outcome */
	__u32 skip;    /* of the copy being made: enum tg_skip, or TG_SKIP_REASONS */
	__u32 skipped; /* the first skip of the mirror being served */
	__u64 now;     /* boot time, ns, as of the kernel's clock tick in `tick` */
	__u32 tick;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tg_scratch);
} tg_scratch SEC(".maps");

static __always_inline struct tg_scratch *tg_own_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tg_scratch, &zero);
}

/* The loader's own notes, text: one for each generation, and the journal. */
struct tg_record {
	__u8 text[TG_RECORD_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct tg_record);
} tg_records SEC(".maps");

#endif
