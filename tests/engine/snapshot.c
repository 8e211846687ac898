/* SPDX-License-Identifier: BSD-3-Clause
 * Is what was written to memory in the file after a snapshot, all of it, and nothing else; at one
 * moment, though threads write on; and can one go back?
 */
#define _GNU_SOURCE
#include "pause.h"
#include "pool.h"
#include "writable.h"

/* ---- one thread ------------------------------------------------------------------------------------ */

static int g_finds_writes; /* else all that was read is taken for written */

static void test_what_was_written_is_found(void)
{
    struct array *a = &g.arrays[0], *b = &g.arrays[1];
    struct lm_written written[2];
    uint64_t fill = 0x0102030405060708;
    (void)*(volatile uint8_t *)(a->memory + 5 * g_chunk);
    (void)*(volatile uint8_t *)(b->memory + 5 * g_chunk);
    if (g_finds_writes)
        CHECK_EQ(lm_region_dirty(a->region) + lm_region_dirty(b->region), 0);
    put(a, 5 * g_chunk, &fill, 8);             /* resident and clean */
    put(a, 9 * g_chunk - 3, &fill, 8);         /* absent, two chunks */
    put(b, 5 * g_chunk + 8, &fill, 8);         /* a resident zero chunk */
    put(b, a->enc.object_bytes - 8, &fill, 8); /* an absent one, the last */
    if (g_finds_writes && lm_region_chunk_bytes(a->region) == g_chunk) {
        CHECK_EQ(lm_region_dirty(a->region), 3);
        CHECK_EQ(lm_region_dirty(b->region), 2);
    }
    snapshot(written);
    CHECK_EQ(written[0].chunks_total, 3);
    CHECK_EQ(written[1].chunks_total, 2);
    if (g_finds_writes)
        CHECK_EQ(lm_region_dirty(a->region) + lm_region_dirty(b->region), 0);
    all_is_right();
}

static void test_nothing_new_costs_nothing(void)
{
    struct lm_written written[2];
    struct array *a = &g.arrays[0];
    uint8_t was = a->right[6 * g_chunk];
    put(a, 6 * g_chunk, "x", 1);
    put(a, 6 * g_chunk, &was, 1);
    uint64_t before = g.commit.file_bytes;
    snapshot(written);
    CHECK_EQ(written[0].chunks_total + written[1].chunks_total, 0);
    CHECK(g.commit.file_bytes - before < 1024);
    all_is_right();
}

/* A second write after a snapshot is found as the first one was. */
static void test_many_snapshots(uint64_t seed)
{
    uint64_t state = seed * 2 + 1;
    struct lm_written written[2];
    for (int round = 0; round < (TEST_IS_SANITIZED ? 4 : 20); round++) {
        for (int i = 0; i < 12; i++)
            put_random(&g.arrays[test_random(&state) % 2], &state);
        snapshot(written);
        all_is_right();
    }
}

static void test_clean_chunks_can_be_evicted_and_written_ones_not(void)
{
    struct array *a = &g.arrays[0];
    struct lm_written written[2];
    memory_is_right(a);
    put(a, 20 * g_chunk, "written", 7);
    lm_region_evict(a->region, 0, a->enc.object_bytes);
    if (g_finds_writes)
        CHECK_EQ(lm_region_residency(a->region, 0, CHUNKS, NULL), 1);
    memory_is_right(a);
    snapshot(written);
    lm_region_evict(a->region, 0, a->enc.object_bytes);
    all_is_right();
}

static void test_pages_that_are_given_back(void)
{
    struct array *a = &g.arrays[0];
    struct lm_written written[2];
    size_t unit = lm_region_chunk_bytes(a->region);
    if (unit != g_chunk)
        return; /* of a huge page there is no part to give back */
    put(a, 30 * g_chunk, "written", 7);
    /* Another page of the same chunk: what was stored comes back, and nothing is lost. */
    CHECK_EQ(madvise(a->memory + 30 * g_chunk + g_page, g_page, MADV_DONTNEED), 0);
    memory_is_right(a);
    put(a, 30 * g_chunk + g_page, "again", 5);
    snapshot(written);
    all_is_right();
    /* Not read again before the snapshot copies it. */
    put(a, 31 * g_chunk, "written", 7);
    CHECK_EQ(madvise(a->memory + 31 * g_chunk + g_page, g_page, MADV_DONTNEED), 0);
    snapshot(written);
    all_is_right();
}

