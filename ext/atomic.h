/* SPDX-License-Identifier: BSD-3-Clause
 * atomic.h - atomic accesses with their memory order in the name.
 */
#ifndef LM_ATOMIC_H
#define LM_ATOMIC_H
#include <stdatomic.h>

#define lm_load_relaxed(p)     atomic_load_explicit((p), memory_order_relaxed)
#define lm_load_acquire(p)     atomic_load_explicit((p), memory_order_acquire)
#define lm_load_seq_cst(p)     atomic_load_explicit((p), memory_order_seq_cst)
#define lm_store_relaxed(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define lm_store_release(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define lm_store_seq_cst(p, v) atomic_store_explicit((p), (v), memory_order_seq_cst)
#define lm_add_relaxed(p, v)   atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define lm_sub_relaxed(p, v)   atomic_fetch_sub_explicit((p), (v), memory_order_relaxed)
#define lm_add_seq_cst(p, v)   atomic_fetch_add_explicit((p), (v), memory_order_seq_cst)
#define lm_sub_acq_rel(p, v)   atomic_fetch_sub_explicit((p), (v), memory_order_acq_rel)
#define lm_swap_seq_cst(p, v)  atomic_exchange_explicit((p), (v), memory_order_seq_cst)
#define lm_cas_acq_rel(p, expected, desired)                                           \
    atomic_compare_exchange_strong_explicit(                                           \
        (p), (expected), (desired), memory_order_acq_rel, memory_order_acquire)

#endif
