/* SPDX-License-Identifier: BSD-3-Clause
 * Does a job run each step once, beginning in order, and end when it is told to?
 */
#define _GNU_SOURCE
#include <semaphore.h>

#include "test.h"

#define STEPS 500

struct work {
    _Atomic unsigned ran[STEPS];
    _Atomic uint64_t begun;
    _Atomic int frees;
    uint64_t fail_from;    /* steps from here on fail; 0: none */
    sem_t entered, may_go; /* with is_gated, a step posts one and waits for the other */
    int is_gated;
};

static int step(void *context, uint64_t idx, struct lm__scratch *scratch,
                struct lm_error *err)
{
    struct work *w = context;
    CHECK(scratch);
    lm_add_seq_cst(&w->begun, 1);
    lm_add_seq_cst(&w->ran[idx], 1);
    if (w->is_gated) {
        sem_post(&w->entered);
        sem_wait(&w->may_go);
    }
    if (w->fail_from && idx >= w->fail_from) {
        *err = lm__error(-EIO, "step");
        err->chunk_idx = idx;
        return -EIO;
    }
    return 0;
}

static void count_free(void *context)
{
    lm_add_seq_cst(&((struct work *)context)->frees, 1);
}

static struct work *work_new(int is_gated)
{
    struct work *w = calloc(1, sizeof *w);
    CHECK(w && sem_init(&w->entered, 0, 0) == 0 && sem_init(&w->may_go, 0, 0) == 0);
    w->is_gated = is_gated;
    return w;
}

static lm_job *start(struct work *w, uint64_t steps, int keep_going)
{
    lm_job *job;
    struct lm__job_spec spec = {step, count_free, w, steps, keep_going, 0};
    CHECK_EQ(lm__job_start(&spec, &job), 0);
    return job;
}

static void close_and_free(lm_job *job, struct work *w)
{
    lm_job_close(job, 0);
    CHECK_EQ(w->frees, 1);
    free(w);
}

static void test_each_step_once(void)
{
    struct work *w = work_new(0);
    struct lm_progress p;
    lm_job *job = start(w, STEPS, 0);
    test_finish(job);
    for (int i = 0; i < STEPS; i++)
        CHECK_EQ(w->ran[i], 1);
    CHECK_EQ(w->frees, 1);
    memset(w, 0, sizeof *w);
    job = start(w, 1, 0); /* a lone step has run on return */
    CHECK_EQ(w->begun, 1);
    CHECK_EQ(lm_job_wait(job, 0), 1);
    lm_job_progress(job, &p);
    CHECK(p.steps_done == 1 && p.steps_total == 1 && p.errors == 0);
    close_and_free(job, w);
}

static void test_first_error_ends_it(void)
{
    struct work *w = work_new(0);
    struct lm_error errors[4];
    struct lm_progress p;
    w->fail_from = 10;
    lm_job *job = start(w, STEPS, 0);
    while (!lm_job_wait(job, 1000))
        ;
    lm_job_progress(job, &p);
    CHECK(p.errors >= 1 && p.steps_done < STEPS);
    CHECK(lm_job_errors(job, errors, 4) >= 1);
    CHECK_EQ(errors[0].code, -EIO);
    CHECK(errors[0].chunk_idx >= 10);
    close_and_free(job, w);
}

static void test_all_errors_are_counted(void)
{
    struct work *w = work_new(0);
    struct lm_error *errors = calloc(1000, sizeof *errors);
    struct lm_progress p;
    CHECK(errors);
    w->fail_from = 1;
    lm_job *job = start(w, STEPS, 1);
    while (!lm_job_wait(job, 1000))
        ;
    lm_job_progress(job, &p);
    CHECK_EQ(p.errors, STEPS - 1);
    CHECK_EQ(p.steps_done, STEPS);
    CHECK_EQ(lm_job_errors(job, errors, 1000), 256); /* so many are kept */
    CHECK_EQ(lm_job_errors(job, errors, 3), 3);
    free(errors);
    close_and_free(job, w);
}

static void *post_later(void *arg)
{
    struct work *w = arg;
    for (int i = 0; i < STEPS; i++)
        sem_post(&w->may_go);
    return NULL;
}

