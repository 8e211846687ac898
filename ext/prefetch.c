/* SPDX-License-Identifier: BSD-3-Clause
 * prefetch.c - filling a range of a region before anybody touches it, on all cores.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct prefetch {
    lm_region *region;
    uint64_t first_chunk;
};

static int prefetch_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                         struct lm_error *err)
{
    const struct prefetch *p = context;
    return lm__fill_ahead(p->region, p->first_chunk + step_idx, scratch, err);
}

static void prefetch_free(void *context)
{
    struct prefetch *p = context;
    lm__region_drop(p->region);
    free(p);
}

int lm_region_prefetch(lm_region *r, uint64_t offset, uint64_t nbytes, lm_job **out)
{
    uint64_t object_bytes = r->object->spec.object_bytes;
    unsigned shift = r->chunk_shift;
    if (nbytes == 0 || offset > object_bytes || nbytes > object_bytes - offset)
        return -EINVAL;
    struct prefetch *p = malloc(sizeof *p);
    if (!p)
        return -ENOMEM;
    *p = (struct prefetch){.region = r, .first_chunk = offset >> shift};
    lm_region_retain(r);
    struct lm__job_spec spec = {
        .step = prefetch_step,
        .free_context = prefetch_free,
        .context = p,
        .steps = ((offset + nbytes - 1) >> shift) - p->first_chunk + 1,
    };
    return lm__job_start(&spec, out);
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
