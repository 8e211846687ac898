/* SPDX-License-Identifier: BSD-3-Clause
 * uffd_fd.c - the descriptor of the process's userfaultfd, and what is read from it.
 *
 * The program may close it, with all its descriptors, and its number may be a stranger's then:
 * EBADF and ENOTTY say so, and it is fetched from its keeper.
 *
 * read() of a number that is a stranger's would steal what is in there.  So whoever reads has
 * had an answer of ioctl() since its last read; nearly always that was a COPY and a WAKE.
 * What is left is a number that is closed and given away while a handler is on its way from
 * the one to the other; therefore it is not among the lowest, which are given away first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "uffd_abi.h"

#define NUMBER_FROM                                                                    \
    56 /* of the descriptor: rarely given away, and in a table of 64, the smallest */
#define POLL_MS     1000
#define FETCH_TRIES 200 /* of 50 ms: descriptors can run out */

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
    int uffd = lm__uffd_open(&info);
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

static int has_feature(uint64_t feature)
{
    return (lm_load_relaxed(&g_features) & feature) != 0;
}

int lm__uffd_can_poison(void) { return has_feature(UFFD_FEATURE_POISON); }
int lm__uffd_can_move(void) { return has_feature(UFFD_FEATURE_MOVE); }
int lm__uffd_can_hugetlb(void) { return has_feature(UFFD_FEATURE_HUGETLB); }
int lm__uffd_can_share(void)
{
    return has_feature(UFFD_FEATURE_SHMEM) && has_feature(UFFD_FEATURE_MINOR_SHMEM);
}

int lm__uffd_can_track(unsigned page_shift)
{
    return has_feature(UFFD_FEATURE_WP) &&
           ((size_t)1 << page_shift == lm__page_bytes() ||
            has_feature(UFFD_FEATURE_WP_HUGETLB));
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
int lm__uffd_control(unsigned long request, void *arg)
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

/* ---- events ------------------------------------------------------------------------------------ */

static _Atomic uint64_t g_events;
static _Atomic int g_has_moved;

int lm__uffd_has_moved(void) { return lm_load_relaxed(&g_has_moved); }

uint64_t lm__uffd_events(void) { return lm_load_relaxed(&g_events); }

int lm__uffd_read(struct lm__fault *out)
{
    for (;;) {
        struct uffd_msg msg;
        int uffd = number_to_read();
        if (uffd < 0)
            return -EBADF;
        ssize_t got = read(uffd, &msg, sizeof msg);
        if (got == (ssize_t)sizeof msg && msg.event == UFFD_EVENT_PAGEFAULT) {
            lm_add_relaxed(&g_events, 1);
            *out = (struct lm__fault){
                .addr = msg.address,
                .tid = (int32_t)msg.ptid,
                .is_write = (msg.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0,
                .is_protected = (msg.flags & UFFD_PAGEFAULT_FLAG_WP) != 0,
            };
            return 0;
        }
        if (got == (ssize_t)sizeof msg && msg.event == UFFD_EVENT_REMAP)
            lm_store_relaxed(&g_has_moved, 1);
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
