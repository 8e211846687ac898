/* SPDX-License-Identifier: BSD-3-Clause
 * uffd.c - the only ioctl(UFFDIO_*), and what each of the kernel's answers means.
 *
 *   answer to COPY, ZEROPAGE, CONTINUE  verdict
 *   0                                 INSTALLED.  Proves nothing about whose memory it is: the
 *                                     caller holds a region, so the range can't be reused
 *   EEXIST                            somebody was faster, page by page: go on after it
 *   EEXIST, and it is to be ours      REFUSED
 *   EEXIST, hugetlb, page not there   NO_MEMORY: an exhausted pool says the same, and would for
 *                                     ever
 *   EAGAIN, some bytes done           a later page is present: go on after what was done
 *   EAGAIN, nothing done              the address space is changing: try again, bounded
 *   ENOENT for more than a page       perhaps no single mapping has it all (mlock, mprotect
 *                                     and madvise of a part divide one): try halves
 *   ENOENT                            VANISHED: unmapped, unregistered, or our own overrun
 *   ESRCH (old kernels ENOSPC)        EXITING: the process is going away
 *   ENOMEM                            NO_MEMORY
 *   EBADF, ENOTTY                     the program has closed the descriptor, and its number may
 *                                     be a stranger's: it is fetched from its keeper
 *   EINVAL, EFAULT, anything else     REFUSED: our bug, or a mapping changed from outside, if
 *                                     it is a userfaultfd that has answered
 *
 * MOVE has reasons of its own to refuse (locked memory, a source that fork has shared), and
 * needs no verdict: what it has not moved is copied.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <time.h>

#include "internal.h"
#include "uffd_abi.h"

#define EAGAIN_RETRIES                                                                 \
    2000 /* of 0.5 ms: far longer than any change of a mapping takes */

static struct {
    _Atomic uint64_t copies, zeropages, moves, wakes;
    _Atomic uint64_t eexist, eagain_partial, eagain, enoent, enomem, refused, poisons;
    _Atomic uint64_t protects, continues;
} g_stats;

/* ---- ranges ------------------------------------------------------------------------------------ */

