/* SPDX-License-Identifier: BSD-3-Clause
 * fault.c - what a page fault asks for, and what it gets.
 *
 *   fault at addr --> region, chunk --> claim --> fill (fill.c) --> the thread is woken
 *                        |                |          '-- failed: 0xFF, and an error (ones.c)
 *                        |                '-- being filled already: its end will wake us
 *                        '-- no such region: the array is gone, the pointer is not
 */
#define _GNU_SOURCE
#include <errno.h>
#include <unistd.h>

#include "internal.h"

#define ROOM_MS    20                /* until who had no room touches its chunk again */
#define SKIP_BYTES ((size_t)4 << 20) /* takes a few milliseconds */

static struct lm_error failure_of(const lm_region *r, uint64_t chunk_idx, int code,
                                  const char *what)
{
    struct lm_error e = lm__error(code, what);
    lm__region_blame(r, chunk_idx, &e);
    return e;
}

/* ---- a region's memory ----------------------------------------------------------------------- */

static void serve_claimed(lm_region *r, uint64_t chunk_idx,
                          const struct lm__fault *fault, enum lm__chunk_state from,
                          struct lm__scratch *scratch)
{
    int lost = lm_load_seq_cst(&r->lost);
    struct lm_error cause = failure_of(r, chunk_idx, lost, "array");
    struct lm__failed failed = lm__failed_fault(r, chunk_idx, fault);
    struct lm__waiter w = lm__waiter_of(fault);
    scratch->toucher_tid = w.tid;
    scratch->toucher_page = w.page;
    scratch->toucher_writes = fault->is_write;
    int rc = lost ? lost : lm__fill(r, chunk_idx, from, scratch, &cause);
    scratch->toucher_tid = 0;
    scratch->toucher_page = 0;
    scratch->toucher_writes = 0;
    if (rc == 0)
        return;
    if (rc == LM_LATER) {
        lm__waiter_serve_later(w);
        lm__chunks_abandon(&r->chunks, chunk_idx);
        scratch->late_addr = failed.span.addr;
        scratch->late_bytes = failed.span.bytes;
        return;
    }
    lm__will_block(scratch);
    lm__pause("fill failed");
    int still_waits = lost ? lm__waiter_comes_again(w) : lm__waiter_take(w);
    lm__interrupt_end(w.tid);
    failed.cause = &cause;
    failed.from = from == LM_CHUNK_SPILLED ? LM_CHUNK_ABSENT : from;
    if (!still_waits) /* it had an error meanwhile, and has gone on */
        failed.tid = 0;
    if (still_waits || !lost) /* else those who do wait will come again, too */
        lm__ones_serve(r, failed, scratch);
    lm__fill_unclaim(r, chunk_idx, from);
}

/* A chunk whose state there is no memory for. */
static void serve_unclaimed(lm_region *r, uint64_t chunk_idx,
                            const struct lm__fault *fault, int code,
                            struct lm__scratch *scratch)
{
    struct lm_error cause =
        failure_of(r, chunk_idx, code, "memory for the chunk's state");
    struct lm__failed failed = lm__failed_fault(r, chunk_idx, fault);
    failed.cause = &cause;
    lm__ones_serve(r, failed, scratch);
}

/* The number of chunks from `first` on, up to SKIP_BYTES of them, that the caller has claimed
 * now: nobody has filled them, nor begun to. */
static uint64_t claim_absent(lm_region *r, uint64_t first)
{
    uint64_t most = SKIP_BYTES >> r->chunk_shift, left = r->chunks.count - first, n = 0;
    while (n < most && n < left &&
           lm__chunks_claim(&r->chunks, first + n, LM_CHUNK_ABSENT) > 0)
        n++;
    return n;
}

/* The thread is to end its operation, and not to wait for the chunk.  It can't stop before it
 * has read all that it wants, so it is given the chunks that follow, too. */
