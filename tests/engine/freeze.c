/* SPDX-License-Identifier: BSD-3-Clause
 * Is memory frozen at one moment, though threads write, read, give pages back or release it while
 * it is swept and copied; does everybody go on who waits, and is no write lost?
 *
 * Threads are held at pause points, so that each race happens.  Units are chunks of the region: of
 * the array, or huge pages that have many of those.
 */
#define _GNU_SOURCE
#include "pause.h"
#include "pool.h"
#include "uffd.h"
#include "writable.h"

static struct array *const g_data = &g.arrays[0], *const g_zero = &g.arrays[1];
static size_t g_unit;
static struct lm_region_options g_options;

/* Of a unit: a place to write to. */
static size_t in(size_t unit, size_t offset) { return unit * g_unit + offset; }

static enum lm__chunk_state state_of(const struct array *a, size_t unit)
{
    return lm__chunks_state(&a->region->chunks, unit);
}

static uint64_t dirty(const struct array *a) { return lm_region_dirty(a->region); }

/* Nothing is in memory, and what was not stored is gone. */
static void begin_anew(void)
{
    for (int i = 0; i < 2; i++)
        array_close(&g.arrays[i]);
    test_regions_gone();
    for (int i = 0; i < 2; i++)
        array_open(&g.arrays[i], g_options);
}

/* ---- threads that write one byte, or read one, or begin a snapshot ---------------------------- */

struct writer {
    struct array *a;
    size_t at;
    uint8_t value;
    pthread_t thread;
    int32_t tid;
    _Atomic int is_over;
    int has_error;
};

static void *write_one(void *arg)
{
    struct writer *w = arg;
    w->tid = test_tid();
    *(volatile uint8_t *)(w->a->memory + w->at) = w->value;
    w->has_error = lm_failure_take(w->tid, NULL);
    lm_store_seq_cst(&w->is_over, 1);
    return NULL;
}

static uint64_t write_faults(const struct array *a)
{
    return lm_load_relaxed(&a->region->writes.faults);
}

static void write_start(struct writer *w, struct array *a, size_t at, uint8_t value)
{
    *w = (struct writer){.a = a, .at = at, .value = value};
    w->thread = test_thread(write_one, w);
}

/* One that has to wait, and does. */
static void write_start_and_wait(struct writer *w, struct array *a, size_t at,
                                 uint8_t value)
{
    uint64_t before = write_faults(a);
    write_start(w, a, at, value);
    AWAIT(write_faults(a) > before);
}

/* Its write has come to pass, in memory and not before. */
static void write_end(struct writer *w)
{
    CHECK_EQ(pthread_join(w->thread, NULL), 0);
    CHECK(!w->has_error);
    w->a->right[w->at] = w->value;
}

static struct lm_snapshot_stats g_stats;

static void *begin_one(void *out)
{
    *(lm_snapshot **)out = begin(&g_stats);
    return NULL;
}

static void *finish_one(void *s)
{
    write_out(s);
    return NULL;
}

/* What the snapshot has is what was right when it began. */
static uint8_t *keep_right(const struct array *a)
{
    uint8_t *kept = malloc(a->enc.object_bytes);
    CHECK(kept);
    memcpy(kept, a->right, a->enc.object_bytes);
    return kept;
}

static void file_was_right(const struct array *a, uint8_t *kept)
{
    uint8_t *found = malloc(a->enc.object_bytes);
    CHECK(found);
    read_file(a, found);
    CHECK(memcmp(found, kept, a->enc.object_bytes) == 0);
    free(found);
    free(kept);
}

static void snapshot_all(void)
{
    struct lm_written written[2];
    snapshot(written);
    all_is_right();
    CHECK_EQ(dirty(g_data) + dirty(g_zero), 0);
}

/* ---- while it is swept ---------------------------------------------------------------------------- */

