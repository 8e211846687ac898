/* SPDX-License-Identifier: BSD-3-Clause
 * write_floor.c - what the kernel asks for the first write to a protected chunk.
 *
 *   cc -O2 -pthread write_floor.c -o write_floor && ./write_floor CHUNK_BYTES
 *
 * One thread writes to each chunk of write-protected memory, in random order; another one reads
 * the faults from the userfaultfd and unprotects the chunk.  Nothing is looked up or counted, so
 * no tracker of writes that works this way can be quicker.  Prints JSON, in nanoseconds; exit
 * code 77: the kernel can't.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MEMORY_BYTES ((size_t)256 << 20)
#define CANNOT       77

static int g_uffd;
static size_t g_chunk_bytes;

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int protect(uint64_t addr, size_t bytes, uint64_t mode)
{
    struct uffdio_writeprotect arg = {{addr, bytes}, mode};
    return ioctl(g_uffd, UFFDIO_WRITEPROTECT, &arg);
}

static void *serve(void *unused)
{
    struct uffd_msg event;
    while (read(g_uffd, &event, sizeof event) == sizeof event) {
        uint64_t addr = event.arg.pagefault.address & ~(uint64_t)(g_chunk_bytes - 1);
        protect(addr, g_chunk_bytes, 0); /* wakes the writer, too */
    }
    return unused;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int uffd_open(void)
{
    struct uffdio_api api = {.api = UFFD_API};
    g_uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    return g_uffd < 0 ? -1 : ioctl(g_uffd, UFFDIO_API, &api);
}

static uint8_t *map_protected(void)
{
    uint8_t *all = mmap(NULL, MEMORY_BYTES + g_chunk_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return NULL;
    uint64_t addr =
        ((uint64_t)all + g_chunk_bytes - 1) & ~(uint64_t)(g_chunk_bytes - 1);
    struct uffdio_register arg = {{addr, MEMORY_BYTES}, UFFDIO_REGISTER_MODE_WP, 0};
    madvise(all, MEMORY_BYTES + g_chunk_bytes, MADV_NOHUGEPAGE);
    memset(all, 1, MEMORY_BYTES + g_chunk_bytes);
    if (ioctl(g_uffd, UFFDIO_REGISTER, &arg) != 0)
        return NULL;
    return (uint8_t *)addr;
}

/* The nanoseconds of the first write to each chunk, ascending. */
static void write_to_each(uint8_t *memory, double *ns, size_t chunks)
{
    size_t at = 0;
    for (size_t i = 0; i < chunks; i++) {
        at = (at + 7919) % chunks; /* prime: all chunks have their turn */
        volatile uint8_t *byte = memory + at * g_chunk_bytes + g_chunk_bytes / 2;
        double start = now_ns();
        *byte = 2;
        ns[i] = now_ns() - start;
    }
    qsort(ns, chunks, sizeof ns[0], by_value);
}

int main(int argc, char **argv)
{
    g_chunk_bytes = argc > 1 ? strtoull(argv[1], NULL, 10) : 1 << 17;
    size_t chunks = MEMORY_BYTES / g_chunk_bytes;
    double *ns = calloc(chunks, sizeof ns[0]);
    pthread_t handler;
    if (!ns || uffd_open() != 0)
        return CANNOT;
    uint8_t *memory = map_protected();
    if (!memory || pthread_create(&handler, NULL, serve, NULL) != 0)
        return CANNOT;
    double start = now_ns();
    if (protect((uint64_t)memory, MEMORY_BYTES, UFFDIO_WRITEPROTECT_MODE_WP) != 0)
        return CANNOT;
    double protect_ns = (now_ns() - start) / (double)chunks;
    write_to_each(memory, ns, chunks);
    printf("{\"protect_ns\": %.0f, \"low\": %.0f, \"median\": %.0f, \"p99\": %.0f}\n",
           protect_ns, ns[0], ns[chunks / 2], ns[chunks * 99 / 100]);
    return 0;
}
