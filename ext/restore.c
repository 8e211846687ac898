/* SPDX-License-Identifier: BSD-3-Clause
 * restore.c - a region shows another state of its object, at the price of what differs.
 *
 *   differences of the two indexes --> the object has the other base --> what differs, and what
 *   was written, is dropped, and filled again when it is touched
 *
 * All differences are known before anything is changed, so an index that can't be read leaves
 * the region as it was.  A fill that has begun before the change is waited for, and dropped.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

struct runs {
    struct lm__run *all;
    uint64_t count, capacity;
};

static int add_run(struct runs *runs, struct lm__run run)
{
    int rc = lm__array_reserve(&runs->all, &runs->capacity, runs->count + 1,
                               sizeof runs->all[0]);
    if (rc == 0)
        runs->all[runs->count++] = run;
    return rc;
}

/* The object's chunks that differ. */
static int find_differences(lm_object *o, struct lm__base *to, struct runs *runs,
                            struct lm_error *err)
{
    struct lm__scratch scratch = lm__scratch_take();
    struct lm__base *from = lm__object_base(o);
    struct lm__run run = {0, 0};
    int found;
    do {
        found = lm__index_diff(&from->index, &from->store->source, &to->index,
                               &to->store->source, run.first + run.count, &scratch,
                               &run.first, &run.count, err);
        if (found > 0 && add_run(runs, run) != 0)
            found = lm__fail(err, lm__error(-ENOMEM, "restore"));
    } while (found > 0);
    lm__base_drop(from);
    lm__scratch_give(&scratch);
    return found;
}

/* What is in memory, or on its way there, of the region's chunks [idx, end). */
static uint64_t drop_range(lm_region *r, uint64_t idx, uint64_t end,
                           enum lm__chunk_set set)
{
    uint64_t dropped = 0;
    while ((idx = lm__chunks_next(&r->chunks, idx, end, set)) < end)
        dropped += (uint64_t)lm__evict_any(r, idx++);
    return dropped;
}

int lm_region_restore(lm_region *r, lm_store *store, const struct lm_root *root,
                      uint64_t *dropped, struct lm_error *err)
{
    unsigned shift = r->chunk_shift - r->object->chunk_shift;
    struct runs runs = {0};
    struct lm__base *to = lm__base_new(store, r->object->chunks, root);
    if (!to)
        return lm__fail(err, lm__error(-ENOMEM, "restore"));
    int rc = find_differences(r->object, to, &runs, err);
    if (rc != 0) {
        lm__base_drop(to);
        free(runs.all);
        return rc;
    }
    /* A handler that is about to lift the protection of a DIRTY chunk must not find it dropped,
     * and filled again as a CLEAN one: writes to that would not be found. */
    lm__writes_pause(r);
    lm__object_set_base(r->object, to);
    *dropped = drop_range(r, 0, r->chunks.count, LM_CHUNKS_DIRTY);
    for (uint64_t i = 0; i < runs.count; i++)
        *dropped += drop_range(
            r, runs.all[i].first >> shift,
            ((runs.all[i].first + runs.all[i].count - 1) >> shift) + 1, LM_CHUNKS_ANY);
    lm__writes_resume(r);
    free(runs.all);
    return 0;
}
