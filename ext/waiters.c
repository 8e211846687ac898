/* SPDX-License-Identifier: BSD-3-Clause
 * waiters.c - which threads sleep in a page fault, so that a wake knows whom it wakes.
 *
 * The kernel wakes by address and tells nobody who it was.  But a thread that was woken from
 * a failed fill must get an error, and one that was woken from a good one must not.  So a
 * handler enters the thread here as soon as it has read the event, and whoever takes a waiter
 * off the table sees to it that the thread is woken.  One that a fill is under way for stays on
 * the table, marked, until its fate is known.
 *
 * Between the kernel's queue and the table an event is in a handler's hand.  Who serves a
 * failed fill waits until none is: the next wake would let a thread nobody knows of go on.
 *
 * An event may also be old: its thread was woken by somebody else's fill, before a handler
 * came to look at it, has read what it wanted, and has given the array up.  Where that matters
 * the thread is woken and must come again: only one that does wait will.
 */
#define _GNU_SOURCE
#include <time.h>

#include "internal.h"

#define WAITERS_MAX  256 /* beyond, handlers wait for room */
#define SUSPECTS_MAX 16
#define READERS_MAX  64   /* more than there are handlers */
#define ENTER_TRIES  4000 /* of 0.05 ms: a handler may have lost its core */
#define COME_AGAIN_TRIES                                                               \
    400 /* of 0.05 ms: on a busy machine it may come later, and anew */

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    struct lm__waiter who;
    int is_served;
} g_waiters[WAITERS_MAX];      /* under g_lock */
static _Atomic size_t g_count; /* of waiters; written under it */
static struct lm__waiter g_suspects[SUSPECTS_MAX];
static _Atomic int32_t g_readers[READERS_MAX]; /* see reader_may_hold() */

struct lm__waiter lm__waiter_of(const struct lm__fault *fault)
{
    return (struct lm__waiter){lm__round_down(fault->addr, lm__page_bytes()),
                               fault->tid};
}

static int is_same(struct lm__waiter a, struct lm__waiter b)
{
    return a.page == b.page && a.tid == b.tid;
}

/* g_count if it is not there. */
static size_t find_locked(struct lm__waiter w)
{
    size_t i = 0;
    while (i < lm_load_relaxed(&g_count) && !is_same(g_waiters[i].who, w))
        i++;
    return i;
}

static void remove_locked(size_t i)
{
    size_t left = lm_load_relaxed(&g_count) - 1;
    g_waiters[i] = g_waiters[left];
    lm_store_seq_cst(&g_count, left);
}

/* ---- the table ---------------------------------------------------------------------------- */

/* 0: there is no room. */
static int add(struct lm__waiter w)
{
    pthread_mutex_lock(&g_lock);
    size_t n = lm_load_relaxed(&g_count);
    /* A signal lets a thread fault anew, without end if signals are many. */
    int is_there = find_locked(w) < n;
    int has_room = is_there || n < WAITERS_MAX;
    if (has_room && !is_there) {
        g_waiters[n].who = w;
        g_waiters[n].is_served = 0;
        lm_store_seq_cst(&g_count, n + 1);
    }
    pthread_mutex_unlock(&g_lock);
    return has_room;
}

int lm__waiter_take(struct lm__waiter w)
{
    pthread_mutex_lock(&g_lock);
    size_t i = find_locked(w);
    int is_there = i < lm_load_relaxed(&g_count);
    if (is_there)
        remove_locked(i);
    pthread_mutex_unlock(&g_lock);
    return is_there;
}

int lm__waiter_is_there(struct lm__waiter w)
{
    pthread_mutex_lock(&g_lock);
    int is_there = find_locked(w) < lm_load_relaxed(&g_count);
    pthread_mutex_unlock(&g_lock);
    return is_there;
}

int lm__waiter_serve(struct lm__waiter w)
{
    pthread_mutex_lock(&g_lock);
    size_t i = find_locked(w);
    int is_mine = i < lm_load_relaxed(&g_count) && !g_waiters[i].is_served;
    if (is_mine)
        g_waiters[i].is_served = 1;
    pthread_mutex_unlock(&g_lock);
    return is_mine;
}

int32_t lm__waiter_take_in(struct lm__span span, enum lm__waiter_kind kind)
{
    int32_t tid = 0;
    if (lm_load_seq_cst(&g_count) == 0)
        return 0;
    pthread_mutex_lock(&g_lock);
    for (size_t i = 0; i < lm_load_relaxed(&g_count) && tid == 0; i++)
        if (g_waiters[i].who.page - span.addr < span.bytes &&
            (kind == LM_WAITER_ANY || !g_waiters[i].is_served)) {
            tid = g_waiters[i].who.tid ? g_waiters[i].who.tid : -1;
            remove_locked(i);
        }
    pthread_mutex_unlock(&g_lock);
    return tid;
}