static void test_a_snapshot_that_fails_loses_nothing(void)
{
    struct lm_written written[2];
    struct lm_snapshot_stats stats;
    struct array *a = &g.arrays[0];
    put(a, 40 * g_chunk, "kept", 4);
    put(a, 41 * g_chunk, "kept", 4);
    lm_inject(LM_INJECT_WRITE, 1, -1, ENOSPC);
    lm_snapshot *s = begin(&stats);
    lm_job *job;
    CHECK_EQ(lm_snapshot_write(s, &job), 0);
    while (!lm_job_wait(job, 1000))
        ;
    CHECK_EQ(lm_job_errors(job, &g_err, 1), 1);
    CHECK_EQ(g_err.code, -ENOSPC);
    lm_job_close(job, 0);
    CHECK_EQ(lm_snapshot_end(s, written, &g_err), -ENOSPC);
    lm_snapshot_close(s, 0);
    lm_inject(LM_INJECT_WRITE, 0, 0, 0);
    memory_is_right(a);
    put(a, 41 * g_chunk + 4, "too", 3);
    snapshot(written);
    CHECK(written[0].chunks_total == 2);
    all_is_right();
}

static void test_going_back(void)
{
    struct lm_written written[2];
    struct array *a = &g.arrays[0], *b = &g.arrays[1];
    struct lm_root first[2] = {a->root, b->root}, second[2];
    uint8_t *was[2], *later[2];
    uint64_t state = 99, dropped;
    for (int i = 0; i < 2; i++) {
        was[i] = malloc(a->enc.object_bytes);
        later[i] = malloc(a->enc.object_bytes);
        CHECK(was[i] && later[i]);
        memcpy(was[i], g.arrays[i].right, a->enc.object_bytes);
    }
    for (int i = 0; i < 30; i++)
        put_random(&g.arrays[i % 2], &state);
    snapshot(written);
    for (int i = 0; i < 2; i++) {
        second[i] = g.arrays[i].root;
        memcpy(later[i], g.arrays[i].right, a->enc.object_bytes);
    }
    for (int i = 0; i < 9; i++)
        put_random(&g.arrays[i % 2], &state); /* in no snapshot */
    for (int round = 0; round < 4; round++)
        for (int i = 0; i < 2; i++) {
            struct array *x = &g.arrays[i];
            int to_first = round % 2 == 0;
            CHECK_CALL(lm_region_restore(x->region, g.store,
                                         to_first ? &first[i] : &second[i], &dropped,
                                         &g_err),
                       g_err);
            CHECK(dropped > 0);
            memcpy(x->right, to_first ? was[i] : later[i], x->enc.object_bytes);
            memory_is_right(x);
            if (g_finds_writes)
                CHECK_EQ(lm_region_dirty(x->region), 0);
        }
    /* A branch: from the first state on. */
    for (int i = 0; i < 2; i++) {
        CHECK_CALL(
            lm_region_restore(g.arrays[i].region, g.store, &first[i], &dropped, &g_err),
            g_err);
        memcpy(g.arrays[i].right, was[i], a->enc.object_bytes);
    }
    put(a, 77, "branch", 6);
    snapshot(written);
    all_is_right();
    for (int i = 0; i < 2; i++) {
        free(was[i]);
        free(later[i]);
    }
}

static int child_writes(void *arg)
{
    struct array *a = arg;
    put(a, 50 * g_chunk, "child", 5);
    (void)*(volatile uint8_t *)(a->memory + 60 * g_chunk);
    put(a, 60 * g_chunk, "child", 5);
    put(&g.arrays[1], 61 * g_chunk, "child", 5);
    memory_is_right(a);
    memory_is_right(&g.arrays[1]);
    CHECK_EQ(lm_region_dirty(a->region), 0);
    return 0;
}

static void test_a_child_writes_for_itself(void)
{
    struct lm_written written[2];
    struct array *a = &g.arrays[0];
    put(a, 50 * g_chunk + 9, "parent", 6);
    CHECK_EQ(test_in_child(child_writes, a), 0);
    memory_is_right(a);
    snapshot(written);
    all_is_right();
}

/* ---- while threads write ------------------------------------------------------------------------------ */

#define WRITERS 3
#define PAIRS   8

static _Atomic int g_stop;

/* First a cell of one array, then its twin in the other: in no state of the memory is the
 * second ahead, or more than one behind. */
static void *count_up(void *arg)
{
    size_t id = (size_t)arg;
    for (uint32_t n = 1; !lm_load_relaxed(&g_stop); n++)
        for (size_t pair = 0; pair < PAIRS; pair++) {
            size_t at = ((id * PAIRS + pair) * 7 + 3) * g_chunk + 8;
            *(volatile uint32_t *)(g.arrays[0].memory + at) = n;
            *(volatile uint32_t *)(g.arrays[1].memory + at) = n;
        }
    return NULL;
}