static void test_close_waits_for_running_steps_only(void)
{
    struct work *w = work_new(1);
    lm_job *job = start(w, STEPS, 0);
    sem_wait(&w->entered);
    CHECK_EQ(lm_job_wait(job, 0), 0);
    pthread_t poster = test_thread(post_later, w);
    lm_job_close(job, 0);
    CHECK_EQ(w->frees, 1);
    uint64_t begun = w->begun;
    pthread_join(poster, NULL);
    CHECK_EQ(w->begun, begun);
    free(w);
}

static void test_wait_times_out(void)
{
    struct work *w = work_new(1);
    lm_job *job = start(w, 2, 0);
    CHECK_EQ(lm_job_wait(job, 1), 0);
    CHECK_EQ(lm_job_wait(job, -999), 0);
    post_later(w);
    test_finish(job);
    free(w);
}

static void *wait_for_end(void *job)
{
    while (!lm_job_wait(job, 60000))
        ;
    return NULL;
}

/* A job that ends wakes those who wait for another one as well; they wait on. */
static void test_two_jobs_at_once(void)
{
    struct work *first = work_new(1), *second = work_new(0);
    lm_job *one = start(first, 2, 0), *two = start(second, STEPS, 0);
    pthread_t a = test_thread(wait_for_end, one), b = test_thread(wait_for_end, two);
    post_later(first);
    pthread_join(a, NULL);
    pthread_join(b, NULL);
    close_and_free(one, first);
    close_and_free(two, second);
}

static void test_detached_job_runs_on(void)
{
    struct work *w = work_new(1);
    lm_job_close(start(w, 20, 0), 1);
    post_later(w);
    while (lm_load_seq_cst(&w->frees) == 0)
        sched_yield();
    CHECK_EQ(w->begun, 20);
    free(w);
    w = work_new(0);
    lm_job_close(start(w, 1, 0), 1); /* one that has ended already */
    CHECK_EQ(w->frees, 1);
    free(w);
}

static void test_many_short_jobs(void)
{
    for (int i = 0; i < 300; i++) {
        struct work *w = work_new(0);
        lm_job *job = start(w, 1 + (uint64_t)i % 7, 0);
        if (i % 3 == 0)
            lm_job_wait(job, 0);
        close_and_free(job, w);
    }
}

static _Atomic int g_may_go, g_last_urgent, g_order;

static int wait_then_count(void *context, uint64_t step_idx,
                           struct lm__scratch *scratch, struct lm_error *err)
{
    (void)context, (void)step_idx, (void)scratch, (void)err;
    while (!lm_load_seq_cst(&g_may_go))
        usleep(100);
    lm_add_seq_cst(&g_order, 1);
    return 0;
}

static int note_order(void *context, uint64_t step_idx, struct lm__scratch *scratch,
                      struct lm_error *err)
{
    (void)context, (void)step_idx, (void)scratch, (void)err;
    lm_store_seq_cst(&g_last_urgent, lm_add_seq_cst(&g_order, 1));
    return 0;
}

/* What a reader is about to want goes before what was asked for earlier. */
static void test_urgent_steps_go_first(void)
{
    struct lm__job_spec many = {.step = wait_then_count, .steps = 1000};
    struct lm__job_spec urgent = {
        .step = note_order, .steps = 1, .priority = LM_JOB_URGENT};
    lm_job *job, *jobs[3];
    CHECK_EQ(lm__job_start(&many, &job), 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(lm__job_start(&urgent, &jobs[i]), 0);
    lm_store_seq_cst(&g_may_go, 1);
    for (int i = 0; i < 3; i++)
        test_finish(jobs[i]);
    test_finish(job);
    CHECK(lm_load_seq_cst(&g_last_urgent) < 3 + 2 * (int)lm__cores());
    CHECK_EQ(lm_load_seq_cst(&g_order), 1003);
}

int main(void)
{
    test_each_step_once();
    test_first_error_ends_it();
    test_all_errors_are_counted();
    test_close_waits_for_running_steps_only();
    test_wait_times_out();
    test_two_jobs_at_once();
    test_detached_job_runs_on();
    test_many_short_jobs();
    test_urgent_steps_go_first();
    return TEST_OK;
}
