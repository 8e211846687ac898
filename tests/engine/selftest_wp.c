/* SPDX-License-Identifier: BSD-3-Clause
 * The kernel's own selftests of write protection, by their names: what they ask of the kernel is
 * asked of regions here.  Is no write lost, no clean chunk taken for written, and the data right?
 *
 * wp-unpopulated, wp-fork (without and with the event), wp-fork-pin, events-wp, uffd-wp-mremap,
 * mkdirty, sigbus-wp.  The two about races have files of their own: selftest_wp_zero.c and
 * errno_changing_wp.c.  minor, minor-wp and minor-collapse do not apply: no region is shared
 * memory.
 */
#define _GNU_SOURCE
#include <setjmp.h>

#include "uffd.h"
#include "writable.h"

static struct array *const g_data = &g.arrays[0], *const g_zero = &g.arrays[1];

static uint8_t *at(const struct array *a, size_t chunk)
{
    return a->memory + chunk * g_chunk;
}

static uint64_t dirty(void)
{
    return lm_region_dirty(g_data->region) + lm_region_dirty(g_zero->region);
}

static enum lm__chunk_state state_of(const struct array *a, size_t chunk)
{
    return lm__chunks_state(&a->region->chunks, chunk);
}

static void give_back(uint8_t *from, size_t bytes)
{
    CHECK_EQ(madvise(from, bytes, MADV_DONTNEED), 0);
}

static void snapshot_all(void)
{
    struct lm_written written[2];
    snapshot(written);
}

/* What was written is stored, nothing else, and all is clean then. */
static void snapshot_has(uint64_t of_data, uint64_t of_zero)
{
    struct lm_written written[2];
    snapshot(written);
    CHECK_EQ(written[0].chunks_total, of_data);
    CHECK_EQ(written[1].chunks_total, of_zero);
    CHECK_EQ(dirty(), 0);
    all_is_right();
    CHECK_EQ(dirty(), 0);
}

static void both_arrays(void (*test)(struct array *a))
{
    for (int i = 0; i < 2; i++) {
        test(&g.arrays[i]);
        snapshot_all();
        all_is_right();
    }
}

/* ---- wp-unpopulated ----------------------------------------------------------------------------- */

/* Protecting what is not there is nothing: not a page of zeros, nor a write that goes unseen. */
static void test_wp_unpopulated(struct array *a)
{
    put(a, 3 * g_chunk, "written", 7);
    give_back(at(a, 3) + g_page, g_page); /* missing when the snapshot protects */
    snapshot_all();
    CHECK_EQ(dirty(), 0);
    give_back(at(a, 3), 2 * g_page); /* missing after it was protected */
    CHECK(test_same(at(a, 3), a->right + 3 * g_chunk, g_chunk));
    CHECK_EQ(dirty(), 0);
    give_back(at(a, 3), 2 * g_page);
    put(a, 3 * g_chunk + 9, "first", 5); /* a write comes first */
    CHECK_EQ(dirty(), 1);
    put(a, 3 * g_chunk + g_page, "second", 6); /* and one to another page */
    put(a, 3 * g_chunk + 3 * g_page, "third", 5);
    CHECK_EQ(dirty(), 1);
    memory_is_right(a);
    snapshot_has(a == g_data, a == g_zero);
}

/* ---- wp-fork -------------------------------------------------------------------------------------- */

static int child_writes_all(void *unused)
{
    (void)unused;
    for (size_t c = 0; c < CHUNKS; c++)
        for (int i = 0; i < 2; i++)
            put(&g.arrays[i], c * g_chunk + 5, "child", 5);
    memory_is_right(g_data);
    memory_is_right(g_zero);
    CHECK_EQ(dirty(), 0);
    return TEST_OK;
}

/* Clean, written and absent chunks; the child writes to all of them, and the parent's books are
 * as exact as before, also for pages that both share. */
static void test_wp_fork(struct array *a)
{
    memory_is_right(a);
    put(a, 10 * g_chunk, "before", 6);
    give_back(at(a, 30), 10 * g_chunk);
    CHECK_EQ(test_in_child(child_writes_all, NULL), TEST_OK);
    CHECK_EQ(dirty(), 1);
    memory_is_right(a);
    CHECK_EQ(dirty(), 1);
    put(a, 10 * g_chunk, "after", 5);
    put(a, 12 * g_chunk, "after", 5);
    put(a, 30 * g_chunk, "after", 5);
    CHECK_EQ(dirty(), 3);
    snapshot_has(a == g_data ? 3 : 0, a == g_zero ? 3 : 0);
    CHECK_EQ(test_in_child(child_writes_all, NULL), TEST_OK); /* all protected by now */
    put(a, 12 * g_chunk, "again", 5);
    CHECK_EQ(dirty(), 1);
    snapshot_has(a == g_data, a == g_zero);
}

