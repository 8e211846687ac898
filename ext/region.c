/* SPDX-License-Identifier: BSD-3-Clause
 * region.c - an object as memory: who owns an address, how long a region lives, and what it
 * looks like from outside.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "internal.h"

/* Of 0.1 ms: longer than any one failed fill leaves its bytes. */
#define SETTLE_TRIES 4000

/* ---- look-ups --------------------------------------------------------------------------------------- */

int lm__region_retain_live(lm_region *r)
{
    uint32_t refs = lm_load_relaxed(&r->refs);
    while (refs != 0)
        if (lm_cas_acq_rel(&r->refs, &refs, refs + 1))
            return 1;
    return 0;
}

static lm_region *find_locked(uintptr_t addr, struct lm__arena **arena)
{
    *arena = lm__arena_find_locked(addr);
    if (!*arena)
        return NULL;
    lm_region *r = (*arena)->regions[(addr - (*arena)->addr) >> (*arena)->slot_shift];
    return r && addr - r->addr < r->bytes && lm__region_retain_live(r) ? r : NULL;
}

lm_region *lm__region_find(uintptr_t addr)
{
    struct lm__arena *arena;
    lm__arenas_lock();
    lm_region *r = find_locked(addr, &arena);
    lm__arenas_unlock();
    return r;
}

int lm__region_dangling_code(uintptr_t addr)
{
    lm__arenas_lock();
    const struct lm__arena *a = lm__arena_find_locked(addr);
    const lm_region *r = a ? a->regions[(addr - a->addr) >> a->slot_shift] : NULL;
    lm__arenas_unlock();
    return r ? 0 : a ? LM_E_DANGLING : LM_E_LOST_MAPPING;
}

void lm__region_serve_dangling(uintptr_t addr)
{
    struct lm__arena *arena;
    uintptr_t page = lm__round_down(addr, lm__page_bytes());
    lm__arenas_lock();
    lm_region *r = find_locked(addr, &arena);
    if (!r)
        lm__uffd_copy(page, lm__ones, lm__page_bytes());
    if (arena && !r)
        arena->served_dangling = 1;
    lm__arenas_unlock();
    if (r) /* the slot has an owner again */
        lm__region_drop(r);
}

int lm__region_unprotect_dangling(uintptr_t addr)
{
    struct lm__arena *arena;
    uintptr_t page = lm__round_down(addr, lm__page_bytes());
    lm__arenas_lock();
    lm_region *r = find_locked(addr, &arena);
    int is_moved = !arena && lm__uffd_protect(page, lm__page_bytes(), 0) == 0;
    lm__arenas_unlock();
    if (r) /* a new one */
        lm__region_drop(r);
    return is_moved;
}

/* ---- lifetime ----------------------------------------------------------------------------------------- */

/* What the options ask for and this process can't do, or NULL. */
static const char *unsupported(const struct lm_region_options *options)
{
    if (!lm__uffd_is_open())
        return "userfaultfd";
    if (options->on_error == LM_ON_ERROR_SIGBUS && !lm__uffd_can_poison())
        return "UFFDIO_POISON, for on_error";
    if (options->page_bytes != 0 && !lm__uffd_can_hugetlb())
        return "userfaultfd for huge pages";
    if (options->shared && !lm__uffd_can_share())
        return "userfaultfd for shared memory";
    return NULL;
}

/* A fault where huge pages are allowed leaves no page table behind, and so a huge page can still
 * be moved there.  A first write would make one in vain: those who are written to do without. */
static void want_huge_pages(const lm_region *r)
{
    if (r->arena->slots == 1 && !r->is_writable && lm__region_can_move(r))
        madvise((void *)r->addr, r->bytes, MADV_HUGEPAGE);
}

