/* SPDX-License-Identifier: BSD-3-Clause
 * source.c - stored bytes, read and checked.
 *
 * The file is read with pread and never mapped: a file that shrinks or a disk that fails is
 * an error here, where a mapping would kill the process with SIGBUS.
 */
#include "internal.h"

int lm__source_read(const struct lm__source *source, const struct lm__entry *e,
                    const char *what, struct lm__scratch *scratch, void *buf,
                    struct lm_error *err)
{
    struct lm_error cause = lm__error(LM_E_FORMAT, what);
    cause.offset = e->offset;
    if (e->offset < LM_SUPERBLOCK_BYTES || e->offset > source->end_offset ||
        e->stored_bytes > source->end_offset - e->offset) {
        cause.expected = source->end_offset;
        cause.found = e->offset + e->stored_bytes;
        return lm__fail(err, cause);
    }
    if (lm__io_pread_cached(source->fd, e->offset, e->stored_bytes, buf) != 0) {
        if (scratch->will_block)
            scratch->will_block();
        cause.code = lm__io_pread(source->fd, e->offset, e->stored_bytes, buf);
        if (cause.code != 0) {
            uint64_t file_bytes;
            if (lm__io_file_bytes(source->fd, &file_bytes) == 0) {
                cause.expected = e->offset + e->stored_bytes;
                cause.found = file_bytes;
            }
            return lm__fail(err, cause);
        }
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
