/* SPDX-License-Identifier: BSD-3-Clause
 * freeze.c - memory at one moment: what was written before it is kept as it is until it has
 * been copied, though threads go on writing.
 *
 *   pause writers --> DIRTY chunks become FROZEN and write-protected --> resume
 *   FROZEN --take()--> a copy for the snapshot        in the order in which it is stored
 *     '-- a thread wants to write: the copier copies it first
 *
 * (Z1) No chunk of any region becomes DIRTY while the regions are swept, and every write to a
 *      chunk that is swept waits: the moment is the end of the sweep.
 * (Z2) The copies that writers have asked for are bounded; beyond, they wait for the snapshot.
 *
 * A handler must not touch served memory, so writers are helped by a thread of its own: the
 * copier, which nobody who serves a fault waits for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

#define COPIES_BYTES_MIN                                                               \
    ((uint64_t)256 << 20) /* or as much of the memory that is free: */
#define COPIES_SHARE 4
#define LOOK_NS      50000000L

#ifdef LM_CHECKS
static _Atomic size_t g_copies_bytes_max; /* 0: as ever */

void lm__freeze_bound_copies(size_t bytes_max)
{
    lm_store_seq_cst(&g_copies_bytes_max, bytes_max);
}
#endif

static uint64_t copies_bytes_max(void)
{
    uint64_t share = lm_memory_available() / COPIES_SHARE;
#ifdef LM_CHECKS
    if (lm_load_seq_cst(&g_copies_bytes_max) != 0)
        return lm_load_seq_cst(&g_copies_bytes_max);
#endif
    return share > COPIES_BYTES_MIN ? share : COPIES_BYTES_MIN;
}

struct lm__freeze {
    lm_region **regions; /* with references; fixed after begin, as all down to count */
    int region_count;
    struct lm__frozen *items;
    uint64_t count, capacity;
    uint64_t copies_bytes_max;
    pthread_mutex_t lock;
    pthread_cond_t moved; /* a copy has come or gone, or the freeze ends; under lock */
    size_t copies_bytes;
    int is_swept, is_ending;
    struct lm_error error; /* code 0: none */
};

/* ---- the copier -------------------------------------------------------------------------------- */

struct hint {
    struct hint *next;
    lm_region *region; /* with a reference */
    uint64_t chunk_idx;
};

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t g_moved =
    PTHREAD_COND_INITIALIZER; /* a hint has come, or was done */
static struct hint *g_hints;  /* under g_lock, as all below */
static struct lm__freeze *g_at_work;
static int g_is_running;

void lm__freeze_hurry(lm_region *r, uint64_t chunk_idx)
{
    struct hint *fresh = malloc(sizeof *fresh); /* else its turn comes without */
    pthread_mutex_lock(&g_lock);
    struct hint **end = &g_hints;
    while (*end && ((*end)->region != r || (*end)->chunk_idx != chunk_idx))
        end = &(*end)->next;
    if (!*end && fresh) {
        lm_region_retain(r);
        *fresh = (struct hint){NULL, r, chunk_idx};
        *end = fresh;
        fresh = NULL;
        pthread_cond_broadcast(&g_moved);
    }
    pthread_mutex_unlock(&g_lock);
    free(fresh);
}

static struct lm__frozen *find_item(struct lm__freeze *f, const struct hint *hint)
{
    uint64_t low = 0, high = f->count;
    uint32_t region = hint->region->writes.freeze_idx;
    while (low < high) {
        uint64_t mid = (low + high) / 2;
        const struct lm__frozen *i = &f->items[mid];
        if (i->region < region ||
            (i->region == region && i->chunk_idx < hint->chunk_idx))
            low = mid + 1;
        else
            high = mid;
    }
    struct lm__frozen *i = &f->items[low];
    return low < f->count && i->region == region && i->chunk_idx == hint->chunk_idx
               ? i
               : NULL;
}

/* 1: there is room for a copy, (Z2).  0: the freeze ends. */
static int await_room(struct lm__freeze *f, size_t bytes)
{
    pthread_mutex_lock(&f->lock);
    while (!f->is_ending &&
           (!f->is_swept ||
            (f->copies_bytes > 0 && f->copies_bytes + bytes > f->copies_bytes_max)))
        pthread_cond_wait(&f->moved, &f->lock);
    int has_room = !f->is_ending;
    pthread_mutex_unlock(&f->lock);
    return has_room;
}

