/* SPDX-License-Identifier: BSD-3-Clause
 * fault.c - from a page fault to a page: claim, decode, install, publish.
 *
 *   fault at addr --> region, chunk --> claim --> decode --> UFFDIO_COPY --> publish
 *                        |                |          '-- failed: see below      '-- wake
 *                        |                '-- being filled already: its end will wake us
 *                        '-- no such region: the array is gone, the pointer is not
 *
 * A fill that fails must let the faulting instruction end, and must not let anybody take what
 * it reads for data.  So: the error is left for the thread (failure.c), the page is filled
 * with 0xFF (NaN for every IEEE float) for as long as the instruction needs, and is then
 * dropped again.  All the while the chunk is FILLING: a later touch tries anew, so damage that
 * was transient heals.
 *
 * Another thread may read that page in that short while without a fault.  Whoever reads
 * through LazyArray learns of it by lm_region_failures(); whoever reads on, through any
 * pointer, meets a page that is still absent, and its error.  Only a thread that has met a
 * lot of damage, in one operation, is given whole chunks at once, to get to the end of it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <sys/mman.h>
#include <time.h>

#include "internal.h"

#define ANNOUNCE_MS          50 /* the toucher may itself hold the runtime's lock ... */
#define ANNOUNCE_TRIES       20 /* ... now, but seldom at its next faults */
#define PAGEWISE_MAX         256 /* failures of a thread, until speed matters more: see above */
#define LINGER_NS            100000L /* a woken thread runs within tens of microseconds ... */
#define LINGER_DOUBLINGS_MAX 7 /* ... unless the machine is overloaded: up to 13 ms */
#define NO_MEMORY_RETRIES    5

/* ---- threads that wait for a chunk which another thread's fault is filling ------------------------ */

#define WAITERS_MAX                                                                    \
    256 /* more than that find the error through the one that is reported */

struct waiter {
    const lm_region *region;
    uint64_t chunk_idx;
    int32_t tid;
};

static pthread_mutex_t g_waiters_lock = PTHREAD_MUTEX_INITIALIZER;
static struct waiter g_waiters[WAITERS_MAX]; /* under g_waiters_lock */
static _Atomic size_t g_waiter_count;        /* written under it */

static void waiter_add(const lm_region *r, uint64_t chunk_idx, int32_t tid)
{
    pthread_mutex_lock(&g_waiters_lock);
    size_t n = lm_load_relaxed(&g_waiter_count);
    if (n < WAITERS_MAX) {
        g_waiters[n] = (struct waiter){r, chunk_idx, tid};
        lm_store_seq_cst(&g_waiter_count, n + 1);
    }
    pthread_mutex_unlock(&g_waiters_lock);
}

/* Take one waiter of the chunk off the table; with tid != 0, that one.  Its tid, or 0. */
static int32_t waiter_take(const lm_region *r, uint64_t chunk_idx, int32_t tid)
{
    int32_t taken = 0;
    if (lm_load_seq_cst(&g_waiter_count) == 0)
        return 0;
    pthread_mutex_lock(&g_waiters_lock);
    size_t n = lm_load_relaxed(&g_waiter_count);
    for (size_t i = 0; i < n && !taken; i++) {
        const struct waiter *w = &g_waiters[i];
        if (w->region == r && w->chunk_idx == chunk_idx &&
            (tid == 0 || w->tid == tid)) {
            taken = w->tid ? w->tid : -1;
            g_waiters[i] = g_waiters[n - 1];
            lm_store_seq_cst(&g_waiter_count, n - 1);
        }
    }
    pthread_mutex_unlock(&g_waiters_lock);
    return taken;
}

/* ---- one chunk --------------------------------------------------------------------------------------- */

static uintptr_t chunk_addr(const lm_region *r, uint64_t chunk_idx)
{
    return r->addr + (chunk_idx << r->object->chunk_shift);
}

static void drop_pages(const lm_region *r, uint64_t chunk_idx)
{
    madvise((void *)chunk_addr(r, chunk_idx), lm__region_chunk_span(r, chunk_idx),
            MADV_DONTNEED);
}

/* Wake all who wait for a chunk that is no longer FILLING. */
static void wake(const lm_region *r, uint64_t chunk_idx)
{
    while (waiter_take(r, chunk_idx, 0) != 0)
        ;
    lm__uffd_wake(lm__pager_uffd(), chunk_addr(r, chunk_idx),
                  lm__region_chunk_span(r, chunk_idx));
}

/* Give a FILLING chunk up and let those who wait for it fault again. */
static void abandon(lm_region *r, uint64_t chunk_idx)
{
    lm__chunks_abandon(&r->chunks, chunk_idx);
    wake(r, chunk_idx);
}

