/* SPDX-License-Identifier: BSD-3-Clause
 * Answers that say whose mistake it was: EINVAL, EFAULT, EBUSY, ENOMEM, and ESRCH for a
 * process that is gone.  Has each its verdict, and leaves each the pages as they were?
 */
#define _GNU_SOURCE
#include "uffd.h"

static size_t g_page;

static void test_misaligned_requests_are_refused(void)
{
    uint8_t *to = test_pages_registered(4), *from = test_source(4, 1);
    uintptr_t addr = (uintptr_t)to;
    struct lm_pager_stats since;
    test_answers(&since);
    CHECK_EQ(lm__uffd_copy(addr + 1, from, g_page), LM_REFUSED);
    CHECK_EQ(lm__uffd_copy(addr, from, g_page - 1), LM_REFUSED);
    CHECK_EQ(lm__uffd_zero(addr + 1, g_page), LM_REFUSED);
    CHECK_EQ(lm__uffd_zero(addr, g_page + 1), LM_REFUSED);
    CHECK_ANSWERS(&since, .refused = 4);
    CHECK(!test_is_present(to) && !test_is_present(to + g_page));
    CHECK_EQ(lm__uffd_copy(addr, from + 1, g_page), LM_INSTALLED); /* sources may be */
    CHECK(test_same(to, from + 1, g_page));
    CHECK_EQ(lm__uffd_copy(addr, from, 0), LM_INSTALLED); /* not even asked */
    CHECK_ANSWERS(&since, .copies = 1);
    test_pages_free(to, 4);
    test_pages_free(from, 4);
}

/* What comes before the page that can't be read is installed. */
static void test_unmapped_source_is_refused(void)
{
    for (size_t readable = 0; readable < 3; readable++) {
        uint8_t *to = test_pages_registered(4), *from = test_source(4, 1);
        struct lm_pager_stats since;
        test_answers(&since);
        CHECK_EQ(munmap(from + readable * g_page, g_page), 0);
        CHECK_EQ(lm__uffd_copy((uintptr_t)to, from, 4 * g_page), LM_REFUSED);
        CHECK_ANSWERS(&since, .refused = 1, .eagain_partial = readable > 0);
        for (size_t i = 0; i < 4; i++)
            CHECK_EQ(test_is_present(to + i * g_page), i < readable);
        test_pages_free(to, 4);
        test_pages_free(from, 4);
    }
}

static void test_range_of_another_userfaultfd_is_busy(void)
{
    int other = test_uffd_open(0);
    uint8_t *theirs = test_pages(4), *ours = test_pages_registered(4);
    CHECK_EQ(test_uffd_register(other, theirs, 4 * g_page), 0);
    CHECK_EQ(lm__uffd_register((uintptr_t)theirs, 4 * g_page), -EBUSY);
    CHECK_EQ(lm__uffd_register((uintptr_t)theirs + g_page, g_page), -EBUSY);
    CHECK_EQ(test_uffd_register(other, ours, 4 * g_page), EBUSY);
    CHECK_EQ(lm__uffd_register((uintptr_t)ours, 4 * g_page), 0); /* ours once more */
    close(other);                                                /* theirs are free */
    CHECK_EQ(lm__uffd_register((uintptr_t)theirs, 4 * g_page), 0);
    test_pages_free(theirs, 4);
    test_pages_free(ours, 4);
}

/* The kernel kills rather than say ENOMEM: this one is injected. */
static void test_no_memory_is_told(void)
{
    uint8_t *to = test_pages_registered(4), *from = test_source(4, 1);
    struct lm_pager_stats since;
    test_answers(&since);
    lm_inject(LM_INJECT_UFFD_COPY, 0, 2, ENOMEM);
    CHECK_EQ(lm__uffd_copy((uintptr_t)to, from, 4 * g_page), LM_NO_MEMORY);
    CHECK_EQ(lm__uffd_zero((uintptr_t)to, 4 * g_page), LM_NO_MEMORY);
    CHECK_ANSWERS(&since, .enomem = 2);
    CHECK(!test_is_present(to));
    CHECK_EQ(lm__uffd_copy((uintptr_t)to, from, 4 * g_page), LM_INSTALLED);
    CHECK_ANSWERS(&since, .copies = 1);
    lm_inject(LM_INJECT_UFFD_COPY, 0, 0, 0);
    test_pages_free(to, 4);
    test_pages_free(from, 4);
}

