/* SPDX-License-Identifier: BSD-3-Clause
 * pagemap_ioctl of the kernel's selftests: zeros are installed first and protected then, and the
 * page tables say what was written in between.  Is that exact, however many threads race: is each
 * write in the next snapshot, and no chunk taken for written that was only read?
 */
#define _GNU_SOURCE
#include "pause.h"
#include "uffd.h"
#include "writable.h"

#define THREADS 4
#define ROUNDS  (TEST_IS_SANITIZED ? 8 : 40)

static struct array *const g_zero = &g.arrays[1];

static void reopen(void)
{
    array_close(g_zero);
    array_open(g_zero, (struct lm_region_options){0});
}

static int is_dirty(size_t chunk)
{
    return lm__chunks_state(&g_zero->region->chunks, chunk) == LM_CHUNK_DIRTY;
}

/* ---- forced -------------------------------------------------------------------------------------- */

/* The filling of a chunk for a reader, held between the two steps. */
static void hold_in_the_window(struct test_toucher *reader, size_t chunk)
{
    lm_region_evict(g_zero->region, 0, g_zero->enc.object_bytes);
    test_hold("zeros installed");
    test_touch_start(reader, g_zero->memory + chunk * g_chunk);
    test_await_held();
}

static void go_on(struct test_toucher *reader)
{
    test_let_go();
    test_touch_end(reader);
}

static void test_a_write_in_the_window_is_found(void)
{
    struct test_toucher reader;
    struct lm_pager_stats since;
    struct lm_written written[2];
    hold_in_the_window(&reader, 4);
    test_answers(&since);
    put(g_zero, 4 * g_chunk + 2 * g_page, "window", 6);
    CHECK_EQ(test_answers(&since).events, 0); /* the kernel told nobody */
    go_on(&reader);
    CHECK_EQ(lm_region_dirty(g_zero->region), 1);
    CHECK(is_dirty(4));
    put(g_zero, 4 * g_chunk, "later", 5);
    hold_in_the_window(&reader, 6);
    go_on(&reader);
    CHECK_EQ(lm_region_dirty(g_zero->region), 1);
    snapshot(written);
    CHECK_EQ(written[1].chunks_total, 1);
    all_is_right();
}

static _Atomic int g_has_begun;

static void *begin_snapshot(void *out)
{
    struct lm_snapshot_stats stats;
    *(lm_snapshot **)out = begin(&stats);
    lm_store_seq_cst(&g_has_begun, 1);
    return NULL;
}

/* A snapshot that begins meanwhile waits, and has it. */
static void test_a_snapshot_waits_for_the_window(void)
{
    struct test_toucher reader;
    struct lm_written written[2];
    lm_snapshot *s;
    hold_in_the_window(&reader, 8);
    pthread_t thread = test_thread(begin_snapshot, &s);
    AWAIT(lm_load_seq_cst(&g_zero->region->writes.is_freezing));
    put(g_zero, 8 * g_chunk + g_page, "window", 6);
    CHECK(!lm_load_seq_cst(&g_has_begun));
    go_on(&reader);
    pthread_join(thread, NULL);
    write_out(s);
    commit(s, written);
    CHECK_EQ(written[1].chunks_total, 1);
    all_is_right();
}

/* The page can be had, and the next one not: the chunk is not dropped with what was written. */
static void test_a_write_in_the_window_of_a_fill_that_fails(void)
{
    struct lm_written written[2];
    struct test_toucher reader;
    struct lm_error err;
    uint8_t *hole = g_zero->memory + 10 * g_chunk + 3 * g_page, *away = test_pages(1);
    CHECK(mremap(hole, g_page, g_page, MREMAP_MAYMOVE | MREMAP_FIXED, away) == away);
    hold_in_the_window(&reader, 10);
    put(g_zero, 10 * g_chunk + g_page, "window", 6);
    go_on(&reader);
    CHECK_EQ(reader.got, 0); /* its page is there */
    CHECK(mremap(away, g_page, g_page, MREMAP_MAYMOVE | MREMAP_FIXED, hole) == hole);
    CHECK(is_dirty(10));
    snapshot(written);
    CHECK_EQ(written[1].chunks_total, 1);
    all_is_right();
    CHECK_EQ(lm_failure_take(test_tid(), &err), 0);
}

/* ---- raced ---------------------------------------------------------------------------------------- */

static uint64_t g_seed;
static _Atomic int g_written[CHUNKS];
static _Atomic int g_stop;

