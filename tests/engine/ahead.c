/* SPDX-License-Identifier: BSD-3-Clause
 * Does readahead see runs of faults, forwards, backwards and strided, and several at a time; does
 * it leave accesses alone that are no runs; and does it give up what is of no use?
 */
#define _GNU_SOURCE
#include "test.h"

#define CHUNK_BYTES 4096u
#define CHUNKS      4096u
#define BYTES       (CHUNKS * CHUNK_BYTES - 99)

static struct test_store g_store;
static lm_region *g_region;

static void region_open(enum lm_advice advice)
{
    CHECK_EQ(test_region_open(&g_store, &g_region), 0);
    lm_region_advise(g_region, advice);
}

static struct lm_region_stats stats(void)
{
    struct lm_region_stats out;
    lm_region_stats(g_region, &out);
    return out;
}

static void touch(uint64_t offset)
{
    const volatile uint8_t *served = lm_region_addr(g_region);
    CHECK_EQ(served[offset], g_store.data[offset]);
}

static uint64_t resident(uint64_t first, uint64_t count)
{
    return lm_region_residency(g_region, first, count, NULL);
}

/* What is asked for comes; if not, the test does not end. */
static void await_resident(uint64_t first, uint64_t count)
{
    while (resident(first, count) < count)
        usleep(100);
}

/* All that was touched and all that was asked for is there, once each: what follows depends on
 * no other thread. */
static void await_quiet(void)
{
    while (stats().chunks_resident < stats().ahead + stats().faults)
        usleep(100);
}

static void test_three_faults_in_line_begin_a_run(void)
{
    region_open(LM_ADVICE_NORMAL);
    touch(10 * CHUNK_BYTES + 7);
    touch(11 * CHUNK_BYTES + 4000);
    CHECK_EQ(stats().ahead, 0);
    touch(12 * CHUNK_BYTES);
    CHECK_EQ(stats().ahead, 3);
    await_resident(14, 3);
    CHECK_EQ(resident(13, 1), 0); /* the tripwire */
    CHECK_EQ(stats().chunks_resident, 6);
    touch(13 * CHUNK_BYTES + 1); /* half of the window is left: on with it */
    CHECK_EQ(stats().ahead, 3 + 4);
    await_resident(18, 4);
    CHECK_EQ(resident(17, 1), 0);
    lm_region_close(g_region);
}

/* Who faults on what is being filled shows where he is, and needs no tripwire. */
static void test_who_waits_for_the_workers_gets_pieces_without_holes(void)
{
    region_open(LM_ADVICE_NORMAL);
    for (uint64_t i = 10; i <= 12; i++)
        touch(i * CHUNK_BYTES);
    await_resident(14, 3);
    lm__ahead_note(g_region, 14 * CHUNK_BYTES, 0); /* as if it were not there yet */
    CHECK_EQ(stats().ahead, 3 + 6);
    await_resident(17, 6);
    touch(23 * CHUNK_BYTES); /* no fault since then: blind again */
    await_quiet();
    CHECK_EQ(resident(24, 1), 0);
    CHECK_EQ(resident(25, 15), 15);
    lm_region_close(g_region);
}

/* Touch chunks in a run, and return how many faults that took. */
static uint64_t run(uint64_t first, int64_t stride, uint64_t count)
{
    uint64_t before = stats().faults;
    for (uint64_t i = 0; i < count; i++) {
        touch(first + (uint64_t)((int64_t)i * stride));
        await_quiet();
    }
    return stats().faults - before;
}

static void test_runs_fault_seldom(void)
{
    static const int64_t strides[] = {CHUNK_BYTES, -(int64_t)CHUNK_BYTES, 10001,
                                      -10001};
    for (unsigned i = 0; i < 4; i++) {
        uint64_t count = 1500, first = strides[i] < 0 ? BYTES - 1 : 5;
        region_open(LM_ADVICE_NORMAL);
        uint64_t faults = run(first, strides[i], count);
        CHECK(faults >= 3 && faults < 16); /* three, and one in each piece */
        CHECK(stats().ahead < 4 * count);
        CHECK_EQ(stats().ahead_wasted, 0);
        lm_region_close(g_region);
    }
}

static void test_a_run_ends_with_the_object(void)
{
    region_open(LM_ADVICE_NORMAL);
    run((CHUNKS - 6) * CHUNK_BYTES, CHUNK_BYTES, 6);
    CHECK_EQ(stats().chunks_resident, 6);
    run(5 * CHUNK_BYTES, -(int64_t)CHUNK_BYTES, 6);
    CHECK_EQ(stats().chunks_resident, 12);
    lm_region_close(g_region);

    region_open(LM_ADVICE_NORMAL);
    const volatile uint8_t *served = lm_region_addr(g_region);
    for (int i = 2; i >= 0; i--) /* up to what is left of the last page */
        CHECK_EQ(served[BYTES + 50 - i * 10001],
                 i ? g_store.data[BYTES + 50 - i * 10001] : 0);
    CHECK_EQ(stats().ahead, 0);
    lm_region_close(g_region);
}