static int register_mode(uintptr_t addr, size_t bytes, uint64_t mode)
{
    struct uffdio_register reg = {.range = {addr, bytes}, .mode = mode};
    return lm__uffd_control(UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

int lm__uffd_register(uintptr_t addr, size_t bytes)
{
    return register_mode(addr, bytes, UFFDIO_REGISTER_MODE_MISSING);
}

int lm__uffd_register_tracked(uintptr_t addr, size_t bytes)
{
    return register_mode(addr, bytes,
                         UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
}

int lm__uffd_register_shared(uintptr_t addr, size_t bytes)
{
    return register_mode(addr, bytes,
                         UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR);
}

int lm__uffd_unregister(uintptr_t addr, size_t bytes)
{
    struct uffdio_range range = {addr, bytes};
    return lm__uffd_control(UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

void lm__uffd_wake(uintptr_t addr, size_t bytes)
{
    struct uffdio_range range = {addr, bytes};
    lm_add_relaxed(&g_stats.wakes, 1);
    lm__uffd_control(UFFDIO_WAKE, &range); /* fails only where nobody can be waiting */
}

int lm__uffd_protect(uintptr_t addr, size_t bytes, int is_protected)
{
    struct uffdio_writeprotect arg = {{addr, bytes},
                                      is_protected ? UFFDIO_WRITEPROTECT_MODE_WP
                                                   : UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
    const struct timespec pause = {.tv_nsec = 500000};
    lm_add_relaxed(&g_stats.protects, 1);
    for (int retries = 0; lm__uffd_control(UFFDIO_WRITEPROTECT, &arg) != 0; retries++) {
        if (errno != EAGAIN || retries == EAGAIN_RETRIES)
            return -errno;
        lm_add_relaxed(&g_stats.eagain, 1);
        nanosleep(&pause, NULL);
    }
    return 0;
}

void lm__uffd_poison(uintptr_t addr, size_t bytes)
{
    struct uffdio_poison arg = {{addr, bytes}, UFFDIO_MODE_DONTWAKE, 0};
    lm_add_relaxed(&g_stats.poisons, 1);
    /* Where it fails the thread faults again, and it is tried again. */
    lm__uffd_control(UFFDIO_POISON, &arg);
}

/* ---- installing ----------------------------------------------------------------------------------- */

struct range_left {
    uintptr_t addr;
    const char *src; /* NULL: zero pages */
    size_t bytes;
    size_t page_bytes;
    int is_hugetlb;
    int is_protected;
    int is_continue;   /* the pages are there, and only to be mapped; src is NULL */
    int *met_existing; /* set where a page is there that is to be ours; NULL: go on */
};

/* One ioctl, for at most `bytes_max`.  Returns 0 or an errno; *done is the bytes installed in
 * either case. */
static int install_once(const struct range_left *left, size_t bytes_max, size_t *done)
{
    size_t bytes = left->bytes < bytes_max ? left->bytes : bytes_max;
    int rc, error = lm__injected(LM_INJECT_UFFD_COPY);
    int64_t installed;
    *done = 0;
    if (error)
        return error;
    if (left->src) {
        struct uffdio_copy arg = {left->addr, (uintptr_t)left->src, bytes,
                                  UFFDIO_MODE_DONTWAKE, 0};
        if (left->is_protected)
            arg.mode |= UFFDIO_COPY_MODE_WP;
        lm_add_relaxed(&g_stats.copies, 1);
        rc = lm__uffd_control(UFFDIO_COPY, &arg);
        installed = arg.copy;
    } else if (left->is_continue) {
        struct uffdio_continue arg = {{left->addr, bytes}, UFFDIO_MODE_DONTWAKE, 0};
        lm_add_relaxed(&g_stats.continues, 1);
        rc = lm__uffd_control(UFFDIO_CONTINUE, &arg);
        installed = arg.mapped;
    } else {
        struct uffdio_zeropage arg = {{left->addr, bytes}, UFFDIO_MODE_DONTWAKE, 0};
        lm_add_relaxed(&g_stats.zeropages, 1);
        rc = lm__uffd_control(UFFDIO_ZEROPAGE, &arg);
        installed = arg.zeropage;
    }
    error = rc < 0 ? errno : 0;
    *done = installed > 0 ? (size_t)installed : 0;
    return error;
}

static void advance(struct range_left *left, size_t bytes)
{
    left->addr += bytes;
    left->bytes -= bytes;
    if (left->src)
        left->src += bytes;
}

/* Half of what was asked for, in whole pages; 0 if that was one page. */
static size_t half(const struct range_left *left, size_t asked)
{
    size_t bytes = left->bytes < asked ? left->bytes : asked;
    return lm__round_down(bytes / 2, left->page_bytes);
}

static enum lm__install install(struct range_left left)
{
    size_t at_once = left.bytes; /* unless the kernel wants it in pieces */
    for (int retries = 0; left.bytes > 0;) {
        size_t done;
        int error = install_once(&left, at_once, &done);
        lm_assert(done <= left.bytes);
        advance(&left, done);
        switch (error) {
        case 0: break;
        case EEXIST:
            if (left.met_existing) {
                *left.met_existing = 1;
                return LM_REFUSED;
            }
            if (left.is_hugetlb && !lm__page_is_present(left.addr)) {
                lm_add_relaxed(&g_stats.enomem, 1);
                return LM_NO_MEMORY;
            }
            lm_add_relaxed(&g_stats.eexist, 1);
            advance(&left, left.page_bytes);
            break;
        case EAGAIN:
            if (done > 0) {
                lm_add_relaxed(&g_stats.eagain_partial, 1);
            } else {
                struct timespec pause = {.tv_nsec = 500000};
                lm_add_relaxed(&g_stats.eagain, 1);
                if (++retries > EAGAIN_RETRIES)
                    return LM_REFUSED;
                nanosleep(&pause, NULL);
            }
            break;
        case ENOENT:
            lm_add_relaxed(&g_stats.enoent, 1);
            at_once = half(&left, at_once);
            if (at_once == 0)
                return LM_VANISHED;
            break;
        case ESRCH:
        case ENOSPC: return LM_EXITING;
        case ENOMEM: lm_add_relaxed(&g_stats.enomem, 1); return LM_NO_MEMORY;
        default: lm_add_relaxed(&g_stats.refused, 1); return LM_REFUSED;
        }
    }
    return LM_INSTALLED;
}

enum lm__install lm__uffd_copy(uintptr_t addr, const void *src, size_t bytes)
{
    return install((struct range_left){
        .addr = addr, .src = src, .bytes = bytes, .page_bytes = lm__page_bytes()});
}

enum lm__install lm__uffd_copy_huge(uintptr_t addr, const void *src, size_t bytes,
                                    unsigned page_shift)
{
    return install((struct range_left){.addr = addr,
                                       .src = src,
                                       .bytes = bytes,
                                       .page_bytes = (size_t)1 << page_shift,
                                       .is_hugetlb = 1});
}

enum lm__install lm__uffd_copy_protected(uintptr_t addr, const void *src, size_t bytes,
                                         unsigned page_shift)
{
    size_t page_bytes = (size_t)1 << page_shift;
    int is_hugetlb = page_bytes != lm__page_bytes();
    return install((struct range_left){.addr = addr,
                                       .src = src,
                                       .bytes = bytes,
                                       .page_bytes = page_bytes,
                                       .is_hugetlb = is_hugetlb,
                                       .is_protected = 1});
}

int lm__uffd_lend(uintptr_t addr, const void *src, unsigned page_shift,
                  int is_protected)
{
    size_t page_bytes = (size_t)1 << page_shift, done;
    struct range_left page = {.addr = addr,
                              .src = src,
                              .bytes = page_bytes,
                              .page_bytes = page_bytes,
                              .is_protected = is_protected};
    const struct timespec pause = {.tv_nsec = 500000};
    for (int retries = 0; install_once(&page, page_bytes, &done) == EAGAIN &&
                          done == 0 && retries < EAGAIN_RETRIES;
         retries++)
        nanosleep(&pause, NULL);
    return done == page_bytes;
}

enum lm__install lm__uffd_zero(uintptr_t addr, size_t bytes)
{
    return install((struct range_left){
        .addr = addr, .bytes = bytes, .page_bytes = lm__page_bytes()});
}

enum lm__install lm__uffd_copy_absent(uintptr_t addr, const void *src, size_t bytes,
                                      int *met_existing)
{
    return install((struct range_left){.addr = addr,
                                       .src = src,
                                       .bytes = bytes,
                                       .page_bytes = lm__page_bytes(),
                                       .met_existing = met_existing});
}

enum lm__install lm__uffd_continue(uintptr_t addr, size_t bytes)
{
    return install((struct range_left){.addr = addr,
                                       .bytes = bytes,
                                       .page_bytes = lm__page_bytes(),
                                       .is_continue = 1});
}

size_t lm__uffd_move(uintptr_t addr, void *src, size_t bytes)
{
    struct uffdio_move arg = {addr, (uintptr_t)src, bytes, UFFDIO_MODE_DONTWAKE, 0};
    lm_add_relaxed(&g_stats.moves, 1);
    lm__uffd_control(UFFDIO_MOVE, &arg);
    return arg.move > 0 ? (size_t)arg.move : 0;
}

void lm__uffd_stats(struct lm_pager_stats *out)
{
    out->events = lm__uffd_events();
    out->copies = lm_load_relaxed(&g_stats.copies);
    out->zeropages = lm_load_relaxed(&g_stats.zeropages);
    out->moves = lm_load_relaxed(&g_stats.moves);
    out->wakes = lm_load_relaxed(&g_stats.wakes);
    out->eexist = lm_load_relaxed(&g_stats.eexist);
    out->eagain_partial = lm_load_relaxed(&g_stats.eagain_partial);
    out->eagain = lm_load_relaxed(&g_stats.eagain);
    out->enoent = lm_load_relaxed(&g_stats.enoent);
    out->enomem = lm_load_relaxed(&g_stats.enomem);
    out->refused = lm_load_relaxed(&g_stats.refused);
    out->poisons = lm_load_relaxed(&g_stats.poisons);
    out->protects = lm_load_relaxed(&g_stats.protects);
    out->continues = lm_load_relaxed(&g_stats.continues);
}
