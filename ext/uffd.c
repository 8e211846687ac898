/* SPDX-License-Identifier: BSD-3-Clause
 * uffd.c - the only ioctl(UFFDIO_*), and what each of the kernel's answers means.
 *
 *   answer to COPY, ZEROPAGE          verdict
 *   0                                 INSTALLED.  Proves nothing about whose memory it is: the
 *                                     caller holds a region, so the range can't be reused
 *   EEXIST                            somebody was faster, page by page: go on after it
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
 * read() of a number that is a stranger's would steal what is in there.  So whoever reads has
 * had an answer of ioctl() since its last read; nearly always that was a COPY and a WAKE.
 * What is left is a number that is closed and given away while a handler is on its way from
 * the one to the other; therefore it is not among the lowest, which are given away first.
 *
 * MOVE has reasons of its own to refuse (locked memory, a source that fork has shared), and
 * needs no verdict: what it has not moved is copied.
 *
 * The kernel's structs and numbers are declared here, since system headers lag behind kernels.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define UFFD_API                          0xAAull
#define UFFD_USER_MODE_ONLY               1
#define UFFD_EVENT_PAGEFAULT              0x12
#define UFFD_PAGEFAULT_FLAG_WRITE         1ull
#define UFFD_PAGEFAULT_FLAG_WP            2ull
#define UFFDIO_REGISTER_MODE_MISSING      1ull
#define UFFDIO_REGISTER_MODE_WP           2ull
#define UFFDIO_MODE_DONTWAKE              1ull /* of COPY and its like */
#define UFFDIO_COPY_MODE_WP               2ull
#define UFFDIO_WRITEPROTECT_MODE_WP       1ull
#define UFFDIO_WRITEPROTECT_MODE_DONTWAKE 2ull
#define UFFD_FEATURE_WP                   (1ull << 0)
#define UFFD_FEATURE_WP_HUGETLB           (1ull << 12)
#define UFFD_FEATURE_EVENT_REMAP          (1ull << 2) /* memory that moves stays ours */
#define UFFD_FEATURE_THREAD_ID            (1ull << 8)
#define UFFD_FEATURE_HUGETLB              (1ull << 4)
#define UFFD_FEATURE_POISON               (1ull << 14)
#define UFFD_FEATURE_MOVE                 (1ull << 16)

struct uffd_msg {
    uint8_t event;
    uint8_t zero[7];
    uint64_t flags;
    uint64_t address;
    uint32_t ptid;
    uint32_t pad;
};
_Static_assert(sizeof(struct uffd_msg) == 32, "struct uffd_msg of the kernel");

struct uffdio_api {
    uint64_t api, features, ioctls;
};
struct uffdio_range {
    uint64_t start, len;
};
struct uffdio_register {
    struct uffdio_range range;
    uint64_t mode, ioctls;
};
struct uffdio_copy {
    uint64_t dst, src, len, mode;
    int64_t copy;
};
struct uffdio_zeropage {
    struct uffdio_range range;
    uint64_t mode;
    int64_t zeropage;
};
struct uffdio_move {
    uint64_t dst, src, len, mode;
    int64_t move;
};
struct uffdio_writeprotect {
    struct uffdio_range range;
    uint64_t mode;
};
struct uffdio_poison {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};

#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#define UFFDIO_API          _IOWR(0xAA, 0x3F, struct uffdio_api)
#define UFFDIO_REGISTER     _IOWR(0xAA, 0x00, struct uffdio_register)
#define UFFDIO_UNREGISTER   _IOR(0xAA, 0x01, struct uffdio_range)
#define UFFDIO_WAKE         _IOR(0xAA, 0x02, struct uffdio_range)
#define UFFDIO_COPY         _IOWR(0xAA, 0x03, struct uffdio_copy)
#define UFFDIO_ZEROPAGE     _IOWR(0xAA, 0x04, struct uffdio_zeropage)
#define UFFDIO_MOVE         _IOWR(0xAA, 0x05, struct uffdio_move)
#define UFFDIO_WRITEPROTECT _IOWR(0xAA, 0x06, struct uffdio_writeprotect)
#define UFFDIO_POISON       _IOWR(0xAA, 0x08, struct uffdio_poison)

