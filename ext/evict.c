/* SPDX-License-Identifier: BSD-3-Clause
 * evict.c - giving the memory of chunks back: when it is asked for, or there is no room for others.
 *
 *   CLEAN --claim--> FILLING --pages dropped, uncharged--> ABSENT: the next touch fills it again
 *   DIRTY, SAVED --claim--> REFILLING --copied, spilled, the same--> SPILLED: likewise
 *
 * Who needs room makes it himself, or comes again later, when chunks may be dropped that may not
 * now.  The evictor, a thread of its own, spills, and keeps a little room free.
 */
#include <errno.h>
#include <time.h>

#include "internal.h"

#define WAIT_MS         20

#define EVICTOR_REST_NS 10000000L

/* Give claimed chunks up and let those who wait for them fault again. */
void lm__run_abandon(lm_region *r, struct lm__run run)
{
    for (uint64_t i = 0; i < run.count; i++)
        lm__chunks_abandon(&r->chunks, run.first + i);
    lm__waiters_wake(lm__region_run_span(r, run));
}

/* ---- dropping ---------------------------------------------------------------------------------- */

/* Chunks that the caller has claimed.  While they are his, nobody charges them anew. */
static void drop(lm_region *r, struct lm__run run)
{
    struct lm__span span = lm__region_run_span(r, run);
    lm__pages_drop(span.addr, span.bytes);
    lm__budget_uncharge(r, run, 1);
    lm__run_abandon(r, run);
}

/* Those from `first` on, before `end`, as far as they are CLEAN.  Returns how many. */
static uint64_t drop_clean(lm_region *r, uint64_t first, uint64_t end)
{
    struct lm__run run = {first, 0};
    while (first + run.count < end &&
           lm__chunks_claim(&r->chunks, first + run.count, LM_CHUNK_CLEAN) > 0)
        run.count++;
    if (run.count > 0)
        drop(r, run);
    return run.count;
}

uint64_t lm_region_evict(lm_region *r, uint64_t offset, uint64_t nbytes)
{
    uint64_t object_bytes = r->object->spec.object_bytes, evicted_bytes = 0;
    unsigned shift = r->chunk_shift;
    if (offset > object_bytes || nbytes > object_bytes - offset)
        return 0;
    uint64_t idx = lm__div_up(offset, 1ull << shift), end = (offset + nbytes) >> shift;
    if (offset + nbytes == object_bytes)
        end = r->chunks.count; /* the last chunk may be shorter */
    while ((idx = lm__chunks_next(&r->chunks, idx, end, LM_CHUNKS_CLEAN)) < end) {
        /* A huge page is given back whole, or is split first. */
        uint64_t unit = lm__round_up((idx + 1) << shift, LM_HUGE_BYTES) >> shift;
        lm__gate_enter(NULL);
        uint64_t count = drop_clean(r, idx, unit < end ? unit : end);
        lm__gate_leave();
        for (uint64_t i = idx; i < idx + count; i++)
            evicted_bytes += lm__region_chunk_bytes(r, i);
        idx += count > 0 ? count : 1;
    }
    return evicted_bytes;
}

int lm__evict_any(lm_region *r, uint64_t chunk_idx)
{
    const struct timespec pause = {.tv_nsec = 50000};
    for (;;) {
        lm__gate_enter(NULL);
        int claimed = lm__chunks_claim_to_drop(&r->chunks, chunk_idx);
        if (claimed > 0)
            lm__chunks_drop_extent(&r->chunks, chunk_idx);
        if (claimed == 1)
            drop(r, (struct lm__run){chunk_idx, 1});
        else if (claimed == 2)
            lm__run_abandon(r, (struct lm__run){chunk_idx, 1});
        lm__gate_leave();
        if (claimed >= 0)
            return claimed > 0;
        nanosleep(&pause, NULL);
    }
}

/* ---- spilling: a thread that may touch served memory --------------------------------------------- */

/* A chunk that the caller has claimed.  0 or -errno. */
static int spill_bytes(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch)
{
    size_t bytes = lm__region_chunk_bytes(r, chunk_idx);
    struct lm_encoding enc = {
        .shuffle_width = r->object->spec.shuffle_width,
        .codec = lm__codec(LM_CODEC_LZ4) ? LM_CODEC_LZ4 : LM_CODEC_NONE,
        .level = 1,
    };
    struct lm__extent *extent;
    int rc = lm__scratch_reserve_block(scratch, bytes);
    if (rc == 0)
        rc = lm__chunk_copy(r, chunk_idx, scratch->block);
    if (rc == 0)
        rc = lm__spill_put(lm__budget_spill(r), &enc, scratch->block, bytes, scratch,
                           &extent);
    if (rc == 0 && (rc = lm__chunks_set_extent(&r->chunks, chunk_idx, extent)) != 0)
        lm__extent_drop(extent);
    lm__budget_spilled(r, rc);
    return rc;
}

/* A SAVED chunk is the file's only with the commit. */
static int claim_written(lm_region *r, uint64_t chunk_idx)
{
    return lm__chunks_claim(&r->chunks, chunk_idx, LM_CHUNK_DIRTY) > 0 ||
           lm__chunks_claim(&r->chunks, chunk_idx, LM_CHUNK_SAVED) > 0;
}