/* What happens during a sweep does not belong to the snapshot, and is in the next one. */
static void test_who_writes_during_a_sweep_waits(void)
{
    struct lm_written written[2];
    struct writer clean, absent, zero;
    struct test_toucher reader;
    lm_snapshot *s;
    begin_anew();
    put(g_data, in(0, 0), "dirty", 5);
    (void)*(volatile uint8_t *)(g_data->memory + in(1, 0));
    uint8_t *kept = keep_right(g_data), *kept_zero = keep_right(g_zero);
    test_hold("writers paused");
    pthread_t beginner = test_thread(begin_one, &s);
    test_await_held();
    write_start_and_wait(&clean, g_data, in(1, 1), 0xAB);
    write_start_and_wait(&absent, g_data, in(2, 1),
                         0xAB); /* filled, and then it waits */
    test_touch_start(&reader, g_zero->memory + in(0, 0));
    test_touch_end(&reader); /* readers do not wait */
    CHECK_EQ(reader.got, 0);
    write_start_and_wait(&zero, g_zero, in(0, 1), 0xAB);
    CHECK_EQ(dirty(g_zero), 0);
    CHECK_EQ(dirty(g_data), 1);
    CHECK(!lm_load_seq_cst(&clean.is_over) && !lm_load_seq_cst(&absent.is_over) &&
          !lm_load_seq_cst(&zero.is_over));
    test_let_go();
    pthread_join(beginner, NULL);
    write_end(&clean);
    write_end(&absent);
    write_end(&zero);
    CHECK_EQ(g_stats.chunks_frozen, 1);
    write_out(s);
    commit(s, written);
    CHECK_EQ(written[1].chunks_total, 0);
    file_was_right(g_data, kept);
    file_was_right(g_zero, kept_zero);
    memory_is_right(g_data);
    CHECK_EQ(dirty(g_data), 2);
    CHECK_EQ(dirty(g_zero), 1);
    snapshot_all();
}

/* A write to a chunk that is not swept yet belongs to it, and so the chunk's fill is waited
 * for. */
static void test_a_sweep_waits_for_a_fill_of_a_written_chunk(void)
{
    struct lm_written written[2];
    struct test_toucher reader;
    lm_snapshot *s;
    begin_anew();
    put(g_data, in(0, 0), "dirty", 5);
    CHECK_EQ(madvise(g_data->memory + in(0, g_page), g_page, MADV_DONTNEED), 0);
    test_hold("publish");
    test_touch_start(&reader, g_data->memory + in(0, g_page));
    test_await_held();
    CHECK_EQ(state_of(g_data, 0), LM_CHUNK_REFILLING);
    pthread_t beginner = test_thread(begin_one, &s);
    AWAIT(lm_load_seq_cst(&g_data->region->writes.is_freezing));
    put(g_data, in(0, 2), "too", 3); /* the page is there, and not protected */
    test_let_go();
    test_touch_end(&reader);
    pthread_join(beginner, NULL);
    write_out(s);
    commit(s, written);
    CHECK_EQ(written[0].chunks_total, 1);
    all_is_right();
}

/* ---- while it is copied -------------------------------------------------------------------------- */

/* By the copier, for the first of them. */
static void test_writers_wait_for_the_copier(void)
{
    struct lm_written written[2];
    struct writer first, second;
    begin_anew();
    put(g_data, in(0, 0), "frozen", 6);
    put(g_data, in(2, 0), "frozen", 6);
    uint8_t *kept = keep_right(g_data);
    lm_snapshot *s = begin(&g_stats);
    test_hold("copying");
    write_start(&first, g_data, in(0, 1), 0xAB);
    test_await_held();
    CHECK_EQ(state_of(g_data, 0), LM_CHUNK_COPYING);
    write_start_and_wait(&second, g_data, in(0, g_page), 0xCD);
    CHECK(!lm_load_seq_cst(&first.is_over) && !lm_load_seq_cst(&second.is_over));
    test_let_go();
    write_end(&first);
    write_end(&second);
    CHECK_EQ(state_of(g_data, 0), LM_CHUNK_DIRTY);
    CHECK_EQ(state_of(g_data, 2), LM_CHUNK_FROZEN);
    write_out(s);
    commit(s, written);
    file_was_right(g_data, kept);
    memory_is_right(g_data);
    CHECK_EQ(dirty(g_data), 1);
    snapshot_all();
}

