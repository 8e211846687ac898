/* SPDX-License-Identifier: BSD-3-Clause
 * EAGAIN with nothing done: the address space is changing, and the event that says so has
 * not been read.  Is the install tried again until it has been, and not for ever?
 *
 * The engine asks for no such events.  Here it does, so that madvise(MADV_DONTNEED) waits
 * for its event to be read, and the kernel refuses installs all that time.
 */
#define _GNU_SOURCE
#include "pause.h"
#include "uffd.h"

static size_t g_page;
static uint8_t *g_to, *g_from;

static void *give_back(void *addr)
{
    CHECK_EQ(madvise(addr, g_page, MADV_DONTNEED), 0);
    return NULL;
}

static _Atomic int g_is_over;

static void *copy(void *verdict)
{
    *(enum lm__install *)verdict = lm__uffd_copy((uintptr_t)g_to, g_from, 2 * g_page);
    lm_store_seq_cst(&g_is_over, 1);
    return NULL;
}

static void *zero(void *verdict)
{
    *(enum lm__install *)verdict = lm__uffd_zero((uintptr_t)g_to, 2 * g_page);
    lm_store_seq_cst(&g_is_over, 1);
    return NULL;
}

static void *map(void *verdict)
{
    *(enum lm__install *)verdict = lm__uffd_continue((uintptr_t)g_to, 2 * g_page);
    lm_store_seq_cst(&g_is_over, 1);
    return NULL;
}

/* Read the one event that waits, behind the engine's back. */
static void read_event(unsigned wanted)
{
    struct uffd_msg msg;
    CHECK_EQ(read(test_uffd_of_engine(), &msg, sizeof msg), sizeof msg);
    CHECK_EQ(msg.event, wanted);
}

static pthread_t change_begin(void)
{
    pthread_t changer = test_thread(give_back, g_to + 4 * g_page);
    AWAIT(lm__uffd_has_events());
    return changer;
}

static void change_end(pthread_t changer)
{
    read_event(UFFD_EVENT_REMOVE);
    pthread_join(changer, NULL);
}

static void goes_on_when_the_change_is_over(void *(*run)(void *), uint8_t wanted)
{
    struct lm_pager_stats since, now;
    enum lm__install verdict;
    lm_store_seq_cst(&g_is_over, 0);
    test_answers(&since);
    pthread_t changer = change_begin();
    pthread_t installer = test_thread(run, &verdict);
    do
        lm_pager_stats(&now);
    while (now.eagain < since.eagain + 2 && !lm_load_seq_cst(&g_is_over));
    CHECK(!lm_load_seq_cst(&g_is_over)); /* refused, and refused again */
    CHECK(!lm__page_is_mapped((uintptr_t)g_to));
    change_end(changer);
    pthread_join(installer, NULL);
    CHECK_EQ(verdict, LM_INSTALLED);
    CHECK_EQ(g_to[0], wanted);
    lm_pager_stats(&now);
    CHECK_EQ(now.eexist - since.eexist + now.eagain_partial - since.eagain_partial, 0);
    CHECK_EQ(now.refused, since.refused);
}

/* mmap-changing of the kernel's selftests, for the three requests that must be answered. */
static void test_mmap_changing_copy(void) { goes_on_when_the_change_is_over(copy, 11); }

static void test_mmap_changing_zeropage(void)
{
    goes_on_when_the_change_is_over(zero, 0);
}

static void test_mmap_changing_continue(void)
{
    int memory = lm_shared_make(8 * g_page);
    CHECK(memory >= 0);
    CHECK_EQ(lm__io_pwrite(memory, 0, 8 * g_page, g_from), 0);
    g_to = mmap(NULL, 8 * g_page, PROT_READ, MAP_SHARED, memory, 0);
    CHECK(g_to != MAP_FAILED);
    CHECK_EQ(lm__uffd_register_shared((uintptr_t)g_to, 8 * g_page), 0);
    goes_on_when_the_change_is_over(map, 11);
    test_uffd_unregister(test_uffd_of_engine(), g_to, 8 * g_page);
    test_pages_free(g_to, 8);
    close(memory);
}

static void test_change_without_end_is_given_up(void)
{
    struct lm_pager_stats since, d;
    test_answers(&since);
    pthread_t changer = change_begin();
    CHECK_EQ(lm__uffd_copy((uintptr_t)g_to, g_from, g_page), LM_REFUSED);
    CHECK(!test_is_present(g_to));
    d = test_answers(&since);
    CHECK(d.eagain > 100);
    CHECK_EQ(d.copies, d.eagain);
    CHECK_EQ(d.eexist + d.eagain_partial + d.enoent, 0);
    change_end(changer);
    CHECK_EQ(lm__uffd_copy((uintptr_t)g_to, g_from, g_page), LM_INSTALLED);
}

static void with_fresh_pages(void (*test)(void))
{
    g_to = test_pages_registered(8);
    test();
    /* Here, too, somebody has to read: that it is gone. */
    test_uffd_unregister(test_uffd_of_engine(), g_to, 8 * g_page);
    test_pages_free(g_to, 8);
}

static int without_handlers(void *unused)
{
    (void)unused;
    if (test_uffd_start(UFFD_FEATURE_EVENT_REMOVE) != 0)
        return TEST_SKIP;
    g_from = test_source(8, 11);
    with_fresh_pages(test_mmap_changing_copy);
    with_fresh_pages(test_mmap_changing_zeropage);
    with_fresh_pages(test_change_without_end_is_given_up);
    if (lm__uffd_can_share())
        test_mmap_changing_continue();
    return TEST_OK;
}

/* ---- through a region: the handlers read the events and pay them no heed ----------------- */

static struct test_store g_store;

static int with_handlers(void *unused)
{
    struct test_toucher toucher;
    struct lm_pager_stats since, now;
    lm_region *region;
    (void)unused;
    lm__uffd_ask_for(UFFD_FEATURE_EVENT_REMOVE);
    if (test_region_open(&g_store, &region) != 0)
        return TEST_SKIP;
    uint8_t *served = lm_region_addr(region);
    uint8_t *last_page = served + region->bytes - g_page;
    if (!test_two_handlers(region)) /* one reads, one fills */
        return TEST_OK;
    test_answers(&since);
    for (uint64_t c = 1; c < g_store.object->chunks - 1; c++) {
        uint64_t at = c << g_store.object->chunk_shift;
        test_hold("install");
        test_touch_start(&toucher, served + at);
        test_await_held();
        pthread_t changer = test_thread(give_back, last_page);
        test_let_go();
        test_touch_end(&toucher);
        pthread_join(changer, NULL);
        CHECK_EQ(toucher.got, g_store.data[at]);
        CHECK(!toucher.has_error);
    }
    CHECK(test_same(served, g_store.data, g_store.enc.object_bytes));
    CHECK_EQ(test_failures(region), 0);
    lm_pager_stats(&now);
    CHECK_EQ(now.refused + now.enoent, since.refused + since.enoent);
    lm_region_close(region);
    return TEST_OK;
}

int main(void)
{
    g_page = lm__page_bytes();
    struct lm_encoding enc = {.object_bytes = 64 * 4 * g_page,
                              .chunk_bytes = (uint32_t)(4 * g_page)};
    int rc = test_in_child(without_handlers, NULL);
    if (rc != TEST_OK)
        return rc;
    if (test_store_make(&g_store, enc, 22) != 0)
        return TEST_SKIP;
    CHECK_EQ(test_in_child(with_handlers, NULL), 0);
    test_store_close(&g_store);
    return TEST_OK;
}