#define NUMBER_FROM                                                                    \
    56 /* of the descriptor: rarely given away, and in a table of 64, the smallest */
#define POLL_MS     1000
#define FETCH_TRIES 200 /* of 50 ms: descriptors can run out */
#define EAGAIN_RETRIES                                                                 \
    2000 /* of 0.5 ms: far longer than any change of a mapping takes */

/* By bit number. */
static const char *const FEATURES[] = {
    "wp",
    "event_fork",
    "event_remap",
    "event_remove",
    "hugetlb",
    "shmem",
    "event_unmap",
    "sigbus",
    "thread_id",
    "minor_hugetlb",
    "minor_shmem",
    "exact_address",
    "wp_hugetlb_shmem",
    "wp_unpopulated",
    "poison",
    "wp_async",
    "move",
};
#define FEATURE_COUNT ((int)(sizeof FEATURES / sizeof FEATURES[0]))

const char *lm_uffd_feature_name(int bit)
{
    return bit >= 0 && bit < FEATURE_COUNT ? FEATURES[bit] : NULL;
}

/* ---- opening --------------------------------------------------------------------------------- */

static int is_masked(const char *name)
{
    const char *list = getenv("LAZYMEM_MASK");
    size_t length = strlen(name);
    for (const char *p = list; p && (p = strstr(p, name)); p += length)
        if ((p == list || p[-1] == ',') && (p[length] == 0 || p[length] == ','))
            return 1;
    return 0;
}

static int open_device(struct lm_uffd_info *info)
{
    int device = is_masked("dev") ? -1 : open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int uffd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
    info->dev_errno = uffd < 0 ? (is_masked("dev") ? EPERM : errno) : 0;
    if (device >= 0)
        close(device);
    return uffd;
}

static int open_syscall(const char *name, int flags, int32_t *error)
{
    int uffd = -1;
    errno = EPERM;
    if (!is_masked(name))
        uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | flags);
    *error = uffd < 0 ? errno : 0;
    return uffd;
}

/* The ladder: the system call, the device, which takes longer, and the system call for
 * user-mode faults only. */
static int open_ladder(struct lm_uffd_info *info)
{
    *info = (struct lm_uffd_info){.mode = LM_UFFD_FULL};
    int uffd = open_syscall("syscall", 0, &info->full_errno);
    if (uffd < 0)
        uffd = open_device(info);
    if (uffd < 0) {
        info->mode = LM_UFFD_USER_ONLY;
        uffd = open_syscall("user", UFFD_USER_MODE_ONLY, &info->user_errno);
    }
    if (uffd < 0)
        info->mode = LM_UFFD_NONE;
    return uffd;
}

static uint64_t unmasked_features(uint64_t features)
{
    for (int bit = 0; bit < FEATURE_COUNT; bit++)
        if (is_masked(FEATURES[bit]))
            features &= ~(1ull << bit);
    return features;
}

#define FEATURES_WANTED (UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EVENT_REMAP)

static _Atomic uint64_t g_features_wanted = FEATURES_WANTED;

#ifdef LM_CHECKS
void lm__uffd_ask_for(uint64_t features)
{
    lm_store_relaxed(&g_features_wanted, FEATURES_WANTED | features);
}
#endif

static int uffd_open(struct lm_uffd_info *info)
{
    /* A descriptor shakes hands once, and asking for an unknown feature ends it. */
    for (int attempt = 0; attempt < 2; attempt++) {
        struct uffdio_api api = {.api = UFFD_API};
        if (attempt == 0)
            api.features = unmasked_features(lm_load_relaxed(&g_features_wanted));
        int uffd = open_ladder(info);
        if (uffd < 0)
            return LM_E_NO_UFFD;
        if (ioctl(uffd, UFFDIO_API, &api) == 0) {
            info->features = unmasked_features(api.features);
            return uffd;
        }
        info->api_errno = errno;
        close(uffd);
    }
    info->mode = LM_UFFD_NONE;
    return LM_E_NO_UFFD;
}

