/* SPDX-License-Identifier: BSD-3-Clause
 * prefetch.c - filling a range of a region before anybody touches it, on all cores.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct prefetch {
    lm_region *region;
    uint64_t first, end;      /* chunks */
    uint64_t chunks_per_step; /* the first step may have less, and so may the last */
    int is_readahead;         /* chunks that others fill are left to them */
    int is_write;             /* for somebody who is about to write */
};

static int prefetch_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                         struct lm_error *err)
{
    const struct prefetch *p = context;
    uint64_t low = (p->first / p->chunks_per_step + step_idx) * p->chunks_per_step;
    uint64_t high = low + p->chunks_per_step;
    int rc = 0;
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

static int start(const struct prefetch *what, lm_job **out)
{
    struct prefetch *p = malloc(sizeof *p);
    if (!p)
        return -ENOMEM;
    *p = *what;
    p->chunks_per_step = chunks_per_step(p->region, p->end - p->first);
    lm_region_retain(p->region);
    struct lm__job_spec spec = {
        .step = prefetch_step,
        .free_context = prefetch_free,
        .context = p,
        .steps = lm__div_up(p->end, p->chunks_per_step) - p->first / p->chunks_per_step,
        .is_urgent = p->is_readahead,
    };
    return lm__job_start(&spec, out);
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
    return start(&all, out);
}

int lm__prefetch_after(lm_region *r, uint64_t before, uint64_t count, int is_write,
                       lm_job **out)
{
    struct prefetch ahead = {
        .region = r,
        .first = before + 1,
        .end = before + 1 + count,
        .is_readahead = 1,
        .is_write = is_write,
    };
    return start(&ahead, out);
}

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
