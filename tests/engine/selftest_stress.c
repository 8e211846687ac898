/* SPDX-License-Identifier: BSD-3-Clause
 * uffd-stress of the kernel's selftests, on a region: threads that touch pages at random or in
 * order, all the same or each its own, while others fill ahead, give pages back and fork.
 * Does each of them, at any time, read the object's bytes?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 16384u
#define CHUNKS      128
#define BYTES       ((uint64_t)CHUNKS * CHUNK_BYTES)
#define THREADS     4
#define VERIFIED    64u /* bytes of a page that a toucher compares */

/* All combinations are tried: the bounces of the original. */
enum {
    RANDOM = 1,    /* pages at random, not in order */
    RACING = 2,    /* all threads the same pages, at the same time */
    PREFETCH = 4,  /* beside jobs that fill ahead */
    GIVE_BACK = 8, /* beside pages that go */
    FORK = 16,     /* beside forked children that read everything */
    COMBINATIONS = 32
};

static struct test_store g_store;
static lm_region *g_region;
static int g_bounce;
static pthread_barrier_t g_barrier;
static _Atomic int g_touching;

static void *touch(void *arg)
{
    uintptr_t me = (uintptr_t)arg;
    const size_t page = lm__page_bytes(), pages = BYTES / page;
    uint64_t state =
        g_bounce & RACING ? 1 : me + 1; /* the same order for all, or not */
    const uint8_t *served = lm_region_addr(g_region);
    pthread_barrier_wait(&g_barrier);
    for (size_t i = 0; i < pages; i++) {
        size_t idx = g_bounce & RANDOM   ? test_random(&state) % pages
                     : g_bounce & RACING ? i
                                         : (i + me * pages / THREADS) % pages;
        CHECK(test_same(served + idx * page, g_store.data + idx * page, VERIFIED));
    }
    lm_sub_acq_rel(&g_touching, 1);
    return NULL;
}

static int child_verifies(void *unused)
{
    (void)unused;
    CHECK(test_same(lm_region_addr(g_region), g_store.data, BYTES));
    return TEST_OK;
}

static void give_back(uint64_t *state)
{
    uint64_t first = test_random(state) % CHUNKS;
    uint64_t offset = first * CHUNK_BYTES + test_random(state) % 4 * lm__page_bytes();
    uint64_t bytes = (1 + test_random(state) % 8) * lm__page_bytes();
    if (offset + bytes <= BYTES)
        CHECK_EQ(
            madvise((uint8_t *)lm_region_addr(g_region) + offset, bytes, MADV_DONTNEED),
            0);
}

/* What goes on beside the touching threads, until they are through. */
static void interfere(uint64_t seed)
{
    uint64_t state = seed;
    do {
        lm_job *job;
        if (g_bounce & PREFETCH) {
            uint64_t offset = test_random(&state) % BYTES;
            CHECK_EQ(lm_region_prefetch(g_region, offset,
                                        1 + test_random(&state) % (BYTES - offset),
                                        &job),
                     0);
            if (test_random(&state) % 2)
                test_finish(job);
            else
                lm_job_close(job, 0); /* cancelled */
        }
        if (g_bounce & GIVE_BACK)
            give_back(&state);
        if (g_bounce & FORK)
            CHECK_EQ(test_in_child(child_verifies, NULL), 0);
    } while (lm_load_acquire(&g_touching) > 0);
}

static void bounce(uint64_t seed)
{
    pthread_t threads[THREADS];
    struct lm_error err;
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    lm_store_release(&g_touching, THREADS);
    for (uintptr_t i = 0; i < THREADS; i++)
        threads[i] = test_thread(touch, (void *)i);
    pthread_barrier_wait(&g_barrier);
    if (g_bounce & (PREFETCH | GIVE_BACK | FORK))
        interfere(seed);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(test_same(lm_region_addr(g_region), g_store.data, BYTES)); /* verify */
    CHECK_EQ(lm_region_residency(g_region, 0, CHUNKS, NULL), CHUNKS);
    CHECK_EQ(test_failures(g_region), 0);
    CHECK_EQ(lm_region_last_error(g_region, &err), 0);
    lm_region_close(g_region);
}

static void test_stress_anon(void)
{
    for (g_bounce = 0; g_bounce < COMBINATIONS; g_bounce++) {
        if (TEST_IS_SANITIZED && g_bounce & FORK)
            continue; /* the sanitizers' allocators do not survive fork */
        for (uint64_t round = 0; round < 2; round++)
            bounce(1 + round + 7 * (uint64_t)g_bounce);
    }
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .codec = LM_CODEC_LZ4,
                              .level = 1};
    lm_region *region;
    if (test_store_make(&g_store, enc, 43) != 0 ||
        test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    CHECK_EQ(pthread_barrier_init(&g_barrier, NULL, THREADS + 1), 0);
    test_stress_anon();
    test_store_close(&g_store);
    return TEST_OK;
}