static _Atomic int g_uffd = -1; /* the process's */
static _Atomic int g_mode;
static _Atomic uint64_t g_features; /* offered */

/* Is it a userfaultfd?  Nobody waits for a page of the stack. */
static int is_uffd(int fd)
{
    struct uffdio_range range = {lm__round_down((uintptr_t)&range, lm__page_bytes()),
                                 lm__page_bytes()};
    return ioctl(fd, UFFDIO_WAKE, &range) == 0;
}

static int with_a_higher_number(int uffd)
{
    int higher = fcntl(uffd, F_DUPFD_CLOEXEC, NUMBER_FROM);
    if (higher >= 0 && is_uffd(uffd)) /* else it is a stranger's by now */
        close(uffd);
    return higher >= 0 ? higher : uffd;
}

int lm__uffd_start(void)
{
    struct lm_uffd_info info;
    int uffd = uffd_open(&info);
    lm_store_relaxed(&g_mode, info.mode);
    lm_store_relaxed(&g_features, info.features);
    if (uffd < 0)
        return uffd;
    uffd = with_a_higher_number(uffd);
    lm__keeper_prepare(uffd);
    lm_store_release(&g_uffd, uffd);
    return 0;
}

void lm__uffd_stop(void)
{
    int uffd = lm_load_relaxed(&g_uffd);
    if (is_uffd(uffd))
        close(uffd);
    lm_store_release(&g_uffd, -1);
    lm__keeper_stop();
}

int lm__uffd_is_open(void) { return lm_load_acquire(&g_uffd) >= 0; }

int lm_pager_mode(void) { return lm_load_relaxed(&g_mode); }

void lm_uffd_probe(struct lm_uffd_info *out)
{
    int uffd = uffd_open(out);
    if (uffd >= 0)
        close(uffd);
}

/* ---- when the program has closed it ----------------------------------------------------------- */

static pthread_mutex_t g_fetch_lock = PTHREAD_MUTEX_INITIALIZER;

/* This thread has had an answer of the userfaultfd since it last read from it. */
static _Thread_local int g_has_answered;

static int fetch(void)
{
    const struct timespec pause = {.tv_nsec = 50000000};
    for (int tries = 0; lm__keeper_await() && tries < FETCH_TRIES; tries++) {
        if (tries > 0)
            nanosleep(&pause, NULL);
        int uffd = with_a_higher_number(lm__keeper_fetch());
        if (is_uffd(uffd)) /* else it has been closed again */
            return uffd;
    }
    return -1;
}

/* `uffd`, if it is one, else the number that it has from now on; -1: nobody has it. */
static int find(int uffd)
{
    if (is_uffd(uffd))
        return uffd;
    pthread_mutex_lock(&g_fetch_lock);
    uffd = lm_load_acquire(&g_uffd);
    if (uffd >= 0 && !is_uffd(uffd)) {
        uffd = fetch();
        lm_store_release(&g_uffd, uffd);
    }
    pthread_mutex_unlock(&g_fetch_lock);
    return uffd;
}

/* Only a userfaultfd has these answers to what is asked here. */
static int is_of_uffd(int error)
{
    return error == EEXIST || error == EAGAIN || error == ENOENT || error == ENOMEM ||
           error == ESRCH || error == ENOSPC || error == EBUSY;
}

/* ioctl() on the userfaultfd, wherever it is. */
static int control(unsigned long request, void *arg)
{
    for (int is_first = 1;; is_first = 0) {
        int uffd = lm_load_acquire(&g_uffd);
        int rc = ioctl(uffd, request, arg), error = errno;
        int is_lost = rc != 0 && !is_of_uffd(error) &&
                      (is_first || error == EBADF || error == ENOTTY);
        g_has_answered = 1;
        if (!is_lost || find(uffd) < 0) {
            errno = error;
            return rc;
        }
    }
}