/* By a worker, or by who starts a job of one step. */
static void test_writers_wait_for_a_worker(int chunks)
{
    struct lm_written written[2];
    struct writer writer;
    begin_anew();
    for (int i = 0; i < chunks; i++)
        put(g_data, in((size_t)(2 * i), 0), "frozen", 6);
    uint8_t *kept = keep_right(g_data);
    lm_snapshot *s = begin(&g_stats);
    test_hold("copying");
    pthread_t finisher = test_thread(finish_one, s);
    test_await_held();
    size_t unit = state_of(g_data, 0) == LM_CHUNK_COPYING ? 0 : 2;
    CHECK_EQ(state_of(g_data, unit), LM_CHUNK_COPYING);
    write_start_and_wait(&writer, g_data, in(unit, 1), 0xAB);
    CHECK(!lm_load_seq_cst(&writer.is_over));
    test_let_go();
    write_end(&writer);
    pthread_join(finisher, NULL);
    commit(s, written);
    file_was_right(g_data, kept);
    memory_is_right(g_data);
    CHECK_EQ(dirty(g_data), 1);
    snapshot_all();
}

/* More copies than there may be: their writers wait for the snapshot to be stored, or given
 * up. */
static void test_copies_are_bounded(int is_stored)
{
    struct lm_written written[2];
    struct writer writers[3];
    begin_anew();
    lm__freeze_bound_copies(g_unit);
    for (size_t i = 0; i < 3; i++)
        put(g_data, in(i, 0), "frozen", 6);
    uint8_t *kept = keep_right(g_data);
    lm_snapshot *s = begin(&g_stats);
    for (size_t i = 0; i < 3; i++)
        write_start_and_wait(&writers[i], g_data, in(i, 1), 0xAB);
    int over;
    do {
        over = 0;
        for (size_t i = 0; i < 3; i++)
            over += lm_load_seq_cst(&writers[i].is_over);
    } while (over == 0);
    sched_yield();
    CHECK_EQ((state_of(g_data, 0) == LM_CHUNK_FROZEN) +
                 (state_of(g_data, 1) == LM_CHUNK_FROZEN) +
                 (state_of(g_data, 2) == LM_CHUNK_FROZEN),
             2);
    if (is_stored) {
        write_out(s);
        commit(s, written);
        file_was_right(g_data, kept);
    } else {
        lm_snapshot_close(s, 0);
        free(kept);
    }
    for (size_t i = 0; i < 3; i++)
        write_end(&writers[i]);
    memory_is_right(g_data);
    CHECK_EQ(dirty(g_data), 3);
    lm__freeze_bound_copies(256u << 20);
    snapshot_all();
}

enum { MANY = 300 }; /* more than there is room for on the table of who waits */

/* The copier needs a fill, whatever the number of those that wait for it. */
static void test_any_number_of_writers_may_wait(void)
{
    struct lm_written written[2];
    static struct writer writers[MANY];
    begin_anew();
    put(g_data, in(0, 0), "frozen", 6);
    put(g_data, in(2, 0), "frozen", 6);
    uint8_t *kept = keep_right(g_data);
    CHECK_EQ(madvise(g_data->memory + in(0, g_page), g_page, MADV_DONTNEED), 0);
    lm_snapshot *s = begin(&g_stats);
    uint64_t before = write_faults(g_data);
    test_hold("copying");
    for (size_t i = 0; i < MANY; i++)
        write_start(&writers[i], g_data, in(0, 10 + i), (uint8_t)(i | 1));
    test_await_held();
    AWAIT(write_faults(g_data) >= before + MANY);
    test_let_go();
    for (size_t i = 0; i < MANY; i++)
        write_end(&writers[i]);
    write_out(s);
    commit(s, written);
    file_was_right(g_data, kept);
    memory_is_right(g_data);
    snapshot_all();
}

