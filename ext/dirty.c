/* SPDX-License-Identifier: BSD-3-Clause
 * dirty.c - which chunks of tracked memory are written: the first write to a clean one faults.
 *
 *   CLEAN, all pages write-protected --fault--> DIRTY, none protected: no more faults
 *
 * (D1) A chunk is DIRTY before its first page can be written.
 * (D2) While a freeze is under way no chunk becomes DIRTY: who wants to write waits until its
 *      end.  Pairs of flags that each side sets before it reads the other's see to that
 *      (Dekker's algorithm): at_work and is_freezing.
 *
 * Who writes chunk after chunk would fault at each.  So a run lets ever more of what follows be
 * written at once; what is not written after all is found equal when it is to be stored.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <time.h>

#include "internal.h"

#define RUN_BYTES_MAX ((uint64_t)2 << 20)

int lm__writes_begin(lm_region *r)
{
    lm_add_seq_cst(&r->writes.at_work, 1);
    if (!lm_load_seq_cst(&r->writes.is_freezing))
        return 1;
    lm__writes_end(r);
    return 0;
}

void lm__writes_end(lm_region *r) { lm_sub_acq_rel(&r->writes.at_work, 1); }

void lm__writes_pause(lm_region *r)
{
    const struct timespec pause = {.tv_nsec = 20000};
    lm_store_seq_cst(&r->writes.is_freezing, 1);
    while (lm_load_seq_cst(&r->writes.at_work) != 0)
        nanosleep(&pause, NULL);
}

void lm__writes_resume(lm_region *r)
{
    lm_store_seq_cst(&r->writes.is_freezing, 0);
    lm__waiters_wake((struct lm__span){r->addr, r->bytes});
}

/* How many chunks, from one that is written first, to let be written. */
static uint64_t run_from(lm_region *r, uint64_t chunk_idx)
{
    uint64_t most = RUN_BYTES_MAX >> r->chunk_shift;
    uint64_t run = 1;
    if (lm_load_relaxed(&r->writes.next) == chunk_idx && chunk_idx > 0)
        run = 2 * lm_load_relaxed(&r->writes.run);
    return run > most && most > 0 ? most : run;
}

/* CLEAN -> DIRTY for the chunks that follow, as far as they are CLEAN. */
static void let_write(lm_region *r, uint64_t chunk_idx)
{
    uint64_t wanted = run_from(r, chunk_idx), run = 1;
    while (run < wanted && chunk_idx + run < r->chunks.count &&
           lm__chunks_move(&r->chunks, chunk_idx + run, LM_CHUNK_CLEAN, LM_CHUNK_DIRTY))
        run++;
    lm_store_relaxed(&r->writes.next, chunk_idx + run);
    lm_store_relaxed(&r->writes.run, run);
    struct lm__span first = lm__region_span(r, chunk_idx);
    struct lm__span last = lm__region_span(r, chunk_idx + run - 1);
    struct lm__span span = {first.addr, last.addr + last.bytes - first.addr};
    lm__pause("let write");
    /* Where the mapping was changed from outside it may fail: then the next write faults. */
    lm__uffd_protect(span.addr, span.bytes, 0);
    lm__waiters_wake(span);
}

void lm__write_serve(lm_region *r, uint64_t chunk_idx, const struct lm__fault *fault)
{
    lm_add_relaxed(&r->writes.faults, 1);
    if (!lm__writes_begin(r))
        return; /* the freeze's end wakes the thread */
    for (int is_served = 0; !is_served;) {
        enum lm__chunk_state state = lm__chunks_state(&r->chunks, chunk_idx);
        is_served = 1;
        switch (state) {
        case LM_CHUNK_FILLING:
        case LM_CHUNK_REFILLING:
        case LM_CHUNK_COPYING: break; /* whose end wakes it, too */
        case LM_CHUNK_FROZEN: lm__freeze_hurry(r, chunk_idx); break;
        case LM_CHUNK_CLEAN:
        case LM_CHUNK_SAVED:
            is_served = lm__chunks_move(&r->chunks, chunk_idx, state, LM_CHUNK_DIRTY);
            if (is_served)
                let_write(r, chunk_idx);
            break;
        case LM_CHUNK_DIRTY: let_write(r, chunk_idx); break;
        case LM_CHUNK_ABSENT: /* dropped meanwhile: it faults anew */
            lm__waiters_wake(
                (struct lm__span){lm__waiter_of(fault).page, lm__page_bytes()});
            break;
        }
    }
    lm__writes_end(r);
}
