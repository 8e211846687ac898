/* SPDX-License-Identifier: BSD-3-Clause
 * region.c - address space: arenas, the slots in them, and the regions that live in slots.
 *
 *   arena   [ slot | slot | slot | ... ]    one mapping, registered once with the userfaultfd
 *              |      |
 *           region  region                  an object's memory; slots are powers of two
 *
 * Mappings are scarce (65,530 a process by default), objects are not.  So small objects share
 * arenas of equal slots, and only an object larger than SLOT_BYTES_MAX, or one in huge pages,
 * has an arena of its own.  Address -> arena is a binary search, arena -> slot a shift.
 *
 * (R1) A slot is handed out again only when its region's last reference is gone: neither the
 *      owner nor a fill in flight can touch the range.  UFFDIO_COPY would not notice.
 * (R2) An arena stays registered as long as it is mapped.  Unregistered memory reads as zeros.
 * (R3) map_lock is held for look-ups and table changes, and for the rare page that serves a
 *      dangling access; never while a fill runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define SHARED_ARENA_BYTES ((size_t)256 << 20)
#define SLOT_BYTES_MAX     ((size_t)16 << 20)
#define CHILD_MS_MAX       10000 /* it may be stopped */
/* Of 0.1 ms: longer than any one failed fill leaves its bytes. */
#define SETTLE_TRIES       4000

struct lm__arena {
    uintptr_t addr;
    size_t bytes;
    unsigned slot_shift;
    unsigned page_shift;
    size_t slots;
    lm_region **regions;  /* by slot; under map_lock, as all below */
    size_t used_slots;    /* handed out at least once: the first ones */
    uint32_t *free_slots; /* a stack of those that came back */
    size_t free_count;
    int served_dangling; /* free slots may hold pages */
    int is_lost;         /* a forked child could not register it: no slot to hand out */
    int is_tracked;      /* fixed after open, but in a forked child */
};

static pthread_mutex_t g_map_lock = PTHREAD_MUTEX_INITIALIZER;
static struct lm__arena **g_arenas; /* by address; under map_lock, as all below */
static size_t g_arena_count, g_arena_capacity;
static uint64_t g_region_count;

/* ---- arenas ------------------------------------------------------------------------------------- */

static void arena_free(struct lm__arena *a)
{
    if (a->addr)
        munmap((void *)a->addr, a->bytes);
    free(a->regions);
    free(a->free_slots);
    free(a);
}

/* Inaccessible memory.  Slots become accessible when they are first handed out: what can be
 * accessed counts where memory is not overcommitted, and mlockall() has it filled at once,
 * with zeros, before it is registered.  Huge pages are reserved now; reserved but inaccessible
 * ones are as good. */
static int arena_map(struct lm__arena *a)
{
    void *p;
    if (a->page_shift == lm__log2(lm__page_bytes())) {
        size_t align = a->bytes < LM_HUGE_BYTES ? lm__page_bytes() : LM_HUGE_BYTES;
        p = lm__pages_reserve(a->bytes, align, PROT_NONE);
    } else {
        int size = (int)a->page_shift << 26; /* MAP_HUGE_SHIFT */
        p = mmap(NULL, a->bytes, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | size, -1, 0);
        if (p == MAP_FAILED)
            return LM_E_NO_HUGE_PAGES;
    }
    if (!p)
        return -errno;
    a->addr = (uintptr_t)p;
    if (munlock(p, a->bytes) < 0)
        return -errno;
    return a->is_tracked ? lm__uffd_register_tracked(a->addr, a->bytes)
                         : lm__uffd_register(a->addr, a->bytes);
}

/* An arena for the region and its like, of slots of 2^slot_shift bytes; or of one slot, if it
 * must be larger. */
static int arena_new(const lm_region *r, size_t bytes, unsigned slot_shift,
                     struct lm__arena **out)
{
    struct lm__arena *a = calloc(1, sizeof *a);
    int rc = -ENOMEM;
    if (!a)
        return rc;
    a->bytes = bytes;
    a->slot_shift = slot_shift;
    a->page_shift = r->page_shift;
    a->is_tracked = r->tracking == LM_TRACK_PROTECT;
    a->slots = bytes >> slot_shift ? bytes >> slot_shift : 1;
    a->regions = calloc(a->slots, sizeof a->regions[0]);
    a->free_slots = malloc(a->slots * sizeof a->free_slots[0]);
    if (!a->regions || !a->free_slots)
        goto free_arena;

    rc = arena_map(a);
    if (rc != 0)
        goto free_arena;
    *out = a;
    return 0;

free_arena:
    arena_free(a);
    return rc;
}

