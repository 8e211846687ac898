/* SPDX-License-Identifier: BSD-3-Clause
 * ENOENT: the destination was unmapped, unregistered, replaced, or ends too early.  Does a
 * living region say so in the thread that touched it, does a released one keep to the error
 * that it gives anyway, and is memory that meanwhile is somebody else's left alone?
 */
#define _GNU_SOURCE
#include <setjmp.h>

#include "pause.h"
#include "uffd.h"

#define CHUNK_PAGES 4
#define FOREIGN     0xAB

static size_t g_page;

/* ---- ways to lose a mapping -------------------------------------------------------------- */

static void unmap(uint8_t *at, size_t bytes) { CHECK_EQ(munmap(at, bytes), 0); }

static void unregister(uint8_t *at, size_t bytes)
{
    test_uffd_unregister(test_uffd_of_engine(), at, bytes);
}

static void replace(uint8_t *at, size_t bytes)
{
    void *p = mmap(at, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(p == at);
    memset(at, FOREIGN, bytes);
}

/* The registration stays behind: what has moved is plain memory. */
static void move_away(uint8_t *at, size_t bytes)
{
    CHECK(mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                 test_pages(bytes / g_page)) != MAP_FAILED);
}

static const struct way {
    void (*lose)(uint8_t *at, size_t bytes);
    int is_unmapped;
    int wakes;     /* the kernel lets those who wait go on, before anybody knows */
    uint8_t shows; /* what a touch finds, where it finds something */
} WAYS[] = {
    {.lose = unmap, .is_unmapped = 1},
    {.lose = unregister, .wakes = 1, .shows = 0},
    {.lose = replace, .shows = FOREIGN},
    {.lose = move_away, .is_unmapped = 1},
};

enum { WAY_COUNT = sizeof WAYS / sizeof WAYS[0] };

/* ---- the verdict --------------------------------------------------------------------------- */

static void test_lost_pages_have_vanished(void)
{
    uint8_t *from = test_source(4, 1);
    for (int way = 0; way < WAY_COUNT; way++) {
        uint8_t *to = test_pages_registered(4);
        struct lm_pager_stats since;
        WAYS[way].lose(to, 4 * g_page);
        test_answers(&since);
        CHECK_EQ(lm__uffd_copy((uintptr_t)to, from, g_page), LM_VANISHED);
        CHECK_EQ(lm__uffd_zero((uintptr_t)to, g_page), LM_VANISHED);
        CHECK_ANSWERS(&since, .enoent = 2);
        for (size_t i = 0; i < 4 && !WAYS[way].is_unmapped; i++)
            CHECK_EQ(to[i * g_page], WAYS[way].shows);
        munmap(to, 4 * g_page);
    }
    test_pages_free(from, 4);
}

/* Our own mistake, say a wrong length, gives no other answer.  What lies behind the end of
 * the range is left alone. */
static void test_overrun_stops_at_the_end(void)
{
    uint8_t *from = test_source(4, 1);
    for (int is_mapped = 0; is_mapped < 2; is_mapped++) {
        uint8_t *to = test_pages(4);
        CHECK_EQ(lm__uffd_register((uintptr_t)to, 3 * g_page), 0);
        if (!is_mapped)
            CHECK_EQ(munmap(to + 3 * g_page, g_page), 0);
        CHECK_EQ(lm__uffd_copy((uintptr_t)to, from, 4 * g_page), LM_VANISHED);
        if (is_mapped)
            CHECK_EQ(to[3 * g_page], 0);
        CHECK_EQ(lm__uffd_copy((uintptr_t)to, from, 3 * g_page), LM_INSTALLED);
        CHECK(test_same(to, from, 3 * g_page));
        munmap(to, 4 * g_page);
    }
    test_pages_free(from, 4);
}

static int uffd_level(void *unused)
{
    (void)unused;
    if (test_uffd_start(0) != 0)
        return TEST_SKIP;
    test_lost_pages_have_vanished();
    test_overrun_stops_at_the_end();
    return TEST_OK;
}

/* ---- through a region ------------------------------------------------------------------------ */

static struct test_store g_store;

static sigjmp_buf g_escape;
static _Atomic int g_segv;

static void escape(int signal)
{
    (void)signal;
    lm_store_seq_cst(&g_segv, 1);
    siglongjmp(g_escape, 1);
}

/* A touch that may find nothing mapped.  The one thread that waits for a chunk. */
static void *touch(void *arg)
{
    struct test_toucher *t = arg;
    t->tid = test_tid();
    if (sigsetjmp(g_escape, 1) == 0)
        t->got = *t->addr;
    t->has_error = lm_failure_take(t->tid, &t->err);
    return NULL;
}

struct loss {
    const struct way *way;
    int is_released; /* before the mapping is lost */
};

