/* SPDX-License-Identifier: BSD-3-Clause
 * Is a region right in a process that locks its memory, all of it or a part, before or after?
 * Locking fills new mappings with zeros before anybody else can, makes two mappings of one,
 * and keeps pages that are to be dropped.
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_PAGES 4
#define CHUNKS      6

static size_t g_page;
static struct test_store g_store;

static int may_not_lock(void) { return test_skip("may not lock memory"); }

static int test_region_opened_in_a_locked_process(void)
{
    struct test_store t;
    struct lm_encoding enc = {.object_bytes = 20 << 20, .chunk_bytes = 65536};
    lm_region *region;
    if (test_store_make(&t, enc, 9) != 0 || test_region_open(&t, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    if (mlockall(MCL_FUTURE) != 0)
        return may_not_lock();
    CHECK_EQ(test_region_open(&t, &region), 0);
    CHECK(test_same(lm_region_addr(region), t.data, enc.object_bytes));
    lm_region_release(region);
    CHECK_EQ(*(volatile uint8_t *)lm_region_addr(region), 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), NULL), 1);
    lm_region_close(region);
    munlockall();
    test_store_close(&t);
    return TEST_OK;
}

static int lock(uint8_t *addr, size_t bytes) { return mlock(addr, bytes); }

static int protect(uint8_t *addr, size_t bytes)
{
    return mprotect(addr, bytes, PROT_READ);
}

static int keep_from_children(uint8_t *addr, size_t bytes)
{
    return madvise(addr, bytes, MADV_DONTFORK);
}

/* A chunk that lies in two or three mappings is filled all the same. */
static void test_chunk_across_mappings(int (*split)(uint8_t *addr, size_t bytes))
{
    lm_region *region;
    for (size_t first = 0; first < CHUNK_PAGES; first++)
        for (size_t pages = 1; first + pages <= CHUNK_PAGES; pages++) {
            CHECK_EQ(test_region_open(&g_store, &region), 0);
            uint8_t *served = lm_region_addr(region);
            CHECK_EQ(split(served + first * g_page, pages * g_page), 0);
            CHECK(test_same(served, g_store.data, CHUNKS * CHUNK_PAGES * g_page));
            CHECK_EQ(lm_failure_take(test_tid(), NULL), 0);
            CHECK_EQ(test_failures(region), 0);
            CHECK_EQ(mprotect(served, region->bytes, PROT_READ | PROT_WRITE), 0);
            CHECK_EQ(munlock(served, region->bytes), 0);
            CHECK_EQ(madvise(served, region->bytes, MADV_DOFORK), 0);
            lm_region_close(region);
            test_regions_gone();
        }
}

/* The false bytes of a failed fill do not stay because the page is locked. */
static void test_failed_fill_of_locked_memory_heals(void)
{
    struct lm_error err;
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    uint8_t *served = lm_region_addr(region);
    CHECK_EQ(*(volatile uint8_t *)served, g_store.data[0]); /* reads the index */
    CHECK_EQ(mlock(served, region->bytes), 0);
    CHECK_EQ(madvise(served, region->bytes, 24 /* MADV_DONTNEED_LOCKED */), 0);
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    CHECK_EQ(((volatile uint8_t *)served)[5], 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, -ENXIO);
    lm_region_settle(region);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK(test_same(served, g_store.data, CHUNKS * CHUNK_PAGES * g_page));
    lm_region_close(region);
    test_regions_gone();
}

static void test_released_memory_goes_although_locked(void)
{
    struct lm_error err;
    unsigned char present[CHUNKS * CHUNK_PAGES];
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    uint8_t *served = lm_region_addr(region);
    CHECK_EQ(mlock(served, region->bytes), 0);
    lm_region_release(region);
    CHECK_EQ(mincore(served, region->bytes, present), 0);
    for (int i = 0; i < CHUNKS * CHUNK_PAGES; i++)
        CHECK(!(present[i] & 1));
    CHECK_EQ(*(volatile uint8_t *)served, 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, LM_E_CLOSED);
    lm_region_close(region);
    test_regions_gone();
}

/* Nobody unlocks what is merely closed. */
static void test_next_region_in_locked_memory_sees_its_own_bytes(void)
{
    struct test_store other;
    lm_region *region;
    CHECK_EQ(test_store_make(&other, g_store.enc, 77), 0);
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    void *addr = lm_region_addr(region);
    CHECK_EQ(mlock(addr, region->bytes), 0);
    lm_region_close(region);
    test_regions_gone();
    CHECK_EQ(test_region_open(&other, &region), 0);
    CHECK(lm_region_addr(region) == addr); /* the slot freed last */
    CHECK(test_same(addr, other.data, other.enc.object_bytes));
    lm_region_close(region);
    test_regions_gone();
    test_store_close(&other);
}

int main(void)
{
    g_page = lm__page_bytes();
    struct lm_encoding enc = {.object_bytes = CHUNKS * CHUNK_PAGES * g_page,
                              .chunk_bytes = (uint32_t)(CHUNK_PAGES * g_page)};
    int rc = test_region_opened_in_a_locked_process();
    if (rc != TEST_OK)
        return rc;
    CHECK_EQ(test_store_make(&g_store, enc, 10), 0);
    test_chunk_across_mappings(lock);
    test_chunk_across_mappings(protect);
    test_chunk_across_mappings(keep_from_children);
    test_failed_fill_of_locked_memory_heals();
    test_released_memory_goes_although_locked();
    test_next_region_in_locked_memory_sees_its_own_bytes();
    test_store_close(&g_store);
    return TEST_OK;
}
