/* SPDX-License-Identifier: BSD-3-Clause
 * writer.c - a new store file, appended to by all cores in one order.
 *
 *   data --> chunks --> shuffle, encode, CRC (workers, any order) --> ring --> append (in order)
 *                                                                      '--> index entries
 *
 * (W1) Payloads are appended in chunk order, by one thread at a time, so a file's bytes do not
 *      depend on how many threads wrote it.
 * (W2) Memory is bounded: a worker waits for room in the ring before it encodes, and an index
 *      page is written as soon as it is complete.
 * (W3) After an error nothing more is appended; the file is of no use and is not committed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define RING_SLOTS          16   /* chunks encoded ahead of the one that is appended */
#define REPEATS_SLOTS       4096 /* payloads remembered, to store a repeated chunk once */
#define PART_BYTES_MIN      4096  /* less is not worth tables of its own */
#define LZ4_PART_BYTES_MAX  65536 /* it has a denser table for up to as much */
#define GAIN_MIN_SHIFT      5 /* a chunk that shrinks by less than 1/32 is stored raw */
#define PAGE_GAIN_MIN_SHIFT 2 /* and an index page that does by less than a quarter */

struct ring_slot {
    int is_ready;
    uint64_t chunk_idx;
    struct lm__entry entry; /* all but the offset; all zero for a zero chunk */
    uint8_t *bytes;
    size_t capacity;
};

struct lm_writer {
    int fd;
    uint8_t store_id[16];
    pthread_mutex_t lock;
    pthread_cond_t moved;          /* the ring has, or the writer has failed */
    uint64_t tail;                 /* under lock or appending, as all below */
    uint64_t steps, steps_flushed; /* of the current job */
    int is_appending;
    struct lm_error error; /* code 0: none */
    struct ring_slot ring[RING_SLOTS];
    struct lm__entry repeats[REPEATS_SLOTS];
    uint8_t *compare; /* a stored payload, read back */
    size_t compare_capacity;
};

/* A page of the index that is being filled, one for each level. */
struct page {
    struct lm__entry *entries; /* NULL: none begun */
    uint64_t page_idx;
    uint32_t count;
};

struct lm_writer_object {
    lm_writer *w;
    struct lm_encoding enc;
    unsigned chunk_shift, depth;
    uint64_t chunks;
    uint64_t end_offset; /* of the bytes given so far */
    uint8_t *open_bytes; /* the last chunk given, if it is not complete; else NULL */
    struct page pages[LM_INDEX_DEPTH_MAX + 1]; /* by level; 0 is not used */
    struct lm__entry root;
    struct lm_written written;
};

/* ---- appending ------------------------------------------------------------------------------- */

static int append(lm_writer *w, const void *bytes, size_t count, struct lm__entry *e,
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
    return 0;
}

static int page_flush(lm_writer_object *o, unsigned level, struct lm_error *err);

/* Note in the index what child `child_idx` of level `level` is.  Children ascend. */
static int index_add(lm_writer_object *o, unsigned level, uint64_t child_idx,
                     const struct lm__entry *e, struct lm_error *err)
{
    struct page *p = &o->pages[level];
    uint64_t page_idx = child_idx / LM_PAGE_ENTRIES;
    if (p->entries && p->page_idx != page_idx) {
        int rc = page_flush(o, level, err);
        if (rc != 0)
            return rc;
    }
    if (!p->entries) {
        p->page_idx = page_idx;
        p->count = lm__index_page_entries(o->chunks, level, page_idx);
        p->entries = calloc(p->count, sizeof p->entries[0]);
        if (!p->entries)
            return lm__fail(err, lm__error(-ENOMEM, "index page"));
    }
    p->entries[child_idx % LM_PAGE_ENTRIES] = *e;
    return 0;
}

static int page_flush(lm_writer_object *o, unsigned level, struct lm_error *err)
{
    struct page *p = &o->pages[level];
    struct lm__entry e = {0};
    size_t bytes = p->count * sizeof p->entries[0];
    uint8_t packed[LM_PAGE_ENTRIES * LM_ENTRY_BYTES];
    const void *stored = p->entries;
    struct lm__plain plain = {.bytes = stored, .count = bytes};
    const struct lm__codec *lz4 = lm__codec(LM_CODEC_LZ4);
    size_t worth = bytes - (bytes >> PAGE_GAIN_MIN_SHIFT);
    int64_t n = lz4 ? lz4->encode(NULL, &plain, 1, packed, worth) : -1;
    if (n > 0) {
        stored = packed;
        bytes = (size_t)n;
    }
    e.crc = lm_crc32c(0, stored, bytes);
    int rc = append(o->w, stored, bytes, &e, err);
    free(p->entries);
    p->entries = NULL;
    if (rc == 0 && level == o->depth)
        o->root = e;
    else if (rc == 0)
        rc = index_add(o, level + 1, p->page_idx, &e, err);
    return rc;
}

