/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * question.h: turns a clone of any packet into a neighbour question: an ARP
 * request (RFC 826) or a neighbour solicitation (RFC 4861 section 4.3).
 */
#ifndef TG_QUESTION_H
#define TG_QUESTION_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

/* linux/if_arp.h draws in the C library, which has no place here. */
#define TG_ARP_ETHERNET 1
#define TG_ARP_REQUEST 1
#define TG_ARP_REPLY 2

struct tg_arp {
	__be16 htype, ptype;
	__u8 hlen, plen;
	__be16 op;
	__u8 sha[6], spa[4], tha[6], tpa[4];
} __attribute__((packed));

/* Neighbour solicitation with the option that names the sender's MAC. */
struct tg_solicit {
	__u8 type, code;
	__be16 sum;
	__be32 reserved;
	__u8 target[16];
	__u8 opt_type, opt_len, opt_mac[6];
} __attribute__((packed));

struct tg_ip6 {
	__be32 flow;
	__be16 payload;
	__u8 next, hops;
	__u8 saddr[16], daddr[16];
} __attribute__((packed));

#define TG_ND_SOLICIT 135
#define TG_ND_ADVERT 136
#define TG_ND_SOURCE_MAC 1
#define TG_ND_TARGET_MAC 2

/*
 * Makes room for a frame of `len` bytes and zeroes it. A checksum that is still
 * to be completed (CHECKSUM_PARTIAL) would be written into the question: its
 * place moves out of the way when the frame starts `shift` bytes earlier, and
 * the kernel lets nothing be cut off before that place, so a longer frame is
 * tried if a short one is refused. What follows the question is Ethernet padding.
 */
static __always_inline int tg_question_room(struct __sk_buff *skb, __u32 shift, __u32 len)
{
	__u8 empty[32] = {};
	__u32 off;
	int i;

	/* Tags of the copied packet are not the question's. */
	for (i = 0; i < 3; i++) {
		if (!skb->vlan_present)
			break;
		if (bpf_skb_vlan_pop(skb))
			return -1;
	}
	if (bpf_skb_change_tail(skb, 96, 0) && bpf_skb_change_tail(skb, 192, 0))
		return -1;
	if (bpf_skb_change_head(skb, shift, 0))
		return -1;
	for (off = 0; off < 256; off += sizeof(empty)) {
		if (off >= skb->len)
			break;
		if (off + sizeof(empty) > skb->len) {
			/* The length is a multiple of 32 by the numbers above. */
			return -1;
		}
		if (bpf_skb_store_bytes(skb, off, empty, sizeof(empty), 0))
			return -1;
	}
	return skb->len >= len ? 0 : -1;
}

static __always_inline int tg_question_arp(struct __sk_buff *skb, const struct tg_target *t)
{
	struct {
		struct ethhdr eth;
		struct tg_arp arp;
	} __attribute__((packed)) q = {};

	__builtin_memset(q.eth.h_dest, 0xff, 6);
	__builtin_memcpy(q.eth.h_source, t->smac, 6);
	q.eth.h_proto = bpf_htons(ETH_P_ARP);
	q.arp.htype = bpf_htons(TG_ARP_ETHERNET);
	q.arp.ptype = bpf_htons(ETH_P_IP);
	q.arp.hlen = 6;
	q.arp.plen = 4;
	q.arp.op = bpf_htons(TG_ARP_REQUEST);
	__builtin_memcpy(q.arp.sha, t->smac, 6);
	__builtin_memcpy(q.arp.spa, t->source + 12, 4);
	__builtin_memcpy(q.arp.tpa, t->nexthop + 12, 4);

	if (tg_question_room(skb, 32, sizeof(q)))
		return -1;
	return bpf_skb_store_bytes(skb, 0, &q, sizeof(q), 0);
}

static __always_inline __sum16 tg_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

static __always_inline int tg_question_nd(struct __sk_buff *skb, const struct tg_target *t)
{
	struct {
		__u16 pad; /* aligns what bpf_csum_diff reads */
		struct ethhdr eth;
		struct tg_ip6 ip;
		struct tg_solicit nd;
	} __attribute__((packed, aligned(8))) q = {};
	/* Solicited-node group of the target, RFC 4291 section 2.7.1. */
	const __u8 *n = t->nexthop;
	__u32 sum;

	q.eth.h_dest[0] = q.eth.h_dest[1] = 0x33;
	q.eth.h_dest[2] = 0xff;
	__builtin_memcpy(q.eth.h_dest + 3, n + 13, 3);
	__builtin_memcpy(q.eth.h_source, t->smac, 6);
	q.eth.h_proto = bpf_htons(ETH_P_IPV6);
	q.ip.payload = bpf_htons(sizeof(q.nd));
	q.ip.next = IPPROTO_ICMPV6;
	q.ip.hops = 255;
	__builtin_memcpy(q.ip.saddr, t->source, 16);
	q.ip.daddr[0] = 0xff;
	q.ip.daddr[1] = 0x02;
	q.ip.daddr[11] = 0x01;
	q.ip.daddr[12] = 0xff;
	__builtin_memcpy(q.ip.daddr + 13, n + 13, 3);
	q.ip.flow = bpf_htonl(0x60000000);
	q.nd.type = TG_ND_SOLICIT;
	__builtin_memcpy(q.nd.target, n, 16);
	q.nd.opt_type = TG_ND_SOURCE_MAC;
	q.nd.opt_len = 1;
	__builtin_memcpy(q.nd.opt_mac, t->smac, 6);
	/* Pseudo header (RFC 8200 section 8.1): the addresses, length and next header. */
	sum = bpf_csum_diff(NULL, 0, (__be32 *)q.ip.saddr, 32 + sizeof(q.nd),
			    bpf_htonl(sizeof(q.nd) + IPPROTO_ICMPV6));
	q.nd.sum = tg_fold(sum);

	if (tg_question_room(skb, 64, sizeof(q) - sizeof(q.pad)))
		return -1;
	return bpf_skb_store_bytes(skb, 0, &q.eth, sizeof(q) - sizeof(q.pad), 0);
}

static __always_inline int tg_question(struct __sk_buff *skb, const struct tg_target *t)
{
	if (t->kind == TG_TARGET_VIA4)
		return tg_question_arp(skb, t);
	if (t->kind == TG_TARGET_VIA6)
		return tg_question_nd(skb, t);
	return -1;
}

#endif
