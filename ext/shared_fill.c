/* SPDX-License-Identifier: BSD-3-Clause
 * shared_fill.c - chunks of memory that several processes have: one of them decodes it, for all.
 *
 *   EMPTY --begin--> BEGUN --installed--> FILLED
 *
 * A page that another process has brought is a minor fault, until it is mapped here.
 *
 * (S1) A page is mapped by who has found its chunk FILLED, or has just written it, or has an
 *      error for all who read it (ones.c).  The pages of other chunks are nothing: half a chunk
 *      of a process that was killed, false bytes, zeros that a child's child has touched.
 * (S2) The bytes of a FILLED chunk do not change, nor go.  Two who fill the same chunk write the
 *      same bytes, and neither waits for the other, who may have been stopped.
 * (S3) Where the program has moved registered memory, by mremap(), an address may be another
 *      object's: nothing is filled any more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>

#include "internal.h"

enum { EMPTY = 0, BEGUN, FILLED };

static int is_filled(const lm_region *r, uint64_t chunk_idx)
{
    return lm_load_acquire(&r->share.states[chunk_idx]) == FILLED;
}

int lm__share_is_begun(const lm_region *r, uint64_t chunk_idx)
{
    return lm__region_is_shared(r) &&
           lm_load_relaxed(&r->share.states[chunk_idx]) == BEGUN;
}

static void change(const lm_region *r, uint64_t chunk_idx, uint8_t from, uint8_t to)
{
    lm_cas_acq_rel(&r->share.states[chunk_idx], &from, to);
}

int lm__share_begin(lm_region *r, uint64_t chunk_idx, struct lm_error *err)
{
    if (!lm__region_is_shared(r))
        return 1;
    if (lm__uffd_has_moved()) {
        struct lm_error cause = lm__error(LM_E_LOST_MAPPING, "mapping");
        lm__region_blame(r, chunk_idx, &cause);
        return lm__fail(err, cause);
    }
    change(r, chunk_idx, EMPTY, BEGUN);
    if (!is_filled(r, chunk_idx))
        return 1;
    lm_add_relaxed(&r->share.fills, 1);
    return 0;
}

void lm__share_give_up(const lm_region *r, uint64_t chunk_idx)
{
    if (lm__region_is_shared(r))
        change(r, chunk_idx, BEGUN, EMPTY);
}

/* A page that is there. */
static int overwrite(const lm_region *r, uintptr_t addr, const uint8_t *bytes)
{
    size_t page_bytes = lm__page_bytes();
    void *p = lm__share_map(r, addr - r->addr, page_bytes, PROT_READ | PROT_WRITE);
    if (!p)
        return -errno;
    memcpy(p, bytes, page_bytes);
    munmap(p, page_bytes);
    return 0;
}

/* Pages of which some may be there; they are left as they are if nothing is to be believed. */
static enum lm__install install_pages(const lm_region *r, struct lm__span span,
                                      const uint8_t *bytes, int is_false)
{
    size_t page_bytes = lm__page_bytes();
    enum lm__install answer = LM_INSTALLED;
    for (size_t at = 0; at < span.bytes && answer == LM_INSTALLED; at += page_bytes) {
        int is_there = 0;
        answer =
            lm__uffd_copy_absent(span.addr + at, bytes + at, page_bytes, &is_there);
        if (is_there && !is_false && overwrite(r, span.addr + at, bytes + at) != 0)
            return LM_NO_MEMORY;
        if (is_there)
            answer = lm__uffd_continue(span.addr + at, page_bytes);
    }
    return answer;
}

/* Nearly always none of them is there. */
static enum lm__install install(const lm_region *r, struct lm__span span,
                                const uint8_t *bytes)
{
    int is_there = 0;
    enum lm__install answer =
        lm__uffd_copy_absent(span.addr, bytes, span.bytes, &is_there);
    return is_there ? install_pages(r, span, bytes, 0) : answer;
}

enum lm__install lm__share_install(const lm_region *r, uint64_t chunk_idx,
                                   const uint8_t *bytes)
{
    struct lm__span left = lm__region_span(r, chunk_idx);
    enum lm__install answer = LM_INSTALLED;
    if (is_filled(r, chunk_idx))
        return lm__uffd_continue(left.addr, left.bytes);
    for (size_t done; left.bytes > 0 && answer == LM_INSTALLED;
         left.addr += done, left.bytes -= done) {
        done = bytes || left.bytes < sizeof lm__zeros ? left.bytes : sizeof lm__zeros;
        answer =
            install(r, (struct lm__span){left.addr, done}, bytes ? bytes : lm__zeros);
    }
    if (answer == LM_INSTALLED && !lm__uffd_has_moved())
        lm_store_release(&r->share.states[chunk_idx], FILLED);
    return answer;
}

enum lm__install lm__share_install_false(const lm_region *r, struct lm__span span,
                                         const uint8_t *bytes)
{
    return install_pages(r, span, bytes, 1);
}
