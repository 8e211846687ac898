/* SPDX-License-Identifier: BSD-3-Clause
 * payload.c - stored bytes become a chunk's: read, check, decompress, unshuffle.
 */
#include <errno.h>

#include "internal.h"

/* Where the bytes go on their way: the last station is `to`. */
struct way {
    uint8_t *stored, *decoded, *to;
};

/* Stored bytes are read where the next station is not. */
static struct way way_of(const struct lm__entry *e, struct lm__scratch *s, uint8_t *to)
{
    int is_decoded = e->codec != LM_CODEC_NONE;
    int is_filtered = e->filter != LM_FILTER_NONE;
    struct way way = {.to = to ? to : s->a};
    way.decoded = is_filtered ? s->b : way.to;
    way.stored = !is_decoded ? way.decoded : is_filtered ? s->a : s->b;
    return way;
}

int lm__payload_decode(struct lm__source *source, const struct lm__entry *e,
                       uint32_t shuffle_width, size_t bytes, struct lm__scratch *s,
                       uint8_t **out, uint64_t *stored_bytes, struct lm_error *err)
{
    struct lm_error cause = lm__error(LM_E_DECODE, "payload");
    cause.offset = e->offset;
    cause.expected = bytes;
    /* Whole pages are installed, so the buffers hold whole pages. */
    int rc = lm__scratch_reserve(s, lm__round_up(bytes, lm__page_bytes()));
    if (rc != 0) {
        cause.code = rc;
        return lm__fail(err, cause);
    }
    struct way way = way_of(e, s, *out);
    rc = lm__source_read(source, e, "payload", s, way.stored, err);
    if (rc != 0)
        return rc;
    *stored_bytes += e->stored_bytes;
    if (e->codec != LM_CODEC_NONE) {
        int64_t n = lm__codec(e->codec)->decode(s, way.stored, e->stored_bytes,
                                                way.decoded, bytes);
        if (n != (int64_t)bytes) {
            cause.code = n == -ENOMEM ? -ENOMEM : LM_E_DECODE;
            if (n >= 0)
                cause.found = (uint64_t)n;
            return lm__fail(err, cause);
        }
    }
    if (e->filter == LM_FILTER_SHUFFLE)
        lm__unshuffle(shuffle_width, bytes, way.decoded, way.to);
    *out = way.to;
    return 0;
}
