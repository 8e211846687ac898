/* SPDX-License-Identifier: BSD-3-Clause
 * ones.c - what a thread reads of a page that can't be filled: 0xFF, and an error with it.
 *
 * A fill that fails must let the faulting instruction end, and must not let anybody take what
 * it reads for data.  So: the error is left for the thread (failure.c), the page is filled
 * with 0xFF (NaN for every IEEE float) for as long as the instruction needs, and is then
 * dropped again.  All the while the chunk is FILLING: a later touch tries anew, so damage that
 * was transient heals.
 *
 * Another thread may read that page in that short while without a fault.  Whoever reads
 * through LazyArray learns of it by lm_region_failures(); whoever reads on, through any
 * pointer, meets a page that is still absent, and its error.  Only a thread that has met a
 * lot of damage, in one operation, is given whole chunks, and for longer, to get to the end of
 * it (kept.c).
 *
 * (L1) A false page in a tracked chunk is gone before the chunk can be written to.  Where the
 *      one who lends it has claimed the chunk, it is gone before he gives it up.  Where another
 *      thread fills the chunk, that one waits: when he has installed his pages he finds that
 *      one is lent, or they are all his, and none can be lent any more.
 *
 * An instruction can need two pages, and both may fail.  So a page that fails again comes
 * with its neighbours and stays for longer than it took to fail; and a handler that lets
 * time pass sees to it that another one reads.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <time.h>

#include "internal.h"

#define ANNOUNCE_TRIES                                                                 \
    20 /* a toucher may hold the runtime's lock now, but seldom later */
#define PAGEWISE_MAX         256 /* failures of a thread, until speed matters more: see above */
#define LINGER_NS            100000L /* a woken thread runs within tens of microseconds ... */
#define LINGER_DOUBLINGS_MAX 7 /* ... unless the machine is overloaded: up to 13 ms */
#define TOOK_NS_MAX          100000000u /* lm_region_settle() waits for that, too */

/* Leave the cause for thread `tid`, if it is not 0, and everybody who waits for a page of the
 * span.  Returns how many failures the one who has met the fewest has met. */
static unsigned report_to_all(const struct lm__failed *f, int32_t tid)
{
    /* The page for which a thread does not want to wait may be another's, too. */
    enum lm__waiter_kind kind = f->is_interrupt ? LM_WAITER_ANY : LM_WAITER_UNSERVED;
    unsigned fewest = UINT_MAX;
    if (tid == 0)
        tid = lm__waiter_take_in(f->span, kind);
    for (; tid != 0; tid = lm__waiter_take_in(f->span, kind)) {
        lm__interrupt_end(tid);
        unsigned repeats = lm__failure_report(tid, f->cause);
        unsigned met = lm__kept_count(tid);
        if (repeats <= ANNOUNCE_TRIES && f->cause->code != -EINTR)
            lm__failure_wait_announced(tid, LM_ANNOUNCE_MS);
        if (met < fewest)
            fewest = met;
    }
    return fewest;
}

/* ---- the bytes ------------------------------------------------------------------------------- */

const uint8_t lm__ones[LM_ONES_BYTES] = {[0 ... LM_ONES_BYTES - 1] = 0xFF};

/* Pages of a region, and 0xFF to fill a page of them, or more. */
struct ones {
    const lm_region *region;
    struct lm__span span;
    const uint8_t *bytes; /* NULL: there was no memory */
    size_t count;
    int is_protected; /* from writes, which would be lost with the page */
    int is_lent;      /* one page, in a chunk that has others; it may be there */
};

static struct ones ones_for(const lm_region *r, struct lm__span span,
                            struct lm__scratch *scratch)
{
    struct ones ones = {r, span, lm__ones, sizeof lm__ones, 0, 0};
    if (lm__region_is_hugetlb(r)) {
        ones.count = lm__region_page_bytes(r);
        ones.bytes = lm__block_ones(scratch, ones.count);
    }
    return ones;
}

static int is_installed(const struct ones *ones, uintptr_t addr, size_t bytes)
{
    enum lm__install answer = LM_NO_MEMORY;
    if (ones->bytes && ones->is_protected)
        answer =
            lm__uffd_copy_protected(addr, ones->bytes, bytes, ones->region->page_shift);
    else if (ones->bytes && lm__region_is_shared(ones->region))
        answer = lm__share_install_false(ones->region, (struct lm__span){addr, bytes},
                                         ones->bytes);
    else if (ones->bytes && lm__region_is_hugetlb(ones->region))
        answer = lm__uffd_copy_huge(addr, ones->bytes, bytes, ones->region->page_shift);
    else if (ones->bytes)
        answer = lm__uffd_copy(addr, ones->bytes, bytes);
    return answer == LM_INSTALLED;
}

/* 1: all pages of the span are there, ours if they are lent.  0: some are not, and may be
 * somebody else's. */
static int ones_install(const struct ones *ones)
{
    int are_there = 1;
    if (ones->is_lent)
        return ones->bytes &&
               lm__uffd_lend(ones->span.addr, ones->bytes, ones->region->page_shift,
                             ones->is_protected);
    for (size_t done = 0; done < ones->span.bytes; done += ones->count) {
        size_t left = ones->span.bytes - done;
        are_there &= is_installed(ones, ones->span.addr + done,
                                  left < ones->count ? left : ones->count);
    }
    return are_there;
}

