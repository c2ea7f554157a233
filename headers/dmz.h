/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * dmz.h: what may come in from the sensor's network: answers to our neighbour
 * questions and questions for our own addresses. Next hops are learned here.
 */
#ifndef TG_DMZ_H
#define TG_DMZ_H

#include "abi.h"
#include "maps.h"
#include "neigh.h"
#include "packet.h"
#include "skb.h"
#include "question.h"

#define TG_HOST_PACKET 0 /* PACKET_HOST of linux/if_packet.h: sent to our MAC */

static __always_inline const struct tg_nexthop *tg_nexthop(__u32 ifindex, const __u8 *addr, int v6)
{
	struct tg_nexthop_key key = {.ifindex = ifindex};

	if (v6) {
		__builtin_memcpy(key.address, addr, 16);
	} else {
		key.address[10] = key.address[11] = 0xff;
		__builtin_memcpy(key.address + 12, addr, 4);
	}
	return bpf_map_lookup_elem(&tg_nexthops, &key);
}

static __always_inline int tg_is_ours(const struct tg_nexthop *h)
{
	return h && h->kind == TG_NEXTHOP_OURS;
}

/* 1: the address is a next hop of ours, and its MAC is now known. */
static __always_inline int tg_learn(__u32 ifindex, const __u8 *addr, int v6, const __u8 *mac)
{
	const struct tg_nexthop *h = tg_nexthop(ifindex, addr, v6);

	if (!h || h->kind != TG_NEXTHOP_SENSOR)
		return 0;
	tg_neigh_confirm(h->neigh, mac);
	return 1;
}

/* Offsets are constants here: tagged frames are not looked at. */
static __always_inline const void *tg_dmz_at(const struct tg_span *f, __u32 off, __u32 len)
{
	return f->start + off + len > f->end ? NULL : f->start + off;
}

static __always_inline enum tg_reason tg_dmz_arp(const struct tg_span *f, __u32 ifindex, int to_us)
{
	const struct tg_arp *arp = tg_dmz_at(f, sizeof(struct ethhdr), sizeof(*arp));
	int learned;

	if (!arp || arp->htype != bpf_htons(TG_ARP_ETHERNET) || arp->ptype != bpf_htons(ETH_P_IP) ||
	    arp->hlen != 6 || arp->plen != 4)
		return TG_DROP_FROM_DMZ;
	learned = tg_learn(ifindex, arp->spa, 0, arp->sha);
	if (tg_is_ours(tg_nexthop(ifindex, arp->tpa, 0))) {
		if (arp->op == bpf_htons(TG_ARP_REQUEST))
			return TG_PASS_NEIGHBOUR_QUESTION;
		if (arp->op == bpf_htons(TG_ARP_REPLY) && to_us)
			return TG_PASS_NEIGHBOUR_ANSWER;
	}
	return learned ? TG_DROP_NEIGHBOUR_LEARNED : TG_DROP_FROM_DMZ;
}

static __always_inline enum tg_reason tg_dmz_nd(const struct tg_span *f, __u32 ifindex, int to_us)
{
	const struct tg_ip6 *ip = tg_dmz_at(f, sizeof(struct ethhdr), sizeof(*ip));
	const struct tg_solicit *nd; /* an advertisement has the same shape */
	int learned = 0;

	/* Hop limit 255: no router has sent it on, RFC 4861 section 6.1. */
	if (!ip || ip->next != IPPROTO_ICMPV6 || ip->hops != 255)
		return TG_DROP_FROM_DMZ;
	nd = tg_dmz_at(f, sizeof(struct ethhdr) + sizeof(*ip), sizeof(*nd));
	if (!nd) {
		/* A question without option: duplicate address detection. */
		nd = tg_dmz_at(f, sizeof(struct ethhdr) + sizeof(*ip), sizeof(*nd) - 8);
		if (nd && nd->type == TG_ND_SOLICIT && nd->code == 0 &&
		    tg_is_ours(tg_nexthop(ifindex, nd->target, 1)))
			return TG_PASS_NEIGHBOUR_QUESTION;
		return TG_DROP_FROM_DMZ;
	}
	if (nd->code != 0)
		return TG_DROP_FROM_DMZ;
	if (nd->type == TG_ND_SOLICIT) {
		if (nd->opt_type == TG_ND_SOURCE_MAC && nd->opt_len == 1)
			learned = tg_learn(ifindex, ip->saddr, 1, nd->opt_mac);
		if (tg_is_ours(tg_nexthop(ifindex, nd->target, 1)))
			return TG_PASS_NEIGHBOUR_QUESTION;
	} else if (nd->type == TG_ND_ADVERT) {
		if (nd->opt_type == TG_ND_TARGET_MAC && nd->opt_len == 1)
			learned = tg_learn(ifindex, nd->target, 1, nd->opt_mac);
		if (to_us && tg_is_ours(tg_nexthop(ifindex, ip->daddr, 1)))
			return TG_PASS_NEIGHBOUR_ANSWER;
	}
	return learned ? TG_DROP_NEIGHBOUR_LEARNED : TG_DROP_FROM_DMZ;
}

/* As much as is looked at: Ethernet, IPv6, neighbour discovery with one option. */
#define TG_DMZ_HEADERS (sizeof(struct ethhdr) + sizeof(struct tg_ip6) + sizeof(struct tg_solicit))

/* Judges a frame from the dmz. Tagged frames are of no network of ours. */
static __always_inline enum tg_reason tg_dmz(struct __sk_buff *skb)
{
	int to_us = skb->pkt_type == TG_HOST_PACKET;
	const struct ethhdr *eth;
	struct tg_span f;

	bpf_skb_pull_data(skb, skb->len < TG_DMZ_HEADERS ? skb->len : TG_DMZ_HEADERS);
	tg_skb_span(skb, &f);
	eth = tg_dmz_at(&f, 0, sizeof(*eth));
	if (!eth || skb->vlan_present)
		return TG_DROP_FROM_DMZ;
	if (eth->h_proto == bpf_htons(ETH_P_ARP))
		return tg_dmz_arp(&f, skb->ifindex, to_us);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return tg_dmz_nd(&f, skb->ifindex, to_us);
	return TG_DROP_FROM_DMZ;
}

#endif
