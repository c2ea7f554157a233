/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * compat.h: what differs between kernels. The loader probes each feature and
 * sets the constant before the load; the verifier then removes the branch that
 * is not taken, so that one object loads from 5.10 on.
 */
#ifndef TG_COMPAT_H
#define TG_COMPAT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* bpf_check_mtu, 5.12: tells the MTU of an interface as it is now. */
const volatile __u8 tg_have_check_mtu = 0;

/* At random in each load: nobody else can put it into cb. */
const volatile __u32 tg_secret = 0;

/* Keeps the compiler from merging or moving what the verifier must see apart. */
#define tg_barrier(x) asm volatile("" : "+r"(x))

#endif
