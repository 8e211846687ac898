/* SPDX-License-Identifier: BSD-3-Clause
 * pause.h - holds a thread of the engine at one of its pause points, so that a test can let
 * something happen in between, without sleeping and hoping.
 *
 *   test_hold("install"); touch();  test_await_held(); happen();  test_let_go();
 */
#ifndef LM_TEST_PAUSE_H
#define LM_TEST_PAUSE_H
#include "test.h"

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const char *point; /* under lock, as all below; NULL: nobody is to be held */
    int is_held;
    int may_go;
} g_pause = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static inline void test_pause(const char *point)
{
    pthread_mutex_lock(&g_pause.lock);
    if (g_pause.point && strcmp(g_pause.point, point) == 0) {
        g_pause.point = NULL;
        g_pause.is_held = 1;
        pthread_cond_broadcast(&g_pause.changed);
        while (!g_pause.may_go)
            pthread_cond_wait(&g_pause.changed, &g_pause.lock);
    }
    pthread_mutex_unlock(&g_pause.lock);
}

/* From now on the first thread that comes to `point` stays there. */
UNUSED static void test_hold(const char *point)
{
    pthread_mutex_lock(&g_pause.lock);
    g_pause.point = point;
    g_pause.is_held = g_pause.may_go = 0;
    pthread_mutex_unlock(&g_pause.lock);
    lm_store_release(&lm__pause_hook, test_pause);
}

UNUSED static void test_await_held(void)
{
    pthread_mutex_lock(&g_pause.lock);
    while (!g_pause.is_held)
        pthread_cond_wait(&g_pause.changed, &g_pause.lock);
    pthread_mutex_unlock(&g_pause.lock);
}

UNUSED static void test_let_go(void)
{
    pthread_mutex_lock(&g_pause.lock);
    g_pause.may_go = 1;
    pthread_cond_broadcast(&g_pause.changed);
    pthread_mutex_unlock(&g_pause.lock);
}

/* Read a byte of the region, and wait until a handler can be held while another one reads.
 * 0: this process may use one core, and has one handler. */
UNUSED static int test_two_handlers(const lm_region *region)
{
    struct lm_pager_stats stats;
    if (lm__cores() < 2)
        return 0;
    (void)*(const volatile uint8_t *)lm_region_addr(region);
    do {
        sched_yield();
        lm_pager_stats(&stats);
    } while (stats.handlers < 2);
    return 1;
}

#endif
