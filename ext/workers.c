/* SPDX-License-Identifier: BSD-3-Clause
 * workers.c - one thread a core, for work that can be cut into independent steps.
 *
 * A job is a function and a number of steps; workers take the next step of the first job in
 * the queue.  Steps begin in ascending order, so a step may wait for earlier ones of its job.
 * Whoever started the job waits in small pieces, and so can show progress or give up.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

#define ERRORS_KEPT 256 /* of one job; more are counted */

struct lm_job {
    struct lm__job_spec spec; /* fixed after start */
    lm_job *next, *previous;  /* all jobs not ended; under g_lock, as all below */
    uint64_t next_step;
    uint64_t running;
    uint64_t steps_done;
    uint64_t errors;
    struct lm_error *kept;
    int is_cancelled;
    int is_detached;
};

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t g_work = PTHREAD_COND_INITIALIZER; /* there is a step to take */
static pthread_cond_t g_done = PTHREAD_COND_INITIALIZER; /* a step has ended */
static lm_job *g_first, *g_last; /* under g_lock, as is the next */
static unsigned g_workers;

/* ---- jobs, all under g_lock -------------------------------------------------------------------- */

static int has_step_locked(const lm_job *job)
{
    return !job->is_cancelled && job->next_step < job->spec.steps;
}

static int has_ended_locked(const lm_job *job)
{
    return !has_step_locked(job) && job->running == 0;
}

static void link_locked(lm_job *job)
{
    job->previous = g_last;
    *(g_last ? &g_last->next : &g_first) = job;
    g_last = job;
}

static void unlink_locked(lm_job *job)
{
    *(job->previous ? &job->previous->next : &g_first) = job->next;
    *(job->next ? &job->next->previous : &g_last) = job->previous;
}

static void keep_error_locked(lm_job *job, const struct lm_error *err)
{
    if (!job->kept)
        job->kept = malloc(ERRORS_KEPT * sizeof job->kept[0]);
    if (job->kept && job->errors < ERRORS_KEPT)
        job->kept[job->errors] = *err;
    job->errors++;
    if (!job->spec.keep_going)
        job->is_cancelled = 1;
}

static void job_free(lm_job *job)
{
    if (job->spec.free_context)
        job->spec.free_context(job->spec.context);
    free(job->kept);
    free(job);
}

/* ---- workers --------------------------------------------------------------------------------------- */

static lm_job *first_with_step_locked(void)
{
    static const enum lm__job_priority order[] = {LM_JOB_URGENT, LM_JOB_NORMAL,
                                                  LM_JOB_BACKGROUND};
    for (int i = 0; i < 3; i++)
        for (lm_job *job = g_first; job; job = job->next)
            if (job->spec.priority == order[i] && has_step_locked(job))
                return job;
    return NULL;
}

/* Run the next step.  The lock is dropped meanwhile.  Returns a job to be freed, or NULL. */
static lm_job *run_step_locked(lm_job *job, struct lm__scratch *scratch)
{
    struct lm_error err = lm__error(0, "");
    uint64_t step_idx = job->next_step++;
    job->running++;
    pthread_mutex_unlock(&g_lock);
    int rc = job->spec.step(job->spec.context, step_idx, scratch, &err);
    pthread_mutex_lock(&g_lock);
    job->running--;
    job->steps_done++;
    if (rc < 0)
        keep_error_locked(job, &err);
    if (!has_ended_locked(job))
        return NULL;
    unlink_locked(job);
    pthread_cond_broadcast(&g_done);
    return job->is_detached ? job : NULL;
}

static void worker(void)
{
    struct lm__scratch scratch = {0};
    pthread_mutex_lock(&g_lock);
    for (;;) {
        lm_job *job = first_with_step_locked();
        if (!job) {
            pthread_cond_wait(&g_work, &g_lock);
            continue;
        }
        job = run_step_locked(job, &scratch);
        if (job) {
            pthread_mutex_unlock(&g_lock);
            job_free(job);
            pthread_mutex_lock(&g_lock);
        }
    }
}

