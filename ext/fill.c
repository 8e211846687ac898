/* SPDX-License-Identifier: BSD-3-Clause
 * fill.c - a claimed chunk gets its pages: decode, install, publish, wake.
 *
 * Chunks are filled for somebody who waits (fault.c), or ahead (prefetch.c).  Everything here
 * runs inside the gate.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "internal.h"

#define NO_MEMORY_RETRIES 5
#define COMPLETE_TRIES    200
#define ROOM_TRIES        40 /* of 0.05 ms: a snapshot may need the worker, to make room */

/* ---- filling --------------------------------------------------------------------------------- */

/* Before a tracked chunk is published: no page in it is to be false, (L1) of ones.c. */
static void await_taken_back(const lm_region *r)
{
    const struct timespec pause = {.tv_nsec = 50000};
    while (r->tracking != LM_TRACK_NONE && lm_load_seq_cst(&r->lent) != 0)
        nanosleep(&pause, NULL);
}

void lm__fill_unclaim(lm_region *r, uint64_t chunk_idx, enum lm__chunk_state from)
{
    await_taken_back(r);
    if (!lm__chunk_is_away(from) && lm__chunks_publish(&r->chunks, chunk_idx, 0))
        lm__waiters_wake(lm__region_span(r, chunk_idx)); /* its other pages are as
                                                          * good as they were: (C2) */
    else
        lm__run_abandon(r, (struct lm__run){chunk_idx, 1});
}

static int is_movable(const lm_region *r, struct lm__span span)
{
    return (span.addr | span.bytes) % LM_HUGE_BYTES == 0 && lm__region_can_move(r);
}

/* Zeros where nobody writes yet share the system's page of zeros.  Where `protect` is set it
 * is protected only after it could be written to: *is_written says if it may have been, which is
 * so where some pages could not be installed or protected. */
static enum lm__install install_zeros(struct lm__span span, int protect,
                                      int *is_written)
{
    enum lm__install answer = lm__uffd_zero(span.addr, span.bytes);
    lm__pause("zeros installed");
    if (protect)
        *is_written = lm__uffd_protect(span.addr, span.bytes, 1) != 0 ||
                      !lm__pages_are_zero(span.addr, span.bytes);
    return answer;
}

/* Pages of zeros that can be written to without another fault, or that are protected. */
static enum lm__install copy_zeros(struct lm__span span, int protect)
{
    enum lm__install answer = LM_INSTALLED;
    for (size_t done = 0; done < span.bytes && answer == LM_INSTALLED;
         done += sizeof lm__zeros) {
        size_t left = span.bytes - done,
               bytes = left < sizeof lm__zeros ? left : sizeof lm__zeros;
        answer = protect ? lm__uffd_copy_protected(span.addr + done, lm__zeros, bytes,
                                                   lm__log2(lm__page_bytes()))
                         : lm__uffd_copy(span.addr + done, lm__zeros, bytes);
    }
    return answer;
}

/* How chunks come to tracked memory. */
struct manner {
    int is_write;   /* for somebody who is about to write */
    int is_written; /* they are to be DIRTY */
    int is_frozen;  /* nobody may write to them as yet */
    int is_spilled; /* they come from there, and are protected: so they equal it */
    int must_end;   /* lm__writes_end(), when they are */
    int has_begun;  /* some pages may be there */
};

/* Before pages are there that anybody can write to. */
static void writes_begin(lm_region *r, int is_zero, struct manner *manner)
{
    if (r->tracking != LM_TRACK_PROTECT || manner->is_written || manner->is_frozen ||
        !(manner->is_write || is_zero))
        return;
    manner->must_end = lm__writes_begin(r);
    manner->is_written = manner->must_end && manner->is_write;
}

static enum lm__install install_once(const lm_region *r, struct lm__span span,
                                     const struct lm__block *block,
                                     struct manner *manner)
{
    int protect = r->tracking == LM_TRACK_PROTECT && !manner->is_written;
    if (lm__region_is_shared(r))
        return lm__share_install(r, (span.addr - r->addr) >> r->chunk_shift,
                                 block->data);
    if (block->is_zero && !lm__region_is_hugetlb(r)) {
        if (manner->is_write ||
            (protect && !(manner->must_end && lm__pages_can_tell_zero())))
            return copy_zeros(span, protect);
        return install_zeros(span, protect, &manner->is_written);
    }
    if (protect)
        return lm__uffd_copy_protected(span.addr, block->data, span.bytes,
                                       r->page_shift);
    if (lm__region_is_hugetlb(r))
        return lm__uffd_copy_huge(span.addr, block->data, span.bytes, r->page_shift);
    return lm__uffd_copy(span.addr, block->data, span.bytes);
}

