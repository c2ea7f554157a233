/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * fragment.h: fragments behind the first have no ports: what becomes of the first
 * is remembered for them. And ids: two inside hosts may use the same one at once,
 * which nobody could tell apart behind one outside address (RFC 6864 5.3.1, RFC
 * 7857 10), so each datagram that leaves in fragments has an id of its own.
 */
#ifndef TG_FRAGMENT_H
#define TG_FRAGMENT_H

#include "maps.h"
#include "maps_gate.h"
#include "packet.h"
#include "skb.h"
#include "tuple.h"

#define TG_MAX_FRAGMENTS 16384 /* datagrams under way; the oldest goes first */
#define TG_MAX_IP_IDS 16384    /* ids lately given out */
#define TG_ID_TRIES 16

/* How long the fragments of a datagram belong together: as long as Linux, and so
 * most receivers, wait for the missing ones. */
#define TG_FRAGMENT_LIFE 30000000000LL

enum tg_fragment_fate {
	TG_FRAGMENT_NONE = 0,
	TG_FRAGMENT_KNOWN,  /* the first one was seen, or its translation is settled */
	TG_FRAGMENT_HANDED, /* all go to the kernel to be put in order: reassembly.h */
};

/* One datagram, as its fragments are seen at one interface. The id and the
 * protocol tell IPv4 datagrams apart, the id alone those of IPv6. */
struct tg_fragment_key {
	__u8 src[16];
	__u8 dst[16];
	__u32 id; /* host order */
	__u32 ifindex;
	__u8 proto;  /* 0 for IPv6 */
	__u8 inward; /* 1: seen at ingress */
	__u8 pad[2];
};

struct tg_fragment {
	__u64 when;   /* boot time, ns */
	__u8 src[16]; /* what the addresses become */
	__u8 dst[16];
	__u32 id;
	__u32 fate; /* enum tg_fragment_fate */
};

/* Floods take the place of datagrams whose fragments have come long ago, since
 * one's own are a few milliseconds apart: the one use of an LRU map here, as what
 * it may lose is one datagram and not a flow. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TG_MAX_FRAGMENTS);
	__type(key, struct tg_fragment_key);
	__type(value, struct tg_fragment);
} tg_fragments SEC(".maps");

/* An id that a translated datagram has, by the addresses it has then. */
struct tg_ip_id_key {
	__u8 src[16];
	__u8 dst[16];
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

/* The datagram that has it. */
struct tg_ip_id {
	__u8 src[16];
	__u8 dst[16];
	__u32 id;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TG_MAX_IP_IDS);
	__type(key, struct tg_ip_id_key);
	__type(value, struct tg_ip_id);
} tg_ip_ids SEC(".maps");

/* Keys and values that are too large for the stack. */
struct tg_fragment_scratch {
	struct tg_fragment_key key;
	struct tg_fragment value;
	struct tg_ip_id_key id_key;
	struct tg_ip_id id_value;
	__u32 candidate;
	__u32 reassembled; /* 1: the packet at hand was put in order: reassembly.h */
	__u32 off;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tg_fragment_scratch);
} tg_fragment_scratch SEC(".maps");

static __always_inline struct tg_fragment_scratch *tg_own_fragment(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tg_fragment_scratch, &zero);
}

static __always_inline void tg_fragment_key_of(struct tg_fragment_scratch *f,
					       const struct tg_gate *g, __u32 ifindex)
{
	tg_copy_addr(f->key.src, g->tuple.src);
	tg_copy_addr(f->key.dst, g->tuple.dst);
	f->key.id = g->frag_id;
	f->key.ifindex = ifindex;
	f->key.proto = g->family == 4 ? g->tuple.proto : 0;
	f->key.inward = ifindex == g->ifindex_in;
	f->key.pad[0] = 0;
	f->key.pad[1] = 0;
}

/* What is known of the datagram of f->key. The element may be given to another
 * one while it is read, as LRU maps do under pressure: one datagram is lost then,
 * since its receiver finds the parts' ids or addresses different. */
