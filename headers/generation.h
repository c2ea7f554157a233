/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * generation.h: which of the two generations is in force, and what it holds.
 */
#ifndef TG_GENERATION_H
#define TG_GENERATION_H

#include "abi.h"
#include "maps.h"

/* Slot in force. One word is read, so a change is seen whole or not at all. */
static __always_inline __u32 tg_generation(void)
{
	__u32 key = 0;
	__u64 *word = bpf_map_lookup_elem(&tg_control, &key);
	__u64 w;

	if (!word)
		return 0;
	w = *(volatile __u64 *)word;
	if (TG_CONTROL_DEADLINE(w) && bpf_ktime_get_boot_ns() >= TG_CONTROL_DEADLINE(w))
		return w & TG_CONTROL_FALLBACK ? 1 : 0;
	return w & TG_CONTROL_ACTIVE;
}

/* NULL: the interface is not in that generation. */
static __always_inline struct tg_member *tg_member(__u32 gen, __u32 ifindex)
{
	void *members = bpf_map_lookup_elem(&tg_members, &gen);

	return members ? bpf_map_lookup_elem(members, &ifindex) : NULL;
}

static __always_inline const struct tg_target *tg_target(__u32 gen, __u32 number)
{
	void *targets = bpf_map_lookup_elem(&tg_targets, &gen);

	return targets ? bpf_map_lookup_elem(targets, &number) : NULL;
}

#endif
