/* SPDX-License-Identifier: BSD-3-Clause
 * uffd.h - what tests of the kernel's answers share: a userfaultfd of their own, the engine's
 * one to ask behind its back, pages, and the answers counted since.
 */
#ifndef LM_TEST_UFFD_H
#define LM_TEST_UFFD_H
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "test.h"

/* Headers lag behind kernels. */
#define TEST_UFFDIO_POISON_NR 0x08
struct test_uffdio_poison {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};
#define TEST_UFFDIO_POISON                                                             \
    _IOWR(UFFDIO, TEST_UFFDIO_POISON_NR, struct test_uffdio_poison)

/* Open the process's userfaultfd without handlers, asking for `features` too.  0, or
 * TEST_SKIP. */
UNUSED static int test_uffd_start(uint64_t features)
{
    lm__uffd_ask_for(features);
    if (lm__uffd_start() != 0)
        return test_skip("no userfaultfd");
    return 0;
}

/* The engine's userfaultfd, the only one open. */
UNUSED static int test_uffd_of_engine(void)
{
    char link[64], target[64];
    for (int fd = 0; fd < 1024; fd++) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, target, sizeof target - 1);
        target[length < 0 ? 0 : length] = 0;
        if (strcmp(target, "anon_inode:[userfaultfd]") == 0)
            return fd;
    }
    CHECK(!"a userfaultfd is open");
    return -1;
}

UNUSED static int test_uffd_open(uint64_t features)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (uffd < 0)
        uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);
    CHECK(uffd >= 0);
    CHECK_EQ(ioctl(uffd, UFFDIO_API, &api), 0);
    return uffd;
}

/* 0, or an errno. */
UNUSED static int test_uffd_register(int uffd, const void *addr, size_t bytes)
{
    struct uffdio_register reg = {.range = {(uintptr_t)addr, bytes},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
    return ioctl(uffd, UFFDIO_REGISTER, &reg) == 0 ? 0 : errno;
}

UNUSED static void test_uffd_unregister(int uffd, const void *addr, size_t bytes)
{
    struct uffdio_range range = {(uintptr_t)addr, bytes};
    CHECK_EQ(ioctl(uffd, UFFDIO_UNREGISTER, &range), 0);
}

/* Memory that nobody has touched; registered with the engine's userfaultfd, or not. */
UNUSED static uint8_t *test_pages(size_t pages)
{
    void *p = mmap(NULL, pages * lm__page_bytes(), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

UNUSED static uint8_t *test_pages_registered(size_t pages)
{
    uint8_t *p = test_pages(pages);
    CHECK_EQ(lm__uffd_register((uintptr_t)p, pages * lm__page_bytes()), 0);
    return p;
}

UNUSED static void test_pages_free(uint8_t *p, size_t pages)
{
    CHECK_EQ(munmap(p, pages * lm__page_bytes()), 0);
}

/* Pages of bytes to copy from: page i is full of `first` + i. */
UNUSED static uint8_t *test_source(size_t pages, uint8_t first)
{
    uint8_t *p = test_pages(pages);
    for (size_t i = 0; i < pages; i++)
        memset(p + i * lm__page_bytes(), first + (int)i, lm__page_bytes());
    return p;
}

/* 1 if the page is there.  Does not touch it. */
UNUSED static int test_is_present(const void *addr)
{
    return lm__page_is_present((uintptr_t)addr);
}

/* The answers of the kernel since `since`, which is brought up to date. */
UNUSED static struct lm_pager_stats test_answers(struct lm_pager_stats *since)
{
    struct lm_pager_stats now, d = {0};
    lm_pager_stats(&now);
    d.events = now.events - since->events;
    d.copies = now.copies - since->copies;
    d.zeropages = now.zeropages - since->zeropages;
    d.wakes = now.wakes - since->wakes;
    d.eexist = now.eexist - since->eexist;
    d.eagain_partial = now.eagain_partial - since->eagain_partial;
    d.eagain = now.eagain - since->eagain;
    d.enoent = now.enoent - since->enoent;
    d.enomem = now.enomem - since->enomem;
    d.refused = now.refused - since->refused;
    d.continues = now.continues - since->continues;
    *since = now;
    return d;
}

/* These answers and no other failures. */
#define CHECK_ANSWERS(since, ...)                                                      \
    do {                                                                               \
        struct lm_pager_stats answers_ = test_answers(since);                          \
        const struct lm_pager_stats expect_ = {__VA_ARGS__};                           \
        CHECK_EQ(answers_.eexist, expect_.eexist);                                     \
        CHECK_EQ(answers_.eagain_partial, expect_.eagain_partial);                     \
        CHECK_EQ(answers_.eagain, expect_.eagain);                                     \
        CHECK_EQ(answers_.enoent, expect_.enoent);                                     \
        CHECK_EQ(answers_.enomem, expect_.enomem);                                     \
        CHECK_EQ(answers_.refused, expect_.refused);                                   \
        if (expect_.copies)                                                            \
            CHECK_EQ(answers_.copies, expect_.copies);                                 \
        if (expect_.zeropages)                                                         \
            CHECK_EQ(answers_.zeropages, expect_.zeropages);                           \
    } while (0)

/* The engine runs on while a test waits for a counter. */
#define AWAIT(condition)                                                               \
    do                                                                                 \
        sched_yield();                                                                 \
    while (!(condition))

/* ---- a thread that touches one byte ----------------------------------------------------- */

struct test_toucher {
    const volatile uint8_t *addr;
    pthread_t thread;
    int32_t tid;
    uint8_t got;
    int has_error; /* left for it in failure.c */
    struct lm_error err;
};

UNUSED static void *test_touch(void *arg)
{
    struct test_toucher *t = arg;
    t->tid = test_tid();
    t->got = *t->addr;
    t->has_error = lm_failure_take(t->tid, &t->err);
    return NULL;
}

UNUSED static void test_touch_start(struct test_toucher *t, const volatile void *addr)
{
    *t = (struct test_toucher){.addr = addr};
    t->thread = test_thread(test_touch, t);
}

UNUSED static void test_touch_end(struct test_toucher *t)
{
    CHECK_EQ(pthread_join(t->thread, NULL), 0);
}

#endif