/* The chunk's fill is about to install when the mapping goes. */
static int lost_under_a_toucher(void *arg)
{
    const struct loss *loss = arg;
    struct sigaction action = {.sa_handler = escape};
    struct lm_region_stats stats;
    struct test_toucher t = {0};
    lm_region *region;
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    CHECK_EQ(sigaction(SIGSEGV, &action, NULL), 0);
    uint8_t *chunk = (uint8_t *)lm_region_addr(region) + 1 * CHUNK_PAGES * g_page;
    t.addr = chunk + 2 * g_page;
    test_hold("install");
    t.thread = test_thread(touch, &t);
    test_await_held();
    if (loss->is_released)
        lm_region_release(region);
    loss->way->lose(chunk, CHUNK_PAGES * g_page);
    test_let_go();
    test_touch_end(&t);

    AWAIT(lm_region_settle(region) == 1);
    CHECK_EQ(test_failures(region), 1);
    if (loss->way->wakes && !t.has_error)
        t.has_error = lm_failure_take(t.tid, &t.err);
    CHECK_EQ(t.has_error, 1);
    CHECK_EQ(t.err.code, loss->is_released ? LM_E_CLOSED : LM_E_LOST_MAPPING);
    CHECK_EQ(t.err.chunk_idx, 1);
    CHECK_EQ(t.err.tid, t.tid);
    CHECK_EQ(lm_load_seq_cst(&g_segv), loss->way->is_unmapped);
    CHECK_EQ(t.got, loss->way->shows);
    AWAIT(lm__chunks_state(&region->chunks, 1) == LM_CHUNK_ABSENT);
    lm_region_stats(region, &stats);
    CHECK_EQ(stats.failures, 1);
    CHECK_EQ(stats.fills, 0);
    CHECK_EQ(stats.chunks_resident, 0);
    /* Not even what is taken back after a failure is taken from somebody else. */
    for (size_t i = 0; i < CHUNK_PAGES * g_page && loss->way->lose == replace; i++)
        CHECK_EQ(chunk[i], FOREIGN);
    if (!loss->is_released) /* the other chunks are as good as ever */
        CHECK(test_same(lm_region_addr(region), g_store.data, CHUNK_PAGES * g_page));
    return TEST_OK;
}

struct prefetch {
    lm_region *region;
    uint64_t chunk_idx;
    int has_error;
    struct lm_error err;
};

static void *prefetch(void *arg)
{
    struct prefetch *p = arg;
    lm_job *job;
    CHECK_EQ(
        lm_region_prefetch(p->region, p->chunk_idx * CHUNK_PAGES * g_page, 1, &job), 0);
    p->has_error = lm_job_errors(job, &p->err, 1);
    lm_job_close(job, 0);
    return NULL;
}

static int lost_under_a_prefetch(void *arg)
{
    const struct loss *loss = arg;
    struct prefetch p = {.chunk_idx = 1};
    struct lm_region_stats stats;
    if (test_region_open(&g_store, &p.region) != 0)
        return TEST_SKIP;
    uint8_t *chunk = (uint8_t *)lm_region_addr(p.region) + 1 * CHUNK_PAGES * g_page;
    test_hold("install");
    pthread_t thread = test_thread(prefetch, &p);
    test_await_held();
    if (loss->is_released)
        lm_region_release(p.region);
    loss->way->lose(chunk, CHUNK_PAGES * g_page);
    test_let_go();
    pthread_join(thread, NULL);
    CHECK_EQ(p.has_error, !loss->is_released);
    if (p.has_error)
        CHECK_EQ(p.err.code, LM_E_LOST_MAPPING);
    CHECK_EQ(test_failures(p.region), 0); /* nobody saw anything false */
    lm_region_stats(p.region, &stats);
    CHECK_EQ(stats.fills, 0);
    CHECK_EQ(stats.chunks_resident, 0);
    CHECK_EQ(lm__chunks_state(&p.region->chunks, 1), LM_CHUNK_ABSENT);
    for (size_t i = 0; i < CHUNK_PAGES * g_page && loss->way->lose == replace; i++)
        CHECK_EQ(chunk[i], FOREIGN);
    return TEST_OK;
}

int main(void)
{
    /* With its event, mremap() takes the registration along, and waits for a reader. */
    CHECK_EQ(setenv("LAZYMEM_MASK", "event_remap", 1), 0);
    g_page = lm__page_bytes();
    struct lm_encoding enc = {.object_bytes = 8 * CHUNK_PAGES * g_page,
                              .chunk_bytes = (uint32_t)(CHUNK_PAGES * g_page)};
    int rc = test_in_child(uffd_level, NULL);
    if (rc != TEST_OK)
        return rc;
    if (test_store_make(&g_store, enc, 24) != 0)
        return TEST_SKIP;
    for (int is_released = 0; is_released < 2; is_released++)
        for (int way = 0; way < WAY_COUNT; way++) {
            struct loss loss = {&WAYS[way], is_released};
            CHECK_EQ(test_in_child(lost_under_a_toucher, &loss), 0);
            CHECK_EQ(test_in_child(lost_under_a_prefetch, &loss), 0);
        }
    test_store_close(&g_store);
    return TEST_OK;
}