/* Written chunks of a run become the caller's, and nobody can write to them: REFILLING. */
static uint64_t claim_run(lm_region *r, struct lm__run run)
{
    struct lm__run claimed = {run.first, 0};
    if (!lm__writes_try_pause(r))
        return 0;
    while (claimed.count < run.count && claim_written(r, run.first + claimed.count))
        claimed.count++;
    struct lm__span span = lm__region_run_span(r, claimed);
    int is_protected =
        claimed.count > 0 && lm__uffd_protect(span.addr, span.bytes, 1) == 0;
    if (!is_protected)
        lm__run_abandon(r, claimed);
    lm__writes_resume(r);
    return is_protected ? claimed.count : 0;
}

/* Returns how many chunks are SPILLED now, from the run's first on. */
static uint64_t spill(lm_region *r, struct lm__run run, struct lm__scratch *scratch)
{
    uint64_t count = claim_run(r, run), spilled = 0;
    int rc = 0;
    for (uint64_t i = 0; i < count; i++) {
        struct lm__run one = {run.first + i, 1};
        if (rc == 0 && !lm__chunks_extent(&r->chunks, one.first)) /* written since */
            rc = spill_bytes(r, one.first, scratch);
        int is_spilled = lm__chunks_extent(&r->chunks, one.first) != NULL;
        if (is_spilled)
            drop(r, one);
        else
            lm__run_abandon(r, one); /* DIRTY again */
        spilled += (uint64_t)is_spilled;
    }
    return spilled;
}

/* ---- making room: in the gate ------------------------------------------------------------------- */

/* Without a scratch, only what is CLEAN. */
static void evict(const struct lm__victim *v, struct lm__scratch *scratch)
{
    uint64_t first = v->run.first, end = first + v->run.count, dropped = 0, n = 1;
    for (; first < end && n > 0; first += n, dropped += n) {
        n = drop_clean(v->region, first, end);
        if (n == 0 && scratch)
            n = spill(v->region, (struct lm__run){first, end - first}, scratch);
    }
    lm__budget_return(v, dropped);
    lm__region_drop(v->region);
}

int lm__evict_for(lm_region *r, struct lm__run run, struct lm_error *err)
{
    struct lm__victim victim;
    enum lm__room room;
    while ((room = lm__budget_charge(r, run, &victim)) == LM_ROOM_VICTIM)
        evict(&victim, NULL);
    if (room == LM_ROOM_CHARGED)
        return 0;
    if (room == LM_ROOM_NONE)
        return LM_LATER;
    int spill_error = lm__budget_take_spill_error(r);
    struct lm_error cause = lm__error(LM_E_BUDGET, "room for the chunk");
    cause.expected = lm__region_run_span(r, run).bytes;
    cause.found = lm__budget_limit(r);
    if (spill_error)
        cause = lm__error(spill_error, "spill of what was written, to make room");
    lm__region_blame(r, run.first, &cause);
    return lm__fail(err, cause);
}

/* ---- the evictor --------------------------------------------------------------------------------- */

static enum lm__room evict_excess(struct lm__scratch *scratch)
{
    struct lm__victim victim;
    lm__gate_enter(NULL);
    enum lm__room room = lm__budget_take_excess(&victim);
    if (room == LM_ROOM_VICTIM)
        evict(&victim, scratch);
    lm__gate_leave();
    return room;
}

static void evictor(void)
{
    const struct timespec rest = {.tv_nsec = EVICTOR_REST_NS};
    struct lm__scratch scratch = {0};
    for (;;) {
        enum lm__room room;
        lm__budget_await_excess();
        while ((room = evict_excess(&scratch)) == LM_ROOM_VICTIM)
            continue;
        if (room == LM_ROOM_NONE) /* what is left can't go now */
            nanosleep(&rest, NULL);
    }
}

static _Atomic int g_is_running;

int lm__evictor_start(void)
{
    static const struct lm__thread thread = {evictor, "lazymem-evict"};
    int is_running = 0;
    if (!lm_cas_acq_rel(&g_is_running, &is_running, 1))
        return 0;
    int rc = lm__thread_start(&thread);
    if (rc != 0)
        lm_store_release(&g_is_running, 0);
    return rc;
}

void lm__evictor_fork_child(void) { lm_store_relaxed(&g_is_running, 0); }

/* ---- for the program ------------------------------------------------------------------------------ */

static void drop_what_is_too_much(lm_budget *b)
{
    struct lm__scratch scratch = lm__scratch_take();
    while (lm__budget_is_over(b) && evict_excess(&scratch) == LM_ROOM_VICTIM)
        continue;
    lm__scratch_give(&scratch);
}

void lm_budget_set_limit(lm_budget *b, uint64_t limit_bytes)
{
    lm__budget_set_limit(b, limit_bytes);
    drop_what_is_too_much(b);
}

int lm_region_set_budget(lm_region *r, lm_budget *b)
{
    int rc = b ? lm__evictor_start() : 0;
    if (rc != 0)
        return rc;
    lm__gate_close(); /* a fill is charged to one budget, and ends there */
    rc = lm__budget_join(r, b);
    lm__gate_open();
    if (rc == 0 && b)
        drop_what_is_too_much(b);
    return rc;
}
