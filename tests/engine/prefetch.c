/* SPDX-License-Identifier: BSD-3-Clause
 * Does prefetch fill just the chunks of its range or list, alone or beside threads that touch them,
 * and tell what it could not fill?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 16384u
#define CHUNKS      100
#define BYTES       (CHUNKS * CHUNK_BYTES - 99)

static struct test_store g_store;
static lm_region *g_region;

static void prefetch(uint64_t offset, uint64_t bytes)
{
    lm_job *job;
    CHECK_EQ(lm_region_prefetch(g_region, offset, bytes, &job), 0);
    test_finish(job);
}

static void test_ranges(void)
{
    lm_job *job;
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    prefetch(5 * CHUNK_BYTES - 1, 2); /* two chunks by two bytes */
    CHECK_EQ(lm_region_residency(g_region, 0, CHUNKS, NULL), 2);
    CHECK_EQ(lm_region_residency(g_region, 4, 2, NULL), 2);
    prefetch(BYTES - 1, 1);
    CHECK_EQ(lm_region_residency(g_region, CHUNKS - 1, 1, NULL), 1);
    CHECK_EQ(lm_region_prefetch(g_region, BYTES, 1, &job), -EINVAL);
    CHECK_EQ(lm_region_prefetch(g_region, 1, UINT64_MAX, &job), -EINVAL);
    CHECK_EQ(lm_region_prefetch(g_region, 1, 0, &job), -EINVAL);
    prefetch(0, BYTES);
    CHECK_EQ(lm_region_residency(g_region, 0, CHUNKS, NULL), CHUNKS);
    struct lm_region_stats stats;
    CHECK(test_same(lm_region_addr(g_region), g_store.data, BYTES));
    lm_region_stats(g_region, &stats);
    CHECK_EQ(stats.fills, CHUNKS);
    CHECK_EQ(stats.faults, 0);
    lm_region_close(g_region);
}

static void *touch(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    const volatile uint8_t *served = lm_region_addr(g_region);
    for (int i = 0; i < 500; i++) {
        uint64_t at = test_random(&state) % BYTES;
        CHECK_EQ(served[at], g_store.data[at]);
    }
    return NULL;
}

static void test_beside_touchers(void)
{
    for (int round = 0; round < 20; round++) {
        pthread_t threads[3];
        lm_job *jobs[2];
        CHECK_EQ(test_region_open(&g_store, &g_region), 0);
        for (uintptr_t i = 0; i < 3; i++)
            threads[i] = test_thread(touch, (void *)(i + 1 + 3 * (uintptr_t)round));
        CHECK_EQ(lm_region_prefetch(g_region, 0, BYTES, &jobs[0]), 0);
        CHECK_EQ(lm_region_prefetch(g_region, 0, BYTES, &jobs[1]), 0);
        lm_job_close(jobs[1], 0);
        test_finish(jobs[0]);
        for (int i = 0; i < 3; i++)
            pthread_join(threads[i], NULL);
        CHECK_EQ(lm_region_residency(g_region, 0, CHUNKS, NULL), CHUNKS);
        lm_region_close(g_region);
    }
}

static void test_error_is_the_jobs_and_the_chunk_heals(void)
{
    struct lm_error err;
    lm_job *job;
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    CHECK_EQ(lm_region_prefetch(g_region, 0, BYTES, &job), 0);
    while (!lm_job_wait(job, 1000))
        ;
    CHECK(lm_job_errors(job, &err, 1) == 1 && err.code == -ENXIO);
    lm_job_close(job, 0);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK_EQ(test_failures(g_region), 0); /* nobody saw false bytes */
    CHECK(test_same(lm_region_addr(g_region), g_store.data, BYTES));
    lm_region_close(g_region);
}

static lm_job *prefetch_listed(uint64_t first, uint64_t step, uint64_t count)
{
    uint64_t list[CHUNKS];
    lm_job *job;
    for (uint64_t i = 0; i < count; i++)
        list[i] = first + i * step;
    CHECK_EQ(lm_region_prefetch_chunks(g_region, list, count, 1, &job), 0);
    return job;
}

