/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * reassembly.h: fragments that come in out of order are put in order by the kernel
 * (RFC 4787 REQ-14). A later fragment whose first was not seen goes out by one end
 * of a veth pair, and so do all others of that datagram. At the other end, in a
 * network namespace of its own, the kernel reassembles and forwards what comes in;
 * so it comes back in order, cut as it was, and begins again where it was taken
 * away. The loader sets this up (reassembly.go) where the kernel has the means.
 */
#ifndef TG_REASSEMBLY_H
#define TG_REASSEMBLY_H

#include <linux/if_packet.h>
#include "abi_gate.h"
#include "fragment.h"
#include "generation.h"
#include "maps_gate.h"

/* Only the veth's ingress program sets this mark, and external ingress takes it
 * off: nothing else that comes in wears a mark, since the kernel clears it where a
 * packet changes its network namespace. */
#define TG_REASSEMBLED_MARK 0x74617266u /* "tarf" */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tg_reassembly_link);
} tg_reassembly SEC(".maps");

/* Counter slot -> interface that its fragments come back to. The slot travels
 * with the fragments in tc_index, which the way through the kernel keeps. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TG_MAX_MEMBERS);
	__type(key, __u32);
	__type(value, __u32);
} tg_way_back SEC(".maps");

/* What the kernel has to keep waits for a fragment that may never come. So no
 * source may have more than its share there; sources share by a hash of their
 * addresses. What comes back in order is given back: where first fragments come by
 * another queue of a network card, all datagrams may come out of order. */
#define TG_WAITING_SHARES 1024
#define TG_WAITING_MAX 1024	    /* fragments */
#define TG_WAITING_EACH 10000000ULL /* ns: one that nobody waits for any more, 100 a second */

struct tg_waiting {
	__u64 whole; /* boot time, ns, at which nothing of the share will be taken */
	struct bpf_spin_lock lock;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TG_WAITING_SHARES);
	__type(key, __u32);
	__type(value, struct tg_waiting);
} tg_waiting SEC(".maps");

/* The share of the datagram of f->key. */
static __always_inline struct tg_waiting *tg_share_of(const struct tg_fragment_scratch *f)
{
	const __u32 *w = (const __u32 *)&f->key; /* src, dst */
	__u32 share = 0;
	int i;

	for (i = 0; i < 8; i++)
		share = (share ^ w[i]) * 0x9e3779b1u;
	share = share >> 22 & (TG_WAITING_SHARES - 1);
	return bpf_map_lookup_elem(&tg_waiting, &share);
}

static __always_inline int tg_may_wait(const struct tg_fragment_scratch *f, __u64 now)
{
	struct tg_waiting *w = tg_share_of(f);
	__u64 whole;
	int ok;

	if (!w)
		return 0;
	bpf_spin_lock(&w->lock);
	whole = w->whole > now ? w->whole : now;
	ok = whole - now < TG_WAITING_MAX * TG_WAITING_EACH;
	if (ok)
		w->whole = whole + TG_WAITING_EACH;
	bpf_spin_unlock(&w->lock);
	return ok;
}

static __always_inline void tg_waited(const struct tg_fragment_scratch *f)
{
	struct tg_waiting *w = tg_share_of(f);

	if (!w)
		return;
	bpf_spin_lock(&w->lock);
	if (w->whole > TG_WAITING_EACH)
		w->whole -= TG_WAITING_EACH;
	bpf_spin_unlock(&w->lock);
}

static __always_inline const struct tg_reassembly_link *tg_reassembler(void)
{
	__u32 zero = 0;
	const struct tg_reassembly_link *r = bpf_map_lookup_elem(&tg_reassembly, &zero);

	return r && r->ifindex ? r : NULL;
}

/* Whether a packet comes back from the kernel: it was copied where it came in first. */
static __always_inline int tg_is_reassembled(const struct __sk_buff *skb)
{
	return skb->mark == TG_REASSEMBLED_MARK;
}

static __always_inline int tg_hand_over(struct __sk_buff *skb, const struct tg_gate *g)
{
	const struct tg_reassembly_link *r = tg_reassembler();
	__u32 ifindex = skb->ifindex, out, slot;
	const struct tg_member *m;
	__u8 mac[6];

	m = tg_member(g->generation, ifindex);
	if (!r || !m)
		return TG_DROP_FRAGMENT;
	slot = m->slot;
	out = r->ifindex;
	__builtin_memcpy(mac, r->mac, sizeof(mac));
	if (bpf_map_update_elem(&tg_way_back, &slot, &ifindex, BPF_ANY))
		return TG_DROP_ERROR;
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
		return TG_DROP_ERROR;
	skb->tc_index = slot;
	return bpf_redirect(out, 0) == TC_ACT_REDIRECT ? TG_PASS_REASSEMBLED : TG_DROP_ERROR;
}

/* Hands a fragment to the kernel. Returns TG_PASS_REASSEMBLED, and then the program
 * has to return TC_ACT_REDIRECT and to leave the packet alone. */