static int start_workers_locked(void)
{
    static const struct lm__thread thread = {worker, "lazymem-work"};
    int rc = 0;
    while (rc == 0 && g_workers < lm__cores())
        if ((rc = lm__thread_start(&thread)) == 0)
            g_workers++;
    return g_workers > 0 ? 0 : rc;
}

/* ---- for those who start jobs -------------------------------------------------------------------------- */

/* A lone step is not worth a thread switch. */
static void run_inline_locked(lm_job *job)
{
    struct lm__scratch scratch = lm__scratch_take();
    run_step_locked(job, &scratch);
    lm__scratch_give(&scratch);
}

int lm__job_start(const struct lm__job_spec *spec, lm_job **out)
{
    lm_job *job = calloc(1, sizeof *job);
    if (!job) {
        if (spec->free_context)
            spec->free_context(spec->context);
        return -ENOMEM;
    }
    job->spec = *spec;
    pthread_mutex_lock(&g_lock);
    int is_inline = spec->steps == 1 && spec->priority == LM_JOB_NORMAL;
    int rc = is_inline ? 0 : start_workers_locked();
    if (rc == 0) {
        link_locked(job);
        if (is_inline)
            run_inline_locked(job);
        else
            pthread_cond_broadcast(&g_work);
    }
    pthread_mutex_unlock(&g_lock);
    if (rc != 0)
        job_free(job);
    else
        *out = job;
    return rc;
}

int lm_job_wait(lm_job *job, int timeout_ms)
{
    struct timespec until;
    if (timeout_ms < 0)
        timeout_ms = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&g_lock);
    for (int rc = 0; rc != ETIMEDOUT && !has_ended_locked(job);)
        rc = pthread_cond_timedwait(&g_done, &g_lock, &until);
    int has_ended = has_ended_locked(job);
    pthread_mutex_unlock(&g_lock);
    return has_ended;
}

void lm_job_progress(const lm_job *job, struct lm_progress *out)
{
    pthread_mutex_lock(&g_lock);
    *out = (struct lm_progress){.steps_done = job->steps_done,
                                .steps_total = job->spec.steps,
                                .errors = job->errors};
    pthread_mutex_unlock(&g_lock);
}

int lm_job_errors(lm_job *job, struct lm_error *out, int max)
{
    int n = 0;
    pthread_mutex_lock(&g_lock);
    for (; n < max && job->kept && (uint64_t)n < job->errors && n < ERRORS_KEPT; n++)
        out[n] = job->kept[n];
    pthread_mutex_unlock(&g_lock);
    return n;
}

void lm_job_close(lm_job *job, enum lm_job_end how)
{
    pthread_mutex_lock(&g_lock);
    int is_linked = !has_ended_locked(job);
    if (how != LM_JOB_DETACH)
        job->is_cancelled = 1;
    if (is_linked &&
        (how == LM_JOB_DETACH || (how == LM_JOB_LEAVE && job->running > 0))) {
        job->is_detached = 1; /* the last step frees it */
        pthread_mutex_unlock(&g_lock);
        return;
    }
    if (is_linked && job->running == 0)
        unlink_locked(job);
    while (job->running > 0) /* the last of them unlinks the job */
        pthread_cond_wait(&g_done, &g_lock);
    pthread_mutex_unlock(&g_lock);
    job_free(job);
}

/* ---- fork ---------------------------------------------------------------------------------------------- */

void lm__workers_fork_prepare(void) { pthread_mutex_lock(&g_lock); }
void lm__workers_fork_done(void) { pthread_mutex_unlock(&g_lock); }

void lm__workers_fork_child(void)
{
    /* A condition counts its waiters, and waits for those that it has woken: here they are
     * threads that do not exist. */
    static const pthread_cond_t fresh = PTHREAD_COND_INITIALIZER;
    g_work = g_done = fresh;
    g_workers = 0;
    for (lm_job *job = g_first; job; job = job->next) {
        job->running = 0;
        job->is_cancelled = 1;
    }
    g_first = g_last = NULL;
}