static int child_touches(void *addr)
{
    alarm(20); /* rather than hang */
    (void)*(volatile uint8_t *)addr;
    return TEST_OK;
}

/* Whose memory is registered for the parent: it may be lost, but is never false. */
static void child_of_event(uint8_t *addr)
{
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(child_touches(addr));
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* With the event, that the engine never asks for. */
static void test_wp_fork_with_event(struct array *a)
{
    memory_is_right(a);
    put(a, 10 * g_chunk, "before", 6);
    child_of_event(at(a, 10));
    child_of_event(at(a, 11));
    CHECK_EQ(dirty(), 1);
    put(a, 13 * g_chunk, "after", 5);
    CHECK_EQ(dirty(), 2);
    snapshot_has(a == g_data ? 2 : 0, a == g_zero ? 2 : 0);
}

/* ---- wp-fork-pin ---------------------------------------------------------------------------------- */

#define IORING_REGISTER_BUFFERS 0

static int ring_open(void)
{
    uint32_t params[30] = {0};
    return (int)syscall(425 /* io_uring_setup */, 1, params);
}

static void ring_pin(int ring, uint8_t *addr, size_t bytes)
{
    struct iovec {
        void *base;
        size_t bytes;
    } vec = {addr, bytes};
    CHECK_EQ(
        syscall(427 /* io_uring_register */, ring, IORING_REGISTER_BUFFERS, &vec, 1),
        0);
}

/* Who pins a page to write to it has written to it, as far as anybody can tell; and fork copies
 * it at once. */
static void test_wp_fork_pin(struct array *a)
{
    int ring = ring_open();
    if (ring < 0)
        return; /* not allowed here */
    memory_is_right(a);
    CHECK_EQ(dirty(), 0);
    ring_pin(ring, at(a, 20) + g_page, g_page);
    CHECK_EQ(dirty(), 1);
    CHECK_EQ(state_of(a, 20), LM_CHUNK_DIRTY);
    put(a, 21 * g_chunk, "before", 6);
    if (!TEST_IS_SANITIZED)
        CHECK_EQ(test_in_child(child_writes_all, NULL), TEST_OK);
    memory_is_right(a);
    snapshot_has(a == g_data, a == g_zero);
    put(a, 20 * g_chunk + g_page, "pinned", 6); /* protected, though it is pinned */
    CHECK_EQ(dirty(), 1);
    snapshot_has(a == g_data, a == g_zero);
    close(ring);
}

/* ---- events-wp -------------------------------------------------------------------------------------- */

/* Faults since, and how many of them were writes to protected pages. */
static void check_counts(const struct array *a, struct lm_pager_stats *since,
                         uint64_t *writes, uint64_t events, uint64_t write_faults)
{
    struct lm_region_stats stats;
    struct lm_pager_stats d = test_answers(since);
    lm_region_stats(a->region, &stats);
    CHECK_EQ(d.events, events);
    CHECK_EQ(stats.write_faults - *writes, write_faults);
    CHECK_EQ(d.eexist + d.eagain + d.eagain_partial + d.enoent + d.enomem + d.refused,
             0);
    *writes = stats.write_faults;
}

/* What is in memory goes, and with it what is not in a snapshot. */
static void reopen(struct array *a)
{
    array_close(a);
    array_open(a, (struct lm_region_options){0});
}

#define SPARSE 15

/* So few chunks, and so far apart, that none is let be written before it is. */
static void put_some(struct array *a, size_t offset)
{
    for (size_t c = 0; c < CHUNKS; c += SPARSE)
        put(a, c * g_chunk + offset, "event", 5);
}

/* One fault for each chunk that is written first, and not one more. */
static void test_events_wp(struct array *a)
{
    struct lm_pager_stats since;
    struct lm_region_stats stats;
    reopen(a);
    uint64_t writes = 0, some = CHUNKS / SPARSE;
    test_answers(&since);
    put_some(a, 0); /* absent: one fault brings them and lets them be written */
    check_counts(a, &since, &writes, some, 0);
    CHECK_EQ(dirty(), some);
    memory_is_right(a);
    check_counts(a, &since, &writes, CHUNKS - some, 0);
    put_some(a, 2 * g_page);
    check_counts(a, &since, &writes, 0, 0);
    for (size_t c = 1; c < CHUNKS; c += 2 * SPARSE)
        put(a, c * g_chunk, "event", 5);
    check_counts(a, &since, &writes, some / 2, some / 2);
    CHECK_EQ(dirty(), some + some / 2);
    snapshot_all();
    test_answers(&since);
    put_some(a, 0); /* protected again, and all of each chunk let be written at once */
    put_some(a, 3 * g_page);
    check_counts(a, &since, &writes, some, some);
    give_back(at(a, 0), 2 * g_chunk); /* one that was written, and one that was not */
    memcpy(a->right, a->memory, 2 * g_chunk);
    check_counts(a, &since, &writes, 2, 0);
    put(a, 3, "written", 7); /* it is DIRTY: nothing protects it */
    check_counts(a, &since, &writes, 0, 0);
    put(a, g_chunk, "clean", 5);
    check_counts(a, &since, &writes, 1, 1);
    lm_region_stats(a->region, &stats);
    CHECK_EQ(stats.chunks_dirty, some + 1);
}

/* ---- uffd-wp-mremap ---------------------------------------------------------------------------------- */

static uint8_t *move(uint8_t *from, uint8_t *to, size_t bytes)
{
    uint8_t *moved = mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    CHECK(moved == to);
    return moved;
}

/* Memory that moves away and comes back, in pieces, is as protected as it was. */
static void test_uffd_wp_mremap(struct array *a)
{
    uint8_t *away = test_pages(3 * CHUNK_PAGES);
    size_t piece = g_chunk + g_page;
    memory_is_right(a);
    put(a, 41 * g_chunk, "written", 7);
    move(at(a, 40), away, 3 * g_chunk);
    CHECK(test_same(away, a->right + 40 * g_chunk, 3 * g_chunk));
    move(away, at(a, 40), piece);
    move(away + piece, at(a, 40) + piece, 3 * g_chunk - piece);
    CHECK_EQ(dirty(), 1);
    put(a, 40 * g_chunk + g_page, "clean", 5);
    CHECK_EQ(dirty(), 2);
    put(a, 41 * g_chunk + g_page, "written", 7);
    put(a, 42 * g_chunk + 2 * g_page, "clean", 5);
    CHECK_EQ(dirty(), 3);
    memory_is_right(a);
    snapshot_has(a == g_data ? 3 : 0, a == g_zero ? 3 : 0);
}

/* A write where no region is: to memory that was moved, protected.  It comes to its end, and is
 * an error. */
static void test_uffd_wp_mremap_written_elsewhere(struct array *a)
{
    struct lm_error err;
    uint8_t *away = test_pages(CHUNK_PAGES);
    memory_is_right(a);
    move(at(a, 50), away, g_chunk);
    *(volatile uint8_t *)(away + g_page) = 1;
    CHECK_EQ(away[g_page], 1);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, LM_E_LOST_MAPPING);
    move(away, at(a, 50), g_chunk);
    reopen(a);
}

