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

/*
 * Read from memory again what the verifier should not follow: with constants it
 * would check what comes next once for every combination of tags and extension
 * headers. Such memory must be a map's, since it follows the stack as well.
 */
#define TG_FORGET(x) (*(volatile typeof(x) *)&(x))

/* The part of a packet that can be read directly. */
struct tg_span {
	void *start;
	void *end;
};

struct tg_packet {
	/* filled by the context header */
	__u32 len;	/* without the tag that the kernel keeps beside the frame */
	__u16 gso_size; /* 0: not a GSO packet */
	__u16 gso_segs; /* 0 where the kernel does not know */
	__u8 outer_tag; /* 1: a VLAN tag beside the frame */

	/* filled by tg_parse */
	__u8 elsewhere;	 /* 1: a header lies in the frame, but outside the span */
	__u8 l4_proto;	 /* IPPROTO_*, with l4 */
	__u8 fragment;	 /* 1: one of several; ports are there in the first only */
	__be16 l3_proto; /* EtherType behind the tags */
	__u16 l3;
	__u16 l4;	   /* 0: not found */
	__u16 fragment_at; /* IPv6: of the fragment header; 0: none */
};

/* A header at an offset, or NULL if that much is not there. */
static __always_inline void *tg_at(const struct tg_span *s, struct tg_packet *p, __u32 off,
				   __u32 len)
{
	__u64 at = off;
	void *h;

	if (off > TG_HEADROOM)
		return NULL;
	/* Kernels before 6.8 forget the bound when the compiler compares one
	 * register and adds another; this one it cannot know to be needless. */
	asm volatile("%0 &= 0xff" : "+r"(at));
	h = s->start + at;
	if (h + len > s->end) {
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

static __always_inline void tg_parse_ipv4(const struct tg_span *s, struct tg_packet *p)
{
	__u32 l3 = TG_FORGET(p->l3), ihl;
	const struct iphdr *ip = tg_at(s, p, l3, sizeof(*ip));

	if (!ip || ip->version != 4)
		return;
	ihl = ip->ihl * 4;
	if (ihl < sizeof(*ip))
		return;
	p->fragment = (ip->frag_off & bpf_htons(0x3fff)) != 0;
	p->l4_proto = ip->protocol;
	p->l4 = l3 + ihl;
}

static __always_inline void tg_parse_ipv6(const struct tg_span *s, struct tg_packet *p)
{
	__u32 off = TG_FORGET(p->l3);
	const struct ipv6hdr *ip = tg_at(s, p, off, sizeof(*ip));
	__u8 next;
	int i;

	if (!ip || ip->version != 6)
		return;
	off += sizeof(*ip);
	next = ip->nexthdr;
	for (i = 0; i < TG_MAX_EXTENSIONS; i++) {
		const __u8 *ext;

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS &&
		    next != IPPROTO_FRAGMENT)
			break;
		ext = tg_at(s, p, off, 8);
		if (!ext) {
			p->l4 = 0;
			return;
		}
		if (next == IPPROTO_FRAGMENT) {
			p->fragment = 1;
			p->fragment_at = off;
			p->l4 = off + 8;
			/* What follows in a later fragment is not a header. */
			if (*(const __be16 *)(ext + 2) & bpf_htons(0xfff8)) {
				p->l4_proto = ext[0];
				return;
			}
		} else {
			p->l4 = off + (ext[1] + 1) * 8;
		}
		next = ext[0];
		off = TG_FORGET(p->l4);
	}
	/* More of them than anybody needs: what they hide is not guessed at. */
	if (next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	    next == IPPROTO_FRAGMENT) {
		p->l4 = 0;
		return;
	}
	p->l4_proto = next;
	p->l4 = off;
}

/* Finds the headers. What is not found stays 0; there is no error, since the
 * tap copies every frame, whatever it holds. p must be memory of a map. */
static __always_inline void tg_parse(const struct tg_span *s, struct tg_packet *p)
{
	const struct ethhdr *eth;
	__be16 proto;
	int i;

	p->elsewhere = 0;
	p->l4_proto = 0;
	p->fragment = 0;
	p->fragment_at = 0;
	p->l3_proto = 0;
	p->l3 = sizeof(*eth);
	p->l4 = 0;
	eth = tg_at(s, p, 0, sizeof(*eth));
	if (!eth)
		return;
	proto = eth->h_proto;
	for (i = 0; i < TG_MAX_INLINE_TAGS; i++) {
		__u32 off = TG_FORGET(p->l3);
		const __be16 *tag;

		if (!tg_is_vlan(proto))
			break;
		tag = tg_at(s, p, off, TG_VLAN_LEN);
		if (!tag)
			break;
		proto = tag[1];
		p->l3 = off + TG_VLAN_LEN;
	}
	p->l3_proto = proto;
	if (proto == bpf_htons(ETH_P_IP))
		tg_parse_ipv4(s, p);
	else if (proto == bpf_htons(ETH_P_IPV6))
		tg_parse_ipv6(s, p);
	/* What wire.h will look at; other headers may stay where they are. */
	if (!TG_FORGET(p->l4) || TG_FORGET(p->fragment))
		return;
	if (TG_FORGET(p->l4_proto) == IPPROTO_TCP)
		tg_at(s, p, TG_FORGET(p->l4), sizeof(struct tcphdr));
	else if (TG_FORGET(p->l4_proto) == IPPROTO_UDP)
		tg_at(s, p, TG_FORGET(p->l4), 8);
}

#endif