static int uffd_level(void *unused)
{
    (void)unused;
    if (test_uffd_start(0) != 0)
        return TEST_SKIP;
    test_misaligned_requests_are_refused();
    test_unmapped_source_is_refused();
    test_range_of_another_userfaultfd_is_busy();
    test_no_memory_is_told();
    return TEST_OK;
}

/* ---- ENOMEM through a region ---------------------------------------------------------------- */

static struct test_store g_store;

static int want_of_memory(void *unused)
{
    struct lm_error err;
    lm_region *region;
    (void)unused;
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    const volatile uint8_t *served = lm_region_addr(region);
    lm_inject(LM_INJECT_UFFD_COPY, 0, 3, ENOMEM); /* passes, and nobody hears of it */
    CHECK_EQ(served[0], g_store.data[0]);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 0);
    CHECK_EQ(test_failures(region), 0);
    CHECK_EQ(lm__chunks_state(&region->chunks, 0), LM_CHUNK_CLEAN);

    lm_inject(LM_INJECT_UFFD_COPY, 0, 6, ENOMEM); /* all tries of one fill */
    uint8_t got = served[4 * g_page]; /* or, where the thread is slow to wake, healed */
    CHECK(got == 0xFF || got == g_store.data[4 * g_page]);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, -ENOMEM);
    CHECK_EQ(err.chunk_idx, 1);
    lm_region_settle(region);
    AWAIT(lm__chunks_state(&region->chunks, 1) == LM_CHUNK_ABSENT);
    CHECK_EQ(served[4 * g_page], g_store.data[4 * g_page]); /* heals */
    CHECK_EQ(lm_failure_take(test_tid(), &err), 0);
    lm_inject(LM_INJECT_UFFD_COPY, 0, 0, 0);
    lm_region_close(region);
    return TEST_OK;
}

/* ---- ESRCH: the memory's process is gone, its userfaultfd is not ----------------------------- */

struct pipes {
    int gone[2], verdict[2];
};

/* In a clone that inherits the userfaultfd and, unlike a fork, runs no hooks. */
static void survive(struct pipes *p, lm_region *region)
{
    struct lm__scratch scratch = {0};
    struct lm_error err;
    char answer = 0;
    CHECK_EQ(read(p->gone[0], &answer, 1), 1);
    CHECK_EQ(lm__uffd_copy(region->addr, g_store.data, g_page), LM_EXITING);
    CHECK_EQ(lm__uffd_zero(region->addr, g_page), LM_EXITING);
    /* A fill ends quietly, and nothing is taken for filled. */
    CHECK_EQ(lm__fill_ahead(region, 0, &scratch, &err), 0);
    CHECK_EQ(lm__chunks_state(&region->chunks, 0), LM_CHUNK_ABSENT);
    CHECK_EQ(test_failures(region), 0);
    CHECK_EQ(write(p->verdict[1], "!", 1), 1);
    _exit(0);
}

static int leave_a_clone(void *pipes)
{
    lm_region *region;
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    long clone = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    CHECK(clone >= 0);
    if (clone == 0)
        survive(pipes, region);
    return TEST_OK;
}

static void test_process_that_is_gone_ends_quietly(void)
{
    struct pipes p;
    char answer = 0;
    CHECK_EQ(pipe(p.gone), 0);
    CHECK_EQ(pipe(p.verdict), 0);
    CHECK_EQ(test_in_child(leave_a_clone, &p), 0); /* waited for: its memory is gone */
    close(p.verdict[1]);
    CHECK_EQ(write(p.gone[1], "!", 1), 1);
    CHECK_EQ(read(p.verdict[0], &answer, 1), 1); /* 0 if the clone's checks fail */
    CHECK_EQ(answer, '!');
}

int main(void)
{
    g_page = lm__page_bytes();
    struct lm_encoding enc = {.object_bytes = 4 * 4 * g_page,
                              .chunk_bytes = (uint32_t)(4 * g_page)};
    int rc = test_in_child(uffd_level, NULL);
    if (rc != TEST_OK)
        return rc;
    if (test_store_make(&g_store, enc, 23) != 0)
        return TEST_SKIP;
    CHECK_EQ(test_in_child(want_of_memory, NULL), 0);
    test_process_that_is_gone_ends_quietly();
    test_store_close(&g_store);
    return TEST_OK;
}