static void serve_interrupted(lm_region *r, uint64_t chunk_idx,
                              const struct lm__fault *fault, enum lm__chunk_state from,
                              struct lm__scratch *scratch)
{
    lm__will_block(scratch);
    struct lm_error cause = failure_of(r, chunk_idx, -EINTR, "wait for the chunk");
    struct lm__failed failed = lm__failed_fault(r, chunk_idx, fault);
    uint64_t more = from == LM_CHUNK_ABSENT ? claim_absent(r, chunk_idx + 1) : 0;
    failed.cause = &cause;
    failed.from = from == LM_CHUNK_SPILLED ? LM_CHUNK_ABSENT : from;
    failed.is_interrupt = 1;
    for (uint64_t i = 1; i <= more; i++)
        failed.span.bytes += lm__region_span(r, chunk_idx + i).bytes;
    if (from == LM_CHUNK_FILLING) /* by another thread; others may well wait on */
        failed.span = (struct lm__span){failed.page, lm__region_page_bytes(r)};
    lm__ones_serve(r, failed, scratch);
    for (uint64_t i = 1; i <= more; i++)
        lm__run_abandon(r, (struct lm__run){chunk_idx + i, 1});
}

/* A chunk that another thread is filling, which finds the waiter when it is done.  Where writes
 * are tracked a writer waits for that: false bytes that can be written would have to go again,
 * and what others have written since with them. */
static void serve_filling(lm_region *r, uint64_t chunk_idx,
                          const struct lm__fault *fault, struct lm__scratch *scratch)
{
    struct lm__waiter w = lm__waiter_of(fault);
    if ((r->tracking == LM_TRACK_NONE || !fault->is_write) &&
        (lm__interrupt_take(fault->tid) || lm__interrupt_is_pending(fault->tid)) &&
        lm__waiter_take(w)) {
        serve_interrupted(r, chunk_idx, fault, LM_CHUNK_FILLING, scratch);
        return;
    }
    lm__interrupt_watch(fault->tid);
    if (!lm__waiter_is_there(w))
        lm__interrupt_end(fault->tid);
}

/* For who copies the chunk, and holds it until this is over. */
static void serve_copier(lm_region *r, uint64_t chunk_idx, int copier,
                         const struct lm__fault *fault, struct lm__scratch *scratch)
{
    struct lm_error cause = lm__error(0, "");
    if (lm__fill_in_place(r, chunk_idx, scratch, &cause) == 0)
        return;
    struct lm__failed failed = lm__failed_fault(r, chunk_idx, fault);
    failed.cause = &cause;
    failed.from = LM_CHUNK_COPYING;
    failed.span = (struct lm__span){failed.page, lm__region_page_bytes(r)};
    failed.tid = 0;
    failed.is_copier = 1;
    lm__copier_fail(copier);
    lm__freeze_fail(r, &cause);
    lm__will_block(scratch);
    lm__waiter_take(lm__waiter_of(fault));
    lm__ones_serve(r, failed, scratch);
}

static int try_copier(lm_region *r, uint64_t chunk_idx, const struct lm__fault *fault,
                      struct lm__scratch *scratch)
{
    int copier = lm__copier_serve_begin(r, chunk_idx, fault->tid);
    if (copier < 0)
        return 0;
    serve_copier(r, chunk_idx, copier, fault, scratch);
    lm__copier_serve_end(copier);
    return 1;
}

/* A page that the application has given back, of a chunk that a snapshot has yet to copy:
 * whoever copies it is waited for, and served. */
static void serve_frozen(lm_region *r, uint64_t chunk_idx,
                         const struct lm__fault *fault, enum lm__chunk_state state,
                         struct lm__scratch *scratch)
{
    if (state == LM_CHUNK_FROZEN) {
        lm__freeze_hurry(r, chunk_idx);
        return;
    }
    try_copier(r, chunk_idx, fault, scratch);
}

static int is_frozen(const lm_region *r, enum lm__chunk_state state)
{
    return r->tracking != LM_TRACK_NONE &&
           (state == LM_CHUNK_FROZEN || state == LM_CHUNK_COPYING);
}

