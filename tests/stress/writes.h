/* SPDX-License-Identifier: BSD-3-Clause
 * writes.h - a store that all threads write to, while it is frozen, stored, restored, evicted and
 * replaced.  Part of stress.c.
 *
 * Each thread has slices of its own, 64 bytes of every few hundred, and notes in `right` what
 * it has written.
 *
 * (W1) A thread reads from its slices what it has written, or 0xFF and an error.
 * (W2) In every snapshot its pairs of counters, first one array's and then the other's, are
 *      equal, or the first one is ahead by one.
 * (W3) A snapshot that was begun while nobody wrote is what `right` was then; also when it is
 *      restored, and when the file is opened again.
 * (W4) What a child writes is the child's.
 *
 * The memory has a limit, so that what was written is spilled, and comes back.
 */
#ifndef LM_STRESS_WRITES_H
#define LM_STRESS_WRITES_H

#define W_OBJECTS   3
#define W_SLICE     64
#define W_PAIRS     8
#define W_KEPT      6             /* snapshots that can be restored */
#define W_FILE_MAX  (64ull << 20) /* then it is replaced */
#define W_CELLS_MAX 40
#define W_LIMIT     ((2u << 20) + (512u << 10)) /* of 5 MiB */

struct w_object {
    struct lm_encoding enc;
    uint8_t *right;
    lm_object *object;
    lm_region *region;
};

struct w_snapshot {
    uint64_t record_offset; /* 0: none */
    struct lm_root roots[W_OBJECTS];
    uint32_t crc[W_OBJECTS];
};

static struct {
    pthread_rwlock_t life;    /* write: the store is replaced; outside of all below */
    pthread_mutex_t one;      /* a snapshot, or a restore, at a time */
    pthread_rwlock_t writing; /* read: a thread writes, or compares */
    char *path;
    lm_store *store;
    lm_writer *writer;
    lm_budget *budget;
    struct lm_commit commit; /* under `one`, as is the next */
    struct w_snapshot kept[W_KEPT];
    struct w_object objects[W_OBJECTS];
    _Atomic uint64_t snapshots, exact, restored, replaced, failed, frozen, spilled;
} g_w = {
    .life = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP,
    .one = PTHREAD_MUTEX_INITIALIZER,
    .writing = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP,
    .objects = {{.enc = {3u << 20, 16384, 8, LM_CODEC_LZ4, 1, 1}},
                {.enc = {(2u << 20) + 999, 65536, 0, LM_CODEC_ZSTD, 1, 1}},
                {.enc = {40960, 4096, 0, LM_CODEC_NONE, 0, 1}}},
};

/* ---- opening and closing --------------------------------------------------------------------- */

static lm_object *w_object_open(lm_store *store, int i, const struct lm_root *root)
{
    struct lm_error err;
    lm_object *object;
    const struct lm_encoding *enc = &g_w.objects[i].enc;
    struct lm_object_spec spec = {.tag = 1000u + (uint64_t)i,
                                  .object_bytes = enc->object_bytes,
                                  .chunk_bytes = enc->chunk_bytes,
                                  .shuffle_width = enc->shuffle_width,
                                  .root = *root};
    CHECK_CALL(lm_object_open(store, &spec, &object, &err), err);
    return object;
}

