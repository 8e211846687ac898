/* SPDX-License-Identifier: BSD-3-Clause
 * os.c - what the engine asks of the system besides files: pages, threads, cores.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

#define STACK_BYTES (512 << 10) /* the codecs keep their tables on the heap */
#define CORES_MAX   64

#ifdef LM_CHECKS
_Atomic(lm__pause_fn) lm__pause_hook;
#endif

size_t lm__page_bytes(void)
{
    static _Atomic size_t page_bytes;
    size_t bytes = lm_load_relaxed(&page_bytes);
    if (bytes == 0) {
        bytes = (size_t)sysconf(_SC_PAGESIZE);
        lm_store_relaxed(&page_bytes, bytes);
    }
    return bytes;
}

#ifndef MADV_DONTNEED_LOCKED /* since Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif

void lm__pages_drop(uintptr_t addr, size_t bytes)
{
    if (madvise((void *)addr, bytes, MADV_DONTNEED) == 0 ||
        madvise((void *)addr, bytes, MADV_DONTNEED_LOCKED) == 0)
        return;
    munlock((void *)addr, bytes);
    madvise((void *)addr, bytes, MADV_DONTNEED);
}

int lm__page_is_present(uintptr_t addr)
{
    unsigned char present = 0;
    size_t page_bytes = lm__page_bytes();
    mincore((void *)lm__round_down(addr, page_bytes), page_bytes, &present);
    return present & 1;
}

unsigned lm__cores(void)
{
    cpu_set_t cpus;
    int cores = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    return cores < 1 ? 1 : cores > CORES_MAX ? CORES_MAX : (unsigned)cores;
}

/* A thread names itself: a detached one may be gone before its creator could, and another
 * thread's name goes through /proc, whose entries make the end of a process slow. */
static void *thread_main(void *arg)
{
    const struct lm__thread *thread = arg;
    pthread_setname_np(pthread_self(), thread->name);
    thread->run();
    return NULL;
}

static int thread_create(pthread_t *id, void *(*run)(void *), const void *arg)
{
    pthread_attr_t attr;
    sigset_t all, before;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the new thread inherits the mask */
    int rc = pthread_create(id, &attr, run, (void *)arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return -rc;
}

int lm__thread_start(const struct lm__thread *thread)
{
    pthread_t id;
    int rc = thread_create(&id, thread_main, thread);
    return rc == 0 ? -pthread_detach(id) : rc;
}

static void *end_at_once(void *arg) { return arg; }

void lm__thread_warm(void)
{
    pthread_t id;
    if (thread_create(&id, end_at_once, NULL) == 0)
        pthread_join(id, NULL);
}
