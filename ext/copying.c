/* SPDX-License-Identifier: BSD-3-Clause
 * copying.c - who copies which chunk, and the handlers that bring him pages of it meanwhile.
 *
 * A chunk that is copied belongs to who copies it, and a page may be missing: the application may
 * have given it back.  So a fault of his there is served at once, and a copy ends when those who
 * serve it have, so that no page comes late.
 */
#include <errno.h>
#include <time.h>

#include "internal.h"

#define COPIERS_MAX 128 /* more than there are workers, the copier and the evictor */

static struct {
    _Atomic int32_t tid; /* 0: a free place */
    _Atomic uintptr_t addr;
    _Atomic int at_work;
    _Atomic int has_failed; /* to get a page */
} g_copiers[COPIERS_MAX];

static int is_of(size_t copier, int32_t tid, uintptr_t addr)
{
    return tid != 0 && lm_load_seq_cst(&g_copiers[copier].tid) == tid &&
           lm_load_seq_cst(&g_copiers[copier].addr) == addr;
}

int lm__copier_serve_begin(const lm_region *r, uint64_t chunk_idx, int32_t tid)
{
    uintptr_t addr = lm__region_span(r, chunk_idx).addr;
    for (int i = 0; i < COPIERS_MAX; i++) {
        if (!is_of((size_t)i, tid, addr))
            continue;
        lm_add_seq_cst(&g_copiers[i].at_work,
                       1); /* before it looks: pairs with leave() */
        if (is_of((size_t)i, tid, addr))
            return i;
        lm__copier_serve_end(i);
    }
    return -1;
}

void lm__copier_serve_end(int copier) { lm_sub_acq_rel(&g_copiers[copier].at_work, 1); }

void lm__copier_fail(int copier) { lm_store_seq_cst(&g_copiers[copier].has_failed, 1); }

static size_t enter(uintptr_t addr)
{
    size_t i = 0;
    int32_t nobody = 0;
    while (!lm_cas_acq_rel(&g_copiers[i].tid, &nobody, lm__thread_id())) {
        nobody = 0;
        i = (i + 1) % COPIERS_MAX;
    }
    lm_store_seq_cst(&g_copiers[i].addr, addr);
    return i;
}

/* 1 if a page could not be had. */
static int leave(size_t i)
{
    const struct timespec pause = {.tv_nsec = 20000};
    lm_store_seq_cst(&g_copiers[i].addr, 0);
    while (lm_load_seq_cst(&g_copiers[i].at_work) != 0)
        nanosleep(&pause, NULL);
    int has_failed = lm_swap_seq_cst(&g_copiers[i].has_failed, 0);
    lm_store_seq_cst(&g_copiers[i].tid, 0);
    return has_failed;
}

/* The application wrote to these pages before they were protected, which a sanitizer of threads
 * does not know of; it looks into memcpy(), too. */
#ifdef __SANITIZE_THREAD__
__attribute__((no_sanitize("thread"))) static void copy_bytes(uint8_t *to,
                                                              const uint8_t *from,
                                                              size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        *(volatile uint8_t *)(to + i) = from[i];
}
#else
#define copy_bytes memcpy
#endif

/* Poison is not for who copies: the page is filled once more. */
static void clear_poison(const lm_region *r, struct lm__span span)
{
    size_t page_bytes = lm__region_page_bytes(r);
    if (r->on_error != LM_ON_ERROR_SIGBUS || lm_load_seq_cst(&r->failures) == 0)
        return;
    for (uintptr_t page = span.addr; page < span.addr + span.bytes; page += page_bytes)
        if (lm__page_is_poisoned(page))
            lm__pages_drop(page, page_bytes);
}

int lm__chunk_copy(const lm_region *r, uint64_t chunk_idx, uint8_t *to)
{
    struct lm__span span = lm__region_span(r, chunk_idx);
    size_t copier = enter(span.addr);
    lm__pause("copying");
    clear_poison(r, span);
    copy_bytes(to, (const uint8_t *)span.addr, lm__region_chunk_bytes(r, chunk_idx));
    int has_failed = leave(copier);
    int lost = lm_load_seq_cst(&r->lost);
    if (lost) /* what was filled since goes as well */
        lm__pages_drop(span.addr, span.bytes);
    return lost ? lost : has_failed ? -EIO : 0;
}

void lm__copiers_fork_child(void) { memset(g_copiers, 0, sizeof g_copiers); }
