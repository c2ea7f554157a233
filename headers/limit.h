/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * limit.h: how many a second. A bucket is one word: the time until which what
 * was admitted uses up the rate. It may lie a second ahead of now, which is a second's
 * worth at once; beyond that nothing is admitted, and a refusal only reads.
 *
 * There is no lock: under a flood many CPUs meet here, and LRU maps cannot hold
 * one. CPUs that meet at the same moment may admit one each too many, which the
 * word knows of, but for when it had fallen behind now.
 */
#ifndef TG_LIMIT_H
#define TG_LIMIT_H

#include "abi_gate.h"
#include "maps_gate.h"
#include "tuple.h"

#define TG_SECOND 1000000000ULL
#define TG_RATED_REMOTES 16384

struct tg_bucket {
	__u64 until; /* boot time, ns */
};

/* By the number of the rule: flows of forwards in all, log entries of policies. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TG_MAX_COUNTED);
	__type(key, __u32);
	__type(value, struct tg_bucket);
} tg_rates SEC(".maps");

/* A remote that is forgotten begins with a full bucket again: of so many, none
 * comes often, and the limit in all stays. */
struct tg_rated_remote {
	__u8 addr[16];
	__u32 rule;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TG_RATED_REMOTES);
	__type(key, struct tg_rated_remote);
	__type(value, struct tg_bucket);
} tg_remote_rates SEC(".maps");

/* Takes one of `rate` a second, of at most `depth` ns at once. */
static __always_inline int tg_take(struct tg_bucket *b, __u64 rate, __u64 depth, __u64 now)
{
	__u64 each = TG_SECOND / rate, until = *(volatile __u64 *)&b->until;

	if (until < now) {
		*(volatile __u64 *)&b->until = now + each;
		return 1;
	}
	if (until + each > now + depth)
		return 0;
	__sync_fetch_and_add(&b->until, each);
	return 1;
}

static __always_inline int tg_remote_rate_ok(struct tg_gate *g, __u64 rate)
{
	struct tg_rated_remote key = {.rule = g->rule.number};
	struct tg_bucket full = {}, *b;

	tg_copy_addr(key.addr, g->tuple.src);
	if (g->family == 6) /* a host has all addresses of its network */
		__builtin_memset(key.addr + 8, 0, 8);
	b = bpf_map_lookup_elem(&tg_remote_rates, &key);
	if (!b) {
		bpf_map_update_elem(&tg_remote_rates, &key, &full, BPF_NOEXIST);
		b = bpf_map_lookup_elem(&tg_remote_rates, &key);
	}
	return !b || tg_take(b, rate, TG_SECOND, g->now);
}

/* A new flow of the forward in g->rule: 1 within its limits, 0 beyond. A remote
 * beyond its own takes nothing from the others' share. */
__noinline int tg_forward_rate_ok(void)
{
	struct tg_gate *g = tg_own_gate();
	struct tg_bucket *b;
	__u32 number;

	if (!g)
		return 0;
	if (g->rule.rate_remote && !tg_remote_rate_ok(g, g->rule.rate_remote))
		return 0;
	if (!g->rule.rate)
		return 1;
	number = g->rule.number;
	b = bpf_map_lookup_elem(&tg_rates, &number);
	return !b || tg_take(b, g->rule.rate, TG_SECOND, g->now);
}

#endif
