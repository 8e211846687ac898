/* SPDX-License-Identifier: BSD-3-Clause
 * os.c - what the engine asks of the system besides files: pages, threads, cores.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

#define STACK_BYTES (512 << 10) /* the codecs keep their tables on the heap */
#define CORES_MAX   64

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

unsigned lm__cores(void)
{
    cpu_set_t cpus;
    int cores = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    return cores < 1 ? 1 : cores > CORES_MAX ? CORES_MAX : (unsigned)cores;
}

struct thread {
    void *(*run)(void *);
    void *arg;
    const char *name;
};

/* A thread names itself: a detached one may be gone before its creator could, and another
 * thread's name goes through /proc, whose entries make the end of a process slow. */
static void *thread_main(void *arg)
{
    struct thread t = *(struct thread *)arg;
    free(arg);
    pthread_setname_np(pthread_self(), t.name);
    return t.run(t.arg);
}

int lm__thread_start(void *(*run)(void *), void *arg, const char *name)
{
    struct thread *t = malloc(sizeof *t);
    if (!t)
        return -ENOMEM;
    *t = (struct thread){run, arg, name};
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t all, before;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the new thread inherits the mask */
    int rc = pthread_create(&thread, &attr, thread_main, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (rc != 0)
        free(t);
    return -rc;
}