/* 0: there is one. */
static int keep_copy(struct lm__freeze *f, struct lm__frozen *item, uint8_t *copy,
                     size_t bytes)
{
    pthread_mutex_lock(&f->lock);
    int is_first = !item->copy;
    if (is_first) {
        item->copy = copy;
        f->copies_bytes += bytes;
        pthread_cond_broadcast(&f->moved);
    }
    pthread_mutex_unlock(&f->lock);
    return is_first;
}

static void help(struct lm__freeze *f, const struct hint *hint)
{
    lm_region *r = hint->region;
    struct lm__span span = lm__region_span(r, hint->chunk_idx);
    struct lm__frozen *item = NULL;
    if (await_room(f, span.bytes)) /* not before: while it is swept, items move */
        item = find_item(f, hint);
    uint8_t *copy = item ? malloc(span.bytes) : NULL;
    if (!copy || !lm__chunks_move(&r->chunks, hint->chunk_idx, LM_CHUNK_FROZEN,
                                  LM_CHUNK_COPYING)) {
        free(copy); /* a worker has it, or will */
        return;
    }
    int rc = lm__chunk_copy(r, hint->chunk_idx, copy);
    lm__chunks_copied(&r->chunks, hint->chunk_idx);
    if (rc != 0)
        free(copy);
    else
        keep_copy(f, item, copy, span.bytes);
    /* It was most likely a writer who asked.  Where writes are paused, he will again. */
    if (lm__writes_begin(r)) {
        if (lm__chunks_move(&r->chunks, hint->chunk_idx, LM_CHUNK_SAVED,
                            LM_CHUNK_DIRTY))
            lm__uffd_protect(span.addr, span.bytes, 0);
        lm__writes_end(r);
    }
    lm__waiters_wake(span);
}

static void copier(void)
{
    pthread_mutex_lock(&g_lock);
    for (;;) {
        struct hint *hint = g_hints;
        if (!hint) {
            pthread_cond_wait(&g_moved, &g_lock);
            continue;
        }
        g_hints = hint->next;
        struct lm__freeze *f = lm_load_relaxed(&hint->region->writes.freeze);
        g_at_work = f;
        pthread_mutex_unlock(&g_lock);
        if (f)
            help(f, hint);
        lm__region_drop(hint->region);
        free(hint);
        pthread_mutex_lock(&g_lock);
        g_at_work = NULL;
        pthread_cond_broadcast(&g_moved);
    }
}

static int start_copier(void)
{
    static const struct lm__thread thread = {copier, "lazymem-copy"};
    pthread_mutex_lock(&g_lock);
    int rc = g_is_running ? 0 : lm__thread_start(&thread);
    g_is_running |= rc == 0;
    pthread_mutex_unlock(&g_lock);
    return rc;
}

/* ---- the sweep -------------------------------------------------------------------------------- */

static int add_item(struct lm__freeze *f, uint32_t region, uint64_t chunk_idx,
                    struct lm__extent *extent)
{
    int rc =
        lm__array_reserve(&f->items, &f->capacity, f->count + 1, sizeof f->items[0]);
    if (rc != 0)
        return rc;
    const lm_region *r = f->regions[region];
    uint32_t uses = 1u << (r->chunk_shift - r->object->chunk_shift);
    f->items[f->count++] = (struct lm__frozen){region, uses, chunk_idx, extent, NULL};
    return 0;
}

/* Protect the chunks of items [first, count), which follow each other. */
static int protect_run(struct lm__freeze *f, uint64_t first)
{
    if (first == f->count)
        return 0;
    const lm_region *r = f->regions[f->items[first].region];
    if (r->tracking != LM_TRACK_PROTECT)
        return 0;
    uintptr_t addr = lm__region_span(r, f->items[first].chunk_idx).addr;
    struct lm__span last = lm__region_span(r, f->items[f->count - 1].chunk_idx);
    if (lm__uffd_protect(addr, last.addr + last.bytes - addr, 1) == 0)
        return 0;
    f->error = lm__error(LM_E_LOST_MAPPING, "mapping");
    lm__region_blame(r, f->items[first].chunk_idx, &f->error);
    return f->error.code;
}