static void test_a_snapshot_is_a_moment(void)
{
    struct lm_written written[2];
    struct lm_snapshot_stats stats;
    uint8_t *found[2];
    pthread_t threads[WRITERS];
    for (int i = 0; i < 2; i++)
        CHECK(found[i] = malloc(g.arrays[i].enc.object_bytes));
    for (size_t id = 0; id < WRITERS; id++)
        for (size_t pair = 0; pair < PAIRS; pair++)
            for (int i = 0; i < 2; i++)
                put(&g.arrays[i], ((id * PAIRS + pair) * 7 + 3) * g_chunk + 8,
                    "\0\0\0\0", 4);
    lm_store_relaxed(&g_stop, 0);
    for (size_t id = 0; id < WRITERS; id++)
        threads[id] = test_thread(count_up, (void *)id);
    for (int round = 0; round < (TEST_IS_SANITIZED ? 10 : 60); round++) {
        lm_snapshot *s = begin(&stats);
        write_out(s);
        commit(s, written);
        for (int i = 0; i < 2; i++)
            read_file(&g.arrays[i], found[i]);
        for (size_t id = 0; id < WRITERS; id++)
            for (size_t pair = 0; pair < PAIRS; pair++) {
                size_t at = ((id * PAIRS + pair) * 7 + 3) * g_chunk + 8;
                uint32_t x, y;
                memcpy(&x, found[0] + at, 4);
                memcpy(&y, found[1] + at, 4);
                if (x - y > 1)
                    fprintf(stderr, "round %d: %u, %u\n", round, x, y);
                CHECK(x - y <= 1);
            }
    }
    lm_store_relaxed(&g_stop, 1);
    for (size_t id = 0; id < WRITERS; id++)
        pthread_join(threads[id], NULL);
    for (int i = 0; i < 2; i++) {
        memcpy(g.arrays[i].right, g.arrays[i].memory, g.arrays[i].enc.object_bytes);
        free(found[i]);
    }
    snapshot(written);
    all_is_right();
}

static void *write_one(void *arg)
{
    struct array *a = &g.arrays[0];
    size_t at = (size_t)arg;
    a->memory[at] = 0xAB;
    return NULL;
}

/* Its writer goes on before the snapshot is stored. */
static void test_a_frozen_chunk_is_copied_for_its_writer(void)
{
    struct lm_written written[2];
    struct lm_snapshot_stats stats;
    struct array *a = &g.arrays[0];
    put(a, 70 * g_chunk, "frozen", 6);
    put(a, 71 * g_chunk, "frozen", 6);
    lm_snapshot *s = begin(&stats); /* and nothing is written yet */
    pthread_join(test_thread(write_one, (void *)(70 * g_chunk)), NULL);
    write_out(s);
    commit(s, written);
    file_is_right(a); /* as it was then */
    a->right[70 * g_chunk] = 0xAB;
    memory_is_right(a);
    if (g_finds_writes)
        CHECK_EQ(lm_region_dirty(a->region), 1);
    snapshot(written);
    all_is_right();
}

static int child_finds_all(void *arg)
{
    (void)arg;
    memory_is_right(&g.arrays[0]);
    memory_is_right(&g.arrays[1]);
    put(&g.arrays[0], 80 * g_chunk, "child", 5);
    memory_is_right(&g.arrays[0]);
    return 0;
}

static void test_fork_amid_a_snapshot(void)
{
    struct lm_written written[2];
    struct lm_snapshot_stats stats;
    put(&g.arrays[0], 80 * g_chunk, "frozen", 6);
    put(&g.arrays[0], 82 * g_chunk, "frozen", 6);
    lm_snapshot *s = begin(&stats);
    CHECK_EQ(test_in_child(child_finds_all, NULL), 0);
    write_out(s);
    CHECK_EQ(test_in_child(child_finds_all, NULL), 0);
    commit(s, written);
    all_is_right();
}

static void test_release_amid_a_snapshot(void)
{
    struct lm_written written[2];
    struct lm_snapshot_stats stats;
    lm_job *job;
    put(&g.arrays[0], 0, "frozen", 6);
    lm_snapshot *s = begin(&stats);
    lm_region_release(g.arrays[0].region);
    CHECK_EQ(lm_snapshot_write(s, &job), 0);
    while (job && !lm_job_wait(job, 1000))
        ;
    CHECK_EQ(lm_job_errors(job, &g_err, 1), 1);
    CHECK_EQ(g_err.code, LM_E_CLOSED);
    lm_job_close(job, 0);
    CHECK(lm_snapshot_end(s, written, &g_err) != 0);
    lm_snapshot_close(s, 0);
}