/* Move what can be moved into the region, so that less of span and block is left to copy. */
static void move(struct lm__scratch *scratch, struct lm__span *span,
                 struct lm__block *block)
{
    size_t moved = lm__uffd_move(span->addr, block->data, span->bytes);
    if (moved > 0)
        scratch->block_state = LM_BLOCK_EMPTY;
    span->addr += moved;
    span->bytes -= moved;
    block->data += moved;
}

enum { DROPPED = 1 };

/* Decoded bytes into the region's memory.  0, DROPPED if nobody is left who could want them,
 * or an error. */
static int install(lm_region *r, struct lm__span span, struct lm__block block,
                   struct manner *manner, struct lm_error *err)
{
    enum lm__install answer = LM_NO_MEMORY;
    for (int retries = 0; answer == LM_NO_MEMORY && retries <= NO_MEMORY_RETRIES;
         retries++) {
        struct timespec pause = {.tv_nsec = retries * 2000000L};
        if (retries > 0)
            nanosleep(&pause, NULL);
        answer = install_once(r, span, &block, manner);
    }
    switch (answer) {
    case LM_INSTALLED: return 0;
    case LM_EXITING: return DROPPED;
    case LM_NO_MEMORY: return lm__fail(err, lm__error(-ENOMEM, "memory for the chunk"));
    case LM_VANISHED:
        if (lm_load_seq_cst(&r->lost))
            return lm__fail(err, lm__error(lm_load_seq_cst(&r->lost), "array"));
        break;
    case LM_REFUSED: break;
    }
    return lm__fail(err, lm__error(LM_E_LOST_MAPPING, "mapping"));
}

/* What was written to a chunk and has been spilled. */
static int decode_spilled(const lm_region *r, uint64_t chunk_idx,
                          struct lm__block *block, struct lm__scratch *scratch,
                          struct lm_error *err)
{
    const struct lm__extent *extent = lm__chunks_extent(&r->chunks, chunk_idx);
    size_t bytes = lm__region_chunk_bytes(r, chunk_idx);
    int rc = lm__extent_read(extent, r->object->spec.shuffle_width, bytes, scratch,
                             &block->data, err);
    block->is_zero = rc == LM_ZERO_CHUNK;
    if (rc == LM_ZERO_CHUNK && lm__region_is_hugetlb(r)) {
        rc = lm__scratch_reserve(scratch, block->bytes);
        block->data = scratch->a;
        bytes = 0;
    }
    if (rc < 0) {
        lm__region_blame(r, chunk_idx, err);
        snprintf(err->what, sizeof err->what, "payload in the spill file");
        return rc;
    }
    if (block->data)
        memset(block->data + bytes, 0, block->bytes - bytes);
    return 0;
}

/* 0, DROPPED, or an error; *block is what was decoded. */
static int decode_and_install(lm_region *r, struct lm__run run, struct lm__block *block,
                              struct manner *manner, struct lm__scratch *scratch,
                              struct lm_error *err)
{
    struct lm__span span = lm__region_run_span(r, run);
    int can_move = is_movable(r, span);
    *block = (struct lm__block){.offset = span.addr - r->addr,
                                .bytes = span.bytes,
                                .is_apart = can_move || lm__region_is_hugetlb(r)};
    int rc = 0;
    if (manner->is_spilled)
        rc = decode_spilled(r, run.first, block, scratch, err);
    else if ((rc = lm__share_begin(r, run.first, err)) > 0)
        rc = lm__block_decode(r->object, block, scratch, err);
    lm__pause("install");
    if (rc != 0)
        return rc;
    writes_begin(r, block->is_zero, manner); /* ended by the caller */
    manner->has_begun = 1;
    struct lm__block left = *block;
    if (can_move && !block->is_zero && scratch->block_state == LM_BLOCK_HUGE)
        move(scratch, &span, &left);
    rc = install(r, span, left, manner, err);
    if (rc < 0)
        lm__region_blame(r, run.first, err);
    return rc;
}

/* 1 if an install that has failed leaves pages that others may have written to meanwhile: the
 * chunk is in memory then, with pages missing, and who touches one of those is told. */
