/* SPDX-License-Identifier: BSD-3-Clause
 * append.c - the end of a store file, where all cores append in one order.
 *
 *   chunks --> encode (workers, any order) --> ring --> append (in the order of the steps)
 *                                                '--> appended(): who asked notes the entry
 *
 * (A1) Payloads are appended in the order of a job's steps, by one thread at a time, so a
 *      file's bytes do not depend on how many threads wrote it.
 * (A2) Memory is bounded: a worker waits for room in the ring before it encodes.
 * (A3) After an error nothing more is appended.  A new file is then of no use; an old one is
 *      cut back to where its last whole addition ends, and goes on.
 * (A4) After a failed sync the kernel may hold lost bytes for clean, and the next sync
 *      succeeds without them.  So all since the last good one is written again before it,
 *      if it can still be read and its checksum is right; else there is no more commit.  The
 *      record that a writer goes on from is written again before its first sync.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

#define PAGE_GAIN_MIN_SHIFT                                                            \
    2 /* a page that shrinks by less than a quarter is stored raw */

#define AGAIN_BYTES (1u << 20) /* written at once after a failed sync: to be fast */

/* ---- errors -------------------------------------------------------------------------------- */

static int fail_locked(lm_writer *w, struct lm_error cause)
{
    if (w->error.code == 0)
        w->error = cause;
    pthread_cond_broadcast(&w->moved);
    return w->error.code;
}

int lm__append_check(lm_writer *w, struct lm_error *err)
{
    if (!lm__io_is_file(w->fd,
                        &w->file_id)) /* nothing of ours goes to a stranger's file */
        return lm__fail(err, lm__error(-EBADF, "write"));
    pthread_mutex_lock(&w->lock);
    if (w->steps_flushed < w->steps)
        fail_locked(w, lm__error(LM_E_CANCELLED, "write"));
    struct lm_error cause = w->error;
    pthread_mutex_unlock(&w->lock);
    return cause.code == 0 ? 0 : lm__fail(err, cause);
}

int lm__append_fail(lm_writer *w, struct lm_error cause, struct lm_error *err)
{
    pthread_mutex_lock(&w->lock);
    fail_locked(w, cause);
    pthread_mutex_unlock(&w->lock);
    return lm__fail(err, cause);
}

void lm__append_keep(lm_writer *w)
{
    w->kept_tail = w->tail;
    w->kept_crc = w->crc;
    if (w->store)
        lm_store_release(&w->store->source.end_offset, w->tail);
}

void lm__append_recover(lm_writer *w)
{
    struct lm_error untold;
    if (!w->store || lm__append_check(w, &untold) == 0 || untold.code == -EBADF)
        return;
    w->tail = w->kept_tail;
    w->crc = w->kept_crc;
    w->steps = w->steps_flushed = 0;
    w->error.code = 0;
    memset(w->repeats, 0, sizeof w->repeats); /* some were behind the tail */
    if (ftruncate(w->fd, (off_t)w->tail) < 0) {
        /* What is there is overwritten, or stays behind a commit, and is no record. */
    }
}

void lm__append_restart(lm_writer *w, uint64_t tail)
{
    w->tail = w->synced_tail = tail;
    w->crc = 0;
    lm__append_keep(w);
}

/* ---- syncing --------------------------------------------------------------------------------- */

static int write_again(lm_writer *w)
{
    uint32_t crc = 0;
    uint8_t *buf = malloc(AGAIN_BYTES);
    int rc = buf ? 0 : -ENOMEM;
    for (uint64_t at = w->synced_tail; rc == 0 && at < w->tail; at += AGAIN_BYTES) {
        uint64_t left = w->tail - at;
        size_t count = left < AGAIN_BYTES ? (size_t)left : AGAIN_BYTES;
        rc = lm__io_pread(w->fd, at, count, buf, 0);
        crc = lm_crc32c(crc, buf, rc == 0 ? count : 0);
        if (rc == 0)
            rc = lm__io_pwrite(w->fd, at, count, buf);
    }
    free(buf);
    return rc == 0 && crc != w->crc ? -EIO : rc;
}

