/* SPDX-License-Identifier: BSD-3-Clause
 * os.c - what the engine asks of the system besides files: pages, threads, cores.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define STACK_BYTES (512 << 10) /* the codecs keep their tables on the heap */
#define CORES_MAX   64

#ifdef LM_CHECKS
_Atomic(lm__pause_fn) lm__pause_hook;
#endif

const uint8_t lm__zeros[65536];

size_t lm__page_bytes(void)
{
    static _Atomic size_t page_bytes;
    size_t bytes = lm_load_relaxed(&page_bytes);
    if (bytes == 0) {
        bytes = (size_t)sysconf(_SC_PAGESIZE);
        lm_store_relaxed(&page_bytes, bytes);
    }
    return bytes;
}

void *lm__pages_reserve(size_t bytes, size_t align, int protection)
{
    size_t room = align > lm__page_bytes() ? bytes + align : bytes;
    char *p = mmap(NULL, room, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    char *start = p + (lm__round_up((uintptr_t)p, align) - (uintptr_t)p);
    if (start != p)
        munmap(p, (size_t)(start - p));
    if (start + bytes != p + room)
        munmap(start + bytes, (size_t)(p + room - start) - bytes);
    return start;
}

static int read_line(const char *path, char *buf, size_t bytes)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, buf, bytes - 1);
    if (fd >= 0)
        close(fd);
    buf[got < 0 ? 0 : got] = 0;
    return got > 0;
}

#define THP "/sys/kernel/mm/transparent_hugepage/"

int lm__pages_can_be_huge(void)
{
    static _Atomic int answer; /* 0: not asked yet; else 1 + the answer */
    char enabled[64], size[32];
    int known = lm_load_relaxed(&answer);
    if (known == 0) {
        known = 1 + (read_line(THP "enabled", enabled, sizeof enabled) &&
                     !strstr(enabled, "[never]") &&
                     read_line(THP "hpage_pmd_size", size, sizeof size) &&
                     atol(size) == LM_HUGE_BYTES);
        lm_store_relaxed(&answer, known);
    }
    return known - 1;
}

#ifndef MADV_DONTNEED_LOCKED /* since Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif

void lm__pages_drop(uintptr_t addr, size_t bytes)
{
    if (madvise((void *)addr, bytes, MADV_DONTNEED) == 0 ||
        madvise((void *)addr, bytes, MADV_DONTNEED_LOCKED) == 0)
        return;
    munlock((void *)addr, bytes);
    madvise((void *)addr, bytes, MADV_DONTNEED);
}

int lm__pages_are_present(uintptr_t addr, size_t bytes)
{
    enum { AT_ONCE = 1024 };
    unsigned char present[AT_ONCE];
    for (size_t done = 0, count; done < bytes; done += count * lm__page_bytes()) {
        count = (bytes - done) / lm__page_bytes();
        count = count < AT_ONCE ? count : AT_ONCE;
        if (mincore((void *)(addr + done), count * lm__page_bytes(), present) < 0)
            return 0;
        for (size_t i = 0; i < count; i++)
            if (!(present[i] & 1))
                return 0;
    }
    return 1;
}

int lm__page_is_present(uintptr_t addr)
{
    return lm__pages_are_present(lm__round_down(addr, lm__page_bytes()),
                                 lm__page_bytes());
}

int lm__page_is_mapped(uintptr_t addr)
{
    uint64_t entry = 0;
    off_t at = (off_t)(addr / lm__page_bytes() * sizeof entry);
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return 0;
    ssize_t got = pread(pagemap, &entry, sizeof entry, at);
    close(pagemap);
    return got == (ssize_t)sizeof entry && entry >> 63;
}

#ifndef MADV_POPULATE_READ /* since Linux 5.14, and poison since 6.6 */
#define MADV_POPULATE_READ 22
#endif

int lm__page_is_poisoned(uintptr_t addr)
{
    void *page = (void *)lm__round_down(addr, lm__page_bytes());
    return madvise(page, lm__page_bytes(), MADV_POPULATE_READ) < 0 &&
           errno == EHWPOISON;
}