/* ---- what is let be written ahead of a run --------------------------------------------------- */

static struct {
    _Atomic unsigned in;
    _Atomic int may_go;
} g_workers;

static int hold_worker(void *unused, uint64_t step_idx, struct lm__scratch *scratch,
                       struct lm_error *err)
{
    (void)unused, (void)step_idx, (void)scratch, (void)err;
    lm_add_seq_cst(&g_workers.in, 1);
    while (lm_load_seq_cst(&g_workers.in) < lm__cores() ||
           !lm_load_seq_cst(&g_workers.may_go))
        usleep(100);
    return 0;
}

/* A job that is in all workers at the same time: none of them is at another one's. */
static lm_job *workers_hold(int may_go)
{
    lm_job *job;
    struct lm__job_spec spec = {
        .step = hold_worker, .steps = lm__cores(), .priority = LM_JOB_BACKGROUND};
    lm_store_seq_cst(&g_workers.in, 0);
    lm_store_seq_cst(&g_workers.may_go, may_go);
    CHECK_EQ(lm__job_start(&spec, &job), 0);
    return job;
}

static void workers_end(lm_job *job)
{
    while (!lm_job_wait(job, 1000))
        ;
    lm_job_close(job, LM_JOB_CANCEL);
}

/* Workers come to what follows a run late: behind a freeze, or not. */
static void test_no_window_outlives_a_freeze(int is_frozen)
{
    enum { RUN = 4, WINDOW = 8 }; /* of which one chunk is the tripwire */
    begin_anew();
    for (size_t i = 0; i < 12; i++)
        put(g_data, in(i, 0), "clean", 5);
    snapshot_all();
    CHECK_EQ(dirty(g_data), 0);
    lm_job *held = workers_hold(0);
    AWAIT(lm_load_seq_cst(&g_workers.in) == lm__cores());
    for (size_t i = 0; i < RUN; i++)
        put(g_data, in(i, 0), "dirty", 5);
    CHECK_EQ(dirty(g_data), RUN);
    if (is_frozen) {
        lm__writes_pause(g_data->region);
        lm__writes_resume(g_data->region);
    }
    lm_store_seq_cst(&g_workers.may_go, 1);
    workers_end(held);
    workers_end(workers_hold(1));
    CHECK_EQ(dirty(g_data), is_frozen ? RUN : RUN + WINDOW - 1);
    memory_is_right(g_data);
    snapshot_all();
}

/* ---- pages that are given back, which nobody has written to ------------------------------------- */

static void give_back(size_t unit)
{
    CHECK_EQ(madvise(g_data->memory + in(unit, g_page), g_page, MADV_DONTNEED), 0);
}

static void page_is_right(const struct test_toucher *t)
{
    CHECK_EQ(t->got, g_data->right[t->addr - g_data->memory]);
    CHECK(!t->has_error);
}

static void test_pages_given_back_of_a_frozen_chunk(void)
{
    struct lm_written written[2];
    struct test_toucher reader;
    struct writer writer;
    begin_anew();
    for (size_t i = 0; i < 4; i++)
        put(g_data, in(i, 0), "frozen", 6);
    uint8_t *kept = keep_right(g_data);
    lm_snapshot *s = begin(&g_stats);
    give_back(0);
    test_touch_start(&reader, g_data->memory + in(0, g_page + 7));
    test_touch_end(&reader);
    page_is_right(&reader);
    give_back(1);
    write_start(&writer, g_data, in(1, g_page + 7), 0xAB);
    write_end(&writer);
    give_back(2); /* found by who stores it */
    write_out(s);
    CHECK_EQ(state_of(g_data, 2), LM_CHUNK_SAVED);
    give_back(2);
    give_back(3);
    put(g_data, in(2, g_page + 9), "saved", 5);
    (void)*(volatile uint8_t *)(g_data->memory + in(3, g_page));
    commit(s, written);
    file_was_right(g_data, kept);
    memory_is_right(g_data);
    snapshot_all();
}

