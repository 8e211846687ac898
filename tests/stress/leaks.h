/* SPDX-License-Identifier: BSD-3-Clause
 * leaks.h - what the process holds of the system: descriptors, threads, mappings, memory.
 *
 * Compared between two moments at which nothing is open.  What may differ, and why:
 *   descriptors   nothing
 *   threads       handlers: one that slept on a read has a stand-in, which ends when it has
 *                 served its next fault
 *   mappings      a thread's stack and heap are two mappings each, and both are kept for the
 *                 next thread; a slot class met for the first time maps an arena.  A mapping
 *                 leaked by regions, of which a run opens thousands, is far beyond that
 *   memory        each handler and worker keeps two buffers of its largest chunk, and the
 *                 heaps of libc have holes.  One page leaked by each region is far beyond
 * The sanitizers' allocators keep what is freed, so with them memory and mappings don't tell.
 */
#ifndef LM_STRESS_LEAKS_H
#define LM_STRESS_LEAKS_H
#include <dirent.h>
#include <malloc.h>

#include "test.h"

#define HANDLERS_MORE_MAX (2 * (long)lm__cores())
#define MAPPINGS_MORE_MAX 64
#define RSS_MORE_MAX      (24l << 20)
#define LEAKS_WAIT_MS     5000 /* for what is on its way out */

struct holdings {
    long fds, threads, mappings, rss_bytes;
};

static long leaks_count_entries(const char *folder)
{
    long count = 0;
    DIR *dir = opendir(folder);
    CHECK(dir);
    for (struct dirent *e; (e = readdir(dir));)
        count += e->d_name[0] != '.';
    closedir(dir);
    return count;
}

static long leaks_count_lines(const char *path)
{
    long lines = 0;
    FILE *file = fopen(path, "re");
    CHECK(file);
    for (int c; (c = getc(file)) != EOF;)
        lines += c == '\n';
    fclose(file);
    return lines;
}

static long leaks_rss_bytes(void)
{
    long total, resident;
    FILE *file = fopen("/proc/self/statm", "re");
    CHECK(file && fscanf(file, "%ld %ld", &total, &resident) == 2);
    fclose(file);
    return resident * (long)lm__page_bytes();
}

static struct holdings leaks_look(void)
{
    malloc_trim(0);
    return (struct holdings){
        .fds = leaks_count_entries("/proc/self/fd"),
        .threads = leaks_count_entries("/proc/self/task"),
        .mappings = leaks_count_lines("/proc/self/maps"),
        .rss_bytes = leaks_rss_bytes(),
    };
}

static int leaks_none(const struct holdings *before, const struct holdings *now)
{
    int is_told = !TEST_IS_SANITIZED;
    return now->fds == before->fds &&
           now->threads <= before->threads + HANDLERS_MORE_MAX &&
           (!is_told || now->mappings <= before->mappings + MAPPINGS_MORE_MAX) &&
           (!is_told || now->rss_bytes <= before->rss_bytes + RSS_MORE_MAX);
}

/* Returns what is held now, which is no more than before. */
static struct holdings leaks_check(const struct holdings *before)
{
    struct holdings now = leaks_look();
    for (int ms = 0; ms < LEAKS_WAIT_MS && !leaks_none(before, &now); ms += 10) {
        usleep(10000);
        now = leaks_look();
    }
    if (!leaks_none(before, &now)) {
        fprintf(
            stderr,
            "stress: leak: fds %ld -> %ld, threads %ld -> %ld, mappings %ld -> %ld, "
            "rss %ld -> %ld\n",
            before->fds, now.fds, before->threads, now.threads, before->mappings,
            now.mappings, before->rss_bytes, now.rss_bytes);
        _exit(TEST_FAILED);
    }
    return now;
}

#endif