static __always_inline struct tg_fragment *tg_fragment_lookup(struct tg_fragment_scratch *f,
							      __u64 now)
{
	struct tg_fragment *known = bpf_map_lookup_elem(&tg_fragments, &f->key);

	/* Signed: another CPU may have looked at its clock after this one did. */
	return known && (__s64)(now - known->when) < TG_FRAGMENT_LIFE ? known : NULL;
}

/* Where the id stands in the packet: of IPv6 in the fragment header, behind
 * headers that each fragment repeats. 0: not found. */
static __always_inline __u32 tg_id_offset(struct __sk_buff *skb, struct tg_fragment_scratch *f,
					  const struct tg_gate *g)
{
	__u8 next, ext[2];
	int i;

	if (g->family == 4)
		return g->l3 + 4;
	f->off = g->l3 + sizeof(struct ipv6hdr);
	if (bpf_skb_load_bytes(skb, g->l3 + 6, &next, 1))
		return 0;
	for (i = 0; i < TG_MAX_EXTENSIONS; i++) {
		if (next == IPPROTO_FRAGMENT)
			return TG_FORGET(f->off) + 4;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
			return 0;
		if (bpf_skb_load_bytes(skb, TG_FORGET(f->off), ext, sizeof(ext)))
			return 0;
		next = ext[0];
		f->off = TG_FORGET(f->off) + (ext[1] + 1) * 8;
	}
	return 0;
}

/* Gives the fragment at hand its id. 0, or negative: the packet is not to be sent. */
static __always_inline int tg_write_id(struct __sk_buff *skb, struct tg_fragment_scratch *f,
				       const struct tg_gate *g, __u32 id)
{
	__u32 off;

	if (id == g->frag_id)
		return 0;
	off = tg_id_offset(skb, f, g);
	if (!off)
		return -1;
	if (g->family == 4) {
		__be16 from = bpf_htons(g->frag_id), to = bpf_htons(id);

		if (bpf_l3_csum_replace(skb, g->l3 + 10, from, to, sizeof(to)))
			return -1;
		return bpf_skb_store_bytes(skb, off, &to, sizeof(to), 0);
	}
	id = bpf_htonl(id);
	/* No checksum covers it but the one that a driver may have made of it all. */
	return bpf_skb_store_bytes(skb, off, &id, sizeof(id), BPF_F_RECOMPUTE_CSUM);
}

/* An id for the datagram that gets the addresses in f->value: its own one if
 * nobody has it there, else one at random. Into f->candidate; 0, or negative if all
 * tries fail. Ids are not given back: the map forgets the oldest, which with
 * 16,384 of them is longer ago than any fragment lives at 500 datagrams a second. */
static __always_inline int tg_claim_id(struct tg_fragment_scratch *f, const struct tg_gate *g)
{
	const struct tg_ip_id *has;
	int i;

	tg_copy_addr(f->id_key.src, f->value.src);
	tg_copy_addr(f->id_key.dst, f->value.dst);
	f->id_key.id = g->frag_id;
	f->id_key.proto = f->key.proto;
	f->id_key.pad[0] = 0;
	f->id_key.pad[1] = 0;
	f->id_key.pad[2] = 0;
	tg_copy_addr(f->id_value.src, g->tuple.src);
	tg_copy_addr(f->id_value.dst, g->tuple.dst);
	f->id_value.id = g->frag_id;
	f->id_value.pad = 0;
	for (i = 0; i < TG_ID_TRIES; i++) {
		f->candidate = f->id_key.id;
		if (!bpf_map_update_elem(&tg_ip_ids, &f->id_key, &f->id_value, BPF_NOEXIST))
			return 0;
		has = bpf_map_lookup_elem(&tg_ip_ids, &f->id_key);
		if (has && has->id == f->id_value.id && tg_same_addr(has->src, f->id_value.src) &&
		    tg_same_addr(has->dst, f->id_value.dst))
			return 0; /* the same datagram, or the host's next one with that id */
		f->id_key.id = bpf_get_prandom_u32();
		if (g->family == 4)
			f->id_key.id &= 0xffff;
	}
	return -1;
}

