/* SPDX-License-Identifier: BSD-3-Clause
 * interrupt.c - Ctrl-C for a main thread that sleeps in a fault.
 *
 * A signal wakes such a thread, its handler runs, and the instruction starts again and sleeps
 * again: nothing can be raised before the operation ends, which with a slow source may be
 * never.  So while the main thread waits for a chunk that takes its time, SIGINT is caught
 * here:
 *
 *   watch --(SIGINT: noted, the thread faults again)--> take: the fault is answered as one
 *     |                                                 that failed, and the runtime raises
 *     '---- end: the chunk is there.  What was noted meanwhile is raised anew
 *
 * A SIGINT that comes between the fault and the watch runs its handler, and does not end the
 * wait: the next one does.
 *
 * The operation goes on until its end, through memory that is answered for without being read,
 * since nothing can end a loop in C.
 *
 * Every other signal, and SIGINT at any other time, is none of our business.  The runtime's
 * handler can't be changed meanwhile: only the main thread does that.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction g_theirs; /* under g_lock; fixed while watching */
static _Atomic int g_is_watching; /* written under it */
static _Atomic int g_is_noted;
static _Atomic int g_is_pending; /* taken, and perhaps not yet raised */
static _Atomic uint32_t g_count;

static void on_sigint(int signal_number, siginfo_t *info, void *context)
{
    if (lm__thread_id() == (int32_t)getpid()) {
        lm_store_seq_cst(&g_is_noted, 1);
        /* Unless the watch has ended while the signal was on its way. */
        if (lm_load_seq_cst(&g_is_watching) || !lm_swap_seq_cst(&g_is_noted, 0))
            return;
    }
    if (g_theirs.sa_flags & SA_SIGINFO)
        g_theirs.sa_sigaction(signal_number, info, context);
    else
        g_theirs.sa_handler(signal_number);
}

void lm__interrupt_watch(int32_t tid)
{
    if (tid != (int32_t)getpid() || !lm__failure_takes_interrupts())
        return;
    pthread_mutex_lock(&g_lock);
    if (!lm_load_relaxed(&g_is_watching)) {
        sigaction(SIGINT, NULL, &g_theirs);
        int has_handler =
            (g_theirs.sa_flags & SA_SIGINFO) ||
            (g_theirs.sa_handler != SIG_DFL && g_theirs.sa_handler != SIG_IGN);
        struct sigaction ours = g_theirs;
        ours.sa_sigaction = on_sigint;
        ours.sa_flags |= SA_SIGINFO;
        lm_store_seq_cst(&g_is_watching, has_handler);
        if (has_handler && sigaction(SIGINT, &ours, NULL) != 0)
            lm_store_seq_cst(&g_is_watching, 0);
    }
    pthread_mutex_unlock(&g_lock);
}

static int end_locked(void)
{
    int is_noted = 0;
    if (lm_load_relaxed(&g_is_watching)) {
        sigaction(SIGINT, &g_theirs, NULL);
        lm_store_seq_cst(&g_is_watching, 0);
        is_noted = lm_swap_seq_cst(&g_is_noted, 0); /* pairs with on_sigint() */
    }
    return is_noted;
}

void lm__interrupt_end(int32_t tid)
{
    if (!lm_load_seq_cst(&g_is_watching) || tid != (int32_t)getpid())
        return;
    pthread_mutex_lock(&g_lock);
    int is_noted = end_locked();
    pthread_mutex_unlock(&g_lock);
    if (is_noted)
        syscall(SYS_tgkill, getpid(), tid, SIGINT);
}

int lm__interrupt_is_pending(int32_t tid)
{
    if (!lm_load_seq_cst(&g_is_pending) || tid != (int32_t)getpid())
        return 0;
    if (lm__failure_is_waiting(tid))
        return 1;
    lm_store_seq_cst(&g_is_pending, 0);
    return 0;
}

int lm__interrupt_take(int32_t tid)
{
    if (!lm_load_seq_cst(&g_is_noted) || tid != (int32_t)getpid())
        return 0;
    pthread_mutex_lock(&g_lock);
    int is_noted = end_locked();
    lm_add_seq_cst(&g_count, (uint32_t)is_noted);
    if (is_noted)
        lm_store_seq_cst(&g_is_pending, 1);
    pthread_mutex_unlock(&g_lock);
    return is_noted;
}

#ifdef LM_CHECKS
uint32_t lm__interrupt_count(void) { return lm_load_seq_cst(&g_count); }
#endif

void lm__interrupt_fork_prepare(void) { pthread_mutex_lock(&g_lock); }
void lm__interrupt_fork_done(void) { pthread_mutex_unlock(&g_lock); }