__noinline int tg_fragment_hand(struct __sk_buff *skb)
{
	struct tg_fragment_scratch *f = tg_own_fragment();
	struct tg_gate *g = tg_own_gate();

	if (!f || !g)
		return TG_DROP_ERROR;
	tg_fragment_key_of(f, g, skb->ifindex);
	return tg_may_wait(f, g->now) ? tg_hand_over(skb, g) : TG_DROP_FRAGMENT;
}

/* TTL or hop limit of a packet at l3. */
static __always_inline int tg_read_ttl(struct __sk_buff *skb, __u32 family, __u32 l3, __u8 *ttl)
{
	return bpf_skb_load_bytes(skb, l3 + (family == 4 ? 8 : 7), ttl, 1);
}

/* External ingress, a fragment, before anything else is made of it. Returns 0 if
 * it can be processed now, TG_PASS_REASSEMBLED if it was handed to the kernel
 * (return TC_ACT_REDIRECT), or why it is dropped. A later fragment that stays
 * unknown here (0, and tg_fragment_find finds nothing) is out of order on a kernel
 * without means. */
__noinline int tg_fragment_order(struct __sk_buff *skb)
{
	struct tg_fragment_scratch *f = tg_own_fragment();
	struct tg_gate *g = tg_own_gate();
	struct tg_fragment *known;
	__u8 ttl;

	if (!f || !g)
		return TG_DROP_ERROR;
	tg_fragment_key_of(f, g, skb->ifindex);
	f->reassembled = tg_is_reassembled(skb);
	if (f->reassembled) {
		skb->mark = 0;
		tg_waited(f);
		/* Its frame wears the veth's MACs, so the stack would not take it. */
		return bpf_skb_change_type(skb, PACKET_HOST) ? TG_DROP_ERROR : 0;
	}
	if (!tg_reassembler())
		return 0;
	/* Not ours to route: another's frame, a VLAN's, or about to run out of TTL,
	 * which the kernel has to tell the sender. */
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present || g->l3 != ETH_HLEN ||
	    tg_read_ttl(skb, g->family, g->l3, &ttl) || ttl <= 1)
		return 0;
	known = tg_fragment_lookup(f, g->now);
	if (known ? known->fate == TG_FRAGMENT_KNOWN : g->kind != TG_KIND_LATER)
		return 0;
	if (!tg_may_wait(f, g->now))
		return TG_DROP_FRAGMENT;
	if (known)
		return tg_hand_over(skb, g);
	__builtin_memset(&f->value, 0, sizeof(f->value));
	f->value.when = g->now;
	f->value.fate = TG_FRAGMENT_HANDED;
	if (bpf_map_update_elem(&tg_fragments, &f->key, &f->value, BPF_NOEXIST)) {
		/* By another CPU just now, or long ago. */
		known = tg_fragment_lookup(f, g->now);
		if (known && known->fate == TG_FRAGMENT_KNOWN) {
			tg_waited(f);
			return 0;
		}
		if (!known)
			bpf_map_update_elem(&tg_fragments, &f->key, &f->value, BPF_ANY);
	}
	return tg_hand_over(skb, g);
}

/* Ingress of the veth pair's end: fragments in order, one TTL older. Everything
 * else is dropped: the other end has nothing to say. Returns a code of TC. */
static __always_inline int tg_fragment_back(struct __sk_buff *skb)
{
	struct tg_scratch *s = tg_own_scratch();
	struct tg_gate *g = tg_own_gate();
	__u32 slot = skb->tc_index, l3;
	const __u32 *ifindex;
	__u16 from, to;
	__u8 ttl;

	if (!s || !g || tg_facts(skb) || !s->packet.fragment || !g->family)
		return TC_ACT_SHOT;
	ifindex = bpf_map_lookup_elem(&tg_way_back, &slot);
	if (!ifindex || !*ifindex)
		return TC_ACT_SHOT;
	l3 = g->l3;
	if (g->family == 4) {
		if (bpf_skb_load_bytes(skb, l3 + 8, &from, sizeof(from)))
			return TC_ACT_SHOT;
		ttl = *(__u8 *)&from + 1;
		to = from;
		*(__u8 *)&to = ttl;
		if (bpf_l3_csum_replace(skb, l3 + 10, from, to, 2) ||
		    bpf_skb_store_bytes(skb, l3 + 8, &ttl, 1, 0))
			return TC_ACT_SHOT;
	} else {
		if (bpf_skb_load_bytes(skb, l3 + 7, &ttl, 1))
			return TC_ACT_SHOT;
		ttl++;
		if (bpf_skb_store_bytes(skb, l3 + 7, &ttl, 1, BPF_F_RECOMPUTE_CSUM))
			return TC_ACT_SHOT;
	}
	skb->tc_index = 0;
	skb->mark = TG_REASSEMBLED_MARK;
	return bpf_redirect(*ifindex, BPF_F_INGRESS);
}

#endif