/* 1 if the payload is in the file already: *e then says where. */
static int find_repeat(lm_writer *w, const uint8_t *bytes, struct lm__entry *e)
{
    const struct lm__entry *old = &w->repeats[e->crc % REPEATS_SLOTS];
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

static int flush_slot(lm_writer_object *o, struct ring_slot *slot, struct lm_error *err)
{
    lm_writer *w = o->w;
    struct lm__entry *e = &slot->entry;
    int rc = 0;
    o->written.chunks_total++;
    if (lm__entry_is_zero(e)) {
        o->written.chunks_zero++;
        return 0; /* the index says zero where nothing was noted */
    }
    if (find_repeat(w, slot->bytes, e)) {
        o->written.chunks_repeated++;
    } else {
        rc = append(w, slot->bytes, e->stored_bytes, e, err);
        w->repeats[e->crc % REPEATS_SLOTS] = *e;
        o->written.stored_bytes += e->stored_bytes;
    }
    return rc == 0 ? index_add(o, 1, slot->chunk_idx, e, err) : rc;
}

/* Append what is ready, in order, unless another thread is at it. */
static void flush_ready_locked(lm_writer_object *o)
{
    lm_writer *w = o->w;
    struct ring_slot *slot = &w->ring[w->steps_flushed % RING_SLOTS];
    while (!w->is_appending && slot->is_ready && w->error.code == 0) {
        struct lm_error err;
        w->is_appending = 1;
        pthread_mutex_unlock(&w->lock);
        int rc = flush_slot(o, slot, &err);
        pthread_mutex_lock(&w->lock);
        if (rc != 0)
            w->error = err;
        w->is_appending = 0;
        slot->is_ready = 0;
        slot = &w->ring[++w->steps_flushed % RING_SLOTS];
        pthread_cond_broadcast(&w->moved);
    }
}

/* ---- encoding --------------------------------------------------------------------------------------- */

static int is_zero(const uint8_t *p, size_t bytes)
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

/* Encode one chunk into `dst` of at least `bytes`.  e->offset is left to the caller. */
static int encode(const struct lm_encoding *enc, const uint8_t *src, size_t bytes,
                  struct lm__scratch *scratch, uint8_t *dst, struct lm__entry *e)
{
    *e = (struct lm__entry){0};
    if (is_zero(src, bytes))
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

static int encoding_is_sound(const struct lm_encoding *enc)
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
    if (!encoding_is_sound(enc) || data_bytes > enc->chunk_bytes)
        return -EINVAL;
    struct lm__scratch scratch = lm__scratch_take();
    uint8_t *dst = malloc(data_bytes + 1);
    int rc = dst ? encode(enc, data, data_bytes, &scratch, dst, &e) : -ENOMEM;
    if (rc == 0)
        *out_bytes = e.stored_bytes;
    free(dst);
    lm__scratch_give(&scratch);
    return rc;
}

/* ---- one write: steps of a job ------------------------------------------------------------------------- */

struct write_job {
    lm_writer_object *object;
    uint8_t *closing; /* a chunk collected from several blocks, or NULL */
    uint64_t closing_idx;
    const uint8_t *data; /* whole chunks from first_idx on */
    uint64_t first_idx;
};

static int fail_locked(lm_writer *w, struct lm_error cause)
{
    if (w->error.code == 0)
        w->error = cause;
    pthread_cond_broadcast(&w->moved);
    return w->error.code;
}

static size_t chunk_bytes(const lm_writer_object *o, uint64_t chunk_idx)
{
    uint64_t left = o->enc.object_bytes - (chunk_idx << o->chunk_shift);
    return left < o->enc.chunk_bytes ? (size_t)left : o->enc.chunk_bytes;
}

static int reserve_slot(struct ring_slot *slot, size_t bytes)
{
    if (slot->capacity >= bytes)
        return 0;
    free(slot->bytes);
    slot->bytes = malloc(bytes);
    slot->capacity = slot->bytes ? bytes : 0;
    return slot->bytes ? 0 : -ENOMEM;
}

static int write_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                      struct lm_error *err)
{
    struct write_job *job = context;
    lm_writer_object *o = job->object;
    lm_writer *w = o->w;
    struct ring_slot *slot = &w->ring[step_idx % RING_SLOTS];
    int is_closing = job->closing && step_idx == 0;
    uint64_t n = step_idx - (job->closing != NULL);
    uint64_t chunk_idx = is_closing ? job->closing_idx : job->first_idx + n;
    const uint8_t *src = is_closing ? job->closing : job->data + (n << o->chunk_shift);

    pthread_mutex_lock(&w->lock);
    while (w->error.code == 0 && step_idx >= w->steps_flushed + RING_SLOTS)
        pthread_cond_wait(&w->moved, &w->lock);
    int rc = w->error.code;
    pthread_mutex_unlock(&w->lock);

    if (rc == 0)
        rc = reserve_slot(slot, chunk_bytes(o, chunk_idx));
    if (rc == 0)
        rc = encode(&o->enc, src, chunk_bytes(o, chunk_idx), scratch, slot->bytes,
                    &slot->entry);
    slot->chunk_idx = chunk_idx;

    pthread_mutex_lock(&w->lock);
    if (rc != 0) {
        fail_locked(w, lm__error(rc, "encoding"));
    } else {
        slot->is_ready = 1;
        flush_ready_locked(o);
    }
    rc = w->error.code;
    *err = w->error;
    pthread_mutex_unlock(&w->lock);
    return rc;
}

