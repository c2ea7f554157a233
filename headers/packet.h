/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * packet.h: the packet cursor: where the headers of a frame are. It knows
 * nothing of the hook; a context header (skb.h) fills the first half.
 * Offsets count from the first byte of the Ethernet header.
 */
#ifndef TG_PACKET_H
#define TG_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TG_VLAN_LEN 4
#define TG_MAX_INLINE_TAGS 3
#define TG_MAX_EXTENSIONS 6
/* As much as the parser may look at: three tags, IPv6 with a few extensions, TCP. */
#define TG_HEADROOM 160

struct tg_packet {
	/* filled by the context header */
	void *start;
	void *end;
	__u32 len;	/* without the tag that the kernel keeps beside the frame */
	__u16 gso_size; /* 0: not a GSO packet */
	__u16 gso_segs; /* 0 where the kernel does not know */
	__u8 outer_tag; /* 1: a VLAN tag beside the frame */

	/* filled by tg_parse */
	__u8 tags;	 /* VLAN tags, that one included */
	__u8 l4_proto;	 /* IPPROTO_*, with l4 */
	__u8 fragment;	 /* 1: one of several; ports are there in the first only */
	__be16 l3_proto; /* EtherType behind the tags */
	__u16 l3;
	__u16 l4;	/* 0: not found */
	__u8 elsewhere; /* 1: a header lies in the frame, but not before `end` */
};

/* A header at an offset, or NULL if that much is not there. */
static __always_inline void *tg_at(struct tg_packet *p, __u32 off, __u32 len)
{
	void *h;

	if (off > TG_HEADROOM)
		return NULL;
	h = p->start + off;
	if (h + len > p->end) {
		if (off + len <= p->len)
			p->elsewhere = 1;
		return NULL;
	}
	return h;
}

static __always_inline int tg_is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

static __always_inline void tg_parse_ipv4(struct tg_packet *p)
{
	const struct iphdr *ip = tg_at(p, p->l3, sizeof(*ip));
	__u32 ihl;

	if (!ip || ip->version != 4)
		return;
	ihl = ip->ihl * 4;
	if (ihl < sizeof(*ip))
		return;
	p->fragment = (ip->frag_off & bpf_htons(0x3fff)) != 0;
	p->l4_proto = ip->protocol;
	p->l4 = p->l3 + ihl;
}

static __always_inline void tg_parse_ipv6(struct tg_packet *p)
{
	const struct ipv6hdr *ip = tg_at(p, p->l3, sizeof(*ip));
	__u32 off = p->l3 + sizeof(*ip);
	__u8 next;
	int i;

	if (!ip || ip->version != 6)
		return;
	next = ip->nexthdr;
	for (i = 0; i < TG_MAX_EXTENSIONS; i++) {
		const __u8 *ext;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT)
			break;
		ext = tg_at(p, off, 8);
		if (!ext)
			return;
		if (next == IPPROTO_FRAGMENT) {
			p->fragment = 1;
			off += 8;
		} else {
			off += (ext[1] + 1) * 8;
		}
		next = ext[0];
		if (off > TG_HEADROOM)
			return;
	}
	p->l4_proto = next;
	p->l4 = off;
}

/* Finds the headers. What is not found stays 0; there is no error, since the
 * tap copies every frame, whatever it holds. */
static __always_inline void tg_parse(struct tg_packet *p)
{
	const struct ethhdr *eth = tg_at(p, 0, sizeof(*eth));
	__u32 off = sizeof(*eth);
	__be16 proto;
	int i;

	p->tags = p->outer_tag;
	p->l4_proto = 0;
	p->fragment = 0;
	p->elsewhere = 0;
	p->l3_proto = 0;
	p->l3 = off;
	p->l4 = 0;
	if (!eth)
		return;
	proto = eth->h_proto;
	for (i = 0; i < TG_MAX_INLINE_TAGS; i++) {
		const __be16 *tag;

		if (!tg_is_vlan(proto))
			break;
		tag = tg_at(p, off, TG_VLAN_LEN);
		if (!tag)
			break;
		proto = tag[1];
		off += TG_VLAN_LEN;
		p->tags++;
	}
	p->l3 = off;
	p->l3_proto = proto;
	if (proto == bpf_htons(ETH_P_IP))
		tg_parse_ipv4(p);
	else if (proto == bpf_htons(ETH_P_IPV6))
		tg_parse_ipv6(p);
	/* What wire.h will look at; other headers may stay where they are. */
	if (p->l4 && !p->fragment && p->l4_proto == IPPROTO_TCP)
		tg_at(p, p->l4, sizeof(struct tcphdr));
	if (p->l4 && !p->fragment && p->l4_proto == IPPROTO_UDP)
		tg_at(p, p->l4, 8);
}

#endif