/* A new file of what is right; nobody else is here. */
static void w_open(void)
{
    struct lm_region_options options = {.is_tracked = 1};
    struct lm_written written[W_OBJECTS];
    lm_writer *writer;
    lm_writer_object *object;
    struct lm_error err;
    lm_job *job;
    g_w.path = test_path("stress-writes.lzm");
    CHECK_CALL(lm_writer_create(g_w.path, &writer, &err), err);
    for (int i = 0; i < W_OBJECTS; i++) {
        struct w_object *o = &g_w.objects[i];
        if (o->enc.chunk_bytes < lm__page_bytes())
            o->enc.chunk_bytes = (uint32_t)lm__page_bytes();
        if (!o->right)
            o->right = calloc(1, o->enc.object_bytes);
        CHECK(o->right);
        CHECK_CALL(lm_writer_begin(writer, &o->enc, &object, &err), err);
        CHECK_CALL(
            lm_writer_write(object, 0, o->right, o->enc.object_bytes, &job, &err), err);
        test_finish(job);
        CHECK_CALL(lm_writer_end(object, &written[i], &err), err);
    }
    CHECK_CALL(lm_writer_commit(writer, "{}", 2, NULL, &err), err);
    lm_writer_close(writer);
    CHECK_CALL(lm_store_open_write(g_w.path, &g_w.store, &g_w.commit, &err), err);
    CHECK_CALL(lm_writer_open(g_w.store, &g_w.writer, &err), err);
    memset(g_w.kept, 0, sizeof g_w.kept);
    CHECK(lm_budget_open(W_LIMIT, "/var/tmp", &g_w.budget) == 0);
    options.budget = g_w.budget;
    for (int i = 0; i < W_OBJECTS; i++) {
        struct w_object *o = &g_w.objects[i];
        o->object = w_object_open(g_w.store, i, &written[i].root);
        CHECK_CALL(lm_region_open(o->object, &options, &o->region, &err), err);
    }
}

static void w_close(void)
{
    for (int i = 0; i < W_OBJECTS; i++) {
        lm_region_close(g_w.objects[i].region);
        lm_object_close(g_w.objects[i].object);
    }
    struct lm_budget_stats stats;
    lm_budget_stats(g_w.budget, &stats);
    lm_add_relaxed(&g_w.spilled, stats.chunks_spilled);
    lm_budget_close(g_w.budget);
    lm_writer_close(g_w.writer);
    lm_store_close(g_w.store);
    unlink(g_w.path);
    free(g_w.path);
}

/* ---- a thread's slices ------------------------------------------------------------------------ */

/* The n-th slice of a thread. */
static uint64_t slice_at(const struct thread *t, uint64_t n)
{
    return (n * THREADS + (uint64_t)t->index) * W_SLICE;
}

static uint64_t slice_count(int i)
{
    return g_w.objects[i].enc.object_bytes / (W_SLICE * THREADS);
}

/* 1 if the operation was spoilt, by this thread's failure or another's: it is to be done again. */
static int has_failed(struct thread *t, const lm_region *r, uint64_t over)
{
    struct lm_error err;
    int has_error = lm_failure_take(lm_load_relaxed(&t->watched->tid), &err);
    if (has_error)
        check_cause(t, &err, "write");
    return has_error || lm_load_seq_cst(&r->failures) != over;
}

/* Of eight bytes, aligned; until it has come to pass. */
static void w_put(struct thread *t, int i, uint64_t at, uint64_t value)
{
    struct w_object *o = &g_w.objects[i];
    uint64_t *cell = (uint64_t *)((uint8_t *)lm_region_addr(o->region) + at), over;
    do {
        over = lm_region_settle(o->region);
        __atomic_store_n(cell, value, __ATOMIC_RELAXED);
    } while (has_failed(t, o->region, over));
    memcpy(o->right + at, &value, 8);
}

static void w_check(struct thread *t, int i, uint64_t at)
{
    struct w_object *o = &g_w.objects[i];
    const uint64_t *cell = (uint64_t *)((uint8_t *)lm_region_addr(o->region) + at);
    uint64_t got, right, over;
    do {
        over = lm_region_settle(o->region);
        got = __atomic_load_n(cell, __ATOMIC_RELAXED);
    } while (has_failed(t, o->region, over));
    memcpy(&right, o->right + at, 8);
    if (got != right) /* (W1) */
        fail(t, "array %d, offset %llu is %#llx, not %#llx, state %d", i,
             (unsigned long long)at, (unsigned long long)got, (unsigned long long)right,
             (int)lm__chunks_state(&o->region->chunks, at >> o->region->chunk_shift));
}

/* The first cell of a slice is for pairs. */
static uint64_t draw_cell(struct thread *t, int i)
{
    return slice_at(t, draw(t, slice_count(i))) + 8 * (1 + draw(t, W_SLICE / 8 - 1));
}

