/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * abi.h: what the programs share with user space. Go types and the names of
 * reasons are generated from here through BTF; nothing is written twice.
 *
 * Integers are in host byte order and addresses in network byte order. Every
 * struct is padded by hand, so that its layout is the same everywhere.
 */
#ifndef TG_ABI_H
#define TG_ABI_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Version of everything that is pinned. A binary refuses state of another one. */
#define TG_LAYOUT 4

#define TG_MAX_MIRRORS 64  /* one bit each in tg_member.mirrors */
#define TG_MAX_TARGETS 256 /* over all mirrors */
#define TG_MAX_MEMBERS 256 /* interfaces with a program of ours; slot 0 counts for none */
#define TG_MAX_COPIES 16   /* copies of one packet on one interface */
#define TG_MAX_NEIGHS 256  /* next hops that are resolved */
#define TG_MAX_NEXTHOPS 1024
#define TG_RECORD_SIZE (256 * 1024)

enum tg_role {
	TG_ROLE_NONE = 0,
	TG_ROLE_EXTERNAL,
	TG_ROLE_INTERNAL,
	TG_ROLE_DMZ,
	TG_ROLE_MGMT,
};

enum tg_direction {
	TG_INGRESS = 0,
	TG_EGRESS,
	TG_DIRECTIONS,
};

/* Why a packet that a mirror wanted did not become a copy on the sensor's link. */
enum tg_skip {
	TG_SKIP_UNRESOLVED = 0, /* no MAC for the next hop, or it stopped answering: not cloned */
	TG_SKIP_TOO_BIG,	/* larger than the MTU of the sensor's interface: not cloned */
	TG_SKIP_CLONE_ERROR, /* the kernel refused the clone, or finishing it: no such interface, no
				memory */
	TG_SKIP_UNDELIVERED, /* no delivery program of ours ran on the sensor's interface */
	TG_SKIP_REASONS,
};

/* Why a program ended as it did; counted for each interface and direction. */
enum tg_reason {
	TG_PASS_NOT_MEMBER = 0,	    /* interface outside the active generation */
	TG_PASS_OWN_COPY,	    /* a copy of ours on its way: never copied again */
	TG_PASS_NOT_TAPPED,	    /* a member that no mirror covers */
	TG_PASS_TAPPED,		    /* looked at by every mirror of the interface */
	TG_PASS_HOST,		    /* dmz egress: not a copy, the gateway's own or routed */
	TG_PASS_DELIVERED,	    /* dmz egress: a copy, handed to the link */
	TG_PASS_ASKED,		    /* dmz egress: our own neighbour question */
	TG_DROP_COPY_FAILED,	    /* dmz egress: a copy or question that could not be finished */
	TG_PASS_NEIGHBOUR_ANSWER,   /* dmz ingress: an answer to us */
	TG_PASS_NEIGHBOUR_QUESTION, /* dmz ingress: a question for us */
	TG_DROP_NEIGHBOUR_LEARNED,  /* dmz ingress: an announcement, learned and dropped */
	TG_DROP_FROM_DMZ,	    /* dmz ingress: everything else */
	/* The gateway. "Taken" packets are translated and admitted. */
	TG_PASS_FLOW,	     /* belongs to a flow, translated where it has a translation */
	TG_PASS_NEW_FLOW,    /* made a flow */
	TG_PASS_ALLOWED,     /* between zones that need no flow, or accepted without one */
	TG_PASS_TO_HOST,     /* external or mgmt ingress: no flow, left to the host */
	TG_PASS_ICMP_ERROR,  /* about a flow, translated */
	TG_PASS_FRAGMENT,    /* a later fragment of a known packet */
	TG_PASS_REASSEMBLED, /* handed to the kernel to be put in order */
	TG_PASS_HAIRPIN,     /* turned round to another internal host */
	TG_PASS_FAST,	     /* of a flow, past the stack: ingress redirects, egress only copies */
	TG_DROP_POLICY,	     /* a policy says so */
	TG_DROP_ZONE,	     /* the zones' defaults say so */
	TG_DROP_SPOOFED,     /* a source that its zone does not have */
	TG_DROP_UNSOLICITED, /* from outside to a mapping that does not admit it */
	TG_DROP_SILENT_SYN,  /* from outside to a port of ours that nobody has: RFC 5382 REQ-4 */
	TG_DROP_NO_FLOW,     /* mid-stream TCP or an ICMP error of no flow */
	TG_DROP_TABLE_FULL,  /* no room, or the host's share is used up */
	TG_DROP_NO_PORT,     /* no outside port left */
	TG_DROP_RATE,	     /* limit of a forward */
	TG_DROP_FRAGMENT,    /* a later fragment of an unknown packet */
	TG_DROP_MALFORMED,   /* headers that contradict themselves, bad inner checksum */
	TG_DROP_BUSY,	     /* lost a race with the end of a flow: the sender tries again */
	TG_DROP_ERROR,	     /* the kernel refused a rewrite or redirect */
	TG_REASONS,
};

