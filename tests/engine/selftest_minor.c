/* SPDX-License-Identifier: BSD-3-Clause
 * The kernel's own tests of minor faults, with regions instead of mappings, each of which stands
 * for a process.  Does the second one to touch a page get what the first one has brought, and
 * nothing that is not data?
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "pause.h"
#include "uffd.h"

#define CHUNK_PAGES  4
#define CHUNKS       256 /* 4 MiB, of which 2 MiB can be one huge page */
#define STATES_BYTES ((size_t)65536)
#define OFFSET       ((size_t)2 << 20)

#ifndef MADV_COLLAPSE /* since Linux 6.1 */
#define MADV_COLLAPSE 25
#endif

static size_t g_page, g_chunk;
static struct test_store g_store;
static int g_memory; /* the file */
static lm_shared *g_shared;
static lm_region *g_one, *g_two;

static lm_region *region_open(void)
{
    struct lm_region_options options = {.shared = g_shared, .shared_offset = OFFSET};
    struct lm_error err;
    lm_region *r;
    CHECK_CALL(lm_region_open(g_store.object, &options, &r, &err), err);
    lm_region_advise(r, LM_ADVICE_RANDOM);
    return r;
}

static void begin(void)
{
    g_memory = lm_shared_make(OFFSET + g_store.enc.object_bytes);
    CHECK(g_memory >= 0);
    CHECK_EQ(lm_shared_open(g_memory, STATES_BYTES, &g_shared), 0);
    g_one = region_open();
    g_two = region_open();
}

static void end(void)
{
    lm_region_close(g_one);
    lm_shared_close(g_shared);
    lm_region_close(g_two);
    close(g_memory);
    test_regions_gone();
}

static const volatile uint8_t *chunk_of(const lm_region *r, size_t chunk)
{
    return (const volatile uint8_t *)lm_region_addr(r) + chunk * g_chunk;
}

static const uint8_t *right(size_t chunk) { return g_store.data + chunk * g_chunk; }

static void read_chunks(const lm_region *r, size_t first, size_t count)
{
    CHECK(test_same(chunk_of(r, first), right(first), count * g_chunk));
}

static void check_fills(const lm_region *r, uint64_t fills, uint64_t shared)
{
    struct lm_region_stats stats;
    lm_region_stats(r, &stats);
    CHECK_EQ(stats.fills, fills);
    CHECK_EQ(stats.fills_shared, shared);
}

/* One event and one request for each chunk, whoever brought it. */
static void test_minor(void)
{
    struct lm_pager_stats since;
    begin();
    test_answers(&since);
    read_chunks(g_one, 0, CHUNKS);
    struct lm_pager_stats first = test_answers(&since);
    CHECK_EQ(first.events, CHUNKS);
    CHECK_EQ(first.copies + first.continues, CHUNKS); /* some are zero */
    CHECK(first.copies > CHUNKS / 2);
    read_chunks(g_two, 0, CHUNKS);
    struct lm_pager_stats second = test_answers(&since);
    CHECK_EQ(second.events, CHUNKS);
    CHECK_EQ(second.copies, 0);
    CHECK_EQ(second.continues, CHUNKS);
    check_fills(g_one, CHUNKS, 0);
    check_fills(g_two, CHUNKS, CHUNKS);
    /* Pages that are not mapped any more. */
    CHECK_EQ(madvise(lm_region_addr(g_one), 3 * g_chunk, MADV_DONTNEED), 0);
    read_chunks(g_one, 0, 4);
    CHECK_EQ(test_answers(&since).copies, 0);
    uint8_t *page = (uint8_t *)lm_region_addr(g_one) + 9 * g_chunk + g_page;
    CHECK_EQ(madvise(page, g_page, MADV_DONTNEED), 0);
    read_chunks(g_one, 9, 1);
    CHECK_ANSWERS(&since, .eexist = CHUNK_PAGES - 1, .eagain_partial = 1);
    end();
}

/* What was small pages is a huge one when the second one comes. */
static void test_minor_collapse(void)
{
    begin();
    read_chunks(g_one, 0, CHUNKS);
    void *p = lm__pages_reserve(g_one->bytes, LM_HUGE_BYTES, PROT_NONE);
    CHECK(p);
    CHECK(mmap(p, g_one->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
               g_memory, (off_t)OFFSET) == p);
    if (madvise(p, g_one->bytes, MADV_COLLAPSE) != 0)
        fprintf(stderr, "no huge page: %s\n", strerror(errno));
    read_chunks(g_two, 0, CHUNKS);
    read_chunks(g_one, 0, CHUNKS);
    check_fills(g_two, CHUNKS, CHUNKS);
    munmap(p, g_one->bytes);
    end();
}

static void test_it_can_not_be_written_to(void)
{
    begin();
    CHECK(read(open("/dev/zero", O_RDONLY | O_CLOEXEC), lm_region_addr(g_one), 1) < 0);
    CHECK_EQ(errno, EFAULT);
    end();
}

/* The filling of a chunk, held when it has been decoded. */
static void hold_decoded(struct test_toucher *touch, const lm_region *r, size_t chunk)
{
    test_hold("install");
    test_touch_start(touch, chunk_of(r, chunk));
    test_await_held();
}

static void go_on(struct test_toucher *touch, size_t chunk)
{
    test_let_go();
    test_touch_end(touch);
    CHECK_EQ(touch->got, right(chunk)[0]);
}

