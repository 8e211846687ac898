/* SPDX-License-Identifier: BSD-3-Clause
 * fault.c - from a page fault to a page: claim, decode, install, publish.
 *
 *   fault at addr --> region, chunk --> claim --> decode --> UFFDIO_COPY --> publish
 *                        |                |          '-- failed: see below      '-- wake
 *                        |                '-- being filled already: its end will wake us
 *                        '-- no such region: the array is gone, the pointer is not
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
 * lot of damage, in one operation, is given whole chunks at once, to get to the end of it.
 *
 * An instruction can need two pages, and both may fail.  So a page that fails again comes
 * with its neighbours and stays for longer than it took to fail; and a handler that lets
 * time pass sees to it that another one reads.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define ANNOUNCE_MS          50 /* the toucher may itself hold the runtime's lock ... */
#define ANNOUNCE_TRIES       20 /* ... now, but seldom at its next faults */
#define DRAIN_TRIES          1000 /* of 0.05 ms: there is always a reader */
#define PAGEWISE_MAX         256 /* failures of a thread, until speed matters more: see above */
#define LINGER_NS            100000L /* a woken thread runs within tens of microseconds ... */
#define LINGER_DOUBLINGS_MAX 7 /* ... unless the machine is overloaded: up to 13 ms */
#define TOOK_NS_MAX          100000000u /* lm_region_settle() waits for that, too */
#define SUSPECTS_MAX         16
#define SUSPECT_TRIES                                                                  \
    400 /* of 0.05 ms: on a busy machine it may come later, and anew */
#define NO_MEMORY_RETRIES 5

struct span {
    uintptr_t addr;
    size_t bytes;
};

/* ---- threads that wait -------------------------------------------------------------------------- */

#define WAITERS_MAX 256 /* beyond, handlers wait for room */

/* A thread that is asleep in a fault.  Entered as soon as the event has been read, so that a
 * fill which ends meanwhile, and wakes the thread, knows whom it has woken.  Whoever takes a
 * waiter off the table sees to it that the thread is woken. */
struct waiter {
    uintptr_t page;
    int32_t tid;
};

static pthread_mutex_t g_waiters_lock = PTHREAD_MUTEX_INITIALIZER;
static struct waiter g_waiters[WAITERS_MAX]; /* under g_waiters_lock */
static _Atomic size_t g_waiter_count;        /* written under it */

static struct waiter waiter_of(const struct lm__fault *fault)
{
    return (struct waiter){lm__round_down(fault->addr, lm__page_bytes()), fault->tid};
}

/* g_waiter_count if it is not there. */
static size_t waiter_find_locked(struct waiter w)
{
    size_t i = 0;
    while (i < lm_load_relaxed(&g_waiter_count) &&
           (g_waiters[i].page != w.page || g_waiters[i].tid != w.tid))
        i++;
    return i;
}

/* 0: there is no room. */
static int waiter_add(struct waiter w)
{
    pthread_mutex_lock(&g_waiters_lock);
    size_t n = lm_load_relaxed(&g_waiter_count);
    /* A signal lets a thread fault anew, without end if signals are many. */
    int is_there = waiter_find_locked(w) < n;
    int has_room = is_there || n < WAITERS_MAX;
    if (has_room && !is_there) {
        g_waiters[n] = w;
        lm_store_seq_cst(&g_waiter_count, n + 1);
    }
    pthread_mutex_unlock(&g_waiters_lock);
    return has_room;
}

static void waiter_remove_locked(size_t i)
{
    size_t left = lm_load_relaxed(&g_waiter_count) - 1;
    g_waiters[i] = g_waiters[left];
    lm_store_seq_cst(&g_waiter_count, left);
}

/* 0: somebody else has taken it. */
static int waiter_take(struct waiter w)
{
    pthread_mutex_lock(&g_waiters_lock);
    size_t i = waiter_find_locked(w);
    int is_there = i < lm_load_relaxed(&g_waiter_count);
    if (is_there)
        waiter_remove_locked(i);
    pthread_mutex_unlock(&g_waiters_lock);
    return is_there;
}