static void test_pages_given_back_of_a_chunk_that_is_copied(void)
{
    struct lm_written written[2];
    struct test_toucher reader;
    struct writer writer;
    begin_anew();
    put(g_data, in(0, 0), "frozen", 6);
    uint8_t *kept = keep_right(g_data);
    lm_snapshot *s = begin(&g_stats);
    test_hold("copying");
    write_start(&writer, g_data, in(0, 1), 0xAB);
    test_await_held();
    give_back(0);
    test_touch_start(&reader, g_data->memory + in(0, g_page + 7));
    AWAIT(lm_load_relaxed(&g_data->region->faults) > 0);
    test_let_go();
    write_end(&writer);
    test_touch_end(&reader);
    page_is_right(&reader);
    write_out(s);
    commit(s, written);
    file_was_right(g_data, kept);
    memory_is_right(g_data);
    snapshot_all();
}

/* Zeros that come to a chunk while it is copied can't be written to unseen. */
static void test_zeros_given_back_of_a_chunk_that_is_copied(void)
{
    struct lm_written written[2];
    struct writer writer, second;
    g_zero->root = (struct lm_root){0};
    memset(g_zero->right, 0, g_zero->enc.object_bytes);
    begin_anew();
    put(g_zero, in(0, 0), "frozen", 6);
    uint8_t *kept = keep_right(g_zero);
    lm_snapshot *s = begin(&g_stats);
    test_hold("copying");
    write_start(&writer, g_zero, in(0, 1), 0xAB);
    test_await_held();
    CHECK_EQ(madvise(g_zero->memory + in(0, g_page), g_page, MADV_DONTNEED), 0);
    test_hold("zeros installed"); /* is not come by */
    pthread_mutex_lock(&g_pause.lock);
    g_pause.may_go = 1;
    pthread_cond_broadcast(&g_pause.changed);
    pthread_mutex_unlock(&g_pause.lock);
    write_end(&writer);
    write_start(&second, g_zero, in(0, g_page), 0xCD);
    write_end(&second);
    CHECK(!g_pause.is_held);
    write_out(s);
    commit(s, written);
    file_was_right(g_zero, kept);
    memory_is_right(g_zero);
    snapshot_all();
}

/* ---- the same, when the source fails --------------------------------------------------------------- */

/* The snapshot is an error, which nobody else hears of; everything is dirty again. */
static void fails(lm_snapshot *s, uint64_t dirty_wanted)
{
    struct lm_written written[2];
    lm_job *job;
    CHECK_EQ(lm_snapshot_write(s, &job), 0);
    while (!lm_job_wait(job, 1000))
        ;
    CHECK(lm_job_errors(job, &g_err, 1) == 1);
    CHECK_EQ(g_err.code, -ENXIO);
    lm_job_close(job, 0);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK(lm_snapshot_end(s, written, &g_err) != 0);
    lm_snapshot_close(s, 0);
    CHECK_EQ(lm_failure_take(test_tid(), NULL), 0);
    CHECK_EQ(lm__failure_next_queued(&g_err), 0);
    CHECK_EQ(dirty(g_data), dirty_wanted);
    memory_is_right(g_data);
    snapshot_all();
}

static void test_a_frozen_page_that_cant_be_had(int is_for_writer)
{
    struct writer writer;
    begin_anew();
    put(g_data, in(0, 0), "frozen", 6);
    put(g_data, in(2, 0), "frozen", 6);
    give_back(0);
    lm_snapshot *s = begin(&g_stats);
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    if (is_for_writer) {
        write_start(&writer, g_data, in(0, 2), 0xAB);
        write_end(&writer); /* is not its error: its page is there */
    }
    fails(s, 2);
}

