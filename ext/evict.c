/* SPDX-License-Identifier: BSD-3-Clause
 * evict.c - giving the memory of chunks back, to be filled again when they are touched.
 */
#include "internal.h"

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
        uint64_t count = lm__fill_evict(r, idx, unit < end ? unit : end);
        for (uint64_t i = idx; i < idx + count; i++)
            evicted_bytes += lm__region_chunk_bytes(r, i);
        idx += count > 0 ? count : 1;
    }
    return evicted_bytes;
}
