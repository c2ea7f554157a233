/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * wire.h: what a packet is on the wire. A GSO packet stands for several frames,
 * each with its own copy of the headers.
 */
#ifndef TG_WIRE_H
#define TG_WIRE_H

#include "abi.h"
#include "packet.h"

/* gso_size of SCTP: the segments are the fragments, of any size. */
#define TG_GSO_BY_FRAGS 0xffff

struct tg_wire {
	struct tg_count count;
	__u32 l3_len; /* of the largest frame, from the network header on: what an MTU limits */
	__u32 pad;
};

/* Length of the headers that every segment repeats, or 0 if not known. A tunnel's
 * inner headers are not looked at: bytes of GSO packets inside tunnels are too few. */
static __always_inline __u32 tg_gso_headers(const struct tg_span *s, struct tg_packet *p)
{
	const struct tcphdr *tcp;

	__u32 l4 = TG_FORGET(p->l4);

	if (!l4)
		return 0;
	switch (TG_FORGET(p->l4_proto)) {
	case IPPROTO_TCP:
		tcp = tg_at(s, p, l4, sizeof(*tcp));
		return tcp ? l4 + tcp->doff * 4 : 0;
	case IPPROTO_UDP:
		return l4 + 8;
	case IPPROTO_SCTP:
		return l4 + 12;
	}
	return 0;
}

/* Needs tg_parse. */
static __always_inline void tg_wire_of(const struct tg_span *s, struct tg_packet *p,
				       struct tg_wire *w)
{
	__u32 headers, segs, payload;

	w->count.packets = 1;
	w->count.bytes = p->len + p->outer_tag * TG_VLAN_LEN;
	w->l3_len = p->len - p->l3;
	if (!p->gso_size)
		return;

	/* 0 inside a tunnel: what its segments repeat is not known and left out. */
	headers = tg_gso_headers(s, p);
	segs = p->gso_segs;
	if (p->gso_size != TG_GSO_BY_FRAGS) {
		payload = p->len > headers ? p->len - headers : 0;
		/* A guest's GSO packet from a tap device arrives with gso_segs 0. */
		if (!segs)
			segs = (payload + p->gso_size - 1) / p->gso_size;
		if (segs > 1)
			w->l3_len = (headers > p->l3 ? headers - p->l3 : 0) + p->gso_size;
	}
	if (segs > 1) {
		w->count.packets = segs;
		w->count.bytes += (__u64)(segs - 1) * (headers + p->outer_tag * TG_VLAN_LEN);
	}
}

/* The first half of a header tag: what all packets of IPv4 have. */
static __always_inline __u64 tg_tag_ipv4(const struct iphdr *ip)
{
	__u64 fragment = (ip->frag_off & bpf_htons(0x3fff)) != 0;

	return ((__u64)ip->saddr << 32 | ip->daddr) ^ (ip->protocol | fragment << 8);
}

/* tc_index of a packet that external ingress has translated: its flow admits it
 * inside. No header tag has that value, and every ingress program of ours writes
 * tc_index, so nobody can forge it. */
#define TG_TAG_ADMITTED 0x7467

/* The second half; ports are 0 where there are none. */
static __always_inline __u16 tg_tag_end(__u64 h, __u32 ports)
{
	__u16 tag;

	h *= 0x9e3779b97f4a7c15ULL;
	h ^= h >> 32;
	h ^= ports;
	h *= 0xbf58476d1ce4e5b9ULL;
	tag = h >> 48;
	return !tag || tag == TG_TAG_ADMITTED ? 1 : tag;
}

static __always_inline int tg_has_ports(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP;
}

/* A tag for the addresses, protocol and ports of an IP packet, never 0; 0 for
 * all else. Carried from ingress to egress it tells whether a packet still
 * wears the headers it was copied with. */
static __always_inline __u16 tg_header_tag(const struct tg_span *s, struct tg_packet *p)
{
	const __u32 *ports = NULL;
	__u64 h;
	int i;

	if (!TG_FORGET(p->l4))
		return 0;
	if (TG_FORGET(p->l3_proto) == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = tg_at(s, p, TG_FORGET(p->l3), sizeof(*ip));

		if (!ip)
			return 0;
		h = tg_tag_ipv4(ip);
	} else {
		const struct ipv6hdr *ip = tg_at(s, p, TG_FORGET(p->l3), sizeof(*ip));

		if (!ip)
			return 0;
		h = p->l4_proto | p->fragment << 8;
		for (i = 0; i < 4; i++) {
			h = (h ^ ip->saddr.in6_u.u6_addr32[i]) * 0x9e3779b97f4a7c15ULL;
			h = (h ^ ip->daddr.in6_u.u6_addr32[i]) * 0x9e3779b97f4a7c15ULL;
			h ^= h >> 29;
		}
	}
	if (!TG_FORGET(p->fragment) && tg_has_ports(TG_FORGET(p->l4_proto)))
		ports = tg_at(s, p, TG_FORGET(p->l4), sizeof(*ports));
	return tg_tag_end(h, ports ? *ports : 0);
}

/* What most packets are: IPv4 without options and without tags in the frame. The
 * same as tg_wire_of and tg_header_tag say, in a third of the time, since
 * nothing goes through memory. 0: not such a packet. Not for GSO packets. */
static __always_inline int tg_look_plain(const struct tg_span *s, __u32 len, __u32 outer_tag,
					 struct tg_wire *w, __u32 *tag)
{
	const struct ethhdr *eth = s->start;
	const struct iphdr *ip = (const void *)(eth + 1);
	const __u32 *ports = (const void *)(ip + 1);
	int whole;

	if ((const void *)(ports + 1) > s->end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    *(const __u8 *)ip != 0x45)
		return 0;
	w->count.packets = 1;
	w->count.bytes = len + outer_tag * TG_VLAN_LEN;
	w->l3_len = len - sizeof(*eth);
	whole = !(ip->frag_off & bpf_htons(0x3fff));
	*tag = tg_tag_end(tg_tag_ipv4(ip), whole && tg_has_ports(ip->protocol) ? *ports : 0);
	return 1;
}

#endif