static int is_to_be_kept(lm_region *r, struct lm__run run, enum lm__chunk_state from,
                         const struct manner *manner)
{
    if (!manner->has_begun || r->tracking == LM_TRACK_NONE)
        return 0;
    if (manner->is_written)
        return from == LM_CHUNK_ABSENT || from == LM_CHUNK_CLEAN;
    if (lm__chunk_is_away(from)) { /* it has no pages, whatever becomes of it */
        struct lm__span span = lm__region_run_span(r, run);
        lm__pages_drop(span.addr, span.bytes);
    }
    return 0;
}

/* Pages that were lent to a chunk while it was filled are gone by now.  What is missing later is
 * taken from the base, so of a chunk that came from the spill file nothing may be.  Else it is put
 * back there, with an error. */
static int complete(lm_region *r, struct lm__run run, struct lm__block *block,
                    struct manner *manner, struct lm_error *err)
{
    struct lm__span span = lm__region_run_span(r, run);
    int rc = 0;
    for (int tries = 0; rc == 0 && !lm__pages_are_present(span.addr, span.bytes);
         tries++)
        rc = tries < COMPLETE_TRIES
                 ? install(r, span, *block, manner, err)
                 : lm__fail(err, lm__error(LM_E_LOST_MAPPING, "mapping"));
    if (rc == 0)
        return 0;
    lm__pages_drop(span.addr, span.bytes);
    if (rc == DROPPED)
        rc = lm__fail(err, lm__error(LM_E_LOST_MAPPING, "mapping"));
    lm__region_blame(r, run.first, err);
    return rc;
}

/* Fill chunks that the caller has claimed in state `from`.  On failure they still are. */
static int fill_run(lm_region *r, struct lm__run run, enum lm__chunk_state from,
                    struct lm__scratch *scratch, struct lm_error *err)
{
    struct lm__block block;
    /* Of a chunk that was written, what is missing may be written, too. */
    int is_spilled = from == LM_CHUNK_SPILLED;
    int was_written = from != LM_CHUNK_ABSENT && from != LM_CHUNK_CLEAN && !is_spilled;
    struct manner manner = {
        .is_write =
            scratch->toucher_writes && r->tracking != LM_TRACK_NONE && !is_spilled,
        .is_written = was_written || r->tracking == LM_TRACK_ALL,
        .is_frozen = is_spilled,
        .is_spilled = is_spilled,
    };
    if (was_written) /* what comes is older */
        lm__chunks_drop_extent(&r->chunks, run.first);
    lm__kept_drop_in(lm__region_run_span(r, run)); /* false bytes are not data: (K1) */
    int rc = lm__chunk_is_away(from) ? lm__evict_for(r, run, err) : 0;
    if (rc < 0)
        return rc;
    rc = decode_and_install(r, run, &block, &manner, scratch, err);
    lm__pause("publish");
    if (rc < 0)
        lm__share_give_up(r, run.first);
    if (rc < 0 && is_to_be_kept(r, run, from, &manner))
        rc = 0;
    if (rc != 0 && manner.must_end)
        lm__writes_end(r);
    if (rc != 0 && lm__chunk_is_away(from))
        lm__budget_uncharge(r, run, 0);
    if (rc < 0)
        return rc;
    if (rc == DROPPED) {
        lm__run_abandon(r, run);
        return 0;
    }
    lm_add_relaxed(&r->fills, run.count);
    lm_add_relaxed(&r->zero_fills, block.is_zero ? run.count : 0);
    lm_add_relaxed(&r->stored_bytes_read, block.stored_bytes);
    /* Before it can be woken, and wait anew. */
    if (scratch->toucher_page != 0) {
        lm__waiter_take(
            (struct lm__waiter){scratch->toucher_page, scratch->toucher_tid});
        lm__interrupt_end(scratch->toucher_tid);
    }
    await_taken_back(r);
    if (is_spilled && (rc = complete(r, run, &block, &manner, err)) != 0) {
        lm__budget_uncharge(r, run, 0);
        return rc;
    }
    if (lm__chunk_is_away(from))
        lm__budget_filled(r, run);
    for (uint64_t i = 0; i < run.count; i++)
        if (!lm__chunks_publish(&r->chunks, run.first + i, manner.is_written)) {
            /* Released meanwhile. */
            struct lm__span span = lm__region_span(r, run.first + i);
            lm__pages_drop(span.addr, span.bytes);
            lm__chunks_forget(&r->chunks, run.first + i);
        }
    if (manner.must_end)
        lm__writes_end(r);
    lm__waiters_wake(lm__region_run_span(r, run));
    return 0;
}

