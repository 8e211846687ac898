/* SPDX-License-Identifier: BSD-3-Clause
 * writegate.c - whether chunks may become DIRTY now: not while a freeze is under way.
 *
 * (D2) Each side sets its flag before it reads the other's, at_work and is_freezing (Dekker's
 *      algorithm): so either a chunk is DIRTY before the freeze looks, or its writer waits
 *      for the freeze's end, which wakes it.
 */
#include <time.h>

#include "internal.h"

int lm__writes_begin(lm_region *r)
{
    lm_add_seq_cst(&r->writes.at_work, 1);
    if (!lm_load_seq_cst(&r->writes.is_freezing))
        return 1;
    lm__writes_end(r);
    return 0;
}

void lm__writes_end(lm_region *r) { lm_sub_acq_rel(&r->writes.at_work, 1); }

static void await_none_at_work(lm_region *r)
{
    const struct timespec pause = {.tv_nsec = 20000};
    lm_store_seq_cst(&r->writes.is_freezing, 1);
    while (lm_load_seq_cst(&r->writes.at_work) != 0)
        nanosleep(&pause, NULL);
}

void lm__writes_pause(lm_region *r)
{
    pthread_mutex_lock(&r->writes.pause);
    await_none_at_work(r);
    /* What was to be let be written ahead is not, after this. */
    lm_store_relaxed(&r->writes.next, 0);
    lm_store_relaxed(&r->writes.wire, 0);
}

int lm__writes_try_pause(lm_region *r)
{
    if (pthread_mutex_trylock(&r->writes.pause) != 0)
        return 0;
    await_none_at_work(r);
    return 1;
}

void lm__writes_resume(lm_region *r)
{
    lm_store_seq_cst(&r->writes.is_freezing, 0);
    pthread_mutex_unlock(&r->writes.pause);
    lm__waiters_wake((struct lm__span){r->addr, r->bytes});
}