static uint64_t pair_at(const struct thread *t, uint64_t pair)
{
    return slice_at(t, pair * (slice_count(1) - 1) / (W_PAIRS - 1));
}

static void w_write_here_and_there(struct thread *t)
{
    int i = (int)draw(t, W_OBJECTS);
    uint64_t near = draw(t, slice_count(i));
    for (uint64_t n = 1 + draw(t, W_CELLS_MAX); n > 0; n--) {
        uint64_t at = draw_cell(t, i);
        if (draw(t, 2)) /* a run */
            at = slice_at(t, (near + n) % slice_count(i)) + 8;
        w_put(t, i, at, draw(t, 8) ? t->random : 0);
        w_check(t, i, draw_cell(t, i));
    }
}

static void w_count_up(struct thread *t)
{
    for (uint64_t pair = 0; pair < W_PAIRS; pair++) {
        uint64_t at = pair_at(t, pair), n;
        memcpy(&n, g_w.objects[0].right + at, 8);
        w_put(t, 0, at, n + 1);
        w_put(t, 1, at, n + 1);
    }
}

static void op_write(struct thread *t)
{
    pthread_rwlock_rdlock(&g_w.life);
    pthread_rwlock_rdlock(&g_w.writing);
    w_write_here_and_there(t);
    w_count_up(t);
    pthread_rwlock_unlock(&g_w.writing);
    pthread_rwlock_unlock(&g_w.life);
}

/* Also while a restore is under way: what is read is anything then. */
static void op_read_written(struct thread *t)
{
    struct lm_error err;
    pthread_rwlock_rdlock(&g_w.life);
    for (int n = 0; n < 20; n++) {
        int i = (int)draw(t, W_OBJECTS);
        uint8_t *memory = lm_region_addr(g_w.objects[i].region);
        (void)__atomic_load_n(memory + draw(t, g_w.objects[i].enc.object_bytes),
                              __ATOMIC_RELAXED);
    }
    if (lm_failure_take(lm_load_relaxed(&t->watched->tid), &err))
        check_cause(t, &err, "read");
    if (draw(t, 4) == 0) {
        lm_job *job;
        lm_region *r = g_w.objects[draw(t, W_OBJECTS)].region;
        CHECK_EQ(lm_region_prefetch(r, 0, r->object->spec.object_bytes, &job), 0);
        finish(t, job, draw(t, 2) == 0);
    }
    pthread_rwlock_unlock(&g_w.life);
}

static void op_evict_written(struct thread *t)
{
    pthread_rwlock_rdlock(&g_w.life);
    lm_region *r = g_w.objects[draw(t, W_OBJECTS)].region;
    struct range range = draw_range(t, r->object->spec.object_bytes, 1u << 20);
    lm_region_evict(r, range.offset, range.nbytes);
    pthread_rwlock_unlock(&g_w.life);
}

/* ---- snapshots ------------------------------------------------------------------------------------ */

/* An array as it is in a state of the file; 0 if an injected error has spoilt it. */
static int w_read(struct thread *t, lm_store *store, int i, const struct lm_root *root,
                  uint8_t *out)
{
    struct lm_error err;
    lm_job *job;
    lm_object *object = w_object_open(store, i, root);
    CHECK_EQ(lm_object_read(object, 0, g_w.objects[i].enc.object_bytes, out, &job), 0);
    while (!lm_job_wait(job, 1000))
        ;
    int has_error = lm_job_errors(job, &err, 1);
    if (has_error)
        check_cause(t, &err, "snapshot");
    lm_job_close(job, 0);
    lm_object_close(object);
    return !has_error;
}

static void check_pairs(struct thread *t, uint8_t *const *arrays)
{
    for (int i = 0; i < THREADS; i++) {
        const struct thread of = {.index = i};
        for (uint64_t pair = 0; pair < W_PAIRS; pair++) {
            uint64_t x, y;
            memcpy(&x, arrays[0] + pair_at(&of, pair), 8);
            memcpy(&y, arrays[1] + pair_at(&of, pair), 8);
            if (x - y > 1) /* (W2) */
                fail(t, "snapshot %llu is torn: pair %llu of thread %d is %llu, %llu",
                     (unsigned long long)g_w.commit.sequence, (unsigned long long)pair,
                     i, (unsigned long long)x, (unsigned long long)y);
        }
    }
}

