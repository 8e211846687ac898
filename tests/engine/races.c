/* SPDX-License-Identifier: BSD-3-Clause
 * What may happen between the decoding of a chunk and its publication: the pages are given
 * back, the array is closed, its addresses are wanted again, others fault.  Each race is
 * forced: the fill is held at that place.
 */
#define _GNU_SOURCE
#include "pause.h"
#include "uffd.h"

#define CHUNK_PAGES 4
#define CHUNKS      8
#define LARGE_BYTES ((size_t)17 << 20) /* has a mapping of its own */

static size_t g_page;
static struct test_store g_store, g_other, g_large;

static uint64_t events(void)
{
    struct lm_pager_stats stats;
    lm_pager_stats(&stats);
    return stats.events;
}

static lm_region *open_region(struct test_store *of)
{
    lm_region *region;
    CHECK_EQ(test_region_open(of, &region), 0);
    return region;
}

/* madvise() of pages for which a copy is on the way returns, and what the copy brings is not
 * lost on those who wait: neither who began to before the pages went, nor who does after. */
static void test_madvise_is_not_blocked_by_a_copy_in_flight(const char *point)
{
    struct test_toucher early, late;
    struct lm_region_stats stats;
    lm_region *region = open_region(&g_store);
    uint8_t *chunk = (uint8_t *)lm_region_addr(region) + CHUNK_PAGES * g_page;
    const uint8_t *wanted = g_store.data + CHUNK_PAGES * g_page;
    int has_reader = test_two_handlers(region);
    test_hold(point);
    test_touch_start(&early, chunk + 1);
    test_await_held();
    CHECK_EQ(madvise(chunk, CHUNK_PAGES * g_page, MADV_DONTNEED), 0);
    CHECK(!test_is_present(chunk));
    uint64_t before = events();
    test_touch_start(&late, chunk + g_page + 2);
    if (has_reader)
        AWAIT(events() > before);
    test_let_go();
    test_touch_end(&early);
    test_touch_end(&late);
    CHECK_EQ(early.got, wanted[1]);
    CHECK_EQ(late.got, wanted[g_page + 2]);
    CHECK(!early.has_error && !late.has_error);
    CHECK(test_same(chunk, wanted, CHUNK_PAGES * g_page));
    lm_region_stats(region, &stats);
    CHECK_EQ(stats.fills,
             (uint64_t)has_reader + (strcmp(point, "publish") == 0 ? 2 : 1));
    CHECK_EQ(stats.failures, 0);
    lm_region_close(region);
    test_regions_gone();
}

/* A page that has been written before its chunk is published keeps what was written; one
 * that was written and removed comes back as it is stored. */
static void test_stale_source_remove_race(void)
{
    struct test_toucher toucher;
    lm_region *region = open_region(&g_store);
    uint8_t *chunk = lm_region_addr(region);
    test_hold("publish");
    test_touch_start(&toucher, chunk + 1);
    test_await_held();
    for (size_t i = 0; i < CHUNK_PAGES; i++) /* they are there: nobody waits */
        chunk[i * g_page] = (uint8_t)~g_store.data[i * g_page];
    CHECK_EQ(madvise(chunk + g_page, g_page, MADV_DONTNEED), 0);
    test_let_go();
    test_touch_end(&toucher);
    for (size_t i = 0; i < CHUNK_PAGES; i++) {
        uint8_t stored = g_store.data[i * g_page];
        CHECK_EQ(chunk[i * g_page], i == 1 ? stored : (uint8_t)~stored);
        CHECK(test_same(chunk + i * g_page + 1, g_store.data + i * g_page + 1,
                        g_page - 1));
    }
    lm_region_close(region);
    test_regions_gone();
}

static void *prefetch_first_chunk(void *region)
{
    lm_job *job;
    CHECK_EQ(lm_region_prefetch(region, 0, 1, &job), 0); /* here, in this thread */
    test_finish(job);
    return NULL;
}

/* The address range is not handed out while a fill is in flight, and then at once. */
static void test_prefetch_versus_close(const char *point)
{
    lm_region *closed = open_region(&g_store);
    void *addr = lm_region_addr(closed);
    test_hold(point);
    pthread_t thread = test_thread(prefetch_first_chunk, closed);
    test_await_held();
    lm_region_close(closed);
    lm_region *next = open_region(&g_other);
    CHECK(lm_region_addr(next) != addr);
    test_let_go();
    pthread_join(thread, NULL);
    CHECK(test_same(lm_region_addr(next), g_other.data, g_other.enc.object_bytes));
    lm_region_close(next);
    test_regions_gone();
    lm_region *again[2] = {open_region(&g_other), open_region(&g_other)};
    CHECK(lm_region_addr(again[0]) == addr || lm_region_addr(again[1]) == addr);
    for (int i = 0; i < 2; i++) {
        CHECK(test_same(lm_region_addr(again[i]), g_other.data,
                        g_other.enc.object_bytes));
        lm_region_close(again[i]);
    }
    test_regions_gone();
}