static void serve_region(lm_region *r, const struct lm__fault *fault,
                         struct lm__scratch *scratch)
{
    uint64_t chunk_idx = (fault->addr - r->addr) >> r->chunk_shift;
    struct lm__waiter w = lm__waiter_of(fault);
    if (fault->is_protected) {
        lm__write_serve(r, chunk_idx, fault);
        return;
    }
    lm_add_relaxed(&r->faults, 1);
    lm__ahead_note(r, fault->addr - r->addr, fault->is_write);
    for (;;) {
        enum lm__chunk_state state = lm__chunks_state(&r->chunks, chunk_idx);
        if (state == LM_CHUNK_REFILLING && try_copier(r, chunk_idx, fault, scratch))
            return;
        if (state == LM_CHUNK_FILLING || state == LM_CHUNK_REFILLING) {
            serve_filling(r, chunk_idx, fault, scratch);
            return;
        }
        /* A chunk can be in memory with a page missing (C2), and an event can be older than
         * the fill that has served it.  Only the kernel can tell them apart. */
        if (lm__chunk_is_resident(state) && lm__region_has_page(r, fault->addr)) {
            lm__waiters_wake((struct lm__span){w.page, lm__page_bytes()});
            return;
        }
        if (is_frozen(r, state)) {
            serve_frozen(r, chunk_idx, fault, state, scratch);
            return;
        }
        int claimed = lm__chunks_claim(&r->chunks, chunk_idx, state);
        if (claimed == 0)
            continue;
        /* 0: a fill has ended meanwhile, and wakes the thread. */
        int is_ours = claimed > 0 ? lm__waiter_serve(w) : lm__waiter_take(w);
        if (is_ours && claimed < 0) {
            serve_unclaimed(r, chunk_idx, fault, claimed, scratch);
        } else if (is_ours && !lm__interrupt_is_pending(fault->tid)) {
            serve_claimed(r, chunk_idx, fault, state, scratch);
        } else {
            if (is_ours && lm__waiter_take(w))
                serve_interrupted(r, chunk_idx, fault, state, scratch);
            if (claimed > 0)
                lm__fill_unclaim(r, chunk_idx, state);
        }
        return;
    }
}

/* ---- nobody's memory ---------------------------------------------------------------------------- */

/* A page that is there, and protected: mremap() has moved it from where writes are tracked. */
static void serve_moved(const struct lm__fault *fault, struct lm__scratch *scratch)
{
    struct lm__waiter w = lm__waiter_of(fault);
    struct lm_error cause = lm__error(LM_E_LOST_MAPPING, "address");
    cause.found = fault->addr;
    if (lm__region_unprotect_dangling(fault->addr)) {
        lm__will_block(scratch);
        lm__failure_report(fault->tid, &cause);
        lm__failure_wait_announced(fault->tid, LM_ANNOUNCE_MS);
    }
    lm__waiters_wake((struct lm__span){w.page, lm__page_bytes()});
}

static void serve_dangling(const struct lm__fault *fault, struct lm__scratch *scratch)
{
    struct lm__waiter w = lm__waiter_of(fault);
    lm__pause("no region");
    enum lm__suspicion suspicion = lm__suspect_begin(w);
    if (suspicion == LM_SUSPECT_ELSEWHERE)
        return;
    if (suspicion == LM_SUSPECT_BEGUN) {
        lm__will_block(scratch);
        int has_come = lm__waiter_comes_again(w);
        int code = has_come ? lm__region_dangling_code(fault->addr) : 0;
        if (code != 0) {
            struct lm_error cause = lm__error(code, "address");
            cause.found = fault->addr;
            lm__failure_report(fault->tid, &cause);
            lm__failure_wait_announced(fault->tid, LM_ANNOUNCE_MS);
        }
        if (has_come)
            lm__region_serve_dangling(fault->addr);
        lm__suspect_end(w);
    }
    /* Served, or to fault once more: on a new owner's memory, for want of memory now, or to
     * get SIGSEGV where nothing is mapped any more. */
    lm__waiters_wake((struct lm__span){w.page, lm__page_bytes()});
}

void lm__fault_serve(const struct lm__fault *fault, struct lm__scratch *scratch)
{
    lm__pause("waiter entered");
    lm__gate_enter(scratch);
    lm_region *r = lm__region_find(fault->addr);
    if (r) {
        serve_region(r, fault, scratch);
        lm__region_drop(r);
    } else if (fault->is_protected) {
        serve_moved(fault, scratch);
    } else {
        serve_dangling(fault, scratch);
    }
    lm__gate_leave();
    if (scratch->late_bytes > 0) {
        lm__will_block(scratch);
        lm__budget_await_room(ROOM_MS);
        lm__waiters_wake((struct lm__span){scratch->late_addr, scratch->late_bytes});
        scratch->late_bytes = 0;
    }
}
