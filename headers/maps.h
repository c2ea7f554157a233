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

/* How delivery tells the tap that it ran. Both run on one CPU, one inside the
 * other's bpf_clone_redirect, with bottom halves off. */
enum tg_outcome {
	TG_OUTCOME_NONE = 0, /* delivery did not run */
	TG_OUTCOME_COPIED,
	TG_OUTCOME_FAILED,
};

struct tg_report {
	enum tg_outcome outcome;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tg_report);
} tg_report SEC(".maps");

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