/* The number to read from. */
static int number_to_read(void)
{
    int uffd = lm_load_acquire(&g_uffd);
    if (!g_has_answered)
        uffd = find(uffd);
    g_has_answered = 0;
    return uffd;
}

void lm__uffd_fork_prepare(void) { pthread_mutex_lock(&g_fetch_lock); }
void lm__uffd_fork_done(void) { pthread_mutex_unlock(&g_fetch_lock); }

static int register_mode(uintptr_t addr, size_t bytes, uint64_t mode)
{
    struct uffdio_register reg = {.range = {addr, bytes}, .mode = mode};
    return control(UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
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

int lm__uffd_unregister(uintptr_t addr, size_t bytes)
{
    struct uffdio_range range = {addr, bytes};
    return control(UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

/* ---- events ------------------------------------------------------------------------------------ */

static struct {
    _Atomic uint64_t events, copies, zeropages, moves, wakes;
    _Atomic uint64_t eexist, eagain_partial, eagain, enoent, enomem, refused, poisons;
    _Atomic uint64_t protects;
} g_stats;

int lm__uffd_read(struct lm__fault *out)
{
    for (;;) {
        struct uffd_msg msg;
        int uffd = number_to_read();
        if (uffd < 0)
            return -EBADF;
        ssize_t got = read(uffd, &msg, sizeof msg);
        if (got == (ssize_t)sizeof msg && msg.event == UFFD_EVENT_PAGEFAULT) {
            lm_add_relaxed(&g_stats.events, 1);
            *out = (struct lm__fault){
                .addr = msg.address,
                .tid = (int32_t)msg.ptid,
                .is_write = (msg.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0,
                .is_protected = (msg.flags & UFFD_PAGEFAULT_FLAG_WP) != 0,
            };
            return 0;
        }
        if (got < 0 && errno == EAGAIN)
            return -EAGAIN;
        /* Else a signal, another event, or a stranger's file: the next round tells. */
    }
}

static pthread_mutex_t g_flags_lock = PTHREAD_MUTEX_INITIALIZER;

void lm__uffd_read_no_more_blocks(void)
{
    int uffd = find(lm_load_acquire(&g_uffd));
    pthread_mutex_lock(&g_flags_lock);
    fcntl(uffd, F_SETFL, fcntl(uffd, F_GETFL) | O_NONBLOCK);
    pthread_mutex_unlock(&g_flags_lock);
}

void lm__uffd_await_events(void)
{
    struct pollfd pfd = {.fd = find(lm_load_acquire(&g_uffd)), .events = POLLIN};
    poll(&pfd, 1, POLL_MS); /* not for ever: it may be a stranger's by now ... */
    g_has_answered = 0;     /* ... or become one meanwhile */
}

int lm__uffd_has_events(void)
{
    /* The kernel answers poll() on a non-blocking descriptor only.  A handler that begins to
     * read meanwhile gets EAGAIN, and tries again. */
    int uffd = find(lm_load_acquire(&g_uffd));
    struct pollfd pfd = {.fd = uffd, .events = POLLIN};
    pthread_mutex_lock(&g_flags_lock);
    int flags = fcntl(uffd, F_GETFL);
    fcntl(uffd, F_SETFL, flags | O_NONBLOCK);
    poll(&pfd, 1, 0);
    fcntl(uffd, F_SETFL, flags);
    pthread_mutex_unlock(&g_flags_lock);
    return pfd.revents & POLLIN;
}

void lm__uffd_wake(uintptr_t addr, size_t bytes)
{
    struct uffdio_range range = {addr, bytes};
    lm_add_relaxed(&g_stats.wakes, 1);
    control(UFFDIO_WAKE, &range); /* fails only where nobody can be waiting */
}

static int has_feature(uint64_t feature)
{
    return (lm_load_relaxed(&g_features) & feature) != 0;
}

int lm__uffd_can_poison(void) { return has_feature(UFFD_FEATURE_POISON); }
int lm__uffd_can_move(void) { return has_feature(UFFD_FEATURE_MOVE); }
int lm__uffd_can_hugetlb(void) { return has_feature(UFFD_FEATURE_HUGETLB); }

int lm__uffd_can_track(unsigned page_shift)
{
    return has_feature(UFFD_FEATURE_WP) &&
           ((size_t)1 << page_shift == lm__page_bytes() ||
            has_feature(UFFD_FEATURE_WP_HUGETLB));
}

int lm__uffd_protect(uintptr_t addr, size_t bytes, int is_protected)
{
    struct uffdio_writeprotect arg = {{addr, bytes},
                                      is_protected ? UFFDIO_WRITEPROTECT_MODE_WP
                                                   : UFFDIO_WRITEPROTECT_MODE_DONTWAKE};
    const struct timespec pause = {.tv_nsec = 500000};
    lm_add_relaxed(&g_stats.protects, 1);
    for (int retries = 0; control(UFFDIO_WRITEPROTECT, &arg) != 0; retries++) {
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
    control(UFFDIO_POISON, &arg);
}

/* ---- installing ----------------------------------------------------------------------------------- */

struct range_left {
    uintptr_t addr;
    const char *src; /* NULL: zero pages */
    size_t bytes;
    size_t page_bytes;
    int is_hugetlb;
    int is_protected;
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
        rc = control(UFFDIO_COPY, &arg);
        installed = arg.copy;
    } else {
        struct uffdio_zeropage arg = {{left->addr, bytes}, UFFDIO_MODE_DONTWAKE, 0};
        lm_add_relaxed(&g_stats.zeropages, 1);
        rc = control(UFFDIO_ZEROPAGE, &arg);
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
    return install((struct range_left){addr, src, bytes, lm__page_bytes(), 0, 0});
}

enum lm__install lm__uffd_copy_huge(uintptr_t addr, const void *src, size_t bytes,
                                    unsigned page_shift)
{
    return install(
        (struct range_left){addr, src, bytes, (size_t)1 << page_shift, 1, 0});
}

enum lm__install lm__uffd_copy_protected(uintptr_t addr, const void *src, size_t bytes,
                                         unsigned page_shift)
{
    size_t page_bytes = (size_t)1 << page_shift;
    int is_hugetlb = page_bytes != lm__page_bytes();
    return install((struct range_left){addr, src, bytes, page_bytes, is_hugetlb, 1});
}

int lm__uffd_lend(uintptr_t addr, const void *src, unsigned page_shift,
                  int is_protected)
{
    size_t page_bytes = (size_t)1 << page_shift, done;
    struct range_left page = {addr, src, page_bytes, page_bytes, 0, is_protected};
    const struct timespec pause = {.tv_nsec = 500000};
    for (int retries = 0; install_once(&page, page_bytes, &done) == EAGAIN &&
                          done == 0 && retries < EAGAIN_RETRIES;
         retries++)
        nanosleep(&pause, NULL);
    return done == page_bytes;
}

enum lm__install lm__uffd_zero(uintptr_t addr, size_t bytes)
{
    return install((struct range_left){addr, NULL, bytes, lm__page_bytes(), 0, 0});
}

size_t lm__uffd_move(uintptr_t addr, void *src, size_t bytes)
{
    struct uffdio_move arg = {addr, (uintptr_t)src, bytes, UFFDIO_MODE_DONTWAKE, 0};
    lm_add_relaxed(&g_stats.moves, 1);
    control(UFFDIO_MOVE, &arg);
    return arg.move > 0 ? (size_t)arg.move : 0;
}

void lm__uffd_stats(struct lm_pager_stats *out)
{
    out->events = lm_load_relaxed(&g_stats.events);
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
}
