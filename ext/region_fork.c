/* SPDX-License-Identifier: BSD-3-Clause
 * region_fork.c - what fork means for memory that is served.
 *
 * A child's mappings are no longer registered, and would read as zeros: they are registered
 * anew, with the child's own userfaultfd.  Nobody tracks what it writes.
 *
 * Huge pages were reserved for the parent, and a child that shares them dies when the pool is
 * empty and the parent writes: the kernel takes them back.  So the child copies what was
 * written into ordinary pages, and the parent waits until it has: until no child holds the pipe.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

#define CHILD_MS_MAX 10000 /* it may be stopped */

static _Thread_local int t_child_pipe[2] = {-1, -1}; /* of this thread's fork */

static int is_copied_by_children(const struct lm__arena *a)
{
    return a->page_shift != lm__log2(lm__page_bytes()) && a->regions[0]->is_writable;
}

void lm__region_fork_prepare(void)
{
    lm__arenas_lock();
    struct lm__arena *a;
    for (size_t i = 0; (a = lm__arena_at_locked(i)) && t_child_pipe[0] < 0; i++)
        if (is_copied_by_children(a) && pipe2(t_child_pipe, O_CLOEXEC) < 0)
            break; /* without descriptors there is no waiting */
}

static void child_pipe_close(int end)
{
    if (t_child_pipe[end] >= 0)
        close(t_child_pipe[end]);
    t_child_pipe[end] = -1;
}

void lm__region_fork_done(void)
{
    child_pipe_close(1); /* before another thread forks, whose child would hold it */
    lm__arenas_unlock();
}

void lm__region_fork_parent(void)
{
    struct pollfd end = {.fd = t_child_pipe[0]};
    if (end.fd >= 0)
        poll(&end, 1, CHILD_MS_MAX);
    child_pipe_close(0);
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
    struct lm__arena *a;
    for (size_t i = 0; (a = lm__arena_at_locked(i)); i++) {
        track_no_more(a);
        int is_huge = a->page_shift != lm__log2(lm__page_bytes());
        if (!lm__uffd_is_open() || (is_huge && arena_make_ordinary(a) != 0) ||
            lm__arena_register(a) != 0)
            a->is_lost = 1;
        if (a->is_shared) /* fork copies no page tables of such memory */
            lm__chunks_forget_all(&a->regions[0]->chunks);
        for (size_t slot = 0; slot < a->used_slots; slot++)
            if (a->regions[slot])
                lm__budget_forked_locked(a->regions[slot]);
        if (a->is_lost)
            mprotect((void *)a->addr, a->bytes, PROT_NONE);
    }
    child_pipe_close(0);
    child_pipe_close(1);
}
