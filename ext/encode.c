/* SPDX-License-Identifier: BSD-3-Clause
 * encode.c - a chunk's bytes become a payload: shuffle, compress, checksum.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

#define PART_BYTES_MIN     4096  /* less is not worth tables of its own */
#define LZ4_PART_BYTES_MAX 65536 /* it has a denser table for up to as much */
#define GAIN_MIN_SHIFT     5 /* a chunk that shrinks by less than 1/32 is stored raw */

int lm__is_zero(const uint8_t *p, size_t bytes)
{
    /* Equal to itself shifted by one byte and beginning with zero: all zero. */
    return bytes == 0 || (p[0] == 0 && memcmp(p, p + 1, bytes - 1) == 0);
}

/* A plane of shuffled bytes, for LZ4 no more than it has a table for; 0: all at once. */
static size_t part_bytes(const struct lm_encoding *enc, size_t bytes)
{
    size_t part = enc->shuffle_width > 1 ? bytes / enc->shuffle_width : bytes;
    if (enc->codec == LM_CODEC_LZ4 && part > LZ4_PART_BYTES_MAX)
        part = LZ4_PART_BYTES_MAX;
    return enc->is_split && part >= PART_BYTES_MIN && part < bytes ? part : 0;
}

int lm__encode(const struct lm_encoding *enc, const uint8_t *src, size_t bytes,
               struct lm__scratch *scratch, uint8_t *dst, struct lm__entry *e)
{
    *e = (struct lm__entry){0};
    if (lm__is_zero(src, bytes))
        return 0;
    int64_t n = -1;
    if (enc->codec != LM_CODEC_NONE) {
        struct lm__plain plain = {.bytes = src, .count = bytes};
        int rc = lm__scratch_reserve(scratch, bytes);
        if (rc != 0)
            return rc;
        if (enc->shuffle_width > 1) {
            lm__shuffle(enc->shuffle_width, bytes, src, scratch->a);
            plain.bytes = scratch->a;
        }
        plain.part_bytes = part_bytes(enc, bytes);
        n = lm__codec(enc->codec)
                ->encode(scratch, &plain, enc->level, dst,
                         bytes - (bytes >> GAIN_MIN_SHIFT) - 1);
    }
    if (n > 0) {
        e->codec = (uint8_t)enc->codec;
        e->filter = enc->shuffle_width > 1 ? LM_FILTER_SHUFFLE : LM_FILTER_NONE;
        e->stored_bytes = (uint32_t)n;
    } else {
        memcpy(dst, src, bytes);
        e->stored_bytes = (uint32_t)bytes;
    }
    e->crc = lm_crc32c(0, dst, e->stored_bytes);
    return 0;
}

int lm__encoding_is_sound(const struct lm_encoding *enc)
{
    return enc->object_bytes > 0 && enc->object_bytes <= INT64_MAX &&
           lm__is_power_of_two(enc->chunk_bytes) &&
           enc->chunk_bytes >= LM_CHUNK_BYTES_MIN &&
           enc->chunk_bytes <= LM_CHUNK_BYTES_MAX &&
           enc->shuffle_width <= enc->chunk_bytes && lm__codec(enc->codec);
}

int lm_encoded_bytes(const struct lm_encoding *enc, const void *data, size_t data_bytes,
                     uint64_t *out_bytes)
{
    struct lm__entry e;
    if (!lm__encoding_is_sound(enc) || data_bytes > enc->chunk_bytes)
        return -EINVAL;
    struct lm__scratch scratch = lm__scratch_take();
    uint8_t *dst = malloc(data_bytes + 1);
    int rc = dst ? lm__encode(enc, data, data_bytes, &scratch, dst, &e) : -ENOMEM;
    if (rc == 0)
        *out_bytes = e.stored_bytes;
    free(dst);
    lm__scratch_give(&scratch);
    return rc;
}
