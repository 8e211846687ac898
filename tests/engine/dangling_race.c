/* SPDX-License-Identifier: BSD-3-Clause
 * Is a thread that touches a range's new owner spared the error of a handler which holds an old
 * event of the same thread, from when the range had another owner?
 */
#define _GNU_SOURCE
#include <semaphore.h>

#include "pause.h"

#define CHUNK_BYTES 65536u

static struct test_store g_store;
static lm_region *g_region;
static _Atomic int g_entered;
static sem_t g_old_entered, g_old_may_look, g_old_found_none, g_old_may_take,
    g_new_entered, g_new_may_go, g_closed, g_may_reopen;

static void hold_both(const char *point)
{
    if (strcmp(point, "no region") == 0) {
        sem_post(&g_old_found_none);
        sem_wait(&g_old_may_take);
    } else if (strcmp(point, "waiter entered") == 0) {
        switch (lm_add_seq_cst(&g_entered, 1)) {
        case 0:
            sem_post(&g_old_entered);
            sem_wait(&g_old_may_look);
            break;
        case 1:
            sem_post(&g_new_entered);
            sem_wait(&g_new_may_go);
            break;
        }
    }
}

static void *touch_both(void *old_addr)
{
    lm_region *renewed;
    const volatile uint8_t *served = old_addr;
    CHECK_EQ(served[CHUNK_BYTES], g_store.data[CHUNK_BYTES]);
    lm_region_close(g_region);
    test_regions_gone();
    sem_post(&g_closed);
    sem_wait(&g_may_reopen);
    CHECK_EQ(test_region_open(&g_store, &renewed), 0);
    CHECK(lm_region_addr(renewed) == old_addr); /* the slot freed last */
    CHECK_EQ(served[CHUNK_BYTES], g_store.data[CHUNK_BYTES]);
    CHECK_EQ(lm_failure_take(test_tid(), NULL), 0);
    return renewed;
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = 2 * CHUNK_BYTES,
                              .chunk_bytes = CHUNK_BYTES};
    sem_t *all[] = {&g_old_entered, &g_old_may_look, &g_old_found_none, &g_old_may_take,
                    &g_new_entered, &g_new_may_go,   &g_closed,         &g_may_reopen};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        CHECK_EQ(sem_init(all[i], 0, 0), 0);
    if (test_store_make(&g_store, enc, 41) != 0 ||
        test_region_open(&g_store, &g_region) != 0)
        return TEST_SKIP;
    if (!test_two_handlers(g_region))
        return test_skip("one core, and so one handler");

    void *renewed;
    lm_region_retain(g_region);
    lm_store_release(&lm__pause_hook, hold_both);
    pthread_t toucher = test_thread(touch_both, lm_region_addr(g_region));
    sem_wait(&g_old_entered);
    lm_region_fill_here(g_region, CHUNK_BYTES); /* which wakes the toucher */
    lm_region_close(g_region);
    sem_wait(&g_closed);
    sem_post(&g_old_may_look);
    sem_wait(&g_old_found_none);
    sem_post(&g_may_reopen);
    sem_wait(&g_new_entered);
    sem_post(&g_old_may_take);
    pthread_join(toucher, &renewed);
    sem_post(&g_new_may_go);
    lm_region_close(renewed);
    test_regions_gone();
    lm_store_release(&lm__pause_hook, NULL);
    test_store_close(&g_store);
    return TEST_OK;
}