static int waiter_is_there(struct waiter w)
{
    pthread_mutex_lock(&g_waiters_lock);
    int is_there = waiter_find_locked(w) < lm_load_relaxed(&g_waiter_count);
    pthread_mutex_unlock(&g_waiters_lock);
    return is_there;
}

/* Take any waiter for a page of the span.  Its tid (-1 where it is not known), or 0. */
static int32_t waiter_take_in(struct span span)
{
    int32_t tid = 0;
    if (lm_load_seq_cst(&g_waiter_count) == 0)
        return 0;
    pthread_mutex_lock(&g_waiters_lock);
    for (size_t i = 0; i < lm_load_relaxed(&g_waiter_count) && tid == 0; i++)
        if (g_waiters[i].page - span.addr < span.bytes) {
            tid = g_waiters[i].tid ? g_waiters[i].tid : -1;
            waiter_remove_locked(i);
        }
    pthread_mutex_unlock(&g_waiters_lock);
    return tid;
}

/* ---- the gate between fills and fork ------------------------------------------------------ */

/* Read: somebody looks at a region, and may fill a chunk.  Write: fork. */
static pthread_rwlock_t g_fills = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static void fill_gate_enter(void) { pthread_rwlock_rdlock(&g_fills); }
static void fill_gate_leave(void) { pthread_rwlock_unlock(&g_fills); }

void lm__fault_fork_prepare(void)
{
    pthread_rwlock_wrlock(&g_fills);
    pthread_mutex_lock(&g_waiters_lock); /* handlers enter waiters before the gate */
}

void lm__fault_fork_done(void)
{
    pthread_mutex_unlock(&g_waiters_lock);
    pthread_rwlock_unlock(&g_fills);
}

/* The threads that had entered, or were waiting to, are gone, and so are those that wait. */
void lm__fault_fork_child(void)
{
    static const pthread_rwlock_t fresh =
        PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
    g_fills = fresh;
    pthread_rwlock_wrlock(&g_fills);
    lm_store_relaxed(&g_waiter_count, 0);
}

/* Before this thread lets time pass. */
static void let_others_read(struct lm__scratch *scratch)
{
    if (scratch->will_block)
        scratch->will_block(scratch);
}

/* ---- one chunk --------------------------------------------------------------------------------------- */

static uintptr_t chunk_addr(const lm_region *r, uint64_t chunk_idx)
{
    return r->addr + (chunk_idx << r->object->chunk_shift);
}

static struct span chunk_span(const lm_region *r, uint64_t chunk_idx)
{
    return (struct span){chunk_addr(r, chunk_idx), lm__region_chunk_span(r, chunk_idx)};
}

static void drop_pages(const lm_region *r, uint64_t chunk_idx)
{
    lm__pages_drop(chunk_addr(r, chunk_idx), lm__region_chunk_span(r, chunk_idx));
}

/* Wake all who wait for a range.  None of them stays on the table: an error would be left for
 * a thread that has long gone on. */
static void wake_span(struct span span)
{
    int32_t tid;
    do {
        while ((tid = waiter_take_in(span)) != 0)
            lm__interrupt_end(tid);
        lm__uffd_wake(span.addr, span.bytes);
        tid = waiter_take_in(span); /* entered meanwhile */
        lm__interrupt_end(tid);
    } while (tid != 0);
}

/* Wake all who wait for a chunk that is no longer FILLING. */
static void wake(const lm_region *r, uint64_t chunk_idx)
{
    wake_span(chunk_span(r, chunk_idx));
}

/* Give a FILLING chunk up and let those who wait for it fault again. */
static void abandon(lm_region *r, uint64_t chunk_idx)
{
    lm__chunks_abandon(&r->chunks, chunk_idx);
    wake(r, chunk_idx);
}

enum { DROPPED = 1 };

/* Decoded bytes (NULL: zeros) into the region's memory.  0, DROPPED if nobody is left who
 * could want them, or an error. */
