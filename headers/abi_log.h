/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * abi_log.h: what programs tell user space of translations. Conventions as in
 * abi_gate.h.
 */
#ifndef TG_ABI_LOG_H
#define TG_ABI_LOG_H

#include "abi_gate.h"

enum tg_log_what {
	TG_LOG_START = 1,
	TG_LOG_END,
};

struct tg_log_start {
	__u64 when;		/* boot time, ns */
	struct tg_tuple inside; /* the halves' keys */
	struct tg_tuple outside;
	__u32 created; /* of the flow, TG_COARSE */
	__u32 rule;    /* number + 1, 0 for none */
	__u8 what;     /* enum tg_log_what */
	__u8 origin;
	__u8 inside_zone;
	__u8 outside_zone;
	__u32 pad;
};

struct tg_log_end {
	struct tg_log_start flow;
	__u64 last;	   /* boot time, ns, of its last packet; 0: none */
	__u64 packets_out; /* from inside */
	__u64 bytes_out;
	__u64 packets_in;
	__u64 bytes_in;
};

struct tg_lost {
	__u64 starts;
	__u64 ends;
};

/* Elements of tg_log_lost: what programs could not tell, and how much of that user
 * space has written down. */
#define TG_LOST_BY_PROGRAMS 0
#define TG_LOST_TOLD 1
#define TG_LOST_ACCOUNTS 2

#endif
