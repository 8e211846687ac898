/* SPDX-License-Identifier: BSD-3-Clause
 * pager.c - what exists once per process: the fault handlers, and what fork means.
 *
 * Handlers all block in read() of one userfaultfd and serve what they get themselves: an
 * event crosses no queue.  A handler that is about to sleep on the disk first makes sure that
 * somebody still reads (the leader/followers pattern: Schmidt et al., Pattern-Oriented
 * Software Architecture 2, 2000): if it was the last reader it starts another handler, and a
 * handler that comes back to find enough readers ends.
 *
 * A fault wakes all who read.  The one on the core of the thread that has faulted needs no other
 * core to wake up, which takes most of a fault's time on a machine that has nothing else to do: so
 * there is a reader on each core.
 *
 * Started when a first store is opened, the handlers run until the process is gone: memory may be
 * touched even while the interpreter shuts down.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define HANDLERS_MAX 32 /* while they sleep on slow reads; a bound, not a plan */

static struct {
    pthread_mutex_t start_lock;
    int is_started;               /* under start_lock */
    int start_error;              /* under start_lock */
    int readers_wanted;           /* fixed after start */
    int cores;                    /* with a reader of their own; 0: they are too many */
    _Atomic int readers;          /* handlers in read(), or on their way there */
    _Atomic uint32_t cores_taken; /* a bit for each core that a reader is on */
    _Atomic int handlers;
} g_pager = {.start_lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- handlers ------------------------------------------------------------------------------- */

static int handler_start(void);

/* Called by a handler whose fill is about to sleep. */
static void handler_will_block(struct lm__scratch *scratch)
{
    lm__interrupt_watch(scratch->toucher_tid);
    if (lm_load_relaxed(&g_pager.readers) <= 0 &&
        lm_load_relaxed(&g_pager.handlers) < HANDLERS_MAX)
        handler_start(); /* if that fails, events wait until a fill has ended */
}

/* Become a reader unless there are enough.  One that leaves is never counted, not even for a
 * moment: handler_will_block() might rely on it. */
static int reader_join(void)
{
    int readers = lm_load_relaxed(&g_pager.readers);
    while (readers < g_pager.readers_wanted)
        if (lm_cas_acq_rel(&g_pager.readers, &readers, readers + 1))
            return 1;
    return 0;
}

/* A core that no reader is on, `core` if it is one; -1: there is none. */
static int core_take(int core)
{
    uint32_t taken = lm_load_relaxed(&g_pager.cores_taken);
    do {
        if (core < 0 || taken >> core & 1)
            for (core = 0; core < g_pager.cores && taken >> core & 1;)
                core++;
        if (core >= g_pager.cores)
            return -1;
    } while (!lm_cas_acq_rel(&g_pager.cores_taken, &taken, taken | 1u << core));
    return core;
}

/* The next fault, read on a core of one's own. */
static int read_fault(struct lm__fault *fault, int *core)
{
    if ((*core = core_take(*core)) >= 0)
        lm__thread_pin((unsigned)*core);
    int rc = lm__waiter_read(fault);
    if (*core >= 0)
        lm_sub_acq_rel(&g_pager.cores_taken, 1u << *core);
    return rc;
}

static void handler(void)
{
    struct lm__scratch scratch = lm__scratch_take();
    struct lm__fault fault;
    int core = -1;
    scratch.will_block = handler_will_block;
    do {
        int rc = read_fault(&fault, &core);
        lm_sub_acq_rel(&g_pager.readers, 1);
        if (rc != 0)
            abort(); /* nobody serves the memory: a crash is better than zeros */
        lm__fault_serve(&fault, &scratch);
        if (lm_load_relaxed(&g_pager.handlers) < g_pager.readers_wanted)
            handler_start();
    } while (reader_join());
    lm_sub_acq_rel(&g_pager.handlers, 1);
    lm__scratch_give(&scratch);
}

/* It also starts the keeper: who opens a store is not to wait for that. */
static void first_handler(void)
{
    lm__keeper_start();
    handler();
}

static int handler_start_as(const struct lm__thread *thread)
{
    lm_add_seq_cst(&g_pager.handlers, 1);
    lm_add_seq_cst(&g_pager.readers, 1);
    int rc = lm__thread_start(thread);
    if (rc != 0) {
        lm_sub_acq_rel(&g_pager.readers, 1);
        lm_sub_acq_rel(&g_pager.handlers, 1);
    }
    return rc;
}

static int handler_start(void)
{
    static const struct lm__thread thread = {handler, "lazymem-fault"};
    return handler_start_as(&thread);
}

/* Open the userfaultfd and start the threads, in a new process or in a forked one. */
static int start(void)
{
    int rc = lm__uffd_start();
    if (rc != 0)
        return rc;
    lm_store_relaxed(&g_pager.readers, 0);
    lm_store_relaxed(&g_pager.cores_taken, 0);
    lm_store_relaxed(&g_pager.handlers, 0);
    g_pager.readers_wanted = (int)lm__cores();
    g_pager.cores = g_pager.readers_wanted;
    if (g_pager.readers_wanted > HANDLERS_MAX / 2) {
        g_pager.readers_wanted = HANDLERS_MAX / 2;
        g_pager.cores = 0;
    }
    static const struct lm__thread first = {first_handler, "lazymem-fault"};
    rc = handler_start_as(
        &first); /* one is enough for the first fault; more follow it */
    if (rc != 0)
        lm__uffd_stop(); /* unread, it would let touches hang */
    return rc;
}

/* ---- fork -------------------------------------------------------------------------------------- */

static void fork_prepare(void)
{
    pthread_mutex_lock(&g_pager.start_lock);
    lm__gate_close(); /* no chunk is FILLING from here on */
    lm__waiters_fork_prepare();
    lm__kept_fork_prepare();
    lm__freeze_fork_prepare();
    lm__workers_fork_prepare();
    lm__region_fork_prepare();
    lm__failure_fork_prepare();
    lm__interrupt_fork_prepare();
    lm__uffd_fork_prepare();
    lm__object_fork_prepare();
    lm__budget_fork_prepare();
    lm__spill_fork_prepare();
}

static void fork_done(void)
{
    lm__spill_fork_done();
    lm__budget_fork_done();
    lm__object_fork_done();
    lm__uffd_fork_done();
    lm__interrupt_fork_done();
    lm__failure_fork_done();
    lm__region_fork_done();
    lm__workers_fork_done();
    lm__freeze_fork_done();
    lm__kept_fork_done();
    lm__waiters_fork_done();
    lm__gate_open();
    pthread_mutex_unlock(&g_pager.start_lock);
}

static void fork_parent(void)
{
    fork_done();
    lm__region_fork_parent();
}

/* The child has this thread alone, and mappings that are no longer registered. */
static void fork_child(void)
{
    lm__keeper_fork_child();
    lm__gate_fork_child();
    lm__budget_fork_child();
    lm__evictor_fork_child();
    lm__waiters_fork_child();
    lm__workers_fork_child();
    lm__failure_fork_child();
    lm__freeze_fork_child();
    lm__copiers_fork_child();
    if (g_pager.is_started) {
        lm__uffd_stop();
        g_pager.start_error = start();
        g_pager.is_started = g_pager.start_error == 0;
        lm__region_fork_child();
    }
    fork_done();
    lm__keeper_start(); /* a daemon's next step is to close all that it has */
    lm__keeper_await();
    lm__kept_drop_told(); /* whom it was kept for is not here */
}

/* When the library is loaded: workers can run, and be left behind, without handlers. */
__attribute__((constructor)) static void install_fork_hooks(void)
{
    pthread_atfork(fork_prepare, fork_parent, fork_child);
}

/* ---- start ---------------------------------------------------------------------------------------- */

void lm_warm(void)
{
    lm__scratch_warm();
    lm__thread_warm();
}

int lm_pager_start(void)
{
    pthread_mutex_lock(&g_pager.start_lock);
    if (!g_pager.is_started) {
        g_pager.start_error = start();
        g_pager.is_started = g_pager.start_error == 0; /* descriptors can run out */
    }
    int rc = g_pager.start_error;
    pthread_mutex_unlock(&g_pager.start_lock);
    return rc;
}

void lm_pager_stats(struct lm_pager_stats *out)
{
    memset(out, 0, sizeof *out);
    lm__uffd_stats(out);
    lm__arena_counts(&out->regions_live, &out->arenas);
    out->handlers = (uint64_t)lm_load_relaxed(&g_pager.handlers);
    out->mode = (uint64_t)lm_pager_mode();
}
