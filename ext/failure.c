/* SPDX-License-Identifier: BSD-3-Clause
 * failure.c - fills that failed, and which thread must hear of it.
 *
 * A page fault has no caller to return an error to.  So the error is kept here under the id
 * of the thread that touched the page, and that thread's language runtime is told:
 *
 *   FREE --report--> ANNOUNCING --(runtime told)--> ANNOUNCED --take--> FREE
 *                        | ^
 *                        v | (reporter)
 *                     QUEUED      when telling may block
 *
 * (F1) A thread has one error waiting at most: the first one.  Later ones are counted.
 * (F2) Handlers never wait for a runtime but for a bounded time: the thread they would wait
 *      for may be the one that holds the runtime's lock.
 */
#include <errno.h>
#include <time.h>

#include "internal.h"

/* Threads that meet damage at the same time; beyond, errors are dropped. */
#define SLOTS 256

enum slot_state { FREE, QUEUED, ANNOUNCING, ANNOUNCED };

struct slot {
    enum slot_state state;
    int32_t tid;
    unsigned repeats;
    struct lm_error error;
};

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t g_changed = PTHREAD_COND_INITIALIZER;
static struct slot g_slots[SLOTS]; /* under g_lock, as is the next */
static const struct lm__runtime *g_runtime;
static int g_has_reporter;

void lm__failure_set_runtime(const struct lm__runtime *runtime)
{
    pthread_mutex_lock(&g_lock);
    g_runtime = runtime;
    pthread_mutex_unlock(&g_lock);
}

int lm__failure_takes_interrupts(void)
{
    pthread_mutex_lock(&g_lock);
    int takes = g_runtime && g_runtime->takes_interrupts;
    pthread_mutex_unlock(&g_lock);
    return takes;
}

static struct slot *find_locked(int32_t tid)
{
    for (struct slot *s = g_slots; s < g_slots + SLOTS; s++)
        if (s->state != FREE && s->tid == tid)
            return s;
    return NULL;
}

int lm__failure_is_waiting(int32_t tid)
{
    pthread_mutex_lock(&g_lock);
    int is_waiting = find_locked(tid) != NULL;
    pthread_mutex_unlock(&g_lock);
    return is_waiting;
}

static struct slot *find_state_locked(enum slot_state state)
{
    for (struct slot *s = g_slots; s < g_slots + SLOTS; s++)
        if (s->state == state)
            return s;
    return NULL;
}

static void reporter(void)
{
    for (;;) {
        pthread_mutex_lock(&g_lock);
        while (!find_state_locked(QUEUED))
            pthread_cond_wait(&g_changed, &g_lock);
        const struct lm__runtime *runtime = g_runtime;
        pthread_mutex_unlock(&g_lock);
        runtime->later();
    }
}

/* Most processes never need one. */
static void start_reporter(void)
{
    static const struct lm__thread thread = {reporter, "lazymem-report"};
    pthread_mutex_lock(&g_lock);
    if (!g_has_reporter)
        g_has_reporter = lm__thread_start(&thread) == 0;
    pthread_mutex_unlock(&g_lock);
}

static void set_state(int32_t tid, enum slot_state state)
{
    pthread_mutex_lock(&g_lock);
    struct slot *s = find_locked(tid);
    if (s)
        s->state = state;
    pthread_cond_broadcast(&g_changed);
    pthread_mutex_unlock(&g_lock);
}

unsigned lm__failure_report(int32_t tid, const struct lm_error *cause)
{
    unsigned repeats = 1;
    pthread_mutex_lock(&g_lock);
    const struct lm__runtime *runtime = g_runtime;
    struct slot *s = find_locked(tid);
    if (s) {
        repeats = ++s->repeats;
    } else if ((s = find_state_locked(FREE))) {
        *s = (struct slot){
            .state = ANNOUNCING, .tid = tid, .repeats = 1, .error = *cause};
        s->error.tid = tid;
    }
    pthread_mutex_unlock(&g_lock);
    if (!s || repeats > 1 || !runtime)
        return repeats;
    if (runtime->at_once(tid)) {
        set_state(tid, ANNOUNCED);
    } else {
        start_reporter();
        set_state(tid, QUEUED);
    }
    return repeats;
}

void lm__failure_wait_announced(int32_t tid, int timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += timeout_ms * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;

    pthread_mutex_lock(&g_lock);
    for (int rc = 0; rc != ETIMEDOUT && g_runtime;) {
        const struct slot *s = find_locked(tid);
        if (!s || s->state == ANNOUNCED)
            break;
        rc = pthread_cond_timedwait(&g_changed, &g_lock, &until);
    }
    pthread_mutex_unlock(&g_lock);
}

int lm__failure_take(int32_t tid, struct lm_error *out)
{
    pthread_mutex_lock(&g_lock);
    struct slot *s = find_locked(tid);
    if (s) {
        if (out)
            *out = s->error;
        s->state = FREE;
    }
    pthread_mutex_unlock(&g_lock);
    return s != NULL;
}

void lm__failure_bequeath(int32_t tid, int32_t heir)
{
    pthread_mutex_lock(&g_lock);
    struct slot *s = find_locked(tid);
    if (s && find_locked(heir))
        s->state = FREE; /* (F1) */
    else if (s)
        s->tid = heir;
    pthread_mutex_unlock(&g_lock);
}

int lm__failure_next_queued(struct lm_error *out)
{
    pthread_mutex_lock(&g_lock);
    struct slot *s = find_state_locked(QUEUED);
    if (s) {
        s->state = ANNOUNCING;
        *out = s->error;
    }
    pthread_mutex_unlock(&g_lock);
    return s != NULL;
}

int lm__failure_announced(int32_t tid)
{
    pthread_mutex_lock(&g_lock);
    struct slot *s = find_locked(tid);
    /* Else it was taken, and this is the thread's next one. */
    int is_waiting = s && s->state == ANNOUNCING;
    if (is_waiting)
        s->state = ANNOUNCED;
    pthread_cond_broadcast(&g_changed);
    pthread_mutex_unlock(&g_lock);
    return is_waiting;
}

/* The threads are gone that errors wait for, or that wait for the condition.  The child's
 * next thread may well get the id of one of them. */
void lm__failure_fork_child(void)
{
    static const pthread_cond_t fresh = PTHREAD_COND_INITIALIZER;
    g_changed = fresh;
    g_has_reporter = 0;
    for (struct slot *s = g_slots; s < g_slots + SLOTS; s++)
        if (s->state != FREE)
            s->state = FREE;
}

void lm__failure_fork_prepare(void) { pthread_mutex_lock(&g_lock); }
void lm__failure_fork_done(void) { pthread_mutex_unlock(&g_lock); }
