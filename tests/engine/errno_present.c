/* SPDX-License-Identifier: BSD-3-Clause
 * Pages that are there already: EEXIST for the first page of a request, EAGAIN with a count
 * for a later one.  Does the rest get filled, and what was there stay?
 */
#define _GNU_SOURCE
#include "pause.h"
#include "uffd.h"

#define PAGES       8
#define CHUNK_PAGES 4

static size_t g_page;

static enum lm__install install(int is_zero, uint8_t *to, const uint8_t *from,
                                size_t pages)
{
    return is_zero ? lm__uffd_zero((uintptr_t)to, pages * g_page)
                   : lm__uffd_copy((uintptr_t)to, from, pages * g_page);
}

/* One page of 0xEE at `there`; requests for all eight, then once more. */
static void present_page(int is_zero, size_t there)
{
    uint8_t *to = test_pages_registered(PAGES), *from = test_source(PAGES, 1);
    uint8_t *before = test_source(1, 0xEE);
    struct lm_pager_stats since;
    CHECK_EQ(lm__uffd_copy((uintptr_t)to + there * g_page, before, g_page),
             LM_INSTALLED);
    test_answers(&since);
    CHECK_EQ(install(is_zero, to, from, PAGES), LM_INSTALLED);
    CHECK_ANSWERS(&since, .eexist = 1, .eagain_partial = there > 0,
                  .copies = is_zero ? 0 : 1 + (there > 0) + (there < PAGES - 1),
                  .zeropages = is_zero ? 1 + (there > 0) + (there < PAGES - 1) : 0);
    for (size_t i = 0; i < PAGES; i++)
        CHECK(test_same(to + i * g_page,
                        i == there ? before : from + i * g_page, /* whole pages */
                        is_zero && i != there ? 0 : g_page));
    for (size_t i = 0; i < PAGES && is_zero; i++)
        CHECK_EQ(to[i * g_page + 7], i == there ? 0xEE : 0);
    CHECK_EQ(install(is_zero, to, from, PAGES), LM_INSTALLED); /* all are there */
    CHECK_ANSWERS(&since, .eexist = PAGES);
    test_pages_free(to, PAGES);
    test_pages_free(from, PAGES);
    test_pages_free(before, 1);
}

static void test_present_page_stays_and_the_rest_is_filled(void)
{
    for (int is_zero = 0; is_zero < 2; is_zero++)
        for (size_t there = 0; there < PAGES; there++)
            present_page(is_zero, there);
}

/* ---- a lost race: two threads install the same pages ---------------------------------- */

#define RACE_PAGES  64
#define RACE_ROUNDS 2000

static uint8_t *g_to;
static pthread_barrier_t g_barrier;

static void *race(void *from)
{
    for (int round = 0; round < RACE_ROUNDS; round++) {
        pthread_barrier_wait(&g_barrier);
        CHECK_EQ(lm__uffd_copy((uintptr_t)g_to, from, RACE_PAGES * g_page),
                 LM_INSTALLED);
        pthread_barrier_wait(&g_barrier);
    }
    return NULL;
}

/* Every page is there, comes from one of the two as a whole, and is lost by the other. */
static void test_lost_race_leaves_whole_pages(void)
{
    uint8_t *from[2] = {test_source(RACE_PAGES, 1), test_source(RACE_PAGES, 101)};
    struct lm_pager_stats since, d;
    pthread_t threads[2];
    CHECK_EQ(pthread_barrier_init(&g_barrier, NULL, 3), 0);
    g_to = test_pages_registered(RACE_PAGES);
    for (int i = 0; i < 2; i++)
        threads[i] = test_thread(race, from[i]);
    for (int round = 0; round < RACE_ROUNDS; round++) {
        CHECK_EQ(madvise(g_to, RACE_PAGES * g_page, MADV_DONTNEED), 0);
        test_answers(&since);
        pthread_barrier_wait(&g_barrier);
        pthread_barrier_wait(&g_barrier);
        d = test_answers(&since);
        CHECK_EQ(d.eexist, RACE_PAGES);
        CHECK_EQ(d.eagain + d.enoent + d.enomem + d.refused, 0);
        for (size_t i = 0; i < RACE_PAGES; i++) {
            const uint8_t *page = g_to + i * g_page;
            CHECK(memcmp(page, from[page[0] > 100] + i * g_page, g_page) == 0);
        }
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    test_pages_free(g_to, RACE_PAGES);
}

/* ---- through a region ------------------------------------------------------------------- */

static struct test_store g_store;

/* Two pages of a chunk of four were given back: one request fills both and learns that the
 * third is there; two more learn that it and the fourth are. */
static void test_chunk_with_pages_left_is_filled_up(void)
{
    struct lm_pager_stats since;
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    uint8_t *served = lm_region_addr(region);
    CHECK(test_same(served, g_store.data, CHUNK_PAGES * g_page));
    served[3 * g_page] ^= 0xFF; /* is not to be lost */
    CHECK_EQ(madvise(served, 2 * g_page, MADV_DONTNEED), 0);
    test_answers(&since);
    CHECK(test_same(served, g_store.data, 3 * g_page));
    CHECK_ANSWERS(&since, .eagain_partial = 1, .eexist = 2, .copies = 3);
    CHECK_EQ(served[3 * g_page], g_store.data[3 * g_page] ^ 0xFF);
    CHECK_EQ(lm__chunks_state(&region->chunks, 0), LM_CHUNK_CLEAN);
    CHECK_EQ(test_failures(region), 0);
    lm_region_close(region);
    test_regions_gone();
}

/* Somebody else installs the pages of a chunk while its fill is on the way. */
static void test_fill_that_comes_second_succeeds(void)
{
    struct lm_pager_stats since;
    struct test_toucher toucher;
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    uint8_t *served = lm_region_addr(region);
    test_answers(&since);
    test_hold("install");
    test_touch_start(&toucher, served + 5);
    test_await_held();
    CHECK_EQ(lm__chunks_state(&region->chunks, 0), LM_CHUNK_FILLING);
    CHECK_EQ(lm__uffd_copy((uintptr_t)served, g_store.data, 2 * g_page), LM_INSTALLED);
    test_let_go();
    test_touch_end(&toucher);
    CHECK_EQ(toucher.got, g_store.data[5]);
    CHECK(!toucher.has_error);
    CHECK_ANSWERS(&since, .eexist = 2);
    CHECK_EQ(lm__chunks_state(&region->chunks, 0), LM_CHUNK_CLEAN);
    CHECK(test_same(served, g_store.data, CHUNK_PAGES * g_page));
    lm_region_close(region);
    test_regions_gone();
}

int main(void)
{
    g_page = lm__page_bytes();
    struct lm_encoding enc = {.object_bytes = 4 * CHUNK_PAGES * g_page,
                              .chunk_bytes = (uint32_t)(CHUNK_PAGES * g_page)};
    if (test_uffd_start(0) != 0)
        return TEST_SKIP;
    test_present_page_stays_and_the_rest_is_filled();
    test_lost_race_leaves_whole_pages();
    lm__uffd_stop();
    g_store.enc = enc;
    g_store.data = malloc(enc.object_bytes);
    CHECK(g_store.data);
    memset(g_store.data, 0x31, enc.object_bytes);
    test_fill(g_store.data + 1, enc.object_bytes / 2, 21);
    test_store_write(&g_store);
    test_store_open(&g_store);
    test_chunk_with_pages_left_is_filled_up();
    test_fill_that_comes_second_succeeds();
    test_store_close(&g_store);
    return TEST_OK;
}
