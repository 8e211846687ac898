/* SPDX-License-Identifier: BSD-3-Clause
 * EAGAIN of WRITEPROTECT, mmap-changing of the kernel's selftests: the address space is changing,
 * and the event that says so has not been read.  Is it tried again until it has been, not for
 * ever, and are a snapshot and its writers as right as ever?
 *
 * As in errno_changing.c, madvise(MADV_DONTNEED) is made to wait for its event to be read.
 */
#define _GNU_SOURCE
#include "pause.h"
#include "uffd.h"
#include "writable.h"

/* ---- without handlers -------------------------------------------------------------------------- */

static uint8_t *g_to;
static _Atomic int g_is_over;

static void *give_back(void *addr)
{
    CHECK_EQ(madvise(addr, lm__page_bytes(), MADV_DONTNEED), 0);
    return NULL;
}

static pthread_t change_begin(void)
{
    pthread_t changer = test_thread(give_back, g_to + 4 * lm__page_bytes());
    AWAIT(lm__uffd_has_events());
    return changer;
}

/* Read the event behind the engine's back. */
static void change_end(pthread_t changer)
{
    struct uffd_msg msg;
    CHECK_EQ(read(test_uffd_of_engine(), &msg, sizeof msg), sizeof msg);
    CHECK_EQ(msg.event, UFFD_EVENT_REMOVE);
    pthread_join(changer, NULL);
}

/* As the page tables have it. */
static int is_protected(const uint8_t *page)
{
    uint64_t entry;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(pread(fd, &entry, 8, (off_t)((uintptr_t)page / lm__page_bytes() * 8)), 8);
    close(fd);
    return entry >> 57 & 1;
}

static void *protect(void *rc)
{
    *(int *)rc = lm__uffd_protect((uintptr_t)g_to, 2 * lm__page_bytes(), 1);
    lm_store_seq_cst(&g_is_over, 1);
    return NULL;
}

static void *unprotect(void *rc)
{
    *(int *)rc = lm__uffd_protect((uintptr_t)g_to, 2 * lm__page_bytes(), 0);
    lm_store_seq_cst(&g_is_over, 1);
    return NULL;
}

static void test_goes_on_when_the_change_is_over(void *(*run)(void *), int before)
{
    struct lm_pager_stats since, now;
    int rc = 1;
    lm_store_seq_cst(&g_is_over, 0);
    test_answers(&since);
    pthread_t changer = change_begin();
    pthread_t thread = test_thread(run, &rc);
    do
        lm_pager_stats(&now);
    while (now.eagain < since.eagain + 2 && !lm_load_seq_cst(&g_is_over));
    CHECK(!lm_load_seq_cst(&g_is_over)); /* refused, and refused again */
    CHECK_EQ(is_protected(g_to), before);
    change_end(changer);
    pthread_join(thread, NULL);
    CHECK_EQ(rc, 0);
    CHECK_EQ(is_protected(g_to), !before);
    CHECK_EQ(is_protected(g_to + lm__page_bytes()), !before);
}

static void test_a_change_without_end_is_given_up(void)
{
    pthread_t changer = change_begin();
    CHECK_EQ(lm__uffd_protect((uintptr_t)g_to, lm__page_bytes(), 1), -EAGAIN);
    CHECK(!is_protected(g_to));
    change_end(changer);
    CHECK_EQ(lm__uffd_protect((uintptr_t)g_to, lm__page_bytes(), 1), 0);
}

static int without_handlers(void)
{
    if (test_uffd_start(UFFD_FEATURE_EVENT_REMOVE) != 0)
        return TEST_SKIP;
    if (!lm__uffd_can_track(lm__log2(lm__page_bytes())))
        return test_skip("no write protection");
    g_to = test_pages(8);
    CHECK_EQ(lm__uffd_register_tracked((uintptr_t)g_to, 8 * lm__page_bytes()), 0);
    CHECK_EQ(lm__uffd_copy((uintptr_t)g_to, test_source(2, 1), 2 * lm__page_bytes()),
             LM_INSTALLED);
    test_goes_on_when_the_change_is_over(protect, 0);
    test_goes_on_when_the_change_is_over(unprotect, 1);
    test_a_change_without_end_is_given_up();
    return TEST_OK;
}

/* ---- a store's memory: the handlers read the events, and pay them no heed -------------------- */

static _Atomic int g_stop;

/* The last chunk is nobody's but theirs. */
static void *change_on(void *unused)
{
    (void)unused;
    while (!lm_load_seq_cst(&g_stop))
        give_back(g.arrays[0].memory + (CHUNKS - 1) * g_chunk);
    return NULL;
}

static void test_snapshots_while_all_changes(void)
{
    struct lm_written written[2];
    uint64_t state = 5;
    pthread_t thread = test_thread(change_on, NULL);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 20; i++) {
            size_t at = test_random(&state) % ((CHUNKS - 1) * g_chunk - 9);
            put(&g.arrays[i % 2], at, "changing", 8);
        }
        snapshot(written);
        lm_region_evict(g.arrays[1].region, 0, g.arrays[1].enc.object_bytes);
    }
    lm_store_seq_cst(&g_stop, 1);
    pthread_join(thread, NULL);
    all_is_right();
}

static int with_handlers(void)
{
    lm__uffd_ask_for(UFFD_FEATURE_EVENT_REMOVE);
    if (lm_pager_start() != 0)
        return test_skip("no userfaultfd");
    store_make((struct lm_region_options){0});
    if (!test_two_handlers(g.arrays[0].region)) /* one reads, one serves */
        return TEST_OK;
    test_snapshots_while_all_changes();
    store_close();
    return TEST_OK;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "with handlers") == 0)
        return test_codecs() == 0 ? with_handlers() : test_skip("no lz4 and zstd");
    int rc = without_handlers();
    return rc == TEST_OK ? test_run_as("with handlers") : rc;
}