/* Nobody writes to the false bytes, which then would be lost with them. */
static void test_a_writer_waits_until_false_bytes_are_gone(void)
{
    struct writer writer, second;
    begin_anew();
    put(g_data, in(0, 0), "frozen", 6);
    give_back(0);
    lm_snapshot *s = begin(&g_stats);
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    test_hold("lent");
    write_start(&writer, g_data, in(0, 2), 0xAB);
    test_await_held();
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    write_start_and_wait(&second, g_data, in(0, g_page + 5), 0xCD);
    CHECK(!lm_load_seq_cst(&writer.is_over) && !lm_load_seq_cst(&second.is_over));
    test_let_go();
    write_end(&writer);
    write_end(&second);
    memory_is_right(g_data);
    fails(s, 1);
}

/* ---- release ------------------------------------------------------------------------------------------ */

/* What was dropped is neither stored nor in memory again, and who waits goes on. */
static void test_release_of_a_chunk_that_is_copied(int is_copier)
{
    struct lm_written written[2];
    struct writer writer;
    lm_job *job;
    begin_anew();
    put(g_data, in(0, 0), "frozen", 6);
    put(g_data, in(2, 0), "frozen", 6);
    lm_snapshot *s = begin(&g_stats);
    test_hold("copying");
    if (is_copier)
        write_start(&writer, g_data, in(0, 1), 0xAB);
    else
        CHECK_EQ(lm_snapshot_write(s, &job), 0);
    test_await_held();
    lm_region_release(g_data->region);
    test_let_go();
    if (is_copier) {
        CHECK_EQ(pthread_join(writer.thread, NULL), 0);
        CHECK(writer.has_error);
        CHECK_EQ(lm_snapshot_write(s, &job), 0);
    }
    while (!lm_job_wait(job, 1000))
        ;
    CHECK(lm_job_errors(job, &g_err, 1) == 1);
    CHECK_EQ(g_err.code, LM_E_CLOSED);
    lm_job_close(job, 0);
    CHECK(lm_snapshot_end(s, written, &g_err) != 0);
    lm_snapshot_close(s, 0);
    lm_region_settle(g_data->region);
    for (size_t page = 0; page < g_data->region->bytes; page += g_page)
        CHECK(!test_is_present(g_data->memory + page));
    begin_anew();
    read_file(g_data, g_data->right);
    all_is_right();
}

/* ---- all at once ---------------------------------------------------------------------------------------- */

#define WRITERS 6
#define ROUNDS  (TEST_IS_SANITIZED ? 5 : 30)

static _Atomic int g_stop;
static size_t g_units;

/* Ever greater numbers, first in one array and then in the other: in no state of the memory is
 * the second one ahead, or more than one behind. */
static void *count_up(void *arg)
{
    size_t id = (size_t)arg;
    for (uint32_t n = 1; !lm_load_seq_cst(&g_stop); n++)
        for (size_t u = 0; u < g_units; u++) {
            size_t at = in(u, 64 + 8 * id);
            *(volatile uint32_t *)(g_data->memory + at) = n;
            *(volatile uint32_t *)(g_zero->memory + at) = n;
        }
    return NULL;
}

/* Pages that nobody writes to. */
static void *give_pages_back(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    while (!lm_load_seq_cst(&g_stop)) {
        const struct array *a = &g.arrays[test_random(&state) % 2];
        size_t at =
            in(test_random(&state) % g_units, (1 + test_random(&state) % 3) * g_page);
        if (test_random(&state) % 4 == 0)
            lm_region_evict(a->region, 0, a->enc.object_bytes);
        CHECK_EQ(madvise(a->memory + at, g_page, MADV_DONTNEED), 0);
        CHECK_EQ(a->memory[at + 5], a->right[at + 5]);
    }
    return NULL;
}

static void check_moment(uint8_t *const *found)
{
    for (size_t u = 0; u < g_units; u++)
        for (size_t id = 0; id < WRITERS; id++) {
            uint32_t x, y;
            memcpy(&x, found[0] + in(u, 64 + 8 * id), 4);
            memcpy(&y, found[1] + in(u, 64 + 8 * id), 4);
            CHECK(x - y <= 1);
        }
}