/* ---- mkdirty ------------------------------------------------------------------------------------------- */

static sigjmp_buf g_escape;

static void escape(int signal) { siglongjmp(g_escape, signal); }

/* The signal that the write brings, or 0. */
static int try_write(volatile uint8_t *addr, uint8_t value)
{
    int signal = sigsetjmp(g_escape, 1);
    if (signal == 0)
        *addr = value;
    return signal;
}

/* Neither installing pages, nor protecting and unprotecting them, lets anybody write who may
 * not; and who may later is found. */
static void test_mkdirty(struct array *a)
{
    struct sigaction action = {.sa_handler = escape}, before;
    CHECK_EQ(sigaction(SIGSEGV, &action, &before), 0);
    memory_is_right(a);
    put(a, 61 * g_chunk, "written", 7);
    lm_region_evict(a->region, 60 * g_chunk, g_chunk);
    CHECK_EQ(mprotect(at(a, 60), 4 * g_chunk, PROT_READ), 0);
    for (size_t c = 60; c < 64; c++) {
        CHECK_EQ(try_write(at(a, c), 0xEE), SIGSEGV);
        (void)*(volatile uint8_t *)at(a, c);
        CHECK_EQ(try_write(at(a, c) + 1, 0xEE), SIGSEGV);
    }
    CHECK_EQ(dirty(), 1);
    snapshot_has(a == g_data, a == g_zero);
    for (size_t c = 60; c < 64; c++)
        CHECK_EQ(try_write(at(a, c) + g_page, 0xEE), SIGSEGV);
    lm__uffd_protect((uintptr_t)at(a, 62), g_chunk,
                     0); /* as for a writer who came before */
    CHECK_EQ(try_write(at(a, 62), 0xEE), SIGSEGV);
    lm__uffd_protect((uintptr_t)at(a, 62), g_chunk, 1);
    CHECK_EQ(mprotect(at(a, 60), 4 * g_chunk, PROT_READ | PROT_WRITE), 0);
    CHECK_EQ(dirty(), 0);
    for (size_t c = 60; c < 64; c += 2)
        put(a, c * g_chunk, "may", 3);
    CHECK_EQ(dirty(), 2);
    CHECK_EQ(sigaction(SIGSEGV, &before, NULL), 0);
    snapshot_has(a == g_data ? 2 : 0, a == g_zero ? 2 : 0);
}

