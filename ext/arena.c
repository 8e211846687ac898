/* SPDX-License-Identifier: BSD-3-Clause
 * arena.c - address space: arenas, and the slots in them in which regions live.
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
 * (R3) The arenas' lock is held for look-ups and table changes, and for the rare page that serves
 *      a dangling access; never while a fill runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

#define SHARED_ARENA_BYTES ((size_t)256 << 20)
#define SLOT_BYTES_MAX     ((size_t)16 << 20)

static pthread_mutex_t g_map_lock = PTHREAD_MUTEX_INITIALIZER;
static struct lm__arena **g_arenas; /* by address; under map_lock, as all below */
static size_t g_arena_count;
static uint64_t g_arena_capacity;
static uint64_t g_region_count;

void lm__arenas_lock(void) { pthread_mutex_lock(&g_map_lock); }
void lm__arenas_unlock(void) { pthread_mutex_unlock(&g_map_lock); }

/* ---- arenas ------------------------------------------------------------------------------------- */

static void arena_free(struct lm__arena *a)
{
    if (a->addr)
        munmap((void *)a->addr, a->bytes);
    free(a->regions);
    free(a->free_slots);
    free(a);
}

int lm__arena_register(const struct lm__arena *a)
{
    return a->is_shared    ? lm__uffd_register_shared(a->addr, a->bytes)
           : a->is_tracked ? lm__uffd_register_tracked(a->addr, a->bytes)
                           : lm__uffd_register(a->addr, a->bytes);
}

/* Inaccessible memory.  Slots become accessible when they are first handed out: what can be
 * accessed counts where memory is not overcommitted, and mlockall() has it filled at once,
 * with zeros, before it is registered.  Huge pages are reserved now; reserved but inaccessible
 * ones are as good. */
static int arena_map(struct lm__arena *a, const lm_region *r)
{
    void *p;
    if (a->is_shared) {
        p = lm__share_map(r, 0, r->bytes, PROT_NONE);
    } else if (a->page_shift == lm__log2(lm__page_bytes())) {
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
    return lm__arena_register(a);
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
    a->is_shared = lm__region_is_shared(r);
    a->slots = bytes >> slot_shift ? bytes >> slot_shift : 1;
    a->regions = calloc(a->slots, sizeof a->regions[0]);
    a->free_slots = malloc(a->slots * sizeof a->free_slots[0]);
    if (!a->regions || !a->free_slots)
        goto free_arena;

    rc = arena_map(a, r);
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

struct lm__arena *lm__arena_find_locked(uintptr_t addr)
{
    size_t rank = arena_rank_locked(addr);
    struct lm__arena *a = rank ? g_arenas[rank - 1] : NULL;
    return a && addr - a->addr < a->bytes ? a : NULL;
}

static int arena_insert_locked(struct lm__arena *a)
{
    int rc = lm__array_reserve(&g_arenas, &g_arena_capacity, g_arena_count + 1,
                               sizeof g_arenas[0]);
    if (rc != 0)
        return rc;
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
    int protection = a->is_shared ? PROT_READ : PROT_READ | PROT_WRITE;
    if (mprotect((void *)(a->addr + a->used_slots * bytes), bytes, protection) < 0)
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

int lm__slot_take(lm_region *r)
{
    int is_one_of_many = r->bytes <= SLOT_BYTES_MAX && !lm__region_is_hugetlb(r) &&
                         !lm__region_is_shared(r);
    unsigned slot_shift = 63; /* of an arena that is one slot */
    if (is_one_of_many)
        for (slot_shift = lm__log2(lm__page_bytes());
             (size_t)1 << slot_shift < r->bytes;)
            slot_shift++;

    pthread_mutex_lock(&g_map_lock);
    int is_tracked = r->tracking == LM_TRACK_PROTECT;
    struct lm__arena *a =
        is_one_of_many ? arena_with_room_locked(slot_shift, is_tracked) : NULL;
    int rc = 0;
    if (!a) {
        /* Nobody faults on an arena that nobody knows: mapping it under the lock is safe. */
        rc = arena_new(r, is_one_of_many ? SHARED_ARENA_BYTES : r->bytes, slot_shift,
                       &a);
        if (rc == 0 && (rc = arena_insert_locked(a)) != 0)
            arena_free(a);
    }
    if (rc == 0 && (rc = slot_take_locked(a, r)) != 0 && !is_one_of_many) {
        arena_remove_locked(a);
        arena_free(a);
    }
    pthread_mutex_unlock(&g_map_lock);
    return rc;
}

/* Nothing is in flight: see (R1). */
void lm__slot_give_back(lm_region *r)
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

void lm__arena_counts(uint64_t *regions, uint64_t *arenas)
{
    pthread_mutex_lock(&g_map_lock);
    *regions = g_region_count;
    *arenas = g_arena_count;
    pthread_mutex_unlock(&g_map_lock);
}

struct lm__arena *lm__arena_at_locked(size_t i)
{
    return i < g_arena_count ? g_arenas[i] : NULL;
}