/* Give false bytes back.  The kernel finds a page there only if it is still ours. */
static void ones_take_back(const struct ones *ones, int are_there)
{
    struct lm__span span = ones->span;
    size_t page_bytes = lm__region_page_bytes(ones->region);
    if (are_there || lm__region_is_shared(ones->region)) {
        lm__pages_drop(span.addr, span.bytes);
        return;
    }
    if (ones->is_lent)
        return;
    for (uintptr_t page = span.addr; page < span.addr + span.bytes; page += page_bytes)
        if (is_installed(ones, page, page_bytes))
            lm__pages_drop(page, page_bytes);
}

/* ---- for how long ------------------------------------------------------------------------------ */

/* How often the page has failed, as far as is remembered, before now. */
static unsigned count_failure(uintptr_t page, unsigned page_shift)
{
    static struct {
        _Atomic uintptr_t page;
        _Atomic unsigned times;
    } lately[64]; /* neighbours have places of their own */
    size_t i = (page >> page_shift) % (sizeof lately / sizeof lately[0]);
    if (lm_load_relaxed(&lately[i].page) != page)
        lm_store_relaxed(&lately[i].times, 0);
    lm_store_relaxed(&lately[i].page, page);
    return lm_add_relaxed(&lately[i].times, 1);
}

/* Give the woken thread time to end its instruction.  A page that fails again says that it
 * was not enough: perhaps for another page to fail, which takes as long as this one took. */
static void linger(unsigned times, uint64_t took_ns)
{
    unsigned doublings = times < LINGER_DOUBLINGS_MAX ? times : LINGER_DOUBLINGS_MAX;
    uint64_t ns = LINGER_NS << doublings;
    if (times > 0)
        ns += 2 * (took_ns < TOOK_NS_MAX ? took_ns : TOOK_NS_MAX);
    struct timespec pause = {.tv_nsec = (long)ns};
    nanosleep(&pause, NULL);
}

/* ---- serving ---------------------------------------------------------------------------------- */

struct lm__failed lm__failed_fault(const lm_region *r, uint64_t chunk_idx,
                                   const struct lm__fault *fault)
{
    return (struct lm__failed){
        .tid = fault->tid ? fault->tid : -1,
        .page = lm__round_down(fault->addr, lm__region_page_bytes(r)),
        .span = lm__region_span(r, chunk_idx),
        .is_write = fault->is_write,
        .from = LM_CHUNK_ABSENT,
        .began_ns = lm__now_ns(),
    };
}

/* The pages to fill with 0xFF; none that holds what the application has written. */
static struct lm__span false_span(const lm_region *r, const struct lm__failed *f,
                                  unsigned met, unsigned times)
{
    size_t page_bytes = lm__region_page_bytes(r);
    uintptr_t low = f->span.addr, high = f->span.addr + f->span.bytes;
    if ((met <= PAGEWISE_MAX && !f->is_interrupt) || f->from != LM_CHUNK_ABSENT) {
        size_t beside = times > 0 && f->from == LM_CHUNK_ABSENT ? page_bytes : 0;
        low = f->page - low > beside ? f->page - beside : low;
        high =
            high - f->page > page_bytes + beside ? f->page + page_bytes + beside : high;
    }
    return (struct lm__span){low, high - low};
}

/* The page is dead, and whoever waits for it finds out; others who wait for the chunk fault
 * again. */
static void poison(lm_region *r, const struct lm__failed *f)
{
    lm__region_keep_error(r, f->cause);
    lm__uffd_poison(f->page, lm__region_page_bytes(r));
    lm_add_seq_cst(&r->failures_over, 1);
    lm__waiters_wake(f->span);
}

void lm__ones_serve(lm_region *r, struct lm__failed f, struct lm__scratch *scratch)
{
    lm__kept_drop_told();
    if (r->on_error == LM_ON_ERROR_SIGBUS && !f.is_copier) {
        poison(r, &f);
        return;
    }
    unsigned times = count_failure(f.page, r->page_shift);
    uint64_t took_ns = lm__now_ns() - f.began_ns;
    if (f.tid == 0 && !f.is_copier &&
        (f.tid = lm__waiter_take_in(f.span, LM_WAITER_UNSERVED)) == 0)
        return;
    lm__region_keep_error(r, f.cause);
    unsigned met = report_to_all(&f, f.tid);
    int is_kept = (met > PAGEWISE_MAX || f.is_interrupt) && f.from == LM_CHUNK_ABSENT;
    if (is_kept)
        lm__kept_drop_in(f.span);
    struct ones ones = ones_for(r, false_span(r, &f, met, times), scratch);
    ones.is_protected = r->tracking == LM_TRACK_PROTECT && !f.is_write;
    ones.is_lent = r->tracking != LM_TRACK_NONE && f.from != LM_CHUNK_ABSENT;
    uint32_t is_others = ones.is_lent && f.from == LM_CHUNK_FILLING;
    lm_add_seq_cst(&r->lent, is_others);
    int are_there = ones_install(&ones);
    lm__pause("lent");
    /* Others may have touched the same pages.  Now that these are there, no more will. */
    lm__waiters_await_entered();
    report_to_all(&f, 0);
    if (is_kept && are_there) {
        lm__kept_add(r, ones.span, f.tid,
                     met > PAGEWISE_MAX ? LM_KEPT_MOST : LM_KEPT_AT_FIRST);
        lm__uffd_wake(f.span.addr, f.span.bytes);
        return;
    }
    lm__uffd_wake(f.span.addr, f.span.bytes);
    if (are_there || !ones.is_lent)
        linger(times, took_ns);
    ones_take_back(&ones, are_there);
    lm_sub_acq_rel(&r->lent, is_others);
    lm_add_seq_cst(&r->failures_over, 1);
}
