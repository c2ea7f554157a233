/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * log.h: the start and the end of each translation, for whoever keeps a log of them.
 * "tapgate agent --log-flows" puts a ring of its own into tg_log and takes it out
 * again: without one, this is a lookup and a branch for each flow.
 */
#ifndef TG_LOG_H
#define TG_LOG_H

#include "abi_log.h"
#include "maps_gate.h"
#include "tuple.h"

/* The size is the loader's to choose. */
struct tg_log_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct tg_log_ring);
} tg_log SEC(".maps");

/* Events that the ring had no room for. Outlives the rings. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TG_LOST_ACCOUNTS);
	__type(key, __u32);
	__type(value, struct tg_lost);
} tg_log_lost SEC(".maps");

/* Types that stand in no map, as tg_gate_enums. */
struct tg_log_types {
	enum tg_log_what what;
	struct tg_log_end end;
};

const volatile struct tg_log_types tg_log_types = {};

static __always_inline void *tg_log_to(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tg_log, &zero);
}

static __always_inline void tg_log_common(struct tg_log_start *e, const struct tg_tuple *inside,
					  const struct tg_tuple *outside,
					  const struct tg_session *out, enum tg_log_what what)
{
	e->created = out->created;
	tg_set_tuple(&e->inside, inside);
	tg_set_tuple(&e->outside, outside);
	e->rule = out->rule;
	e->what = what;
	e->origin = out->origin;
	e->inside_zone = out->inside_zone;
	e->outside_zone = out->outside_zone;
	e->pad = 0;
}

static __always_inline void tg_log_missed(enum tg_log_what what)
{
	__u32 programs = TG_LOST_BY_PROGRAMS;
	struct tg_lost *lost = bpf_map_lookup_elem(&tg_log_lost, &programs);

	if (lost)
		__sync_fetch_and_add(what == TG_LOG_START ? &lost->starts : &lost->ends, 1);
}

/* Whether the halves' packets are not each other's, turned round. */
static __always_inline int tg_is_translated(const struct tg_tuple *in, const struct tg_tuple *out)
{
	return !tg_same_addr(in->src, out->dst) || !tg_same_addr(in->dst, out->src) ||
	       in->sport != out->dport || in->dport != out->sport;
}

/* The flow that has just been made, with the keys g->key and g->key2. Before it stands
 * in a queue, and so before its end. */
static __always_inline void tg_log_start(struct tg_gate *g)
{
	const struct tg_session *out;
	struct tg_log_start *e;
	void *ring = tg_log_to();

	if (!ring || !tg_is_translated(&g->key, &g->key2))
		return;
	out = bpf_map_lookup_elem(&tg_sessions, &g->key2);
	if (!out)
		return;
	e = bpf_ringbuf_reserve(ring, sizeof(*e), 0);
	if (!e) {
		tg_log_missed(TG_LOG_START);
		return;
	}
	e->when = g->now;
	tg_log_common(e, &g->key, &g->key2, out, TG_LOG_START);
	bpf_ringbuf_submit(e, 0);
}

/* The flow that is about to leave the map, with the keys g->turn2 and g->turn. Before
 * it leaves, and so before the start of another one with these keys. */
static __always_inline void tg_log_end(struct tg_gate *g, const struct tg_session *in,
				       const struct tg_session *out)
{
	struct tg_log_end *e;
	void *ring = tg_log_to();

	if (!ring || out->flags & TG_FLOW_STILLBORN || !tg_is_translated(&g->turn2, &g->turn))
		return;
	e = bpf_ringbuf_reserve(ring, sizeof(*e), 0);
	if (!e) {
		tg_log_missed(TG_LOG_END);
		return;
	}
	e->flow.when = bpf_ktime_get_boot_ns(); /* a sweep may have another now */
	tg_log_common(&e->flow, &g->turn2, &g->turn, out, TG_LOG_END);
	e->last = out->last;
	e->packets_in = out->packets;
	e->bytes_in = out->bytes;
	e->packets_out = 0;
	e->bytes_out = 0;
	if (in) {
		e->last = in->last > out->last ? in->last : out->last;
		e->packets_out = in->packets;
		e->bytes_out = in->bytes;
	}
	bpf_ringbuf_submit(e, 0);
}

#endif
