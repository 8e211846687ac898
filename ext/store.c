/* SPDX-License-Identifier: BSD-3-Clause
 * store.c - an open store file: its superblock, its last commit and that commit's manifest.
 *
 * Opening costs three small reads whatever the file holds.  Only a torn tail (a commit that
 * was interrupted) makes it search, backwards from the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

#define SCAN_BYTES (1u << 20)   /* read at once while searching: to be fast */
#define HINT_BYTES (128u << 10) /* a few pages of index, or a first chunk */

static int record_read(int fd, uint64_t offset, const uint8_t *store_id,
                       struct lm__record *rec, struct lm_error *err)
{
    uint8_t bytes[LM_RECORD_BYTES];
    int rc = lm__io_pread(fd, offset, sizeof bytes, bytes, 0);
    if (rc != 0)
        return lm__fail(err, lm__error(rc, "commit record"));
    return lm__record_decode(bytes, offset, store_id, rec, err);
}

/* Search [superblock, end) backwards for a valid record.  *err tells of the damaged record
 * nearest to the end, if there is one, else that none was found.  A record that is sealed but
 * senseless ends the search: an older state must not take its place unsaid. */
static int record_search(int fd, uint64_t end, const uint8_t *store_id,
                         struct lm__record *rec, struct lm_error *err)
{
    struct lm_error worst = lm__error(LM_E_NO_COMMIT, "commit record");
    worst.offset = worst.found = end;
    uint8_t *buf = malloc(SCAN_BYTES + LM_RECORD_BYTES);
    if (!buf)
        return lm__fail(err, lm__error(-ENOMEM, "commit record"));

    int rc = LM_E_NO_COMMIT, has_candidate = 0;
    for (uint64_t high = end; rc == LM_E_NO_COMMIT && high > LM_SUPERBLOCK_BYTES;) {
        uint64_t low = high > SCAN_BYTES + LM_SUPERBLOCK_BYTES
                           ? lm__round_down(high - SCAN_BYTES, LM_RECORD_ALIGN)
                           : LM_SUPERBLOCK_BYTES;
        uint64_t top = high + LM_RECORD_BYTES < end ? high + LM_RECORD_BYTES : end;
        int io = lm__io_pread(fd, low, (size_t)(top - low), buf, 0);
        if (io != 0) {
            worst = lm__error(io, "commit record");
            rc = io;
            break;
        }
        for (uint64_t at = lm__round_down(high - 1, LM_RECORD_ALIGN);
             at >= low && rc == LM_E_NO_COMMIT; at -= LM_RECORD_ALIGN) {
            struct lm_error e;
            if (at + LM_RECORD_BYTES > top)
                continue;
            int found = lm__record_decode(buf + (at - low), at, store_id, rec, &e);
            if (found != LM_E_MAGIC && !has_candidate)
                worst = e;
            has_candidate |= found != LM_E_MAGIC;
            if (found == 0 || found == LM_E_FORMAT)
                rc = found;
        }
        high = low;
    }
    free(buf);
    return rc == 0 ? 0 : lm__fail(err, worst);
}

static int store_read_head(lm_store *s, uint64_t file_bytes, struct lm_error *err)
{
    uint8_t bytes[LM_SUPERBLOCK_BYTES] = {0};
    struct lm__superblock sb;
    size_t head = file_bytes < sizeof bytes ? (size_t)file_bytes : sizeof bytes;
    int rc = lm__io_pread(s->source.fd, 0, head, bytes, 0);
    if (rc != 0)
        return lm__fail(err, lm__error(rc, "superblock"));
    rc = lm__superblock_decode(bytes, &sb, err);
    if (rc == LM_E_CHECKSUM && head < sizeof bytes) {
        struct lm_error cause = lm__error(LM_E_TRUNCATED, "superblock");
        cause.offset = 0;
        cause.expected = sizeof bytes;
        cause.found = file_bytes;
        return lm__fail(err, cause);
    }
    if (rc != 0)
        return rc;

    uint64_t end = lm__round_down(file_bytes, LM_RECORD_ALIGN);
    if (end >= LM_SUPERBLOCK_BYTES + LM_RECORD_BYTES &&
        record_read(s->source.fd, end - LM_RECORD_BYTES, sb.store_id, &s->record,
                    NULL) == 0)
        return 0;
    return record_search(s->source.fd, file_bytes, sb.store_id, &s->record, err);
}