static void write_free(void *context)
{
    struct write_job *job = context;
    free(job->closing);
    free(job);
}

/* 0, or why the writer can't go on: an error, or a job that was given up half-way. */
static int writer_check(lm_writer *w, struct lm_error *err)
{
    pthread_mutex_lock(&w->lock);
    if (w->steps_flushed < w->steps)
        fail_locked(w, lm__error(LM_E_CANCELLED, "write"));
    struct lm_error cause = w->error;
    pthread_mutex_unlock(&w->lock);
    return cause.code == 0 ? 0 : lm__fail(err, cause);
}

/* (W3), for what went wrong outside a job. */
static int writer_fail(lm_writer *w, struct lm_error cause, struct lm_error *err)
{
    pthread_mutex_lock(&w->lock);
    fail_locked(w, cause);
    pthread_mutex_unlock(&w->lock);
    return lm__fail(err, cause);
}

static int write_start(lm_writer_object *o, struct write_job parts,
                       uint64_t whole_chunks, lm_job **out, struct lm_error *err)
{
    lm_writer *w = o->w;
    struct write_job *job = malloc(sizeof *job);
    if (!job) {
        free(parts.closing);
        return writer_fail(w, lm__error(-ENOMEM, "write"), err);
    }
    *job = parts;
    w->steps = whole_chunks + (parts.closing != NULL);
    w->steps_flushed = 0;
    for (int i = 0; i < RING_SLOTS; i++)
        w->ring[i].is_ready = 0;
    struct lm__job_spec spec = {.step = write_step,
                                .free_context = write_free,
                                .context = job,
                                .steps = w->steps};
    int rc = lm__job_start(&spec, out);
    return rc == 0 ? 0 : writer_fail(w, lm__error(rc, "threads"), err);
}

/* Where a block's bytes go:
 *
 *   ...|  open chunk  |  whole  |  whole  | open |       an open chunk is collected until a
 *         '---- block: [offset ------------- end)        block reaches its end or skips it
 */
