/* SPDX-License-Identifier: BSD-3-Clause
 * shared.c - memory that several processes have: a chunk is decoded by one of them, for all.
 *
 *   a file in memory   [ header | a byte for each chunk | objects ]
 *
 * A process maps objects as regions, read-only, whose minor faults are its faults, too: a page
 * that another process has brought is one until it is mapped here.
 *
 * (S1) A page is mapped by who has found its chunk FILLED, or has just written it, or has an
 *      error for all who read it (ones.c).  The pages of other chunks are nothing: half a chunk
 *      of a process that was killed, false bytes, zeros that a child's child has touched.
 * (S2) The bytes of a FILLED chunk do not change, nor go.  Two who fill the same chunk write the
 *      same bytes, and neither waits for the other, who may have been stopped.
 *
 * (S3) Where the program has moved registered memory, by mremap(), an address may be another
 *      object's: nothing is filled any more.
 *
 * The file lasts as long as a mapping of it.  Its descriptor is not needed after open.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#ifndef F_ADD_SEALS /* since Linux 3.17; glibc has them, and the call, since 2.27 */
#define F_ADD_SEALS   1033
#define F_GET_SEALS   1034
#define F_SEAL_SEAL   1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW   4
#endif
#ifndef MFD_ALLOW_SEALING
#define MFD_CLOEXEC       1u
#define MFD_ALLOW_SEALING 2u
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif
#ifndef MADV_POPULATE_WRITE /* since Linux 5.14, as minor faults */
#define MADV_POPULATE_WRITE 23
#endif
#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)

enum { EMPTY = 0, BEGUN, FILLED };

struct lm_shared {
    _Atomic uint32_t refs;
    uint8_t *map; /* of all; what lies behind the states can't be accessed */
    uint64_t bytes, states_bytes;
};

int lm_shared_make(uint64_t bytes)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = (int)syscall(SYS_memfd_create, "lazymem", flags | MFD_NOEXEC_SEAL);
    if (fd < 0) /* before Linux 6.3 */
        fd = (int)syscall(SYS_memfd_create, "lazymem", flags);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, SEALS) == 0)
        return fd;
    int rc = -errno;
    close(fd);
    return rc;
}

int lm_shared_open(int fd, uint64_t states_bytes, lm_shared **out)
{
    uint64_t bytes;
    lm_shared *s = calloc(1, sizeof *s);
    int rc = s ? lm__io_file_bytes(fd, &bytes) : -ENOMEM;
    if (rc != 0)
        goto free_shared;
    *s = (lm_shared){.refs = 1, .bytes = bytes, .states_bytes = states_bytes};
    rc = -EINVAL;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS || states_bytes > bytes ||
        states_bytes % lm__page_bytes() != 0)
        goto free_shared;
    void *p = mmap(NULL, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    rc = -errno;
    if (p == MAP_FAILED)
        goto free_shared;
    s->map = p;
    /* mlockall() and a core dump would bring all of it. */
    if (munlock(p, bytes) < 0 || madvise(p, bytes, MADV_DONTDUMP) < 0 ||
        mprotect(p, states_bytes, PROT_READ | PROT_WRITE) < 0) {
        rc = -errno;
        munmap(p, bytes);
        goto free_shared;
    }
    *out = s;
    return 0;

free_shared:
    free(s);
    return rc;
}

void lm_shared_close(lm_shared *s)
{
    if (lm_sub_acq_rel(&s->refs, 1) != 1)
        return;
    munmap(s->map, s->bytes);
    free(s);
}

/* ---- a region's part --------------------------------------------------------------------------- */

static int is_inside(const lm_shared *s, uint64_t at, uint64_t bytes, uint64_t end)
{
    return at <= end && bytes <= end - at && end <= s->bytes;
}

int lm__share_join(lm_region *r, const struct lm_region_options *options)
{
    lm_shared *s = options->shared;
    size_t page_bytes = lm__page_bytes();
    if (options->shared_offset % page_bytes != 0 || r->is_writable ||
        lm__region_is_hugetlb(r) ||
        !is_inside(s, options->shared_states, r->chunks.count, s->states_bytes) ||
        !is_inside(s, options->shared_offset, r->bytes, s->bytes) ||
        options->shared_offset < s->states_bytes)
        return -EINVAL;
    lm_add_relaxed(&s->refs, 1);
    r->share = (struct lm__share){
        .shared = s,
        .states = (_Atomic uint8_t *)(s->map + options->shared_states),
        .pages = s->map + options->shared_offset,
    };
    return 0;
}

void lm__share_leave(lm_region *r)
{
    if (r->share.shared)
        lm_shared_close(r->share.shared);
}