/* The same bytes: whoever wrote the record may not have heard that its sync failed. */
static int write_record_again(lm_writer *w)
{
    uint8_t bytes[LM_RECORD_BYTES];
    if (!w->store || w->has_synced)
        return 0;
    lm__record_encode(&w->last, bytes);
    return lm__io_pwrite(w->fd, w->last.offset, sizeof bytes, bytes);
}

int lm__append_sync(lm_writer *w, struct lm_error *err)
{
    int rc = w->is_unsure ? write_again(w) : write_record_again(w);
    if (rc == 0)
        rc = lm__io_sync(w->fd);
    w->is_unsure = rc != 0;
    w->has_synced |= rc == 0;
    return rc == 0 ? 0 : lm__fail(err, lm__error(rc, "sync of what was appended"));
}

/* ---- appending ------------------------------------------------------------------------------- */

int lm__append(lm_writer *w, const void *bytes, size_t count, struct lm__entry *e,
               struct lm_error *err)
{
    int rc = lm__io_pwrite(w->fd, w->tail, count, bytes);
    if (rc != 0) {
        struct lm_error cause = lm__error(rc, "write");
        cause.offset = w->tail;
        return lm__fail(err, cause);
    }
    e->offset = w->tail;
    e->stored_bytes = (uint32_t)count;
    w->tail += count;
    if (w->store)
        w->crc = lm_crc32c(w->crc, bytes, count);
    return 0;
}

size_t lm__page_pack(const struct lm__entry *entries, uint32_t count, void *packed,
                     const void **stored)
{
    size_t bytes = count * sizeof entries[0];
    struct lm__plain plain = {.bytes = (const uint8_t *)entries, .count = bytes};
    const struct lm__codec *lz4 = lm__codec(LM_CODEC_LZ4);
    size_t worth = bytes - (bytes >> PAGE_GAIN_MIN_SHIFT);
    int64_t n = lz4 ? lz4->encode(NULL, &plain, 1, packed, worth) : -1;
    *stored = n > 0 ? packed : entries;
    return n > 0 ? (size_t)n : bytes;
}

int lm__append_page(lm_writer *w, const struct lm__entry *entries, uint32_t count,
                    struct lm__entry *e, struct lm_error *err)
{
    uint8_t packed[LM_PAGE_ENTRIES * LM_ENTRY_BYTES];
    const void *stored;
    size_t bytes = lm__page_pack(entries, count, packed, &stored);
    *e = (struct lm__entry){.crc = lm_crc32c(0, stored, bytes)};
    return lm__append(w, stored, bytes, e, err);
}

/* 1 if the payload is in the file already: *e then says where. */
static int find_repeat(lm_writer *w, const uint8_t *bytes, struct lm__entry *e)
{
    const struct lm__entry *old = &w->repeats[e->crc % LM_REPEATS_SLOTS];
    if (old->crc != e->crc || old->stored_bytes != e->stored_bytes ||
        old->codec != e->codec || old->filter != e->filter || old->offset == 0)
        return 0;
    if (w->compare_capacity < e->stored_bytes) {
        free(w->compare);
        w->compare = malloc(e->stored_bytes);
        w->compare_capacity = w->compare ? e->stored_bytes : 0;
    }
    if (!w->compare ||
        lm__io_pread(w->fd, old->offset, old->stored_bytes, w->compare, 0) != 0 ||
        memcmp(w->compare, bytes, old->stored_bytes) != 0)
        return 0;
    e->offset = old->offset;
    return 1;
}

