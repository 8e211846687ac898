/* SPDX-License-Identifier: BSD-3-Clause
 * Does each thread that touches what can't be read hear of it, and only then; and does what
 * can be read again heal?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 16384u
#define CHUNKS      64
#define BYTES       (CHUNKS * CHUNK_BYTES)

static struct test_store g_store;

static lm_region *open_region(void)
{
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    return region;
}

static void test_damage_is_an_error_of_its_toucher(void)
{
    struct lm_error err;
    lm_region *region = open_region();
    const volatile uint8_t *served = lm_region_addr(region);
    CHECK_EQ(lm_region_last_error(region, &err), 0);
    for (int i = 0; i < 3; i++) { /* lasting: each touch fails */
        uint64_t over = lm_region_settle(region);
        CHECK_EQ(served[3 * CHUNK_BYTES + 5000], 0xFF);
        CHECK(test_failures(region) > over);
        CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
        CHECK_EQ(err.code, LM_E_CHECKSUM);
        CHECK_EQ(err.tag, 7);
        CHECK_EQ(err.chunk_idx, 3);
        CHECK_EQ(err.tid, test_tid());
        CHECK_EQ(err.offset, test_entry(&g_store, 3).offset);
        CHECK_EQ(lm_failure_take(test_tid(), &err), 0);
        CHECK_EQ(lm_region_last_error(region, &err), 1);
        CHECK_EQ(err.chunk_idx, 3);
    }
    CHECK_EQ(served[4 * CHUNK_BYTES], g_store.data[4 * CHUNK_BYTES]);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 0);
    lm_region_close(region);
}

static void test_passing_errors_heal(void)
{
    struct lm_error err;
    lm_region *region = open_region();
    const volatile uint8_t *served = lm_region_addr(region);
    lm_inject(LM_INJECT_READ, 0, 1, EIO); /* one hiccup: nobody hears of it */
    CHECK_EQ(served[0], g_store.data[0]);
    lm_inject(LM_INJECT_READ, 0, 5, EINTR);
    CHECK_EQ(served[CHUNK_BYTES], g_store.data[CHUNK_BYTES]);
    CHECK_EQ(test_failures(region), 0);

    lm_inject(LM_INJECT_READ, 0, -1, ENXIO); /* an outage */
    CHECK_EQ(served[2 * CHUNK_BYTES], 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, -ENXIO);
    lm_region_settle(region);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK_EQ(served[2 * CHUNK_BYTES], g_store.data[2 * CHUNK_BYTES]);
    CHECK(test_same(served + 2 * CHUNK_BYTES, g_store.data + 2 * CHUNK_BYTES,
                    CHUNK_BYTES));
    CHECK_EQ(lm_failure_take(test_tid(), &err), 0);
    lm_region_close(region);
}

static void test_truncated_file(void)
{
    struct lm_error err;
    lm_region *region = open_region();
    const volatile uint8_t *served = lm_region_addr(region);
    uint64_t bytes;
    CHECK_EQ(served[0], g_store.data[0]); /* the index is known */
    uint8_t *file = test_file_read(g_store.path, &bytes);
    CHECK_EQ(truncate(g_store.path, 100), 0);
    CHECK_EQ(served[9 * CHUNK_BYTES], 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, LM_E_TRUNCATED);
    lm_region_settle(region);
    test_file_write(g_store.path, file, bytes);
    CHECK_EQ(served[9 * CHUNK_BYTES], g_store.data[9 * CHUNK_BYTES]);
    free(file);
    lm_region_close(region);
}

/* Eight threads, each through its own chunks and those of the others: who reads false bytes
 * knows it by its own error, or by the failures counted meanwhile. */
static lm_region *g_region;

static void *read_all(void *seed)
{
    const volatile uint8_t *served = lm_region_addr(g_region);
    uint64_t state = (uint64_t)(uintptr_t)seed;
    for (int i = 0; i < 400; i++) {
        uint64_t at = test_random(&state) % BYTES;
        uint64_t over = lm_region_settle(g_region);
        uint8_t got = served[at];
        int has_failed = test_failures(g_region) != over;
        int has_error = lm_failure_take(test_tid(), NULL);
        CHECK(got == g_store.data[at] || has_error || has_failed);
        if (has_error)
            CHECK(has_failed);
    }
    return NULL;
}

static void test_eight_threads_amid_damage(void)
{
    pthread_t threads[8];
    g_region = open_region();
    for (uintptr_t i = 0; i < 8; i++)
        threads[i] = test_thread(read_all, (void *)(i + 1));
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    CHECK(test_failures(g_region) > 0);
    lm_region_close(g_region);
}

/* One load that needs two pages, of one chunk or of two that both fail, must find both at the
 * same time, also where a read takes long to fail. */
static int load_across(void *is_slow)
{
    struct lm_error err;
    lm_region *region = open_region();
    const uint8_t *served = lm_region_addr(region);
    const uint64_t places[] = {3 * CHUNK_BYTES - 3,
                               5 * CHUNK_BYTES + lm__page_bytes() - 3};
    lm_inject(LM_INJECT_READ, 0, -1, *(int *)is_slow ? EIO : ENXIO);
    for (int i = 0; i < 6; i++) {
        uint64_t word, over = lm_region_settle(region);
        memcpy(&word, served + places[i % 2], sizeof word);
        CHECK_EQ(word, UINT64_MAX);
        CHECK(lm_failure_take(test_tid(), &err) || test_failures(region) != over);
    }
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    lm_region_close(region);
    return TEST_OK;
}

static int load_across_on_one_core(void *is_slow)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    return load_across(is_slow);
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .codec = LM_CODEC_LZ4,
                              .level = 1};
    int quick = 0, slow = 1;
    lm_region *region;
    if (test_store_make(&g_store, enc, 2) != 0)
        return TEST_SKIP;
    /* In children, which start their handlers themselves. */
    if (test_in_child(load_across, &quick) != 0 ||
        test_in_child(load_across, &slow) != 0 ||
        test_in_child(load_across_on_one_core, &quick) != 0 ||
        test_in_child(load_across_on_one_core, &slow) != 0)
        return TEST_FAILED;
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    test_passing_errors_heal();
    test_truncated_file();
    for (uint64_t c = 3; c < CHUNKS; c += 9)
        if (test_entry(&g_store, c).stored_bytes)
            test_store_damage(&g_store, c);
    test_damage_is_an_error_of_its_toucher();
    test_eight_threads_amid_damage();
    test_store_close(&g_store);
    return TEST_OK;
}