/* Of a SPILLED chunk the extent is kept, whatever becomes of the chunk.  1, 0 if it is another
 * thread's, or an error. */
static int add_spilled(struct lm__freeze *f, uint32_t region, uint64_t chunk_idx)
{
    lm_region *r = f->regions[region];
    if (lm__chunks_claim(&r->chunks, chunk_idx, LM_CHUNK_SPILLED) <= 0)
        return 0;
    struct lm__extent *extent =
        lm__extent_hold(lm__chunks_extent(&r->chunks, chunk_idx));
    int rc = add_item(f, region, chunk_idx, extent);
    if (rc != 0)
        lm__extent_drop(extent);
    lm__run_abandon(r, (struct lm__run){chunk_idx, 1});
    return rc == 0 ? 1 : rc;
}

static int sweep(struct lm__freeze *f, uint32_t region)
{
    const struct timespec pause = {.tv_nsec = 50000};
    lm_region *r = f->regions[region];
    uint64_t idx = 0, run_first = f->count, end = r->chunks.count;
    int rc = 0;
    while (rc == 0 &&
           (idx = lm__chunks_next(&r->chunks, idx, end, LM_CHUNKS_DIRTY)) < end) {
        if (lm__chunks_state(&r->chunks, idx) == LM_CHUNK_SPILLED) {
            rc = protect_run(f, run_first);
            int added = rc == 0 ? add_spilled(f, region, idx) : 0;
            rc = rc == 0 && added < 0 ? added : rc;
            idx += added == 1;
            run_first = f->count;
            continue;
        }
        if (!lm__chunks_move(&r->chunks, idx, LM_CHUNK_DIRTY, LM_CHUNK_FROZEN)) {
            nanosleep(&pause, NULL); /* it is being filled, or spilled */
            continue;
        }
        lm__chunks_drop_extent(&r->chunks, idx);
        if (f->count > run_first && f->items[f->count - 1].chunk_idx + 1 != idx) {
            rc = protect_run(f, run_first);
            run_first = f->count;
        }
        int added = add_item(f, region, idx, NULL);
        if (added != 0)
            lm__chunks_move(&r->chunks, idx, LM_CHUNK_FROZEN, LM_CHUNK_DIRTY);
        rc = rc ? rc : added;
    }
    return rc ? rc : protect_run(f, run_first);
}

static int sweep_all(struct lm__freeze *f)
{
    int rc = 0;
    for (int i = 0; i < f->region_count; i++)
        lm__writes_pause(f->regions[i]);
    lm__pause("writers paused");
    for (int i = 0; i < f->region_count && rc == 0; i++)
        rc = sweep(f, (uint32_t)i);
    pthread_mutex_lock(&f->lock);
    f->is_swept = 1;
    pthread_cond_broadcast(&f->moved);
    pthread_mutex_unlock(&f->lock);
    for (int i = 0; i < f->region_count; i++)
        lm__writes_resume(f->regions[i]);
    return rc;
}

static struct lm__freeze *freeze_new(lm_region *const *regions, int count)
{
    struct lm__freeze *f = calloc(1, sizeof *f);
    lm_region **copy = malloc(((size_t)count + 1) * sizeof copy[0]);
    if (!f || !copy) {
        free(f);
        free(copy);
        return NULL;
    }
    f->regions = copy;
    f->region_count = count;
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->moved, NULL);
    pthread_mutex_lock(&g_lock);
    for (int i = 0; i < count; i++) {
        copy[i] = regions[i];
        lm_region_retain(copy[i]);
        copy[i]->writes.freeze_idx = (uint32_t)i;
        lm_store_seq_cst(&copy[i]->writes.freeze, f);
    }
    pthread_mutex_unlock(&g_lock);
    return f;
}