/* Remembers what the datagram at hand becomes, with an id of its own if it is
 * translated. `sure`: others may know it better, so what they know counts. */
static __always_inline int tg_fragment_settle(struct __sk_buff *skb, struct tg_gate *g, int sure)
{
	struct tg_fragment_scratch *f = tg_own_fragment();
	struct tg_fragment *known;
	int turn;

	if (!f)
		return -1;
	tg_fragment_key_of(f, g, skb->ifindex);
	tg_copy_addr(f->value.src, g->changed ? g->to.src : g->tuple.src);
	tg_copy_addr(f->value.dst, g->changed ? g->to.dst : g->tuple.dst);
	f->value.when = g->now;
	f->value.fate = TG_FRAGMENT_KNOWN;
	f->value.id = g->frag_id;

	known = tg_fragment_lookup(f, g->now);
	for (turn = 0; turn < 2; turn++) {
		if (known && known->fate == TG_FRAGMENT_HANDED && !f->reassembled)
			return 1;
		if (known && known->fate == TG_FRAGMENT_KNOWN) {
			if (!sure) { /* another fragment's are as good */
				tg_copy_addr(f->value.src, known->src);
				tg_copy_addr(f->value.dst, known->dst);
			}
			if (tg_same_addr(known->src, f->value.src) &&
			    tg_same_addr(known->dst, f->value.dst)) {
				f->value.id = known->id;
				goto settled;
			}
		}
		if (turn == 0 && (!tg_same_addr(f->value.src, g->tuple.src) ||
				  !tg_same_addr(f->value.dst, g->tuple.dst))) {
			if (tg_claim_id(f, g))
				return -1;
			f->value.id = f->candidate;
		}
		if (bpf_map_update_elem(&tg_fragments, &f->key, &f->value,
					known || turn ? BPF_ANY : BPF_NOEXIST) == 0)
			goto settled;
		/* Another CPU has been faster, or an old one of that id stands there. */
		known = tg_fragment_lookup(f, g->now);
	}
settled:
	tg_copy_addr(g->to.src, f->value.src);
	tg_copy_addr(g->to.dst, f->value.dst);
	return tg_write_id(skb, f, g, f->value.id) ? -1 : 0;
}

/* The first fragment of a packet that becomes g->to if g->changed. To be called
 * before it is rewritten, for every first fragment that is let pass. 0; negative:
 * no id is left; 1: later ones have been handed to the kernel by another CPU
 * meanwhile, so it must go there, too (tg_fragment_hand). */
__noinline int tg_fragment_note(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();

	return g ? tg_fragment_settle(skb, g, 1) : -1;
}

/* A later fragment whose first was not seen, and whose addresses the caller has
 * put into g->to: the first will get the same id. 0, or negative: no id is left. */
__noinline int tg_fragment_claim(struct __sk_buff *skb)
{
	struct tg_gate *g = tg_own_gate();
	int rc;

	if (!g)
		return -1;
	g->changed = 1;
	rc = tg_fragment_settle(skb, g, 0);
	return rc > 0 ? -1 : rc;
}

/* A later fragment: fills g->to as its first one did and gives it that one's id.
 * 1: found; 0: unknown; negative: not to be sent. */
__noinline int tg_fragment_find(struct __sk_buff *skb)
{
	struct tg_fragment_scratch *f = tg_own_fragment();
	struct tg_gate *g = tg_own_gate();
	struct tg_fragment *known;

	if (!f || !g)
		return -1;
	tg_fragment_key_of(f, g, skb->ifindex);
	known = tg_fragment_lookup(f, g->now);
	if (!known || known->fate != TG_FRAGMENT_KNOWN)
		return 0;
	tg_set_tuple(&g->to, &g->tuple);
	tg_copy_addr(g->to.src, known->src);
	tg_copy_addr(g->to.dst, known->dst);
	g->changed =
		!tg_same_addr(g->to.src, g->tuple.src) || !tg_same_addr(g->to.dst, g->tuple.dst);
	return tg_write_id(skb, f, g, known->id) ? -1 : 1;
}

#endif
