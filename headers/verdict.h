/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * verdict.h: the one exit. Every program ends in tg_finish, which counts why,
 * and turns the reason into a code of TC.
 */
#ifndef TG_VERDICT_H
#define TG_VERDICT_H

#include <linux/pkt_cls.h>
#include "abi.h"
#include "compat.h"
#include "maps.h"
#include "wire.h"

#define TG_DROPS                                                                              \
	(1ULL << TG_DROP_COPY_FAILED | 1ULL << TG_DROP_NEIGHBOUR_LEARNED |                    \
	 1ULL << TG_DROP_FROM_DMZ | 1ULL << TG_DROP_POLICY | 1ULL << TG_DROP_ZONE |           \
	 1ULL << TG_DROP_SPOOFED | 1ULL << TG_DROP_UNSOLICITED | 1ULL << TG_DROP_SILENT_SYN | \
	 1ULL << TG_DROP_NO_FLOW | 1ULL << TG_DROP_TABLE_FULL | 1ULL << TG_DROP_NO_PORT |     \
	 1ULL << TG_DROP_RATE | 1ULL << TG_DROP_FRAGMENT | 1ULL << TG_DROP_MALFORMED |        \
	 1ULL << TG_DROP_BUSY | 1ULL << TG_DROP_ERROR)

/* Pass is "no opinion": TC_ACT_UNSPEC and TCX_NEXT are the same number, so
 * programs and filters of others still run. So are TC_ACT_SHOT and TCX_DROP, and
 * TC_ACT_REDIRECT and TCX_REDIRECT. */
static __always_inline int tg_code(enum tg_reason reason)
{
	if (reason == TG_PASS_HAIRPIN || reason == TG_PASS_REASSEMBLED || reason == TG_PASS_FAST)
		return TC_ACT_REDIRECT;
	return (TG_DROPS >> reason) & 1 ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* slot: of the interface's counters; 0 for an interface outside the generation. */
static __always_inline int tg_finish(__u32 slot, enum tg_direction dir, enum tg_reason reason,
				     const struct tg_count *seen)
{
	__u32 key = slot * TG_DIRECTIONS + dir;
	struct tg_member_count *c = bpf_map_lookup_elem(&tg_seen, &key);
	__u64 why = reason;

	if (c) {
		c->seen.packets += seen->packets;
		c->seen.bytes += seen->bytes;
		/* One register is compared and used, for kernels before 6.8. */
		tg_barrier(why);
		if (why < TG_REASONS)
			c->reasons[why]++;
	}
	return tg_code(reason);
}

/* A copy of ours that is under way passes another program of ours. */
static __always_inline int tg_finish_copy(__u32 bytes, enum tg_direction dir)
{
	struct tg_count seen = {.packets = 1, .bytes = bytes};

	return tg_finish(0, dir, TG_PASS_OWN_COPY, &seen);
}

/* A mirror was passed over for a packet that it copied where it came in. */
static __always_inline void tg_duplicate(__u32 slot)
{
	__u32 key = slot * TG_DIRECTIONS + TG_EGRESS;
	struct tg_member_count *c = bpf_map_lookup_elem(&tg_seen, &key);

	if (c)
		c->duplicates++;
}

#endif
