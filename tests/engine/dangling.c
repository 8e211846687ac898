/* SPDX-License-Identifier: BSD-3-Clause
 * Does a touch of memory whose region is gone end, with an error or a signal, and leave no
 * trace for the next owner of the range?
 */
#define _GNU_SOURCE
#include <setjmp.h>

#include "test.h"

#define CHUNK_BYTES 4096u
#define LARGE_BYTES ((20u << 20) + 5)

static void test_touch_is_an_error(struct test_store *t)
{
    struct lm_error err;
    lm_region *region;
    CHECK_EQ(test_region_open(t, &region), 0);
    const volatile uint8_t *served = lm_region_addr(region);
    CHECK_EQ(served[0], t->data[0]);
    lm_region_close(region);
    test_regions_gone();
    CHECK_EQ(served[0], 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, LM_E_DANGLING);
    CHECK_EQ(err.found, (uintptr_t)served);

    CHECK_EQ(test_region_open(t, &region), 0);
    CHECK(lm_region_addr(region) == (void *)served); /* the slot freed last */
    CHECK(test_same(served, t->data, t->enc.object_bytes));
    CHECK_EQ(lm_failure_take(test_tid(), &err), 0);
    lm_region_close(region);
}

/* Memory that could not be had at first comes with the next try. */
static void test_touch_without_memory_ends(struct test_store *t)
{
    lm_region *region;
    CHECK_EQ(test_region_open(t, &region), 0);
    const volatile uint8_t *served = lm_region_addr(region);
    lm_region_close(region);
    test_regions_gone();
    lm_inject(LM_INJECT_UFFD_COPY, 0, 3, ENOMEM);
    CHECK_EQ(served[0], 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), NULL), 1);
    lm_inject(LM_INJECT_UFFD_COPY, 0, 0, 0);
}

static struct test_store g_large;
static const volatile uint8_t *_Atomic g_served;
static __thread sigjmp_buf g_escape;

static void escape(int signal)
{
    (void)signal;
    siglongjmp(g_escape, 1);
}

static void *touch_until_gone(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    const volatile uint8_t *served = lm_load_acquire(&g_served);
    if (sigsetjmp(g_escape, 1) == 0)
        for (;;) {
            uint64_t at = test_random(&state) % LARGE_BYTES;
            (void)served[at];
        }
    return NULL;
}

/* A region with a mapping of its own, closed under threads that wait for its pages: they get
 * SIGSEGV, as with any memory that was unmapped, and do not wait for ever. */
static int unmapped_under_waiting_threads(void *unused)
{
    struct sigaction action = {.sa_handler = escape};
    struct lm_region_stats stats;
    pthread_t threads[4];
    lm_region *region;
    (void)unused;
    CHECK_EQ(sigaction(SIGSEGV, &action, NULL), 0);
    for (int round = 0; round < 20; round++) {
        CHECK_EQ(test_region_open(&g_large, &region), 0);
        lm_store_release(&g_served, (const volatile uint8_t *)lm_region_addr(region));
        for (uintptr_t i = 0; i < 4; i++)
            threads[i] = test_thread(touch_until_gone, (void *)(i + 1));
        do
            lm_region_stats(region, &stats);
        while (stats.fills < 50);
        lm_region_close(region);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
    }
    return TEST_OK;
}

int main(void)
{
    struct test_store t;
    struct lm_encoding enc = {.object_bytes = 30000, .chunk_bytes = CHUNK_BYTES};
    lm_region *region;
    if (test_store_make(&t, enc, 6) != 0)
        return TEST_SKIP;
    enc.object_bytes = LARGE_BYTES;
    CHECK_EQ(test_store_make(&g_large, enc, 7), 0);
    if (test_region_open(&t, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    test_touch_is_an_error(&t);
    test_touch_without_memory_ends(&t);
    CHECK_EQ(test_in_child(unmapped_under_waiting_threads, NULL), 0);
    test_store_close(&t);
    test_store_close(&g_large);
    return TEST_OK;
}