/* What a snapshot has in the file. */
static void w_verify(struct thread *t, lm_store *store, const struct w_snapshot *s,
                     int is_exact)
{
    uint8_t *arrays[W_OBJECTS];
    int are_read = 1;
    for (int i = 0; i < W_OBJECTS; i++) {
        uint64_t count = g_w.objects[i].enc.object_bytes;
        CHECK(arrays[i] = malloc(count));
        are_read = are_read && w_read(t, store, i, &s->roots[i], arrays[i]);
        if (are_read && is_exact &&
            lm_crc32c(0, arrays[i], count) != s->crc[i]) /* (W3) */
            fail(t, "array %d of the snapshot at %llu is not what it was", i,
                 (unsigned long long)s->record_offset);
    }
    if (are_read)
        check_pairs(t, arrays);
    for (int i = 0; i < W_OBJECTS; i++)
        free(arrays[i]);
}

static lm_snapshot *w_begin(struct thread *t, struct w_snapshot *kept, int is_exact)
{
    struct lm_snapshot_part parts[W_OBJECTS];
    struct lm_snapshot_stats stats;
    struct lm_error err;
    lm_snapshot *s;
    for (int i = 0; i < W_OBJECTS; i++)
        parts[i] = (struct lm_snapshot_part){g_w.objects[i].region, g_w.objects[i].enc};
    if (is_exact)
        pthread_rwlock_wrlock(&g_w.writing);
    int rc = lm_snapshot_begin(g_w.writer, parts, W_OBJECTS, &s, &stats, &err);
    for (int i = 0; i < W_OBJECTS && is_exact; i++)
        kept->crc[i] =
            lm_crc32c(0, g_w.objects[i].right, g_w.objects[i].enc.object_bytes);
    if (is_exact)
        pthread_rwlock_unlock(&g_w.writing);
    if (rc != 0) {
        check_cause(t, &err, "snapshot");
        return NULL;
    }
    lm_add_relaxed(&g_w.frozen, stats.chunks_frozen);
    return s;
}

/* 1 if it is committed. */
static int w_finish(struct thread *t, lm_snapshot *s, struct w_snapshot *kept)
{
    struct lm_written written[W_OBJECTS];
    struct lm_error err;
    lm_job *job;
    int rc = lm_snapshot_write(s, &job);
    if (rc == 0 && job)
        finish(t, job, 0);
    if (rc == 0)
        rc = lm_snapshot_end(s, written, &err);
    if (rc == 0)
        rc = lm_writer_commit(g_w.writer, "{}", 2, &g_w.commit, &err);
    if (rc != 0)
        check_cause(t, &err, "snapshot");
    lm_snapshot_close(s, rc == 0);
    for (int i = 0; i < W_OBJECTS && rc == 0; i++)
        kept->roots[i] = written[i].root;
    kept->record_offset = g_w.commit.offset;
    lm_add_relaxed(rc == 0 ? &g_w.snapshots : &g_w.failed, 1);
    return rc == 0;
}

static void w_snapshot_locked(struct thread *t)
{
    struct w_snapshot kept = {0};
    int is_exact = draw(t, 3) == 0;
    lm_snapshot *s = w_begin(t, &kept, is_exact);
    if (!s)
        return;
    if (draw(t, 10) == 0) {
        lm_snapshot_close(s, 0); /* given up */
        return;
    }
    if (!w_finish(t, s, &kept))
        return;
    if (draw(t, 4) == 0)
        w_verify(t, g_w.store, &kept, is_exact);
    if (is_exact)
        g_w.kept[draw(t, W_KEPT)] = kept;
    lm_add_relaxed(&g_w.exact, (uint64_t)is_exact);
}