static void test_all_at_once(void)
{
    struct lm_written written[2];
    pthread_t threads[WRITERS + 2];
    uint8_t *found[2];
    int can_give_back = g_unit == g_chunk;
    begin_anew();
    g_units = can_give_back ? CHUNKS - 1 : 2;
    for (int i = 0; i < 2; i++)
        CHECK(found[i] = malloc(g.arrays[i].enc.object_bytes));
    for (size_t u = 0; u < g_units; u++)
        for (int i = 0; i < 2; i++)
            put(&g.arrays[i], in(u, 64), (uint8_t[8 * WRITERS]){0}, 8 * WRITERS);
    snapshot_all();
    lm__freeze_bound_copies(4 * g_unit);
    lm_store_seq_cst(&g_stop, 0);
    for (size_t i = 0; i < WRITERS; i++)
        threads[i] = test_thread(count_up, (void *)i);
    for (size_t i = 0; i < 2; i++)
        threads[WRITERS + i] =
            can_give_back ? test_thread(give_pages_back, (void *)(i + 1)) : threads[0];
    for (int round = 0; round < ROUNDS; round++) {
        lm_snapshot *s = begin(&g_stats);
        if (round % 5 == 4) {
            lm_snapshot_close(s, 0); /* given up: nothing is lost */
            continue;
        }
        write_out(s);
        commit(s, written);
        for (int i = 0; i < 2; i++)
            read_file(&g.arrays[i], found[i]);
        check_moment(found);
    }
    lm_store_seq_cst(&g_stop, 1);
    for (size_t i = 0; i < WRITERS + (can_give_back ? 2 : 0); i++)
        pthread_join(threads[i], NULL);
    lm__freeze_bound_copies(256u << 20);
    for (int i = 0; i < 2; i++) {
        memcpy(g.arrays[i].right, g.arrays[i].memory, g.arrays[i].enc.object_bytes);
        free(found[i]);
    }
    snapshot_all();
}

/* ---- the run ---------------------------------------------------------------------------------------------- */

static int run(uint64_t page_bytes)
{
    g_options.page_bytes = page_bytes;
    store_make(g_options);
    g_unit = lm_region_chunk_bytes(g_data->region);
    if (g_data->region->tracking != LM_TRACK_PROTECT)
        return test_skip("no write protection");
    if (!test_two_handlers(g_data->region))
        return test_skip("one handler");
    test_who_writes_during_a_sweep_waits();
    test_writers_wait_for_the_copier();
    test_writers_wait_for_a_worker(1);
    test_writers_wait_for_a_worker(2);
    test_copies_are_bounded(1);
    test_copies_are_bounded(0);
    if (g_unit == g_chunk) { /* of a huge page there is no part to give back */
        test_no_window_outlives_a_freeze(1);
        test_no_window_outlives_a_freeze(0);
        test_a_sweep_waits_for_a_fill_of_a_written_chunk();
        test_any_number_of_writers_may_wait();
        test_pages_given_back_of_a_frozen_chunk();
        test_pages_given_back_of_a_chunk_that_is_copied();
        test_zeros_given_back_of_a_chunk_that_is_copied();
        test_a_frozen_page_that_cant_be_had(0);
        test_a_frozen_page_that_cant_be_had(1);
        test_a_writer_waits_until_false_bytes_are_gone();
    }
    test_release_of_a_chunk_that_is_copied(0);
    test_release_of_a_chunk_that_is_copied(1);
    test_all_at_once();
    store_close();
    return TEST_OK;
}

int main(int argc, char **argv)
{
    enum { PAGES = 10 };
    int is_huge = argc > 1 && strcmp(argv[1], "huge") == 0;
    if (test_codecs() != 0)
        return test_skip("no lz4 and zstd");
    if (lm_pager_start() != 0)
        return test_skip("no userfaultfd");
    int rc = run(is_huge ? LM_HUGE_BYTES : 0);
    if (rc == TEST_OK && !is_huge && pool_grow(PAGES)) {
        rc = test_run_as("huge");
        pool_grow(-PAGES);
    }
    return rc;
}
