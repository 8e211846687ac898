/* SPDX-License-Identifier: BSD-3-Clause
 * writer.c - whole objects, written block by block, and the commits that make them count.
 *
 *   blocks --> chunks --> append.c --> entries --> index pages, each written when complete
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

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

/* ---- the index ------------------------------------------------------------------------------- */

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
    struct lm__entry e;
    int rc = lm__append_page(o->w, p->entries, p->count, &e, err);
    free(p->entries);
    p->entries = NULL;
    if (rc == 0 && level == o->depth)
        o->root = e;
    else if (rc == 0)
        rc = index_add(o, level + 1, p->page_idx, &e, err);
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

static size_t chunk_bytes(const lm_writer_object *o, uint64_t chunk_idx)
{
    uint64_t left = o->enc.object_bytes - (chunk_idx << o->chunk_shift);
    return left < o->enc.chunk_bytes ? (size_t)left : o->enc.chunk_bytes;
}

/* Note what has become of a chunk. */
static int appended(void *context, uint64_t chunk_idx, const struct lm__entry *e,
                    enum lm__appended how, struct lm_error *err)
{
    lm_writer_object *o = context;
    o->written.chunks_total++;
    o->written.chunks_zero += how == LM_APPENDED_ZERO;
    o->written.chunks_repeated += how == LM_APPENDED_REPEAT;
    if (how == LM_APPENDED_PAYLOAD)
        o->written.stored_bytes += e->stored_bytes;
    /* The index says zero where nothing is noted. */
    return how == LM_APPENDED_ZERO ? 0 : index_add(o, 1, chunk_idx, e, err);
}

static int write_step(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                      struct lm_error *err)
{
    const struct write_job *job = context;
    const lm_writer_object *o = job->object;
    int is_closing = job->closing && step_idx == 0;
    uint64_t n = step_idx - (job->closing != NULL);
    uint64_t chunk_idx = is_closing ? job->closing_idx : job->first_idx + n;
    struct lm__chunk_bytes chunk = {
        .chunk = chunk_idx,
        .enc = &o->enc,
        .bytes = is_closing ? job->closing : job->data + (n << o->chunk_shift),
        .count = chunk_bytes(o, chunk_idx),
    };
    int rc = lm__append_wait_for_room(o->w, step_idx, err);
    return rc == 0 ? lm__append_step(o->w, step_idx, &chunk, scratch, err) : rc;
}

static void write_free(void *context)
{
    struct write_job *job = context;
    free(job->closing);
    free(job);
}

static int write_start(lm_writer_object *o, struct write_job parts,
                       uint64_t whole_chunks, lm_job **out, struct lm_error *err)
{
    lm_writer *w = o->w;
    struct write_job *job = malloc(sizeof *job);
    if (!job) {
        free(parts.closing);
        return lm__append_fail(w, lm__error(-ENOMEM, "write"), err);
    }
    *job = parts;
    lm__append_begin(w, whole_chunks + (parts.closing != NULL), appended, o);
    struct lm__job_spec spec = {.step = write_step,
                                .free_context = write_free,
                                .context = job,
                                .steps = w->steps};
    int rc = lm__job_start(&spec, out);
    return rc == 0 ? 0 : lm__append_fail(w, lm__error(rc, "threads"), err);
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
    int rc = lm__append_check(o->w, err);
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
                rc = lm__append_check(o->w, err);
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
    return lm__append_fail(o->w, lm__error(-ENOMEM, "chunk"), err);
}

/* ---- objects --------------------------------------------------------------------------------------------- */

int lm_writer_begin(lm_writer *w, const struct lm_encoding *enc, lm_writer_object **out,
                    struct lm_error *err)
{
    lm__append_recover(w);
    int rc = lm__append_check(w, err);
    if (rc != 0)
        return rc;
    if (!lm__encoding_is_sound(enc))
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
        rc = lm__append_check(o->w, err);
    }
    return rc;
}

int lm_writer_end(lm_writer_object *o, struct lm_written *out, struct lm_error *err)
{
    struct lm_error cause;
    lm_writer *w = o->w;
    int rc = lm__append_check(w, &cause);
    if (rc == 0 && o->open_bytes)
        rc = close_open_chunk(o, &cause);
    for (unsigned level = 1; level <= o->depth; level++)
        if (rc == 0 && o->pages[level].entries)
            rc = page_flush(o, level, &cause);
    if (rc != 0)
        lm__append_fail(w, cause, err);
    else
        lm__append_keep(w);
    o->written.root = lm__root_of(&o->root);
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

static lm_writer *writer_new(int fd)
{
    lm_writer *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    w->fd = fd;
    if (lm__io_file_id(fd, &w->file_id) != 0) {
        free(w);
        return NULL;
    }
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->moved, NULL);
    return w;
}