/* Even chunks only, so that none is let be written ahead.  Each thread has bytes of its own. */
static void *write_here_and_there(void *arg)
{
    size_t id = (size_t)arg;
    uint64_t state = (g_seed * THREADS + id) * 2 + 1;
    for (int i = 0; i < CHUNKS / 4; i++) {
        size_t chunk = test_random(&state) % (CHUNKS / 2) * 2;
        size_t at = chunk * g_chunk + test_random(&state) % (CHUNK_PAGES - 1) * g_page;
        uint8_t value = (uint8_t)(1 + test_random(&state) % 255);
        g_zero->memory[at + id] = value;
        g_zero->right[at + id] = value;
        lm_store_relaxed(&g_written[chunk], 1);
    }
    return NULL;
}

static void *read_here_and_there(void *arg)
{
    uint64_t state = (g_seed * THREADS + (size_t)arg) * 2 + 999;
    for (int i = 0; i < CHUNKS; i++) {
        size_t chunk = test_random(&state) % CHUNKS;
        size_t at = chunk * g_chunk + test_random(&state) % (CHUNK_PAGES - 1) * g_page;
        CHECK_EQ(*(volatile uint8_t *)(g_zero->memory + at + 100), 0);
    }
    return NULL;
}

static void race(void)
{
    pthread_t threads[2 * THREADS];
    g_seed++;
    for (size_t id = 0; id < THREADS; id++) {
        threads[id] = test_thread(read_here_and_there, (void *)id);
        threads[THREADS + id] = test_thread(write_here_and_there, (void *)id);
    }
    for (size_t i = 0; i < 2 * THREADS; i++)
        pthread_join(threads[i], NULL);
}

/* And all of them are zero. */
static void no_chunk_is_in_memory(void)
{
    struct lm_written written[2];
    snapshot(written);
    g_zero->root = (struct lm_root){0};
    reopen();
    memset(g_zero->right, 0, g_zero->enc.object_bytes);
}

static void test_what_was_written_is_found_exactly(void)
{
    struct lm_written written[2];
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t count = 0;
        no_chunk_is_in_memory();
        for (size_t c = 0; c < CHUNKS; c++)
            lm_store_relaxed(&g_written[c], 0);
        race();
        for (size_t c = 0; c < CHUNKS; c++) {
            count += (uint64_t)lm_load_relaxed(&g_written[c]);
            CHECK(is_dirty(c) || !lm_load_relaxed(&g_written[c]));
        }
        CHECK(lm_region_dirty(g_zero->region) >= count); /* some were let be written */
        snapshot(written);
        CHECK_EQ(written[1].chunks_total, count);
        file_is_right(g_zero);
    }
}

static void *race_on(void *rounds)
{
    for (size_t i = 0; i < (size_t)rounds; i++)
        race();
    lm_store_seq_cst(&g_stop, 1);
    return NULL;
}

/* Snapshots all the while, evictions between them; the last one makes the file right. */
static void test_no_write_is_missed_amid_snapshots(void)
{
    struct lm_written written[2];
    for (int round = 0; round < ROUNDS / 4; round++) {
        no_chunk_is_in_memory();
        lm_store_seq_cst(&g_stop, 0);
        pthread_t thread = test_thread(race_on, (void *)4);
        while (!lm_load_seq_cst(&g_stop)) {
            snapshot(written);
            lm_region_evict(g_zero->region, 0, g_zero->enc.object_bytes);
        }
        pthread_join(thread, NULL);
        snapshot(written);
        all_is_right();
        lm_region_evict(g_zero->region, 0, g_zero->enc.object_bytes);
        CHECK_EQ(lm_region_residency(g_zero->region, 0, CHUNKS, NULL), 0);
        all_is_right();
    }
}

int main(void)
{
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    if (lm_pager_start() != 0)
        return test_skip("no userfaultfd");
    store_make((struct lm_region_options){0});
    if (g_zero->region->tracking != LM_TRACK_PROTECT || !lm__pages_can_tell_zero())
        return test_skip("no write protection, or no PAGEMAP_SCAN");
    test_a_write_in_the_window_is_found();
    test_a_snapshot_waits_for_the_window();
    test_a_write_in_the_window_of_a_fill_that_fails();
    test_what_was_written_is_found_exactly();
    test_no_write_is_missed_amid_snapshots();
    store_close();
    return TEST_OK;
}