static int install(lm_region *r, uint64_t chunk_idx, uint8_t *bytes,
                   struct lm_error *err)
{
    size_t span = lm__region_chunk_span(r, chunk_idx);
    size_t used = lm__object_chunk_bytes(r->object, chunk_idx);
    uintptr_t addr = chunk_addr(r, chunk_idx);
    enum lm__install answer = LM_NO_MEMORY;
    if (bytes)
        memset(bytes + used, 0, span - used);
    for (int retries = 0; answer == LM_NO_MEMORY && retries <= NO_MEMORY_RETRIES;
         retries++) {
        struct timespec pause = {.tv_nsec = retries * 2000000L};
        if (retries > 0)
            nanosleep(&pause, NULL);
        answer = bytes ? lm__uffd_copy(addr, bytes, span) : lm__uffd_zero(addr, span);
    }
    switch (answer) {
    case LM_INSTALLED: return 0;
    case LM_EXITING: return DROPPED;
    case LM_NO_MEMORY: return lm__fail(err, lm__error(-ENOMEM, "memory for the chunk"));
    case LM_VANISHED:
        if (lm_load_seq_cst(&r->released))
            return lm__fail(err, lm__error(LM_E_CLOSED, "array"));
        break;
    case LM_REFUSED: break;
    }
    return lm__fail(err, lm__error(LM_E_LOST_MAPPING, "mapping"));
}

/* Fill a chunk that the caller has claimed.  On failure it is still FILLING. */
static int fill(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch,
                struct lm_error *err)
{
    uint64_t stored_bytes = 0;
    uint8_t *bytes = NULL;
    int rc =
        lm__object_decode(r->object, chunk_idx, scratch, &bytes, &stored_bytes, err);
    lm__pause("install");
    if (rc >= 0)
        rc = install(r, chunk_idx, bytes, err);
    lm__pause("publish");
    if (rc < 0) {
        err->tag = r->object->spec.tag;
        err->chunk_idx = chunk_idx;
        return rc;
    }
    if (rc == DROPPED) {
        abandon(r, chunk_idx);
        return 0;
    }
    lm_add_relaxed(&r->fills, 1);
    lm_add_relaxed(&r->zero_fills, (uint64_t)!bytes);
    lm_add_relaxed(&r->stored_bytes_read, stored_bytes);
    lm__interrupt_end(scratch->toucher_tid);
    if (!lm__chunks_publish(&r->chunks, chunk_idx)) { /* released meanwhile */
        drop_pages(r, chunk_idx);
        abandon(r, chunk_idx);
        return 0;
    }
    wake(r, chunk_idx);
    return 0;
}

/* ---- failed fills -------------------------------------------------------------------------------------- */

/* Leave `cause` for thread `tid` and everybody who waits for a page of the span.  Returns how
 * many failures the one who has met the fewest has met. */
static unsigned report_to_all(struct span span, int32_t tid,
                              const struct lm_error *cause)
{
    unsigned fewest = UINT_MAX;
    for (; tid != 0; tid = waiter_take_in(span)) {
        lm__interrupt_end(tid);
        unsigned repeats = lm__failure_report(tid, cause);
        if (repeats <= ANNOUNCE_TRIES && cause->code != -EINTR)
            lm__failure_wait_announced(tid, ANNOUNCE_MS);
        if (repeats < fewest)
            fewest = repeats;
    }
    return fewest;
}

static const uint8_t ONES[65536] = {[0 ... 65535] = 0xFF};

/* 1: all pages of the span are there.  0: some are not, and may be somebody else's. */
static int serve_ones(struct span span)
{
    int are_there = 1;
    for (size_t done = 0; done < span.bytes; done += sizeof ONES) {
        size_t left = span.bytes - done;
        are_there &=
            lm__uffd_copy(span.addr + done, ONES,
                          left < sizeof ONES ? left : sizeof ONES) == LM_INSTALLED;
    }
    return are_there;
}

