/* SPDX-License-Identifier: BSD-3-Clause
 * prefetch.c - filling a part of a region before anybody touches it, on all cores.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

/* Of a list, so that the lock of the workers costs nothing beside the decoding; and steps for
 * each core, so that none is idle for long at the end. */
#define LISTED_PER_STEP_MAX 16
#define LISTED_STEPS_A_CORE 8
/* Chunks of a list that the disk reads while those before them are decoded: enough for it to
 * work on several at a time, and little to have read in vain. */
#define LISTED_READ_AHEAD   32

/* The same of a range, in steps. */
#define READ_AHEAD_STEPS    4

/* Let the disk read chunks that are to be filled soon. */
static void start_reading(const lm_region *r, uint64_t first, uint64_t count,
                          struct lm__scratch *scratch)
{
    unsigned shift = r->chunk_shift - r->object->chunk_shift;
    lm__gate_enter(scratch); /* a child is to find nothing half done */
    lm__object_will_need(r->object, first << shift, count << shift, scratch);
    lm__gate_leave();
}

/* ---- a range -------------------------------------------------------------------------- */

struct prefetch {
    lm_region *region;
    uint64_t first, end;      /* chunks */
    uint64_t chunks_per_step; /* the first step may have less, and so may the last */
    uint64_t at; /* of strides: byte of the first, and how far to the next */
    int64_t stride;
    int is_readahead; /* chunks that others fill are left to them */
    int is_write;     /* for somebody who is about to write */
};

static int prefetch_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                         struct lm_error *err)
{
    const struct prefetch *p = context;
    uint64_t low = (p->first / p->chunks_per_step + step_idx) * p->chunks_per_step;
    uint64_t high = low + p->chunks_per_step;
    uint64_t ahead = READ_AHEAD_STEPS * p->chunks_per_step;
    uint64_t read = step_idx == 0 ? low : low + ahead, read_end = high + ahead;
    int rc = 0;
    if (!p->is_readahead &&
        read_end > p->end) /* else the next piece is about to follow */
        read_end = p->end;
    if (read < read_end)
        start_reading(p->region, read, read_end - read, scratch);
    if (low >= p->first && high <= p->end && p->chunks_per_step > 1 &&
        lm__fill_ahead_side_by_side(p->region, low, p->chunks_per_step, scratch))
        return 0;
    for (uint64_t i = low > p->first ? low : p->first;
         i < high && i < p->end && rc == 0; i++)
        rc = p->is_readahead
                 ? lm__fill_readahead(p->region, i, p->is_write, scratch, err)
                 : lm__fill_ahead(p->region, i, scratch, err);
    return rc;
}

static int stride_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                       struct lm_error *err)
{
    const struct prefetch *p = context;
    uint64_t offset = p->at + (uint64_t)(p->stride * (int64_t)step_idx);
    return lm__fill_readahead(p->region, offset >> p->region->chunk_shift, p->is_write,
                              scratch, err);
}

static void prefetch_free(void *context)
{
    struct prefetch *p = context;
    lm__region_drop(p->region);
    free(p);
}

/* Chunks that fill a huge page, where such pages can be moved into the region, and there are
 * some for every core. */
static uint64_t chunks_per_step(const lm_region *r, uint64_t chunks)
{
    uint64_t side_by_side = LM_HUGE_BYTES >> r->chunk_shift;
    if (side_by_side < 2 || chunks < lm__cores() * side_by_side ||
        !lm__region_can_move(r))
        return 1;
    return side_by_side;
}

static int start(const struct prefetch *what, struct lm__job_spec spec, lm_job **out)
{
    struct prefetch *p = malloc(sizeof *p);
    if (!p)
        return -ENOMEM;
    *p = *what;
    lm_region_retain(p->region);
    spec.free_context = prefetch_free;
    spec.context = p;
    spec.priority = p->is_readahead ? LM_JOB_URGENT : LM_JOB_NORMAL;
    return lm__job_start(&spec, out);
}

static int start_range(struct prefetch range, lm_job **out)
{
    uint64_t per_step = chunks_per_step(range.region, range.end - range.first);
    struct lm__job_spec spec = {
        .step = prefetch_step,
        .steps = lm__div_up(range.end, per_step) - range.first / per_step,
    };
    range.chunks_per_step = per_step;
    return start(&range, spec, out);
}

