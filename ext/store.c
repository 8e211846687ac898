/* SPDX-License-Identifier: BSD-3-Clause
 * store.c - an open store file: its superblock, its last commit and that commit's manifest.
 *
 * Opening costs three small reads whatever the file holds.  Only a torn tail (a commit that
 * was interrupted) makes it search, backwards from the end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define SCAN_BYTES (1u << 20)   /* read at once while searching: to be fast */
#define HINT_BYTES (128u << 10) /* a few pages of index, or a first chunk */
#define OPEN_TRIES 100          /* while others replace the file */

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

/* ---- who has the file open --------------------------------------------------------------- */

/* A writer is alone (flock).  A reader marks the state that it reads, so that nobody takes its
 * space away: a lock of one byte, far behind any file's end, that belongs to the open file
 * (F_OFD_SETLK).  Where the file system has no locks nobody prunes either. */
#define READ_MARKS   ((uint64_t)1 << 62) /* and the offset of the commit record */
#define PRUNING_MARK (READ_MARKS - 1)

static int mark(int fd, int command, short type, uint64_t offset)
{
    struct flock lock = {
        .l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    int rc;
    do
        rc = fcntl(fd, command, &lock);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

/* Nobody prunes from here to read_marks_end(). */
static void marks_begin(int fd) { mark(fd, F_OFD_SETLKW, F_RDLCK, PRUNING_MARK); }
static void marks_end(int fd) { mark(fd, F_OFD_SETLK, F_UNLCK, PRUNING_MARK); }

int lm__marks_close(int fd) { return mark(fd, F_OFD_SETLKW, F_WRLCK, PRUNING_MARK); }

void lm__marks_open(int fd) { mark(fd, F_OFD_SETLK, F_UNLCK, PRUNING_MARK); }

uint64_t lm__marks_next(int fd, uint64_t from)
{
    struct flock lock = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)(READ_MARKS + from)};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type == F_UNLCK)
        return 0;
    uint64_t offset = (uint64_t)lock.l_start - READ_MARKS;
    return offset < from ? from : offset;
}

void lm_store_leave(lm_store *s)
{
    if (lm__store_has_file(s))
        mark(s->source.fd, F_OFD_SETLK, F_UNLCK, READ_MARKS + s->record.offset);
}

static void mark_read(const lm_store *s)
{
    mark(s->source.fd, F_OFD_SETLK, F_RDLCK, READ_MARKS + s->record.offset);
}

/* 0, LM_E_LOCKED, or an error.  1: the name is another file's by now. */
static int lock_for_writing(int fd, const char *path)
{
    struct stat file, named;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? LM_E_LOCKED : -errno;
    if (fstat(fd, &file) < 0)
        return -errno;
    return stat(path, &named) < 0 || named.st_ino != file.st_ino ||
           named.st_dev != file.st_dev;
}

static int open_for_writing(const char *path)
{
    for (int tries = 0; tries < OPEN_TRIES; tries++) {
        int fd = lm__io_open(path, O_RDWR | O_NONBLOCK, 0);
        int rc = fd < 0 ? fd : lock_for_writing(fd, path);
        if (rc == 0)
            return fd;
        if (fd >= 0)
            close(fd);
        if (rc < 0)
            return rc;
    }
    return LM_E_LOCKED;
}

/* ---- opening -------------------------------------------------------------------------------- */

struct lm_commit lm__commit_of(const struct lm__record *rec, uint64_t file_bytes)
{
    struct lm_commit commit = {
        .offset = rec->offset,
        .sequence = rec->sequence,
        .previous_offset = rec->previous_offset,
        .time_ns = rec->time_ns,
        .manifest_bytes = rec->manifest_bytes,
        .file_bytes = file_bytes,
        .torn_bytes = file_bytes - rec->offset - LM_RECORD_BYTES,
    };
    memcpy(commit.store_id, rec->store_id, 16);
    return commit;
}

/* Which state of a file. */
struct which {
    enum { LAST, AT, BEFORE } place;
    uint64_t offset;         /* of the commit record, or behind it */
    const uint8_t *store_id; /* AT */
    int is_unmarked;         /* by somebody who prunes */
};

/* The newest that makes sense. */
static int read_before(lm_store *s, uint64_t before, struct lm_error *err)
{
    uint8_t bytes[LM_SUPERBLOCK_BYTES];
    struct lm__superblock sb;
    int rc = lm__io_pread(s->source.fd, 0, sizeof bytes, bytes, 0);
    if (rc != 0)
        return lm__fail(err, lm__error(rc, "superblock"));
    rc = lm__superblock_decode(bytes, &sb, err);
    uint64_t end = before < s->file_bytes ? before : s->file_bytes;
    while (rc == 0) {
        struct lm_error cause = lm__error(0, "");
        rc = record_search(s->source.fd, end, sb.store_id, &s->record, &cause);
        if (rc != LM_E_FORMAT || cause.offset >= end)
            return rc == 0 ? 0 : lm__fail(err, cause);
        end = cause.offset; /* sealed, but senseless: look before it */
        rc = 0;
    }
    return rc;
}