static size_t g_at;

/* Twice: the first time the writer faults anew, and writes. */
static void *restore_and_read(void *root)
{
    uint64_t dropped;
    for (int i = 0; i < 2; i++) {
        CHECK_CALL(
            lm_region_restore(g.arrays[0].region, g.store, root, &dropped, &g_err),
            g_err);
        (void)*(volatile uint8_t *)(g.arrays[0].memory + g_at + 64); /* same page */
        usleep(30000);
    }
    return NULL;
}

/* A handler is about to let a thread write when the chunk is given up, and filled again by a
 * reader.  That chunk is a clean one, and what is written to it later is to be found. */
static void test_a_write_after_a_restore_is_found(void)
{
    struct lm_written written[2];
    struct array *a = &g.arrays[0];
    if (!test_two_handlers(a->region))
        return;
    snapshot(written);
    struct lm_root root = a->root;
    g_at = a->enc.object_bytes / 2;
    (void)*(volatile uint8_t *)(a->memory + g_at);
    test_hold("let write");
    pthread_t writer = test_thread(write_one, (void *)g_at);
    test_await_held();
    pthread_t restorer = test_thread(restore_and_read, &root);
    usleep(150000);
    test_let_go();
    pthread_join(restorer, NULL);
    pthread_join(writer, NULL);
    CHECK_CALL(lm_region_restore(a->region, g.store, &root, &(uint64_t){0}, &g_err),
               g_err);
    (void)*(volatile uint8_t *)(a->memory + g_at);
    put(a, g_at, "found", 5);
    CHECK_EQ(lm_region_dirty(a->region), 1);
    snapshot(written);
    all_is_right();
}

/* ---- all of it ------------------------------------------------------------------------------------- */

/* The program has unmapped what it had written to. */
static void test_memory_that_is_gone(void)
{
    struct lm_snapshot_part parts[2];
    struct lm_snapshot_stats stats;
    lm_snapshot *s;
    struct array *a = &g.arrays[1];
    size_t unit = lm_region_chunk_bytes(a->region);
    put(a, unit + 5, "gone", 4);
    CHECK_EQ(munmap(a->memory + unit, unit), 0);
    for (int i = 0; i < 2; i++)
        parts[i] = (struct lm_snapshot_part){g.arrays[i].region, g.arrays[i].enc};
    CHECK_EQ(lm_snapshot_begin(g.writer, parts, 2, &s, &stats, &g_err),
             LM_E_LOST_MAPPING);
    CHECK_EQ(g_err.chunk_idx, unit / g_chunk);
    CHECK_EQ(lm_region_dirty(a->region) > 0, 1);
}

static int run(uint64_t page_bytes)
{
    if (lm_pager_start() != 0)
        return test_skip("no userfaultfd");
    store_make((struct lm_region_options){.page_bytes = page_bytes});
    g_finds_writes = g.arrays[0].region->tracking == LM_TRACK_PROTECT;
    test_what_was_written_is_found();
    test_nothing_new_costs_nothing();
    test_many_snapshots(1);
    test_clean_chunks_can_be_evicted_and_written_ones_not();
    test_pages_that_are_given_back();
    test_a_snapshot_that_fails_loses_nothing();
    test_going_back();
    if (!TEST_IS_SANITIZED) { /* see fork.c */
        test_a_child_writes_for_itself();
        test_fork_amid_a_snapshot();
    }
    if (g_finds_writes) {
        test_a_frozen_chunk_is_copied_for_its_writer();
        test_a_snapshot_is_a_moment();
        test_a_write_after_a_restore_is_found();
    }
    test_many_snapshots(2);
    test_release_amid_a_snapshot();
    if (g_finds_writes)
        test_memory_that_is_gone();
    store_close();
    return TEST_OK;
}

static int run_in_huge_pages(void)
{
    enum { PAGES = 10 };
    int has_grown = pool_grow(PAGES);
    int rc = has_grown ? test_run_as("huge") : 0; /* without a pool there is no test */
    if (has_grown)
        pool_grow(-PAGES);
    return rc;
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    if (strcmp(how, "unprotected") == 0) /* as on kernels before 5.7 */
        setenv("LAZYMEM_MASK", "wp", 1);
    if (argc > 1)
        return run(strcmp(how, "huge") == 0 ? LM_HUGE_BYTES : 0);
    int rc = test_run_as("ordinary");
    if (rc == 0)
        rc = test_run_as("unprotected");
    return rc == 0 ? run_in_huge_pages() : rc;
}