int lm_region_open(lm_object *object, const struct lm_region_options *options,
                   lm_region **out, struct lm_error *err)
{
    static const struct lm_region_options none;
    if (!options)
        options = &none;
    const char *missing = unsupported(options);
    struct lm_error cause = lm__error(LM_E_NO_UFFD, missing ? missing : "region");
    cause.tag = object->spec.tag;
    if (missing)
        return lm__fail(err, cause);
    lm_region *r = calloc(1, sizeof *r);
    if (!r) {
        cause.code = -ENOMEM;
        return lm__fail(err, cause);
    }
    r->refs = 1;
    r->object = object;
    r->on_error = (enum lm_on_error)options->on_error;
    r->is_writable = options->is_writable || options->is_tracked;
    uint64_t object_bytes = object->spec.object_bytes;
    r->page_shift = lm__log2(object_bytes < options->page_bytes || !options->page_bytes
                                 ? lm__page_bytes()
                                 : options->page_bytes);
    r->chunk_shift =
        object->chunk_shift > r->page_shift ? object->chunk_shift : r->page_shift;
    r->bytes = lm__round_up(object_bytes, lm__region_page_bytes(r));
    if (options->is_tracked)
        r->tracking =
            lm__uffd_can_track(r->page_shift) ? LM_TRACK_PROTECT : LM_TRACK_ALL;
    pthread_mutex_init(&r->ahead.lock, NULL);
    pthread_mutex_init(&r->writes.pause, NULL);
    memset(r->ahead.history, 0xFF, sizeof r->ahead.history); /* LM_NONE */
    int rc =
        lm__chunks_init(&r->chunks, lm__div_up(object_bytes, 1ull << r->chunk_shift));
    if (rc != 0)
        goto free_region;
    if (options->budget) {
        rc = lm__evictor_start();
        if (rc == 0)
            rc = lm__budget_join(r, options->budget);
        if (rc != 0)
            goto fini_chunks;
    }
    if (options->shared && (rc = lm__share_join(r, options)) != 0)
        goto leave_budget;
    rc = lm__slot_take(r); /* from here on handlers find it */
    if (rc != 0)
        goto leave_budget;
    lm__object_retain(object);
    want_huge_pages(r);
    *out = r;
    return 0;

leave_budget:
    lm__share_leave(r);
    lm__budget_join(r, NULL);
fini_chunks:
    lm__chunks_fini(&r->chunks);
free_region:
    free(r);
    cause.code = rc;
    snprintf(cause.what, sizeof cause.what, "address space");
    cause.expected = object->spec.object_bytes;
    if (rc == LM_E_NO_HUGE_PAGES) {
        snprintf(cause.what, sizeof cause.what, "huge pages");
        cause.expected = lm__div_up(object_bytes, options->page_bytes);
    }
    return lm__fail(err, cause);
}

void lm_region_retain(lm_region *r) { lm_add_relaxed(&r->refs, 1); }

void lm__region_drop(lm_region *r)
{
    if (lm_sub_acq_rel(&r->refs, 1) != 1)
        return;
    lm__budget_join(r, NULL);
    free(r->charges.pins);
    lm__slot_give_back(r);
    lm__share_leave(r);
    lm__chunks_fini(&r->chunks);
    lm_object_close(r->object);
    free(r);
}

void lm_region_close(lm_region *r) { lm__region_drop(r); }

void lm_region_release(lm_region *r)
{
    lm_store_seq_cst(&r->lost, LM_E_CLOSED);
    /* A fill that ends after this finds another generation and takes its pages back; one
     * that ended before is swept here. */
    lm__chunks_forget_all(&r->chunks);
    lm__pages_drop(r->addr, r->bytes);
    lm__budget_release(r);
}

/* ---- what it looks like from outside -------------------------------------------------------------------- */

void *lm_region_addr(const lm_region *r) { return (void *)r->addr; }

uint64_t lm_region_chunk_bytes(const lm_region *r) { return 1ull << r->chunk_shift; }

struct lm__span lm__region_span(const lm_region *r, uint64_t chunk_idx)
{
    uint64_t offset = chunk_idx << r->chunk_shift, left = r->bytes - offset;
    size_t bytes = (size_t)1 << r->chunk_shift;
    return (struct lm__span){r->addr + offset, left < bytes ? (size_t)left : bytes};
}

struct lm__span lm__region_run_span(const lm_region *r, struct lm__run run)
{
    struct lm__span first = lm__region_span(r, run.first);
    struct lm__span last = lm__region_span(r, run.first + run.count - 1);
    return (struct lm__span){first.addr, last.addr + last.bytes - first.addr};
}