static int read_state(lm_store *s, struct which which, struct lm_error *err)
{
    switch (which.place) {
    case AT:
        return record_read(s->source.fd, which.offset, which.store_id, &s->record, err);
    case BEFORE: return read_before(s, which.offset, err);
    case LAST: break;
    }
    hint_if_cold(s->source.fd, s->file_bytes);
    return store_read_head(s, s->file_bytes, err);
}

/* Takes `fd`, or the error that opening it has given. */
static int store_new(int fd, struct which which, lm_store **out, struct lm_error *err)
{
    lm_store *s = calloc(1, sizeof *s);
    int rc = fd < 0 ? fd : s ? 0 : -ENOMEM;
    if (rc == 0)
        rc = lm__io_file_bytes(fd, &s->file_bytes);
    if (rc == 0)
        rc = lm__io_file_id(fd, &s->file_id);
    if (rc != 0) {
        lm__fail(err, lm__error(rc, "file"));
        goto close_fd;
    }
    s->refs = 1;
    s->source.fd = fd;
    if (!which.is_unmarked)
        marks_begin(fd);
    rc = read_state(s, which, err);
    if (rc == 0 && !which.is_unmarked)
        mark_read(s);
    if (!which.is_unmarked)
        marks_end(fd);
    if (rc != 0)
        goto close_fd;
    lm_store_relaxed(&s->source.end_offset, s->record.offset);
    *out = s;
    return 0;

close_fd:
    free(s);
    if (fd >= 0)
        close(fd);
    return rc;
}

int lm_store_open(const char *path, lm_store **out, struct lm_commit *commit,
                  struct lm_error *err)
{
    /* A FIFO is no reason to wait. */
    int fd = lm__io_open(path, O_RDONLY | O_NONBLOCK, 0);
    int rc = store_new(fd, (struct which){0}, out, err);
    if (rc == 0)
        *commit = lm__commit_of(&(*out)->record, (*out)->file_bytes);
    return rc;
}

int lm_store_open_write(const char *path, lm_store **out, struct lm_commit *commit,
                        struct lm_error *err)
{
    int rc = store_new(open_for_writing(path), (struct which){0}, out, err);
    if (rc != 0)
        return rc;
    (*out)->writer_pid = (int32_t)getpid();
    *commit = lm__commit_of(&(*out)->record, (*out)->file_bytes);
    return 0;
}

int lm_store_open_before(const char *path, int is_writable, uint64_t before,
                         lm_store **out, struct lm_commit *commit, struct lm_error *err)
{
    int fd = is_writable ? open_for_writing(path)
                         : lm__io_open(path, O_RDONLY | O_NONBLOCK, 0);
    int rc = store_new(fd, (struct which){.place = BEFORE, .offset = before}, out, err);
    if (rc != 0)
        return rc;
    (*out)->writer_pid = is_writable ? (int32_t)getpid() : 0;
    *commit = lm__commit_of(&(*out)->record, (*out)->file_bytes);
    return 0;
}

int lm__store_reopen(const lm_store *store, uint64_t record_offset, int is_unmarked,
                     lm_store **out, struct lm_commit *commit, struct lm_error *err)
{
    char path[32]; /* the same file, whatever has its name by now */
    snprintf(path, sizeof path, "/proc/self/fd/%d", store->source.fd);
    struct which which = {.place = AT,
                          .offset = record_offset,
                          .store_id = store->record.store_id,
                          .is_unmarked = is_unmarked};
    int rc = store_new(lm__io_open(path, O_RDONLY | O_NONBLOCK, 0), which, out, err);
    if (rc == 0)
        *commit = lm__commit_of(&(*out)->record, (*out)->file_bytes);
    return rc;
}

int lm_store_open_at(lm_store *store, uint64_t record_offset, lm_store **out,
                     struct lm_commit *commit, struct lm_error *err)
{
    return lm__store_reopen(store, record_offset, 0, out, commit, err);
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

int lm__store_has_file(const lm_store *s)
{
    return lm__io_is_file(s->source.fd, &s->file_id);
}

void lm__store_unlock(lm_store *s)
{
    /* The lock is that of the open file, which a forked child has as well. */
    if (s->writer_pid == (int32_t)getpid() && lm__store_has_file(s))
        flock(s->source.fd, LOCK_UN);
}

void lm__store_retain(lm_store *s) { lm_add_relaxed(&s->refs, 1); }

void lm_store_close(lm_store *s)
{
    if (lm_sub_acq_rel(&s->refs, 1) != 1)
        return;
    if (lm__store_has_file(s))
        close(s->source.fd);
    free(s);
}