/* ---- PAGEMAP_SCAN, since Linux 6.7 ---- */

struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct page_region {
    uint64_t start, end, categories;
};
#define PAGEMAP_SCAN    _IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_PFNZERO (1ull << 5)

/* How many runs of pages of the range are not the page of zeros, 1 standing for all; or -1. */
static long pages_not_zero(uintptr_t addr, size_t bytes)
{
    struct page_region found;
    struct pm_scan_arg arg = {.size = sizeof arg,
                              .start = addr,
                              .end = addr + bytes,
                              .vec = (uintptr_t)&found,
                              .vec_len = 1,
                              .max_pages = 1,
                              .category_inverted = PAGE_IS_PFNZERO,
                              .category_mask = PAGE_IS_PFNZERO,
                              .return_mask = PAGE_IS_PFNZERO};
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    long runs = pagemap < 0 ? -1 : ioctl(pagemap, PAGEMAP_SCAN, &arg);
    if (pagemap >= 0)
        close(pagemap);
    return runs;
}

int lm__pages_are_zero(uintptr_t addr, size_t bytes)
{
    return pages_not_zero(addr, bytes) == 0;
}

int lm__pages_can_tell_zero(void)
{
    static _Atomic int answer; /* 0: not asked yet; else 1 + the answer */
    int known = lm_load_relaxed(&answer);
    if (known == 0) {
        uintptr_t page = lm__round_down((uintptr_t)&known, lm__page_bytes());
        known = 1 + (pages_not_zero(page, lm__page_bytes()) >= 0);
        lm_store_relaxed(&answer, known);
    }
    return known - 1;
}

/* The number in a file behind `key`, or UINT64_MAX. */
static uint64_t read_number(const char *path, const char *key)
{
    char text[4096];
    uint64_t number = UINT64_MAX;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (got > 0) {
        text[got] = 0;
        const char *at = strstr(text, key);
        if (at)
            sscanf(at + strlen(key), "%" SCNu64, &number); /* "max" is none */
    }
    return number;
}

/* A version of memory cgroups: where they are mounted, the line of /proc/self/cgroup that has a
 * process's own, and what their files are called. */
struct cgroup_kind {
    const char *mount, *line, *limit, *used;
};
static const struct cgroup_kind CGROUP_1 = {"/sys/fs/cgroup/memory",
                                            "memory:", "memory.limit_in_bytes",
                                            "memory.usage_in_bytes"};
static const struct cgroup_kind CGROUP_2 = {"/sys/fs/cgroup", "0::", "memory.max",
                                            "memory.current"};

static uint64_t group_number(const struct cgroup_kind *kind, const char *group,
                             const char *file, const char *key)
{
    char path[1024];
    int n = snprintf(path, sizeof path, "%s%s/%s", kind->mount, group, file);
    return n < (int)sizeof path ? read_number(path, key) : UINT64_MAX;
}

/* What one group may still have; its page cache can be taken back. */
static uint64_t group_left(const struct cgroup_kind *kind, const char *group)
{
    uint64_t limit = group_number(kind, group, kind->limit, "");
    uint64_t used = group_number(kind, group, kind->used, "");
    uint64_t cache = group_number(kind, group, "memory.stat", "\ninactive_file ");
    uint64_t active = group_number(kind, group, "memory.stat", "\nactive_file ");
    if (limit == UINT64_MAX || used == UINT64_MAX)
        return UINT64_MAX;
    cache = (cache == UINT64_MAX ? 0 : cache) + (active == UINT64_MAX ? 0 : active);
    used -= cache < used ? cache : used;
    return limit > used ? limit - used : 0;
}

