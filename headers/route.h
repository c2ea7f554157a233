/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * route.h: what the kernel's routing says of a packet that came in by skb->ifindex.
 */
#ifndef TG_ROUTE_H
#define TG_ROUTE_H

#include "maps_gate.h"
#include "tuple.h"

#define TG_FAMILY_IPV4 2
#define TG_FAMILY_IPV6 10

/* Fills fib, which holds 0 but for what the caller has set beside addresses and
 * interface. Returns BPF_FIB_LKUP_RET_*, or negative. */
static __always_inline long tg_route(struct __sk_buff *skb, const struct tg_gate *g,
				     const __u8 *src, const __u8 *dst, struct bpf_fib_lookup *fib)
{
	fib->ifindex = skb->ifindex;
	if (g->family == 4) {
		fib->family = TG_FAMILY_IPV4;
		fib->ipv4_src = *(const __u32 *)(src + 12);
		fib->ipv4_dst = *(const __u32 *)(dst + 12);
	} else {
		fib->family = TG_FAMILY_IPV6;
		tg_copy_addr((__u8 *)fib->ipv6_src, src);
		tg_copy_addr((__u8 *)fib->ipv6_dst, dst);
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

#endif
