/* SPDX-License-Identifier: BSD-3-Clause
 * Does a forked child read the right data, resident or not, and can it do all that its parent
 * can, whatever the parent was doing?
 */
#define _GNU_SOURCE
#include "pause.h"

#define CHUNK_BYTES 16384u
#define CHUNKS      64
#define BYTES       (CHUNKS * CHUNK_BYTES)

static struct test_store g_store;
static lm_region *g_region;
static _Atomic int g_stop;

static int read_object(void *unused)
{
    (void)unused;
    for (int i = 0; i < 20; i++) {
        uint8_t *got = malloc(BYTES);
        lm_job *job;
        CHECK(got);
        CHECK_EQ(
            lm_object_read(g_store.object, 0, BYTES - (i & 1) * (BYTES - 5), got, &job),
            0);
        test_finish(job);
        CHECK(memcmp(got, g_store.data, 5) == 0);
        free(got);
    }
    return TEST_OK;
}

/* Jobs need workers, and workers need no userfaultfd. */
static void test_jobs_before_any_region(void)
{
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(read_object(NULL), 0);
        CHECK_EQ(test_in_child(read_object, NULL), 0);
    }
}

static void *reader(void *unused)
{
    (void)unused;
    while (!lm_load_seq_cst(&g_stop))
        read_object(NULL);
    return NULL;
}

static void test_fork_amid_jobs(void)
{
    pthread_t thread = test_thread(reader, NULL);
    for (int i = 0; i < 40; i++)
        CHECK_EQ(test_in_child(read_object, NULL), 0);
    lm_store_seq_cst(&g_stop, 1);
    pthread_join(thread, NULL);
}

static int child_reads_all(void *unused)
{
    (void)unused;
    struct lm_error err;
    lm_job *job;
    lm_region *second;
    const volatile uint8_t *served = lm_region_addr(g_region);
    CHECK(test_same(served, g_store.data, BYTES));
    CHECK_EQ(test_region_open(&g_store, &second), 0);
    for (int i = 0; i < 6; i++) {
        CHECK_EQ(lm_region_prefetch(second, (uint64_t)i * CHUNK_BYTES, 5 * CHUNK_BYTES,
                                    &job),
                 0);
        test_finish(job);
    }
    CHECK(test_same(lm_region_addr(second), g_store.data, BYTES));
    lm_region_release(second);
    for (int i = 0; i < 6; i++) {
        uint64_t over = lm_region_settle(second);
        (void)*(const volatile uint8_t *)lm_region_addr(second);
        CHECK(lm_failure_take(test_tid(), &err) || test_failures(second) != over);
    }
    lm_region_close(second);
    return read_object(NULL);
}

static int child_of_a_child(void *unused)
{
    const volatile uint8_t *served = lm_region_addr(g_region);
    CHECK_EQ(served[BYTES / 2], g_store.data[BYTES / 2]);
    CHECK_EQ(test_in_child(child_reads_all, unused), 0);
    return child_reads_all(unused);
}

static int child_writes(void *unused)
{
    (void)unused;
    memset(lm_region_addr(g_region), 0x5A, BYTES);
    return TEST_OK;
}

static void test_child_reads_right_data(void)
{
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    const volatile uint8_t *served = lm_region_addr(g_region);
    CHECK_EQ(test_in_child(child_reads_all, NULL), 0); /* nothing resident */
    CHECK_EQ(lm_region_residency(g_region, 0, CHUNKS, NULL), 0);
    for (uint64_t c = 0; c < CHUNKS; c += 2)
        CHECK_EQ(served[c * CHUNK_BYTES], g_store.data[c * CHUNK_BYTES]);
    CHECK_EQ(test_in_child(child_of_a_child, NULL), 0); /* every other chunk */
    CHECK_EQ(test_in_child(child_writes, NULL), 0);
    CHECK(test_same(served, g_store.data, BYTES));
    lm_region_close(g_region);
}

