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
 * Who waits to write to a page that is there is not entered: no fill is under way for it, so a
 * failed one is not its error.  And it may have to wait for a snapshot, which may need a fill
 * in its turn, and so room here.
 *
 * An event may also be old: its thread was woken by somebody else's fill, before a handler
 * came to look at it, has read what it wanted, and has given the array up.  Where that matters
 * the thread is woken and must come again: only one that does wait will.
 */
#define _GNU_SOURCE
#include <errno.h>
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

void lm__waiter_serve_later(struct lm__waiter w)
{
    pthread_mutex_lock(&g_lock);
    size_t i = find_locked(w);
    if (i < lm_load_relaxed(&g_count))
        g_waiters[i].is_served = 0;
    pthread_mutex_unlock(&g_lock);
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

/* As long as no fill has failed, readers just block in read().  From the first failure on they
 * are careful: they read and enter in one step, under a lock.  What a reader may hold that was
 * blocked by then is known but for the moment in which read() returns. */
static _Atomic int g_is_careful;
static pthread_mutex_t g_read_lock = PTHREAD_MUTEX_INITIALIZER;
/* Of those who block in read(): 1 meanwhile, -1 with an event in the hand. */
static _Atomic int g_readers[READERS_MAX];

static _Atomic int *reader_begin(void)
{
    for (size_t i = 0;; i = (i + 1) % READERS_MAX) {
        int nobody = 0;
        if (lm_cas_acq_rel(&g_readers[i], &nobody, 1))
            return &g_readers[i];
    }
}

static int read_and_enter(struct lm__fault *out, _Atomic int *reader)
{
    const struct timespec pause = {.tv_nsec = 100000};
    int rc = lm__uffd_read(out);
    if (reader)
        lm_store_seq_cst(reader, -1);
    if (rc == 0)
        lm__pause("event read");
    while (rc == 0 && !out->is_protected && !add(lm__waiter_of(out)))
        nanosleep(&pause, NULL);
    return rc;
}

int lm__waiter_read(struct lm__fault *out)
{
    int rc;
    do {
        if (lm_load_seq_cst(&g_is_careful)) {
            lm__uffd_await_events();
            pthread_mutex_lock(&g_read_lock);
            rc = read_and_enter(out, NULL);
            pthread_mutex_unlock(&g_read_lock);
        } else {
            _Atomic int *reader = reader_begin();
            rc = read_and_enter(out, reader);
            lm_store_seq_cst(reader, 0);
        }
    } while (rc == -EAGAIN); /* another reader was faster, or all are careful by now */
    return rc;
}

void lm__waiters_await_entered(void)
{
    const struct timespec pause = {.tv_nsec = 50000};
    int tries = 0, are_blocked = 0;
    lm__uffd_read_no_more_blocks();
    lm_store_seq_cst(&g_is_careful, 1);
    while (lm__uffd_has_events() && tries++ < ENTER_TRIES)
        nanosleep(&pause, NULL);
    pthread_mutex_lock(&g_read_lock);
    pthread_mutex_unlock(&g_read_lock);
    for (size_t i = 0; i < READERS_MAX; i++)
        are_blocked |= lm_load_seq_cst(&g_readers[i]) != 0;
    if (are_blocked)
        nanosleep(&pause, NULL);
    for (size_t i = 0; i < READERS_MAX; i++)
        while (lm_load_seq_cst(&g_readers[i]) < 0 && tries++ < ENTER_TRIES)
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
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    g_read_lock = fresh;
    lm_store_relaxed(&g_is_careful, 0);
    memset(g_suspects, 0, sizeof g_suspects);
}