static void test_lists(void)
{
    static const uint64_t beyond[] = {1, CHUNKS}, none[CHUNKS + 1];
    struct lm_region_stats stats;
    lm_job *job;
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    const uint64_t *resident = lm_region_resident(g_region);
    CHECK(!prefetch_listed(0, 1, 0));
    CHECK(!prefetch_listed(5, 1, 1)); /* a touch does as well */
    CHECK_EQ(lm_region_prefetch_chunks(g_region, beyond, 2, 0, &job), -EINVAL);
    CHECK_EQ(lm_region_prefetch_chunks(g_region, none, CHUNKS + 1, 0, &job), -EINVAL);
    CHECK_EQ(*resident, 0);
    test_finish(prefetch_listed(1, 3, 33));
    CHECK_EQ(*resident, 33);
    for (uint64_t i = 0; i < CHUNKS; i++)
        CHECK_EQ(lm_region_residency(g_region, i, 1, NULL), i % 3 == 1 && i < 99);
    CHECK(!prefetch_listed(0, 1, 2)); /* one of them is there */
    test_finish(prefetch_listed(99, -(uint64_t)1, CHUNKS));
    CHECK_EQ(*resident, CHUNKS);
    CHECK(!prefetch_listed(0, 1, CHUNKS));
    CHECK(test_same(lm_region_addr(g_region), g_store.data, BYTES));
    lm_region_stats(g_region, &stats);
    CHECK_EQ(stats.fills, CHUNKS);
    CHECK_EQ(stats.faults, 0);
    lm_region_release(g_region);
    CHECK(!prefetch_listed(0, 1, CHUNKS));
    lm_region_close(g_region);
}

static void test_lists_beside_touchers(void)
{
    for (int round = 0; round < 20; round++) {
        pthread_t threads[3];
        CHECK_EQ(test_region_open(&g_store, &g_region), 0);
        for (uintptr_t i = 0; i < 3; i++)
            threads[i] = test_thread(touch, (void *)(i + 1 + 3 * (uintptr_t)round));
        lm_job *jobs[] = {prefetch_listed(0, 1, CHUNKS), prefetch_listed(0, 2, 50)};
        for (int i = 0; i < 2; i++)
            if (jobs[i])
                lm_job_close(jobs[i], round % 2 ? LM_JOB_LEAVE : LM_JOB_DETACH);
        for (int i = 0; i < 3; i++)
            pthread_join(threads[i], NULL);
        CHECK(test_same(lm_region_addr(g_region), g_store.data, BYTES));
        lm_region_close(g_region);
    }
}

/* Whoever could touch it is gone: the rest is not filled. */
static void test_a_list_ends_with_its_region(void)
{
    struct lm_pager_stats before, after;
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    lm_pager_stats(&before);
    lm_inject(LM_INJECT_READ, 0, -1, LM_INJECT_HANG);
    lm_job *job = prefetch_listed(0, 1, CHUNKS);
    lm_region_close(g_region);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    while (!lm_job_wait(job, 1000))
        ;
    lm_pager_stats(&after);
    lm_job_close(job, LM_JOB_CANCEL);
    CHECK(after.copies - before.copies < CHUNKS / 2);
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .shuffle_width = 2,
                              .codec = LM_CODEC_ZSTD,
                              .level = 1};
    if (test_store_make(&g_store, enc, 14) != 0 ||
        test_region_open(&g_store, &g_region) != 0)
        return TEST_SKIP;
    lm_region_close(g_region);
    test_ranges();
    test_beside_touchers();
    test_error_is_the_jobs_and_the_chunk_heals();
    test_lists();
    test_lists_beside_touchers();
    test_a_list_ends_with_its_region();
    test_store_close(&g_store);
    return TEST_OK;
}
