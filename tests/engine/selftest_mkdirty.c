/* SPDX-License-Identifier: BSD-3-Clause
 * mkdirty of the kernel's selftests: pages that are installed into a mapping which may not be
 * written, or not even read, do they stay so?
 */
#define _GNU_SOURCE
#include <setjmp.h>

#include "uffd.h"

#define CHUNK_PAGES 4
#define CHUNKS      6

static size_t g_page;
static struct test_store g_store;
static sigjmp_buf g_escape;

static void escape(int signal) { siglongjmp(g_escape, signal); }

/* The signal that the access brings, or 0. */
static int try_read(const volatile uint8_t *addr)
{
    int signal = sigsetjmp(g_escape, 1);
    if (signal == 0)
        (void)*addr;
    return signal;
}

static int try_write(volatile uint8_t *addr, uint8_t value)
{
    int signal = sigsetjmp(g_escape, 1);
    if (signal == 0)
        *addr = value;
    return signal;
}

/* Chunk 1 is zero: it comes by ZEROPAGE, the others by COPY. */
static void test_mkdirty_read_only_stays_read_only(void)
{
    lm_region *region;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    uint8_t *served = lm_region_addr(region);
    CHECK_EQ(mprotect(served, region->bytes, PROT_READ), 0);
    for (size_t c = 0; c < CHUNKS; c++) {
        size_t at = c * CHUNK_PAGES * g_page;
        if (c % 2) /* a write that comes first fills nothing; a read does */
            CHECK_EQ(try_write(served + at, 0xEE), SIGSEGV);
        CHECK_EQ(try_read(served + at), 0);
        CHECK_EQ(try_write(served + at, 0xEE), SIGSEGV);
        CHECK_EQ(try_write(served + at + g_page + 1, 0xEE), SIGSEGV);
    }
    CHECK(test_same(served, g_store.data, g_store.enc.object_bytes));
    CHECK_EQ(test_failures(region), 0);

    CHECK_EQ(mprotect(served, region->bytes, PROT_READ | PROT_WRITE), 0);
    for (size_t c = 0; c < CHUNKS; c++) {
        CHECK_EQ(try_write(served + c * CHUNK_PAGES * g_page, 0xEE), 0);
        CHECK_EQ(served[c * CHUNK_PAGES * g_page], 0xEE);
    }
    lm_region_close(region);
    test_regions_gone();
}

static void test_mkdirty_inaccessible_stays_inaccessible(void)
{
    struct lm_pager_stats since;
    lm_region *region;
    lm_job *job;
    CHECK_EQ(test_region_open(&g_store, &region), 0);
    uint8_t *served = lm_region_addr(region);
    CHECK_EQ(mprotect(served, region->bytes, PROT_NONE), 0);
    CHECK_EQ(lm_region_prefetch(region, 0, g_store.enc.object_bytes, &job), 0);
    test_finish(job);
    for (size_t i = 0; i < CHUNKS * CHUNK_PAGES; i++)
        CHECK_EQ(try_read(served + i * g_page), SIGSEGV);
    test_answers(&since);
    CHECK_EQ(mprotect(served, region->bytes, PROT_READ | PROT_WRITE), 0);
    CHECK(test_same(served, g_store.data, g_store.enc.object_bytes));
    CHECK_EQ(test_answers(&since).events, 0); /* it was all there */
    lm_region_close(region);
    test_regions_gone();
}

int main(void)
{
    struct sigaction action = {.sa_handler = escape};
    lm_region *region;
    g_page = lm__page_bytes();
    g_store.enc = (struct lm_encoding){.object_bytes = CHUNKS * CHUNK_PAGES * g_page,
                                       .chunk_bytes = (uint32_t)(CHUNK_PAGES * g_page)};
    g_store.data = malloc(g_store.enc.object_bytes);
    CHECK(g_store.data);
    test_fill(g_store.data, g_store.enc.object_bytes, 44);
    memset(g_store.data + CHUNK_PAGES * g_page, 0, CHUNK_PAGES * g_page);
    test_store_write(&g_store);
    test_store_open(&g_store);
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    test_regions_gone();
    CHECK_EQ(sigaction(SIGSEGV, &action, NULL), 0);
    test_mkdirty_read_only_stays_read_only();
    test_mkdirty_inaccessible_stays_inaccessible();
    test_store_close(&g_store);
    return TEST_OK;
}