/* Decoded bytes (NULL: zeros) into the region's memory. */
static int install(lm_region *r, uint64_t chunk_idx, uint8_t *bytes,
                   struct lm_error *err)
{
    int uffd = lm__pager_uffd();
    size_t span = lm__region_chunk_span(r, chunk_idx);
    size_t used = lm__object_chunk_bytes(r->object, chunk_idx);
    uintptr_t addr = chunk_addr(r, chunk_idx);
    enum lm__install answer = LM_NO_MEMORY;
    if (bytes)
        memset(bytes + used, 0, span - used);
    for (int retries = 0; answer == LM_NO_MEMORY && retries <= NO_MEMORY_RETRIES;
         retries++) {
        struct timespec pause = {.tv_nsec = retries * 2000000L};
        if (retries > 0)
            nanosleep(&pause, NULL);
        answer = bytes ? lm__uffd_copy(uffd, addr, bytes, span)
                       : lm__uffd_zero(uffd, addr, span);
    }
    switch (answer) {
    case LM_INSTALLED:
    case LM_EXITING: return 0;
    case LM_NO_MEMORY: return lm__fail(err, lm__error(-ENOMEM, "memory for the chunk"));
    case LM_VANISHED:
    case LM_REFUSED: break;
    }
    return lm__fail(err, lm__error(LM_E_LOST_MAPPING, "mapping"));
}

/* Fill a chunk that the caller has claimed.  On failure it is still FILLING. */
static int fill(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch,
                struct lm_error *err)
{
    uint64_t stored_bytes = 0;
    uint8_t *bytes = NULL;
    int rc =
        lm__object_decode(r->object, chunk_idx, scratch, &bytes, &stored_bytes, err);
    if (rc >= 0)
        rc = install(r, chunk_idx, bytes, err);
    if (rc < 0) {
        err->tag = r->object->spec.tag;
        err->chunk_idx = chunk_idx;
        return rc;
    }
    lm_add_relaxed(&r->fills, 1);
    lm_add_relaxed(&r->zero_fills, (uint64_t)!bytes);
    lm_add_relaxed(&r->stored_bytes_read, stored_bytes);
    if (!lm__chunks_publish(&r->chunks, chunk_idx)) { /* released meanwhile */
        drop_pages(r, chunk_idx);
        abandon(r, chunk_idx);
        return 0;
    }
    wake(r, chunk_idx);
    return 0;
}

/* ---- failed fills -------------------------------------------------------------------------------------- */

/* Leave `cause` for thread `tid` and everybody who waits for the chunk.  Returns how many
 * failures the one who has met the fewest has met. */
static unsigned report_to_all(lm_region *r, uint64_t chunk_idx, int32_t tid,
                              const struct lm_error *cause)
{
    unsigned fewest = UINT_MAX;
    for (; tid != 0; tid = waiter_take(r, chunk_idx, 0)) {
        unsigned repeats = lm__failure_report(tid, cause);
        if (repeats <= ANNOUNCE_TRIES)
            lm__failure_wait_announced(tid, ANNOUNCE_MS);
        if (repeats < fewest)
            fewest = repeats;
    }
    return fewest;
}

static void serve_ones(uintptr_t addr, size_t span)
{
    static const uint8_t ones[65536] = {[0 ... 65535] = 0xFF};
    for (size_t done = 0; done < span; done += sizeof ones) {
        size_t bytes = span - done < sizeof ones ? span - done : sizeof ones;
        lm__uffd_copy(lm__pager_uffd(), addr + done, ones, bytes);
    }
}

/* Give the woken thread time to end its instruction.  A page that fails again and again says
 * that it was not enough. */
static void linger(uintptr_t addr)
{
    static _Atomic uintptr_t last_addr;
    static _Atomic unsigned times;
    if (lm_load_relaxed(&last_addr) != addr)
        lm_store_relaxed(&times, 0);
    lm_store_relaxed(&last_addr, addr);
    unsigned doublings = lm_add_relaxed(&times, 1);
    if (doublings > LINGER_DOUBLINGS_MAX)
        doublings = LINGER_DOUBLINGS_MAX;
    struct timespec pause = {.tv_nsec = LINGER_NS << doublings};
    nanosleep(&pause, NULL);
}