int lm_writer_write(lm_writer_object *o, uint64_t offset, const void *data,
                    uint64_t nbytes, lm_job **out, struct lm_error *err)
{
    struct write_job parts = {.object = o};
    uint64_t mask = o->enc.chunk_bytes - 1, end = offset + nbytes;
    const uint8_t *from = data;
    *out = NULL;
    int rc = writer_check(o->w, err);
    if (rc != 0)
        return rc;
    if (offset < o->end_offset || nbytes > o->enc.object_bytes ||
        offset > o->enc.object_bytes - nbytes) {
        struct lm_error cause = lm__error(LM_E_ORDER, "block");
        cause.expected = o->end_offset;
        cause.found = offset;
        return lm__fail(err, cause);
    }
    if (nbytes == 0)
        return 0;

    if (o->open_bytes) {
        uint64_t open_idx = (o->end_offset - 1) >> o->chunk_shift;
        uint64_t open_end = (open_idx << o->chunk_shift) + chunk_bytes(o, open_idx);
        if (offset < open_end) {
            uint64_t n = (end < open_end ? end : open_end) - offset;
            memcpy(o->open_bytes + (offset & mask), from, (size_t)n);
            offset += n;
            from += n;
        }
        if (end >= open_end) {
            parts.closing = o->open_bytes;
            parts.closing_idx = open_idx;
            o->open_bytes = NULL;
        }
    }
    o->end_offset = end;
    if (offset < end && (offset & mask) != 0) { /* begins inside a chunk */
        uint64_t chunk_end = (offset | mask) + 1;
        uint64_t n = (end < chunk_end ? end : chunk_end) - offset;
        uint8_t *bytes = calloc(1, o->enc.chunk_bytes);
        if (!bytes)
            goto no_memory;
        memcpy(bytes + (offset & mask), from, (size_t)n);
        offset += n;
        from += n;
        if (parts.closing && (end >= chunk_end || end == o->enc.object_bytes)) {
            /* Two chunks to close: rare, so the first is written on its own. */
            lm_job *first;
            rc = write_start(o, parts, 0, &first, err);
            if (rc == 0) {
                lm_job_close(first, 0);
                rc = writer_check(o->w, err);
            }
            parts.closing = NULL;
            if (rc != 0) {
                free(bytes);
                return rc;
            }
        }
        if (end >= chunk_end || end == o->enc.object_bytes) {
            parts.closing = bytes;
            parts.closing_idx = (offset - 1) >> o->chunk_shift;
        } else {
            o->open_bytes = bytes;
        }
    }
    uint64_t whole = offset < end ? (end - offset) >> o->chunk_shift : 0;
    parts.data = from;
    parts.first_idx = offset >> o->chunk_shift;
    offset += whole << o->chunk_shift;
    from += whole << o->chunk_shift;
    if (offset < end && end == o->enc.object_bytes) {
        whole++; /* the object's last chunk, shorter than the others, but complete */
    } else if (offset < end) {
        o->open_bytes = calloc(1, o->enc.chunk_bytes);
        if (!o->open_bytes)
            goto no_memory;
        memcpy(o->open_bytes, from, (size_t)(end - offset));
    }
    if (whole == 0 && !parts.closing)
        return 0;
    return write_start(o, parts, whole, out, err);

no_memory:
    free(parts.closing);
    return writer_fail(o->w, lm__error(-ENOMEM, "chunk"), err);
}

/* ---- objects --------------------------------------------------------------------------------------------- */

int lm_writer_begin(lm_writer *w, const struct lm_encoding *enc, lm_writer_object **out,
                    struct lm_error *err)
{
    int rc = writer_check(w, err);
    if (rc != 0)
        return rc;
    if (!encoding_is_sound(enc))
        return lm__fail(err, lm__error(-EINVAL, "encoding"));
    lm_writer_object *o = calloc(1, sizeof *o);
    if (!o)
        return lm__fail(err, lm__error(-ENOMEM, "object"));
    o->w = w;
    o->enc = *enc;
    o->chunk_shift = lm__log2(enc->chunk_bytes);
    o->chunks = lm__div_up(enc->object_bytes, enc->chunk_bytes);
    o->depth = lm__index_depth(o->chunks);
    *out = o;
    return 0;
}

static int close_open_chunk(lm_writer_object *o, struct lm_error *err)
{
    struct write_job parts = {.object = o,
                              .closing = o->open_bytes,
                              .closing_idx = (o->end_offset - 1) >> o->chunk_shift};
    lm_job *job;
    o->open_bytes = NULL;
    int rc = write_start(o, parts, 0, &job, err);
    if (rc == 0) {
        lm_job_close(job, 0); /* of one step: it has run */
        rc = writer_check(o->w, err);
    }
    return rc;
}

