/* SPDX-License-Identifier: BSD-3-Clause
 * Does a thread hear of the failure that wakes it, whatever the handlers were about to do, and
 * hear of it once?
 */
#define _GNU_SOURCE
#include <semaphore.h>

#include "pause.h"

#define CHUNK_BYTES (2u << 20)
#define FAILURES    300 /* more than fault.c serves page by page */

static struct test_store g_store;
static lm_region *g_region;
static _Atomic int g_entered;
static sem_t g_second_entered, g_gone_on;

/* One handler fails to fill a chunk while another holds the event of a second thread that
 * touched it, which it does not get to look at until that thread has gone on. */
static void hold_the_second(const char *point)
{
    if (strcmp(point, "waiter entered") == 0 && lm_add_seq_cst(&g_entered, 1) == 1) {
        sem_post(&g_second_entered);
        sem_wait(&g_gone_on);
    } else if (strcmp(point, "fill failed") == 0 && lm_load_seq_cst(&g_entered) == 1) {
        sem_wait(&g_second_entered);
    }
}

static void *touch(void *is_second)
{
    struct lm_error err;
    const volatile uint8_t *served = lm_region_addr(g_region);
    /* A thread that is awake, and only about to touch the page, may find it there for the
     * other: it hears by the region's count, or of its next touch. */
    do
        CHECK_EQ(served[0], 0xFF);
    while (!lm_failure_take(test_tid(), &err));
    CHECK_EQ(err.code, LM_E_CLOSED);
    if (!is_second)
        return NULL;
    sem_post(&g_gone_on);
    while (lm_load_seq_cst(&g_region->faults) < 2 ||
           lm_load_seq_cst(&g_region->refs) > 1)
        sched_yield(); /* until the handlers have ended what they were at */
    CHECK_EQ(lm_failure_take(test_tid(), &err), 0);
    return NULL;
}

static void test_an_event_in_a_handlers_hand_is_heard_of_once(void)
{
    pthread_t first, second;
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    lm_region_release(g_region);
    lm_store_release(&lm__pause_hook, hold_the_second);
    first = test_thread(touch, NULL);
    while (lm_load_seq_cst(&g_entered) == 0)
        sched_yield();
    second = test_thread(touch, &g_region);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    lm_store_release(&lm__pause_hook, NULL);
    lm_region_close(g_region);
}

static void *touch_what_fails(void *unused)
{
    struct lm_error err;
    (void)unused;
    const volatile uint8_t *served = lm_region_addr(g_region);
    CHECK_EQ(served[0], 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, -ENXIO);
    return NULL;
}

/* Nobody is woken with false bytes as long as a handler has an event that nobody knows of. */
static void test_an_event_not_yet_entered_is_waited_for(void)
{
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    const uint8_t *served = lm_region_addr(g_region);
    if (test_two_handlers(g_region)) {
        lm_region_evict(g_region, 0, g_region->bytes);
        lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
        test_hold("event read");
        pthread_t first = test_thread(touch_what_fails, NULL);
        test_await_held();
        pthread_t second = test_thread(touch_what_fails, NULL);
        while (!lm__page_is_present((uintptr_t)served))
            sched_yield();
        for (int i = 0; i < 1000; i++) /* longer than it would take to wake them */
            sched_yield();
        CHECK(lm__page_is_present((uintptr_t)served));
        test_let_go();
        pthread_join(first, NULL);
        pthread_join(second, NULL);
        lm_inject(LM_INJECT_READ, 0, 0, 0);
    }
    lm_region_close(g_region);
}

/* What the application has written to a chunk is not lost, however often a page of it, which
 * the application has given back, can't be filled again. */
static void test_written_pages_outlive_failures(void)
{
    const size_t page_bytes = lm__page_bytes(), written = FAILURES * page_bytes;
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    volatile uint8_t *served = lm_region_addr(g_region);
    served[written] = 0x5A;
    CHECK_EQ(madvise((void *)served, written, MADV_DONTNEED), 0);
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    for (int i = 0; i < FAILURES; i++)
        CHECK_EQ(served[(size_t)i * page_bytes], 0xFF);
    CHECK(lm_region_settle(g_region) >= FAILURES); /* more if the machine was busy */
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK_EQ(lm_failure_take(test_tid(), NULL), 1);
    CHECK_EQ(served[written], 0x5A);
    lm_region_close(g_region);
}

int main(void)
{
    const uint32_t page_times = (uint32_t)(lm__page_bytes() / 4096);
    struct lm_encoding enc = {.object_bytes = CHUNK_BYTES * page_times,
                              .chunk_bytes = CHUNK_BYTES * page_times};
    if (enc.chunk_bytes > LM_CHUNK_BYTES_MAX)
        return test_skip("pages too large");
    if (test_store_make(&g_store, enc, 31) != 0 ||
        test_region_open(&g_store, &g_region) != 0)
        return TEST_SKIP;
    lm_region_close(g_region);
    CHECK(sem_init(&g_second_entered, 0, 0) == 0 && sem_init(&g_gone_on, 0, 0) == 0);
    test_an_event_not_yet_entered_is_waited_for(); /* before any fill has failed */
    test_an_event_in_a_handlers_hand_is_heard_of_once();
    test_written_pages_outlive_failures();
    test_store_close(&g_store);
    return TEST_OK;
}