/* Give false bytes back.  The kernel finds a page there only if it is still ours. */
static void take_back(struct span span, int are_there)
{
    size_t page_bytes = lm__page_bytes();
    if (are_there) {
        lm__pages_drop(span.addr, span.bytes);
        return;
    }
    for (uintptr_t page = span.addr; page < span.addr + span.bytes; page += page_bytes)
        if (lm__uffd_copy(page, ONES, page_bytes) == LM_INSTALLED)
            lm__pages_drop(page, page_bytes);
}

/* How often the page has failed, as far as is remembered, before now. */
static unsigned count_failure(uintptr_t page)
{
    static struct {
        _Atomic uintptr_t page;
        _Atomic unsigned times;
    } lately[64]; /* neighbours have places of their own */
    size_t i = page / lm__page_bytes() % (sizeof lately / sizeof lately[0]);
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

/* What could not be had, and for whom. */
struct failed {
    const struct lm_error *cause;
    int32_t tid;               /* -1: not known; 0: that thread waits no more */
    uintptr_t page;            /* that it has touched */
    struct span span;          /* pages whose waiters share its fate */
    enum lm__chunk_state from; /* the chunk's, before the fill */
    int is_interrupt;
    uint64_t began_ns;
};

/* The pages to fill with 0xFF; none that holds what the application has written. */
static struct span false_span(const struct failed *f, unsigned repeats, unsigned times)
{
    size_t page_bytes = lm__page_bytes();
    uintptr_t low = f->span.addr, high = f->span.addr + f->span.bytes;
    if ((repeats <= PAGEWISE_MAX && !f->is_interrupt) || f->from == LM_CHUNK_CLEAN) {
        size_t beside = times > 0 && f->from == LM_CHUNK_ABSENT ? page_bytes : 0;
        low = f->page - low > beside ? f->page - beside : low;
        high =
            high - f->page > page_bytes + beside ? f->page + page_bytes + beside : high;
    }
    return (struct span){low, high - low};
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Others may have touched the same pages, and nobody knows of them as long as their events
 * wait to be read: the next wake would let them go on with false bytes and no error.  Once
 * the pages are there, no more such events come. */
static void await_readers(void)
{
    const struct timespec pause = {.tv_nsec = 50000};
    for (int i = 0; i < DRAIN_TRIES && lm__uffd_has_events(); i++)
        nanosleep(&pause, NULL);
    nanosleep(&pause, NULL); /* for the last one read to be entered in the table */
}

/* The page is dead, and whoever waits for it finds out; others who wait for the chunk fault
 * again. */
static void poison(lm_region *r, const struct failed *f)
{
    lm__region_keep_error(r, f->cause);
    lm__uffd_poison(f->page, lm__page_bytes());
    lm_add_seq_cst(&r->failures_over, 1);
    wake_span(f->span);
}

/* Let all who wait end their instruction with false bytes, and their operation with an
 * error. */
static void serve_failure(lm_region *r, struct failed f)
{
    if (r->on_error == LM_ON_ERROR_SIGBUS) {
        poison(r, &f);
        return;
    }
    unsigned times = count_failure(f.page);
    uint64_t took_ns = now_ns() - f.began_ns;
    if (f.tid == 0 && (f.tid = waiter_take_in(f.span)) == 0)
        return;
    lm__region_keep_error(r, f.cause);
    unsigned repeats = report_to_all(f.span, f.tid, f.cause);
    struct span ones = false_span(&f, repeats, times);
    int are_there = serve_ones(ones);
    await_readers();
    report_to_all(f.span, waiter_take_in(f.span), f.cause);
    lm__uffd_wake(f.span.addr, f.span.bytes);

    linger(times, took_ns);
    take_back(ones, are_there);
    lm_add_seq_cst(&r->failures_over, 1);
}

/* Put a chunk that was claimed in state `from` back into it. */
static void unclaim(lm_region *r, uint64_t chunk_idx, enum lm__chunk_state from)
{
    if (from == LM_CHUNK_CLEAN && lm__chunks_publish(&r->chunks, chunk_idx))
        wake(r, chunk_idx); /* its other pages are as good as they were: (C2) */
    else
        abandon(r, chunk_idx);
}

/* ---- entry points ---------------------------------------------------------------------------------------- */

static struct lm_error failure_of(const lm_region *r, uint64_t chunk_idx, int code,
                                  const char *what)
{
    struct lm_error e = lm__error(code, what);
    e.tag = r->object->spec.tag;
    e.chunk_idx = chunk_idx;
    return e;
}

static struct failed failed_fault(const lm_region *r, uint64_t chunk_idx,
                                  const struct lm__fault *fault)
{
    return (struct failed){
        .tid = fault->tid ? fault->tid : -1,
        .page = lm__round_down(fault->addr, lm__page_bytes()),
        .span = chunk_span(r, chunk_idx),
        .from = LM_CHUNK_ABSENT,
        .began_ns = now_ns(),
    };
}

/* 1 if the thread waits on that very page: woken, it comes again.  The event may be an old one,
 * of a thread that was woken before, has read what it wanted, and given the array up. */
static int comes_again(struct waiter w)
{
    const struct timespec pause = {.tv_nsec = 50000};
    int has_come = 0;
    lm__uffd_wake(w.page, lm__page_bytes());
    for (int i = 0; i < SUSPECT_TRIES && !has_come; i++) {
        nanosleep(&pause, NULL);
        has_come = waiter_take(w);
    }
    return has_come;
}

static void serve_claimed(lm_region *r, uint64_t chunk_idx,
                          const struct lm__fault *fault, enum lm__chunk_state from,
                          struct lm__scratch *scratch)
{
    struct lm_error cause = failure_of(r, chunk_idx, LM_E_CLOSED, "array");
    struct failed failed = failed_fault(r, chunk_idx, fault);
    uint32_t interrupts = lm__interrupt_count();
    scratch->toucher_tid = fault->tid;
    int is_released = lm_load_seq_cst(&r->released);
    int is_filled = !is_released && fill(r, chunk_idx, scratch, &cause) == 0;
    scratch->toucher_tid = 0;
    if (is_filled)
        return;
    let_others_read(scratch);
    lm__pause("fill failed");
    if (interrupts != lm__interrupt_count() && fault->tid == (int32_t)getpid())
        failed.tid = 0; /* it had its error, and has gone on */
    failed.cause = &cause;
    failed.from = from;
    if (!is_released || comes_again(waiter_of(fault)))
        serve_failure(r, failed);
    unclaim(r, chunk_idx, from);
}

/* A chunk whose state there is no memory for. */
static void serve_unclaimed(lm_region *r, uint64_t chunk_idx,
                            const struct lm__fault *fault, int code)
{
    struct lm_error cause =
        failure_of(r, chunk_idx, code, "memory for the chunk's state");
    struct failed failed = failed_fault(r, chunk_idx, fault);
    failed.cause = &cause;
    serve_failure(r, failed);
}

/* The thread is to end its operation, and not to wait for the chunk. */
static void serve_interrupted(lm_region *r, uint64_t chunk_idx,
                              const struct lm__fault *fault, enum lm__chunk_state from,
                              struct lm__scratch *scratch)
{
    let_others_read(scratch);
    struct lm_error cause = failure_of(r, chunk_idx, -EINTR, "wait for the chunk");
    struct failed failed = failed_fault(r, chunk_idx, fault);
    failed.cause = &cause;
    failed.from = from;
    failed.is_interrupt = 1;
    if (from == LM_CHUNK_FILLING) /* by another thread; others may well wait on */
        failed.span = (struct span){failed.page, lm__page_bytes()};
    serve_failure(r, failed);
}

/* A chunk that another thread is filling, which finds the waiter when it is done. */
static void serve_filling(lm_region *r, uint64_t chunk_idx,
                          const struct lm__fault *fault, struct waiter w,
                          struct lm__scratch *scratch)
{
    if ((lm__interrupt_take(fault->tid) || lm__interrupt_is_pending(fault->tid)) &&
        waiter_take(w)) {
        serve_interrupted(r, chunk_idx, fault, LM_CHUNK_FILLING, scratch);
        return;
    }
    lm__interrupt_watch(fault->tid);
    if (!waiter_is_there(w))
        lm__interrupt_end(fault->tid);
}

static void serve_region(lm_region *r, const struct lm__fault *fault,
                         struct lm__scratch *scratch)
{
    uint64_t chunk_idx = (fault->addr - r->addr) >> r->object->chunk_shift;
    struct waiter w = waiter_of(fault);
    lm_add_relaxed(&r->faults, 1);
    for (;;) {
        enum lm__chunk_state state = lm__chunks_state(&r->chunks, chunk_idx);
        if (state == LM_CHUNK_FILLING) {
            serve_filling(r, chunk_idx, fault, w, scratch);
            return;
        }
        /* A chunk can be CLEAN with a page missing (C2), and an event can be older than the
         * fill that has served it.  Only the kernel can tell them apart. */
        if (state == LM_CHUNK_CLEAN && lm__page_is_present(fault->addr)) {
            wake_span((struct span){w.page, lm__page_bytes()});
            return;
        }
        int claimed = lm__chunks_claim(&r->chunks, chunk_idx, state);
        if (claimed == 0)
            continue;
        if (!waiter_take(w)) { /* a fill has ended meanwhile, and wakes the thread */
            if (claimed > 0)
                unclaim(r, chunk_idx, state);
        } else if (claimed > 0 && lm__interrupt_is_pending(fault->tid)) {
            serve_interrupted(r, chunk_idx, fault, state, scratch);
            unclaim(r, chunk_idx, state);
        } else if (claimed > 0) {
            serve_claimed(r, chunk_idx, fault, state, scratch);
        } else {
            serve_unclaimed(r, chunk_idx, fault, claimed);
        }
        return;
    }
}

/* Touches of no region's memory that are being looked into; under g_waiters_lock. */
static struct waiter g_suspects[SUSPECTS_MAX];

static struct waiter *suspect_find_locked(struct waiter w)
{
    struct waiter *s = g_suspects;
    while (s < g_suspects + SUSPECTS_MAX && (s->page != w.page || s->tid != w.tid))
        s++;
    return s < g_suspects + SUSPECTS_MAX ? s : NULL;
}

enum suspicion { ALREADY, STALE, BEGUN };

/* ALREADY: another handler is at it, and finds the waiter on the table. */
static enum suspicion suspect_begin(struct waiter w)
{
    enum suspicion answer = ALREADY;
    pthread_mutex_lock(&g_waiters_lock);
    struct waiter *slot = suspect_find_locked((struct waiter){0});
    size_t i = waiter_find_locked(w);
    if (i == lm_load_relaxed(&g_waiter_count)) {
        answer = STALE; /* the region's last fill has woken the thread */
    } else if (slot && !suspect_find_locked(w)) {
        *slot = w;
        waiter_remove_locked(i);
        answer = BEGUN;
    } else if (!slot) {
        waiter_remove_locked(i); /* too many at a time: it is woken, and comes again */
        answer = STALE;
    }
    pthread_mutex_unlock(&g_waiters_lock);
    return answer;
}

/* 1 if the thread has come again.  Then, or with `is_last`, it is no suspect any more. */
static int suspect_has_come(struct waiter w, int is_last)
{
    pthread_mutex_lock(&g_waiters_lock);
    size_t i = waiter_find_locked(w);
    int has_come = i < lm_load_relaxed(&g_waiter_count);
    if (has_come)
        waiter_remove_locked(i);
    if (has_come || is_last)
        *suspect_find_locked(w) = (struct waiter){0};
    pthread_mutex_unlock(&g_waiters_lock);
    return has_come;
}

/* Wake the thread: only if it waits on that very page will it come again.  The event may be an
 * old one, of a thread that has long gone on and given the array up. */
static int suspect_confirm(struct waiter w, struct lm__scratch *scratch)
{
    const struct timespec pause = {.tv_nsec = 50000};
    int has_come = 0;
    let_others_read(scratch);
    lm__uffd_wake(w.page, lm__page_bytes());
    for (int i = 0; i < SUSPECT_TRIES && !has_come; i++) {
        nanosleep(&pause, NULL);
        has_come = suspect_has_come(w, i == SUSPECT_TRIES - 1);
    }
    return has_come;
}

static void serve_dangling(const struct lm__fault *fault, struct lm__scratch *scratch)
{
    struct waiter w = waiter_of(fault);
    lm__pause("no region");
    enum suspicion suspicion = suspect_begin(w);
    if (suspicion == ALREADY)
        return;
    if (suspicion == BEGUN && suspect_confirm(w, scratch)) {
        struct lm_error cause =
            lm__error(lm__region_dangling_code(fault->addr), "address");
        cause.found = fault->addr;
        if (cause.code != 0) {
            lm__failure_report(fault->tid, &cause);
            lm__failure_wait_announced(fault->tid, ANNOUNCE_MS);
        }
        lm__region_serve_dangling(fault->addr);
    }
    /* Served, or to fault once more: on a new owner's memory, for want of memory now, or to
     * get SIGSEGV where nothing is mapped any more. */
    lm__uffd_wake(w.page, lm__page_bytes());
}

void lm__fault_serve(const struct lm__fault *fault, struct lm__scratch *scratch)
{
    const struct timespec pause = {.tv_nsec = 100000};
    while (!waiter_add(waiter_of(fault)))
        nanosleep(&pause, NULL);
    lm__pause("waiter entered");
    if (pthread_rwlock_tryrdlock(&g_fills) != 0) {
        /* A fork waits for the fills under way, and they for events to be read. */
        let_others_read(scratch);
        fill_gate_enter();
    }
    lm_region *r = lm__region_find(fault->addr);
    if (r) {
        serve_region(r, fault, scratch);
        lm__region_drop(r);
    } else {
        serve_dangling(fault, scratch);
    }
    fill_gate_leave();
}

/* 1 if there is nothing left to do, 0 if another thread is filling the chunk. */
static int try_prefetch(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch,
                        int *rc, struct lm_error *err)
{
    enum lm__chunk_state state = lm__chunks_state(&r->chunks, chunk_idx);
    *rc = 0;
    if (lm_load_seq_cst(&r->released) || state == LM_CHUNK_CLEAN)
        return 1;
    int claimed = lm__chunks_claim(&r->chunks, chunk_idx, LM_CHUNK_ABSENT);
    if (claimed < 0)
        *rc = lm__fail(err, lm__error(claimed, "memory for the chunk's state"));
    if (claimed <= 0)
        return claimed < 0;
    /* A release that came before the claim is seen here, a later one by publish. */
    if (lm_load_seq_cst(&r->released) || (*rc = fill(r, chunk_idx, scratch, err)) < 0)
        abandon(r, chunk_idx);
    if (*rc == LM_E_CLOSED)
        *rc = 0;
    return 1;
}

int lm__fault_prefetch(lm_region *r, uint64_t chunk_idx, struct lm__scratch *scratch,
                       struct lm_error *err)
{
    const struct timespec pause = {.tv_nsec = 50000};
    for (;;) {
        int rc;
        fill_gate_enter();
        int is_done = try_prefetch(r, chunk_idx, scratch, &rc, err);
        fill_gate_leave();
        if (is_done)
            return rc;
        nanosleep(&pause, NULL);
    }
}

int lm__fault_evict(lm_region *r, uint64_t chunk_idx)
{
    fill_gate_enter();
    int was_clean = lm__chunks_claim(&r->chunks, chunk_idx, LM_CHUNK_CLEAN) > 0;
    if (was_clean) {
        drop_pages(r, chunk_idx);
        abandon(r, chunk_idx);
    }
    fill_gate_leave();
    return was_clean;
}