size_t lm__region_chunk_bytes(const lm_region *r, uint64_t chunk_idx)
{
    uint64_t left = r->object->spec.object_bytes - (chunk_idx << r->chunk_shift);
    size_t bytes = (size_t)1 << r->chunk_shift;
    return left < bytes ? (size_t)left : bytes;
}

int lm__region_can_move(const lm_region *r)
{
    return r->addr % LM_HUGE_BYTES == 0 && !lm__region_is_hugetlb(r) &&
           !lm__region_is_shared(r) && r->tracking == LM_TRACK_NONE &&
           lm__uffd_can_move() && lm__pages_can_be_huge();
}

void lm__region_blame(const lm_region *r, uint64_t chunk_idx, struct lm_error *err)
{
    err->tag = r->object->spec.tag;
    err->chunk_idx = chunk_idx << (r->chunk_shift - r->object->chunk_shift);
}

uint64_t lm_region_residency(const lm_region *r, uint64_t first_chunk, uint64_t chunks,
                             uint8_t *mask)
{
    uint64_t left = first_chunk < r->chunks.count ? r->chunks.count - first_chunk : 0;
    return lm__chunks_mark_resident(&r->chunks, first_chunk,
                                    chunks < left ? chunks : left, mask);
}

uint64_t lm_region_dirty(const lm_region *r)
{
    return lm_load_seq_cst(&r->lost) || r->tracking == LM_TRACK_NONE
               ? 0
               : lm_load_seq_cst(&r->chunks.dirty);
}

const uint64_t *lm_region_resident(const lm_region *r)
{
    return (const uint64_t *)&r->chunks.resident;
}

void lm_region_stats(const lm_region *r, struct lm_region_stats *out)
{
    /* A fill that ends during the release may still be counted, and is gone all the same. */
    int is_lost = lm_load_seq_cst(&r->lost);
    uint64_t resident = is_lost ? 0 : lm_load_relaxed(&r->chunks.resident);
    uint64_t bytes = resident << r->chunk_shift;
    *out = (struct lm_region_stats){
        .page_bytes = lm__region_page_bytes(r),
        .chunks_total = r->chunks.count,
        .chunks_resident = resident,
        .bytes_resident = bytes < r->bytes ? bytes : r->bytes,
        .faults = lm_load_relaxed(&r->faults),
        .fills = lm_load_relaxed(&r->fills),
        .zero_fills = lm_load_relaxed(&r->zero_fills),
        .failures = lm_load_relaxed(&r->failures),
        .stored_bytes_read = lm_load_relaxed(&r->stored_bytes_read),
        .chunks_dirty = lm_region_dirty(r),
        .write_faults = lm_load_relaxed(&r->writes.faults),
        .ahead = lm_load_relaxed(&r->ahead.chunks),
        .ahead_wasted = lm_load_relaxed(&r->ahead.wasted),
        .fills_shared = lm_load_relaxed(&r->share.fills),
    };
}

void lm_region_advise(lm_region *r, enum lm_advice advice)
{
    lm_store_relaxed(&r->ahead.advice, advice);
}

const struct lm_failure_counts *lm_region_failures(const lm_region *r)
{
    _Static_assert(sizeof(r->failures) == 8 && offsetof(lm_region, failures_over) ==
                                                   offsetof(lm_region, failures) + 8,
                   "struct lm_failure_counts, in place");
    return (const struct lm_failure_counts *)&r->failures;
}

uint64_t lm_region_settle(const lm_region *r)
{
    const struct timespec pause = {.tv_nsec = 100000};
    uint64_t over = lm_load_seq_cst(&r->failures_over);
    for (int i = 0; i < SETTLE_TRIES && over != lm_load_seq_cst(&r->failures); i++) {
        nanosleep(&pause, NULL);
        over = lm_load_seq_cst(&r->failures_over);
    }
    return over;
}

void lm__region_keep_error(lm_region *r, const struct lm_error *cause)
{
    lm__arenas_lock();
    r->last_error = *cause;
    lm__arenas_unlock();
    lm_add_seq_cst(&r->failures, 1); /* before the 0xFF bytes can be seen */
}

int lm_region_last_error(lm_region *r, struct lm_error *out)
{
    lm__arenas_lock();
    *out = r->last_error;
    lm__arenas_unlock();
    return out->code != 0;
}