/* The number of arenas that begin at or below `addr`. */
static size_t arena_rank_locked(uintptr_t addr)
{
    size_t low = 0, high = g_arena_count;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (g_arenas[mid]->addr <= addr)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static struct lm__arena *arena_find_locked(uintptr_t addr)
{
    size_t rank = arena_rank_locked(addr);
    struct lm__arena *a = rank ? g_arenas[rank - 1] : NULL;
    return a && addr - a->addr < a->bytes ? a : NULL;
}

static int arena_insert_locked(struct lm__arena *a)
{
    if (g_arena_count == g_arena_capacity) {
        size_t capacity = g_arena_capacity ? 2 * g_arena_capacity : 16;
        struct lm__arena **grown = realloc(g_arenas, capacity * sizeof grown[0]);
        if (!grown)
            return -ENOMEM;
        g_arenas = grown;
        g_arena_capacity = capacity;
    }
    size_t rank = arena_rank_locked(a->addr);
    memmove(g_arenas + rank + 1, g_arenas + rank,
            (g_arena_count - rank) * sizeof g_arenas[0]);
    g_arenas[rank] = a;
    g_arena_count++;
    return 0;
}

static void arena_remove_locked(struct lm__arena *a)
{
    size_t rank = arena_rank_locked(a->addr);
    lm_assert(g_arenas[rank - 1] == a);
    memmove(g_arenas + rank - 1, g_arenas + rank,
            (g_arena_count - rank) * sizeof g_arenas[0]);
    g_arena_count--;
}

/* ---- slots ---------------------------------------------------------------------------------------- */

static struct lm__arena *arena_with_room_locked(unsigned slot_shift, int is_tracked)
{
    /* Newest last in address order need not be fullest, but arenas are few. */
    for (size_t i = 0; i < g_arena_count; i++) {
        struct lm__arena *a = g_arenas[i];
        if (a->slot_shift == slot_shift && a->is_tracked == is_tracked && !a->is_lost &&
            (a->free_count > 0 || a->used_slots < a->slots))
            return a;
    }
    return NULL;
}

/* Make the next slot accessible.  Those before it are, so mappings do not multiply. */
static int slot_add_locked(struct lm__arena *a)
{
    size_t bytes = a->bytes / a->slots;
    if (mprotect((void *)(a->addr + a->used_slots * bytes), bytes,
                 PROT_READ | PROT_WRITE) < 0)
        return -errno;
    a->free_slots[a->free_count++] = (uint32_t)a->used_slots++;
    return 0;
}

static int slot_take_locked(struct lm__arena *a, lm_region *r)
{
    int rc = a->free_count > 0 ? 0 : slot_add_locked(a);
    if (rc != 0)
        return rc;
    r->arena = a;
    r->slot_idx = a->free_slots[--a->free_count];
    r->addr = a->addr + (r->slot_idx << a->slot_shift);
    a->regions[r->slot_idx] = r;
    g_region_count++;
    if (a->served_dangling)
        lm__pages_drop(r->addr, r->bytes);
    return 0;
}

static int slot_take(lm_region *r)
{
    int is_shared = r->bytes <= SLOT_BYTES_MAX && !lm__region_is_hugetlb(r);
    unsigned slot_shift = 63; /* of an arena that is one slot */
    if (is_shared)
        for (slot_shift = lm__log2(lm__page_bytes());
             (size_t)1 << slot_shift < r->bytes;)
            slot_shift++;

    pthread_mutex_lock(&g_map_lock);
    int is_tracked = r->tracking == LM_TRACK_PROTECT;
    struct lm__arena *a =
        is_shared ? arena_with_room_locked(slot_shift, is_tracked) : NULL;
    int rc = 0;
    if (!a) {
        /* Nobody faults on an arena that nobody knows: mapping it under the lock is safe. */
        rc = arena_new(r, is_shared ? SHARED_ARENA_BYTES : r->bytes, slot_shift, &a);
        if (rc == 0 && (rc = arena_insert_locked(a)) != 0)
            arena_free(a);
    }
    if (rc == 0 && (rc = slot_take_locked(a, r)) != 0 && !is_shared) {
        arena_remove_locked(a);
        arena_free(a);
    }
    pthread_mutex_unlock(&g_map_lock);
    return rc;
}

/* Nothing is in flight: see (R1). */
static void slot_give_back(lm_region *r)
{
    struct lm__arena *a = r->arena;
    int is_own = a->slots == 1;
    if (!is_own)
        lm__pages_drop(r->addr, r->bytes);
    pthread_mutex_lock(&g_map_lock);
    a->regions[r->slot_idx] = NULL;
    a->free_slots[a->free_count++] = (uint32_t)r->slot_idx;
    g_region_count--;
    if (is_own)
        arena_remove_locked(a);
    pthread_mutex_unlock(&g_map_lock);
    if (is_own)
        arena_free(a);
}

/* ---- look-ups --------------------------------------------------------------------------------------- */

static int retain_unless_zero(lm_region *r)
{
    uint32_t refs = lm_load_relaxed(&r->refs);
    while (refs != 0)
        if (lm_cas_acq_rel(&r->refs, &refs, refs + 1))
            return 1;
    return 0;
}

static lm_region *find_locked(uintptr_t addr, struct lm__arena **arena)
{
    *arena = arena_find_locked(addr);
    if (!*arena)
        return NULL;
    lm_region *r = (*arena)->regions[(addr - (*arena)->addr) >> (*arena)->slot_shift];
    return r && addr - r->addr < r->bytes && retain_unless_zero(r) ? r : NULL;
}

lm_region *lm__region_find(uintptr_t addr)
{
    struct lm__arena *arena;
    pthread_mutex_lock(&g_map_lock);
    lm_region *r = find_locked(addr, &arena);
    pthread_mutex_unlock(&g_map_lock);
    return r;
}

int lm__region_dangling_code(uintptr_t addr)
{
    pthread_mutex_lock(&g_map_lock);
    const struct lm__arena *a = arena_find_locked(addr);
    const lm_region *r = a ? a->regions[(addr - a->addr) >> a->slot_shift] : NULL;
    pthread_mutex_unlock(&g_map_lock);
    return r ? 0 : a ? LM_E_DANGLING : LM_E_LOST_MAPPING;
}

void lm__region_serve_dangling(uintptr_t addr)
{
    struct lm__arena *arena;
    uintptr_t page = lm__round_down(addr, lm__page_bytes());
    pthread_mutex_lock(&g_map_lock);
    lm_region *r = find_locked(addr, &arena);
    if (!r)
        lm__uffd_copy(page, lm__ones, lm__page_bytes());
    if (arena && !r)
        arena->served_dangling = 1;
    pthread_mutex_unlock(&g_map_lock);
    if (r) /* the slot has an owner again */
        lm__region_drop(r);
}

int lm__region_unprotect_dangling(uintptr_t addr)
{
    struct lm__arena *arena;
    uintptr_t page = lm__round_down(addr, lm__page_bytes());
    pthread_mutex_lock(&g_map_lock);
    lm_region *r = find_locked(addr, &arena);
    int is_moved = !arena && lm__uffd_protect(page, lm__page_bytes(), 0) == 0;
    pthread_mutex_unlock(&g_map_lock);
    if (r) /* a new one */
        lm__region_drop(r);
    return is_moved;
}

void lm__region_count(uint64_t *regions, uint64_t *arenas)
{
    pthread_mutex_lock(&g_map_lock);
    *regions = g_region_count;
    *arenas = g_arena_count;
    pthread_mutex_unlock(&g_map_lock);
}

/* ---- fork ------------------------------------------------------------------------------------------------ */

/* Huge pages were reserved for the parent, and a child that shares them dies when the pool is
 * empty and the parent writes: the kernel takes them back.  So the child copies what was
 * written into ordinary pages, and the parent waits until it has: until no child holds
 * the pipe. */
static int g_child_pipe[2] = {-1, -1}; /* under map_lock during fork */

static int is_copied_by_children(const struct lm__arena *a)
{
    return a->page_shift != lm__log2(lm__page_bytes()) && a->regions[0]->is_writable;
}

void lm__region_fork_prepare(void)
{
    pthread_mutex_lock(&g_map_lock);
    for (size_t i = 0; i < g_arena_count && g_child_pipe[0] < 0; i++)
        if (is_copied_by_children(g_arenas[i]) && pipe2(g_child_pipe, O_CLOEXEC) < 0)
            break; /* without descriptors there is no waiting */
}

void lm__region_fork_done(void) { pthread_mutex_unlock(&g_map_lock); }

static void child_pipe_close(void)
{
    if (g_child_pipe[0] >= 0) {
        close(g_child_pipe[0]);
        close(g_child_pipe[1]);
        g_child_pipe[0] = g_child_pipe[1] = -1;
    }
}

void lm__region_fork_parent(void)
{
    struct pollfd end = {.fd = g_child_pipe[0]};
    if (g_child_pipe[0] >= 0) {
        close(g_child_pipe[1]);
        g_child_pipe[1] = end.fd;
        poll(&end, 1, CHILD_MS_MAX);
    }
    child_pipe_close();
}

/* Copy the pages that are there to `to`, which is registered.  The kernel does it: another
 * thread of the parent may write, and touching a page that was taken back is the end. */
static int copy_present(const lm_region *r, uintptr_t to)
{
    size_t page_bytes = lm__region_page_bytes(r);
    uint64_t idx = 0, count = r->chunks.count;
    for (; (idx = lm__chunks_next(&r->chunks, idx, count, LM_CHUNKS_RESIDENT)) < count;
         idx++) {
        struct lm__span span = lm__region_span(r, idx);
        for (uintptr_t page = span.addr; page < span.addr + span.bytes;
             page += page_bytes)
            if (lm__page_is_present(page) &&
                lm__uffd_copy(to + (page - r->addr), (void *)page, page_bytes) !=
                    LM_INSTALLED)
                return LM_E_LOST_MAPPING;
    }
    return 0;
}

/* What was only read is filled anew.  Where a page was taken back, the child has lost the
 * array. */
static int arena_make_ordinary(struct lm__arena *a)
{
    lm_region *r = a->regions[0];
    void *p = lm__pages_reserve(a->bytes, LM_HUGE_BYTES, PROT_READ | PROT_WRITE);
    uintptr_t fresh = (uintptr_t)p;
    if (!p)
        return -1;
    if (!r->is_writable)
        lm__chunks_forget_all(&r->chunks);
    if (lm__uffd_register(fresh, a->bytes) != 0)
        goto unmap;
    if (copy_present(r, fresh) != 0) {
        lm__chunks_forget_all(&r->chunks);
        lm__pages_drop(fresh, a->bytes);
        lm_store_seq_cst(&r->lost, LM_E_LOST_MAPPING);
    }
    if (lm__uffd_unregister(fresh, a->bytes) != 0 || /* moving is an event otherwise */
        mremap(p, a->bytes, a->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)a->addr) ==
            MAP_FAILED)
        goto unmap;
    a->page_shift = r->page_shift = lm__log2(lm__page_bytes());
    return 0;

unmap:
    munmap(p, a->bytes);
    return -1;
}