/* The error of a parent's thread is not the child's, and does not hide the child's own. */
static int child_meets_damage(void *unused)
{
    (void)unused;
    struct lm_error err;
    const volatile uint8_t *served = lm_region_addr(g_region);
    CHECK_EQ(lm_failure_take(getppid(), NULL), 0);
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    CHECK_EQ(served[0], 0xFF);
    CHECK_EQ(lm_failure_take(test_tid(), &err), 1);
    CHECK_EQ(err.code, -ENXIO);
    return TEST_OK;
}

static void test_errors_stay_with_their_process(void)
{
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    const volatile uint8_t *served = lm_region_addr(g_region);
    CHECK_EQ(served[5 * CHUNK_BYTES],
             g_store.data[5 * CHUNK_BYTES]); /* reads the index */
    lm_inject(LM_INJECT_READ, 0, -1, ENXIO);
    CHECK_EQ(served[1 * CHUNK_BYTES], 0xFF);
    CHECK_EQ(test_in_child(child_meets_damage, NULL), 0);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK_EQ(lm_failure_take(test_tid(), NULL), 1);
    lm_region_close(g_region);
}

static void *touch(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    while (!lm_load_seq_cst(&g_stop)) {
        lm_region *region;
        CHECK_EQ(test_region_open(&g_store, &region), 0);
        const volatile uint8_t *served = lm_region_addr(region);
        for (int i = 0; i < 20; i++) {
            uint64_t at = test_random(&state) % BYTES;
            CHECK_EQ(served[at], g_store.data[at]);
        }
        lm_region_close(region);
    }
    return NULL;
}

static void *prefetch(void *unused)
{
    (void)unused;
    while (!lm_load_seq_cst(&g_stop)) {
        lm_region *region;
        lm_job *job;
        CHECK_EQ(test_region_open(&g_store, &region), 0);
        CHECK_EQ(lm_region_prefetch(region, 0, BYTES, &job), 0);
        test_finish(job);
        lm_region_close(region);
    }
    return NULL;
}

static void test_fork_under_fire(void)
{
    pthread_t threads[3];
    lm_store_seq_cst(&g_stop, 0);
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    threads[0] = test_thread(touch, (void *)1);
    threads[1] = test_thread(touch, (void *)2);
    threads[2] = test_thread(prefetch, NULL);
    for (int i = 0; i < 40; i++)
        CHECK_EQ(test_in_child(child_reads_all, NULL), 0);
    lm_store_seq_cst(&g_stop, 1);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    lm_region_close(g_region);
}

static void *read_in_parent(void *unused)
{
    (void)unused;
    read_object(NULL);
    return NULL;
}

static _Atomic int g_child_status = -1;

static int read_in_time(void *unused)
{
    alarm(20);
    return read_object(unused);
}

static void *fork_meanwhile(void *unused)
{
    (void)unused;
    lm_store_seq_cst(&g_child_status, test_in_child(read_in_time, NULL));
    return NULL;
}

/* A reader is looking up what it reads from, which takes a lock for an instant: the fork waits
 * for it, or the child would find the lock taken for ever. */
static void test_fork_amid_a_look_up(void)
{
    test_hold("base");
    pthread_t reader = test_thread(read_in_parent, NULL);
    test_await_held();
    pthread_t forker = test_thread(fork_meanwhile, NULL);
    usleep(50000);
    CHECK_EQ(lm_load_seq_cst(&g_child_status), -1);
    test_let_go();
    pthread_join(forker, NULL);
    pthread_join(reader, NULL);
    CHECK_EQ(lm_load_seq_cst(&g_child_status), 0);
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .codec = LM_CODEC_LZ4,
                              .level = 1};
    if (TEST_IS_SANITIZED) /* a lock that another thread holds stays locked in the child */
        return test_skip("the sanitizers' allocators do not survive fork");
    if (test_store_make(&g_store, enc, 12) != 0)
        return TEST_SKIP;
    test_jobs_before_any_region();
    test_fork_amid_jobs();
    if (test_region_open(&g_store, &g_region) != 0)
        return TEST_SKIP;
    lm_region_close(g_region);
    test_jobs_before_any_region();
    test_child_reads_right_data();
    test_errors_stay_with_their_process();
    test_fork_under_fire();
    test_fork_amid_a_look_up();
    test_store_close(&g_store);
    return TEST_OK;
}