/* All becomes as it was; nobody writes, but others read. */
static void w_restore_locked(struct thread *t)
{
    const struct w_snapshot *s = &g_w.kept[draw(t, W_KEPT)];
    uint8_t *arrays[W_OBJECTS];
    struct lm_error err;
    uint64_t dropped;
    if (s->record_offset == 0)
        return;
    for (int i = 0; i < W_OBJECTS; i++) {
        CHECK(arrays[i] = malloc(g_w.objects[i].enc.object_bytes));
        while (!w_read(t, g_w.store, i, &s->roots[i], arrays[i]))
            ;
    }
    pthread_rwlock_wrlock(&g_w.writing);
    for (int i = 0; i < W_OBJECTS; i++) {
        struct w_object *o = &g_w.objects[i];
        while (lm_region_restore(o->region, g_w.store, &s->roots[i], &dropped, &err) !=
               0)
            check_cause(t, &err, "restore");
        if (lm_region_dirty(o->region) != 0)
            fail(t, "array %d is dirty after it was restored", i);
        memcpy(o->right, arrays[i], o->enc.object_bytes);
        free(arrays[i]);
    }
    pthread_rwlock_unlock(&g_w.writing);
    lm_add_relaxed(&g_w.restored, 1);
}

/* The file is opened anew and compared, snapshot by snapshot, and replaced. */
static void w_replace(struct thread *t)
{
    struct w_snapshot last = {0};
    struct lm_error err;
    lm_snapshot *s;
    do
        s = w_begin(t, &last, 1);
    while (!s || !w_finish(t, s, &last));
    for (int i = -1; i < W_KEPT; i++) {
        const struct w_snapshot *kept = i < 0 ? &last : &g_w.kept[i];
        struct lm_commit commit;
        lm_store *store;
        if (kept->record_offset == 0)
            continue;
        int rc =
            lm_store_open_at(g_w.store, kept->record_offset, &store, &commit, &err);
        if (rc != 0) {
            check_cause(t, &err, "store");
            continue;
        }
        w_verify(t, store, kept, 1);
        lm_store_close(store);
    }
    w_close();
    w_open();
    lm_add_relaxed(&g_w.replaced, 1);
}

static void op_snapshot(struct thread *t)
{
    pthread_rwlock_rdlock(&g_w.life);
    int is_long = 0;
    if (pthread_mutex_trylock(&g_w.one) == 0) {
        w_snapshot_locked(t);
        is_long = g_w.commit.file_bytes > W_FILE_MAX;
        pthread_mutex_unlock(&g_w.one);
    }
    pthread_rwlock_unlock(&g_w.life);
    if (!is_long || injected_lately())
        return;
    pthread_rwlock_wrlock(&g_w.life);
    if (g_w.commit.file_bytes > W_FILE_MAX)
        w_replace(t);
    pthread_rwlock_unlock(&g_w.life);
}

static void op_restore(struct thread *t)
{
    pthread_rwlock_rdlock(&g_w.life);
    if (pthread_mutex_trylock(&g_w.one) == 0) {
        w_restore_locked(t);
        pthread_mutex_unlock(&g_w.one);
    }
    pthread_rwlock_unlock(&g_w.life);
}

/* ---- fork -------------------------------------------------------------------------------------------- */

/* Around it, so that the child finds its slices in order. */
static void w_fork_begin(void)
{
    pthread_rwlock_rdlock(&g_w.life);
    pthread_rwlock_rdlock(&g_w.writing);
}

static void w_fork_end(void)
{
    pthread_rwlock_unlock(&g_w.writing);
    pthread_rwlock_unlock(&g_w.life);
}

/* In a child: what it writes is its own, (W4), and nobody's snapshot. */
static void w_in_child(struct thread *t)
{
    for (int n = 0; n < 4; n++)
        w_write_here_and_there(t);
    for (int i = 0; i < W_OBJECTS; i++) {
        for (uint64_t slice = 0; slice < slice_count(i); slice += 1 + draw(t, 40))
            w_check(t, i, slice_at(t, slice) + 8);
        if (lm_region_dirty(g_w.objects[i].region) != 0)
            fail(t, "array %d is dirty in a child", i);
    }
}

#endif
