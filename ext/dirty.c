/* SPDX-License-Identifier: BSD-3-Clause
 * dirty.c - which chunks of tracked memory are written: the first write to a clean one faults.
 *
 *   CLEAN, all pages write-protected --fault--> DIRTY, none protected: no more faults
 *
 * (D1) A chunk is DIRTY before its first page can be written.
 *
 * Who writes chunk after chunk would fault at each.  So ever more of what follows a run is made
 * DIRTY ahead of its writer.  Who writes here and there faults at a quarter of an area's chunks,
 * which costs as much as to unprotect the rest of it; then that is done (ski rental).  What is
 * not written after all is found equal when it is to be stored.
 */
#include "internal.h"

#define AHEAD_BYTES_MAX ((uint64_t)16 << 20)
#define PIECE_BYTES     ((uint64_t)2 << 20) /* a freeze waits for one */
#define AREA_CHUNKS_MIN 8                   /* of PIECE_BYTES */

/* Where the mapping was changed from outside it may fail: then the next write faults. */
static void unprotect(const lm_region *r, uint64_t chunk_idx, uint64_t count)
{
    struct lm__span span = lm__region_run_span(r, (struct lm__run){chunk_idx, count});
    lm__pause("let write");
    lm__uffd_protect(span.addr, span.bytes, 0);
    lm__waiters_wake(span);
}

/* How many chunks to let be written ahead of one that is written first: none, or as many as
 * the run has had so far. */
static uint64_t ahead_of(const lm_region *r, uint64_t chunk_idx)
{
    uint64_t most = AHEAD_BYTES_MAX >> r->chunk_shift;
    uint64_t run = lm_load_relaxed(&r->writes.run);
    if (chunk_idx == 0 || lm_load_relaxed(&r->writes.next) != chunk_idx)
        return 0;
    return run < most ? run : most;
}

/* CLEAN -> DIRTY, from `chunk_idx` on, as far as they are CLEAN.  Returns how many. */
static uint64_t take_clean(lm_region *r, uint64_t chunk_idx, uint64_t most)
{
    uint64_t count = 0;
    while (
        count < most && chunk_idx + count < r->chunks.count &&
        lm__chunks_move(&r->chunks, chunk_idx + count, LM_CHUNK_CLEAN, LM_CHUNK_DIRTY))
        count++;
    return count;
}

/* A chunk has become DIRTY: let the rest of its area be written, too, once a quarter is. */
static void let_write_around(lm_region *r, uint64_t chunk_idx)
{
    uint64_t most = PIECE_BYTES >> r->chunk_shift, dirty = 0;
    if (most < AREA_CHUNKS_MIN)
        return;
    uint64_t first = chunk_idx / most * most, end = first + most;
    for (uint64_t i = first; i < end && i < r->chunks.count; i++)
        dirty += lm__chunks_state(&r->chunks, i) == LM_CHUNK_DIRTY;
    if (dirty < most / 4)
        return;
    for (uint64_t count; first < end; first += count + 1) {
        count = take_clean(r, first, end - first);
        if (count > 0)
            unprotect(r, first, count);
    }
}

/* A DIRTY chunk has a writer, who goes on at once, while we look after what may come next: the
 * pages' protection costs as much as writing them does, but on another core.  0: a freeze has
 * begun, and the caller's lm__writes_begin() is ended. */
static int let_write(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch)
{
    uint64_t ahead = ahead_of(r, chunk_idx), next = chunk_idx + 1, count;
    uint64_t piece = PIECE_BYTES >> r->chunk_shift;
    lm_store_relaxed(&r->writes.next, next);
    lm_store_relaxed(&r->writes.run, 2 * ahead + 1);
    unprotect(r, chunk_idx, 1);
    if (ahead == 0)
        let_write_around(r, chunk_idx);
    else if (scratch->will_block)
        scratch->will_block(scratch);
    if (piece == 0)
        piece = 1;
    for (; ahead > 0; ahead -= count) {
        count = take_clean(r, next, ahead < piece ? ahead : piece);
        if (count == 0)
            break;
        next += count;
        lm_store_relaxed(&r->writes.next, next); /* who catches up goes on from there */
        unprotect(r, next - count, count);
        lm__writes_end(r);
        if (!lm__writes_begin(r))
            return 0;
    }
    return 1;
}

static void drop_false_bytes(lm_region *r, uint64_t chunk_idx,
                             enum lm__chunk_state state)
{
    if (lm__chunks_claim(&r->chunks, chunk_idx, state) > 0) {
        lm__kept_drop_in(lm__region_span(r, chunk_idx));
        lm__chunks_abandon(&r->chunks, chunk_idx);
        lm__waiters_wake(lm__region_span(r, chunk_idx));
    }
}

void lm__write_serve(lm_region *r, uint64_t chunk_idx, const struct lm__fault *fault,
                     struct lm__scratch *scratch)
{
    lm_add_relaxed(&r->writes.faults, 1);
    if (!lm__writes_begin(r))
        return; /* the freeze's end wakes the thread */
    for (int is_served = 0; !is_served;) {
        enum lm__chunk_state state = lm__chunks_state(&r->chunks, chunk_idx);
        is_served = 1;
        switch (state) {
        case LM_CHUNK_FILLING:
        case LM_CHUNK_REFILLING:
        case LM_CHUNK_COPYING: break; /* whose end wakes it, too */
        case LM_CHUNK_FROZEN: lm__freeze_hurry(r, chunk_idx); break;
        case LM_CHUNK_CLEAN:
        case LM_CHUNK_SAVED:
            is_served = lm__chunks_move(&r->chunks, chunk_idx, state, LM_CHUNK_DIRTY);
            if (is_served && !let_write(r, chunk_idx, scratch))
                return;
            break;
        case LM_CHUNK_DIRTY: /* maybe it was filled from the spill file */
            lm__chunks_drop_extent(&r->chunks, chunk_idx);
            unprotect(r, chunk_idx, 1);
            break;
        case LM_CHUNK_ABSENT: /* dropped meanwhile, or false bytes: it faults anew */
        case LM_CHUNK_SPILLED:
            drop_false_bytes(r, chunk_idx, state);
            lm__waiters_wake(
                (struct lm__span){lm__waiter_of(fault).page, lm__page_bytes()});
            break;
        }
    }
    lm__writes_end(r);
}
