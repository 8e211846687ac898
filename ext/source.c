/* SPDX-License-Identifier: BSD-3-Clause
 * source.c - stored bytes, read and checked.
 *
 * The file is read with pread and never mapped: a file that shrinks or a disk that fails is
 * an error here, where a mapping would kill the process with SIGBUS.
 *
 * Reads that go here and there wait for the disk one by one.  Where some of them have fallen into
 * one area of the file, the disk is asked for all of it: that takes it as long as they took, so
 * at worst the disk works twice as long as it had to (ski rental).
 */
#include <errno.h>

#include "internal.h"

#define AREA_BYTES_SHIFT 20
#define WAITS_MAX        6 /* in an area: 130 us each, on a disk that reads 1 MiB in 0.7 ms */
#define READ_RETRIES     3 /* with pauses of 1, 4 and 16 ms: a hiccup, not an outage */

/* A read there has to wait, or is left to one that will.  Of areas that share a word the last one
 * counts. */
static void note_wait(struct lm__source *source, uint64_t offset)
{
    if (lm_load_relaxed(&source->waited_at) == offset)
        return;
    lm_store_relaxed(&source->waited_at, offset);
    uint64_t area = offset >> AREA_BYTES_SHIFT;
    _Atomic uint32_t *word = &source->waits[area % LM_SOURCE_AREAS];
    uint32_t first = (uint32_t)(area * (WAITS_MAX + 1) + 1),
             waits = lm_load_relaxed(word);
    waits = waits - first < WAITS_MAX ? waits + 1 : first;
    lm_store_relaxed(word, waits);
    if (waits - first == WAITS_MAX - 1)
        lm__io_will_need(source->fd, area << AREA_BYTES_SHIFT, 1 << AREA_BYTES_SHIFT);
}

int lm__source_read(struct lm__source *source, const struct lm__entry *e,
                    const char *what, struct lm__scratch *scratch, void *buf,
                    struct lm_error *err)
{
    struct lm_error cause = lm__error(LM_E_FORMAT, what);
    cause.offset = e->offset;
    uint64_t end_offset = lm_load_acquire(&source->end_offset);
    if (e->offset < LM_SUPERBLOCK_BYTES || e->offset > end_offset ||
        e->stored_bytes > end_offset - e->offset) {
        cause.expected = end_offset;
        cause.found = e->offset + e->stored_bytes;
        return lm__fail(err, cause);
    }
    if (lm__io_pread_cached(source->fd, e->offset, e->stored_bytes, buf) != 0) {
        note_wait(source, e->offset);
        if (scratch->is_cached_only) {
            lm__io_will_need(source->fd, e->offset, e->stored_bytes);
            cause.code = -EAGAIN;
            return lm__fail(err, cause);
        }
        if (scratch->will_block)
            scratch->will_block(scratch);
        /* A source that has just failed for good is not waited for, read by read. */
        int is_failing = lm_load_relaxed(&source->is_failing);
        cause.code = lm__io_pread(source->fd, e->offset, e->stored_bytes, buf,
                                  is_failing ? 0 : READ_RETRIES);
        if ((cause.code != 0) != is_failing)
            lm_store_relaxed(&source->is_failing, cause.code != 0);
        if (cause.code == LM_E_TRUNCATED &&
            lm__io_file_bytes(source->fd, &cause.found) == 0)
            cause.expected = e->offset + e->stored_bytes;
        if (cause.code != 0)
            return lm__fail(err, cause);
    }
    uint32_t crc = lm_crc32c(0, buf, e->stored_bytes);
    if (crc != e->crc) {
        cause.code = LM_E_CHECKSUM;
        cause.expected = e->crc;
        cause.found = crc;
        return lm__fail(err, cause);
    }
    return 0;
}