int lm__freeze_begin(lm_region *const *regions, int count, struct lm__freeze **out,
                     struct lm_snapshot_stats *stats, struct lm_error *err)
{
    int rc = start_copier();
    struct lm__freeze *f = rc == 0 ? freeze_new(regions, count) : NULL;
    if (!f)
        return lm__fail(err, lm__error(rc ? rc : -ENOMEM, "snapshot"));
    f->copies_bytes_max = copies_bytes_max();
    uint64_t began_ns = lm__now_ns();
    rc = sweep_all(f);
    *stats = (struct lm_snapshot_stats){f->count, lm__now_ns() - began_ns};
    if (rc != 0) {
        struct lm_error cause = f->error.code ? f->error : lm__error(rc, "snapshot");
        lm__freeze_end(f, 0);
        return lm__fail(err, cause);
    }
    *out = f;
    return 0;
}

/* ---- for the snapshot ---------------------------------------------------------------------------- */

const struct lm__frozen *lm__freeze_items(const struct lm__freeze *f, uint64_t *count)
{
    *count = f->count;
    return f->items;
}

void lm__freeze_fail(lm_region *r, const struct lm_error *cause)
{
    pthread_mutex_lock(&g_lock);
    struct lm__freeze *f = lm_load_relaxed(&r->writes.freeze);
    if (f) {
        pthread_mutex_lock(&f->lock);
        f->error = *cause;
        pthread_mutex_unlock(&f->lock);
    }
    pthread_mutex_unlock(&g_lock);
}

/* A copy that another thread makes, or NULL. */
static const uint8_t *await_copy(struct lm__freeze *f, const struct lm__frozen *item)
{
    const lm_region *r = f->regions[item->region];
    struct timespec until;
    pthread_mutex_lock(&f->lock);
    while (!item->copy && f->error.code == 0 && !lm_load_seq_cst(&r->lost)) {
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += LOOK_NS;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&f->moved, &f->lock, &until);
    }
    const uint8_t *copy = item->copy;
    pthread_mutex_unlock(&f->lock);
    return copy;
}

/* What several take is read by each of them, and kept by the first. */
static int take_spilled(struct lm__freeze *f, struct lm__frozen *item,
                        struct lm__scratch *scratch, const uint8_t **out,
                        struct lm_error *err)
{
    const lm_region *r = f->regions[item->region];
    size_t bytes = lm__region_chunk_bytes(r, item->chunk_idx);
    int is_shared = r->chunk_shift != r->object->chunk_shift;
    struct lm_error cause = lm__error(-ENOMEM, "memory for a copy of the chunk");
    uint8_t *data = NULL, *to = NULL;
    if (is_shared)
        to = malloc(lm__region_span(r, item->chunk_idx).bytes);
    else if (lm__scratch_reserve_block(scratch, bytes) == 0)
        to = scratch->block;
    int rc = to ? lm__extent_read(item->extent, r->object->spec.shuffle_width, bytes,
                                  scratch, &data, &cause)
                : cause.code;
    if (rc == LM_ZERO_CHUNK)
        memset(to, 0, bytes);
    else if (rc == 0)
        memcpy(to, data, bytes);
    if (rc < 0) {
        if (is_shared)
            free(to);
        lm__region_blame(r, item->chunk_idx, &cause);
        return lm__fail(err, cause);
    }
    if (is_shared &&
        !keep_copy(f, item, to, lm__region_span(r, item->chunk_idx).bytes)) {
        free(to);
        to = item->copy;
    }
    *out = to;
    return 0;
}

int lm__freeze_take(struct lm__freeze *f, uint64_t item_idx,
                    struct lm__scratch *scratch, const uint8_t **out,
                    struct lm_error *err)
{
    struct lm__frozen *item = &f->items[item_idx];
    lm_region *r = f->regions[item->region];
    struct lm__span span = lm__region_span(r, item->chunk_idx);
    int is_shared = r->chunk_shift != r->object->chunk_shift;
    struct lm_error cause = lm__error(-ENOMEM, "memory for a copy of the chunk");
    uint8_t *to = NULL;
    *out = NULL;
    if (item->extent)
        return take_spilled(f, item, scratch, out, err);
    if (is_shared)
        to = malloc(span.bytes);
    else if (lm__scratch_reserve_block(scratch, span.bytes) == 0)
        to = scratch->block;
    if (!to)
        goto failed;
    if (lm__chunks_move(&r->chunks, item->chunk_idx, LM_CHUNK_FROZEN,
                        LM_CHUNK_COPYING)) {
        int rc = lm__chunk_copy(r, item->chunk_idx, to);
        lm__chunks_copied(&r->chunks, item->chunk_idx);
        lm__waiters_wake(span);
        cause = lm__error(rc, "array");
        if (rc == 0)
            *out = to;
        if (is_shared && rc == 0)
            keep_copy(f, item, to, span.bytes);
        else if (is_shared)
            free(to);
    } else {
        if (is_shared)
            free(to);
        *out = await_copy(f, item);
        cause = lm__error(lm_load_seq_cst(&r->lost), "array");
    }
    pthread_mutex_lock(&f->lock);
    if (f->error.code != 0) {
        cause = f->error;
        *out = NULL;
    }
    pthread_mutex_unlock(&f->lock);
    if (*out)
        return 0;

failed:
    lm__region_blame(r, item->chunk_idx, &cause);
    return lm__fail(err, cause);
}

