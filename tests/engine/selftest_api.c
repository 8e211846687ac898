/* SPDX-License-Identifier: BSD-3-Clause
 * The kernel's own tests of userfaultfd, as far as they ask what can be opened, registered
 * and installed: does it answer as the engine relies on, and does the engine do as it should?
 */
#define _GNU_SOURCE
#include <setjmp.h>

#include "uffd.h"

static size_t g_page;
static struct test_store g_store;

/* ---- api --------------------------------------------------------------------------------- */

static int handshake(int uffd, uint64_t version, uint64_t features)
{
    struct uffdio_api api = {.api = version, .features = features};
    return ioctl(uffd, UFFDIO_API, &api) == 0 ? 0 : errno;
}

static int open_raw(int is_device)
{
    int device = is_device ? open("/dev/userfaultfd", O_RDWR | O_CLOEXEC) : -1;
    int uffd = is_device ? ioctl(device, _IO(UFFDIO, 0), O_CLOEXEC)
                         : (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (device >= 0)
        close(device);
    return uffd;
}

/* What the ladder in uffd.c takes for granted of a descriptor. */
static void api_of_the_kernel(int is_device)
{
    const struct {
        uint64_t version, features;
        int wanted;
    } cases[] = {
        {UFFD_API, 0, 0},
        {UFFD_API, UFFD_FEATURE_THREAD_ID, 0},
        {0x55, 0, EINVAL},
        {UFFD_API, 1ull << 63, EINVAL}, /* a feature that does not exist */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct uffd_msg msg;
        int uffd = open_raw(is_device);
        if (uffd < 0)
            return;
        CHECK(read(uffd, &msg, sizeof msg) < 0 && errno == EINVAL); /* before it */
        CHECK_EQ(handshake(uffd, cases[i].version, cases[i].features), cases[i].wanted);
        if (cases[i].wanted == 0) /* there is one handshake */
            CHECK_EQ(handshake(uffd, UFFD_API, 0), EINVAL);
        close(uffd);
    }
}

static struct lm_uffd_info probe(const char *mask)
{
    struct lm_uffd_info info;
    CHECK_EQ(setenv("LAZYMEM_MASK", mask, 1), 0);
    lm_uffd_probe(&info);
    CHECK_EQ(unsetenv("LAZYMEM_MASK"), 0);
    return info;
}

/* Every way to open it serves a region. */
static int serve_masked(void *mask)
{
    lm_region *region;
    CHECK_EQ(setenv("LAZYMEM_MASK", mask, 1), 0);
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    CHECK(test_same(lm_region_addr(region), g_store.data, g_store.enc.object_bytes));
    lm_region_close(region);
    return TEST_OK;
}

static void test_api_syscall(void)
{
    struct lm_uffd_info info = probe("");
    api_of_the_kernel(0);
    if (info.full_errno == 0) {
        CHECK_EQ(info.mode, LM_UFFD_FULL);
        CHECK_EQ(info.api_errno, 0);
        CHECK_EQ(test_in_child(serve_masked, "dev,user"), TEST_OK);
    }
    info = probe("syscall,dev");
    if (info.user_errno == 0) {
        CHECK_EQ(info.mode, LM_UFFD_USER_ONLY);
        CHECK_EQ(info.full_errno, EPERM);
        CHECK_EQ(test_in_child(serve_masked, "syscall,dev"), TEST_OK);
    }
    info = probe("syscall,dev,user");
    CHECK_EQ(info.mode, LM_UFFD_NONE);
    CHECK_EQ(info.user_errno, EPERM);
    CHECK_EQ(test_in_child(serve_masked, "syscall,dev,user"), TEST_SKIP);
}

static void test_api_dev(void)
{
    struct lm_uffd_info info = probe("syscall");
    api_of_the_kernel(1);
    CHECK_EQ(info.full_errno, EPERM);
    if (info.dev_errno == 0) {
        CHECK_EQ(info.mode, LM_UFFD_FULL);
        CHECK_EQ(test_in_child(serve_masked, "syscall,user"), TEST_OK);
    }
}

static void test_api_features(void)
{
    uint64_t offered = probe("").features;
    for (int bit = 0; bit < 64; bit++) {
        const char *name = lm_uffd_feature_name(bit);
        if (name)
            CHECK_EQ(probe(name).features, offered & ~(1ull << bit));
        if (offered >> bit & 1) /* asked for, it is granted */
            close(test_uffd_open(1ull << bit));
    }
    CHECK_EQ(test_in_child(serve_masked, "thread_id"), TEST_OK);
}

/* ---- register-ioctls ------------------------------------------------------------------------ */

static void test_register_ioctls(void)
{
    uint8_t *p = test_pages(4);
    struct uffdio_register reg = {.range = {(uintptr_t)p, 4 * g_page},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
    const uint64_t wanted =
        1ull << _UFFDIO_COPY | 1ull << _UFFDIO_ZEROPAGE | 1ull << _UFFDIO_WAKE;
    int other = test_uffd_open(0);
    CHECK_EQ(ioctl(other, UFFDIO_REGISTER, &reg), 0);
    CHECK_EQ(reg.ioctls & wanted, wanted);
    close(other);

    uintptr_t addr = (uintptr_t)p;
    CHECK_EQ(lm__uffd_register(addr + 1, g_page), -EINVAL);
    CHECK_EQ(lm__uffd_register(addr, g_page + 1), -EINVAL);
    CHECK_EQ(lm__uffd_register(addr, 0), -EINVAL);
    CHECK_EQ(lm__uffd_register(UINTPTR_MAX - g_page + 1, g_page), -EINVAL);
    CHECK_EQ(lm__uffd_register(addr, 4 * g_page), 0);
    CHECK_EQ(lm__uffd_register(addr, 4 * g_page), 0); /* once more */
    test_pages_free(p, 4);
    CHECK(lm__uffd_register(addr, 4 * g_page) < 0); /* nothing is mapped */
}

static void test_register_of_a_file_is_refused(void)
{
    int fd = open(g_store.path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    uint8_t *p = mmap(NULL, g_page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    int rc = lm__uffd_register((uintptr_t)p, g_page);
    CHECK(rc == -EINVAL || rc == 0); /* 0: TMPDIR is a tmpfs, which can be served */
    CHECK_EQ(munmap(p, g_page), 0);
    close(fd);
}

/* ---- zeropage --------------------------------------------------------------------------------- */

static void test_zeropage(void)
{
    uint8_t *to = test_pages_registered(4);
    struct lm_pager_stats since;
    test_answers(&since);
    CHECK_EQ(lm__uffd_zero((uintptr_t)to + g_page, 2 * g_page), LM_INSTALLED);
    CHECK_ANSWERS(&since, .zeropages = 1);
    for (size_t i = 0; i < 4; i++)
        CHECK_EQ(test_is_present(to + i * g_page), i == 1 || i == 2);
    for (size_t i = g_page; i < 3 * g_page; i++)
        CHECK_EQ(to[i], 0);
    to[g_page] = 9;
    CHECK_EQ(lm__uffd_zero((uintptr_t)to, 4 * g_page), LM_INSTALLED);
    CHECK_ANSWERS(&since, .eagain_partial = 1, .eexist = 2, .zeropages = 4);
    CHECK_EQ(to[g_page], 9);
    CHECK_EQ(to[2 * g_page], 0);
    test_pages_free(to, 4);
}

/* ---- poison -------------------------------------------------------------------------------------- */

static sigjmp_buf g_escape;

static void escape(int signal) { siglongjmp(g_escape, signal); }

/* The signal that a read of `addr` brings, or 0. */
static int touch(const volatile uint8_t *addr)
{
    int signal = sigsetjmp(g_escape, 1);
    if (signal == 0)
        (void)*addr;
    return signal;
}

/* The engine poisons no page; one that is takes no other contents until it is dropped. */
static void test_poison(void)
{
    struct sigaction action = {.sa_handler = escape}, before;
    uint8_t *to = test_pages_registered(2), *from = test_source(1, 3);
    struct test_uffdio_poison poison = {.range = {(uintptr_t)to, g_page}};
    struct lm_pager_stats since;
    if (ioctl(test_uffd_of_engine(), TEST_UFFDIO_POISON, &poison) != 0)
        return; /* before Linux 6.6 */
    CHECK_EQ(sigaction(SIGBUS, &action, &before), 0);
    CHECK_EQ(touch(to), SIGBUS);
    test_answers(&since);
    CHECK_EQ(lm__uffd_copy((uintptr_t)to, from, g_page), LM_INSTALLED);
    CHECK_ANSWERS(&since, .eexist = 1);
    CHECK_EQ(touch(to), SIGBUS);
    CHECK_EQ(madvise(to, g_page, MADV_DONTNEED), 0);
    CHECK_EQ(lm__uffd_copy((uintptr_t)to, from, g_page), LM_INSTALLED);
    CHECK_EQ(touch(to), 0);
    CHECK(test_same(to, from, g_page));
    CHECK_EQ(sigaction(SIGBUS, &before, NULL), 0);
    test_pages_free(to, 2);
    test_pages_free(from, 1);
}

int main(void)
{
    g_page = lm__page_bytes();
    struct lm_encoding enc = {.object_bytes = 8 * 4 * g_page,
                              .chunk_bytes = (uint32_t)(4 * g_page)};
    if (test_store_make(&g_store, enc, 41) != 0)
        return TEST_SKIP;
    if (open_raw(0) < 0)
        return test_skip("may not open a userfaultfd by system call");
    unsetenv("LAZYMEM_MASK");
    test_api_syscall();
    test_api_dev();
    test_api_features();
    if (test_uffd_start(0) != 0)
        return TEST_SKIP;
    test_register_ioctls();
    test_register_of_a_file_is_refused();
    test_zeropage();
    test_poison();
    test_store_close(&g_store);
    return TEST_OK;
}