/* The least that the process's group and those above it leave. */
static uint64_t groups_left(const struct cgroup_kind *kind)
{
    char text[4096], *group = text;
    uint64_t least = UINT64_MAX;
    int fd = open("/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = 0;
    group = strstr(text, kind->line);
    if (!group)
        return least;
    group += strlen(kind->line);
    group[strcspn(group, "\n")] = 0;
    for (;;) {
        uint64_t left = group_left(kind, strcmp(group, "/") == 0 ? "" : group);
        char *end = strrchr(group, '/');
        least = left < least ? left : least;
        if (!end || !*group)
            return least;
        *end = 0;
    }
}

uint64_t lm_memory_available(void)
{
    uint64_t kib = read_number("/proc/meminfo", "MemAvailable:");
    uint64_t all = kib == UINT64_MAX ? 0 : kib << 10;
    uint64_t v1 = groups_left(&CGROUP_1), v2 = groups_left(&CGROUP_2);
    uint64_t group = v1 < v2 ? v1 : v2;
    return all < group ? all : group;
}

uint64_t lm__now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int lm__array_reserve(void *array, uint64_t *capacity, uint64_t count,
                      size_t item_bytes)
{
    void *items;
    if (count <= *capacity)
        return 0;
    uint64_t room = 2 * *capacity > count ? 2 * *capacity : count + 16;
    memcpy(&items, array, sizeof items); /* of whatever type */
    items = realloc(items, (size_t)room * item_bytes);
    if (!items)
        return -ENOMEM;
    memcpy(array, &items, sizeof items);
    *capacity = room;
    return 0;
}

/* Of a thread that is pinned: where it is, and where it could run before. */
static _Thread_local int g_pinned_to = -1;
static _Thread_local cpu_set_t g_cpus_before;

static int cpus_to_run_on(cpu_set_t *cpus)
{
    if (g_pinned_to >= 0)
        *cpus = g_cpus_before;
    return g_pinned_to >= 0 || sched_getaffinity(0, sizeof *cpus, cpus) == 0;
}

unsigned lm__cores(void)
{
    cpu_set_t cpus;
    int cores = cpus_to_run_on(&cpus) ? CPU_COUNT(&cpus) : 1;
    return cores < 1 ? 1 : cores > CORES_MAX ? CORES_MAX : (unsigned)cores;
}

void lm__thread_pin(unsigned core)
{
    cpu_set_t cpus, one;
    int cpu = 0;
    if (g_pinned_to == (int)core || !cpus_to_run_on(&cpus))
        return;
    for (unsigned nth = core; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &cpus) && nth-- == 0)
            break;
    CPU_ZERO(&one);
    CPU_SET(cpu < CPU_SETSIZE ? cpu : 0, &one);
    if (sched_setaffinity(0, sizeof one, &one) == 0) {
        g_cpus_before = cpus;
        g_pinned_to = (int)core;
    }
}

/* A thread names itself: a detached one may be gone before its creator could, and another
 * thread's name goes through /proc, whose entries make the end of a process slow. */
static void *thread_main(void *arg)
{
    const struct lm__thread *thread = arg;
    pthread_setname_np(pthread_self(), thread->name);
    thread->run();
    return NULL;
}

static int thread_create(pthread_t *id, void *(*run)(void *), const void *arg)
{
    pthread_attr_t attr;
    sigset_t all, before;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    if (g_pinned_to >= 0)
        pthread_attr_setaffinity_np(&attr, sizeof g_cpus_before, &g_cpus_before);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the new thread inherits the mask */
    int rc = pthread_create(id, &attr, run, (void *)arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return -rc;
}

int lm__thread_start(const struct lm__thread *thread)
{
    pthread_t id;
    int rc = thread_create(&id, thread_main, thread);
    return rc == 0 ? -pthread_detach(id) : rc;
}

int32_t lm__thread_id(void) { return (int32_t)syscall(SYS_gettid); }

static void *end_at_once(void *arg) { return arg; }

void lm__thread_warm(void)
{
    pthread_t ids[2]; /* at the same time: a stack for each thread that a start needs */
    int count = 0;
    while (count < 2 && thread_create(&ids[count], end_at_once, NULL) == 0)
        count++;
    while (count > 0)
        pthread_join(ids[--count], NULL);
}