/* ---- sigbus-wp ------------------------------------------------------------------------------------------- */

/* A page that is poisoned for its toucher, in a chunk that is written: nothing else is lost, and
 * who copies the chunk for a snapshot does not die of it. */
static void test_sigbus_wp(struct array *a)
{
    struct sigaction action = {.sa_handler = escape}, before;
    struct lm_written written[2];
    struct lm_error err;
    CHECK_EQ(sigaction(SIGBUS, &action, &before), 0);
    put(a, 70 * g_chunk, "written", 7);
    give_back(at(a, 70) + g_page, g_page);
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    CHECK_EQ(try_write(at(a, 70) + g_page, 1), SIGBUS);
    CHECK_EQ(try_write(at(a, 71), 1), SIGBUS); /* absent */
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    put(a, 70 * g_chunk + 2 * g_page, "too", 3);
    CHECK_EQ(dirty(), 1);
    snapshot(written);
    CHECK_EQ(written[a - g.arrays].chunks_total, 1);
    file_is_right(a);
    give_back(at(a, 71), g_chunk);
    memory_is_right(a); /* the poison is gone */
    put(a, 71 * g_chunk, "healed", 6);
    CHECK_EQ(dirty(), 1);
    while (lm_failure_take(test_tid(), &err))
        ;
    CHECK_EQ(sigaction(SIGBUS, &before, NULL), 0);
}

/* The source fails while the snapshot copies. */
static void test_sigbus_wp_of_a_copier(struct array *a)
{
    struct lm_snapshot_stats stats;
    struct lm_written written[2];
    lm_job *job;
    put(a, 75 * g_chunk, "written", 7);
    put(a, 78 * g_chunk, "written", 7);
    give_back(at(a, 75) + g_page, g_page);
    lm_snapshot *s = begin(&stats);
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    CHECK_EQ(lm_snapshot_write(s, &job), 0);
    while (!lm_job_wait(job, 1000))
        ;
    CHECK_EQ(lm_job_errors(job, &g_err, 1), 1);
    CHECK_EQ(g_err.code, -ENXIO);
    lm_job_close(job, 0);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK(lm_snapshot_end(s, written, &g_err) != 0);
    lm_snapshot_close(s, 0);
    CHECK_EQ(dirty(), 2);
    snapshot_has(a == g_data ? 2 : 0, a == g_zero ? 2 : 0);
}

/* ---- all of it -------------------------------------------------------------------------------------------- */

static int run(void)
{
    store_make((struct lm_region_options){0});
    if (g_data->region->tracking != LM_TRACK_PROTECT)
        return test_skip("no write protection");
    both_arrays(test_wp_unpopulated);
    both_arrays(test_wp_fork_pin);
    if (!TEST_IS_SANITIZED) /* see fork.c */
        both_arrays(test_wp_fork);
    both_arrays(test_events_wp);
    both_arrays(test_mkdirty);
    both_arrays(test_uffd_wp_mremap);
    both_arrays(test_uffd_wp_mremap_written_elsewhere);
    store_close();
    return TEST_OK;
}

static int run_with_event(void)
{
    store_make((struct lm_region_options){0});
    both_arrays(test_wp_fork_with_event);
    return TEST_OK;
}

static int run_with_sigbus(void)
{
    store_make((struct lm_region_options){.on_error = LM_ON_ERROR_SIGBUS});
    test_sigbus_wp(g_data);
    snapshot_all();
    test_sigbus_wp_of_a_copier(g_data);
    store_close();
    return TEST_OK;
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    int has_event = strcmp(how, "event") == 0, has_sigbus = strcmp(how, "sigbus") == 0;
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    if (has_event)
        lm__uffd_ask_for(UFFD_FEATURE_EVENT_FORK);
    if (lm_pager_start() != 0)
        return has_event ? TEST_OK : test_skip("no userfaultfd"); /* needs rights */
    if (has_event)
        return run_with_event();
    if (has_sigbus)
        return lm__uffd_can_poison() ? run_with_sigbus() : TEST_OK;
    int rc = run();
    if (rc == TEST_OK && !TEST_IS_SANITIZED)
        rc = test_run_as("event");
    return rc == TEST_OK ? test_run_as("sigbus") : rc;
}