/* The same where the range goes back to the system: what the application maps there next is
 * its own. */
static void test_same_address_mapped_again_at_once(const char *point)
{
    lm_region *closed = open_region(&g_large);
    void *addr = lm_region_addr(closed);
    size_t bytes = closed->bytes;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    test_hold(point);
    pthread_t thread = test_thread(prefetch_first_chunk, closed);
    test_await_held();
    lm_region_close(closed);
    CHECK(mmap(addr, bytes, PROT_READ, flags | MAP_FIXED_NOREPLACE, -1, 0) ==
          MAP_FAILED);
    CHECK_EQ(errno, EEXIST);
    test_let_go();
    pthread_join(thread, NULL);
    test_regions_gone();
    uint64_t before = events();
    uint8_t *mine =
        mmap(addr, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(mine == addr);
    for (size_t i = 0; i < bytes; i += g_page)
        CHECK_EQ(mine[i], 0);
    CHECK_EQ(events(), before);
    CHECK_EQ(munmap(mine, bytes), 0);
}

/* Eight threads wait for one chunk when the array is closed: all go on, none with bytes that
 * it could take for data. */
static void test_release_while_eight_threads_fault(const char *point)
{
    struct test_toucher touchers[8];
    struct lm_region_stats stats;
    int heard = 0;
    lm_region *region = open_region(&g_store);
    const uint8_t *chunk = (uint8_t *)lm_region_addr(region) + CHUNK_PAGES * g_page;
    const uint8_t *wanted = g_store.data + CHUNK_PAGES * g_page;
    int has_reader = test_two_handlers(region);
    uint64_t before = events();
    test_hold(point);
    test_touch_start(&touchers[0], chunk);
    test_await_held();
    int is_filled = test_is_present(chunk); /* then nobody else waits */
    for (int i = 1; i < 8; i++)
        test_touch_start(&touchers[i], chunk + (size_t)(i % CHUNK_PAGES) * g_page);
    if (has_reader && !is_filled)
        AWAIT(events() == before + 8);
    for (int i = 1; i < 8 && is_filled; i++)
        test_touch_end(&touchers[i]);
    lm_region_release(region);
    test_let_go();
    for (int i = 0; i < 8; i++) {
        if (i == 0 || !is_filled)
            test_touch_end(&touchers[i]);
        CHECK(!touchers[i].has_error || touchers[i].err.code == LM_E_CLOSED);
        CHECK_EQ(touchers[i].got,
                 i > 0 && is_filled ? wanted[i % CHUNK_PAGES * g_page] : 0xFF);
        heard += touchers[i].has_error;
    }
    /* A thread that wakes late can find the page there that another one was served. */
    CHECK(heard >= 1);
    CHECK(test_failures(region) >= 1);
    lm_region_settle(region);
    lm_region_stats(region, &stats);
    CHECK_EQ(stats.chunks_resident, 0);
    for (size_t i = 0; i < CHUNK_PAGES; i++)
        CHECK(!test_is_present(chunk + i * g_page));
    lm_region_close(region);
    test_regions_gone();
}

static const char *const POINTS[] = {"install", "publish"};

int main(void)
{
    g_page = lm__page_bytes();
    struct lm_encoding enc = {.object_bytes = CHUNKS * CHUNK_PAGES * g_page,
                              .chunk_bytes = (uint32_t)(CHUNK_PAGES * g_page)};
    lm_region *region;
    if (test_store_make(&g_store, enc, 51) != 0 ||
        test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    test_regions_gone();
    CHECK_EQ(test_store_make(&g_other, enc, 52), 0);
    enc.object_bytes = LARGE_BYTES;
    CHECK_EQ(test_store_make(&g_large, enc, 53), 0);
    test_stale_source_remove_race();
    for (int i = 0; i < 2; i++) {
        test_madvise_is_not_blocked_by_a_copy_in_flight(POINTS[i]);
        test_prefetch_versus_close(POINTS[i]);
        test_same_address_mapped_again_at_once(POINTS[i]);
        test_release_while_eight_threads_fault(POINTS[i]);
    }
    test_store_close(&g_store);
    test_store_close(&g_other);
    test_store_close(&g_large);
    return TEST_OK;
}
