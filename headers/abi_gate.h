/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * abi_gate.h: what the gateway shares with user space: rules of a generation,
 * and flows, which stand outside the generations. Conventions as in abi.h.
 * Addresses are IPv6 or IPv4-mapped IPv6, 16 bytes; ports in network byte order
 * where the type says so.
 */
#ifndef TG_ABI_GATE_H
#define TG_ABI_GATE_H

#include <linux/bpf.h>
#include <linux/types.h>
#include "abi.h"

#define TG_MAX_RULES 65536   /* entries of the rule trie in one generation */
#define TG_MAX_POOL 4096     /* outside addresses of all pools */
#define TG_MAX_POLICIES 2048 /* bits of a policy set */
#define TG_MAX_SETS 8192     /* policy sets of one generation */
#define TG_MAX_OURS 4096     /* addresses that are ours on external interfaces */
#define TG_MAX_HOSTS 65536   /* inside hosts with an account of their own */
#define TG_MAX_COUNTED 16384 /* policies, forwards and masquerade rules with hit counters */
#define TG_DEFAULT_FLOWS 262144

/* Endpoints and protocol of a packet. An ICMP query's id is the port of the side
 * that asks, and 0 that of the side that answers. Protocols without ports: 0. */
struct tg_tuple {
	__u8 src[16];
	__u8 dst[16];
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

/* ---- Rules: one trie for each generation, key below, longest prefix wins. ---- */

/* "family" is 4 or 6 in place of the protocol: ::/0 must not mean IPv4. */
enum tg_rule_kind {
	TG_RULE_NONE = 0,
	TG_RULE_FORWARD,     /* a: external zone; proto; port prefix; addr: outside address and b 0,
			       or any address of ours in the zone: addr 0 and b the family */
	TG_RULE_MASQUERADE,  /* a: from zone, b: to zone; family; addr: source prefix */
	TG_RULE_EXCLUDE,     /* a, b 0; family; addr: destination prefix */
	TG_RULE_SOURCE,	     /* a, b: list number (low, high byte); family; addr: source prefix */
	TG_RULE_INSIDE,	     /* a: internal zone; b 0; family; addr: source prefix it may use */
	TG_RULE_POLICY_PAIR, /* a: from zone, b: to zone -> set */
	TG_RULE_POLICY_PROTO, /* a, b 0; proto, or prefix that ends before it -> set */
	TG_RULE_POLICY_SRC,   /* a, b 0; family; addr prefix -> set */
	TG_RULE_POLICY_DST,   /* a, b 0; family; addr prefix -> set */
	TG_RULE_POLICY_PORT,  /* a, b 0; proto; addr 0; destination port prefix, or prefix that ends
				before proto -> set */
};

/* prefixlen counts bits behind it: 32 up to and with proto, 160 with addr, 176 with port. */
struct tg_rule_key {
	__u32 prefixlen;
	__u8 kind; /* enum tg_rule_kind */
	__u8 a;
	__u8 b;
	__u8 proto; /* or family */
	__u8 addr[16];
	__be16 port;
	__u8 pad[2];
};

#define TG_RULE_BITS_ZONES 24
#define TG_RULE_BITS_PROTO 32
#define TG_RULE_BITS_ADDR 160
#define TG_RULE_BITS_PORT 176

#define TG_MASQ_EIF 1u	     /* endpoint-independent filtering */
#define TG_MASQ_OWN_ADDR 2u  /* the address of the interface that the packet leaves by */
#define TG_MASQ_CLAMP_MSS 4u /* also for forwards */

struct tg_rule {
	__u32 number;	   /* hit counter; for policies: index of the set */
	__u32 list;	   /* FORWARD: TG_RULE_SOURCE list that the remote must be in, 0 for any */
	__u8 addr[16];	   /* FORWARD: the inside address */
	__u16 first;	   /* FORWARD: first port of the range asked for, host order */
	__u16 to;	   /* FORWARD: the inside port that this first one becomes, host order */
	__u16 flags;	   /* TG_MASQ_* */
	__u16 zone;	   /* FORWARD: of the inside address */
	__u32 rate;	   /* FORWARD: new flows a second in all, 0 for no limit */
	__u32 rate_remote; /* FORWARD: the same for each remote address */
	__u32 pool;	   /* MASQUERADE: first index into the pool */
	__u32 pool_count;  /* 0 with TG_MASQ_OWN_ADDR */
	__u16 lo[2];	   /* MASQUERADE: port ranges, host order, both ends within; hi 0: none */
	__u16 hi[2];
	/* MASQUERADE: bit p % 64 is set if a forward may have outside port p */
	__u64 forwarded;
};

/* Policies as bits, in the order of the file: the first set bit of
 * PAIR & PROTO & SRC & DST & PORT is the policy that counts. */
#define TG_SET_WORDS (TG_MAX_POLICIES / 64)
#define TG_SET_ACCEPT 0	 /* index: the policies that accept; the others drop */
#define TG_SET_LOG 1	 /* index: the policies that log */
#define TG_SET_NUMBERS 2 /* hit counters: TG_SET_NUMBERS_EACH numbers of 16 bits in each set */
#define TG_SET_NUMBERS_EACH (TG_SET_WORDS * 4)
#define TG_SET_FIRST (TG_SET_NUMBERS + TG_MAX_POLICIES / TG_SET_NUMBERS_EACH)

struct tg_policy_set {
	__u64 bits[TG_SET_WORDS];
};

/* Of one generation: element of an array by slot, so it changes with it. */
enum tg_timer {
	TG_TIMER_PROVISIONAL = 0, /* admitted, and not yet seen to leave on the other side */
	TG_TIMER_TCP_OPENING,	  /* RFC 5382 REQ-5: 4 minutes at least */
	TG_TIMER_TCP_ESTABLISHED, /* RFC 5382 REQ-5: 2 hours 4 minutes at least */
	TG_TIMER_TCP_CLOSING,	  /* after both FINs or an RST: 4 minutes at least */
	TG_TIMER_UDP_UNANSWERED,  /* RFC 4787 REQ-5: 2 minutes at least */
	TG_TIMER_UDP,		  /* 5 minutes recommended */
	TG_TIMER_ICMP,		  /* RFC 5508 REQ-2: 60 s at least */
	TG_TIMER_OTHER,
	TG_TIMER_LINGER, /* a mapping without flows keeps its port: RFC 6888 REQ-8, 120 s */
	TG_TIMERS,
};

struct tg_setting {
	__u32 gateway; /* 1: judge zones and translate; 0: tap only */
	__u32 max_flows;
	__u32 max_fresh; /* flows that were never answered: half of them */
	__u32 max_per_host;
	__u32 max_forwarded; /* fresh flows that forwards admitted: an eighth */
	/* What one host may have, or end at a time to make room for its own. Each of
	 * these has a port, and half of the ports must be left to the others. */
	__u32 max_fresh_host;
	__u32 max_recycled;
	__u32 fast;   /* 1: known flows pass by the stack; 0: the kernel forwards every packet */
	__u32 serial; /* another one in each generation that was ever in force */
	__u32 pad;
	__u64 adopt_until; /* boot time, ns: until then mid-stream TCP from inside makes flows */
	__u64 timers[TG_TIMERS]; /* ns */
};

/* ---- Addresses, outside the generations: the agent follows them. ---- */

struct tg_outside_key {
	__u32 ifindex;
	__u32 family; /* 4 or 6 */
};

struct tg_outside_addr {
	__u8 addr[16];
	__u32 mtu; /* of the interface: what an MSS is clamped to */
	__u32 pad;
};

struct tg_ours_key {
	__u8 addr[16];
};

struct tg_our_addr {
	__u32 ifindex;
	__u8 zone;
	__u8 assigned; /* 1: the interface has it; 0: of a pool only */
	__u8 pad[2];
};

/* ---- Flows ---- */

/* A session is two elements of one map: the inside half, by the packets of the
 * inside host as it sends them, and the outside half, by those of the remote as
 * they arrive. A packet needs only its own half. */
enum tg_half {
	TG_HALF_INSIDE = 0,
	TG_HALF_OUTSIDE, /* the anchor: its lock and state are the pair's */
};

enum tg_life {
	TG_LIFE_NEW = 0, /* being made: as good as live */
	TG_LIFE_LIVE,
	TG_LIFE_DYING,	 /* expired; a packet brings it back */
	TG_LIFE_FLUSHED, /* by order: absent for packets, taken for claims */
	TG_LIFE_DELETED, /* about to leave the map: absent */
};

enum tg_origin {
	TG_ORIGIN_ALLOWED = 0, /* from inside, without translation */
	TG_ORIGIN_MASQUERADE,
	TG_ORIGIN_FORWARD,
	TG_ORIGIN_HAIRPIN,
	TG_ORIGIN_EIF,	   /* from outside, through a mapping with endpoint-independent filtering */
	TG_ORIGIN_ADOPTED, /* mid-stream, or from the kernel's conntrack */
};

/* What TCP flags a half has seen. */
#define TG_SAW_SYN 1
#define TG_SAW_FIN 2
#define TG_SAW_RST 4
#define TG_SAW_ACK 8 /* without SYN */

/* Whether a flow has a place in the table, and at whose account. */
enum tg_counted {
	TG_COUNTED_NOT = 0, /* it has left its place */
	TG_COUNTED_OWN,
	TG_COUNTED_SHARED, /* that of hosts for which there was no account: address 0 */
};

#define TG_FLOW_INITIATOR 1u /* this half's sender began */
#define TG_FLOW_LEFT 2u	     /* seen to leave on the other side */
#define TG_FLOW_CLAMP 4u     /* SYNs have their MSS clamped */
#define TG_FLOW_STILLBORN 8u /* anchor: its making has failed, so it has no start and no end */

/* Where a flow's remote is permitted: anchor only. */
enum tg_bound {
	TG_BOUND_NOT = 0, /* it has no binding */
	TG_BOUND_FIRST,	  /* in the binding itself */
	TG_BOUND_REMOTE,  /* in tg_remotes */
};

/* Words of tg_session.way, each with the same number of 16 bits on top, so that a
 * reader knows whether all are of one time. */
enum tg_way {
	TG_WAY_DMAC = 0, /* 48 bits */
	TG_WAY_SMAC,
	TG_WAY_OUT,   /* interface, 32 bits; MTU, 16 bits */
	TG_WAY_UNTIL, /* when it ends, boot time in units of 2^20 ns, 32 bits; 15 bits of
			 tg_setting.serial; whether mirrors of the inside interface take it */
	TG_WAY_WORDS,
};

/* Times that need not be exact: boot time in units of 2^24 ns, 17 ms. It comes round after
 * two years, so ages are compared signed. */
#define TG_COARSE(ns) ((__u32)((ns) >> 24))
#define TG_COARSE_AGE(now, then) ((__s32)(TG_COARSE(now) - (then)))

/* What each packet of a known flow reads or writes comes first: with many flows the cache
 * lines count. With its key and the kernel's 56 bytes an element has 256: one byte more, and it
 * would take 512. */
struct tg_session {
	struct tg_tuple other; /* key of the other half; turned round it is what this half's
				  packets become */
	__u64 last; /* boot time, ns, of this half's last packet that keeps the flow alive */
	__u64 packets;
	__u64 bytes;
	__u64 copied;		 /* packets that a mirror of the inside interface took */
	__u64 way[TG_WAY_WORDS]; /* of the fast path: see fast.h */
	__u32 stacked; /* TG_COARSE, when a packet last took the stack because one was due */
	__u32 ifindex; /* where the last packet came in that the stack let through; 0: none yet */
	__u32 out;     /* where it left then */
	__u16 whole;   /* length from the network header on that the stack let through */
	__u8 hint;     /* 1: look at the anchor's life before using this half */
	__u8 half;     /* enum tg_half */
	__u8 tcp;      /* TG_SAW_* */
	__u8 flags;    /* TG_FLOW_* */
	__u8 fast;     /* 1: its last packet took the fast path */
	__u8 origin;   /* enum tg_origin */
	__u8 inside_zone;
	__u8 outside_zone;
	__u8 fresh;   /* anchor: counted as never answered */
	__u8 counted; /* anchor: enum tg_counted */
	__u8 bound;   /* anchor: enum tg_bound */
	__u8 life;    /* anchor: enum tg_life */
	__u16 rule;   /* number of the policy, forward or masquerade rule + 1, 0 for none */
	struct bpf_spin_lock lock;
	__u64 reset;   /* TCP: boot time, ns, of the last RST */
	__u64 since;   /* anchor: boot time, ns, of the last change of life */
	__u32 created; /* TG_COARSE; inside half: of the last connection with its ports */
	__u32 looked;  /* anchor: TG_COARSE, when a queue last gave it out and took it back */
};

/* A binding is two elements too: inside endpoint -> outside endpoint and back. */
struct tg_endpoint {
	__u8 addr[16];
	__be16 port;
	__u8 proto;
	__u8 half;  /* enum tg_half: which side's endpoint this is */
	__u8 scope; /* external zone */
	__u8 pad[3];
};

struct tg_binding {
	struct tg_endpoint other;
	struct tg_endpoint self; /* readers compare it: elements are used again at once */
	__u32 rule;
	__u32 flags;	 /* TG_MASQ_EIF */
	__u64 since;	 /* anchor: boot time when the last session went */
	__u32 sessions;	 /* anchor */
	__u32 life;	 /* anchor: enum tg_life */
	__u32 queued;	 /* anchor: 1 while it stands in the queue of idle bindings */
	__u32 remotes;	 /* anchor: sessions that permit `remote` */
	__u8 remote[16]; /* anchor: a remote that the inside endpoint has sent to: most have one */
	struct bpf_spin_lock lock;
	__u32 pad;
};

/* Address-dependent filtering (RFC 4787 REQ-8): further remotes that the inside
 * endpoint behind an outside endpoint has sent to. */
struct tg_remote_key {
	__u8 outside[16];
	__u8 remote[16];
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

struct tg_remote {
	__u32 sessions;
	__u32 dead;
	struct bpf_spin_lock lock;
	__u32 pad;
};

struct tg_host_key {
	__u8 addr[16];
};

struct tg_host {
	__u32 flows;
	__u32 fresh;   /* of these: never answered */
	__u64 refused; /* new flows beyond the limit */
	struct bpf_spin_lock lock;
	__u32 dead; /* 1: about to leave the map */
};

/* The whole table's account. */
struct tg_table_state {
	__u32 flows;
	__u32 fresh;
	__u32 forwarded; /* fresh ones that forwards admitted */
	__u32 bindings;
	__u64 refused[4]; /* enum tg_refusal */
	__u64 created;
	__u64 expired;
	struct bpf_spin_lock lock;
	__u32 leaving;		 /* not in flows: ended to make room, elements go within seconds */
	__u32 leaving_forwarded; /* of these: that forwards admitted */
	__u32 pad;
};

enum tg_refusal {
	TG_REFUSED_FULL = 0, /* the table */
	TG_REFUSED_HOST,     /* the host's share */
	TG_REFUSED_PORTS,    /* no port left */
	TG_REFUSED_RATE,     /* limit of a forward */
};

/* Hit counters of rules, by number. */
struct tg_hit {
	__u64 flows; /* new flows that the rule decided on */
	__u64 last;  /* boot time, ns */
};

/* What tapgate_open is asked to make: a flow that another gateway has had. */
struct tg_order {
	struct tg_tuple inside; /* the halves' keys */
	struct tg_tuple outside;
	__u32 number; /* of its rule + 1 */
	__u8 inside_zone;
	__u8 outside_zone;
	__u8 established;  /* 1: answered */
	__u8 from_outside; /* 1: the outside began */
	__u8 translated;   /* 1: the inside address is hidden behind a port that must be claimed */
	__u8 generation;   /* whose settings apply: that which is about to be in force */
	__u8 pad[6];
};

/* A denied packet of a policy with log: true. */
struct tg_event {
	__u64 when; /* boot time, ns */
	struct tg_tuple tuple;
	__u32 ifindex_in;
	__u32 ifindex_out;
	__u32 reason; /* enum tg_reason */
	__u32 policy; /* number + 1, 0: the zones' default */
};

/* The way to the kernel's reassembly: ifindex 0 where there is none. */
struct tg_reassembly_link {
	__u32 ifindex; /* of our end of the veth pair */
	__u8 mac[6];   /* of the other end */
	__u8 pad[2];
};

#endif