/* How a target's frame is finished. */
enum tg_target_kind {
	TG_TARGET_NONE = 0,
	TG_TARGET_VIA4,	  /* MACs of the dmz interface and of an IPv4 next hop */
	TG_TARGET_VIA6,	  /* the same for IPv6 */
	TG_TARGET_L2,	  /* frame as it is */
	TG_TARGET_L2_MAC, /* frame as it is but for the destination MAC */
};

/* Enums that stand in no struct of a map: in a variable, so that BTF has them. */
struct tg_enums {
	enum tg_direction direction;
	enum tg_skip skip;
	enum tg_reason reason;
};

/* Packets as on the wire (a GSO packet counts its segments); bytes of the
 * original frame without FCS, with VLAN tags. */
struct tg_count {
	__u64 packets;
	__u64 bytes;
};

/* matched = copied + sum(skipped), in packets and bytes. */
struct tg_ledger {
	struct tg_count matched;
	struct tg_count copied;
	struct tg_count skipped[TG_SKIP_REASONS];
	struct tg_count refused; /* within copied; the link's own units: skbs and their bytes */
};

/* Of one interface and direction. */
struct tg_member_count {
	struct tg_count seen;
	__u64 reasons[TG_REASONS]; /* skbs */
	__u64 duplicates; /* packets that a mirror passed over, since it copied them where they came
			     in */
};

/* One copy to make: an entry of tg_member, with all that the hot path needs.
 * Entries of a mirror are neighbours. */
struct tg_copy {
	__u32 ifindex; /* of the dmz interface */
	__u32 mtu;     /* of it: when applied, or as the kernel last said */
	__u32 tick;    /* of the kernel's clock when MTU and next hop were last looked at */
	__u16 target;  /* index into targets and target ledgers */
	__u16 neigh;   /* via: index into tg_neighs */
	__u8 mirror;   /* index into mirror ledgers; bit in tg_member.mirrors */
	__u8 last;     /* 1: last entry of this mirror */
	__u8 kind;     /* enum tg_target_kind */
	__u8 slot;     /* counters of the dmz interface */
	__u8 dmac[6];  /* l2 with a fixed destination */
	__u8 smac[6];  /* via: of the dmz interface */
};

/* One interface of the active generation, by ifindex. */
struct tg_member {
	enum tg_role role;
	__u32 slot;    /* index of its counters */
	__u64 mirrors; /* mirrors that tap it */
	__u32 ncopies;
	__u8 zone;    /* number of its zone */
	__u8 gateway; /* 1: zones are judged and flows translated here */
	__u8 pad[2];
	struct tg_copy copies[TG_MAX_COPIES];
};

/* One target: what a question for its next hop needs. Addresses are IPv6 or
 * IPv4-mapped IPv6. */
struct tg_target {
	enum tg_target_kind kind;
	__u32 ifindex;
	__u32 neigh;
	__u8 smac[6];
	__u8 pad[2];
	__u8 source[16];  /* ours */
	__u8 nexthop[16]; /* the sensor, or the router before it */
};

/* What dmz ingress must know of an address. */
enum tg_nexthop_kind {
	TG_NEXTHOP_OURS = 1, /* an address of the dmz interface: questions for it pass */
	TG_NEXTHOP_SENSOR,   /* a next hop: answers are learned into tg_neighs[neigh] */
};

struct tg_nexthop_key {
	__u32 ifindex;
	__u8 address[16];
};

struct tg_nexthop {
	enum tg_nexthop_kind kind;
	__u32 neigh;
};

#define TG_MAC_VALID (1ULL << 48)

/* One next hop's MAC, learned by dmz ingress, asked for while copies flow. */
struct tg_neigh {
	__u64 mac;	 /* 48 bits, first byte lowest, and TG_MAC_VALID: one word, so never torn */
	__u64 confirmed; /* boot time, ns, of the last answer */
	__u64 asked;	 /* boot time, ns, of the last question */
	__u64 asks;	 /* questions handed to the link */
	__u64 refused;	 /* of these: not taken by it */
	__u64 changes;	 /* times the MAC became another one */
	__u32 unanswered; /* questions that the link took, since the last answer */
	struct bpf_spin_lock lock;
};

/*
 * The control word, read once per packet: which generation is in force.
 * bit 0: active slot; bit 1: fallback slot; bits 2..63: deadline, boot time in
 * units of 4 ns, 0 for none. Once it has passed, the fallback slot is in force.
 */
#define TG_CONTROL_ACTIVE 1ULL
#define TG_CONTROL_FALLBACK 2ULL
#define TG_CONTROL_DEADLINE(w) ((w) & ~3ULL)

/* Version of what one program hands to the next with a packet (marks, cb, tc_index and
 * its tags), and of what it leaves in tg_scratch for its next run. "tapgate upgrade" has
 * programs of two builds side by side for a moment: with one number they understand each
 * other. What is pinned has TG_LAYOUT. */
#define TG_HANDOVER 1

#endif
