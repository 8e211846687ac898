/* SPDX-License-Identifier: BSD-3-Clause
 * writable.h - a store of two arrays that are written to: the first has data, the second one is
 * zero.  What is in memory, and in the file after a snapshot, is compared with copies.
 */
#ifndef LM_TEST_WRITABLE_H
#define LM_TEST_WRITABLE_H
#include "test.h"

#define CHUNK_PAGES 4
#define CHUNKS      300

static size_t g_page, g_chunk;
static struct lm_error g_err;

/* ---- a store of two arrays that are written to ------------------------------------------------ */

struct array {
    struct lm_encoding enc;
    uint8_t *right; /* what must be in memory */
    lm_object *object;
    lm_region *region;
    uint8_t *memory;
    struct lm_root root; /* last committed */
};

static struct {
    char *path;
    lm_store *store;
    lm_writer *writer;
    struct lm_commit commit;
    struct array arrays[2];
} g;

UNUSED static lm_object *object_open(lm_store *store, const struct array *a,
                                     const struct lm_root *root)
{
    struct lm_object_spec spec = {.object_bytes = a->enc.object_bytes,
                                  .chunk_bytes = a->enc.chunk_bytes,
                                  .shuffle_width = a->enc.shuffle_width,
                                  .root = *root};
    lm_object *object;
    CHECK_CALL(lm_object_open(store, &spec, &object, &g_err), g_err);
    return object;
}

UNUSED static void array_open(struct array *a, struct lm_region_options options)
{
    options.is_tracked = 1;
    a->object = object_open(g.store, a, &a->root);
    CHECK_CALL(lm_region_open(a->object, &options, &a->region, &g_err), g_err);
    lm_region_advise(a->region, LM_ADVICE_RANDOM);
    a->memory = lm_region_addr(a->region);
}

UNUSED static void array_close(struct array *a)
{
    lm_region_close(a->region);
    lm_object_close(a->object);
}

/* The first array has data, the second one is zero. */
UNUSED static void store_make(struct lm_region_options options)
{
    struct array *a = &g.arrays[0], *b = &g.arrays[1];
    lm_writer *writer;
    lm_writer_object *object;
    lm_job *job;
    struct lm_written written;
    g_page = lm__page_bytes();
    g_chunk = CHUNK_PAGES * g_page;
    a->enc = (struct lm_encoding){.object_bytes = CHUNKS * g_chunk - 77,
                                  .chunk_bytes = (uint32_t)g_chunk,
                                  .codec = LM_CODEC_LZ4,
                                  .shuffle_width = 4,
                                  .level = 1};
    b->enc = a->enc;
    b->root = (struct lm_root){0};
    a->right = malloc(a->enc.object_bytes);
    b->right = calloc(1, b->enc.object_bytes);
    CHECK(a->right && b->right);
    test_fill(a->right, a->enc.object_bytes, 3);
    g.path = test_path("store.lzm");
    CHECK_CALL(lm_writer_create(g.path, &writer, &g_err), g_err);
    CHECK_CALL(lm_writer_begin(writer, &a->enc, &object, &g_err), g_err);
    CHECK_CALL(lm_writer_write(object, 0, a->right, a->enc.object_bytes, &job, &g_err),
               g_err);
    test_finish(job);
    CHECK_CALL(lm_writer_end(object, &written, &g_err), g_err);
    CHECK_CALL(lm_writer_commit(writer, "{}", 2, NULL, &g_err), g_err);
    lm_writer_close(writer);
    a->root = written.root;
    CHECK_CALL(lm_store_open_write(g.path, &g.store, &g.commit, &g_err), g_err);
    CHECK_CALL(lm_writer_open(g.store, &g.writer, &g_err), g_err);
    array_open(a, options);
    array_open(b, options);
}

UNUSED static void store_close(void)
{
    for (int i = 0; i < 2; i++) {
        array_close(&g.arrays[i]);
        free(g.arrays[i].right);
    }
    lm_writer_close(g.writer);
    lm_store_close(g.store);
    unlink(g.path);
    free(g.path);
    test_regions_gone();
}

/* ---- snapshots ---------------------------------------------------------------------------------- */

UNUSED static lm_snapshot *begin(struct lm_snapshot_stats *stats)
{
    struct lm_snapshot_part parts[2];
    lm_snapshot *s;
    for (int i = 0; i < 2; i++)
        parts[i] = (struct lm_snapshot_part){g.arrays[i].region, g.arrays[i].enc};
    CHECK_CALL(lm_snapshot_begin(g.writer, parts, 2, &s, stats, &g_err), g_err);
    return s;
}

UNUSED static void write_out(lm_snapshot *s)
{
    lm_job *job;
    CHECK_EQ(lm_snapshot_write(s, &job), 0);
    test_finish(job);
}

UNUSED static void commit(lm_snapshot *s, struct lm_written *written)
{
    CHECK_CALL(lm_snapshot_end(s, written, &g_err), g_err);
    CHECK_CALL(lm_writer_commit(g.writer, "{}", 2, &g.commit, &g_err), g_err);
    lm_snapshot_close(s, 1);
    for (int i = 0; i < 2; i++)
        g.arrays[i].root = written[i].root;
}

UNUSED static uint64_t snapshot(struct lm_written *written)
{
    struct lm_snapshot_stats stats;
    lm_snapshot *s = begin(&stats);
    write_out(s);
    commit(s, written);
    return stats.chunks_frozen;
}

/* What a reader finds in the file. */
UNUSED static void read_file(const struct array *a, uint8_t *out)
{
    lm_store *store;
    struct lm_commit seen;
    lm_job *job;
    CHECK_CALL(lm_store_open(g.path, &store, &seen, &g_err), g_err);
    CHECK_EQ(seen.offset, g.commit.offset);
    lm_object *object = object_open(store, a, &a->root);
    CHECK_EQ(lm_object_read(object, 0, a->enc.object_bytes, out, &job), 0);
    test_finish(job);
    lm_object_close(object);
    lm_store_close(store);
}

UNUSED static void file_is_right(const struct array *a)
{
    uint8_t *found = malloc(a->enc.object_bytes);
    CHECK(found);
    read_file(a, found);
    CHECK(memcmp(found, a->right, a->enc.object_bytes) == 0);
    free(found);
}

UNUSED static void memory_is_right(const struct array *a)
{
    CHECK(test_same(a->memory, a->right, a->enc.object_bytes));
}

UNUSED static void all_is_right(void)
{
    for (int i = 0; i < 2; i++) {
        file_is_right(&g.arrays[i]);
        memory_is_right(&g.arrays[i]);
    }
}

UNUSED static void put(struct array *a, size_t at, const void *bytes, size_t count)
{
    memcpy(a->memory + at, bytes, count);
    memcpy(a->right + at, bytes, count);
}

UNUSED static void put_random(struct array *a, uint64_t *state)
{
    uint8_t bytes[9000];
    size_t count = 1 + test_random(state) % sizeof bytes;
    size_t at = test_random(state) % (a->enc.object_bytes - count);
    test_fill(bytes, count, test_random(state) >> 8);
    put(a, at, bytes, count);
}

#endif
