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
        if (lm__fill_evict(r, idx))
            evicted_bytes += lm__region_chunk_bytes(r, idx);
        idx++;
    }
    return evicted_bytes;
}