/* ---- reading events ----------------------------------------------------------------------- */

static _Atomic int32_t *reader_begin(int32_t tid)
{
    for (size_t i = 0;; i = (i + 1) % READERS_MAX) {
        int32_t nobody = 0;
        if (lm_cas_acq_rel(&g_readers[i], &nobody, tid))
            return &g_readers[i];
    }
}

int lm__waiter_read(int32_t own_tid, struct lm__fault *out)
{
    const struct timespec pause = {.tv_nsec = 100000};
    _Atomic int32_t *reader = reader_begin(own_tid);
    int rc = lm__uffd_read(out);
    lm_store_seq_cst(reader, -own_tid);
    lm__pause("event read");
    while (rc == 0 && !add(lm__waiter_of(out)))
        nanosleep(&pause, NULL);
    lm_store_seq_cst(reader, 0);
    return rc;
}

/* A reader's word is its tid while it is in read(), and on its way out; -tid when it has an
 * event in its hand.  In read() it is asleep, unless it is about to return. */
static int reader_may_hold(_Atomic int32_t *reader)
{
    int32_t tid = lm_load_seq_cst(reader);
    return tid < 0 || (tid > 0 && !lm__thread_is_asleep(tid));
}

void lm__waiters_await_entered(void)
{
    const struct timespec pause = {.tv_nsec = 50000};
    int tries = 0;
    while (lm__uffd_has_events() && tries++ < ENTER_TRIES)
        nanosleep(&pause, NULL);
    for (size_t i = 0; i < READERS_MAX; i++)
        while (reader_may_hold(&g_readers[i]) && tries++ < ENTER_TRIES)
            nanosleep(&pause, NULL);
}

/* ---- waking ----------------------------------------------------------------------------------- */

void lm__waiters_wake(struct lm__span span)
{
    int32_t tid;
    do {
        while ((tid = lm__waiter_take_in(span, LM_WAITER_UNSERVED)) != 0)
            lm__interrupt_end(tid);
        lm__uffd_wake(span.addr, span.bytes);
        tid = lm__waiter_take_in(span, LM_WAITER_UNSERVED); /* entered meanwhile */
        lm__interrupt_end(tid);
    } while (tid != 0);
}

int lm__waiter_comes_again(struct lm__waiter w)
{
    const struct timespec pause = {.tv_nsec = 50000};
    int has_come = 0;
    lm__waiter_take(w);
    lm__uffd_wake(w.page, lm__page_bytes());
    for (int i = 0; i < COME_AGAIN_TRIES && !has_come; i++) {
        nanosleep(&pause, NULL);
        has_come = lm__waiter_take(w);
    }
    return has_come;
}

/* ---- touches of no region's memory -------------------------------------------------------------- */

static struct lm__waiter *suspect_find_locked(struct lm__waiter w)
{
    struct lm__waiter *s = g_suspects;
    while (s < g_suspects + SUSPECTS_MAX && !is_same(*s, w))
        s++;
    return s < g_suspects + SUSPECTS_MAX ? s : NULL;
}

enum lm__suspicion lm__suspect_begin(struct lm__waiter w)
{
    enum lm__suspicion answer = LM_SUSPECT_ELSEWHERE;
    pthread_mutex_lock(&g_lock);
    struct lm__waiter *slot = suspect_find_locked((struct lm__waiter){0});
    size_t i = find_locked(w);
    if (i == lm_load_relaxed(&g_count)) {
        answer = LM_SUSPECT_STALE; /* the region's last fill has woken the thread */
    } else if (slot && !suspect_find_locked(w)) {
        *slot = w;
        remove_locked(i);
        answer = LM_SUSPECT_BEGUN;
    } else if (!slot) {
        remove_locked(i); /* too many at a time: it is woken, and comes again */
        answer = LM_SUSPECT_STALE;
    }
    pthread_mutex_unlock(&g_lock);
    return answer;
}

void lm__suspect_end(struct lm__waiter w)
{
    pthread_mutex_lock(&g_lock);
    *suspect_find_locked(w) = (struct lm__waiter){0};
    pthread_mutex_unlock(&g_lock);
}

/* ---- fork ---------------------------------------------------------------------------------------- */

void lm__waiters_fork_prepare(void) { pthread_mutex_lock(&g_lock); }
void lm__waiters_fork_done(void) { pthread_mutex_unlock(&g_lock); }

/* Those that wait are gone, and those that read. */
void lm__waiters_fork_child(void)
{
    lm_store_relaxed(&g_count, 0);
    for (size_t i = 0; i < READERS_MAX; i++)
        lm_store_relaxed(&g_readers[i], 0);
    memset(g_suspects, 0, sizeof g_suspects);
}