/* On a cold disk: superblock and first payloads, and all that is at the end, in two reads side
 * by side instead of one small read after the other. */
static void hint_if_cold(int fd, uint64_t file_bytes)
{
    uint8_t end[LM_RECORD_BYTES];
    if (file_bytes > HINT_BYTES &&
        lm__io_pread_cached(fd, file_bytes - sizeof end, sizeof end, end) == 0)
        return;
    lm__io_will_need(fd, 0, HINT_BYTES);
    if (file_bytes > HINT_BYTES)
        lm__io_will_need(fd, file_bytes - HINT_BYTES, HINT_BYTES);
}

int lm_store_open(const char *path, lm_store **out, struct lm_commit *commit,
                  struct lm_error *err)
{
    uint64_t file_bytes;
    lm_store *s = calloc(1, sizeof *s);
    int rc = -ENOMEM;
    if (!s)
        return lm__fail(err, lm__error(rc, "store"));
    rc = lm__io_open(path, O_RDONLY | O_NONBLOCK, 0); /* a FIFO is no reason to wait */
    if (rc < 0) {
        lm__fail(err, lm__error(rc, "file"));
        goto free_store;
    }
    s->source.fd = rc;
    rc = lm__io_file_bytes(s->source.fd, &file_bytes);
    if (rc != 0) {
        lm__fail(err, lm__error(rc, "file"));
        goto close_fd;
    }
    hint_if_cold(s->source.fd, file_bytes);
    rc = store_read_head(s, file_bytes, err);
    if (rc != 0)
        goto close_fd;
    s->source.end_offset = s->record.offset;
    s->refs = 1;
    *commit = (struct lm_commit){
        .offset = s->record.offset,
        .sequence = s->record.sequence,
        .previous_offset = s->record.previous_offset,
        .time_ns = s->record.time_ns,
        .manifest_bytes = s->record.manifest_bytes,
        .file_bytes = file_bytes,
        .torn_bytes = file_bytes - s->record.offset - LM_RECORD_BYTES,
    };
    memcpy(commit->store_id, s->record.store_id, 16);
    *out = s;
    return 0;

close_fd:
    close(s->source.fd);
free_store:
    free(s);
    return rc;
}

int lm_store_manifest(lm_store *s, char *buf, struct lm_error *err)
{
    const struct lm__record *rec = &s->record;
    struct lm__scratch scratch = {0};
    struct lm_error cause = lm__error(LM_E_DECODE, "manifest");
    void *stored = malloc(rec->manifest.stored_bytes + 1u);
    if (!stored)
        return lm__fail(err, lm__error(-ENOMEM, "manifest"));
    int rc =
        lm__source_read(&s->source, &rec->manifest, "manifest", &scratch, stored, err);
    if (rc == 0 && !lm__codec(rec->manifest.codec)) {
        rc = lm__fail(err, lm__error(LM_E_CODEC, "manifest"));
    } else if (rc == 0) {
        int64_t n = lm__codec(rec->manifest.codec)
                        ->decode(&scratch, stored, rec->manifest.stored_bytes, buf,
                                 rec->manifest_bytes);
        if (n != (int64_t)rec->manifest_bytes) {
            cause.offset = rec->manifest.offset;
            cause.expected = rec->manifest_bytes;
            rc = lm__fail(err, cause);
        }
    }
    free(stored);
    return rc;
}

void lm__store_retain(lm_store *s) { lm_add_relaxed(&s->refs, 1); }

void lm_store_close(lm_store *s)
{
    if (lm_sub_acq_rel(&s->refs, 1) != 1)
        return;
    close(s->source.fd);
    free(s);
}
