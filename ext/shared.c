/* SPDX-License-Identifier: BSD-3-Clause
 * shared.c - memory that several processes have: a chunk is decoded by one of them, for all.
 *
 *   a file in memory   [ header | a byte for each chunk | objects ]
 *
 * A process maps objects as regions, read-only, whose minor faults are its faults, too.  Which
 * pages may be mapped says shared_fill.c.
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
#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)

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
    if (lm__region_is_shared(r))
        lm_shared_close(r->share.shared);
}

void *lm__share_map(const lm_region *r, size_t offset, size_t bytes, int protection)
{
    /* An old size of 0 is another mapping of the same pages, as mremap(2) has it. */
    void *p = mremap(r->share.pages + offset, 0, bytes, MREMAP_MAYMOVE);
    if (p == MAP_FAILED)
        return NULL;
    if (mprotect(p, bytes, protection) == 0 && madvise(p, bytes, MADV_DODUMP) == 0)
        return p;
    int error = errno;
    munmap(p, bytes);
    errno = error;
    return NULL;
}