int lm__fill_in_place(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch,
                      struct lm_error *err)
{
    struct lm__block block;
    struct manner manner = {.is_frozen = 1};
    struct lm__run run = {chunk_idx, 1};
    int rc = decode_and_install(r, run, &block, &manner, scratch, err);
    if (rc >= 0)
        lm__waiters_wake(lm__region_run_span(r, run));
    return rc < 0 ? rc : 0;
}

int lm__fill(lm_region *r, uint64_t chunk_idx, enum lm__chunk_state from,
             struct lm__scratch *scratch, struct lm_error *err)
{
    return fill_run(r, (struct lm__run){chunk_idx, 1}, from, scratch, err);
}

/* ---- ahead ------------------------------------------------------------------------------------- */

/* 1 if there is nothing left to do, 0 if another thread is filling the chunk. */
static int try_ahead(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch,
                     int *rc, struct lm_error *err)
{
    enum lm__chunk_state state = lm__chunks_state(&r->chunks, chunk_idx);
    *rc = 0;
    if (lm_load_seq_cst(&r->lost) || lm__chunk_is_resident(state))
        return 1;
    enum lm__chunk_state from =
        state == LM_CHUNK_SPILLED ? LM_CHUNK_SPILLED : LM_CHUNK_ABSENT;
    int claimed = lm__chunks_claim(&r->chunks, chunk_idx, from);
    if (claimed < 0)
        *rc = lm__fail(err, lm__error(claimed, "memory for the chunk's state"));
    if (claimed <= 0)
        return claimed < 0;
    /* A release that came before the claim is seen here, a later one by publish. */
    if (lm_load_seq_cst(&r->lost) ||
        (*rc = lm__fill(r, chunk_idx, from, scratch, err)) < 0)
        lm__run_abandon(r, (struct lm__run){chunk_idx, 1});
    if (*rc == LM_E_CLOSED)
        *rc = 0;
    return 1;
}

static int try_ahead_in_gate(lm_region *r, uint64_t chunk_idx,
                             struct lm__scratch *scratch, int *rc, struct lm_error *err)
{
    lm__gate_enter(scratch);
    int is_done = try_ahead(r, chunk_idx, scratch, rc, err);
    lm__gate_leave();
    return is_done;
}

int lm__fill_ahead(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch,
                   struct lm_error *err)
{
    const struct timespec pause = {.tv_nsec = 50000};
    int rc, tries = 0;
    do {
        if (tries++ > 0)
            nanosleep(&pause, NULL);
        while (!try_ahead_in_gate(r, chunk_idx, scratch, &rc, err))
            nanosleep(&pause, NULL);
    } while (rc == LM_LATER && tries < ROOM_TRIES && !scratch->is_cached_only);
    return rc == LM_LATER ? 0 : rc;
}

int lm__fill_readahead(lm_region *r, uint64_t chunk_idx, int is_write,
                       struct lm__scratch *scratch, struct lm_error *err)
{
    int rc;
    if (lm__share_is_begun(r, chunk_idx))
        return 0;
    if (is_write && r->chunk_shift == r->object->chunk_shift &&
        lm__object_is_zero(r->object, chunk_idx, scratch) == 1)
        return 0;
    try_ahead_in_gate(r, chunk_idx, scratch, &rc, err);
    return rc == LM_LATER ? 0 : rc;
}

/* All of them, if all are ABSENT and none is zero: those are to take no memory. */
static int claim_run(lm_region *r, struct lm__run run, struct lm__scratch *scratch)
{
    for (uint64_t i = 0; i < run.count; i++)
        if (lm__object_is_zero(r->object, run.first + i, scratch) != 0)
            return 0;
    for (uint64_t i = 0; i < run.count; i++)
        if (lm__chunks_claim(&r->chunks, run.first + i, LM_CHUNK_ABSENT) <= 0) {
            if (i > 0)
                lm__run_abandon(r, (struct lm__run){run.first, i});
            return 0;
        }
    return 1;
}

int lm__fill_ahead_side_by_side(lm_region *r, uint64_t first, uint64_t count,
                                struct lm__scratch *scratch)
{
    struct lm__run run = {first, count};
    struct lm_error untold;
    int is_filled = 0;
    if (!is_movable(r, lm__region_run_span(r, run)))
        return 0;
    lm__gate_enter(scratch);
    if (!lm_load_seq_cst(&r->lost) && claim_run(r, run, scratch)) {
        is_filled = !lm_load_seq_cst(&r->lost) &&
                    fill_run(r, run, LM_CHUNK_ABSENT, scratch, &untold) == 0;
        if (!is_filled)
            lm__run_abandon(r, run);
    }
    lm__gate_leave();
    return is_filled;
}
