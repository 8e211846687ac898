/* SPDX-License-Identifier: BSD-3-Clause
 * move, move-pmd, move-pmd-split and mmap-changing (MOVE) of the kernel's selftests: pages
 * that become pages of a registered mapping as they are.
 *
 * Whatever is not moved must be where it was: the engine copies it from there.
 */
#define _GNU_SOURCE
#include "uffd.h"

#define HUGE LM_HUGE_BYTES

static size_t g_page;

/* Written, page by page or as the system has it: byte i of page p is p + i. */
static uint8_t *source(size_t bytes, size_t align, int advice)
{
    uint8_t *p = lm__pages_reserve(bytes, align, PROT_READ | PROT_WRITE);
    CHECK(p);
    madvise(p, bytes, advice);
    for (size_t i = 0; i < bytes; i++)
        p[i] = (uint8_t)(i / g_page + i);
    return p;
}

static uint8_t *destination(size_t bytes, size_t align)
{
    uint8_t *p = lm__pages_reserve(bytes, align, PROT_READ | PROT_WRITE);
    CHECK(p);
    CHECK_EQ(lm__uffd_register((uintptr_t)p, bytes), 0);
    return p;
}

static int is_right(const uint8_t *p, size_t first, size_t bytes)
{
    for (size_t i = first; i < first + bytes; i++)
        if (p[i] != (uint8_t)(i / g_page + i))
            return 0;
    return 1;
}

static size_t move(uint8_t *to, uint8_t *from, size_t bytes)
{
    return lm__uffd_move((uintptr_t)to, from, bytes);
}

static void test_move(void)
{
    size_t bytes = 16 * g_page;
    uint8_t *from = source(bytes, g_page, MADV_NOHUGEPAGE);
    uint8_t *to = destination(bytes, g_page);
    CHECK_EQ(move(to, from, bytes), bytes);
    CHECK(is_right(to, 0, bytes));
    for (size_t at = 0; at < bytes; at += g_page)
        CHECK(!test_is_present(from + at));
    munmap(from, bytes);
    munmap(to, bytes);
}

static void test_move_pmd(void)
{
    uint8_t *from = source(2 * HUGE, HUGE, MADV_HUGEPAGE);
    uint8_t *to = destination(2 * HUGE, HUGE);
    CHECK_EQ(move(to, from, 2 * HUGE), 2 * HUGE);
    CHECK(is_right(to, 0, 2 * HUGE));
    CHECK(!test_is_present(from) && !test_is_present(from + 2 * HUGE - 1));
    munmap(from, 2 * HUGE);
    munmap(to, 2 * HUGE);
}

/* A part of a huge page, to where the rest is not wanted. */
static void test_move_pmd_split(void)
{
    uint8_t *from = source(HUGE, HUGE, MADV_HUGEPAGE);
    uint8_t *to = destination(HUGE, HUGE);
    size_t half = HUGE / 2;
    CHECK_EQ(move(to + half, from + half, half), half);
    CHECK(is_right(to, half, half));
    CHECK(!test_is_present(to));
    CHECK(is_right(from, 0, half));
    CHECK_EQ(move(to, from, half), half);
    CHECK(is_right(to, 0, HUGE));
    munmap(from, HUGE);
    munmap(to, HUGE);
}

static void test_move_ends_at_a_page_that_is_there(void)
{
    size_t bytes = 8 * g_page, before = 5 * g_page;
    uint8_t *from = source(bytes, g_page, MADV_NOHUGEPAGE);
    uint8_t *to = destination(bytes, g_page);
    CHECK_EQ(lm__uffd_zero((uintptr_t)to + before, g_page), LM_INSTALLED);
    CHECK_EQ(move(to, from, bytes), before);
    CHECK(is_right(to, 0, before));
    CHECK_EQ(to[before], 0);
    CHECK(is_right(from, before, bytes - before));
    CHECK_EQ(move(to + before, from + before, g_page), 0);
    munmap(from, bytes);
    munmap(to, bytes);
}

static int see(void *from) { return is_right(from, 0, HUGE) ? TEST_OK : TEST_FAILED; }

/* EBUSY, also when the child is gone: the page may have been pinned for it. */
static void test_pages_shared_by_fork_stay(void)
{
    uint8_t *from = source(HUGE, HUGE, MADV_HUGEPAGE);
    uint8_t *to = destination(HUGE, HUGE);
    CHECK_EQ(test_in_child(see, from), TEST_OK);
    size_t moved = move(to, from, HUGE);
    CHECK(is_right(to, 0, moved));
    CHECK(is_right(from, moved, HUGE - moved));
    munmap(from, HUGE);
    munmap(to, HUGE);
}

static void test_locked_and_protected_memory_refuses(void)
{
    uint8_t *from = source(HUGE, HUGE, MADV_HUGEPAGE);
    uint8_t *to = destination(HUGE, HUGE);
    CHECK_EQ(mprotect(to, HUGE, PROT_READ), 0);
    CHECK_EQ(move(to, from, HUGE), 0);
    CHECK_EQ(mprotect(to, HUGE, PROT_READ | PROT_WRITE), 0);
    /* Of one side: the other would be filled by it.  Sanitizers' mlock() does nothing. */
    CHECK_EQ(syscall(SYS_mlock, from, HUGE), 0);
    CHECK_EQ(move(to, from, HUGE), 0);
    CHECK(is_right(from, 0, HUGE));
    CHECK(!test_is_present(to));
    munmap(from, HUGE);
    munmap(to, HUGE);
}

static void *give_back(void *addr)
{
    CHECK_EQ(madvise(addr, g_page, MADV_DONTNEED), 0);
    return NULL;
}

/* EAGAIN: an event that waits to be read. */
static void test_mmap_changing_move(void)
{
    struct uffd_msg msg;
    size_t bytes = 8 * g_page;
    uint8_t *from = source(bytes, g_page, MADV_NOHUGEPAGE);
    uint8_t *to = destination(bytes, g_page);
    pthread_t changer = test_thread(give_back, to + 7 * g_page);
    AWAIT(lm__uffd_has_events());
    CHECK_EQ(move(to, from, 2 * g_page), 0);
    CHECK(is_right(from, 0, bytes));
    CHECK_EQ(read(test_uffd_of_engine(), &msg, sizeof msg), sizeof msg);
    CHECK_EQ(msg.event, UFFD_EVENT_REMOVE);
    pthread_join(changer, NULL);
    CHECK_EQ(move(to, from, 2 * g_page), 2 * g_page);
    CHECK(is_right(to, 0, 2 * g_page));
    test_uffd_unregister(test_uffd_of_engine(), to, bytes);
    munmap(from, bytes);
    munmap(to, bytes);
}

static int with_events(void *unused)
{
    (void)unused;
    if (test_uffd_start(UFFD_FEATURE_EVENT_REMOVE) != 0)
        return TEST_SKIP;
    if (lm__uffd_can_move())
        test_mmap_changing_move();
    return TEST_OK;
}

int main(void)
{
    g_page = lm__page_bytes();
    int rc = test_in_child(with_events, NULL);
    if (rc != TEST_OK)
        return rc;
    if (test_uffd_start(0) != 0)
        return TEST_SKIP;
    if (!lm__uffd_can_move())
        return test_skip("the kernel has no UFFDIO_MOVE");
    test_move();
    test_move_pmd();
    test_move_pmd_split();
    test_move_ends_at_a_page_that_is_there();
    test_pages_shared_by_fork_stay();
    test_locked_and_protected_memory_refuses();
    return TEST_OK;
}