static void fail_fill(lm_region *r, uint64_t chunk_idx, const struct lm__fault *fault,
                      const struct lm_error *cause)
{
    lm__region_keep_error(r, cause);
    unsigned repeats = report_to_all(r, chunk_idx, fault->tid ? fault->tid : -1, cause);
    if (repeats <= PAGEWISE_MAX)
        serve_ones(lm__round_down(fault->addr, lm__page_bytes()), lm__page_bytes());
    else
        serve_ones(chunk_addr(r, chunk_idx), lm__region_chunk_span(r, chunk_idx));
    report_to_all(r, chunk_idx, waiter_take(r, chunk_idx, 0), cause);
    lm__uffd_wake(lm__pager_uffd(), chunk_addr(r, chunk_idx),
                  lm__region_chunk_span(r, chunk_idx));

    linger(fault->addr);
    drop_pages(r, chunk_idx);
    lm_add_seq_cst(&r->failures_over, 1);
    abandon(r, chunk_idx);
}

/* ---- entry points ---------------------------------------------------------------------------------------- */

/* A chunk can be CLEAN with a page missing (C2), and an event can be older than the fill
 * that has served it.  Only the kernel can tell them apart. */
static int page_is_present(uintptr_t addr)
{
    unsigned char present = 0;
    size_t page_bytes = lm__page_bytes();
    mincore((void *)lm__round_down(addr, page_bytes), page_bytes, &present);
    return present & 1;
}

static void serve_claimed(lm_region *r, uint64_t chunk_idx,
                          const struct lm__fault *fault, struct lm__scratch *scratch)
{
    struct lm_error cause = lm__error(LM_E_CLOSED, "array");
    cause.tag = r->object->spec.tag;
    cause.chunk_idx = chunk_idx;
    if (lm_load_seq_cst(&r->released) || fill(r, chunk_idx, scratch, &cause) != 0)
        fail_fill(r, chunk_idx, fault, &cause);
}

static void serve_region(lm_region *r, const struct lm__fault *fault,
                         struct lm__scratch *scratch)
{
    uint64_t chunk_idx = (fault->addr - r->addr) >> r->object->chunk_shift;
    lm_add_relaxed(&r->faults, 1);
    for (;;) {
        enum lm__chunk_state state = lm__chunks_state(&r->chunks, chunk_idx);
        if (state == LM_CHUNK_FILLING) {
            waiter_add(r, chunk_idx, fault->tid);
            if (lm__chunks_state(&r->chunks, chunk_idx) == LM_CHUNK_FILLING ||
                waiter_take(r, chunk_idx, fault->tid) == 0)
                return; /* who fills it now, or has taken us off the table, wakes us */
            continue;
        }
        if (state == LM_CHUNK_CLEAN && page_is_present(fault->addr)) {
            lm__uffd_wake(lm__pager_uffd(),
                          lm__round_down(fault->addr, lm__page_bytes()),
                          lm__page_bytes());
            return;
        }
        if (lm__chunks_claim(&r->chunks, chunk_idx, state)) {
            serve_claimed(r, chunk_idx, fault, scratch);
            return;
        }
    }
}

static void serve_dangling(const struct lm__fault *fault)
{
    struct lm_error cause = lm__error(LM_E_DANGLING, "address");
    cause.found = fault->addr;
    lm__failure_report(fault->tid, &cause);
    lm__failure_wait_announced(fault->tid, ANNOUNCE_MS);
    lm__region_serve_dangling(fault->addr);
}

void lm__fault_serve(const struct lm__fault *fault, struct lm__scratch *scratch)
{
    lm__pager_fill_begin();
    lm_region *r = lm__region_find(fault->addr);
    if (r) {
        serve_region(r, fault, scratch);
        lm__region_drop(r);
    } else {
        serve_dangling(fault);
    }
    lm__pager_fill_end();
}

/* 1 if there is nothing left to do, 0 if another thread is filling the chunk. */
static int try_prefetch(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch,
                        int *rc, struct lm_error *err)
{
    enum lm__chunk_state state = lm__chunks_state(&r->chunks, chunk_idx);
    *rc = 0;
    if (lm_load_seq_cst(&r->released) || state == LM_CHUNK_CLEAN)
        return 1;
    if (!lm__chunks_claim(&r->chunks, chunk_idx, LM_CHUNK_ABSENT))
        return 0;
    *rc = fill(r, chunk_idx, scratch, err);
    if (*rc < 0)
        abandon(r, chunk_idx);
    return 1;
}

int lm__fault_prefetch(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch,
                       struct lm_error *err)
{
    const struct timespec pause = {.tv_nsec = 50000};
    for (;;) {
        int rc;
        lm__pager_fill_begin();
        int is_done = try_prefetch(r, chunk_idx, scratch, &rc, err);
        lm__pager_fill_end();
        if (is_done)
            return rc;
        nanosleep(&pause, NULL);
    }
}
