/* SPDX-License-Identifier: BSD-3-Clause
 * Does a region that takes over the address range of another see its own bytes only, and do
 * many regions share few mappings?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 4096u
#define BYTES       (5 * CHUNK_BYTES - 100)
#define LARGE_BYTES ((16u << 20) + 4096)
#define STORES      3
#define THREADS     4

static struct test_store g_stores[STORES];

static void *churn(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    lm_region *open[8] = {0};
    struct test_store *of[8] = {0};
    for (int i = 0; i < 1500; i++) {
        int k = (int)(test_random(&state) % 8);
        if (open[k]) {
            if (test_random(&state) % 8 == 0)
                lm_region_release(open[k]);
            lm_region_close(open[k]);
            open[k] = NULL;
            continue;
        }
        of[k] = &g_stores[test_random(&state) % STORES];
        CHECK_EQ(test_region_open(of[k], &open[k]), 0);
        uint64_t bytes = of[k]->enc.object_bytes;
        const volatile uint8_t *served = lm_region_addr(open[k]);
        for (int n = 0; n < 10; n++) {
            uint64_t at = test_random(&state) % bytes;
            CHECK_EQ(served[at], of[k]->data[at]);
        }
    }
    for (int k = 0; k < 8; k++)
        if (open[k]) {
            CHECK(test_same(lm_region_addr(open[k]), of[k]->data, 2000));
            lm_region_close(open[k]);
        }
    return NULL;
}

static void test_many_regions_share_arenas(void)
{
    enum { COUNT = 3000 };
    static lm_region *regions[COUNT];
    struct lm_pager_stats stats;
    test_regions_gone(); /* a handler may have one in its hand still */
    for (int i = 0; i < COUNT; i++)
        CHECK_EQ(test_region_open(&g_stores[i % 2], &regions[i]), 0);
    lm_pager_stats(&stats);
    CHECK_EQ(stats.regions_live, COUNT);
    CHECK(stats.arenas <= 4);
    for (int i = 0; i < COUNT; i += 7)
        CHECK(test_same(lm_region_addr(regions[i]), g_stores[i % 2].data, 9000));
    for (int i = 0; i < COUNT; i++)
        lm_region_close(regions[i]);
    test_regions_gone();
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = BYTES, .chunk_bytes = CHUNK_BYTES};
    pthread_t threads[THREADS];
    lm_region *region;
    for (int i = 0; i < STORES; i++) {
        if (i == 2)
            enc.object_bytes = LARGE_BYTES; /* has an arena of its own */
        if (test_store_make(&g_stores[i], enc, 50 + (uint64_t)i) != 0 ||
            test_region_open(&g_stores[i], &region) != 0)
            return TEST_SKIP;
        lm_region_close(region);
    }
    for (uintptr_t i = 0; i < THREADS; i++)
        threads[i] = test_thread(churn, (void *)(i + 1));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    test_many_regions_share_arenas();
    for (int i = 0; i < STORES; i++)
        test_store_close(&g_stores[i]);
    return TEST_OK;
}