int lm_writer_end(lm_writer_object *o, struct lm_written *out, struct lm_error *err)
{
    struct lm_error cause;
    lm_writer *w = o->w;
    int rc = writer_check(w, &cause);
    if (rc == 0 && o->open_bytes)
        rc = close_open_chunk(o, &cause);
    for (unsigned level = 1; level <= o->depth; level++)
        if (rc == 0 && o->pages[level].entries)
            rc = page_flush(o, level, &cause);
    if (rc != 0)
        writer_fail(w, cause, err);
    o->written.index_offset = o->root.offset;
    o->written.index_bytes = o->root.stored_bytes;
    o->written.index_crc = o->root.crc;
    *out = o->written;
    for (unsigned level = 1; level <= o->depth; level++)
        free(o->pages[level].entries);
    free(o->open_bytes);
    free(o);
    return rc;
}

/* ---- the file ----------------------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int lm_writer_create(const char *path, lm_writer **out, struct lm_error *err)
{
    uint8_t bytes[LM_SUPERBLOCK_BYTES];
    struct lm__superblock sb = {.created_ns = now_ns()};
    lm_writer *w = calloc(1, sizeof *w);
    if (!w)
        return lm__fail(err, lm__error(-ENOMEM, "writer"));
    int rc = lm__io_open(path, O_RDWR | O_CREAT | O_EXCL, 0666);
    if (rc < 0) {
        free(w);
        return lm__fail(err, lm__error(rc, "file"));
    }
    w->fd = rc;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->moved, NULL);
    rc = getrandom(w->store_id, sizeof w->store_id, 0) == (ssize_t)sizeof w->store_id
             ? 0
             : -errno;
    memcpy(sb.store_id, w->store_id, sizeof sb.store_id);
    lm__superblock_encode(&sb, bytes);
    if (rc == 0)
        rc = lm__io_pwrite(w->fd, 0, sizeof bytes, bytes);
    if (rc != 0) {
        lm_writer_close(w);
        return lm__fail(err, lm__error(rc, "superblock"));
    }
    w->tail = LM_SUPERBLOCK_BYTES;
    *out = w;
    return 0;
}

static int append_manifest(lm_writer *w, const char *manifest, size_t bytes,
                           struct lm__entry *e, struct lm_error *err)
{
    struct lm__scratch scratch = {0};
    int64_t n = -1;
    *e = (struct lm__entry){0};
    void *packed = malloc(bytes);
    struct lm__plain plain = {.bytes = (const uint8_t *)manifest, .count = bytes};
    if (packed && lm__codec(LM_CODEC_LZ4))
        n = lm__codec(LM_CODEC_LZ4)->encode(&scratch, &plain, 1, packed, bytes - 1);
    const void *stored = n > 0 ? packed : manifest;
    size_t stored_bytes = n > 0 ? (size_t)n : bytes;
    e->codec = n > 0 ? LM_CODEC_LZ4 : LM_CODEC_NONE;
    e->crc = lm_crc32c(0, stored, stored_bytes);
    int rc = append(w, stored, stored_bytes, e, err);
    free(packed);
    return rc;
}

int lm_writer_commit(lm_writer *w, const char *manifest, uint64_t manifest_bytes,
                     uint64_t *file_bytes, struct lm_error *err)
{
    uint8_t bytes[LM_RECORD_BYTES];
    struct lm__record rec = {.sequence = 1, .time_ns = now_ns()};
    int rc = writer_check(w, err);
    if (rc != 0)
        return rc;
    if (manifest_bytes == 0 || manifest_bytes > INT32_MAX)
        return lm__fail(err, lm__error(-EFBIG, "manifest"));
    rc = append_manifest(w, manifest, (size_t)manifest_bytes, &rec.manifest, err);
    if (rc != 0)
        return rc;
    rec.manifest_bytes = (uint32_t)manifest_bytes;
    memcpy(rec.store_id, w->store_id, sizeof rec.store_id);
    rec.offset = lm__round_up(w->tail, LM_RECORD_ALIGN);
    lm__record_encode(&rec, bytes);
    rc =
        lm__io_sync(w->fd); /* a record never reaches the disk before what it commits */
    if (rc == 0)
        rc = lm__io_pwrite(w->fd, rec.offset, sizeof bytes, bytes);
    if (rc == 0)
        rc = lm__io_sync(w->fd);
    if (rc != 0)
        return lm__fail(err, lm__error(rc, "commit record"));
    w->tail = rec.offset + sizeof bytes;
    *file_bytes = w->tail;
    return 0;
}

void lm_writer_close(lm_writer *w)
{
    close(w->fd);
    for (int i = 0; i < RING_SLOTS; i++)
        free(w->ring[i].bytes);
    free(w->compare);
    pthread_cond_destroy(&w->moved);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
