/* SPDX-License-Identifier: BSD-3-Clause
 * gate.c - between those who look at regions and fill or drop chunks, and those who must find none
 * of that under way: a fork, whose child is to find no chunk FILLING, and a change of budget.
 */
#define _GNU_SOURCE
#include "internal.h"

/* Read: somebody looks at a region, and may fill a chunk. */
static pthread_rwlock_t g_gate = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

void lm__will_block(struct lm__scratch *scratch)
{
    if (scratch && scratch->will_block)
        scratch->will_block(scratch);
}

void lm__gate_enter(struct lm__scratch *scratch)
{
    if (pthread_rwlock_tryrdlock(&g_gate) == 0)
        return;
    /* Who closes the gate waits for the fills under way, and they for events to be read. */
    lm__will_block(scratch);
    pthread_rwlock_rdlock(&g_gate);
}

void lm__gate_leave(void) { pthread_rwlock_unlock(&g_gate); }

void lm__gate_close(void) { pthread_rwlock_wrlock(&g_gate); }
void lm__gate_open(void) { pthread_rwlock_unlock(&g_gate); }

/* The threads that had entered, or were waiting to, are gone. */
void lm__gate_fork_child(void)
{
    static const pthread_rwlock_t fresh =
        PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
    g_gate = fresh;
    pthread_rwlock_wrlock(&g_gate);
}