void lm__freeze_give(struct lm__freeze *f, uint64_t item_idx)
{
    struct lm__frozen *item = &f->items[item_idx];
    pthread_mutex_lock(&f->lock);
    if (--item->uses == 0 && item->copy) {
        f->copies_bytes -=
            lm__region_span(f->regions[item->region], item->chunk_idx).bytes;
        free(item->copy);
        item->copy = NULL;
        pthread_cond_broadcast(&f->moved);
    }
    pthread_mutex_unlock(&f->lock);
}

/* The copier is done with it. */
static void detach(struct lm__freeze *f)
{
    pthread_mutex_lock(&f->lock);
    f->is_ending = 1;
    pthread_cond_broadcast(&f->moved);
    pthread_mutex_unlock(&f->lock);
    pthread_mutex_lock(&g_lock);
    for (int i = 0; i < f->region_count; i++)
        lm_store_seq_cst(&f->regions[i]->writes.freeze, NULL);
    while (g_at_work == f)
        pthread_cond_wait(&g_moved, &g_lock);
    pthread_mutex_unlock(&g_lock);
}

/* The file has it now, if nobody has touched it since. */
static void spilled_end(lm_region *r, uint64_t chunk_idx, struct lm__extent *extent,
                        int is_clean)
{
    if (is_clean && lm__chunks_claim(&r->chunks, chunk_idx, LM_CHUNK_SPILLED) > 0) {
        if (lm__chunks_extent(&r->chunks, chunk_idx) == extent) {
            lm__chunks_drop_extent(&r->chunks, chunk_idx);
            lm__chunks_forget(&r->chunks, chunk_idx);
        } else {
            lm__chunks_abandon(&r->chunks, chunk_idx);
        }
        lm__waiters_wake(lm__region_span(r, chunk_idx));
    }
    lm__extent_drop(extent);
}

void lm__freeze_end(struct lm__freeze *f, int is_stored)
{
    detach(f);
    for (uint64_t i = 0; i < f->count; i++) {
        lm_region *r = f->regions[f->items[i].region];
        uint64_t idx = f->items[i].chunk_idx;
        int is_clean = is_stored && r->tracking == LM_TRACK_PROTECT;
        if (f->items[i].extent)
            spilled_end(r, idx, f->items[i].extent, is_clean);
        if (lm__chunks_move(&r->chunks, idx, LM_CHUNK_SAVED,
                            is_clean ? LM_CHUNK_CLEAN : LM_CHUNK_DIRTY) ||
            lm__chunks_move(&r->chunks, idx, LM_CHUNK_FROZEN, LM_CHUNK_DIRTY))
            lm__waiters_wake(lm__region_span(r, idx));
        free(f->items[i].copy);
    }
    for (int i = 0; i < f->region_count; i++)
        lm__region_drop(f->regions[i]);
    pthread_cond_destroy(&f->moved);
    pthread_mutex_destroy(&f->lock);
    free(f->regions);
    free(f->items);
    free(f);
}

/* ---- fork ---------------------------------------------------------------------------------------- */

void lm__freeze_fork_prepare(void) { pthread_mutex_lock(&g_lock); }
void lm__freeze_fork_done(void) { pthread_mutex_unlock(&g_lock); }

void lm__freeze_fork_child(void)
{
    static const pthread_cond_t fresh = PTHREAD_COND_INITIALIZER;
    g_moved = fresh;
    g_hints = NULL;
    g_at_work = NULL;
    g_is_running = 0;
}