/* Another mapping of some pages, by the old size of 0, as mremap(2) has it. */
static void *map_again(uint8_t *pages, size_t bytes, int protection)
{
    void *p = mremap(pages, 0, bytes, MREMAP_MAYMOVE);
    if (p == MAP_FAILED)
        return NULL;
    if (mprotect(p, bytes, protection) == 0)
        return p;
    int error = errno;
    munmap(p, bytes);
    errno = error;
    return NULL;
}

void *lm__share_map(const lm_region *r)
{
    void *p = map_again(r->share.pages, r->bytes, PROT_NONE);
    if (p)
        madvise(p, r->bytes, MADV_DODUMP);
    return p;
}

/* ---- fills ------------------------------------------------------------------------------------------ */

/* Whether the state can be looked at without taking memory, for want of which that is SIGBUS. */
static int has_state(const lm_region *r, uint64_t chunk_idx)
{
    return lm__page_is_present((uintptr_t)&r->share.states[chunk_idx]);
}

static int is_filled(const lm_region *r, uint64_t chunk_idx)
{
    return lm_load_acquire(&r->share.states[chunk_idx]) == FILLED;
}

int lm__share_is_begun(const lm_region *r, uint64_t chunk_idx)
{
    return r->share.states && has_state(r, chunk_idx) &&
           lm_load_relaxed(&r->share.states[chunk_idx]) == BEGUN;
}

static void change(const lm_region *r, uint64_t chunk_idx, uint8_t from, uint8_t to)
{
    lm_cas_acq_rel(&r->share.states[chunk_idx], &from, to);
}

static int fail(const lm_region *r, uint64_t chunk_idx, struct lm_error cause,
                struct lm_error *err)
{
    lm__region_blame(r, chunk_idx, &cause);
    return lm__fail(err, cause);
}

int lm__share_begin(lm_region *r, uint64_t chunk_idx, struct lm_error *err)
{
    if (!r->share.states)
        return 1;
    if (lm__uffd_has_moved())
        return fail(r, chunk_idx, lm__error(LM_E_LOST_MAPPING, "mapping"), err);
    void *page = (void *)lm__round_down((uintptr_t)&r->share.states[chunk_idx],
                                        lm__page_bytes());
    if (!has_state(r, chunk_idx) &&
        madvise(page, lm__page_bytes(), MADV_POPULATE_WRITE) < 0)
        return fail(r, chunk_idx, lm__error(-ENOMEM, "memory for the chunk's state"),
                    err);
    change(r, chunk_idx, EMPTY, BEGUN);
    if (!is_filled(r, chunk_idx))
        return 1;
    lm_add_relaxed(&r->share.fills, 1);
    return 0;
}

void lm__share_give_up(const lm_region *r, uint64_t chunk_idx)
{
    if (r->share.states && has_state(r, chunk_idx))
        change(r, chunk_idx, BEGUN, EMPTY);
}

/* A page that is there: so it takes no memory, for want of which a write is SIGBUS. */
static int overwrite(const lm_region *r, uintptr_t addr, const uint8_t *bytes)
{
    size_t page_bytes = lm__page_bytes();
    void *p = map_again(r->share.pages + (addr - r->addr), page_bytes,
                        PROT_READ | PROT_WRITE);
    if (!p)
        return -errno;
    memcpy(p, bytes, page_bytes);
    munmap(p, page_bytes);
    return 0;
}

static enum lm__install install_page(const lm_region *r, uintptr_t addr,
                                     const uint8_t *bytes)
{
    int is_there = 0;
    enum lm__install answer =
        lm__uffd_copy_absent(addr, bytes, lm__page_bytes(), &is_there);
    if (!is_there)
        return answer;
    if (overwrite(r, addr, bytes) != 0)
        return LM_NO_MEMORY;
    return lm__uffd_continue(addr, lm__page_bytes());
}

/* Pages of a chunk that nobody has filled; few of them, if any, are there. */
static enum lm__install install(const lm_region *r, struct lm__span span,
                                const uint8_t *bytes)
{
    int is_there = 0;
    size_t page_bytes = lm__page_bytes();
    enum lm__install answer =
        lm__uffd_copy_absent(span.addr, bytes, span.bytes, &is_there);
    if (!is_there)
        return answer;
    answer = LM_INSTALLED;
    for (size_t at = 0; at < span.bytes && answer == LM_INSTALLED; at += page_bytes)
        answer = install_page(r, span.addr + at, bytes + at);
    return answer;
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

enum lm__install lm__share_install_false(uintptr_t addr, const uint8_t *bytes,
                                         size_t count)
{
    size_t page_bytes = lm__page_bytes();
    for (size_t done = 0; done < count; done += page_bytes) {
        int is_there = 0;
        enum lm__install answer =
            lm__uffd_copy_absent(addr + done, bytes + done, page_bytes, &is_there);
        if (is_there)
            answer = lm__uffd_continue(addr + done, page_bytes);
        if (answer != LM_INSTALLED)
            return answer;
    }
    return LM_INSTALLED;
}