static void test_runs_side_by_side(void)
{
    region_open(LM_ADVICE_NORMAL);
    for (uint64_t i = 0; i < 300; i++) {
        const uint64_t chunks[] = {i, 2600 - i, 2700 + i};
        for (int k = 0; k < 3; k++) {
            touch(chunks[k] * CHUNK_BYTES);
            await_quiet();
        }
    }
    CHECK(stats().faults < 3 * 13);
    CHECK_EQ(stats().ahead_wasted, 0);
    lm_region_close(g_region);
}

static void test_random_accesses_are_left_alone(void)
{
    uint64_t state = 3;
    region_open(LM_ADVICE_NORMAL);
    for (int i = 0; i < 10000; i++)
        touch(test_random(&state) % BYTES);
    CHECK(stats().ahead <= stats().fills / 100);
    lm_region_close(g_region);
}

/* Rows of a few chunks look like runs at first. */
static void test_short_runs_waste_little(void)
{
    uint64_t state = 5;
    region_open(LM_ADVICE_NORMAL);
    for (int row = 0; row < 500; row++) {
        uint64_t first = test_random(&state) % (CHUNKS / 8) * 8;
        for (uint64_t i = 0; i < 5; i++)
            touch((first + i) * CHUNK_BYTES);
    }
    CHECK(stats().ahead_wasted <= stats().fills / 10);
    CHECK(stats().ahead <= stats().fills / 10);
    lm_region_close(g_region);
}

static void test_advice(void)
{
    region_open(LM_ADVICE_RANDOM);
    CHECK_EQ(run(0, CHUNK_BYTES, 100), 100);
    CHECK_EQ(stats().ahead, 0);
    lm_region_close(g_region);

    region_open(LM_ADVICE_SEQUENTIAL);
    touch(7 * CHUNK_BYTES);
    CHECK(stats().ahead >= 100);
    lm_region_close(g_region);
}

/* Handlers, workers and a closing owner at once. */
static void test_closed_in_the_midst(void)
{
    for (int round = 0; round < 50; round++) {
        region_open(round % 2 ? LM_ADVICE_SEQUENTIAL : LM_ADVICE_NORMAL);
        for (uint64_t i = 0; i < 20 + (uint64_t)round; i++)
            touch(i * CHUNK_BYTES);
        if (round % 3 == 0)
            lm_region_release(g_region);
        lm_region_close(g_region);
    }
}

static void test_damage_is_the_touchers_alone(void)
{
    region_open(LM_ADVICE_NORMAL);
    run(0, CHUNK_BYTES, 3);
    lm_region_fill_here(g_region, 3 * CHUNK_BYTES); /* the tripwire */
    lm_inject(LM_INJECT_READ, 0, -1, EIO);
    touch(4 * CHUNK_BYTES); /* filled ahead */
    CHECK_EQ(((const volatile uint8_t *)lm_region_addr(g_region))[7 * CHUNK_BYTES],
             255);
    lm_inject(LM_INJECT_READ, 0, 0, 0);
    CHECK(test_failures(g_region) > 0); /* 7, and none that was not touched */
    lm_region_settle(g_region);
    CHECK(stats().ahead > 3);
    CHECK(test_same(lm_region_addr(g_region), g_store.data, BYTES));
    lm_region_close(g_region);
}

static int child(void *unused)
{
    (void)unused;
    CHECK(run(1000 * CHUNK_BYTES, CHUNK_BYTES, 400) < 16);
    return TEST_OK;
}

static void test_in_a_forked_child(void)
{
    region_open(LM_ADVICE_NORMAL);
    run(0, CHUNK_BYTES, 50);
    CHECK_EQ(test_in_child(child, NULL), TEST_OK);
    CHECK(run(1000 * CHUNK_BYTES, CHUNK_BYTES, 400) < 16);
    lm_region_close(g_region);
}

int main(void)
{
    struct lm_encoding enc = {.object_bytes = BYTES,
                              .chunk_bytes = CHUNK_BYTES,
                              .shuffle_width = 4,
                              .codec = LM_CODEC_LZ4,
                              .level = 1};
    if (test_store_make(&g_store, enc, 15) != 0 ||
        test_region_open(&g_store, &g_region) != 0)
        return TEST_SKIP;
    lm_region_close(g_region);
    test_three_faults_in_line_begin_a_run();
    test_who_waits_for_the_workers_gets_pieces_without_holes();
    test_runs_fault_seldom();
    test_a_run_ends_with_the_object();
    test_runs_side_by_side();
    test_random_accesses_are_left_alone();
    test_short_runs_waste_little();
    test_advice();
    test_closed_in_the_midst();
    test_damage_is_the_touchers_alone();
    test_in_a_forked_child();
    test_store_close(&g_store);
    return TEST_OK;
}
