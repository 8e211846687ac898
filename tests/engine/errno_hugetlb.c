/* SPDX-License-Identifier: BSD-3-Clause
 * UFFDIO_COPY into hugetlb memory says EEXIST for a page that is there, and for a pool that
 * is exhausted.  Is the one success, and the other want of memory that ends when a page
 * comes back?
 *
 * The pool is the system's: the test adds pages to it, and takes them away again.
 */
#define _GNU_SOURCE
#include "pool.h"
#include "uffd.h"

#define PAGE_SHIFT 21
#define PAGE_BYTES ((size_t)1 << PAGE_SHIFT)
#define ADDED      2
#define PAGES      64 /* more than the pool has, or there is no test */

static enum lm__install copy(uint8_t *to, const uint8_t *from, size_t pages)
{
    return lm__uffd_copy_huge((uintptr_t)to, from, pages * PAGE_BYTES, PAGE_SHIFT);
}

static int with_pool(void *unused)
{
    struct lm_pager_stats since, d;
    (void)unused;
    uint8_t *from = mmap(NULL, 4 * PAGE_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *to = mmap(NULL, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE |
                           PAGE_SHIFT << 26 /* MAP_HUGE_SHIFT */,
                       -1, 0);
    CHECK(from != MAP_FAILED);
    memset(from, 0x5C, 4 * PAGE_BYTES);
    if (test_uffd_start(0) != 0)
        return TEST_SKIP;
    if (to == MAP_FAILED || lm__uffd_register((uintptr_t)to, PAGES * PAGE_BYTES) != 0)
        return test_skip("no userfaultfd for hugetlb memory");
    if (copy(to, from, 1) != LM_INSTALLED)
        return test_skip("the pool's pages are taken by others");

    test_answers(&since); /* a page that is there */
    CHECK_EQ(copy(to, from, 1), LM_INSTALLED);
    CHECK_ANSWERS(&since, .eexist = 1, .copies = 1);
    CHECK_EQ(to[0], 0x5C);

    size_t installed = 1; /* until the pool is exhausted */
    enum lm__install answer = LM_INSTALLED;
    while (installed < PAGES && ((answer = copy(to + installed * PAGE_BYTES, from, 1)),
                                 test_is_present(to + installed * PAGE_BYTES)))
        installed++;
    if (installed == PAGES || installed < 2)
        return test_skip("others use the pool of huge pages");
    CHECK_EQ(answer, LM_NO_MEMORY);
    CHECK_ANSWERS(&since, .enomem = 1, .eexist = 0);

    uint8_t *absent = to + installed * PAGE_BYTES;
    for (int i = 0; i < 3; i++)
        CHECK_EQ(copy(absent, from, 1), LM_NO_MEMORY);
    CHECK_ANSWERS(&since, .enomem = 3, .copies = 3);
    CHECK(!test_is_present(absent));

    /* Pages that are there, and then one that can't be had. */
    CHECK_EQ(copy(absent - 2 * PAGE_BYTES, from, 3), LM_NO_MEMORY);
    CHECK_ANSWERS(&since, .eexist = 2, .enomem = 1, .copies = 3);

    /* One is given back.  The first to come is served: it must not be one of another
     * process, or the answer is again that there is no memory. */
    CHECK_EQ(madvise(to, PAGE_BYTES, MADV_DONTNEED), 0);
    answer = copy(absent, from, 1);
    CHECK(answer == LM_INSTALLED || answer == LM_NO_MEMORY);
    CHECK_EQ(test_is_present(absent), answer == LM_INSTALLED);
    if (answer == LM_INSTALLED)
        CHECK(test_same(absent, from, PAGE_BYTES));

    test_answers(&since); /* no part of a huge page, and no zeropage */
    CHECK_EQ(lm__uffd_copy((uintptr_t)to, from, lm__page_bytes()), LM_REFUSED);
    CHECK_EQ(lm__uffd_zero((uintptr_t)to, PAGE_BYTES), LM_REFUSED);
    d = test_answers(&since);
    CHECK_EQ(d.refused, 2);
    return TEST_OK;
}

int main(void)
{
    if (!pool_grow(ADDED))
        return test_skip("can't add huge pages to the system's pool");
    int rc = test_in_child(with_pool, NULL); /* whatever becomes of it */
    pool_grow(-ADDED);
    return rc;
}
