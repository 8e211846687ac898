/* SPDX-License-Identifier: BSD-3-Clause
 * Does an operation that touches the same damage again and again come to its end, and are its
 * false bytes gone when its error has been taken, and taken for data by nobody before?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_PAGES 2
#define CHUNKS      400
#define MANY        260 /* failures of a thread that is no longer served page by page */

static size_t g_page;
static struct test_store g_store;
static lm_region *g_region;

static volatile uint8_t *chunk(size_t idx)
{
    return (uint8_t *)lm_region_addr(g_region) + idx * CHUNK_PAGES * g_page;
}

static int is_present(size_t chunk_idx)
{
    return lm__page_is_present((uintptr_t)chunk(chunk_idx));
}

/* Meet a lot of damage; from then on what is false stays. */
static void meet_damage(void)
{
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    (void)*chunk(CHUNKS - 1); /* reads the index */
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    for (size_t i = 0; i < MANY + 20; i++)
        CHECK_EQ(*chunk(i), 0xFF);
    struct lm_region_stats before, after;
    lm_region_stats(g_region, &before);
    for (int again = 0; again < 100; again++)
        for (size_t i = MANY; i < MANY + 20; i++)
            CHECK_EQ(chunk(i)[1], 0xFF);
    lm_region_stats(g_region, &after);
    CHECK_EQ(after.failures, before.failures); /* not a single one */
    lm_inject(LM_INJECT_READ, 0, 0, 0);
}

static void take_error(void)
{
    struct lm_error err;
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, -ENXIO);
}

static void all_is_right(void)
{
    CHECK(test_same(lm_region_addr(g_region), g_store.data, g_store.enc.object_bytes));
    CHECK_EQ(lm_failure_take(test_tid(), NULL), 0);
    CHECK_EQ(lm_region_settle(g_region), test_failures(g_region));
}

static void test_it_goes_with_the_error(void)
{
    meet_damage();
    CHECK(is_present(MANY));
    CHECK_EQ(lm_region_residency(g_region, 0, CHUNKS, NULL), 1);
    take_error();
    lm_region_settle(g_region); /* a handler may still leave a page for a moment */
    for (size_t i = 0; i < MANY + 20; i++)
        CHECK(!is_present(i));
    all_is_right();
    lm_region_close(g_region);
    test_regions_gone();
}

static void test_who_fills_the_chunk_drops_it(void)
{
    lm_job *job;
    meet_damage();
    CHECK_EQ(lm_region_prefetch(g_region, 0, g_store.enc.object_bytes, &job), 0);
    test_finish(job);
    CHECK(test_same(lm_region_addr(g_region), g_store.data, g_store.enc.object_bytes));
    take_error();
    all_is_right();
    lm_region_close(g_region);
    test_regions_gone();
}

static void test_release_drops_it(void)
{
    meet_damage();
    lm_region_release(g_region);
    CHECK(!is_present(MANY));
    take_error();
    CHECK_EQ(*chunk(MANY), 0xFF);
    struct lm_error err;
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, LM_E_CLOSED);
    lm_region_close(g_region);
    test_regions_gone();
}

static void test_a_child_has_none_of_it(void)
{
    meet_damage();
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(!is_present(MANY));
        all_is_right();
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    CHECK(is_present(MANY));
    take_error();
    all_is_right();
    lm_region_close(g_region);
    test_regions_gone();
}

/* Neither 0 nor 0xFF. */
static void make_store(size_t object_bytes, size_t chunk_bytes)
{
    uint64_t state = 61;
    g_store = (struct test_store){
        .enc = {.object_bytes = object_bytes, .chunk_bytes = (uint32_t)chunk_bytes}};
    g_store.data = malloc(object_bytes);
    CHECK(g_store.data);
    for (size_t i = 0; i < object_bytes; i++)
        g_store.data[i] = (uint8_t)(1 + test_random(&state) % 254);
    test_store_write(&g_store);
    test_store_open(&g_store);
}

static void test_it_takes_no_more_than_its_bound(void)
{
    const size_t bytes = 200u << 20;
    test_store_close(&g_store);
    make_store(bytes, 1u << 20);
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    volatile uint8_t *served = lm_region_addr(g_region);
    (void)served[0];
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    for (size_t i = 0; i < 300; i++)
        CHECK_EQ(served[(1u << 20) + i * g_page], 0xFF);
    size_t present = 0;
    for (size_t i = 1; i < 200; i++)
        CHECK_EQ(served[i << 20], 0xFF);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    for (size_t at = 0; at < bytes; at += g_page)
        present += (size_t)lm__page_is_present((uintptr_t)served + at);
    CHECK(present * g_page > 32u << 20 && present * g_page <= 66u << 20);
    take_error();
    CHECK(!lm__page_is_present((uintptr_t)served + (199u << 20)));
    lm_region_close(g_region);
    test_regions_gone();
}

int main(void)
{
    g_page = lm__page_bytes();
    make_store(CHUNKS * CHUNK_PAGES * g_page, CHUNK_PAGES * g_page);
    if (test_region_open(&g_store, &g_region) != 0)
        return TEST_SKIP;
    lm_region_close(g_region);
    test_regions_gone();
    test_it_goes_with_the_error();
    test_who_fills_the_chunk_drops_it();
    test_release_drops_it();
    if (!TEST_IS_SANITIZED) /* see fork.c */
        test_a_child_has_none_of_it();
    test_it_takes_no_more_than_its_bound();
    test_store_close(&g_store);
    return TEST_OK;
}