/* What a child writes stays its own: nobody tracks it, and it is nobody's snapshot. */
static void track_no_more(struct lm__arena *a)
{
    a->is_tracked = 0;
    for (size_t i = 0; i < a->used_slots; i++)
        if (a->regions[i]) {
            a->regions[i]->tracking = LM_TRACK_NONE;
            memset(&a->regions[i]->writes, 0, sizeof a->regions[i]->writes);
        }
}

void lm__region_fork_child(void)
{
    for (size_t i = 0; i < g_arena_count; i++) {
        struct lm__arena *a = g_arenas[i];
        track_no_more(a);
        int is_huge = a->page_shift != lm__log2(lm__page_bytes());
        if (!lm__uffd_is_open() || (is_huge && arena_make_ordinary(a) != 0) ||
            lm__uffd_register(a->addr, a->bytes) != 0)
            a->is_lost = 1;
        if (a->is_lost)
            mprotect((void *)a->addr, a->bytes, PROT_NONE);
    }
    child_pipe_close();
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
    return NULL;
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
    int rc =
        lm__chunks_init(&r->chunks, lm__div_up(object_bytes, 1ull << r->chunk_shift));
    if (rc != 0)
        goto free_region;
    rc = slot_take(r);
    if (rc != 0)
        goto fini_chunks;
    lm__object_retain(object);
    *out = r;
    return 0;

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
    slot_give_back(r);
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

size_t lm__region_chunk_bytes(const lm_region *r, uint64_t chunk_idx)
{
    uint64_t left = r->object->spec.object_bytes - (chunk_idx << r->chunk_shift);
    size_t bytes = (size_t)1 << r->chunk_shift;
    return left < bytes ? (size_t)left : bytes;
}

int lm__region_can_move(const lm_region *r)
{
    return r->addr % LM_HUGE_BYTES == 0 && !lm__region_is_hugetlb(r) &&
           r->tracking == LM_TRACK_NONE && lm__uffd_can_move() &&
           lm__pages_can_be_huge();
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
    };
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
    pthread_mutex_lock(&g_map_lock);
    r->last_error = *cause;
    pthread_mutex_unlock(&g_map_lock);
    lm_add_seq_cst(&r->failures, 1); /* before the 0xFF bytes can be seen */
}

int lm_region_last_error(lm_region *r, struct lm_error *out)
{
    pthread_mutex_lock(&g_map_lock);
    *out = r->last_error;
    pthread_mutex_unlock(&g_map_lock);
    return out->code != 0;
}
