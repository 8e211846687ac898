/* SPDX-License-Identifier: BSD-3-Clause
 * When a region is released under threads that read and prefetch it, does each go on, with
 * data until then and an error from then on, never with zeros?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 16384u
#define CHUNKS      200
#define BYTES       (CHUNKS * CHUNK_BYTES)
#define THREADS     4
#define ROUNDS      25

static struct test_store g_store;
static lm_region *g_region;
static _Atomic int g_is_released;
static pthread_barrier_t g_barrier;

static void *read_until_closed(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    for (int round = 0; round < ROUNDS; round++) {
        pthread_barrier_wait(&g_barrier);
        const volatile uint8_t *served = lm_region_addr(g_region);
        struct lm_error err = {0};
        while (err.code == 0) {
            uint64_t at = test_random(&state) % BYTES;
            uint64_t over = lm_region_settle(g_region);
            int was_released = lm_load_seq_cst(&g_is_released);
            uint8_t got = served[at];
            int has_failed = test_failures(g_region) != over;
            int has_error = lm_failure_take(test_tid(), &err);
            CHECK(got == g_store.data[at] ||
                  (got == 0xFF && (has_error || has_failed)));
            if (was_released)
                CHECK(has_error || has_failed);
            CHECK(!has_error || err.code == LM_E_CLOSED);
        }
        pthread_barrier_wait(&g_barrier);
    }
    return NULL;
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .codec = LM_CODEC_LZ4,
                              .level = 1};
    pthread_t threads[THREADS];
    if (test_store_make(&g_store, enc, 6) != 0 ||
        test_region_open(&g_store, &g_region) != 0)
        return TEST_SKIP;
    lm_region_close(g_region);
    CHECK_EQ(pthread_barrier_init(&g_barrier, NULL, THREADS + 1), 0);
    for (uintptr_t i = 0; i < THREADS; i++)
        threads[i] = test_thread(read_until_closed, (void *)(i + 1));
    for (int round = 0; round < ROUNDS; round++) {
        struct lm_region_stats stats;
        lm_job *job;
        CHECK_EQ(test_region_open(&g_store, &g_region), 0);
        lm_store_seq_cst(&g_is_released, 0);
        pthread_barrier_wait(&g_barrier);
        CHECK_EQ(lm_region_prefetch(g_region, 0, BYTES, &job), 0);
        do
            lm_region_stats(g_region, &stats);
        while (stats.fills < (uint64_t)(round * CHUNKS / ROUNDS));
        lm_region_release(g_region);
        lm_store_seq_cst(&g_is_released, 1);
        lm_job_close(job, round & 1); /* waited for, or left behind */
        pthread_barrier_wait(&g_barrier);
        lm_region_release(g_region); /* once more does no harm */
        if (!(round & 1)) {          /* nothing is in flight: all memory is back */
            lm_region_stats(g_region, &stats);
            CHECK_EQ(stats.chunks_resident, 0);
            CHECK_EQ(stats.bytes_resident, 0);
            CHECK_EQ(lm_region_residency(g_region, 0, CHUNKS, NULL), 0);
        }
        lm_region_close(g_region);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    test_store_close(&g_store);
    return TEST_OK;
}
