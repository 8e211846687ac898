/* SPDX-License-Identifier: BSD-3-Clause
 * block.c - several chunks decoded side by side, to be installed as one.
 *
 * A page can be larger than a chunk (hugetlb; 64 KiB pages): it needs all its chunks at once.
 * And 2 MiB can be moved into a region in one piece.
 */
#include <errno.h>

#include "internal.h"

static int fail_for_memory(const lm_object *o, const struct lm__block *block,
                           struct lm_error *err)
{
    struct lm_error cause = lm__error(-ENOMEM, "memory to decode");
    cause.tag = o->spec.tag;
    cause.chunk_idx = block->offset >> o->chunk_shift;
    cause.expected = block->bytes;
    return lm__fail(err, cause);
}

/* A chunk alone, in one of the scratch's buffers. */
static int decode_one(lm_object *o, struct lm__block *block, struct lm__scratch *s,
                      struct lm_error *err)
{
    uint64_t chunk_idx = block->offset >> o->chunk_shift;
    size_t used = lm__object_chunk_bytes(o, chunk_idx);
    int rc =
        lm__object_decode(o, chunk_idx, s, &block->data, &block->stored_bytes, err);
    if (rc < 0)
        return rc;
    block->is_zero = rc == LM_ZERO_CHUNK;
    if (!block->is_zero)
        memset(block->data + used, 0, block->bytes - used);
    return 0;
}

static int decode_all(lm_object *o, struct lm__block *block, struct lm__scratch *s,
                      struct lm_error *err)
{
    uint64_t chunk_idx = block->offset >> o->chunk_shift;
    size_t done = 0;
    block->is_zero = 1;
    for (; done < block->bytes && chunk_idx < o->chunks; chunk_idx++) {
        size_t bytes = lm__object_chunk_bytes(o, chunk_idx);
        uint8_t *to = block->data + done;
        int rc = lm__object_decode(o, chunk_idx, s, &to, &block->stored_bytes, err);
        if (rc < 0)
            return rc;
        block->is_zero &= rc == LM_ZERO_CHUNK;
        if (rc == LM_ZERO_CHUNK)
            memset(to, 0, bytes);
        done += bytes;
    }
    memset(block->data + done, 0, block->bytes - done);
    return 0;
}

int lm__block_decode(lm_object *o, struct lm__block *block, struct lm__scratch *s,
                     struct lm_error *err)
{
    if (!block->is_apart && (block->bytes <= o->spec.chunk_bytes || o->chunks == 1))
        return decode_one(o, block, s, err);
    if (lm__scratch_reserve_block(s, block->bytes) != 0 ||
        lm__object_reserve(o, s) != 0)
        return fail_for_memory(o, block, err);
    block->data = s->block;
    lm__scratch_block_begin(s);
    int rc = decode_all(o, block, s, err);
    lm__scratch_block_filled(s, block->bytes);
    return rc;
}

const uint8_t *lm__block_ones(struct lm__scratch *s, size_t bytes)
{
    if (lm__scratch_reserve_block(s, bytes) != 0)
        return NULL;
    return memset(s->block, 0xFF, bytes);
}