static int append_slot(lm_writer *w, struct lm__ring_slot *slot, struct lm_error *err)
{
    struct lm__entry *e = &slot->entry;
    enum lm__appended how = LM_APPENDED_ZERO;
    int rc = 0;
    if (slot->is_unchanged) {
        how = LM_APPENDED_NOTHING;
    } else if (!lm__entry_is_zero(e) && find_repeat(w, slot->bytes, e)) {
        how = LM_APPENDED_REPEAT;
    } else if (!lm__entry_is_zero(e)) {
        how = LM_APPENDED_PAYLOAD;
        rc = lm__append(w, slot->bytes, e->stored_bytes, e, err);
        w->repeats[e->crc % LM_REPEATS_SLOTS] = *e;
    }
    return rc == 0 ? w->appended(w->context, slot->chunk, e, how, err) : rc;
}

/* Append what is ready, in order, unless another thread is at it. */
static void append_ready_locked(lm_writer *w)
{
    struct lm__ring_slot *slot = &w->ring[w->steps_flushed % LM_RING_SLOTS];
    while (!w->is_appending && slot->is_ready && w->error.code == 0) {
        struct lm_error err;
        w->is_appending = 1;
        pthread_mutex_unlock(&w->lock);
        int rc = append_slot(w, slot, &err);
        pthread_mutex_lock(&w->lock);
        if (rc != 0)
            w->error = err;
        w->is_appending = 0;
        slot->is_ready = 0;
        slot = &w->ring[++w->steps_flushed % LM_RING_SLOTS];
        pthread_cond_broadcast(&w->moved);
    }
}

/* ---- the steps of a job --------------------------------------------------------------------- */

void lm__append_begin(lm_writer *w, uint64_t steps, lm__appended_fn appended,
                      void *context)
{
    w->steps = steps;
    w->steps_flushed = 0;
    w->appended = appended;
    w->context = context;
    for (int i = 0; i < LM_RING_SLOTS; i++)
        w->ring[i].is_ready = 0;
}

int lm__append_wait_for_room(lm_writer *w, uint64_t step_idx, struct lm_error *err)
{
    pthread_mutex_lock(&w->lock);
    while (w->error.code == 0 && step_idx >= w->steps_flushed + LM_RING_SLOTS)
        pthread_cond_wait(&w->moved, &w->lock);
    int rc = w->error.code;
    if (err)
        *err = w->error;
    pthread_mutex_unlock(&w->lock);
    return rc;
}

static int reserve_slot(struct lm__ring_slot *slot, size_t bytes)
{
    if (slot->capacity >= bytes)
        return 0;
    free(slot->bytes);
    slot->bytes = malloc(bytes);
    slot->capacity = slot->bytes ? bytes : 0;
    return slot->bytes ? 0 : -ENOMEM;
}

int lm__append_step(lm_writer *w, uint64_t step_idx,
                    const struct lm__chunk_bytes *chunk, struct lm__scratch *scratch,
                    struct lm_error *err)
{
    struct lm__ring_slot *slot = &w->ring[step_idx % LM_RING_SLOTS];
    int rc = 0;
    slot->chunk = chunk->chunk;
    slot->is_unchanged = !chunk->bytes;
    slot->entry = (struct lm__entry){0};
    if (chunk->bytes)
        rc = reserve_slot(slot, chunk->count);
    if (rc == 0 && chunk->encoded) {
        memcpy(slot->bytes, chunk->bytes, chunk->count);
        slot->entry = *chunk->encoded;
    } else if (rc == 0 && chunk->bytes) {
        rc = lm__encode(chunk->enc, chunk->bytes, chunk->count, scratch, slot->bytes,
                        &slot->entry);
    }
    pthread_mutex_lock(&w->lock);
    if (rc != 0) {
        fail_locked(w, lm__error(rc, "encoding"));
    } else {
        slot->is_ready = 1;
        append_ready_locked(w);
    }
    rc = w->error.code;
    *err = w->error;
    pthread_mutex_unlock(&w->lock);
    return rc;
}