int lm_region_prefetch(lm_region *r, uint64_t offset, uint64_t nbytes, lm_job **out)
{
    uint64_t object_bytes = r->object->spec.object_bytes;
    unsigned shift = r->chunk_shift;
    if (nbytes == 0 || offset > object_bytes || nbytes > object_bytes - offset)
        return -EINVAL;
    struct prefetch all = {
        .region = r,
        .first = offset >> shift,
        .end = ((offset + nbytes - 1) >> shift) + 1,
    };
    return start_range(all, out);
}

void lm__prefetch_run(lm_region *r, uint64_t at, int64_t stride, uint64_t count,
                      int is_write)
{
    lm_job *job;
    struct prefetch run = {
        .region = r,
        .first = at >> r->chunk_shift,
        .end = (at >> r->chunk_shift) + count,
        .at = at,
        .stride = stride,
        .is_readahead = 1,
        .is_write = is_write,
    };
    struct lm__job_spec spec = {.step = stride_step, .steps = count};
    int is_range = stride == (int64_t)1 << r->chunk_shift;
    if ((is_range ? start_range(run, &job) : start(&run, spec, &job)) == 0)
        lm_job_close(job, LM_JOB_DETACH);
}

/* ---- a list --------------------------------------------------------------------------- */

struct listed {
    lm_region *region;
    uint64_t count, per_step;
    uint64_t chunks[];
};

static int is_absent(const lm_region *r, uint64_t chunk_idx)
{
    return lm__chunks_state(&r->chunks, chunk_idx) == LM_CHUNK_ABSENT;
}

/* Steps begin in ascending order: each asks for what is behind all that was asked for. */
static void read_ahead(const struct listed *list, uint64_t step_idx,
                       struct lm__scratch *scratch)
{
    uint64_t i = step_idx * list->per_step + (step_idx > 0 ? LISTED_READ_AHEAD : 0);
    uint64_t end = (step_idx + 1) * list->per_step + LISTED_READ_AHEAD;
    for (; i < end && i < list->count; i++)
        if (is_absent(list->region, list->chunks[i]))
            start_reading(list->region, list->chunks[i], 1, scratch);
}

static int listed_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                       struct lm_error *err)
{
    const struct listed *list = context;
    lm_region *r = list->region;
    uint64_t i = step_idx * list->per_step, left = list->count - i;
    uint64_t end = i + (left < list->per_step ? left : list->per_step);
    int rc = 0;
    read_ahead(list, step_idx, scratch);
    for (; i < end && rc == 0 && lm_load_relaxed(&r->refs) > 1; i++)
        if (is_absent(r, list->chunks[i]))
            rc = lm__fill_ahead(r, list->chunks[i], scratch, err);
    return rc;
}

static void listed_free(void *context)
{
    struct listed *list = context;
    lm__region_drop(list->region);
    free(list);
}

int lm_region_prefetch_chunks(lm_region *r, const uint64_t *chunks, uint64_t count,
                              int is_urgent, lm_job **out)
{
    *out = NULL;
    if (count > r->chunks.count)
        return -EINVAL;
    struct listed *list = malloc(sizeof *list + count * sizeof chunks[0]);
    if (!list)
        return -ENOMEM;
    list->region = r;
    list->count = 0;
    lm_region_retain(r);
    for (uint64_t i = 0; i < count; i++) {
        if (chunks[i] >= r->chunks.count) {
            listed_free(list);
            return -EINVAL;
        }
        if (is_absent(r, chunks[i]))
            list->chunks[list->count++] = chunks[i];
    }
    if (list->count < 2 || lm_load_seq_cst(&r->lost)) {
        listed_free(list);
        return 0;
    }
    uint64_t per_step = list->count / (LISTED_STEPS_A_CORE * lm__cores());
    list->per_step = per_step < 1                     ? 1
                     : per_step > LISTED_PER_STEP_MAX ? LISTED_PER_STEP_MAX
                                                      : per_step;
    struct lm__job_spec spec = {
        .step = listed_step,
        .free_context = listed_free,
        .context = list,
        .steps = lm__div_up(list->count, list->per_step),
        .priority = is_urgent ? LM_JOB_URGENT : LM_JOB_BACKGROUND,
    };
    return lm__job_start(&spec, out);
}

/* ---- in this thread -------------------------------------------------------------------- */

void lm_region_fill_here(lm_region *r, uint64_t offset)
{
    struct lm_error untold;
    if (offset >= r->object->spec.object_bytes)
        return;
    struct lm__scratch scratch = lm__scratch_take();
    scratch.is_cached_only = 1; /* Ctrl-C would not end a read */
    lm__fill_ahead(r, offset >> r->chunk_shift, &scratch, &untold);
    lm__scratch_give(&scratch);
}
