/* SPDX-License-Identifier: BSD-3-Clause
 * strip.c - a region at a glance: how many chunks are in which state, in cells of a picture.
 *
 * Costs a read of each state word near a chunk that was ever filled, and of a pointer for each
 * leaf of words that does not exist.
 */
#include "internal.h"

static void count_cell(const lm_region *r, uint64_t idx, struct lm_strip_cell *cell)
{
    uint64_t end = idx + cell->chunks;
    int is_tracked = r->tracking != LM_TRACK_NONE;
    for (; (idx = lm__chunks_next(&r->chunks, idx, end, LM_CHUNKS_ANY)) < end; idx++) {
        enum lm__chunk_state state = lm__chunks_state(&r->chunks, idx);
        int is_dirty = state == LM_CHUNK_DIRTY || state == LM_CHUNK_REFILLING ||
                       state == LM_CHUNK_SPILLED;
        cell->resident += (uint64_t)lm__chunk_is_resident(state);
        cell->dirty += (uint64_t)(is_tracked && is_dirty);
    }
}

void lm_region_strip(const lm_region *r, uint64_t first_chunk, uint64_t chunks,
                     struct lm_strip_cell *cells, uint64_t count)
{
    lm_assert(first_chunk <= r->chunks.count &&
              chunks <= r->chunks.count - first_chunk);
    for (uint64_t i = 0; i < count; i++) {
        cells[i] = (struct lm_strip_cell){chunks / count + (i < chunks % count), 0, 0};
        if (!lm_load_seq_cst(&r->lost)) /* else a fill that ends late is not counted */
            count_cell(r, first_chunk, &cells[i]);
        first_chunk += cells[i].chunks;
    }
}
