/* SPDX-License-Identifier: BSD-3-Clause
 * dirty.c - which chunks of tracked memory are written: the first write to a clean one faults.
 *
 *   CLEAN, all pages write-protected --fault--> DIRTY, none protected: no more faults
 *
 * (D1) A chunk is DIRTY before its first page can be written.
 *
 * Who writes chunk after chunk would fault at each.  So windows of what follows a run are made
 * DIRTY ahead of its writer, each twice as long as the last, but for the first chunk of each: its
 * fault says that the next window is due (compare ahead.c).  Who writes here and there faults at
 * a quarter of an area's chunks, which costs as much as to unprotect the rest of it; then that is
 * done (ski rental).  What is not written after all is found equal when it is to be stored.
 */
#include <stdlib.h>

#include "internal.h"

#define WINDOW_BYTES_MAX ((uint64_t)16 << 20)
#define PIECE_BYTES      ((uint64_t)4 << 20) /* a freeze waits for one */
#define AREA_BYTES       ((uint64_t)2 << 20)
#define AREA_CHUNKS_MIN  8

/* Where the mapping was changed from outside it may fail: then the next write faults. */
static void unprotect(const lm_region *r, uint64_t chunk_idx, uint64_t count)
{
    struct lm__span span = lm__region_run_span(r, (struct lm__run){chunk_idx, count});
    lm__pause("let write");
    lm__uffd_protect(span.addr, span.bytes, 0);
    lm__waiters_wake(span);
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
    uint64_t most = AREA_BYTES >> r->chunk_shift, dirty = 0;
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

/* ---- ahead of a run ---------------------------------------------------------------------- */

struct window {
    lm_region *region;
    struct lm__run chunks;
};

/* As far as they are CLEAN, nobody else goes on from there, and no freeze has come between.
 * Returns how many. */
static uint64_t let_write_piece(lm_region *r, struct lm__run piece)
{
    if (!lm__writes_begin(r))
        return 0;
    uint64_t count = 0;
    if (lm_load_relaxed(&r->writes.next) == piece.first)
        count = take_clean(r, piece.first, piece.count);
    if (count > 0) {
        lm_store_relaxed(&r->writes.next, piece.first + count);
        unprotect(r, piece.first, count);
    }
    lm__writes_end(r);
    return count;
}

/* A worker's: the pages' protection costs half of what writing them does. */
static int let_write_window(void *context, uint64_t step_idx,
                            struct lm__scratch *scratch, struct lm_error *err)
{
    const struct window *w = context;
    uint64_t most = lm__div_up(PIECE_BYTES, 1ull << w->region->chunk_shift), count = 1;
    struct lm__run left = w->chunks;
    (void)step_idx, (void)err;
    for (; left.count > 0 && count > 0; left.first += count, left.count -= count) {
        lm__gate_enter(scratch); /* a child is to find nothing half done */
        count = let_write_piece(
            w->region,
            (struct lm__run){left.first, left.count < most ? left.count : most});
        lm__gate_leave();
    }
    return 0;
}

static void window_free(void *context)
{
    struct window *w = context;
    lm__region_drop(w->region);
    free(w);
}

/* Without it every chunk faults. */
static void start_window(lm_region *r, struct lm__run chunks)
{
    lm_job *job;
    struct window *w = malloc(sizeof *w);
    if (!w)
        return;
    *w = (struct window){r, chunks};
    lm_region_retain(r);
    struct lm__job_spec spec = {
        .step = let_write_window,
        .steps = 1,
        .context = w,
        .free_context = window_free,
        .priority = LM_JOB_URGENT,
    };
    if (lm__job_start(&spec, &job) == 0)
        lm_job_close(job, LM_JOB_DETACH);
}

/* What to let be written ahead of a chunk that is written first; nothing, where it does not
 * belong to a run. */
static struct lm__run next_window(lm_region *r, uint64_t chunk_idx)
{
    struct lm__writes *w = &r->writes;
    uint64_t most = WINDOW_BYTES_MAX >> r->chunk_shift,
             window = 2 * lm_load_relaxed(&w->window);
    uint64_t next = lm_load_relaxed(&w->next);
    int is_run = chunk_idx > 0 && most > 1 &&
                 (chunk_idx == next || chunk_idx == lm_load_relaxed(&w->wire));
    if (!is_run)
        window = 1;
    else if (window > most)
        window = most;
    if (!is_run || next <= chunk_idx)
        next = chunk_idx + 1;
    lm_store_relaxed(&w->wire, next);
    lm_store_relaxed(&w->window, window);
    lm_store_relaxed(&w->next, next + is_run);
    return (struct lm__run){next + 1, window - 1};
}

/* A DIRTY chunk has a writer, who goes on at once, while we look after what may come next. */
static void let_write(lm_region *r, uint64_t chunk_idx)
{
    struct lm__run ahead = next_window(r, chunk_idx);
    unprotect(r, chunk_idx, 1);
    if (ahead.count > 0)
        start_window(r, ahead);
    else
        let_write_around(r, chunk_idx);
}

/* ---- a write fault ------------------------------------------------------------------------- */

static void drop_false_bytes(lm_region *r, uint64_t chunk_idx,
                             enum lm__chunk_state state)
{
    if (lm__chunks_claim(&r->chunks, chunk_idx, state) > 0) {
        lm__kept_drop_in(lm__region_span(r, chunk_idx));
        lm__chunks_abandon(&r->chunks, chunk_idx);
        lm__waiters_wake(lm__region_span(r, chunk_idx));
    }
}

void lm__write_serve(lm_region *r, uint64_t chunk_idx, const struct lm__fault *fault)
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
            if (is_served)
                let_write(r, chunk_idx);
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
