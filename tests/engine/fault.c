/* SPDX-License-Identifier: BSD-3-Clause
 * Do threads that touch a region, the same chunks or different ones, see the object's bytes?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 65536u
#define CHUNKS      60
#define BYTES       ((CHUNKS - 1) * CHUNK_BYTES + 777)
#define THREADS     8

static struct test_store g_store;
static const uint8_t *g_served;
static pthread_barrier_t g_barrier;

/* All at the same chunk at the same time. */
static void *read_in_step(void *unused)
{
    (void)unused;
    for (uint64_t at = 0; at < BYTES; at += CHUNK_BYTES) {
        uint64_t n = BYTES - at < CHUNK_BYTES ? BYTES - at : CHUNK_BYTES;
        pthread_barrier_wait(&g_barrier);
        CHECK(test_same(g_served + at, g_store.data + at, n));
    }
    return NULL;
}

static void *read_at_random(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    for (int i = 0; i < 3000; i++) {
        uint64_t at = test_random(&state) % BYTES;
        CHECK_EQ(*(const volatile uint8_t *)(g_served + at), g_store.data[at]);
    }
    return NULL;
}

static int run(void *(*body)(void *))
{
    pthread_t threads[THREADS];
    struct lm_region_stats stats;
    lm_region *region;
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    g_served = lm_region_addr(region);
    for (uintptr_t i = 0; i < THREADS; i++)
        threads[i] = test_thread(body, (void *)(i + 1));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(test_same(g_served, g_store.data, BYTES));
    for (uint64_t i = BYTES; i % lm__page_bytes(); i++)
        CHECK_EQ(g_served[i], 0); /* behind the end, on the last page */
    lm_region_stats(region, &stats);
    CHECK_EQ(stats.chunks_total, CHUNKS);
    CHECK_EQ(stats.chunks_resident, CHUNKS);
    CHECK_EQ(stats.failures, 0);
    CHECK_EQ(stats.fills, CHUNKS); /* each chunk once, whoever came first */
    CHECK_EQ(lm_region_residency(region, 0, UINT64_MAX, NULL), CHUNKS);
    lm_region_close(region);
    return 0;
}

static void test_nothing_is_resident_at_first(void)
{
    uint8_t mask[CHUNKS];
    struct lm_region_stats stats;
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    lm_region_stats(region, &stats);
    CHECK_EQ(stats.chunks_resident + stats.bytes_resident + stats.faults, 0);
    g_served = lm_region_addr(region);
    CHECK_EQ(*(const volatile uint8_t *)(g_served + 5 * CHUNK_BYTES),
             g_store.data[5 * CHUNK_BYTES]);
    CHECK_EQ(lm_region_residency(region, 0, CHUNKS, mask), 1);
    for (int i = 0; i < CHUNKS; i++)
        CHECK_EQ(mask[i], i == 5);
    lm_region_close(region);
}

/* Kernel accesses fault as well: write() from a region. */
static void test_system_calls(void)
{
    struct lm_pager_stats stats;
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    lm_pager_stats(&stats);
    if (stats.mode == LM_UFFD_FULL) {
        char *path = test_path("copy");
        uint64_t bytes;
        test_file_write(path, lm_region_addr(region), BYTES);
        uint8_t *copy = test_file_read(path, &bytes);
        CHECK_EQ(bytes, BYTES);
        CHECK(memcmp(copy, g_store.data, BYTES) == 0);
        unlink(path);
        free(path);
        free(copy);
    }
    lm_region_close(region);
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .shuffle_width = 4,
                              .codec = LM_CODEC_LZ4,
                              .level = 1};
    CHECK_EQ(pthread_barrier_init(&g_barrier, NULL, THREADS), 0);
    if (test_store_make(&g_store, enc, 31) != 0 || run(read_in_step) != 0)
        return TEST_SKIP;
    for (int i = 0; i < 10; i++)
        CHECK_EQ(run(i % 2 ? read_in_step : read_at_random), 0);
    test_nothing_is_resident_at_first();
    test_system_calls();
    test_store_close(&g_store);
    return TEST_OK;
}
