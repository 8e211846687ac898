/* SPDX-License-Identifier: BSD-3-Clause
 * Are the unusual fills right: zero chunks, objects of a byte, pages that were written to, or
 * given back to the system, while their chunk is being filled or after?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 65536u

static void test_zero_chunks(void)
{
    struct test_store t = {
        .enc = {.object_bytes = 20 * CHUNK_BYTES, .chunk_bytes = CHUNK_BYTES}};
    struct lm_region_stats stats;
    lm_region *region;
    t.data = calloc(1, t.enc.object_bytes);
    CHECK(t.data);
    t.data[7 * CHUNK_BYTES] = 9;
    test_store_write(&t);
    test_store_open(&t);
    CHECK_EQ(test_region_open(&t, &region), 0);
    CHECK(test_same(lm_region_addr(region), t.data, t.enc.object_bytes));
    lm_region_stats(region, &stats);
    CHECK_EQ(stats.fills, 20);
    CHECK_EQ(stats.zero_fills, 19);
    uint8_t *served = lm_region_addr(region);
    served[100] = 5; /* a zero page can be written */
    CHECK_EQ(served[100] + served[101], 5);
    lm_region_close(region);
    test_store_close(&t);
}

static void test_small_objects(void)
{
    for (uint64_t bytes = 1; bytes < 20000; bytes = bytes * 3 + 1) {
        struct test_store t;
        struct lm_encoding enc = {
            .object_bytes = bytes, .chunk_bytes = 4096, .codec = LM_CODEC_ZSTD};
        lm_region *region;
        CHECK_EQ(test_store_make(&t, enc, bytes), 0);
        CHECK_EQ(test_region_open(&t, &region), 0);
        CHECK(test_same(lm_region_addr(region), t.data, bytes));
        lm_region_close(region);
        test_store_close(&t);
    }
}

/* Pages given back are filled again; those that were written keep what was written. */
static void test_pages_given_back(struct test_store *t)
{
    size_t page = lm__page_bytes();
    lm_region *region;
    CHECK_EQ(test_region_open(t, &region), 0);
    uint8_t *served = lm_region_addr(region);
    CHECK(test_same(served, t->data, CHUNK_BYTES));
    served[0] ^= 0xFF;
    CHECK_EQ(madvise(served + page, page, MADV_DONTNEED), 0);
    CHECK(test_same(served + 1, t->data + 1, CHUNK_BYTES - 1));
    CHECK_EQ(served[0], t->data[0] ^ 0xFF);
    lm_region_close(region);
}

/* A page that fails does not take with it what was written to its neighbours. */
static void test_failure_keeps_written_neighbours(struct test_store *t)
{
    size_t page = lm__page_bytes();
    struct lm_error err;
    lm_region *region;
    CHECK_EQ(test_region_open(t, &region), 0);
    volatile uint8_t *served = lm_region_addr(region);
    served[0] = t->data[0] ^ 0xFF;
    lm_inject(LM_INJECT_READ, 0, -1, EIO);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(madvise((void *)(served + page), page, MADV_DONTNEED), 0);
        CHECK_EQ(served[page], 0xFF);
        CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
        CHECK_EQ(err.code, -EIO);
        lm_region_settle(region);
    }
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK_EQ(served[0], t->data[0] ^ 0xFF);
    CHECK(test_same(served + 1, t->data + 1, CHUNK_BYTES - 1));
    lm_region_close(region);
}

static volatile uint8_t *g_served;
static _Atomic int g_stop;

static void *give_back(void *page_bytes)
{
    while (!lm_load_seq_cst(&g_stop))
        CHECK_EQ(madvise((void *)g_served, *(size_t *)page_bytes, MADV_DONTNEED), 0);
    return NULL;
}

static void *touch(void *data)
{
    for (int i = 0; i < 3000; i++)
        CHECK_EQ(g_served[i % 64], ((uint8_t *)data)[i % 64]);
    return NULL;
}

/* A thread that faults between the install and the publication must be woken all the same. */
static void test_pages_given_back_during_fills(struct test_store *t)
{
    size_t page = lm__page_bytes();
    pthread_t touchers[3];
    lm_region *region;
    CHECK_EQ(test_region_open(t, &region), 0);
    g_served = lm_region_addr(region);
    pthread_t giver = test_thread(give_back, &page);
    for (int i = 0; i < 3; i++)
        touchers[i] = test_thread(touch, t->data);
    for (int i = 0; i < 3; i++)
        pthread_join(touchers[i], NULL);
    lm_store_seq_cst(&g_stop, 1);
    pthread_join(giver, NULL);
    lm_region_close(region);
}

int main(void)
{
    struct test_store t;
    struct lm_encoding enc = {.object_bytes = 4 * CHUNK_BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .codec = LM_CODEC_LZ4};
    lm_region *region;
    if (test_store_make(&t, enc, 8) != 0 || test_region_open(&t, &region) != 0)
        return TEST_SKIP;
    lm_region_close(region);
    test_zero_chunks();
    test_small_objects();
    test_pages_given_back(&t);
    test_failure_keeps_written_neighbours(&t);
    test_pages_given_back_during_fills(&t);
    test_store_close(&t);
    return TEST_OK;
}