static int append_superblock(lm_writer *w)
{
    uint8_t bytes[LM_SUPERBLOCK_BYTES];
    struct lm__superblock sb = {.created_ns = now_ns()};
    if (getrandom(w->last.store_id, sizeof sb.store_id, 0) < 0)
        return -errno;
    memcpy(sb.store_id, w->last.store_id, sizeof sb.store_id);
    lm__superblock_encode(&sb, bytes);
    w->tail = sizeof bytes;
    return lm__io_pwrite(w->fd, 0, sizeof bytes, bytes);
}

int lm_writer_create(const char *path, lm_writer **out, struct lm_error *err)
{
    int fd = lm__io_open(path, O_RDWR | O_CREAT | O_EXCL, 0666);
    if (fd < 0)
        return lm__fail(err, lm__error(fd, "file"));
    lm_writer *w = writer_new(fd);
    int rc = w ? append_superblock(w) : -ENOMEM;
    if (rc != 0) {
        w ? lm_writer_close(w) : (void)close(fd);
        unlink(path);
        return lm__fail(err, lm__error(rc, "superblock"));
    }
    *out = w;
    return 0;
}

int lm_writer_open(lm_store *store, lm_writer **out, struct lm_error *err)
{
    if (store->writer_pid != (int32_t)getpid())
        return lm__fail(err, lm__error(-EBADF, "store"));
    lm_writer *w = writer_new(store->source.fd);
    if (!w)
        return lm__fail(err, lm__error(-ENOMEM, "writer"));
    lm__store_retain(store);
    w->store = store;
    w->last = store->record;
    /* Behind what an interrupted commit has left: nothing is ever overwritten. */
    lm__append_restart(w, store->file_bytes);
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
    int rc = lm__append(w, stored, stored_bytes, e, err);
    free(packed);
    return rc;
}

int lm_writer_commit(lm_writer *w, const char *manifest, uint64_t manifest_bytes,
                     struct lm_commit *commit, struct lm_error *err)
{
    uint8_t bytes[LM_RECORD_BYTES];
    struct lm__record rec = {
        .sequence = w->next_sequence ? w->next_sequence : w->last.sequence + 1,
        .previous_offset = w->last.offset,
        .time_ns = w->next_time_ns ? w->next_time_ns : now_ns(),
    };
    w->next_sequence = w->next_time_ns = 0;
    lm__append_recover(w);
    int rc = lm__append_check(w, err);
    if (rc != 0)
        return rc;
    if (manifest_bytes == 0 || manifest_bytes > INT32_MAX)
        return lm__fail(err, lm__error(-EFBIG, "manifest"));
    struct lm_error cause;
    rc = append_manifest(w, manifest, (size_t)manifest_bytes, &rec.manifest, &cause);
    if (rc != 0)
        return lm__append_fail(w, cause, err);
    rec.manifest_bytes = (uint32_t)manifest_bytes;
    memcpy(rec.store_id, w->last.store_id, sizeof rec.store_id);
    rec.offset = lm__round_up(w->tail, LM_RECORD_ALIGN);
    lm__record_encode(&rec, bytes);
    /* A record never reaches the disk before what it commits. */
    rc = lm__append_sync(w, &cause);
    if (rc != 0)
        return lm__append_fail(w, cause, err);
    rc = lm__io_pwrite(w->fd, rec.offset, sizeof bytes, bytes);
    if (rc == 0)
        rc = lm__io_sync(w->fd);
    /* From here on it may count, whatever the system says: it is not cut off again. */
    lm__append_restart(w, rec.offset + sizeof bytes);
    w->last.sequence = rec.sequence; /* nor is its number given again */
    if (rc != 0)
        return lm__fail(err, lm__error(rc, "commit record"));
    w->last = rec;
    if (w->store) {
        w->store->record = rec;
        w->store->file_bytes = w->tail;
    }
    if (commit)
        *commit = lm__commit_of(&rec, w->tail);
    return 0;
}

void lm_writer_resume(lm_writer *w, uint64_t sequence, uint64_t time_ns)
{
    w->next_sequence = sequence;
    w->next_time_ns = time_ns;
}

void lm_writer_close(lm_writer *w)
{
    if (w->store) {
        lm__store_unlock(w->store);
        lm_store_close(w->store);
    } else if (lm__io_is_file(w->fd, &w->file_id)) {
        close(w->fd);
    }
    for (int i = 0; i < LM_RING_SLOTS; i++)
        free(w->ring[i].bytes);
    free(w->compare);
    pthread_cond_destroy(&w->moved);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