/* Both have decoded the chunk, and one is held before it installs it. */
static void test_both_at_the_same_time(void)
{
    struct test_toucher touch;
    begin();
    if (test_two_handlers(g_one)) {
        hold_decoded(&touch, g_two, 7);
        read_chunks(g_one, 7, 1);
        go_on(&touch, 7);
        read_chunks(g_two, 7, 1);
        check_fills(g_two, 1, 0);
    }
    end();
}

/* What a process leaves that was killed comes to be while another one decodes. */
static void test_pages_that_come_to_be(void)
{
    struct test_toucher touch;
    begin();
    for (size_t page = 0; page < CHUNK_PAGES; page++) {
        size_t chunk = 8 + page;
        hold_decoded(&touch, g_one, chunk);
        CHECK_EQ(pwrite(g_memory, "false", 5,
                        (off_t)(OFFSET + chunk * g_chunk + page * g_page)),
                 5);
        go_on(&touch, chunk);
        read_chunks(g_one, chunk, 1);
        read_chunks(g_two, chunk, 1);
    }
    end();
}

/* One can't read a chunk, and is given false bytes; the other one can. */
static void test_false_bytes_stay_where_the_error_is(void)
{
    struct test_toucher touch;
    struct lm_error err;
    begin();
    read_chunks(g_one, 0, 1); /* reads the index */
    for (size_t chunk = 20; chunk < 24; chunk++) {
        lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
        CHECK_EQ(*chunk_of(g_one, chunk), 0xFF);
        lm_inject(LM_INJECT_READ, 0, 0, 0);
        CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
        CHECK_EQ(err.code, -ENXIO);
        lm_region_settle(g_one);
        read_chunks(chunk & 1 ? g_two : g_one, chunk, 1);
        read_chunks(chunk & 1 ? g_one : g_two, chunk, 1);
    }
    /* They are there while the other one fills the chunk. */
    if (test_two_handlers(g_one)) {
        hold_decoded(&touch, g_two, 30);
        lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
        CHECK_EQ(*chunk_of(g_one, 30), 0xFF);
        lm_inject(LM_INJECT_READ, 0, 0, 0);
        CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
        lm_region_settle(g_one);
        go_on(&touch, 30);
        read_chunks(g_two, 30, 1);
        read_chunks(g_one, 30, 1);
    }
    end();
}

static void *read_at_random(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    for (int i = 0; i < 2000; i++) {
        const lm_region *r = test_random(&state) & 1 ? g_one : g_two;
        size_t chunk = test_random(&state) % CHUNKS;
        if (i % 16 == 0)
            lm_region_evict((lm_region *)r, chunk * g_chunk, 9 * g_chunk);
        size_t at = test_random(&state) % g_chunk;
        CHECK_EQ(chunk_of(r, chunk)[at], right(chunk)[at]);
    }
    return NULL;
}

static void test_at_random(void)
{
    pthread_t threads[4];
    begin();
    for (uintptr_t i = 0; i < 4; i++)
        threads[i] = test_thread(read_at_random, (void *)(i + 1));
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    end();
}

static void test_places_outside(void)
{
    const struct lm_region_options wrong[] = {
        {.shared_offset = OFFSET + g_page},         /* too long */
        {.shared_offset = OFFSET + 1},              /* amid a page */
        {.shared_offset = 0},                       /* in the states */
        {.shared_offset = UINT64_MAX - g_page + 1}, /* nowhere */
        {.shared_offset = OFFSET, .shared_states = STATES_BYTES - CHUNKS + 1},
        {.shared_offset = OFFSET, .is_writable = 1},
    };
    struct lm_error err;
    lm_region *r;
    begin();
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct lm_region_options options = wrong[i];
        options.shared = g_shared;
        CHECK_EQ(lm_region_open(g_store.object, &options, &r, &err), -EINVAL);
    }
    lm_shared *none;
    CHECK_EQ(lm_shared_open(g_memory, STATES_BYTES + 1, &none), -EINVAL);
    CHECK_EQ(lm_shared_open(g_memory, (uint64_t)1 << 40, &none), -EINVAL);
    CHECK_EQ(lm_shared_open(-1, STATES_BYTES, &none), -EBADF);
    int other = open(g_store.path, O_RDWR | O_CLOEXEC); /* it could be cut */
    CHECK_EQ(lm_shared_open(other, 0, &none), -EINVAL);
    close(other);
    CHECK_EQ(lm_shared_make(UINT64_MAX / 2 + 1), -EINVAL);
    end();
}

int main(void)
{
    g_page = lm__page_bytes();
    g_chunk = CHUNK_PAGES * g_page;
    struct lm_encoding enc = {.object_bytes = CHUNKS * g_chunk,
                              .chunk_bytes = (uint32_t)g_chunk};
    if (test_store_make(&g_store, enc, 43) != 0)
        return TEST_SKIP;
    lm_pager_start();
    if (!lm__uffd_is_open() || !lm__uffd_can_share())
        return test_skip("no userfaultfd for shared memory");
    test_minor();
    test_minor_collapse();
    test_it_can_not_be_written_to();
    test_both_at_the_same_time();
    test_pages_that_come_to_be();
    test_false_bytes_stay_where_the_error_is();
    test_at_random();
    test_places_outside();
    test_store_close(&g_store);
    return TEST_OK;
}
