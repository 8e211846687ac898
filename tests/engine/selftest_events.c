/* SPDX-License-Identifier: BSD-3-Clause
 * The kernel's own tests of userfaultfd that count events, or ask for a signal instead.  Is
 * there one fault for each chunk, not one more, whatever becomes of the pages in between?
 */
#define _GNU_SOURCE
#include <setjmp.h>

#include "uffd.h"

#define CHUNK_PAGES 4
#define CHUNKS      32

static size_t g_page;
static struct test_store g_store;
static lm_region *g_region;

static void read_all(void)
{
    CHECK(test_same(lm_region_addr(g_region), g_store.data, g_store.enc.object_bytes));
}

/* Events, and requests of which each has filled one chunk. */
static void check_counts(struct lm_pager_stats *since, uint64_t events)
{
    struct lm_pager_stats d = test_answers(since);
    CHECK_EQ(d.events, events);
    CHECK_EQ(d.copies + d.zeropages, events);
    CHECK_EQ(d.eexist + d.eagain + d.eagain_partial + d.enoent + d.enomem + d.refused,
             0);
}

static void test_events_one_for_each_chunk(struct lm_pager_stats *since)
{
    read_all();
    check_counts(since, CHUNKS);
    read_all();
    check_counts(since, 0);
}

static void test_events_after_dontneed(struct lm_pager_stats *since)
{
    uint8_t *served = lm_region_addr(g_region);
    CHECK_EQ(madvise(served, g_region->bytes, MADV_DONTNEED), 0);
    check_counts(since, 0); /* the kernel tells nobody */
    read_all();
    check_counts(since, CHUNKS);
    for (size_t c = 0; c < CHUNKS; c += 2)
        CHECK_EQ(madvise(served + c * CHUNK_PAGES * g_page, CHUNK_PAGES * g_page,
                         MADV_DONTNEED),
                 0);
    read_all();
    check_counts(since, CHUNKS / 2);
}

static int child_reads_all(void *absent)
{
    struct lm_pager_stats since;
    test_answers(&since);
    read_all();
    check_counts(&since, *(uint64_t *)absent);
    return TEST_OK;
}

/* A child faults for itself: for what its parent had not, and not in its parent's name. */
static void test_events_after_fork(struct lm_pager_stats *since)
{
    uint8_t *served = lm_region_addr(g_region);
    for (uint64_t absent = 0; absent <= CHUNKS; absent += CHUNKS / 4) {
        read_all();
        CHECK_EQ(madvise(served, absent * CHUNK_PAGES * g_page, MADV_DONTNEED), 0);
        test_answers(since);
        CHECK_EQ(test_in_child(child_reads_all, &absent), 0);
        check_counts(since, 0);
        read_all();
        check_counts(since, absent);
    }
}

/* ---- sigbus --------------------------------------------------------------------------------- */

static sigjmp_buf g_escape;

static void escape(int signal) { siglongjmp(g_escape, signal); }

static int touch(const volatile uint8_t *addr)
{
    int signal = sigsetjmp(g_escape, 1);
    if (signal == 0)
        (void)*addr;
    return signal;
}

/* The mode that the engine does not use: a signal, or EFAULT, and no event.  Chunks that are
 * filled ahead are memory like any other. */
static int sigbus(void *unused)
{
    struct sigaction action = {.sa_handler = escape};
    struct lm_pager_stats since;
    int to[2];
    lm_job *job;
    (void)unused;
    lm__uffd_ask_for(UFFD_FEATURE_SIGBUS);
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
    CHECK_EQ(pipe(to), 0);
    uint8_t *served = lm_region_addr(g_region);
    test_answers(&since);
    CHECK_EQ(lm_region_prefetch(g_region, 0, 2 * CHUNK_PAGES * g_page, &job), 0);
    test_finish(job);
    CHECK(test_same(served, g_store.data, 2 * CHUNK_PAGES * g_page));
    for (size_t c = 2; c < CHUNKS; c++) {
        CHECK_EQ(touch(served + c * CHUNK_PAGES * g_page), SIGBUS);
        CHECK(write(to[1], served + c * CHUNK_PAGES * g_page, 1) < 0 &&
              errno == EFAULT);
    }
    CHECK_EQ(test_answers(&since).events, 0);
    CHECK_EQ(lm_region_prefetch(g_region, 0, g_store.enc.object_bytes, &job), 0);
    test_finish(job);
    read_all();
    return TEST_OK;
}

static void test_sigbus(void) { CHECK_EQ(test_in_child(sigbus, NULL), 0); }

int main(void)
{
    g_page = lm__page_bytes();
    struct lm_encoding enc = {.object_bytes = CHUNKS * CHUNK_PAGES * g_page,
                              .chunk_bytes = (uint32_t)(CHUNK_PAGES * g_page)};
    struct lm_pager_stats since;
    struct lm_uffd_info info;
    lm_uffd_probe(&info);
    if (info.mode != LM_UFFD_FULL)
        return test_skip("no userfaultfd for faults in system calls");
    if (test_store_make(&g_store, enc, 42) != 0)
        return TEST_SKIP;
    test_sigbus();
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    test_answers(&since);
    test_events_one_for_each_chunk(&since);
    test_events_after_dontneed(&since);
    if (!TEST_IS_SANITIZED) /* whose allocators do not survive fork */
        test_events_after_fork(&since);
    lm_region_close(g_region);
    test_store_close(&g_store);
    return TEST_OK;
}
