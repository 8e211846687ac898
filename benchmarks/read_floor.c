/* SPDX-License-Identifier: BSD-3-Clause
 * read_floor.c - what the machine asks for a page fault that a thread serves, and for a copy.
 *
 *   cc -O2 -pthread read_floor.c -o read_floor && ./read_floor MEMORY_BYTES
 *
 * One thread touches pages of registered memory in random order; another one reads the faults
 * from the userfaultfd and copies 4 KiB to each.  Nothing is looked up, read or decoded, so no
 * array that is filled this way can be quicker.  Once they run on two cores, where there are
 * two, and once on one.  Then memory is copied to pages that are not there yet, and again to
 * the same ones.  Prints JSON, in nanoseconds and GiB/s; exit code 77: the kernel can't.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES ((size_t)4096)
#define CANNOT     77

static int g_uffd;
static int g_handler_core, g_toucher_core;
static uint8_t g_page[4096] __attribute__((aligned(4096)));

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void run_on(int core)
{
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(core, &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
}

static void *serve(void *unused)
{
    struct uffd_msg event;
    run_on(g_handler_core);
    while (read(g_uffd, &event, sizeof event) == sizeof event) {
        struct uffdio_copy arg = {
            .dst = event.arg.pagefault.address & ~(uint64_t)(PAGE_BYTES - 1),
            .src = (uint64_t)g_page,
            .len = PAGE_BYTES,
        };
        ioctl(g_uffd, UFFDIO_COPY, &arg); /* wakes the toucher, too */
    }
    return unused;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The nanoseconds of each fault, ascending; memory_bytes is a power of two. */
static int touch_each(size_t memory_bytes, double *ns)
{
    size_t pages = memory_bytes / PAGE_BYTES, at = 0;
    uint8_t *memory = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register arg = {
        {(uint64_t)memory, memory_bytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
    if (memory == MAP_FAILED || madvise(memory, memory_bytes, MADV_NOHUGEPAGE) != 0 ||
        ioctl(g_uffd, UFFDIO_REGISTER, &arg) != 0)
        return -1;
    for (size_t i = 0; i < pages; i++) {
        at = (at + 7919) & (pages - 1); /* odd: all pages have their turn */
        volatile uint8_t *byte = memory + at * PAGE_BYTES;
        double start = now_ns();
        (void)*byte;
        ns[i] = now_ns() - start;
    }
    qsort(ns, pages, sizeof ns[0], by_value);
    return munmap(memory, memory_bytes);
}

static int measure_faults(const char *name, size_t memory_bytes)
{
    size_t pages = memory_bytes / PAGE_BYTES;
    struct uffdio_api api = {.api = UFFD_API};
    double *ns = calloc(pages, sizeof ns[0]);
    pthread_t handler;
    g_uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (!ns || g_uffd < 0 || ioctl(g_uffd, UFFDIO_API, &api) != 0 ||
        pthread_create(&handler, NULL, serve, NULL) != 0)
        return -1;
    run_on(g_toucher_core);
    if (touch_each(memory_bytes, ns) != 0)
        return -1;
    printf("\"%s\": {\"low\": %.0f, \"median\": %.0f, \"p99\": %.0f}, ", name, ns[0],
           ns[pages / 2], ns[pages * 99 / 100]);
    pthread_cancel(handler);
    pthread_join(handler, NULL);
    close(g_uffd);
    free(ns);
    return 0;
}

static int measure_copies(size_t memory_bytes)
{
    double gib = (double)memory_bytes / (double)(1 << 30), seconds[2];
    uint8_t *memory = mmap(NULL, 2 * memory_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -1;
    madvise(memory, 2 * memory_bytes, MADV_NOHUGEPAGE);
    memset(memory, 1, memory_bytes);
    for (int i = 0; i < 2; i++) {
        double start = now_ns();
        memcpy(memory + memory_bytes, memory, memory_bytes);
        seconds[i] = (now_ns() - start) / 1e9;
    }
    printf("\"fresh_GiB_s\": %.3f, \"resident_GiB_s\": %.3f", gib / seconds[0],
           gib / seconds[1]);
    return memory[memory_bytes] != 1;
}

int main(int argc, char **argv)
{
    size_t memory_bytes = argc > 1 ? strtoull(argv[1], NULL, 10) : (size_t)256 << 20;
    int cores[2], found = 0;
    cpu_set_t cpus;
    if (sysconf(_SC_PAGESIZE) != (long)PAGE_BYTES ||
        sched_getaffinity(0, sizeof cpus, &cpus) != 0)
        return CANNOT;
    for (int i = 0; i < CPU_SETSIZE && found < 2; i++) {
        if (CPU_ISSET(i, &cpus))
            cores[found++] = i;
    }
    g_toucher_core = cores[0];
    g_handler_core = cores[found - 1];
    printf("{\"cores\": %d, ", found);
    if (measure_faults("across_ns", memory_bytes) != 0)
        return CANNOT;
    g_handler_core = g_toucher_core;
    if (measure_faults("one_core_ns", memory_bytes) != 0 ||
        measure_copies(memory_bytes) != 0)
        return CANNOT;
    printf("}\n");
    return 0;
}
