/* SPDX-License-Identifier: BSD-3-Clause
 * kept.c - false bytes that stay in memory until their thread has had its error.
 *
 * An operation can need the same pages again and again: a product of matrices would fail at
 * each touch, and take hours to end, were its pages dropped after each failure.  So a thread
 * that meets a lot of damage keeps what it was given, until its error is taken, or, if it is a
 * thread of BLAS or OpenMP that no error reaches, the main thread's.  And one that Ctrl-C has
 * sent on is given as much at a time as it can cross quickly.
 *
 * (K1) A chunk that is kept is ABSENT.  Whoever claims it drops its pages first, so they are
 *      never taken for data that is there already.
 * (K2) What is kept is bounded: the oldest goes first.
 */
#define _GNU_SOURCE
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define KEPT_MAX 1024
#define PAUSE_S  2 /* without a failure: the next one is another operation's */

struct kept {
    lm_region *region; /* with a reference */
    struct lm__span span;
    int32_t tid;
};

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static struct kept g_kept[KEPT_MAX]; /* the oldest first; under g_lock, as g_bytes */
static _Atomic size_t g_count;       /* written under it */
static size_t g_bytes;

/* ---- how much damage a thread has met ------------------------------------------------------- */

static struct {
    int32_t tid;
    unsigned failures;
    time_t last_s;
} g_threads[64]; /* by tid; under g_lock */

#define PLACES (sizeof g_threads / sizeof g_threads[0])

unsigned lm__kept_count(int32_t tid)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    size_t i = (uint32_t)tid % PLACES;
    pthread_mutex_lock(&g_lock);
    if (g_threads[i].tid != tid || now.tv_sec - g_threads[i].last_s > PAUSE_S)
        g_threads[i].failures = 0;
    g_threads[i].tid = tid;
    g_threads[i].last_s = now.tv_sec;
    unsigned failures = ++g_threads[i].failures;
    pthread_mutex_unlock(&g_lock);
    return failures;
}

static void forget_thread(int32_t tid)
{
    size_t i = (uint32_t)tid % PLACES;
    pthread_mutex_lock(&g_lock);
    if (g_threads[i].tid == tid)
        g_threads[i].failures = 0;
    pthread_mutex_unlock(&g_lock);
}

/* ---- what is kept -------------------------------------------------------------------------------- */

static void remove_locked(size_t i)
{
    struct kept k = g_kept[i];
    size_t left = lm_load_relaxed(&g_count) - 1;
    memmove(g_kept + i, g_kept + i + 1, (left - i) * sizeof g_kept[0]);
    lm_store_seq_cst(&g_count, left);
    g_bytes -= k.span.bytes;
    lm__pages_drop(k.span.addr, k.span.bytes);
    lm_add_seq_cst(&k.region->failures_over, 1);
    lm__region_drop(k.region);
}

void lm__kept_add(lm_region *r, struct lm__span span, int32_t tid,
                  enum lm__kept_bytes bytes_max)
{
    pthread_mutex_lock(&g_lock);
    while (lm_load_relaxed(&g_count) > 0 && (lm_load_relaxed(&g_count) == KEPT_MAX ||
                                             g_bytes + span.bytes > (size_t)bytes_max))
        remove_locked(0);
    lm_region_retain(r);
    g_kept[lm_load_relaxed(&g_count)] = (struct kept){r, span, tid};
    lm_add_seq_cst(&g_count, 1);
    g_bytes += span.bytes;
    pthread_mutex_unlock(&g_lock);
}

void lm__kept_drop_in(struct lm__span span)
{
    if (lm_load_seq_cst(&g_count) == 0)
        return;
    pthread_mutex_lock(&g_lock);
    for (size_t i = lm_load_relaxed(&g_count); i-- > 0;)
        if (g_kept[i].span.addr < span.addr + span.bytes &&
            span.addr < g_kept[i].span.addr + g_kept[i].span.bytes)
            remove_locked(i);
    pthread_mutex_unlock(&g_lock);
}

void lm__kept_drop_told(void)
{
    if (lm_load_seq_cst(&g_count) == 0 || lm__failure_is_waiting((int32_t)getpid()))
        return;
    pthread_mutex_lock(&g_lock);
    for (size_t i = lm_load_relaxed(&g_count); i-- > 0;)
        if (!lm__failure_is_waiting(g_kept[i].tid))
            remove_locked(i);
    pthread_mutex_unlock(&g_lock);
}

int lm_failure_take(int32_t tid, struct lm_error *out)
{
    int had_one = lm__failure_take(tid, out);
    if (had_one) {
        forget_thread(tid);
        lm__kept_drop_told();
    }
    return had_one;
}

/* ---- fork ---------------------------------------------------------------------------------------- */

void lm__kept_fork_prepare(void) { pthread_mutex_lock(&g_lock); }
void lm__kept_fork_done(void) { pthread_mutex_unlock(&g_lock); }
